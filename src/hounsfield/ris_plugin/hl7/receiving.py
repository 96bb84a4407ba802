"""Messages that come in: read, interpreted, done in one transaction, and only then acknowledged.

The transaction holds what the message does and that it was taken, so that a message that comes again is
answered in the same bytes and done once. What cannot be done is kept as a letter for people, and its sender
is told so. What speaks of something that has not come yet waits as a letter that is applied once it comes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import structlog
from msgspec import structs

from hounsfield.archive.errors import where
from hounsfield.archive.plugins import Change, EngineError, RecordError
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import NotNowError, RisError, UnknownError
from hounsfield.ris_plugin.hl7 import acks, adt, appointing, ordering
from hounsfield.ris_plugin.hl7.acks import Answering, Fault, MissingError, RefusedError
from hounsfield.ris_plugin.hl7.mapping import Mapping
from hounsfield.ris_plugin.hl7.messages import Header, Message, NotHl7Error, read, read_header, several
from hounsfield.ris_plugin.hl7.mllp import TooLong
from hounsfield.ris_plugin.hl7.saying import Saying, event_moment
from hounsfield.ris_plugin.records.messages import LETTER, RECEIVED, Letter, Received
from hounsfield.ris_plugin.settings import Hl7Listener

__all__ = ["Receiver", "ReusedIdError"]

log = structlog.get_logger(__name__)

ORDERS: Final = frozenset({"ORM^O01", "OMG^O19", "OMI^O23"})
SILENT: Final = frozenset({"ACK", "ORR", "ORG", "ORI", "MCF"})
"""Answers. Nothing is answered to them (2.9.2)."""
BATCH_BEGINS: Final = frozenset({b"FHS", b"BHS"})
CONTROL_ID_MAX: Final = 199
"""Characters of MSH-10 from v2.7 on; before it were 20."""
SETTLE_ROUNDS_MAX: Final = 64
"""How long a chain of what waits for what waits is followed at once; the rest by and by."""


class ReusedIdError(RefusedError):
    """Another message came under the same MSH-10: identifiers are unique (2.15.9.10)."""

    def __init__(self) -> None:
        super().__init__("another message of this sender had the same MSH-10", "205", "MSH-10")


class _Dry(Exception):  # noqa: N818
    """Ends a dry run: nothing of it is kept."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__()
        self.result = result


Do = Callable[[Change, Saying], None]


