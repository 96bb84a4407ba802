"""docs/ris-states.md, made from the tables: ``PYTHONPATH=tests python -m ris.pictures`` writes it anew."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import hounsfield.ris_plugin
from hounsfield.ris_plugin.states import Machine

DOCUMENT = Path(__file__).parents[2] / "docs" / "ris-states.md"
HEAD = """# States

Made from the tables in the code (each module's `MACHINE`) and held to them by a test. An arrow is
an action; below each picture stands who may do it.
"""


def machines() -> dict[str, Machine]:
    """Every machine by its module, as a path within the RIS."""
    found = {}
    whole = hounsfield.ris_plugin.__name__ + "."
    for module in pkgutil.walk_packages(hounsfield.ris_plugin.__path__, whole):
        machine = getattr(importlib.import_module(module.name), "MACHINE", None)
        if isinstance(machine, Machine):
            found[module.name.removeprefix(whole).replace(".", "/")] = machine
    return found


def document() -> str:
    """The whole document."""
    parts = [HEAD]
    for module, machine in sorted(machines().items()):
        rows = [
            f"| {row.action} | {', '.join(row.before)} | {row.after if row.after != '=' else 'the same'} "
            f"| {', '.join(row.roles)} |"
            for row in machine.table
        ]
        parts.append(
            "\n".join(
                (
                    f"\n## {machine.name.capitalize()} (`{module}.py`)\n",
                    "```mermaid",
                    *machine.picture(),
                    "```\n",
                    "| action | from | to | roles |",
                    "|---|---|---|---|",
                    *rows,
                    "",
                )
            )
        )
    return "".join(parts)


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
