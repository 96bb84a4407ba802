"""What there is as files that an import takes: YAML with all sections, CSV of one."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import yaml
from msgspec import structs

from hounsfield.archive.plugins import View
from hounsfield.ris_plugin.errors import InvalidError
from hounsfield.ris_plugin.importing.fields import SECTIONS, joined
from hounsfield.ris_plugin.records.catalog import Procedure
from hounsfield.ris_plugin.schedule.free_time import Calendar

__all__ = ["entries_of", "to_csv", "to_yaml"]


def entries_of(view: View, zone: ZoneInfo, sections: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Sections, all when none is named, with what is not as it is by default. InvalidError."""
    calendar = Calendar(zone)
    return {name: list(_entries(view, name, calendar)) for name in _named(sections)}


def to_yaml(found: dict[str, list[dict[str, Any]]]) -> str:
    """Sections as the text of a file: what takes long of an export, and needs no records."""
    text: str = yaml.dump(found, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def to_csv(view: View, zone: ZoneInfo, section: str) -> str:
    """One section, every field there. InvalidError for templates, which are no table."""
    (section,) = _named([section])
    fields = SECTIONS[section].fields
    if not fields:
        raise InvalidError(f"{section} are no table: export them as YAML", "section")
    calendar = Calendar(zone)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")  # RFC 4180
    writer.writerow(fields)
    for one in _rows(view, section):
        cells = (fields[name].write(_value(one, name), calendar) for name in fields)
        writer.writerow([cell if isinstance(cell, str) else joined(cell) for cell in cells])
    return text.getvalue()


def _named(sections: Sequence[str]) -> list[str]:
    unknown = set(sections) - set(SECTIONS)
    if unknown:
        raise InvalidError(f"no section {min(unknown)!r}; there are {', '.join(SECTIONS)}", "section")
    return [name for name in SECTIONS if not sections or name in sections]


def _rows(view: View, section: str) -> list[Any]:
    # A person's own templates and macros are not the department's.
    rows = [one for _, one in view.every(SECTIONS[section].kind) if not getattr(one, "owner", "")]
    return sorted(rows, key=lambda one: one.name if not hasattr(one, "code") else str(_value(one, "code")))


def _entries(view: View, section: str, calendar: Calendar) -> Iterator[dict[str, Any]]:
    fields = SECTIONS[section].fields
    defaults = {one.name: one.default for one in structs.fields(SECTIONS[section].kind.type)}
    for one in _rows(view, section):
        if not fields:
            yield msgspec.to_builtins(one)
            continue
        yield {
            name: value if isinstance(value, int) else fields[name].write(value, calendar)
            for name in fields
            if (value := _value(one, name)) != defaults.get(name, "")
        }


def _value(one: Any, name: str) -> Any:
    """What stands under a field: a procedure's code is three of them."""
    if isinstance(one, Procedure):
        if name == "code":
            return one.code.value
        if name in ("scheme", "meaning"):
            return getattr(one.code, name)
    return getattr(one, name)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Texts of several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
