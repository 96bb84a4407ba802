"""``hounsfield ris …``: the front desk and the engine room of the RIS on the command line.

Commands are thin: each asks for one endpoint of ``/ris/api`` (with a running server or in place) and shows
what it answers; so the same rules hold, and the same things are noted. Who uses them acts as an administrator
and a clerk, under the name ``local:USER``. Reading and signing need a person's own token.
"""

from __future__ import annotations

import click

from hounsfield.archive.plugins import CommandLine

__all__ = ["command"]


def command(cli: CommandLine) -> click.Command:
    """The whole command."""
    from hounsfield.ris_plugin.cli import (
        catalog,
        events,
        files,
        messages,
        mismatches,
        numbers,
        orders,
        patients,
        reports,
        schedule,
        templates,
    )

    @click.group(
        epilog="""\b
Examples:
  hounsfield ris patients search doe
  hounsfield ris orders list --state placed
  hounsfield ris schedule day --on 2026-11-23"""
    )
    def ris() -> None:
        """The radiology information system: patients, orders, schedule, worklist, reports, HL7.

        You act as an administrator and a clerk, under the name local:USER. What needs a physician's or a
        technologist's name (protocols, reports) is done over /ris/api with that person's token.
        """

    modules = (
        patients, orders, schedule, reports, templates, mismatches, messages, events, catalog, files, numbers,
    )  # fmt: skip
    for module in modules:
        for one in module.commands(cli):
            ris.add_command(one)
    return ris
