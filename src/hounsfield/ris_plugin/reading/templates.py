"""Report templates and macros: what a reader begins with, and the short words that he writes.

A template has sections with a text, and in them structured fields: ``{size}`` in the text stands for what the
field ``size`` holds. While a report is a draft the text keeps its ``{size}``; a version has the words. What a
template requires is asked for when a report is signed (:func:`complete`). A macro is a word with a dot before
it, ``.clear``, that stands for a text. Both are everybody's or one reader's own, whose own come first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from msgspec import structs

from hounsfield.archive.plugins import Change, Kind, View
from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.errors import ForbiddenError, InvalidError, UnknownError
from hounsfield.ris_plugin.languages import checked
from hounsfield.ris_plugin.records.base import folded
from hounsfield.ris_plugin.records.reports import (
    MACRO,
    TEMPLATE,
    Field,
    Macro,
    Report,
    Section,
    Template,
    TemplateSection,
)

__all__ = [
    "Sheet",
    "check_macro",
    "check_template",
    "complete",
    "delete_macro",
    "delete_template",
    "expand",
    "filled",
    "fitting",
    "macros",
    "put_macro",
    "put_sheet",
    "put_template",
    "read",
    "sections",
    "template",
    "templates",
    "write",
]

MACRO_CHARACTERS_MAX: Final = 20_000
MACRO_DEPTH_MAX: Final = 8
"""Macros may name macros; deeper is one that names itself."""
EXPANDED_CHARACTERS_MAX: Final = 200_000
"""Twice what a section may have: macros that name macros grow by themselves."""
FIELDS_MAX: Final = 200
LISTED_MAX: Final = 2000
_READERS: Final = (Role.RADIOLOGIST, Role.TRAINEE)
_KEEPERS: Final = (Role.RADIOLOGIST, Role.ADMINISTRATOR)
_NAME: Final = re.compile(r"[\w-]{1,64}")
_PLACE: Final = re.compile(r"\{([\w-]{1,64})\}")
_WORD: Final = re.compile(r"(?<!\S)\.([^\W\d][\w-]*)(?![\w.])")
_NUMBERS: Final = re.compile(r"[+-]?\d+([.,]\d+)?( ?[x×/–-] ?\d+([.,]\d+)?){0,3}")
GAP: Final = "____"
"""What a preliminary version shows where a field is still empty."""

Kept = TypeVar("Kept", Template, Macro)


# ---------------------------------------------------------------- finding


def template(view: View, template_id: str, person: str | None = None) -> Template:
    """The template, for a ``person`` everybody's or his own. UnknownError."""
    found = view.get(TEMPLATE, template_id)
    if found is None or (person is not None and found.owner not in ("", person)):
        raise UnknownError("there is no such template")
    return found


def templates(view: View, person: str = "") -> list[tuple[str, Template]]:
    """Everybody's templates and a person's own, by name."""
    return sorted(_of(view, TEMPLATE, person), key=lambda one: (folded(one[1].name), one[1].owner, one[0]))


def fitting(view: View, report: Report, procedures: Sequence[str], person: str) -> list[tuple[str, Template]]:
    """The templates that a report may begin with, the best first: those for one of its ``procedures`` (by
    value of the code), then for its body part, its modality, and for all; of equals the person's own."""
    found = []
    for template_id, one in _of(view, TEMPLATE, person):
        if one.procedures and not set(one.procedures) & set(procedures):
            continue
        if one.body_part and folded(one.body_part) != folded(report.body_part):
            continue
        if one.modality and one.modality != report.modality:
            continue
        rank = (bool(one.procedures), bool(one.body_part), bool(one.modality), bool(one.owner))
        found.append((rank, template_id, one))
    found.sort(key=lambda one: (*(not fits for fits in one[0]), folded(one[2].name), one[1]))
    return [(template_id, one) for _, template_id, one in found]


def macros(view: View, person: str = "") -> dict[str, str]:
    """Everybody's macros and a person's own, as texts by word; of two of one name the person's own."""
    return {folded(one.name): one.text for _, one in _of(view, MACRO, person)}


def _of(view: View, kind: Kind[Kept], person: str) -> Iterator[tuple[str, Kept]]:
    yield from view.find(kind, "owner", "", limit=LISTED_MAX)
    if person:
        yield from view.find(kind, "owner", person, limit=LISTED_MAX)


# ---------------------------------------------------------------- writing with them


def sections(found: Template) -> tuple[Section, ...]:
    """What a report begins with: the texts, fields at their defaults."""
    return tuple(
        Section(
            name=one.name,
            text=one.text,
            fields=tuple((field.name, field.default) for field in one.fields if field.default),
        )
        for one in found.sections
    )