class Receiver:
    """What one listener does with messages."""

    def __init__(self, ris: Ris, listener: Hl7Listener, mapping: Mapping) -> None:
        self._ris = ris
        self._listener = listener
        self._mapping = mapping

    @property
    def name(self) -> str:
        """The listener's."""
        return self._listener.name

    async def answer(self, data: bytes | TooLong) -> bytes:
        """Take a message; its acknowledgements, framed, to be sent now. Raises nothing for what it says.

        Several in one block are taken one by one, and answered so; a batch (2.10.3) is answered by one.
        """
        if isinstance(data, bytes) and (data[:3] in BATCH_BEGINS or data.find(b"MSH", 8) >= 0):
            parts = several(data)
            if len(parts) > 1 or (parts and parts[0] != data):
                answers = [await self._answer(one) for one in parts]
                return acks.together(self._us(), data, answers)
        return await self._answer(data)

    async def _answer(self, data: bytes | TooLong) -> bytes:
        try:
            body = data.beginning if isinstance(data, TooLong) else data
            header = read_header(body, self._listener.character_set)
        except NotHl7Error as error:
            return self._answers(None, acks.fault_of(error))
        if isinstance(data, TooLong):
            most = self._ris.settings.hl7_message_bytes_max
            fault = Fault("207", f"messages have at most {most} bytes here", refused=True)
            return self._answers(header, fault, kept=False)
        if header.kind.partition("^")[0] in SILENT:
            return b""
        answered, settle = await self._take(header, data)
        if settle:
            await self.settle(settle)
        return answered

    async def _take(self, header: Header, data: bytes) -> tuple[bytes, list[str]]:
        try:
            if not self._mapping.heads:
                self._check(header)
            message = self._read(data)
            if self._mapping.heads:
                self._check(message.header)
            do = interpret(self._saying(message))
            answered, made = await self._ris.commit(partial(self._done, header, message, do))
            return answered, made
        except EngineError as error:
            fault = acks.fault_of(error)
            return self._answers(header, fault, kept=False), []
        except RefusedError as error:
            fault = acks.fault_of(error)
            if not isinstance(error, ReusedIdError):
                return self._answers(header, fault, kept=False), []
        except (RisError, RecordError) as error:
            fault = acks.fault_of(error)
        except Exception as error:  # noqa: BLE001 - a defect: the message is kept, its sender goes on
            log.error("a message met a defect", **where(error))
            fault = acks.fault_of(error)
        try:
            await self._ris.commit(partial(self._keep, header, data, fault))
        except EngineError as error:
            fault = acks.fault_of(error)
            return self._answers(header, fault, kept=False), []
        return self._answers(header, fault, kept=True), []

    # ------------------------------------------------------------ reading

    def _check(self, header: Header) -> None:
        """That the header is one that we take (2.9.2.2). RefusedError."""
        kind, _, trigger = header.kind.partition("^")
        if not header.control_id or len(header.control_id) > CONTROL_ID_MAX:
            raise RefusedError(
                "MSH-10 is empty, or too long: the message cannot be told from others", "101", "MSH-10"
            )
        if kind not in {"ADT", "ORM", "OMG", "OMI", "SIU"}:
            raise RefusedError("messages of this type are not taken here", "200", "MSH-9")
        if f"{kind}^{trigger}" not in ORDERS and not _action(header.kind):
            raise RefusedError("events of this kind are not taken here", "201", "MSH-9")
        processing = header.field(11).split(header.separators.component)[0].strip()
        if processing and processing not in self._listener.processing:
            raise RefusedError("messages with this processing id are not taken here", "202", "MSH-11")
        if header.version and not header.version.startswith("2."):
            raise RefusedError("messages of this version are not taken here", "203", "MSH-12")

    def _read(self, data: bytes) -> Message:
        return self._mapping.applied(read(data, self._listener.character_set))[0]

    def _saying(self, message: Message) -> Saying:
        zone = self._ris.zone
        return Saying(
            message, self._ris.settings, self._listener, zone, event_moment(message, zone, self._ris.now_ns())
        )

    def _answers(self, header: Header | None, fault: Fault | None, *, kept: bool = True) -> bytes:
        return acks.answers(self._us(), header, fault, kept=kept)

    def _us(self) -> Answering:
        settings = self._ris.settings
        return Answering(settings.application, settings.facility, self._ris.zone, self._ris.now_ns())

    # ------------------------------------------------------------ the transaction

    def _done(self, asked: Header, message: Message, do: Do, change: Change) -> tuple[bytes, list[str]]:
        """``asked``: the header as it came, which is answered."""
        header, digest = message.header, message.digest
        saying = self._saying(message)
        sender = saying.sender
        for _, before in change.find(RECEIVED, "control-id", f"{sender}\0{header.control_id}"):
            if before.digest == digest:
                return before.answer, []
            if not self._listener.reused_ids:
                raise ReusedIdError
        do(change, saying)
        answered = self._answers(asked, None)
        received = Received(
            sender=sender,
            control_id=header.control_id,
            digest=digest,
            at_ns=change.now_ns,
            kind=header.kind,
            answer=answered,
            listener=self._listener.name,
        )
        change.put(RECEIVED, change.new_id(), received)
        for letter_id, letter in list(change.find(LETTER, "message", f"{sender}\0{header.control_id}")):
            if letter.digest == digest and letter.state == "open":
                change.put(LETTER, letter_id, structs.replace(letter, state="replayed", by=sender))
        return answered, [key for key in saying.made if change.ids(LETTER, "awaits", key, limit=1)]

    def _keep(self, header: Header, data: bytes, fault: Fault, change: Change) -> None:
        """A dead letter; of a message that comes again, the same one."""
        try:
            message = self._read(data)
            header, digest = message.header, message.digest
        except RisError:
            digest = b""
        sender = header.sender if header.sender != "^" else self._listener.name
        for letter_id, letter in change.find(LETTER, "message", f"{sender}\0{header.control_id}"):
            if letter.body == data and letter.state == "open":
                again = structs.replace(letter, attempts=letter.attempts + 1, error=fault.text)
                change.put(LETTER, letter_id, again)
                return
        letter = Letter(
            listener=self._listener.name,
            sender=sender,
            kind=header.kind,
            control_id=header.control_id,
            body=data,
            at_ns=change.now_ns,
            error=fault.text,
            digest=digest,
        )
        letter_id = change.new_id()
        change.put(LETTER, letter_id, letter)
        change.say("hl7-letter", {"letter": letter_id, "listener": self._listener.name, "code": fault.code})

    # ------------------------------------------------------------ what waits

    async def settle(self, keys: list[str]) -> None:
        """Apply what waited for what there is now, each in its own transaction, the oldest event first."""
        keys = list(keys)
        for _ in range(SETTLE_ROUNDS_MAX):
            if not keys:
                return
            key = keys.pop(0)
            with self._ris.reading() as view:
                waiting = sorted(
                    view.find(LETTER, "awaits", key),
                    key=lambda one: (one[1].event_ns, one[1].sender, one[1].at_ns, one[0]),
                )
            for letter_id, _ in waiting:
                try:
                    keys += await self._ris.commit(partial(self._settled, letter_id))
                except EngineError:
                    return  # by and by: the leader looks again
                except (RisError, RecordError) as error:
                    await self._give_up(letter_id, acks.fault_of(error))
                except Exception as error:  # noqa: BLE001 - a defect; a person sees the letter
                    log.error("a message that waited met a defect", **where(error))
                    await self._give_up(letter_id, acks.fault_of(error))

    def _settled(self, letter_id: str, change: Change) -> list[str]:
        letter = change.get(LETTER, letter_id)
        if letter is None or letter.state != "waiting":
            return []
        saying = self._saying(self._read(letter.body))
        change.delete(LETTER, letter_id)
        interpret(saying, part=letter.part)(change, saying)
        return [key for key in saying.made if change.ids(LETTER, "awaits", key, limit=1)]

    async def _give_up(self, letter_id: str, fault: Fault) -> None:
        def plan(change: Change) -> None:
            letter = change.get(LETTER, letter_id)
            if letter is not None and letter.state == "waiting":
                change.put(LETTER, letter_id, structs.replace(letter, state="open", error=fault.text))
                change.say(
                    "hl7-letter", {"letter": letter_id, "listener": letter.listener, "code": fault.code}
                )

        await self._ris.commit(plan)

    # ------------------------------------------------------------ people's

    async def replay(self, letter_id: str, actor: str) -> dict[str, Any]:
        """Try a letter again, as it was; what was done. Raises what forbids it, and the letter says so."""

        try:
            done, keys = await self._ris.commit(partial(self.replayed, letter_id, actor))
        except (RisError, RecordError) as error:
            why = str(error)

            def note(change: Change) -> None:
                letter = change.get(LETTER, letter_id)
                if letter is not None and letter.state == "open":
                    again = structs.replace(letter, attempts=letter.attempts + 1, error=why)
                    change.put(LETTER, letter_id, again)

            await self._ris.commit(note)
            raise
        await self.settle(keys)
        return {"letter": letter_id, "done": done}

    def replayed(self, letter_id: str, actor: str, change: Change) -> tuple[list[str], list[str]]:
        """Apply a letter: what was done, and by which names others may wait for it."""
        letter = change.get(LETTER, letter_id)
        if letter is None:
            raise UnknownError("there is no such letter")
        if letter.state not in {"open", "waiting"}:
            raise NotNowError(f"that letter was {letter.state} already")
        saying = self._saying(self._read(letter.body))
        change.put(LETTER, letter_id, structs.replace(letter, state="replayed", by=actor))
        part = letter.part if letter.awaits else None
        interpret(saying, part=part)(change, saying)
        return saying.done, [key for key in saying.made if change.ids(LETTER, "awaits", key, limit=1)]

    async def dry_run(self, data: bytes) -> dict[str, Any]:
        """What a message would do, and be answered; nothing is changed."""
        result: dict[str, Any] = {
            "kind": "",
            "control_id": "",
            "mapped": [],
            "done": [],
            "events": [],
            "error": "",
        }
        header: Header | None = None

        def plan(change: Change) -> None:
            saying = self._saying(message)
            interpret(saying)(change, saying)
            raise _Dry({"done": list(saying.done), "events": [kind for kind, _ in change.said]})

        fault: Fault | None = None
        try:
            header = read_header(data, self._listener.character_set)
            result |= {"kind": header.kind, "control_id": header.control_id}
            message, result["mapped"] = self._mapping.applied(read(data, self._listener.character_set))
            result["character_set"] = message.codec
            self._check(message.header)
            await self._ris.commit(plan)
        except _Dry as dry:
            result |= dry.result
        except (RisError, RecordError) as error:
            fault = acks.fault_of(error)
            result |= {"error": fault.text, "code": fault.code, "place": fault.place}
        result["answer"] = "AA" if fault is None else "AR" if fault.refused else "AE"
        return result


