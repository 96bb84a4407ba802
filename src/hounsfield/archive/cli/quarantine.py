"""``hounsfield quarantine list|show|export``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import (
    EXIT_PARTIAL,
    Failed,
    ago,
    complain,
    err,
    print_json,
    print_table,
    remark,
    size,
)
from hounsfield.archive.errors import is_ours

KINDS = ("quarantined", "damaged", "conflict", "spoilt")


@click.group("quarantine")
def command() -> None:
    """Objects that somebody should look at: kept, but not as others are.

    \b
    quarantined  without a usable UID: stored, in no study
    damaged      stored bytes do not open any more (found by the scrub)
    conflict     other content came under the same UIDs; this one is kept, the other served
    spoilt       served, but not whole when it came: truncated, empty, unreadable pixel data
    """


def _identify(function: Any) -> Any:
    return click.option(
        "--identify", is_flag=True, help="Show UIDs (and with show: attributes). They name a patient's study."
    )(function)


@command.command(
    "list",
    epilog="""\b
Examples:
  hounsfield quarantine list
  hounsfield quarantine list --kind damaged --kind conflict --json
  hounsfield quarantine list --identify""",
)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only these.  [default: all]")
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="Objects at most.")
@_identify
@config_options
@json_option
def list_(
    *,
    kinds: tuple[str, ...],
    limit: int,
    identify: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """List them, by record id. No name or UID is shown unless asked for.

    For those that are spoilt every row of the index is looked at: about half a minute per million.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from hounsfield.archive.app.opening import open_archive

    found: list[dict[str, Any]] = []
    more = False
    with (
        open_archive(effective_config(config_file, overrides, data)) as archive,
        Progress(
            SpinnerColumn(), TextColumn("{task.description}"), console=err(), disable=not err().is_terminal,
            transient=True,
        ) as bar,
    ):  # fmt: skip
        task = bar.add_task("looking")
        for page in _pages(archive, kinds or KINDS, identify):
            found += page
            bar.update(task, description=f"looking; {len(found)} found")
            if len(found) > limit:
                more = True
                found = found[:limit]
                break
    if as_json:
        print_json({"objects": found, "more": more})
        return 0
    now = time.time()
    extra = ["study UID", "series UID", "instance UID"] if identify else []
    print_table(
        ["kind", "record", "reasons", "SOP class", "received", *extra],
        [
            (
                one["kind"],
                one["record"],
                ", ".join(one["reasons"]),
                one["sop_class"],
                f"{ago(now - one['received'])} ago",
                *((one["study"], one["series"], one["instance"]) if identify else ()),
            )
            for one in found
        ],
    )
    if more:
        remark(f"there are more than {limit}: --limit shows them")
    return 0


def _pages(archive: Any, kinds: tuple[str, ...], identify: bool) -> Iterator[list[dict[str, Any]]]:
    for kind in kinds:
        after: str | None = ""
        while after is not None:
            page = archive.call("quarantine-page", kind=kind, after=after, identify=identify)
            yield page["objects"]
            after = page["after"]


@command.command(
    "show",
    epilog="""\b
Examples:
  hounsfield quarantine show 4be2c1d09a7f4c1e8d3b5a6978f0e1d2
  hounsfield quarantine show 4be2c1d09a7f4c1e8d3b5a6978f0e1d2 --identify""",
)
@click.argument("record")
@_identify
@config_options
@json_option
def show(
    *,
    record: str,
    identify: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Show where one object lies, what is wrong with it, and who sent it."""
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        found: dict[str, Any] = archive.call("quarantine-show", record=record, identify=identify)
    if as_json:
        print_json(found)
        return 0
    rows: list[tuple[str, object]] = []
    for name, value in found.items():
        if isinstance(value, dict):
            rows += [(f"{name} {key}", text) for key, text in value.items() if text]
        else:
            rows.append((name, ", ".join(value) if isinstance(value, list) else value))
    print_table(["", ""], rows)
    return 0


@command.command(
    "export",
    epilog="""\b
Examples:
  hounsfield quarantine export 4be2c1d09a7f4c1e8d3b5a6978f0e1d2 --to ./out
  hounsfield quarantine export 4be2c1d09a7f4c1e8d3b5a6978f0e1d2 --to ./out --raw""",
)
@click.argument("records", nargs=-1, required=True, metavar="RECORD...")
@click.option(
    "--to", "target", required=True, type=click.Path(path_type=Path, file_okay=False), help="Where to."
)
@click.option("--raw", is_flag=True, help="Only the bytes received, without a DICOM file's header.")
@config_options
@json_option
def export(
    *,
    records: tuple[str, ...],
    target: Path,
    raw: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Write objects out as files, named by their record ids, each data set exactly as it was received.

    Exit code 4 when some could be written and some not.
    """
    from hounsfield.archive.app.opening import open_archive

    target = target.absolute()
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(f"cannot make {target}: {error.strerror}") from error
    written = failed = total = 0
    with open_archive(effective_config(config_file, overrides, data)) as archive:
        for record in records:
            file = target / f"{record}{'.bin' if raw else '.dcm'}"
            try:
                total += archive.call("quarantine-export", record=record, path=str(file), raw=raw)
                written += 1
            except Exception as error:
                if not is_ours(error):
                    raise
                failed += 1
                complain(str(error))
    if as_json:
        print_json({"written": written, "failed": failed, "bytes": total})
    else:
        remark(f"wrote {written} files ({size(total)}) to {target}{f', {failed} failed' if failed else ''}")
    if failed:
        return EXIT_PARTIAL if written else 1
    return 0
