"""A message of HL7 v2, parsed by ``hl7``: its header, segments, and what stands in them.

Fields are numbered as the standard does (``PID-3`` is ``field(3)`` of a PID), components and subcomponents
from 1, repetitions from 0. What is not there is "". ``""`` (two quotes) means that a value is to be removed
(2.5.3), which is another thing than to leave it out: :meth:`Segment.says` tells them apart.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import tzinfo
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import hl7
from hl7.parser import _split as split_by_plan
from hl7.parser import create_parse_plan

from hounsfield.ris_plugin.errors import InvalidError
from hounsfield.ris_plugin.hl7.encoding import Separators, decoded, moment, unescaped
from hounsfield.ris_plugin.records.base import Code

__all__ = ["NULL", "Header", "Message", "Segment", "person_name", "read", "read_header", "several"]

NULL: Final = '""'
SEGMENTS_MAX: Final = 10_000
"""Of one message: the largest that people send are reports of some hundred lines."""
_BEGINS: Final = re.compile(rb"(?:\A|(?<=[\r\n]))(?:MSH|FHS|BHS|BTS|FTS)(?=[^A-Za-z0-9\r\n]|[\r\n]|\Z)")
PLANS_REMEMBERED: Final = 64
"""Sets of separators: nearly everybody uses the same."""


class NotHl7Error(InvalidError):
    """What came does not begin with a header."""


@dataclass(frozen=True, slots=True)
class Header:
    """MSH, as far as an answer needs it; read by itself, so that what cannot be parsed is answered too."""

    separators: Separators
    fields: tuple[str, ...]

    def field(self, number: int) -> str:
        """A field as it stands there, "" when there is none."""
        return self.fields[number - 1] if number <= len(self.fields) else ""

    @property
    def sender(self) -> str:
        """MSH-3 and MSH-4, the application and the facility."""
        return f"{self._first(3)}^{self._first(4)}"

    def _first(self, number: int) -> str:
        return self.field(number).split(self.separators.component)[0]

    @property
    def control_id(self) -> str:
        """MSH-10."""
        return self.field(10).strip()

    @property
    def kind(self) -> str:
        """The message type and its trigger: ``ADT^A08``."""
        return "^".join(self.field(9).split(self.separators.component)[:2])

    @property
    def version(self) -> str:
        """MSH-12, its version alone."""
        return self._first(12)

    @property
    def enhanced(self) -> bool:
        """Whether MSH-15 or MSH-16 asks for enhanced acknowledgement (2.9.3)."""
        return bool(self.field(15).strip() or self.field(16).strip())


class Segment:
    """One segment. ``fields``: each as text, or as ``hl7`` parses it, which it is when it is first read.

    Of a message's hundred fields most are empty and many nobody reads.
    """

    __slots__ = ("fields", "name", "separators")

    def __init__(self, name: str, fields: list[Any], separators: Separators) -> None:
        self.name = name
        self.fields = fields
        self.separators = separators

    def field(self, number: int) -> list[Any]:
        """A field's repetitions, each a text or its components, and these a text or subcomponents."""
        if number >= len(self.fields):
            return []
        held = self.fields[number]
        if type(held) is str:
            held = self.fields[number] = _parsed(held, self.separators)
        found: list[Any] = held
        return found

    def raw(self, number: int, component: int = 1, *, rep: int = 0, sub: int = 1) -> str:
        """As :meth:`get`, with escapes and NULL as they stand there."""
        fields = self.fields
        if number >= len(fields):
            return ""
        field = fields[number]
        if type(field) is str:
            if not field:
                return ""
            field = self.field(number)
        if rep >= len(field):
            return ""
        part: Any = field[rep]
        if type(part) is str:
            return part if component == 1 and sub == 1 else ""
        if component > len(part):
            return ""
        part = part[component - 1]
        if type(part) is str:
            return part if sub == 1 else ""
        text: str = part[sub - 1] if sub <= len(part) else ""
        return text

    def get(self, number: int, component: int = 1, *, rep: int = 0, sub: int = 1) -> str:
        """What a field, component or subcomponent says, without spaces around it; "" for NULL."""
        text = self.raw(number, component, rep=rep, sub=sub)
        if not text or text == NULL:
            return ""
        if self.separators[3] in text:
            text = unescaped(text, self.separators)
        return text.strip()

    def says(self, number: int) -> bool:
        """Whether a field is valued, be it NULL."""
        return number < len(self.fields) and bool(self.fields[number]) and _is_valued(self.field(number))

    def repetitions(self, number: int) -> int:
        """How often a field is there."""
        return len(self.field(number))

    def components(self, number: int, rep: int = 0) -> int:
        """How many components one repetition has."""
        one = self.field(number)[rep]
        return 1 if isinstance(one, str) else len(one)

    def whole(self, number: int, *, rep: int = 0) -> str:
        """All components of a field with text, joined by spaces: an address, a location."""
        count = self.components(number, rep) if rep < self.repetitions(number) else 0
        return " ".join(filter(None, (self.get(number, one, rep=rep) for one in range(1, count + 1))))

    def set(self, number: int, value: str, component: int = 0, *, rep: int = 0, sub: int = 1) -> None:
        """Put ``value``, as it stands in a message, into a component; ``component`` 0: the whole field."""
        while len(self.fields) <= number:
            self.fields.append([""])
        if not component:
            separators = self.separators
            self.fields[number] = [
                [one.split(separators.subcomponent) for one in each.split(separators.component)]
                for each in value.split(separators.repetition)
            ]
            return
        field = _grown(list(self.field(number)), rep)
        field[rep] = _grown([field[rep]] if isinstance(field[rep], str) else list(field[rep]), component - 1)
        held = field[rep][component - 1]
        field[rep][component - 1] = _grown([held] if isinstance(held, str) else list(held), sub - 1)
        field[rep][component - 1][sub - 1] = value
        self.fields[number] = field

    # ------------------------------------------------------------ data types

    def moment(self, number: int, zone: tzinfo, component: int = 1) -> int:
        """TS, DTM or DT: nanoseconds since 1970, 0 for none."""
        return moment(self.get(number, component), zone, f"{self.name}-{number}")

    def code(self, number: int, *, rep: int = 0, alternate: bool = False) -> Code:
        """CE, CWE: the code, or the alternate one."""
        at = 4 if alternate else 1
        return Code(
            value=self.get(number, at, rep=rep),
            meaning=self.get(number, at + 1, rep=rep),
            scheme=self.get(number, at + 2, rep=rep),
        )

    def authority(self, number: int, component: int, *, rep: int = 0) -> str:
        """HD: the name space, else the universal id."""
        return self.get(number, component, rep=rep) or self.get(number, component, rep=rep, sub=2)


