"""``hounsfield reindex``."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_PARTIAL, err, print_json, remark


@click.command(
    "reindex",
    epilog="""\b
Examples:
  hounsfield reindex --data ./archive
  hounsfield reindex --data ./archive --keep-old
  hounsfield reindex --without-tier cold""",
)
@config_options
@click.option("--keep-old", is_flag=True, help="Keep the old index beside the new one.")
@click.option(
    "--rescan",
    is_flag=True,
    help="Read attributes from the objects' headers again, not from the rows stored beside them: "
    "for objects that an older release stored. Takes several times as long.",
)
@click.option(
    "--without-tier",
    "without",
    multiple=True,
    metavar="NAME",
    help="Go on although this tier does not answer, or was never used: what lies only there is missing then. "
    "Repeatable.",
)
@json_option
def command(
    *,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    keep_old: bool,
    rescan: bool,
    without: tuple[str, ...],
    as_json: bool,
) -> int:
    """Make the index anew from the stored objects and recorded facts. Stop the server first.

    The logs are the archive, the index is a view of them: nothing is lost by this. The old index is put aside
    until the new one is whole. Packs in other tiers are indexed by the lists of contents there. Exit code 4
    when some stored bytes are damaged: the report says how many.
    """
    from rich.progress import Progress

    from hounsfield.archive.app.offline import open_stores
    from hounsfield.archive.engine.stores import INDEX

    config = effective_config(config_file, overrides, data)
    index = Path(config.archive.data).expanduser().absolute() / INDEX
    # One that was killed left the index of before aside, and in its place the beginning of a new one.
    left = sorted(index.parent.glob(f"{INDEX}.aside-*"))
    aside = left[0] if left else index.with_name(f"{INDEX}.aside-{time.strftime('%Y%m%d-%H%M%S')}")

    def put_aside() -> None:
        if left:
            shutil.rmtree(index, ignore_errors=True)
        elif index.exists():
            index.rename(aside)

    try:
        with (
            open_stores(config, before=put_aside) as stores,
            Progress(console=err(), disable=not err().is_terminal, transient=True) as bar,
        ):
            far = stores.far_packs(without=without)
            task = bar.add_task("segments", total=None)
            report = stores.reindex(
                lambda done, total: bar.update(task, completed=done, total=total), rescan=rescan, far=far
            )
    except BaseException:
        if aside.exists():
            shutil.rmtree(index, ignore_errors=True)
            aside.rename(index)
        raise
    if aside.exists() and keep_old:
        aside.rename(aside.with_name(aside.name.replace(".aside-", ".old-")))
    elif aside.exists():
        shutil.rmtree(aside)
    if as_json:
        print_json(
            {
                "segments": report.segments,
                "far_packs": report.far_packs,
                "objects": sum(report.outcomes.values()),
                "outcomes": {outcome.name.lower(): count for outcome, count in report.outcomes.items()},
                "facts": report.facts,
                "damage": report.damage,
                "unreadable_segments": report.unreadable_segments,
            }
        )
    else:
        objects = sum(report.outcomes.values())
        segments = report.segments + report.far_packs
        remark(f"indexed {objects} objects of {segments} segments, and {report.facts} facts")
        if report.far_packs:
            remark(f"{report.far_packs} packs of them lie only in other tiers")
        for reason, count in report.damage.items():
            remark(f"damage: {count} × {reason}")
        if report.unreadable_segments:
            remark(
                f"{report.unreadable_segments} segments whose key is missing: restore keys/ and reindex again"
            )
    return EXIT_PARTIAL if report.damaged or report.unreadable_segments else 0
