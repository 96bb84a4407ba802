"""How every command speaks: tables for people, JSON for programs, one clear line for an error."""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from hounsfield.archive.errors import ConfigError, NoServerError, alone, is_ours

if TYPE_CHECKING:
    from rich.console import Console

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_PARTIAL = 4
EXIT_INTERRUPTED = 130

# A pipe has no width: a table for another program is not folded.
_PIPE_COLUMNS = 4096


# rich is imported by what draws with it: half of a command's start is its, and `status --json` draws nothing.
@cache
def out() -> Console:
    """Standard output, for what is drawn there."""
    from rich.console import Console

    return Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)


@cache
def err() -> Console:
    """Standard error, for progress bars."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False)


class Failed(Exception):  # noqa: N818 - the outcome of a command, not a fault of the program
    """A command did not do what it was asked; the text says why and what to do, ``code`` is the exit code."""

    def __init__(self, message: str, code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.code = code


class NobodyReadsError(Exception):
    """Who reads what a command writes has enough: ``hounsfield ls | head``."""


@contextmanager
def telling_pipes() -> Iterator[None]:
    """Of a pipe that broke, whose it was: nobody reads standard output any more, or a connection broke off.

    Left to click both are a failure without a word.
    """
    try:
        yield
    except BrokenPipeError as error:
        watched = select.poll()
        watched.register(sys.stdout.fileno(), 0)
        if not watched.poll(0):
            raise Failed("a connection broke off; try again") from error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would fail once more
        raise NobodyReadsError from None


def run(group: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. Errors become one line, faults of ours keep their traceback."""
    try:
        result = group.main(arguments, prog_name="hounsfield", standalone_mode=False)
    except NobodyReadsError:
        return 0
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except Failed as error:
        complain(str(error))
        return error.code
    except Exception as error:
        error_alone = alone(error)
        code = _code_of(error_alone)
        if code is None:
            raise
        complain(str(error_alone))
        return code
    return result if isinstance(result, int) else 0


def _code_of(error: BaseException) -> int | None:
    """The exit code of an error that speaks for itself; None for a fault in the program."""
    if isinstance(error, ConfigError) or getattr(error, "mistaken", False) is True:
        return EXIT_USAGE
    if isinstance(error, NoServerError):
        return EXIT_UNREACHABLE
    return EXIT_FAILED if is_ours(error) else None  # a fault keeps its traceback


def complain(message: str) -> None:
    """One line on standard error."""
    colour = False if os.environ.get("NO_COLOR") else None  # None: when it is a terminal
    click.echo(f"{click.style('error', fg='red', bold=True)}: {message}", err=True, color=colour)


def remark(message: str) -> None:
    """A line for people, on standard error, so that standard output stays what a program reads."""
    click.echo(message, err=True)


def print_json(value: Any) -> None:
    """``value`` as JSON: indented for a person, on one line for a pipe."""
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "", right: Sequence[str] = ()
) -> None:
    """A table with ``columns``; those in ``right`` are set to the right. An empty table says so.

    What strangers wrote, as the reason of a hold or a pin, does not steer the terminal.
    """
    if not rows:
        remark("nothing to show")
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None, box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape("" if cell is None else _cell(str(cell))) for cell in row))
    out().print(table)


def _cell(text: str) -> str:
    return text if text.isprintable() else "\n".join(printable(line) for line in text.split("\n"))


def ago(seconds: float) -> str:
    """A duration as people say it: ``4 s``, ``3 min``, ``2 h``, ``5 d``."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def printable(text: str) -> str:
    """What a stranger said, safe for a terminal: it must not steer it."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def size(count: float) -> str:
    """A number of bytes as people say it, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
