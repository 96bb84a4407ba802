"""The plugin contract: everything that a plugin offers an archive, and all that it may use of one.

A plugin is an installed package with an entry point in the group ``hounsfield.plugins`` that is a
:class:`Plugin`. It runs where ``[plugins.NAME]`` stands in config.toml. Every worker process calls its
``start`` once, with the :class:`Archive` and its settings; the :class:`Parts` that it returns run beside the
archive's own, on the same event loop. Nothing else of the archive is a plugin's to import, but for what is
pure: ``hounsfield.archive.dicom`` and ``hounsfield.archive.errors``. See docs/plugins.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
import trio

from hounsfield.archive.engine.errors import EngineError, GoneError
from hounsfield.archive.index.records import (
    ORDINAL_MAX,
    Change,
    Key,
    Kind,
    RecordError,
    TakenError,
    View,
)
from hounsfield.codecs.registry import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax,
    lookup,
)

if TYPE_CHECKING:
    import click
    from prometheus_client.metrics_core import Metric
    from starlette.routing import BaseRoute

__all__ = [
    "ENTRY_POINTS",
    "EXPLICIT_VR_LITTLE_ENDIAN",
    "IMPLICIT_VR_LITTLE_ENDIAN",
    "ORDINAL_MAX",
    "Answer",
    "Answers",
    "Archive",
    "Caller",
    "Change",
    "CommandLine",
    "DimseRefusedError",
    "DimseService",
    "EngineError",
    "Event",
    "Events",
    "GoneError",
    "Key",
    "Kind",
    "Listen",
    "Outgoing",
    "Parts",
    "Perform",
    "Plugin",
    "RecordError",
    "Records",
    "Request",
    "Serve",
    "Settings",
    "Stored",
    "StreamPeer",
    "SucceededError",
    "TakenError",
    "TransferSyntax",
    "UnreachableError",
    "View",
    "lookup",
]

ENTRY_POINTS = "hounsfield.plugins"

Result = TypeVar("Result")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of config.toml that is a plugin's: every key with its type, its bounds and its default."""


# ---------------------------------------------------------------- what a plugin offers


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks over DICOM."""

    calling_ae: str
    called_ae: str
    address: str
    identity: str = ""
    """The user whose identity was verified (PS3.7 D.3.3.7); "" when none was."""


@dataclass(frozen=True, slots=True)
class Request:
    """One DIMSE request with its whole data set."""

    caller: Caller
    sop_class_uid: str
    sop_instance_uid: str
    """"" in a C-FIND, and in an N-CREATE that leaves the choice to us."""
    transfer_syntax_uid: str
    dataset: bytes
    cancelled: Callable[[], bool] = lambda: False
    """Whether a C-CANCEL came."""
    attributes: tuple[int, ...] = ()
    """Tags that an N-GET asks for; all there are when empty."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request (PS3.7 10.1): its status, and what is said with it."""

    status: int = 0
    dataset: bytes = b""
    sop_instance_uid: str = ""
    comment: str = ""
    """At most 64 characters, and nobody's name."""
    error_id: int | None = None
    attributes: tuple[int, ...] = ()
    """Tags of those at fault."""


class DimseRefusedError(Exception):
    """Raised in place of an answer, or of more of them: the request ends with this status."""

    def __init__(self, status: int, comment: str = "") -> None:
        super().__init__(comment)
        self.answer = Answer(status, comment=comment)


Answers = Callable[[Request], AsyncIterator[bytes | Answer]]
"""Answers to a C-FIND, as encoded identifiers in the transfer syntax of the request: bytes (pending, FF00),
or an Answer whose status is FF00 or FF01 (keys that are not supported were ignored). They go out some dozens
at a time, and may end early when ``cancelled``. Raises DimseRefusedError."""
Perform = Callable[[Request], Awaitable[Answer]]
"""The answer, its data set in the transfer syntax of the request. Raises DimseRefusedError."""


@dataclass(frozen=True, slots=True)
class DimseService:
    """SOP classes that we provide as SCP. ``name`` is what an AE's ``services`` list in config.toml, one of
    the plugin's :attr:`Plugin.services`."""

    name: str
    sop_classes: frozenset[str]
    find: Answers | None = None
    create: Perform | None = None
    set: Perform | None = None
    get: Perform | None = None
    transfer_syntaxes: tuple[str, ...] = (EXPLICIT_VR_LITTLE_ENDIAN.uid, IMPLICIT_VR_LITTLE_ENDIAN.uid)
    """Those that are taken, the best one first: Explicit and Implicit VR Little Endian."""


