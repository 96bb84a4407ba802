"""``hounsfield ris skip-numbers``: after a restore of an older backup."""

from __future__ import annotations

import getpass
from typing import Any

import click

from hounsfield.archive.plugins import CommandLine
from hounsfield.ris_plugin.cli.asking import Counter, examples_of
from hounsfield.ris_plugin.numbers import SKIPPED_MAX

__all__ = ["commands"]


def commands(cli: CommandLine) -> list[click.Command]:
    """Of numbers."""
    desk = Counter(cli)

    @click.command(
        "skip-numbers",
        epilog=examples_of("hounsfield ris skip-numbers 500"),
    )
    @click.argument("by", metavar="COUNT", type=click.IntRange(1, SKIPPED_MAX))
    @cli.options
    def skip_numbers(line: Any, by: int) -> None:
        """Leave out the next COUNT numbers of orders, patients, appointments, steps and reports.

        For an archive that was made again from an older backup, before anybody works with it: numbers that
        were given since the backup are known to others, and would be given again, to somebody else. Take more
        than were given; gaps do no harm.
        """
        reached = desk.operation(line, "skip-numbers", by=by, person=getpass.getuser())
        rows = [{"what": name, "next": number + 1} for name, number in reached.items()]
        desk.table(line, rows, {"what": "Numbers of", "next": "Next"}, reached)

    return [skip_numbers]
