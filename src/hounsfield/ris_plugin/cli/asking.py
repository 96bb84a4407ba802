"""How commands ask, and find what people call by other names than ids."""

from __future__ import annotations

import getpass
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click

from hounsfield.archive.plugins import CommandLine

__all__ = ["Counter", "when"]

_ID: Final = re.compile(r"[0-9a-f]{32}")
_EXAMPLES: Final = "\b\nExamples:\n"


class Counter:
    """Asks for endpoints of the API by name, and shows what they answer."""

    def __init__(self, cli: CommandLine) -> None:
        self._cli = cli

    def command(self, group: click.Group, name: str, *examples: str) -> Callable[[Any], click.Command]:
        """A command of ``group`` with the options that all have; its function gets ``line`` too."""

        def made(function: Any) -> click.Command:
            epilog = examples_of(*examples)
            decorated: click.Command = group.command(name, epilog=epilog)(self._cli.options(function))
            return decorated

        return made

    def ask(
        self,
        line: Any,
        endpoint: str,
        *,
        path: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> Any:
        """What the endpoint answers. Parameters that are empty are left out."""
        words = {name: str(value) for name, value in (query or {}).items() if value not in ("", None, False)}
        return self._cli.call(
            line, "do",
            user=getpass.getuser(), endpoint=endpoint, path=dict(path or {}), query=words, body=body,
        )  # fmt: skip

    def operation(self, line: Any, name: str, /, **words: Any) -> Any:
        """Another operation of the RIS."""
        return self._cli.call(line, name, **words)

    def table(
        self, line: Any, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], value: Any = None
    ) -> None:
        """A table, or with ``--json`` everything that is known."""
        self._cli.show(
            line, [{**one, **_flat(one)} for one in rows], columns, rows if value is None else value
        )

    def page(self, line: Any, answer: Mapping[str, Any], columns: Mapping[str, str]) -> None:
        """A list, and whether there is more of it."""
        self.table(line, answer["items"], columns, answer)
        if answer.get("next"):
            self._cli.say(f"there is more: --after {answer['next']}")

    def fields(self, line: Any, answer: Mapping[str, Any], names: Iterable[str] = ()) -> None:
        """One record, what is empty left out."""
        plain = {name: _plain(value) for name, value in answer.items() if not names or name in names}
        shown = [{"field": name.replace("_", " "), "value": value} for name, value in plain.items() if value]
        self._cli.show(line, shown, {"field": "Field", "value": "Value"}, answer)

    def done(self, line: Any, answer: Any, text: str) -> None:
        """That it was done; with ``--json`` what it is now."""
        if answer is not None and getattr(line, "as_json", False):
            self._cli.show(line, [], {}, answer)
        else:
            self._cli.say(text)

    def fail(self, text: str) -> Exception:
        """What to raise when it cannot be done."""
        return self._cli.fail(text)

    def say(self, text: str) -> None:
        """A line for people."""
        self._cli.say(text)

    # ------------------------------------------------------------ by other names

    def patient(self, line: Any, word: str) -> str:
        """The id of a patient who is called by id or number."""
        if _ID.fullmatch(word):
            return word
        number, _, issuer = word.partition("@")
        found = [
            one
            for one in self.ask(line, "SearchPatients", query={"number": number})["items"]
            if not issuer or any(each["issuer"] == issuer for each in one["identifiers"])
        ]
        return self._only(found, "patient has this number", "give its id, or NUMBER@ISSUER")

    def order(self, line: Any, word: str) -> str:
        """The id of an order that is called by id or accession number."""
        if _ID.fullmatch(word):
            return word
        found = self.ask(line, "ListOrders", query={"accession": word})["items"]
        return self._only(found, "order has this accession number", "give its id")

    def appointment(self, line: Any, word: str) -> str:
        """The id of an appointment that is called by id or number."""
        if _ID.fullmatch(word):
            return word
        found = self.ask(line, "ListAppointments", query={"number": word})["items"]
        return self._only(found, "appointment has this number", "give its id")

    def _only(self, found: Sequence[Mapping[str, Any]], what: str, then: str) -> str:
        if len(found) != 1:
            raise self._cli.fail(f"{'no' if not found else 'more than one'} {what}; {then}")
        record_id: str = found[0]["id"]
        return record_id


def examples_of(*examples: str) -> str | None:
    """The end of a help text."""
    return _EXAMPLES + "\n".join(f"  {one}" for one in examples) if examples else None


def when(text: str) -> str:
    """A day or a moment as it was typed, as the API takes it. click.BadParameter."""
    if not text.strip():
        return ""
    try:
        return datetime.fromisoformat(text.strip()).isoformat()
    except ValueError:
        raise click.BadParameter('a time is 2026-11-23, "2026-11-23 10:30", or with an offset') from None


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a table's cell has of a value with parts."""
    plain = {name: _plain(value) for name, value in row.items() if type(value) is not int}
    return plain | {name: "yes" if value else "no" for name, value in row.items() if isinstance(value, bool)}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        # A moment as people write it; to the minute.
        return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*$", r"\1 \2", value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items() if one)
    if isinstance(value, (list, tuple)):
        return "\n".join(str(_plain(one)) for one in value)
    return value
