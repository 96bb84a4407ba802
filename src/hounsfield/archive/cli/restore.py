"""``hounsfield restore``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_PARTIAL, print_json, remark, size

if TYPE_CHECKING:
    from hounsfield.archive.engine.restore import RestoreReport


@click.command(
    "restore",
    epilog="""\b
Examples:
  hounsfield restore /mnt/backup --data /srv/new
  hounsfield restore /mnt/backup --data /srv/new --segments-from /srv/old --link
  hounsfield restore /mnt/backup --check
  hounsfield restore /mnt/backup --data /srv/new --reindex
  hounsfield restore /mnt/backup --data /srv/new --with-recovery-key < recovery-key.txt
  hounsfield restore --from-tier cold --data /srv/new""",
)
@click.argument("directory", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--from-tier",
    metavar="NAME",
    help="There is no backup: bring back what the tiers hold, with the root key that lies in this one.",
)
@click.option("--snapshot", default="", metavar="NAME", help="Which one.  [default: the newest]")
@click.option(
    "--segments-from",
    type=click.Path(path_type=Path, file_okay=False),
    help="A directory with segments/ and ledger/ (and keys/): the old data directory, or a copy.",
)
@click.option("--link", is_flag=True, help="Do not copy segments on the same disk: give them a second name.")
@click.option(
    "--reindex",
    is_flag=True,
    help="Do not take the snapshot's index: make it anew from the segments, as when it is damaged.",
)
@click.option(
    "--with-recovery-key",
    is_flag=True,
    help="The master key is lost: open with the recovery key, read from the terminal or a pipe.",
)
@click.option(
    "--without-tier",
    "without",
    multiple=True,
    metavar="NAME",
    help="Go on although this tier does not answer, or bears no mark and may have been used. Repeatable.",
)
@click.option("--check", is_flag=True, help="Only compare the snapshot with its digests; restore nothing.")
@config_options
@json_option
def command(
    *,
    directory: Path | None,
    from_tier: str | None,
    snapshot: str,
    segments_from: Path | None,
    link: bool,
    reindex: bool,
    with_recovery_key: bool,
    without: tuple[str, ...],
    check: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Make an archive again from a backup, in the empty data directory that --data names.

    Segments come from the backup, or from --segments-from when they survived elsewhere: then everything
    acknowledged after the backup is there too. What was deleted since stays deleted, by the ledger. Nothing
    is overwritten, and an interrupted restore goes on where it was. Exit code 4: restored, but objects that
    the index names are in no segment.

    An index that another release wrote is not taken, but made anew from segments and ledger: with many
    objects that takes long, `hounsfield restore --check` says so before. Segments that are not there cannot
    be told then from those that compaction has removed: exit code 4, too.

    With --from-tier, for when the data directory and all backups are lost: objects that lie in tiers are back
    as they were received. Those that were in no tier are not, nor corrections, rejections, legal holds and
    deletions: they were in the ledger.
    """
    from hounsfield.archive.app import backup
    from hounsfield.archive.cli.backup import bar, shown_on
    from hounsfield.archive.cli.keys import ask_recovery_key

    if (directory is None) == (from_tier is None):
        raise click.UsageError("name a directory of backups, or a tier with --from-tier")
    config = effective_config(config_file, overrides, data)
    recovery = ask_recovery_key() if with_recovery_key else None
    if from_tier is not None:
        if snapshot or segments_from or link or reindex or check:
            raise click.UsageError("--from-tier goes with --without-tier and --with-recovery-key only")
        with bar() as shown:
            report = backup.restore_from_tier(
                config, from_tier, recovery=recovery, without_tiers=without, progress=shown_on(shown)
            )
        return _shown_of_tiers(report, from_tier, as_json=as_json)
    assert directory is not None
    opened = backup.open_restore(
        config, directory, snapshot=snapshot, segments_from=segments_from, recovery=recovery
    )
    with bar() as shown:
        if check:
            opened.check(shown_on(shown), index=not reindex)
        else:
            report = backup.restore(
                config,
                opened,
                link=link,
                reindex=reindex,
                progress=shown_on(shown),
                without_tiers=without,
            )
    if check:
        absent = [entry.name for entry in opened.absent()]
        anew = reindex or opened.index_of_another_release
        if as_json:
            print_json({
                "snapshot": opened.snapshot, "whole": True, "absent_segments": absent, "index_made_anew": anew
            })  # fmt: skip
        else:
            what = " but for its index, which was not looked at," if reindex else ""
            remark(f"snapshot {opened.snapshot} of {opened.manifest.made_at}{what} is as it was written")
            if anew and not reindex:
                remark("its index was written by another release: a restore makes it anew from the segments")
            if absent:
                remark(f"{len(absent)} segments that it names are not there, or shorter")
        return EXIT_PARTIAL if absent else 0
    if as_json:
        print_json(_plain(report))
    else:
        remark(
            f"restored snapshot {report.snapshot}: index {size(report.index_bytes)}, {report.keys} keys, "
            f"{report.segments} segments ({size(report.segment_bytes)})"
        )
        if report.index_made_anew:
            remark(
                f"the index was made anew: {report.recovery.records} objects of {report.recovery.segments} "
                f"segments, and {report.recovery.facts} facts"
            )
            for reason, count in report.recovery.damage.items():
                remark(f"damage: {count} × {reason}")
            if report.absent:
                remark(
                    f"{len(report.absent)} segments that the snapshot names are not here, or shorter: what "
                    "they held and compaction had not moved elsewhere is missing"
                )
        else:
            remark(
                f"newer than the snapshot: {report.recovery.records} objects looked at, "
                f"{report.recovery.facts} facts replayed, {report.moved} objects found where they were "
                "moved to"
            )
        if report.packs_corrected or report.recovery.far_packs:
            remark(
                f"{report.packs_corrected} packs lie in other tiers than they did, and "
                f"{report.recovery.far_packs} that lie only in other tiers are newer than the index"
            )
        _tell_unused(report)
        if report.lost:
            remark(f"{report.lost} objects of the index are in no segment that is here: `hounsfield fsck`")
        if report.recovery.unreadable_segments:
            remark(
                f"{report.recovery.unreadable_segments} segments have no key: find the keys/ they belong to"
            )
    missing = report.lost or (report.index_made_anew and (report.absent or report.recovery.damaged))
    return EXIT_PARTIAL if missing or report.recovery.unreadable_segments else 0


def _plain(report: RestoreReport) -> dict[str, Any]:
    found: dict[str, Any] = asdict(report)
    found["recovery"]["outcomes"] = {o.value: n for o, n in report.recovery.outcomes.items()}
    return found


def _tell_unused(report: RestoreReport) -> None:
    for name in report.unused_tiers:
        remark(f"tier {name} bears no mark: nothing was ever put there, as the others or the index say")


def _shown_of_tiers(report: RestoreReport, name: str, *, as_json: bool) -> int:
    recovery = report.recovery
    if as_json:
        print_json(_plain(report))
    else:
        remark(
            f"{recovery.records} objects of {recovery.far_packs} packs are back, from the keys in tier {name}"
        )
        remark("what was in no tier is not, nor corrections, rejections, holds and deletions")
        _tell_unused(report)
        for reason, count in recovery.damage.items():
            remark(f"damage: {count} × {reason}")
        if recovery.unreadable_segments:
            remark(f"{recovery.unreadable_segments} packs have no key in any tier, and are not back")
    return EXIT_PARTIAL if recovery.damaged or recovery.unreadable_segments else 0
