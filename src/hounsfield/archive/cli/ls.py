"""``hounsfield ls``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_USAGE, Failed, print_json, print_table, remark

_PATIENT = [("patient", "00100010"), ("id", "00100020")]
_STUDY = [
    *_PATIENT,
    ("date", "00080020"),
    ("accession", "00080050"),
    ("modalities", "00080061"),
    ("description", "00081030"),
    ("series", "00201206"),
    ("instances", "00201208"),
]
_SERIES = [
    ("modality", "00080060"),
    ("number", "00200011"),
    ("description", "0008103E"),
    ("body part", "00180015"),
    ("instances", "00201209"),
]
_INSTANCE = [("number", "00200013"), ("SOP class", "00080016"), ("rows", "00280010"), ("columns", "00280011")]
_FRAMES = ("frames", "00280008")

# level → (the archive's level, whose attributes the columns are, columns, UIDs that --long adds)
_LEVELS: dict[str, tuple[str, str, list[tuple[str, str]], list[tuple[str, str, str]]]] = {
    "patients": ("patient", "study", [*_PATIENT, ("born", "00100030"), ("sex", "00100040")], []),
    "studies": ("study", "study", _STUDY, [("study UID", "study", "0020000D")]),
    "series": (
        "series",
        "series",
        _SERIES,
        [("series UID", "series", "0020000E"), ("study UID", "study", "0020000D")],
    ),
    "instances": (
        "instance",
        "instance",
        [*_INSTANCE, _FRAMES],
        [
            ("instance UID", "instance", "00080018"),
            ("series UID", "series", "0020000E"),
            ("study UID", "study", "0020000D"),
        ],
    ),
}
_RIGHT = ["series", "instances", "number", "rows", "columns", "frames"]


@click.command(
    "ls",
    epilog="""\b
Examples:
  hounsfield ls
  hounsfield ls PatientName='DOE*' StudyDate=20260101-20261231
  hounsfield ls series StudyInstanceUID=1.2.840.113619.2.1
  hounsfield ls instances Modality=CT --limit 20 --json

Keys are DICOM keywords or tags (00100010), matched as QIDO-RS does: * and ?,
dates as FROM-TO.""",
)
@click.argument("words", nargs=-1, metavar=f"[{'|'.join(_LEVELS)}] [KEY=VALUE]...")
@config_options
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Rows at most.")
@click.option("--offset", type=click.IntRange(0), default=0, help="Rows to skip.")
@click.option("--fuzzy", is_flag=True, help="Match names by the beginnings of their words.")
@click.option("-l", "--long", "long_", is_flag=True, help="Show UIDs too.")
@json_option
def command(
    *,
    words: tuple[str, ...],
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    limit: int,
    offset: int,
    fuzzy: bool,
    long_: bool,
    as_json: bool,
) -> int:
    """List patients, studies, series or instances of the local archive, newest study first.

    Asks the running server, or opens the archive itself when none runs.
    """
    from hounsfield.archive.app.opening import open_archive

    level, keys = (words[0], words[1:]) if words and words[0] in _LEVELS else ("studies", words)
    parameters: list[list[str]] = []
    for key in keys:
        name, equals, value = key.partition("=")
        if not equals or not name:
            what = f"write a level ({', '.join(_LEVELS)}), then conditions as KEY=VALUE, e.g. PatientID=4711"
            raise Failed(f"{key!r}: {what}", EXIT_USAGE)
        parameters.append([name, value])
    archive_level, of, columns, uids = _LEVELS[level]
    parameters += [["limit", str(limit)], ["offset", str(offset)]]
    # Ask for every column, so that none is empty because nobody asked.
    parameters += [["includefield", tag] for _, tag in columns]
    if fuzzy:
        parameters.append(["fuzzymatching", "true"])
    with open_archive(effective_config(config_file, overrides, data)) as archive:
        page: dict[str, Any] = archive.call("search", level=archive_level, parameters=parameters)
    for warning in page["warnings"]:
        remark(f"note: {warning}")
    if as_json:
        print_json({"rows": page["rows"], "more": page["more"]})
        return 0
    shown = [(title, of, tag) for title, tag in columns] + (uids if long_ else [])
    print_table(
        [title for title, _, _ in shown],
        [[_text(row.get(owner, {}).get(tag, "")) for _, owner, tag in shown] for row in page["rows"]],
        right=_RIGHT,
    )
    if page["more"]:
        remark(f"more than {limit}: --offset {offset + limit} shows the next")
    return 0


def _text(value: str) -> str:
    """A value safe to show on a terminal: what a stranger stored must not steer it."""
    return "".join(c if c.isprintable() else " " for c in value).replace("\\", ", ").rstrip("^ ")