# ---------------------------------------------------------------- what a message means


def _action(kind: str) -> str:
    name, _, trigger = kind.partition("^")
    if name == "ADT":
        return "patient" if trigger in adt.UPDATES else "merge" if trigger in adt.MERGES else ""
    return "appointment" if name == "SIU" and trigger in appointing.TRIGGERS else ""


def interpret(saying: Saying, *, part: int | None = None) -> Do:
    """What a message asks for, read but not done. ``part``: one of its orders alone. RisError."""
    kind = saying.message.header.kind
    if kind in ORDERS:
        said, groups = adt.patient_said(saying), ordering.groups(saying)
        return partial(_do_orders, said, groups, part)
    action = _action(kind)
    if action == "merge":
        return adt.apply_merge
    if action == "appointment":
        one = appointing.appointed(saying)
        who = adt.patient_said(saying)
        return partial(_do_appointment, who, one)
    if action == "patient":
        person = adt.patient_said(saying, visits=True)
        return lambda change, now: _do_patient(person, change, now)
    raise MissingError("the message says nothing that is done here", "MSH-9")


def _do_patient(said: adt.Said, change: Change, saying: Saying) -> None:
    adt.apply_patient(change, saying, said)


def _do_orders(
    said: adt.Said, groups: list[ordering.Group], part: int | None, change: Change, saying: Saying
) -> None:
    patient = adt.apply_patient(change, saying, said)
    # What replaces is placed before what it replaces is taken away.
    replacing = next((one for one in groups if one.control == "replacement"), None)
    order_of: dict[int, str] = {}
    for at, one in enumerate(groups):
        if one.control == "replacement":
            order_of[at] = ordering.apply_order(change, saying, one, patient)
    new_id = "" if replacing is None else order_of[groups.index(replacing)]
    for at, one in enumerate(groups):
        if at in order_of or (part is not None and at != part):
            continue
        try:
            ordering.apply_order(change, saying, one, patient, new_id)
        except ordering.Waits as waits:
            _wait(change, saying, waits.key, at)


def _do_appointment(said: adt.Said, one: appointing.Appointed, change: Change, saying: Saying) -> None:
    patient = adt.apply_patient(change, saying, said)
    try:
        appointing.apply_appointment(change, saying, one, patient)
    except ordering.Waits as waits:
        _wait(change, saying, waits.key, 0)


def _wait(change: Change, saying: Saying, key: str, part: int) -> None:
    """Keep a part of a message until what it speaks of comes."""
    header = saying.message.header
    letter = Letter(
        listener=saying.listener.name,
        sender=saying.sender,
        kind=header.kind,
        control_id=header.control_id,
        body=saying.message.body,
        at_ns=change.now_ns,
        error="it speaks of what has not come yet, and is applied when that comes",
        state="waiting",
        digest=saying.message.digest,
        awaits=key,
        part=part,
        event_ns=saying.event_ns,
    )
    change.put(LETTER, change.new_id(), letter)
    saying.done.append("it waits for what it speaks of")
