"""What an import would change, found before anything changes; and the change.

An entry adds a record, or changes the one of its code: fields that it does not name stay as they are, so a
file may have codes and hours alone. Nothing is removed by being left out; ``active: no`` retires. The same
file again changes nothing, so that an import that was cut off is gone on with by importing once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import PurePath
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec
from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.catalog import (
    check_person,
    check_procedure,
    check_resource,
    is_of,
    put_person,
    put_procedure,
    put_resource,
)
from hounsfield.ris_plugin.errors import InvalidError, RisError, StaleError
from hounsfield.ris_plugin.importing.fields import CLOSURES, LOCAL_SCHEME, SECTIONS, SYNONYMS, items_of
from hounsfield.ris_plugin.importing.hours import read_closure
from hounsfield.ris_plugin.importing.reading import Entry, File, Problem, Value, read_csv, read_yaml
from hounsfield.ris_plugin.reading import templates
from hounsfield.ris_plugin.records.base import Code, folded
from hounsfield.ris_plugin.records.catalog import (
    PERSON,
    PROCEDURE,
    RESOURCE,
    Closure,
    Person,
    Procedure,
    Resource,
)
from hounsfield.ris_plugin.records.reports import Macro, Template
from hounsfield.ris_plugin.schedule.free_time import Calendar

__all__ = ["CHANGES_MAX", "Item", "Parsed", "Plan", "parse", "plan", "put"]

CHANGES_MAX: Final = 1000
"""Records that are put in one transaction, which is made while others wait; more are put in several."""
PROBLEMS_MAX: Final = 200
"""Of more it is known that there are more: most follow from the same mistake."""
_CLOSURE_FIELDS: Final = ("date", "from", "to", "why", "resources")


@dataclass(frozen=True, slots=True)
class Item:
    """A record that is to be added (``before`` is None) or changed."""

    section: str
    key: str
    before: msgspec.Struct | None
    new: msgspec.Struct


@dataclass(slots=True)
class Plan:
    """What would be done: ``items`` in order; by section what there is to add, to change and to leave."""

    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    added: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    same: dict[str, int] = field(default_factory=dict)

    def batches(self) -> Iterator[list[Item]]:
        """The items of one transaction after another."""
        for start in range(0, len(self.items), CHANGES_MAX):
            yield self.items[start : start + CHANGES_MAX]

    def __str__(self) -> str:
        counts = (("add", self.added), ("change", self.changed), ("leave", self.same))
        return ", ".join(f"{word} {sum(of.values())}" for word, of in counts)


@dataclass(slots=True)
class Parsed:
    """What stands in files, by section, and what of them cannot be read."""

    entries: dict[str, list[Entry]]
    problems: list[Problem]


def parse(files: Sequence[File]) -> Parsed:
    """The entries of files: what takes long of an import, and needs no records."""
    parsed = Parsed({name: [] for name in (*SECTIONS, CLOSURES)}, [])
    for file in files:
        for section, found in _read(file, parsed.problems):
            parsed.entries[section] += found
    return parsed


def plan(view: View, actor: Actor, zone: ZoneInfo, parsed: Parsed) -> Plan:
    """What importing would change, and all that is wrong with it. Changes nothing. ForbiddenError."""
    actor.require(Role.ADMINISTRATOR, what="importing")
    return _Planner(view, Calendar(zone), parsed.problems).plan(parsed.entries)


def put(change: Change, actor: Actor, items: Sequence[Item]) -> None:
    """Put what was planned. StaleError when somebody has changed one of the records since: nothing is."""
    actor.require(Role.ADMINISTRATOR, what="importing")
    for item in items:
        kind = SECTIONS[item.section].kind
        found = change.first(kind, *_lookup(item.section, item.key))
        if (found[1] if found is not None else None) != item.before:
            raise StaleError(f"one of the {item.section} was changed meanwhile: import once more")
        _PUTTERS[item.section](change, actor, item.new)


_PUTTERS: Final[dict[str, Any]] = {
    "resources": put_resource,
    # Whom each deputises for was looked at in the plan: the order in a file is not theirs.
    "people": partial(put_person, is_person=lambda code: True),  # noqa: ARG005
    "procedures": put_procedure,
    "templates": templates.put_template,
    "macros": templates.put_macro,
}


def _lookup(section: str, key: str) -> tuple[str, str]:
    return ("name" if section in ("templates", "macros") else "code"), key


def _read(file: File, problems: list[Problem]) -> Iterator[tuple[str, list[Entry]]]:
    is_csv = file.kind or PurePath(file.name).suffix.lower() in (".csv", ".tsv")
    if is_csv:
        named = file.kind or PurePath(file.name).stem.lower()
        rows, wrong = read_csv(file)
        sections = {named: rows}
    else:
        sections, wrong = read_yaml(file)
    problems += wrong
    for name, entries in sections.items():
        section, given = SYNONYMS.get(name, (name, {}))
        if section not in SECTIONS and section != CLOSURES:
            known = sorted({*SECTIONS, *SYNONYMS, CLOSURES})
            problems.append(
                Problem(file.name, 0, name[:40], f"no such section; there are {', '.join(known)}")
            )
            continue
        if is_csv and section == "templates":
            problems.append(Problem(file.name, 0, "", "templates come as YAML"))
            continue
        for entry in entries:
            entry.values = {**given, **entry.values}
        yield section, entries


class _Planner:
    def __init__(self, view: View, calendar: Calendar, problems: Sequence[Problem]) -> None:
        self._view = view
        self._calendar = calendar
        self._plan = Plan(problems=list(problems))
        self._known: dict[str, Resource] | None = None
        self._rows: dict[str, dict[str, tuple[msgspec.Struct | None, msgspec.Struct, Entry | None]]] = {
            name: {} for name in SECTIONS
        }

    def plan(self, entries: Mapping[str, Sequence[Entry]]) -> Plan:
        for section in SECTIONS:
            for entry in entries[section]:
                self._take(section, entry)
            if section == "resources":
                for entry in entries[CLOSURES]:
                    self._close(entry)
        for section, rows in self._rows.items():
            for key, (before, new, where) in rows.items():
                self._check(new, where)
                self._count(section, key, before, new)
        self._plan.problems.sort(key=lambda one: (one.file, one.line))
        if len(self._plan.problems) > PROBLEMS_MAX:
            self._plan.problems[PROBLEMS_MAX:] = [Problem("", 0, "", "and more that is wrong")]
        if self._plan.problems:
            self._plan.items.clear()
        return self._plan

    # ------------------------------------------------------------ entries

    def _take(self, section: str, entry: Entry) -> None:
        of = SECTIONS[section]
        missing = [name for name in of.required if not entry.values.get(name)]
        if missing or "" in entry.values:
            what = f"an entry needs {' and '.join(missing)}" if missing else "an entry has fields"
            near = get_close_matches(missing[0], entry.values, 1) if missing else []
            if near and near[0] not in of.fields:
                what += f"; is {near[0][:40]!r} it?"
            self._plan.problems.append(entry.problem("", what))
            return
        given = self._templates(section, entry) if section == "templates" else self._fields(section, entry)
        if given is None:
            return
        try:
            key = self._key(section, given)
            found = self._view.first(of.kind, *_lookup(section, key))
            before = found[1] if found is not None else None
            new = _merged(section, before, given)
        except (ValueError, TypeError, RisError) as error:
            self._plan.problems.append(entry.problem(getattr(error, "field", ""), str(error)))
            return
        if key in self._rows[section]:
            first = self._rows[section][key][2]
            where = f"{first.file}:{first.line}" if first is not None else "above"
            self._plan.problems.append(entry.problem(of.required[0], f"the same one stands at {where}"))
            return
        self._rows[section][key] = before, new, entry

    def _fields(self, section: str, entry: Entry) -> dict[str, Any] | None:
        fields = SECTIONS[section].fields
        given: dict[str, Any] = {}
        wrong = False
        for name, value in entry.values.items():
            try:
                if name not in fields:
                    near = get_close_matches(name, fields, 1)
                    hint = f"; is it {near[0]}?" if near else f"; there are {', '.join(fields)}"
                    raise ValueError(f"no such field{hint}")
                # An empty one is the default, whatever that is.
                given[name] = fields[name].read(value, self._calendar) if value else None
            except ValueError as error:
                self._plan.problems.append(entry.problem(name[:40], str(error)))
                wrong = True
        return None if wrong else given

    def _templates(self, section: str, entry: Entry) -> dict[str, Any] | None:
        try:
            (read,) = templates.read({section: [_plain(entry.values)]}).templates
        except InvalidError as error:
            what, _, path = str(error).partition(" - at `$.templates[0]")
            self._plan.problems.append(entry.problem(path.strip(".`"), what))
            return None
        return {name: getattr(read, name) for name in read.__struct_fields__ if name in entry.values}

    def _key(self, section: str, given: dict[str, Any]) -> str:
        if section == "macros":
            given["name"] = folded(given["name"])
        if section in ("templates", "macros"):
            return f"{given.get('owner') or ''}\0{given['name']}"
        if section != "procedures":
            return str(given["code"])
        if not given.get("scheme"):
            known = [one for _, one in self._view.find(PROCEDURE, "value", given["code"], limit=2)]
            given["scheme"] = known[0].code.scheme if len(known) == 1 else LOCAL_SCHEME
        return f"{given['scheme']}\0{given['code']}"

    def _close(self, entry: Entry) -> None:
        """A closure of several resources is added to those that they have."""
        try:
            closure, names = self._closure(entry)
        except ValueError as error:
            self._plan.problems.append(entry.problem("", str(error)))
            return
        rows = self._rows["resources"]
        if self._known is None:
            self._known = {one.code: one for _, one in self._view.every(RESOURCE)}
        everything: dict[str, Resource] = dict(self._known)
        for code, (_, row, _) in rows.items():
            if isinstance(row, Resource):
                everything[code] = row
        for name in names:
            if not any(is_of(one, name) for one in everything.values()):
                self._plan.problems.append(entry.problem("resources", f"there is no {name[:40]!r}"))
        for code, one in everything.items():
            if not names or any(is_of(one, name) for name in names):
                before, _, where = rows.get(code, (one, one, None))
                closures = sorted(
                    {*one.closures, closure}, key=lambda each: (each.from_ns, each.to_ns, each.why)
                )
                rows[code] = before, structs.replace(one, closures=tuple(closures)), where

    def _closure(self, entry: Entry) -> tuple[Closure, list[str]]:
        if "" in entry.values:
            value = entry.values[""]
            if not isinstance(value, str):
                raise ValueError("a closure is a line, or from, to, why and resources")
            return read_closure(value, self._calendar), []
        unknown = entry.values.keys() - set(_CLOSURE_FIELDS)
        if unknown:
            raise ValueError(f"no field {min(unknown)[:40]!r}; there are {', '.join(_CLOSURE_FIELDS)}")
        texts = {name: entry.values.get(name) or "" for name in _CLOSURE_FIELDS[:4]}
        if any(not isinstance(one, str) for one in texts.values()):
            raise ValueError("date, from, to and why are texts")
        begin, end = texts["date"] or texts["from"], texts["to"]
        text = f"{begin}..{end}" if end else f"{begin}"
        closure = structs.replace(read_closure(text, self._calendar), why=str(texts["why"]).strip())
        return closure, items_of(entry.values.get("resources") or "")

    # ------------------------------------------------------------ whole

    def _check(self, new: msgspec.Struct, entry: Entry | None) -> None:
        try:
            match new:
                case Resource():
                    check_resource(new)
                case Person():
                    check_person(new, self._is_person)
                case Procedure():
                    check_procedure(new, self._is_resource)
                case Template():
                    templates.check_template(new)
                case Macro():
                    templates.check_macro(self._view, new)
            if isinstance(new, Template | Macro) and new.owner:
                raise InvalidError(
                    "somebody's own are his to change; what is imported is everybody's", "owner"
                )
        except RisError as error:
            name = getattr(error, "field", "")
            self._plan.problems.append(
                entry.problem(name, str(error)) if entry is not None else Problem("", 0, name, str(error))
            )

    def _is_person(self, code: str) -> bool:
        return code in self._rows["people"] or bool(self._view.ids(PERSON, "code", code, limit=1))

    def _is_resource(self, code: str) -> bool:
        return code in self._rows["resources"] or bool(self._view.ids(RESOURCE, "code", code, limit=1))

    def _count(self, section: str, key: str, before: msgspec.Struct | None, new: msgspec.Struct) -> None:
        of = self._plan.same if before == new else self._plan.added if before is None else self._plan.changed
        of[section] = of.get(section, 0) + 1
        if before != new:
            self._plan.items.append(Item(section, key, before, new))


def _fields_of(kind: type[msgspec.Struct]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The fields of a kind of record, and the defaults of those that have one."""
    fields = structs.fields(kind)
    defaults = {one.name: one.default for one in fields if one.default is not msgspec.NODEFAULT}
    return tuple(one.name for one in fields), defaults


