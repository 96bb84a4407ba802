"""A desk with an interface: messages come in as bytes, acknowledgements go out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import hl7
import trio

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.hl7.mapping import Mapping
from hounsfield.ris_plugin.hl7.mllp import Framer, TooLong
from hounsfield.ris_plugin.hl7.receiving import Receiver
from hounsfield.ris_plugin.settings import Hl7Listener
from ris.conftest import Desk

MSH = "MSH|^~\\&|{sender}|HOSP|HOUNSFIELD|RAD|{at}||{kind}|{control}|P|2.5.1|||{modes}"


class DeskRecords:
    """The records of a desk, as a plugin sees them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.fails: Exception | None = None

    def reading(self) -> AbstractContextManager[View]:
        return self._desk.view()

    async def commit(self, plan: Callable[[Change], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        if self.fails is not None:
            raise self.fails
        return self._desk.commit(plan)


@dataclass
class DeskArchive:
    """As much of an archive as messages need."""

    records: DeskRecords
    ae_title: str = "HOUNSFIELD"


@dataclass
class Interface:
    """Sends messages to a desk, each with the next control id unless it says its own."""

    desk: Desk
    listener: Hl7Listener = field(default_factory=lambda: Hl7Listener(issuer="HOSP"))
    mapping: Mapping = field(default_factory=Mapping)
    sent: int = 0

    def __post_init__(self) -> None:
        self.records = DeskRecords(self.desk)
        archive: Any = DeskArchive(self.records)
        self.ris = Ris(archive, self.desk.settings, lambda: self.desk.now_ns)
        self.receiver = Receiver(self.ris, self.listener, self.mapping)

    def message(
        self,
        kind: str,
        *segments: str,
        sender: str = "HIS",
        at: str = "20261122120000",
        control: str = "",
        modes: str = "|",
    ) -> bytes:
        self.sent += 1
        head = MSH.format(sender=sender, at=at, kind=kind, control=control or f"C{self.sent}", modes=modes)
        return "".join(line + "\r" for line in (head, *segments)).encode()

    def raw(self, data: bytes | TooLong) -> list[bytes]:
        """The acknowledgements that a message is answered with."""

        async def ask() -> bytes:
            return await self.receiver.answer(data)

        answered = trio.run(ask)
        return [one for one in Framer(1 << 20).feed(answered) if isinstance(one, bytes)]

    def send(self, kind: str, *segments: str, **more: Any) -> str:
        """MSA-1 of the only acknowledgement."""
        (answer,) = self.raw(self.message(kind, *segments, **more))
        parsed = hl7.parse(answer.decode())
        return str(parsed.segment("MSA")[1])


def pid(number: str = "P1", name: str = "DOE^JANE", **fields: str) -> str:
    birth, sex = fields.get("birth", "19700101"), fields.get("sex", "F")
    return f"PID|1||{number}^^^HOSP^MR||{name}||{birth}|{sex}"


def orc(control: str, number: str = "O1", **fields: str) -> str:
    return f"ORC|{control}|{number}^HIS||{fields.get('group', '')}||||||||||||||{fields.get('why', '')}"


def obr(number: str = "O1", code: str = "CTHEAD", reason: str = "", **fields: str) -> str:
    return f"OBR|1|{number}^HIS||{code}^{code}^99H|||||||||{fields.get('info', '')}||||||||||||||||||{reason}"
