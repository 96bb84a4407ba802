"""HL7 v2 messages: what came, what goes out, and what nobody could take."""

from __future__ import annotations

from collections.abc import Iterator

from hounsfield.archive.plugins import Key, Kind
from hounsfield.ris_plugin.records.base import Row, seconds


class Received(Row, frozen=True):
    """A message that was taken, so that it is taken once: by sender and MSH-10, with what was answered.

    ``digest``: of the message; another one under the same id is no duplicate.
    """

    sender: str  # MSH-3 and MSH-4, joined by ^
    control_id: str
    digest: bytes
    at_ns: int
    kind: str = ""
    answer: bytes = b""
    listener: str = ""


RECEIVED = Kind(
    "received",
    Received,
    lambda one: [
        Key("control-id", f"{one.sender}\0{one.control_id}", seconds(one.at_ns)),
        Key("at", "", seconds(one.at_ns)),
    ],
)

WAITING, SENT, DEAD = "waiting", "sent", "dead"


class Message(Row, frozen=True):
    """A message for a destination, in its order there. ``number`` counts per destination, from 1."""

    destination: str
    number: int
    control_id: str
    kind: str
    body: bytes
    state: str = WAITING
    made_ns: int = 0
    attempts: int = 0
    next_ns: int = 0
    error: str = ""
    sent_ns: int = 0
    about: str = ""  # the record it tells of


def _message_keys(one: Message) -> Iterator[Key]:
    yield Key("control-id", f"{one.destination}\0{one.control_id}", unique=True)
    yield Key(one.state, one.destination, one.number)
    if one.about:
        yield Key("about", one.about, seconds(one.made_ns))


MESSAGE = Kind("message", Message, _message_keys)


class Letter(Row, frozen=True):
    """A message that came and is not (wholly) applied, kept as it was: a dead letter, to be tried again.

    ``state``: "open", "replayed" or "dismissed"; or "waiting", when it speaks of what has not come yet
    (``awaits``), and is applied by itself once that comes. ``part``: the one of its orders that waits,
    from 0.
    """

    listener: str
    sender: str
    kind: str
    control_id: str
    body: bytes
    at_ns: int
    error: str
    state: str = "open"
    attempts: int = 1
    by: str = ""
    digest: bytes = b""
    awaits: str = ""
    part: int = 0
    event_ns: int = 0


def _letter_keys(one: Letter) -> Iterator[Key]:
    yield Key("state", one.state, seconds(one.at_ns))
    yield Key("message", f"{one.sender}\0{one.control_id}")
    if one.state == "waiting":
        yield Key("awaits", one.awaits, seconds(one.event_ns))


LETTER = Kind("letter", Letter, _letter_keys)


class Cursor(Row, frozen=True):
    """How far a consumer of the journal is. ``begun_ns``: when it was first started. ``is_retold``: it reads
    the journal from the beginning, and has not been at its end since.

    Also, without a place, since when a destination of messages is there.
    """

    name: str
    cursor: str = ""
    begun_ns: int = 0
    is_retold: bool = False


CURSOR = Kind("cursor", Cursor, lambda one: [Key("name", one.name, unique=True)])


class Aside(Row, frozen=True):
    """An event that a consumer could not act on, set aside so that those after it go on.

    ``event``: it, as msgpack (kind, moment, body); ``error``: type and place, or the words of one of ours.
    """

    consumer: str
    event: bytes
    kind: str
    at_ns: int
    error: str
    state: str = "open"  # "open", "done" when it was acted on after all, or "dismissed"
    attempts: int = 1
    by: str = ""


ASIDE = Kind(
    "aside",
    Aside,
    lambda one: [
        Key("state", one.state, seconds(one.at_ns)),
        Key("consumer", f"{one.consumer}\0{one.state}", seconds(one.at_ns)),
    ],
)