@dataclass(frozen=True, slots=True)
class Listen:
    """An address that is listened on, opened once and shared by all workers. Port 0: any free one.

    Beyond loopback it needs ``sources`` (networks), and TLS unless ``plain`` permits to go without.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 0
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    plain: bool = False
    sources: tuple[str, ...] = ()
    connections_max: int = 100


@dataclass(frozen=True, slots=True)
class StreamPeer:
    """Who is at the other end of a connection to one of our listeners."""

    address: str
    listener: str


Serve = Callable[[trio.abc.Stream, StreamPeer], Awaitable[None]]
"""Serves one connection; it is closed when this returns. What it raises ends this connection only.

When the archive stops, what is read of the stream ends, as if the peer had closed it: answer what came whole,
and return.
"""


@dataclass(slots=True)
class Parts:
    """What one worker runs of a plugin.

    ``background``: in each worker, until cancelled. ``leading``: by name, in one worker at a time, which
    another one succeeds within seconds when it dies; what a part asks for when another worker leads it
    already is refused (SucceededError). One of either that raises is begun again after a pause; one that
    returns is done. ``streams``: by the name of a listener. ``routes``: Starlette's, below
    ``/NAME``; ``scope["identity"]`` is the holder of the bearer token, absent where none is needed.
    ``operations``: what the command line asks for, JSON in and out; errors with a ``retry`` of their own are
    told in their words, others by type and place.
    """

    services: Sequence[DimseService] = ()
    routes: Sequence[BaseRoute] = ()
    streams: Mapping[str, Serve] = field(default_factory=dict)
    background: Sequence[Callable[[], Awaitable[None]]] = ()
    leading: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    operations: Mapping[str, Callable[..., Awaitable[Any]]] = field(default_factory=dict)
    metrics: Callable[[], Iterable[Metric]] = tuple


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin. ``name`` is that of its entry point, records, table in config.toml, routes and command: small
    letters, digits and hyphens, of which the first is a letter."""

    name: str
    summary: str
    start: Callable[[Archive, Any], Awaitable[Parts]]
    settings: type[Settings] = Settings
    services: tuple[str, ...] = ()
    """Names of the DimseServices that it may have: what an AE's ``services`` may list."""
    listens: Callable[[Any], Sequence[Listen]] = lambda settings: ()  # noqa: ARG005
    check: Callable[[Any], Sequence[str]] = lambda settings: ()  # noqa: ARG005
    """What must be announced of settings at every start. Raises ConfigError for those that cannot be."""
    command: Callable[[CommandLine], click.Command] | None = None
    """``hounsfield NAME``; imported only to be run."""


# ---------------------------------------------------------------- what an archive offers


