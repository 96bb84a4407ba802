"""``hounsfield export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_PARTIAL, Failed, complain, err, print_json, remark, size
from hounsfield.archive.errors import is_ours


@click.command(
    "export",
    epilog="""\b
Examples:
  hounsfield export 1.2.840.113619.2.1 --to ./out
  hounsfield export STUDY-UID/SERIES-UID --to ./out
  hounsfield ls --json | jq -r '.rows[].study["0020000D"]' | xargs hounsfield export --to ./out

Files are OUT/STUDY/SERIES/INSTANCE.dcm. A running server writes them itself, as its own user.""",
)
@click.argument("uids", nargs=-1, required=True, metavar="STUDY[/SERIES[/INSTANCE]]...")
@click.option(
    "--to",
    "target",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The directory to write in.",
)
@click.option("--as-received", is_flag=True, help="Without corrections: exactly the data sets that came.")
@click.option("--overwrite", is_flag=True, help="Write files that exist already again.")
@config_options
@json_option
def command(
    *,
    uids: tuple[str, ...],
    target: Path,
    overwrite: bool,
    as_received: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Write studies out as DICOM files (PS3.10), with the corrections that are in force.

    Exit code 4 when some could be written and some not.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from hounsfield.archive.app.opening import open_archive
    from hounsfield.archive.dicom.file_names import safe_name

    written = skipped = failed = total_bytes = 0
    with open_archive(effective_config(config_file, overrides, data)) as archive:
        found: list[dict[str, Any]] = []
        for path in uids:
            study, series, instance = (*path.split("/", 2), None, None)[:3]
            found += archive.call("instances", study=study, series=series, instance=instance)
        target = target.absolute()
        columns = (TextColumn("exporting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=err(), disable=not err().is_terminal, transient=True) as progress:
            for each in progress.track(found):
                folder = target / safe_name(each["study"]) / safe_name(each["series"])
                file = folder / f"{safe_name(each['instance'])}.dcm"
                if file.exists() and not overwrite:
                    skipped += 1
                    continue
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise Failed(f"cannot make {folder}: {error.strerror}") from error
                try:
                    total_bytes += archive.call(
                        "export-instance",
                        study=each["study"],
                        series=each["series"],
                        instance=each["instance"],
                        path=str(file),
                        as_received=as_received,
                    )
                    written += 1
                except Exception as error:
                    if not is_ours(error):
                        raise
                    failed += 1
                    complain(str(error))
    if as_json:
        print_json({"written": written, "skipped": skipped, "failed": failed, "bytes": total_bytes})
    else:
        beside = f", {skipped} there already" if skipped else ""
        lost = f", {failed} failed" if failed else ""
        remark(f"wrote {written} files ({size(total_bytes)}) to {target}{beside}{lost}")
    if failed:
        return EXIT_PARTIAL if written or skipped else 1
    return 0
