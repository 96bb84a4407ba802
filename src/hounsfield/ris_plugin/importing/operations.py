"""What the command line asks for: ``import`` and ``export``. Files are read and written where it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import trio

from hounsfield.archive.plugins import Change, Parts
from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import InvalidError
from hounsfield.ris_plugin.importing.exporting import entries_of, to_csv, to_yaml
from hounsfield.ris_plugin.importing.planning import Item, Plan, parse, plan, put
from hounsfield.ris_plugin.importing.reading import File

__all__ = ["parts"]

FORMATS = ("yaml", "csv")


def parts(ris: Ris) -> Parts:
    """The operations in one worker."""
    return Parts(operations={"import": partial(_import, ris), "export": partial(_export, ris)})


async def _import(
    ris: Ris, *, files: Sequence[Mapping[str, str]], dry_run: bool = False, user: str = ""
) -> dict[str, Any]:
    """Import ``files`` (name, text, and kind for a CSV whose name does not say it): all of them, or nothing
    when anything is wrong.

    Up to a thousand changed records are one transaction. More are several: one that is cut off between them
    is gone on with by importing once more.
    """
    actor = Actor(f"local:{user}", frozenset({Role.ADMINISTRATOR}))
    given = [File(one["name"], one["text"], one.get("kind", "")) for one in files]

    def look() -> Plan:
        parsed = parse(given)
        with ris.reading() as view:
            return plan(view, actor, ris.zone, parsed)

    planned = await trio.to_thread.run_sync(look)
    done = 0
    if not dry_run:
        for batch in planned.batches():
            await ris.commit(partial(_put, actor=actor, items=batch))
            done += len(batch)
    return {
        "would": str(planned),
        "done": done,
        "sections": [
            {
                "section": name,
                "add": planned.added.get(name, 0),
                "change": planned.changed.get(name, 0),
                "leave": planned.same.get(name, 0),
            }
            for name in sorted({*planned.added, *planned.changed, *planned.same})
        ],
        "problems": [
            {"file": one.file, "line": one.line, "field": one.field, "message": one.message}
            for one in planned.problems
        ],
    }


def _put(change: Change, *, actor: Actor, items: Sequence[Item]) -> None:
    put(change, actor, items)


async def _export(ris: Ris, *, sections: Sequence[str] = (), form: str = "yaml") -> dict[str, str]:
    """What there is, as the text of a file: all sections as YAML, or one as CSV."""
    if form not in FORMATS:
        raise InvalidError(f"export as {' or '.join(FORMATS)}", "form")
    if form == "csv" and len(sections) != 1:
        raise InvalidError("a CSV has one section: name it", "sections")

    def look() -> str:
        with ris.reading() as view:
            if form == "csv":
                return to_csv(view, ris.zone, sections[0])
            found = entries_of(view, ris.zone, sections)
        return to_yaml(found)

    return {"text": await trio.to_thread.run_sync(look)}
