"""Files as entries that know where they stand: YAML with sections, CSV with one kind of thing.

Every value is text, a list or a map of such: what it is to be is the field's to say, so that a code ``0815``
stays one and ``NO`` is not false. Nothing here knows the RIS.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import yaml

__all__ = ["Entry", "File", "Problem", "Value", "read_csv", "read_yaml"]

FILE_CHARACTERS_MAX: Final = 32 << 20
"""A file of a hundred thousand people."""
DEPTH_MAX: Final = 16
ENTRIES_MAX: Final = 200_000

_TOLD: Final = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)

Value = str | list["Value"] | dict[str, "Value"]


class File(NamedTuple):
    """A file to import. ``kind``: what a CSV has; by its name when empty."""

    name: str
    text: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {f'{self.field}: ' if self.field else ''}{self.message}"


@dataclass(slots=True)
class Entry:
    """One thing of a file. ``lines``: where its fields stand."""

    file: str
    line: int
    values: dict[str, Value]
    lines: dict[str, int] = field(default_factory=dict)

    def problem(self, name: str, message: str) -> Problem:
        return Problem(self.file, self.lines.get(name, self.line), name, message)


class ReadError(ValueError):
    """The file cannot be read at all."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


# ---------------------------------------------------------------- YAML


@dataclass(slots=True)
class _Node:
    """A value of YAML and the line on which it stands; in lists and maps others."""

    line: int
    text: str | None = None
    items: list[_Node] | None = None
    pairs: dict[str, _Node] | None = None
    key: str | None = None

    def value(self) -> Value:
        if self.pairs is not None:
            return {key: one.value() for key, one in self.pairs.items()}
        if self.items is not None:
            return [one.value() for one in self.items]
        return self.text or ""


def read_yaml(file: File) -> tuple[dict[str, list[Entry]], list[Problem]]:
    """The entries of each section. One map: lists of maps by the section's name."""
    try:
        root = _tree(file.text)
    except ReadError as error:
        return {}, [Problem(file.name, error.line, "", str(error))]
    if root is None:
        return {}, []
    problems: list[Problem] = []
    sections: dict[str, list[Entry]] = {}
    if root.pairs is None:
        return {}, [Problem(file.name, root.line, "", "a file is a map of sections: procedures, devices, …")]
    for name, node in root.pairs.items():
        entries = sections.setdefault(name, [])
        if node.items is None:
            if node.text:
                problems.append(Problem(file.name, node.line, name, "a section is a list of entries"))
            elif node.pairs:
                problems.append(
                    Problem(file.name, node.line, name, "a section is a list: - before each entry")
                )
            continue
        for one in node.items:
            if one.pairs is None:
                # A line of its own, as closures are.
                entries.append(Entry(file.name, one.line, {"": one.value()}))
                continue
            entries.append(
                Entry(
                    file.name,
                    one.line,
                    {key: each.value() for key, each in one.pairs.items()},
                    {key: each.line for key, each in one.pairs.items()},
                )
            )
    return sections, problems


def _tree(text: str) -> _Node | None:
    """The document, made of the parser's events one after another: nothing is recursive in who wrote it."""
    if len(text) > FILE_CHARACTERS_MAX:
        raise ReadError(
            0, f"a file has at most {FILE_CHARACTERS_MAX >> 20} million characters: make it several"
        )
    open_nodes: list[_Node] = []
    root: _Node | None = None
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    try:
        for event in yaml.parse(text, Loader=loader):
            line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent):
                raise ReadError(line, "references (*name) are not taken: write it out")
            node = _node(event, line)
            if node is not None:
                root = _hang(open_nodes, node, root)
                if node.text is None:
                    open_nodes.append(node)
                    if len(open_nodes) > DEPTH_MAX:
                        raise ReadError(line, f"nested more than {DEPTH_MAX} deep")
            elif isinstance(event, yaml.CollectionEndEvent):
                open_nodes.pop()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or "no YAML"
        raise ReadError(mark.line + 1 if mark is not None else 0, f"no YAML: {what}") from None
    return root


def _node(event: yaml.Event, line: int) -> _Node | None:
    if isinstance(event, yaml.ScalarEvent):
        plain = event.implicit[0]
        return _Node(line, text="" if plain and event.value in ("~", "null") else event.value)
    if isinstance(event, yaml.SequenceStartEvent):
        return _Node(line, items=[])
    if isinstance(event, yaml.MappingStartEvent):
        return _Node(line, pairs={})
    return None


def _hang(open_nodes: list[_Node], node: _Node, root: _Node | None) -> _Node:
    """Put a node where it belongs."""
    if not open_nodes:
        if root is not None:
            raise ReadError(node.line, "one document a file")
        return node
    above = open_nodes[-1]
    if above.items is not None:
        above.items.append(node)
        if len(above.items) > ENTRIES_MAX:
            raise ReadError(node.line, f"more than {ENTRIES_MAX} entries in one list")
    elif above.key is None:
        if node.text is None:
            raise ReadError(node.line, "a name is a word")
        above.key = node.text
        if above.pairs is not None and node.text in above.pairs:
            raise ReadError(node.line, f"{node.text!r} stands there twice")
    elif above.pairs is not None:
        above.pairs[above.key] = node
        above.key = None
    assert root is not None
    return root


# ---------------------------------------------------------------- CSV


def read_csv(file: File) -> tuple[list[Entry], list[Problem]]:
    """The rows, by the names in the first one, however these are capitalised. Between cells are commas, or
    semicolons or tabs where those are in the first line, or what ``sep=`` says before it (as Excel has it).
    Every cell counts: an empty one is a field that is empty; but of a column without a name and without
    anything in it nothing is said."""
    if len(file.text) > FILE_CHARACTERS_MAX:
        return [], [Problem(file.name, 0, "", "the file is too long: make it several")]
    text = file.text.removeprefix("\N{BYTE ORDER MARK}")
    first = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0]
    delimiter = next((one for one in (";", "\t") if one in first and "," not in first), ",")
    told = _TOLD.match(text)
    if told is not None:
        delimiter = told[1]
    problems: list[Problem] = []
    entries: list[Entry] = []
    names: list[str] = []
    try:
        for line, cells in _rows(text, delimiter):
            if not any(cell.strip() for cell in cells) or (line == 1 and told is not None):
                continue
            if not names:
                names = ["_".join(cell.casefold().split()) for cell in cells]
                twice = sorted({name for name in names if name and names.count(name) > 1})
                if twice:
                    what = f"the first line names the columns; twice: {', '.join(twice)}"
                    return [], [Problem(file.name, line, "", what)]
                continue
            if len(cells) != len(names):
                problems.append(Problem(file.name, line, "", f"{len(cells)} cells for {len(names)} columns"))
                continue
            if any(cell.strip() for name, cell in zip(names, cells, strict=True) if not name):
                what = "the first line names the columns; a column has no name"
                return [], [Problem(file.name, line, "", what)]
            values: dict[str, Value] = {name: cell for name, cell in zip(names, cells, strict=True) if name}
            entries.append(Entry(file.name, line, values))
            if len(entries) > ENTRIES_MAX:
                return [], [Problem(file.name, line, "", f"more than {ENTRIES_MAX} rows")]
    except ReadError as error:
        problems.append(Problem(file.name, error.line, "", str(error)))
    return entries, problems


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows and the lines on which they begin."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ReadError(line, f"no CSV: {error}") from None
        if cells is None:
            return
        yield line, cells
        line = reader.line_num + 1