class Records(Protocol):
    """A plugin's records: sealed, durable, found by keys, changed in transactions that follow one another."""

    def reading(self) -> AbstractContextManager[View]:
        """Them as they are now. A record takes microseconds; not across an await."""

    async def commit(self, plan: Callable[[Change], Result]) -> Result:
        """Make a transaction; what ``plan`` returns, once it is durable. Raises what ``plan`` raises.

        ``plan`` is a plain function that reads, decides and puts; it runs on another thread, perhaps several
        times, while no other transaction does. Raises EngineError when nothing could be kept.
        """


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. ``cursor``: where to go on after it."""

    cursor: str
    kind: str
    at_ns: int
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Events:
    """Events in order, where to go on, and whether there are more now. ``again``: some were told before."""

    events: Sequence[Event]
    next: str
    more: bool
    again: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of an object that was stored."""

    outcome: str
    """``stored``, ``duplicate``, ``conflict`` or ``quarantined``."""
    study_uid: str
    series_uid: str
    sop_uid: str


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request to another AE: ``operation`` is ``create`` (N-CREATE) or ``set`` (N-SET)."""

    operation: str
    sop_class_uid: str
    sop_instance_uid: str
    dataset: bytes
    """In Explicit VR Little Endian."""


class Archive(Protocol):
    """The archive, as a plugin sees it. Any task may call any of it."""

    @property
    def ae_title(self) -> str:
        """What we are called on DICOM networks."""

    @property
    def records(self) -> Records: ...

    def leads(self) -> bool:
        """Whether the leading part that asks still leads; True for what leads nothing. Microseconds. To be
        asked right before something goes out that cannot be taken back: a worker that was stopped for a
        while may go on when another one leads. What is committed, corrected or sent through here asks itself.
        """

    async def search(
        self, level: str, matches: Mapping[str, str], *, limit: int = 100, offset: int = 0
    ) -> list[Mapping[str, str]]:
        """What matches, newest studies first: attributes by keyword, those of the levels above too.

        ``level``: ``study``, ``series`` or ``instance``. ``matches``: by keyword, as QIDO-RS takes them
        (PS3.18 8.3.4). At most ``limit`` (10,000) after the first ``offset``. Raises ValueError for what is
        no query.
        """

    async def patients_named(self, study: str) -> list[Mapping[str, str]]:
        """What the objects of a study say of their patient, as received, by keyword: name, id, issuer, birth
        date and sex, each set once. None when all of them agree: a study is of one patient, and shown as of
        whom it named first."""

    async def store(self, data: bytes) -> Stored:
        """Keep a DICOM file (PS3.10), as if it had been received; ``stored`` and ``duplicate`` are here.

        Raises ValueError for what is no DICOM file, EngineError when it could not be kept.
        """

    async def correct(self, kind: str, *, actor: str, reason: str, **fields: Any) -> int:
        """Make a correction, which is shown and delivered while the original stays; its number.

        As ``hounsfield fix``: ``set-study`` with ``study`` and ``values`` by keyword, ``move-study`` with
        ``study`` and ``to_patient`` (id and issuer), and so on. Raises ValueError for what cannot be so.
        """

    async def revert(self, number: int, *, actor: str, reason: str) -> None:
        """Take a correction back. Raises ValueError."""

    async def corrections(
        self, *, study: str = "", patient: tuple[str, str] = ("", "")
    ) -> list[Mapping[str, Any]]:
        """The corrections in force that were made for a study, or for a patient (id and issuer), by number:
        each with its ``id``, ``kind``, ``actor``, ``reason``, ``to_patient``, and ``values`` by keyword."""

    async def prefetch(
        self,
        name: str,
        *,
        patient_id: str,
        at_ns: int,
        issuer: str = "",
        modality: str = "",
        body_part: str = "",
    ) -> None:
        """Have the patient's priors brought back in time for an appointment; again under a name: changed."""

    async def forget_prefetch(self, name: str) -> None:
        """An appointment is cancelled, or over."""

    async def events(self, after: str, limit: int) -> Events:
        """What happened after a cursor, "" for the beginning: the archive's changes (as its change feed
        tells them) and what plugins said. Raises GoneError when the cursor is of a journal that was made
        anew since: begin again; what was acted on is then told again."""

    async def latest(self) -> str:
        """The cursor after the last event so far: for who is told what happens from now on."""

    async def wait(self, after: str, seconds: float) -> bool:
        """Whether, within so many seconds, anything happened after a cursor."""

    async def send(self, ae_title: str, requests: Sequence[Outgoing]) -> list[Answer]:
        """Ask a known AE, on one association, in order; its answers, as many as it gave.

        Raises UnreachableError when that is none.
        """


class SucceededError(EngineError):
    """A leading part asked for something when another worker led it already: it was not done."""

    retry = True


class UnreachableError(Exception):
    """An AE that is not known, does not answer, or does not take what is asked. Later may be better."""

    retry = True


class CommandLine(Protocol):
    """What a plugin's command may use: the same options, tables and errors as the archive's own."""

    def options(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Add ``--data``, ``--config``, ``--set`` and ``--json``; the function gets one argument for them
        all, ``line``, to be handed to :meth:`call` and :meth:`show`."""

    def call(self, line: Any, operation: str, /, **args: Any) -> Any:
        """Ask the archive, by its server or in place, for one of the plugin's operations."""

    def show(
        self, line: Any, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], value: Any = None
    ) -> None:
        """Write a table of ``rows`` (``columns``: heading by key), or with ``--json`` them, or ``value``."""

    def say(self, text: str) -> None:
        """A line for people, on standard error."""

    def fail(self, text: str, *, usage: bool = False) -> Exception:
        """What to raise when it cannot be done."""
