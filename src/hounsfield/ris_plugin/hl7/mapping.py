"""What a sender says otherwise, put right before it is interpreted: rules of a TOML file, one per listener.

    [[rule]]
    when = { "MSH-3" = "OLDHIS" }      # all of them; a list: one of them
    map = "OBR-4.1"                    # or: set = …, copy = …
    values = { "K1" = "CTHEAD" }
    default = ""                       # what is in no list; left as it is when there is none

    [[rule]]
    copy = "ZBR-3.1"
    to = "OBR-18"

    [[rule]]
    set = "PID-3.4"
    value = "HOSP"

A path is SEGMENT-FIELD.COMPONENT.SUBCOMPONENT, ``PID-3[2].1`` its second repetition. A rule holds for each
segment of that name; what is copied from another kind of segment comes from the last one before it, else the
first of the message. ``hounsfield ris hl7 try`` shows what rules did.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hounsfield.archive.errors import ConfigError
from hounsfield.ris_plugin.hl7.messages import Message, Segment

__all__ = ["Mapping", "Place", "load"]

_PATH: Final = re.compile(r"([A-Z][A-Z0-9]{2})-(\d{1,3})(?:\[(\d{1,3})\])?(?:\.(\d{1,2})(?:\.(\d{1,2}))?)?")
RULES_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Place:
    """A path. ``component`` 0: the whole field."""

    segment: str
    field: int
    rep: int = 0
    component: int = 0
    sub: int = 1

    @classmethod
    def parse(cls, text: Any) -> Place:
        """Raises ValueError."""
        found = _PATH.fullmatch(text) if isinstance(text, str) else None
        if found is None or int(found[2]) == 0:
            raise ValueError(f"{text!r} is no path like PID-3.1")
        return cls(found[1], int(found[2]), int(found[3] or 1) - 1, int(found[4] or 0), int(found[5] or 1))

    def get(self, segment: Segment) -> str:
        """What stands there, as it stands there."""
        if self.component:
            return segment.raw(self.field, self.component, rep=self.rep, sub=self.sub)
        separators = segment.separators
        text: str = separators.repetition.join(
            one
            if isinstance(one, str)
            else separators.component.join(
                part if isinstance(part, str) else separators.subcomponent.join(part) for part in one
            )
            for one in segment.field(self.field)
        )
        return text


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: ``target`` becomes ``value``, what ``source`` holds, or what ``values`` has for it."""

    number: int
    target: Place
    when: tuple[tuple[Place, frozenset[str]], ...] = ()
    value: str | None = None
    source: Place | None = None
    values: tuple[tuple[str, str], ...] = ()
    default: str | None = None

    def changes(self, message: Message) -> Iterator[tuple[Segment, str]]:
        """The segments that it changes, and what then stands in its place."""
        for place, wanted in self.when:
            found = [place.get(one) for one in message.segments if one.name == place.segment]
            if not any(one in wanted for one in found or [""]):
                return
        for at, one in enumerate(message.segments):
            if one.name != self.target.segment:
                continue
            held = self.target.get(one)
            if self.value is not None:
                new = self.value
            elif self.source is not None:
                new = self.source.get(_nearest(message.segments, at, self.source.segment) or one)
                if not new:
                    continue
            else:
                new = dict(self.values).get(held, held if self.default is None else self.default)
            if new != held:
                yield one, new


def _nearest(segments: Sequence[Segment], at: int, name: str) -> Segment | None:
    for one in reversed(segments[: at + 1]):
        if one.name == name:
            return one
    return next((one for one in segments if one.name == name), None)


@dataclass(frozen=True, slots=True)
class Mapping:
    """The rules of a listener, applied in order."""

    rules: tuple[Rule, ...] = ()

    @property
    def heads(self) -> bool:
        """Whether a rule concerns the header."""
        return any(rule.target.segment == "MSH" for rule in self.rules)

    def apply(self, message: Message) -> list[str]:
        """Change a message; what was changed, by rule and place, without values."""
        done = []
        for rule in self.rules:
            for segment, new in list(rule.changes(message)):
                segment.set(
                    rule.target.field, new, rule.target.component, rep=rule.target.rep, sub=rule.target.sub
                )
                done.append(f"rule {rule.number}: {segment.name}-{rule.target.field}")
        return done

    def applied(self, message: Message) -> tuple[Message, list[str]]:
        """As :meth:`apply`, and the message with the header that it has then."""
        done = self.apply(message)
        if self.heads:
            head = message.segments[0]
            fields = tuple(Place("MSH", number).get(head) for number in range(1, len(head.fields)))
            message = replace(message, header=replace(message.header, fields=fields))
        return message, done


def load(path: str) -> Mapping:
    """The rules of a file; none for "". Raises ConfigError, which says which rule is wrong and how."""
    if not path:
        return Mapping()
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the mapping {path} cannot be read: {error}") from error
    rules = document.get("rule", [])
    if set(document) - {"rule"} or not isinstance(rules, list) or len(rules) > RULES_MAX:
        raise ConfigError(f"the mapping {path} has [[rule]] tables, and nothing else")
    made = []
    for number, words in enumerate(rules, 1):
        try:
            made.append(_rule(number, words))
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"the mapping {path}, rule {number}: {error}") from error
    return Mapping(tuple(made))


def _rule(number: int, words: dict[str, Any]) -> Rule:
    kinds = [kind for kind in ("set", "copy", "map") if kind in words]
    if len(kinds) != 1:
        raise ValueError("it has one of set, copy and map")
    (kind,) = kinds
    known = {"set": {"value"}, "copy": {"to"}, "map": {"values", "default"}}[kind] | {kind, "when"}
    if unknown := sorted(set(words) - known):
        raise ValueError(f"{unknown[0]!r} is no word of a rule that has {kind!r}")
    when = tuple(
        (Place.parse(path), frozenset([wanted] if isinstance(wanted, str) else wanted))
        for path, wanted in words.get("when", {}).items()
    )
    if kind == "copy":
        return Rule(number, Place.parse(words.get("to")), when, source=Place.parse(words["copy"]))
    target = Place.parse(words[kind])
    if target.segment == "MSH" and target.field <= 2:
        raise ValueError("MSH-1 and MSH-2 are what a message is read by, and stay")
    if kind == "set":
        if not isinstance(words.get("value"), str):
            raise ValueError("set needs a value, in quotes")
        return Rule(number, target, when, value=words["value"])
    values = {str(key): str(value) for key, value in words.get("values", {}).items()}
    return Rule(number, target, when, values=tuple(values.items()), default=words.get("default"))
