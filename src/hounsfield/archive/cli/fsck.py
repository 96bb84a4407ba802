"""``hounsfield fsck``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_FAILED, EXIT_PARTIAL, err, print_json, print_table, remark


@click.command(
    "fsck",
    epilog="""\b
Examples:
  hounsfield fsck --data ./archive
  hounsfield fsck --quick
  hounsfield fsck --json | jq '.findings[] | select(.severity == "loss")'""",
)
@click.option("--quick", is_flag=True, help="Do not open every seal and every gram: minutes, not hours.")
@config_options
@json_option
def command(
    *, quick: bool, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Check everything: keys, segments, ledger, index, and that they agree. Stop the server first.

    Changes nothing. Says what is wrong, how bad it is, and which command repairs it: "loss" is something
    stored that cannot be read here any more, "index" something that a command makes right, "note" worth
    knowing. Exit code 0: nothing but notes; 4: the index is wrong; 1: something is lost or damaged.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from hounsfield.archive.app.fsck import fsck
    from hounsfield.archive.index.checking import Severity

    config = effective_config(config_file, overrides, data)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=err(), disable=not err().is_terminal, transient=True) as bar:
        task = bar.add_task("opening", total=None)
        report = fsck(
            config,
            quick=quick,
            progress=lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total or None
            ),
        )
    if as_json:
        print_json({"quick": quick, "findings": [asdict(finding) for finding in report.findings]})
    elif report.findings:
        print_table(
            ["how bad", "what", "count", "for example", "repair"],
            [
                (f.severity, f.what, f.count, f.examples[0] if f.examples else "", f.repair)
                for f in report.findings
            ],
            right=["count"],
        )
    if not as_json and report.worst in {None, Severity.NOTE}:
        remark("nothing is wrong")
    if report.worst is Severity.LOSS:
        return EXIT_FAILED
    return EXIT_PARTIAL if report.worst is Severity.INDEX else 0
