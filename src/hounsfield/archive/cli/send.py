"""``hounsfield send``."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hounsfield.archive.cli.conversation import limits_for
from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import (
    EXIT_FAILED,
    EXIT_PARTIAL,
    EXIT_UNREACHABLE,
    err,
    print_json,
    print_table,
    remark,
    size,
)
from hounsfield.archive.cli.remote import remote_options, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress

    from hounsfield.archive.net.scu import RemoteEntity, ScuLimits
    from hounsfield.archive.net.send import SendPlan, SendReport, SendResult
    from hounsfield.archive.net.survey import Sendable, Unsendable

ROWS_MAX = 40  # of files that were not sent; all of them stand in --json


@click.command(
    "send",
    epilog="""\b
Examples:
  hounsfield send localhost:11112 study/
  hounsfield send PACS@192.0.2.10:104 DICOMDIR --associations 4
  hounsfield send WORKSTATION *.dcm --json | jq .files""",
)
@click.argument("target")
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True),
    metavar="FILE|DIR|DICOMDIR...",
)
@click.option(
    "--associations",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="Send over so many at once.",
)
@click.option(
    "--window",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Objects to have outstanding on each, where the other side agrees; 1 does not propose it.",
)
@click.option(
    "--retries",
    type=click.IntRange(0, 100),
    default=3,
    show_default=True,
    help="Further attempts where they can help: a lost connection, out of resources.",
)
@remote_options
@config_options
@json_option
def command(
    *,
    target: str,
    paths: tuple[Path, ...],
    associations: int,
    window: int,
    retries: int,
    timeout: float,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
    **remote_words: Any,
) -> int:
    """Send DICOM files to an application entity (C-STORE), byte for byte as they are.

    TARGET is [AE@]HOST:PORT, or the title of an AE in config.toml or from `hounsfield ae add`. Without AE@
    the other side is called by our own title (archive.ae_title). Folders are searched, a DICOMDIR stands
    for the files it lists. Files that are no DICOM objects are listed and left out.

    Exit codes: 0 all objects are there, 4 some are not, 1 none is, 3 nobody answers.
    """
    import trio

    from hounsfield.archive.net.send import SendPlan
    from hounsfield.archive.net.survey import survey

    remote = resolve(target, effective_config(config_file, overrides, data), **remote_words)
    found = list(survey(paths))
    plan = SendPlan(associations=associations, window=window, retries=retries)
    shown = None if as_json or not err().is_terminal else _progress()
    with shown or nullcontext():
        report = trio.run(_send, remote, found, plan, limits_for(timeout), shown)
    _show(remote, report, as_json)
    return _exit_code(report)


def _progress() -> Progress:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]}/{task.fields[files]} files"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=err(),
        transient=True,
    )


async def _send(
    remote: RemoteEntity,
    found: Sequence[Sendable | Unsendable],
    plan: SendPlan,
    limits: ScuLimits,
    progress: Progress | None,
) -> SendReport:
    from hounsfield.archive.net.send import Outcome, Sender
    from hounsfield.archive.net.survey import Sendable

    on_result = _ignore
    if progress is not None:
        sizes = [one.size for one in found if isinstance(one, Sendable)]
        task = progress.add_task(f"to {remote}", total=sum(sizes), files=len(sizes), done=0)
        done = count(1)

        def on_result(result: SendResult) -> None:
            if result.outcome is not Outcome.UNSENDABLE:
                progress.update(task, advance=result.size, done=next(done))

    return await Sender(remote, plan, limits, on_result).send(found)


def _ignore(result: SendResult) -> None:
    del result


def _show(remote: RemoteEntity, report: SendReport, as_json: bool) -> None:
    from hounsfield.archive.net.send import Outcome

    counts = {outcome.value: report.count(outcome) for outcome in Outcome}
    if as_json:
        print_json(
            {
                "target": str(remote),
                "seconds": round(report.seconds, 3),
                "bytes": report.bytes_sent,
                "counts": counts,
                "files": [
                    {
                        "path": str(result.path),
                        "outcome": result.outcome.value,
                        "bytes": result.size,
                        "status": None if result.status is None else f"{result.status:04X}",
                        "reason": result.reason,
                        "attempts": result.attempts,
                        "retry": result.retry,
                    }
                    for result in report.results
                ],
            }
        )
        return
    rest = [result for result in report.results if result.outcome is not Outcome.SENT]
    if rest:
        print_table(
            ["file", "outcome", "why"],
            [(result.path, result.outcome.value, result.reason) for result in rest[:ROWS_MAX]],
        )
        if len(rest) > ROWS_MAX:
            remark(f"… and {len(rest) - ROWS_MAX} more; --json lists all")
    rate = report.bytes_sent / report.seconds if report.seconds else 0.0
    words = ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "nothing to send"
    remark(f"{remote}: {words}; {size(report.bytes_sent)} in {report.seconds:.1f} s ({size(rate)}/s)")


def _exit_code(report: SendReport) -> int:
    from hounsfield.archive.net.send import Outcome

    there = report.count(Outcome.SENT) + report.count(Outcome.WARNED)
    failed = [result for result in report.results if result.outcome is Outcome.FAILED]
    if not failed:
        return 0 if there else EXIT_FAILED
    if there:
        return EXIT_PARTIAL
    return EXIT_UNREACHABLE if all(r.status is None and r.retry for r in failed) else EXIT_FAILED
