"""Rules: which objects something is done to, by what they say and how they came.

A rule is a table as config.toml has it. All of its entries must hold::

    { Modality = ["CT", "MR"], StudyDescription = "*THORAX*", calling_ae = "CT*", not = { Laterality = "L" } }

* An attribute's keyword (PS3.6) with a key that its value must match: PS3.4 C.2.2.2 as
  :mod:`~hounsfield.archive.dicom.matching` has it, so wildcards, ranges of dates and times, names without
  case or accents, several values. ``""`` asks for what is absent or empty, ``"?*"`` for any value at all.
  Of the attributes, those that the index keeps.
* ``calling_ae``, ``called_ae``: titles, wildcards allowed. ``source``: an address or network. ``protocol``:
  ``dimse``, ``stow``, ``import`` or ``plugin``. ``sop_class``, ``transfer_syntax``: UIDs, wildcards allowed.
* ``not``: a table that must not hold. ``any``: tables of which one must hold.

A list stands for any of its members. Sequence items are not looked into.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from hounsfield.archive.dicom.attributes import INSTANCE_LEVEL, SERIES_LEVEL, STUDY_LEVEL
from hounsfield.archive.dicom.dictionary import TAG_OF, VR_OF
from hounsfield.archive.dicom.matching import (
    date_range,
    datetime_range,
    is_universal,
    matcher,
    time_range,
    wildcard,
)
from hounsfield.archive.errors import ConfigError

__all__ = ["ATTRIBUTES", "Rule", "RuleSubject", "parse_rule"]

#: The attributes that a rule may name: those that the index keeps of every object.
ATTRIBUTES: Final[Mapping[int, str]] = {**STUDY_LEVEL, **SERIES_LEVEL, **INSTANCE_LEVEL}
DEPTH_MAX: Final = 8
"""Tables in tables: deeper ones are a mistake, and nobody reads them."""
ANY_VALUE: Final = "?*"
"""Also of numbers and dates, in whose keys nothing is wild."""
PROTOCOLS: Final = ("dimse", "stow", "import", "plugin")

_TITLE_KEY: Final = re.compile(r"[ -\[\]-~]{1,16}")
_UID_KEY: Final = re.compile(r"[0-9.*?]{1,64}", re.ASCII)
_RANGES: Final = {"DA": date_range, "TM": time_range, "DT": datetime_range}
_EXAMPLES: Final = {
    "DA": "20250131, 20250101- or 20250101-20251231",
    "TM": "0800, 2000- or 2000-2359",
    "DT": "202501311200 or 20250101-20251231",
}
_ORIGIN: Final = ("calling_ae", "called_ae", "source", "protocol")


class RuleSubject(Protocol):
    """An object that rules are put to. What it says is text, as the index keeps it."""

    def text(self, tag: int) -> str:
        """The text of an attribute, "" when it is absent."""

    @property
    def sop_class_uid(self) -> str: ...
    @property
    def transfer_syntax_uid(self) -> str: ...
    @property
    def protocol(self) -> str: ...
    @property
    def calling_ae(self) -> str: ...
    @property
    def called_ae(self) -> str: ...
    @property
    def address(self) -> str: ...


Test = Callable[[RuleSubject], bool]


class Rule:
    """A test of objects. Cheap tests come first, those of how an object came last."""

    def __init__(self, tests: Sequence[Test], tags: frozenset[int], *, asks_origin: bool) -> None:
        self._tests = tuple(tests)
        self.tags = tags
        """The attributes that it looks at."""
        self.asks_origin = asks_origin
        """Whether it looks at how an object came, which may have to be read."""

    def matches(self, subject: RuleSubject) -> bool:
        """Whether all of the rule holds. Never raises on what an object says."""
        return all(test(subject) for test in self._tests)


def parse_rule(table: Mapping[str, Any], where: str) -> Rule:
    """The rule that a table of config.toml means; an empty one matches everything.

    ``where`` is how errors call it. ConfigError for an unknown or unkept attribute, a key that no value can
    match, or another kind of value.
    """
    return _parsed(table, where, 0)


def _parsed(table: Any, where: str, depth: int) -> Rule:
    if not isinstance(table, Mapping):
        raise ConfigError(f'{where}: expected a table, such as {{ Modality = "CT" }}')
    if depth > DEPTH_MAX:
        raise ConfigError(f"{where}: tables are nested deeper than {DEPTH_MAX}; write several rules")
    early: list[Test] = []
    late: list[Test] = []
    tags: set[int] = set()
    asks_origin = False
    for name, value in table.items():
        place = f"{where}.{name}"
        if name in {"not", "any"}:
            one_of = [value] if name == "not" or not isinstance(value, list | tuple) else list(value)
            if not one_of:
                raise ConfigError(f"{place}: an empty list holds for nothing; leave it out")
            inner = [_parsed(each, place, depth + 1) for each in one_of]
            (late if any(rule.asks_origin for rule in inner) else early).append(
                _none_of(inner) if name == "not" else _any_of(inner)
            )
            asks_origin = asks_origin or any(rule.asks_origin for rule in inner)
            tags.update(*(rule.tags for rule in inner))
        elif name in _ORIGIN:
            late.append(_origin(name, _texts(value, place), place))
            asks_origin = True
        elif name in {"sop_class", "transfer_syntax"}:
            early.append(_uid(name, _texts(value, place), place))
        else:
            tag = _tag(name, place)
            early.append(_attribute(tag, _texts(value, place, empty=True), place))
            tags.add(tag)
    return Rule([*early, *late], frozenset(tags), asks_origin=asks_origin)


def _none_of(rules: Sequence[Rule]) -> Test:
    return lambda subject: not any(rule.matches(subject) for rule in rules)


def _any_of(rules: Sequence[Rule]) -> Test:
    return lambda subject: any(rule.matches(subject) for rule in rules)


def _texts(value: Any, place: str, *, empty: bool = False) -> list[str]:
    """A text or a list of texts; numbers stand for their text."""
    found = list(value) if isinstance(value, list | tuple) else [value]
    if not found:
        raise ConfigError(f"{place}: an empty list matches nothing; leave it out")
    texts = []
    for one in found:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise ConfigError(f"{place}: expected text or a list of texts")
        if one == "" and not empty:
            raise ConfigError(f"{place}: an empty text matches nothing; leave it out")
        texts.append(str(one))
    return texts


def _tag(name: str, place: str) -> int:
    tag = TAG_OF.get(name)
    if tag is None:
        import difflib  # only for what is wrong

        known = [*(keyword for keyword, tag in TAG_OF.items() if tag in ATTRIBUTES), *_ORIGIN, "not", "any"]
        known += ["sop_class", "transfer_syntax"]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "name an attribute by its keyword (PS3.6)"
        raise ConfigError(f"{place}: nothing is called {name}; {hint}")
    if tag not in ATTRIBUTES:
        what = "a sequence" if VR_OF[tag] == "SQ" else "not among the attributes that the index keeps"
        raise ConfigError(f"{place}: {name} is {what}, so no rule can look at it")
    return tag


def _attribute(tag: int, keys: Sequence[str], place: str) -> Test:
    vr = VR_OF[tag]
    for key in keys:
        if key == ANY_VALUE:
            continue
        if key and is_universal(key, vr):
            raise ConfigError(f'{place}: {key!r} matches every object; "?*" asks for any value')
        read = _RANGES.get(vr)
        for part in key.split("\\"):
            if read is not None and part and read(part) is None:
                raise ConfigError(f"{place}: {part!r} is no {vr} value or range; write {_EXAMPLES[vr]}")
    tests = [matcher(vr, key) for key in keys if key and key != ANY_VALUE]
    or_absent, or_present = "" in keys, ANY_VALUE in keys

    def holds(subject: RuleSubject) -> bool:
        text = subject.text(tag)
        if not text.strip():
            return or_absent
        return or_present or any(test(text) for test in tests)

    return holds


def _uid(name: str, keys: Sequence[str], place: str) -> Test:
    for key in keys:
        if not _UID_KEY.fullmatch(key):
            raise ConfigError(f"{place}: {key!r} is no UID; digits and dots, * and ? are wild")
    tests = [wildcard(key) for key in keys]
    if name == "sop_class":
        return lambda subject: any(test(subject.sop_class_uid) for test in tests)
    return lambda subject: any(test(subject.transfer_syntax_uid) for test in tests)


def _origin(name: str, keys: Sequence[str], place: str) -> Test:
    if name == "source":
        return _source(keys, place)
    if name == "protocol":
        wrong = [key for key in keys if key not in PROTOCOLS]
        if wrong:
            raise ConfigError(f"{place}: {wrong[0]!r} is no way in; there are {', '.join(PROTOCOLS)}")
        return lambda subject: subject.protocol in keys
    for key in keys:
        if not _TITLE_KEY.fullmatch(key):
            raise ConfigError(f"{place}: {key!r} is no AE title; 1 to 16 characters, * and ? are wild")
    tests = [wildcard(key.strip()) for key in keys]
    if name == "calling_ae":
        return lambda subject: any(test(subject.calling_ae.strip()) for test in tests)
    return lambda subject: any(test(subject.called_ae.strip()) for test in tests)


def _source(keys: Sequence[str], place: str) -> Test:
    networks = []
    for key in keys:
        try:
            networks.append(ipaddress.ip_network(key, strict=False))
        except ValueError:
            raise ConfigError(
                f"{place}: {key!r} is no address or network; write 192.0.2.7 or 192.0.2.0/24"
            ) from None

    def holds(subject: RuleSubject) -> bool:
        try:
            address = ipaddress.ip_address(subject.address.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any(one in network for one in (address, mapped) if one is not None for network in networks)

    return holds