def expand(text: str, words: Mapping[str, str]) -> str:
    """``text`` with each ``.word`` that is a macro replaced by what it stands for. InvalidError when a macro
    names itself."""

    spent = 0

    def replaced(text: str, within: tuple[str, ...]) -> str:
        nonlocal spent
        spent += len(text)  # counted before it is there: macros that name macros grow by powers
        if spent > EXPANDED_CHARACTERS_MAX:
            raise InvalidError(
                f"with its macros a text has at most {EXPANDED_CHARACTERS_MAX} characters", "text"
            )

        def of(found: re.Match[str]) -> str:
            word = folded(found[1])
            if word not in words:
                return found[0]
            if word in within or len(within) >= MACRO_DEPTH_MAX:
                raise InvalidError(f"the macro .{word} names itself", "text")
            return replaced(words[word], (*within, word))

        return _WORD.sub(of, text)

    return replaced(text, ())


def filled(found: Template | None, written: Sequence[Section]) -> tuple[Section, ...]:
    """Sections with what their fields hold in place of each ``{field}``; ``____`` for one that is empty. What
    the text has no place for stands below it, so that the text says all."""
    by_name = {} if found is None else {one.name: one for one in found.sections}
    return tuple(_filled(by_name.get(one.name), one) for one in written)


def complete(found: Template | None, written: Sequence[Section]) -> tuple[Section, ...]:
    """As :func:`filled`, for what is signed: nothing that is required is missing, no ``{field}`` of the text
    is empty, values are of the choices or numbers. InvalidError names what is not so."""
    if found is None:
        return filled(None, written)
    by_name = {one.name: one for one in written}
    missing: list[str] = []
    for section in found.sections:
        one = by_name.get(section.name, Section(name=section.name, text=""))
        values = {name: value.strip() for name, value in one.fields}
        named = set(_PLACE.findall(one.text))
        for field in section.fields:
            value = values.get(field.name, "")
            if value:
                _check_value(field, value)
            elif field.required or field.name in named:
                missing.append(field.label or field.name)
        if section.required and not one.text.strip() and not any(values.values()):
            missing.append(section.name)
    if missing:
        raise InvalidError(
            f"before it is signed, say (or take out of the text): {', '.join(missing)}", "sections"
        )
    return filled(found, written)


def _filled(section: TemplateSection | None, one: Section) -> Section:
    fields = {} if section is None else {field.name: field for field in section.fields}
    values = dict(one.fields)
    placed: set[str] = set()

    def value(found: re.Match[str]) -> str:
        field = fields.get(found[1])
        if field is None:
            return found[0]
        placed.add(field.name)
        return shown(field, values.get(field.name, ""))

    text = _PLACE.sub(value, one.text)
    said = {line.strip() for line in text.splitlines()}
    before = set() if section is None else set(_PLACE.findall(section.text))
    apart = []
    for name, content in one.fields:
        field = fields.get(name) or Field(name=name)
        words = shown(field, content)
        line = f"{field.label or name}: {words}"
        # A corrected version begins with the words of the one before, where its fields were put in.
        stays = name in before and re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text)
        is_said = name in placed or line in said or stays
        if content.strip() and not is_said:
            apart.append(line)
    if apart:
        text = "\n".join((*((text.rstrip(),) if text.strip() else ()), *apart))
    return structs.replace(one, text=text)


def shown(field: Field, value: str) -> str:
    """A value as it is read, with its unit."""
    value = value.strip()
    return f"{value} {field.unit}".strip() if value else GAP


def _check_value(field: Field, value: str) -> None:
    label = field.label or field.name
    if field.choices:
        chosen = [one.strip() for one in value.split(",")] if field.several else [value]
        if not set(chosen) <= set(field.choices):
            raise InvalidError(f"{label} is one of: {', '.join(field.choices)}", field.name)
    elif field.unit and not _NUMBERS.fullmatch(value):
        raise InvalidError(f"{label} is a number of {field.unit}, or a size as 12 x 9", field.name)


# ---------------------------------------------------------------- changing


def put_template(change: Change, actor: Actor, new: Template, template_id: str = "") -> str:
    """Add a template, or change one; its id. Everybody's by radiologists and administrators, one's own by
    whoever reads. InvalidError, TakenError for a name that another one of the same owner has."""
    check_template(new)
    return _put(change, actor, TEMPLATE, new, template_id)


def put_macro(change: Change, actor: Actor, new: Macro, macro_id: str = "") -> str:
    """Add a macro, or change one; its id. As with templates."""
    check_macro(change, new)
    return _put(change, actor, MACRO, structs.replace(new, name=folded(new.name)), macro_id)


def check_macro(view: View, new: Macro) -> None:
    """Raise InvalidError for a macro that cannot be."""
    if not _NAME.fullmatch(new.name) or new.name[0].isdigit():
        raise InvalidError(
            "a macro is one word of letters, digits and hyphens that begins with a letter", "name"
        )
    if not new.text.strip() or len(new.text) > MACRO_CHARACTERS_MAX:
        raise InvalidError(f"a macro stands for a text of 1 to {MACRO_CHARACTERS_MAX} characters", "text")
    expand(new.text, {**macros(view, new.owner), folded(new.name): new.text})


def delete_template(change: Change, actor: Actor, template_id: str) -> None:
    """Remove a template; reports that were begun with it stay. UnknownError."""
    _delete(change, actor, TEMPLATE, template_id)