def _is_valued(part: Any) -> bool:
    return bool(part) if type(part) is str else any(map(_is_valued, part))


def _grown(items: list[Any], index: int) -> list[Any]:
    items.extend("" for _ in range(index + 1 - len(items)))
    return items


def _same(sequence: list[Any], **_: object) -> list[Any]:
    return sequence


class _Lists(hl7.Factory):  # type: ignore[misc]
    """Has ``hl7`` make plain lists, which take half the time of its containers."""

    create_field = staticmethod(_same)
    create_repetition = staticmethod(_same)
    create_component = staticmethod(_same)


class _Plan(NamedTuple):
    """How ``hl7`` parses the fields of messages with some separators, and what divides a field."""

    plan: Any
    dividing: frozenset[str]


@lru_cache(PLANS_REMEMBERED)
def _plan(separators: Separators) -> _Plan:
    """Made once: ``hl7`` by itself makes one for each component of each field. InvalidError."""
    try:
        message = create_parse_plan(f"MSH{separators}{separators.field}", _Lists)
        of_field = message.next().next()
        one = of_field
        while one is not None:
            following = one.next()
            one.next = partial(_same, following)
            one = following
    except (hl7.HL7Exception, ValueError, IndexError, AssertionError) as error:
        raise InvalidError("the message cannot be parsed: see its MSH-1 and MSH-2") from error
    return _Plan(of_field, frozenset((separators[1], separators[2], separators[4])))


def _parsed(text: str, separators: Separators) -> list[Any]:
    plan, dividing = _plan(separators)
    if dividing.isdisjoint(text):
        return [text]
    found: list[Any] = split_by_plan(text, plan)
    return found


@dataclass(frozen=True, slots=True)
class Message:
    """A message. ``body``: as it came."""

    header: Header
    segments: tuple[Segment, ...]
    body: bytes
    codec: str

    def first(self, name: str) -> Segment | None:
        """The first segment of a name."""
        return next((one for one in self.segments if one.name == name), None)

    def all(self, name: str) -> Iterator[Segment]:
        """The segments of a name."""
        return (one for one in self.segments if one.name == name)

    @property
    def digest(self) -> bytes:
        """Of what it says. A sender that sends again may write another MSH-7 (2.9.2: the same message)."""
        header = [field for at, field in enumerate(self.header.fields) if at + 1 not in (7, 13)]
        rest = self.body.replace(b"\n", b"\r").lstrip().partition(b"\r")[2]
        return hashlib.sha256("\0".join(header).encode() + rest.strip()).digest()


def read_header(body: bytes, assumed: str = "") -> Header:
    """The header alone. NotHl7Error when there is none."""
    return _header(decoded(body, assumed)[0])


