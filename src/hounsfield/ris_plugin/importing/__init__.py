"""What a department has (catalog, devices, rooms, people, hours, templates) from files, and as files."""

from __future__ import annotations

from hounsfield.ris_plugin.importing.exporting import entries_of, to_csv, to_yaml
from hounsfield.ris_plugin.importing.operations import parts
from hounsfield.ris_plugin.importing.planning import Item, Parsed, Plan, parse, plan, put
from hounsfield.ris_plugin.importing.reading import File, Problem

__all__ = [
    "File", "Item", "Parsed", "Plan", "Problem", "entries_of", "parse", "parts", "plan", "put",
    "to_csv", "to_yaml",
]  # fmt: skip