def delete_macro(change: Change, actor: Actor, macro_id: str) -> None:
    """Remove a macro. UnknownError."""
    _delete(change, actor, MACRO, macro_id)


def _put(change: Change, actor: Actor, kind: Kind[Kept], new: Kept, record_id: str) -> str:
    _may(actor, new.owner)
    if record_id:
        held: Kept | None = _mine(change, actor, kind, record_id)
    else:
        same = change.first(kind, "name", f"{new.owner}\0{new.name}")
        record_id, held = same if same is not None else (change.new_id(), None)
    if held != new:
        change.put(kind, record_id, new)
        _say(change, actor, kind.name, record_id)
    return record_id


def _delete(change: Change, actor: Actor, kind: Kind[Kept], record_id: str) -> None:
    _mine(change, actor, kind, record_id)
    change.delete(kind, record_id)
    _say(change, actor, kind.name, record_id)


def _mine(view: View, actor: Actor, kind: Kind[Kept], record_id: str) -> Kept:
    """What is there for the actor to change: what is somebody else's own is not there."""
    held = view.get(kind, record_id)
    if held is None or held.owner not in ("", actor.person):
        raise UnknownError(f"there is no such {kind.name}")
    _may(actor, held.owner)
    return held


def _say(change: Change, actor: Actor, kind: str, record_id: str) -> None:
    change.say("catalog-changed", {"kind": kind, "record": record_id, "actor": actor.person})


def _may(actor: Actor, owner: str) -> None:
    if not owner:
        actor.require(*_KEEPERS, what="changing everybody's templates and macros")
    elif owner != actor.person:
        raise ForbiddenError("these templates and macros are somebody else's own")
    else:
        actor.require(*_READERS, what="keeping templates and macros")


def check_template(new: Template) -> None:
    """Raise InvalidError for a template that cannot be."""
    if not new.name.strip() or not new.sections:
        raise InvalidError("a template has a name and sections", "name")
    checked(new.language)
    names = [one.name for one in new.sections]
    if len(set(names)) != len(names) or not all(name.strip() for name in names):
        raise InvalidError("each section has a name of its own", "sections")
    for section in new.sections:
        fields = [one.name for one in section.fields]
        if len(set(fields)) != len(fields) or len(fields) > FIELDS_MAX:
            raise InvalidError(
                f"a section has at most {FIELDS_MAX} fields, each with a name of its own", "fields"
            )
        for field in section.fields:
            if not _NAME.fullmatch(field.name):
                raise InvalidError("a field's name is one word of letters, digits and hyphens", "fields")
            if field.several and (not field.choices or any("," in one for one in field.choices)):
                raise InvalidError("several of the choices: there are some, and none has a comma", "fields")
            if field.default:
                _check_value(field, field.default)
        unknown = set(_PLACE.findall(section.text)) - set(fields)
        if unknown:
            raise InvalidError(f"the text speaks of a field that the section has not: {min(unknown)}", "text")


# ---------------------------------------------------------------- as YAML


class _Field(Field, frozen=True, forbid_unknown_fields=True):
    pass


class _Section(TemplateSection, frozen=True, forbid_unknown_fields=True):
    fields: tuple[_Field, ...] = ()


class _Template(Template, frozen=True, forbid_unknown_fields=True):
    sections: tuple[_Section, ...]


class _Macro(Macro, frozen=True, forbid_unknown_fields=True):
    pass


class _Sheet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    templates: tuple[_Template, ...] = ()
    macros: tuple[_Macro, ...] = ()


@dataclass(frozen=True, slots=True)
class Sheet:
    """Templates and macros, as a file has them."""

    templates: tuple[Template, ...] = ()
    macros: tuple[Macro, ...] = ()


def read(value: Any) -> Sheet:
    """Templates and macros of what a YAML file holds: ``{templates: [...], macros: [...]}``, their keys those
    of the records. InvalidError says what is wrong and where."""
    try:
        strict = msgspec.convert(value if value is not None else {}, _Sheet)
        plain = msgspec.to_builtins(strict)
        return Sheet(
            msgspec.convert(plain["templates"], tuple[Template, ...]),
            msgspec.convert(plain["macros"], tuple[Macro, ...]),
        )
    except msgspec.ValidationError as error:
        raise InvalidError(str(error), "templates") from error


def write(view: View, person: str = "") -> dict[str, Any]:
    """What :func:`read` takes, of everybody's templates and macros and a person's own: for a YAML file."""
    words = sorted((one for _, one in _of(view, MACRO, person)), key=lambda one: (one.owner, one.name))
    return {
        "templates": [msgspec.to_builtins(one) for _, one in templates(view, person)],
        "macros": [msgspec.to_builtins(one) for one in words],
    }


def put_sheet(change: Change, actor: Actor, sheet: Sheet) -> int:
    """Add or change all of a sheet, found by owner and name; how many there are in it."""
    for macro in sheet.macros:
        put_macro(change, actor, macro)
    for one in sheet.templates:
        put_template(change, actor, one)
    return len(sheet.macros) + len(sheet.templates)