def read(body: bytes, assumed: str = "") -> Message:
    """Parse a message. NotHl7Error, InvalidError. ``assumed``: the character set where MSH-18 names none."""
    text, codec = decoded(body, assumed)
    header = _header(text)
    text = _with_line_ends(text.replace("\0", "").lstrip(), header.separators)
    if text.count("\r") > SEGMENTS_MAX:
        raise InvalidError(f"a message has at most {SEGMENTS_MAX} segments")
    separators = header.separators
    _plan(separators)
    segments = []
    for at, line in enumerate(one for one in text.strip().split("\r") if one.strip()):
        fields: list[Any] = line.split(separators.field)
        name = fields[0].strip()
        if len(name) != 3 or not name.isalnum():
            raise InvalidError(f"line {at + 1} of the message begins with no segment's name", "ERR")
        if (
            name == "MSH"
        ):  # whose second field is the others' separator, and whose third ends with the next one
            fields[1:2] = [[separators.field], [fields[1] if len(fields) > 1 else ""]]
        segments.append(Segment(name, fields, separators))
    return Message(header, tuple(segments), body, codec)


def _with_line_ends(text: str, separators: Separators) -> str:
    """Segments that end with CR, as the standard says. Where the header does, or with CR LF, a line feed by
    itself is one of text, unless a segment begins behind it; so is a vertical tab."""
    text = text.replace("\r\n", "\r")
    if "\n" in text:
        if "\r" not in text[: text.index("\n")]:
            text = text.replace("\n", "\r")
        else:
            text = re.sub(rf"\n(?=\r|\Z|[A-Z][A-Z0-9]{{2}}{re.escape(separators.field)})", "\r", text)
    return text.replace("\x0b", "\n")


def several(content: bytes) -> list[bytes]:
    """The messages of a file or a batch (2.10.3), as they stand there one after another."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    marks = list(_BEGINS.finditer(content))
    begins = [mark.start() for mark in marks] + [len(content)]
    return [content[mark.start() : begins[at]] for at, mark in enumerate(marks, 1) if mark[0] == b"MSH"]


def _triggered(kind: str, text: str, separators: Separators) -> str:
    """MSH-9 with its trigger, which versions before 2.3 let it leave out: ORM had one, and ADT said it in
    EVN-1."""
    name, _, trigger = kind.partition(separators.component)
    if name not in {"ORM", "ADT"} or trigger.strip():
        return kind
    evn = re.search(rf"[\r\n]EVN{re.escape(separators.field)}([A-Z]\d\d)", text)
    trigger = "O01" if name == "ORM" else evn[1] if evn is not None else ""
    return f"{name}{separators.component}{trigger}" if trigger else kind


def _header(text: str) -> Header:
    text = text.lstrip()
    line = text.split("\r", 1)[0].split("\n", 1)[0]
    if not line.startswith("MSH") or len(line) < 8 or line[3].isalnum():
        raise NotHl7Error("a message begins with MSH and its separators")
    separators = Separators.of(line)
    fields = line.split(separators.field)
    if len(fields) > 8:
        fields[8] = _triggered(fields[8], text, separators)
    return Header(separators, (separators.field, *fields[1:]))


# ---------------------------------------------------------------- names


def _part(text: str) -> str:
    """Text as a component of a DICOM name, where ``^``, ``=`` and ``\\`` have a meaning (PS3.5 6.2.1)."""
    if text.isalpha() or not text:
        return text
    return " ".join(text.replace("^", " ").replace("=", " ").replace("\\", " ").split())


def person_name(segment: Segment, number: int, *, rep: int = 0, at: int = 1) -> str:
    """An XPN, or an XCN (``at`` 2), as a DICOM name: FAMILY^GIVEN^MIDDLE^PREFIX^SUFFIX."""
    if not segment.says(number):
        return ""
    parts = [_part(segment.get(number, at + offset, rep=rep)) for offset in range(6)]
    family, given, middle, suffix, prefix, degree = parts
    return "^".join((family, given, middle, prefix, " ".join(filter(None, (suffix, degree))))).rstrip("^")


def patient_names(segment: Segment, number: int) -> tuple[str, tuple[str, ...]]:
    """The repetitions of an XPN: the legal name with its ideographic and phonetic groups, and other names."""
    groups = {"A": "", "I": "", "P": ""}
    others: list[str] = []
    for rep in range(segment.repetitions(number)):
        name = person_name(segment, number, rep=rep)
        kind, group = segment.get(number, 7, rep=rep), segment.get(number, 8, rep=rep) or "A"
        if not name:
            continue
        if kind in {"", "L", "D", "C", "U"} and group in groups and not groups[group]:
            groups[group] = name
        elif name not in others:
            others.append(name)
    legal = "=".join((groups["A"], groups["I"], groups["P"])).rstrip("=")
    if not legal and others:
        legal = others.pop(0)
    return legal, tuple(others)