_FIELDS: Final = {name: _fields_of(of.kind.type) for name, of in SECTIONS.items()}


def _merged(section: str, before: Any, given: dict[str, Any]) -> msgspec.Struct:
    """A record with what an entry says of it. TypeError when a field that it must have is missing."""
    kind = SECTIONS[section].kind.type
    names, defaults = _FIELDS[section]
    if section == "procedures":
        code = before.code if before is not None else Code(value=given["code"], scheme=given["scheme"])
        if "meaning" in given:
            code = structs.replace(code, meaning=given["meaning"] or "")
        given = {name: one for name, one in given.items() if name not in ("code", "scheme", "meaning")}
        given["code"] = code
    for name, one in given.items():
        if one is None:
            if name not in defaults:
                raise InvalidError("this cannot be empty", name)
            given[name] = defaults[name]
    if before is not None:
        changed: msgspec.Struct = structs.replace(before, **given)
        return changed
    absent = [name for name in names if name not in defaults and name not in given]
    if absent:
        raise InvalidError(f"something new needs {' and '.join(absent)}", absent[0])
    made: msgspec.Struct = kind(**given)
    return made


_FLAGS: Final = frozenset({"several", "required"})
_FLAG: Final = {"true": True, "yes": True, "false": False, "no": False}


def _plain(value: Value) -> Any:
    """Values as YAML has them, where a reader of its own takes flags as flags."""
    if isinstance(value, dict):
        return {
            key: _FLAG.get(one, one) if key in _FLAGS and isinstance(one, str) else _plain(one)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value
