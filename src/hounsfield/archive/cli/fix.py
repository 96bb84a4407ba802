"""``hounsfield fix patient|study|merge|unmerge|move|split|list|revert|show``."""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_USAGE, Failed, ago, err, print_json, print_table, remark

STUDIES_SHOWN_MAX = 50
Command = TypeVar("Command", bound=Callable[..., Any])

_COUNTS = (("series", "series"), ("instances", "instances"))


@click.group("fix")
def command() -> None:
    """Correct what the archive shows. Nothing stored is changed, and everything can be taken back.

    A correction is seen in lists, queries, metadata and every object that is delivered, also in objects that
    come later. PATIENT is an id, or ID^^^ISSUER. Attributes are DICOM keywords or tags; KEY= empties one.
    """


def _fix_options(function: Command) -> Command:
    """What every correction takes."""
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing."),
        click.option("--by", "actor", metavar="NAME", help="Who corrects.  [default: your user name]"),
        click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept."),
    ):
        function = option(function)
    return config_options(json_option(function))


def _unknown_option(function: Command) -> Command:
    return click.option(
        "--even-if-unknown", is_flag=True, help="Also when nothing of the patient is here yet."
    )(function)


@command.command(
    "patient",
    epilog="""\b
Examples:
  hounsfield fix patient 4711 PatientName='Muster^Erika' --reason "misspelt"
  hounsfield fix patient 4711^^^CLINIC PatientID=4712 --reason "typing error" --dry-run""",
)
@click.argument("patient", metavar="PATIENT")
@click.argument("values", nargs=-1, required=True, metavar="KEY=VALUE...")
@_unknown_option
@_fix_options
def patient(*, patient: str, values: tuple[str, ...], even_if_unknown: bool, **how: Any) -> int:
    """Set or empty attributes of a patient, in all of the patient's studies."""
    return _make(
        how,
        kind="set-patient",
        patient=_patient(patient),
        values=_values(values),
        even_if_unknown=even_if_unknown,
    )


@command.command(
    "study",
    epilog="""\b
Examples:
  hounsfield fix study 1.2.840.1 AccessionNumber=A77 --reason "wrong order" --dry-run
  hounsfield fix study 1.2.840.1 PatientID=4712 PatientName='Muster^Erika' --reason "wrong worklist" """,
)
@click.argument("study", metavar="STUDY-UID")
@click.argument("values", nargs=-1, required=True, metavar="KEY=VALUE...")
@_fix_options
def study(*, study: str, values: tuple[str, ...], **how: Any) -> int:
    """Set or empty attributes of one study, its patient's included."""
    return _make(how, kind="set-study", study=study, values=_values(values))


@command.command(
    "merge",
    epilog="""\b
Example:
  hounsfield fix merge 4711 --into 0815^^^CLINIC --reason "registered twice" --dry-run""",
)
@click.argument("patient", metavar="PATIENT")
@click.option("--into", "into", required=True, metavar="PATIENT", help="Who the studies belong to.")
@_unknown_option
@_fix_options
def merge(*, patient: str, into: str, even_if_unknown: bool, **how: Any) -> int:
    """Show every study of a patient, present and future, as another patient's."""
    return _make(
        how,
        kind="merge",
        patient=_patient(patient),
        to_patient=_patient(into),
        even_if_unknown=even_if_unknown,
    )


@command.command(
    "unmerge",
    epilog="""\b
Example:
  hounsfield fix unmerge 4711 --reason "two people after all" """,
)
@click.argument("patient", metavar="PATIENT")
@_fix_options
def unmerge(*, patient: str, **how: Any) -> int:
    """Take the merge of a patient back: what was the patient's is so again."""
    with _opened(how) as archive:
        number = archive.call("fix-merge-of", patient=_patient(patient))
        return _revert(archive, number, how)


@command.command(
    "move",
    epilog="""\b
Examples:
  hounsfield fix move 1.2.840.1 --to-patient 4711 --reason "wrong patient chosen" --dry-run
  hounsfield fix move 1.2.840.1/1.2.840.1.2 --to-study 1.2.840.9 --reason "wrong worklist entry" """,
)
@click.argument("what", metavar="STUDY-UID[/SERIES-UID]")
@click.option("--to-patient", metavar="PATIENT", help="The patient whose study it is.")
@click.option(
    "--to-study", metavar="UID", help="The study that the series belongs to; a new one may be named."
)
@click.option(
    "--attribute", "values", multiple=True, metavar="KEY=VALUE", help="Of a patient or study not here yet."
)
@_unknown_option
@_fix_options
def move(
    *,
    what: str,
    to_patient: str | None,
    to_study: str | None,
    values: tuple[str, ...],
    even_if_unknown: bool,
    **how: Any,
) -> int:
    """Move a study to another patient, or a series to another study."""
    study, _, series = what.partition("/")
    if bool(series) != bool(to_study) or bool(series) == bool(to_patient):
        raise Failed("write STUDY --to-patient PATIENT, or STUDY/SERIES --to-study UID", EXIT_USAGE)
    asked: dict[str, Any] = {"study": study, "values": _values(values), "even_if_unknown": even_if_unknown}
    if series:
        return _make(how, kind="move-series", series=[series], to_study=to_study, **asked)
    return _make(how, kind="move-study", to_patient=_patient(to_patient or ""), **asked)


@command.command(
    "split",
    epilog="""\b
Examples:
  hounsfield fix split 1.2.840.1 --series 1.2.840.1.2 --reason "two examinations" --dry-run
  hounsfield fix split 1.2.840.1 --instance 1.2.840.1.2.3 AccessionNumber=A78 --reason "second patient" """,
)
@click.argument("study", metavar="STUDY-UID")
@click.argument("values", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--series", "series", multiple=True, metavar="UID", help="A series that goes. Repeatable.")
@click.option(
    "--instance", "instances", multiple=True, metavar="UID", help="An instance that goes. Repeatable."
)
@click.option("--to-study", default="", metavar="UID", help="Where they go.  [default: a new study]")
@_fix_options
def split(
    *,
    study: str,
    values: tuple[str, ...],
    series: tuple[str, ...],
    instances: tuple[str, ...],
    to_study: str,
    **how: Any,
) -> int:
    """Make a study of its own of some series or instances; instances get new series.

    KEY=VALUE sets attributes of the new study, where they differ from the old one's.
    """
    return _make(
        how,
        kind="split",
        study=study,
        series=list(series),
        instances=list(instances),
        to_study=to_study,
        values=_values(values),
    )


@command.command(
    "list",
    epilog="""\b
Examples:
  hounsfield fix list
  hounsfield fix list --all --json""",
)
@click.option("--all", "all_", is_flag=True, help="Also those that were taken back.")
@config_options
@json_option
def list_(*, all_: bool, as_json: bool, **how: Any) -> int:
    """List the corrections that are in force, oldest first."""
    with _opened(how) as archive:
        rows = [row for row in archive.call("fix-list") if all_ or row["in_force"]]
    if as_json:
        print_json(rows)
        return 0
    print_table(
        ["id", "kind", "of", "made", "by", "reason", "in force"],
        [
            (
                row["id"],
                row["kind"],
                _of(row),
                f"{ago(time.time() - row['at_ns'] / 1e9)} ago",
                row["actor"],
                row["reason"],
                "yes" if row["in_force"] else "taken back",
            )
            for row in rows
        ],
        right=["id"],
    )
    return 0


@command.command(
    "show",
    epilog="""\b
Example:
  hounsfield fix show 12 --json""",
)
@click.argument("number", type=click.IntRange(1), metavar="ID")
@config_options
@json_option
def show(*, number: int, as_json: bool, **how: Any) -> int:
    """Show one correction: what it sets or moves, who made it, when and why."""
    with _opened(how) as archive:
        row = archive.call("fix-show", number=number)
    if as_json:
        print_json(row)
        return 0
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["at_ns"] / 1e9))
    lines: list[tuple[str, object]] = [
        ("correction", f"{row['id']}, {row['kind']}"), ("of", _of(row)),
        ("made", f"{moment} by {row['actor']}"),
        ("reason", row["reason"]), ("patient then", _patient_text(row["to_patient"])),
        ("study then", row["to_study"]),
        *(("series", f"{old} → {new}" if old != new else old) for old, new in row["series"].items()),
        *(("instance", uid) for uid in row["instances"]),
        *((_keyword(tag), text or "(emptied)") for tag, text in row["values"].items()),
    ]  # fmt: skip
    if not row["in_force"]:
        lines.append(("taken back", f"by {row['reverted_by']}: {row['reverted_because']}"))
    print_table(["what", "value"], [line for line in lines if line[1]])
    return 0


@command.command(
    "revert",
    epilog="""\b
Example:
  hounsfield fix revert 12 --reason "it was right" --dry-run""",
)
@click.argument("number", type=click.IntRange(1), metavar="ID")
@_fix_options
def revert(*, number: int, **how: Any) -> int:
    """Take a correction back: everything is as if it had never been made, later corrections remain."""
    with _opened(how) as archive:
        return _revert(archive, number, how)


# ---------------------------------------------------------------- doing it


def _opened(how: dict[str, Any]) -> Any:
    from hounsfield.archive.app.opening import open_archive

    return open_archive(effective_config(how["config_file"], how["overrides"], how["data"]))


def _make(how: dict[str, Any], **asked: Any) -> int:
    asked |= {"actor": how["actor"] or getpass.getuser(), "reason": how["reason"]}
    with _opened(how) as archive:
        looked = archive.call("fix-look", **asked)
        if not _agreed(looked, how):
            return 0
        made = _while_busy(lambda: archive.call("fix-make", **asked))
    return _done(made, looked, how, "is in force; `hounsfield fix revert {id}` takes it back")


def _revert(archive: Any, number: int, how: dict[str, Any]) -> int:
    asked = {"number": number, "actor": how["actor"] or getpass.getuser(), "reason": how["reason"]}
    looked = archive.call("fix-look-revert", **asked)
    if not _agreed(looked, how):
        return 0
    made = _while_busy(lambda: archive.call("fix-revert", **asked))
    return _done(made, looked, how, "is taken back")


def _while_busy(work: Callable[[], Any]) -> Any:
    with err().status("correcting: it is safe already, the studies follow one by one"):
        return work()


def _agreed(looked: dict[str, Any], how: dict[str, Any]) -> bool:
    """Show what would change; whether it is to be done."""
    if how["dry_run"]:
        if how["as_json"]:
            print_json(looked)
        else:
            _show_changes(looked)
            remark(f"would change {_counted(looked)}; nothing was changed")
        return False
    if how["yes"]:
        return True
    if not sys.stdin.isatty():
        raise Failed(
            "not asked because this is no terminal: say --yes, or look first with --dry-run", EXIT_USAGE
        )
    _show_changes(looked)
    return click.confirm(f"Change {_counted(looked)}?", err=True)


def _done(made: dict[str, Any], looked: dict[str, Any], how: dict[str, Any], words: str) -> int:
    if how["as_json"]:
        print_json({**made, **{name: looked[name] for name in ("studies", "series", "instances")}})
    else:
        remark(f"correction {made['id']} {words.format(**made)}; {_counted(looked)}")
    return 0


def _counted(looked: dict[str, Any]) -> str:
    studies, series, instances = looked["studies"], looked["series"], looked["instances"]
    return f"{studies} studies with {series} series and {instances} instances"


def _show_changes(looked: dict[str, Any]) -> None:
    """The table before → after: for each study what differs."""
    table: list[tuple[object, ...]] = []
    for change in looked["changes"][:STUDIES_SHOWN_MAX]:
        before, after = change["before"] or {}, change["after"] or {}
        lines: list[tuple[str, str, str]] = []
        if not before or not after:
            lines.append(("study", "there" if before else "not there", "there" if after else "gone"))
        for name, title in _COUNTS:
            if before.get(name) != after.get(name):
                lines.append((title, str(before.get(name, "")), str(after.get(name, ""))))
        old, new = before.get("attributes", {}), after.get("attributes", {})
        lines += [
            (_keyword(tag), _shown(old.get(tag)), _shown(new.get(tag)))
            for tag in sorted({*old, *new} if after else ())
            if old.get(tag) != new.get(tag) and tag != "0020000D"
        ]
        table += [(change["study"] if n == 0 else "", *line) for n, line in enumerate(lines)]
    print_table(["study", "attribute", "before", "after"], table)
    left = len(looked["changes"]) - STUDIES_SHOWN_MAX
    if left > 0:
        remark(f"and {left} more studies")


def _shown(text: str | None) -> str:
    """A value safe to show on a terminal: what a stranger stored must not steer it."""
    if text is None:
        return "(none)"
    return "".join(c if c.isprintable() else " " for c in text) or "(empty)"


def _of(row: dict[str, Any]) -> str:
    return str(row["study"] or _patient_text(row["patient"]))


def _patient(text: str) -> list[str]:
    """``ID`` or ``ID^^^ISSUER``, as HL7 writes it (CX)."""
    number, _, issuer = text.partition("^^^")
    return [number.strip(), issuer.strip()]


def _patient_text(patient: list[str]) -> str:
    return "^^^".join(part for part in patient if part)


def _keyword(tag: str) -> str:
    from hounsfield.archive.dicom.dictionary import KEYWORD_OF

    return KEYWORD_OF.get(int(tag, 16), tag)


def _values(words: tuple[str, ...]) -> dict[str, str]:
    """``KEY=VALUE`` words as texts by tag. Raises Failed for what is none."""
    from hounsfield.archive.dicom.dictionary import TAG_OF

    values: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        tag = TAG_OF.get(name)
        if tag is None and len(name) == 8 and all(c in "0123456789abcdefABCDEF" for c in name):
            tag = int(name, 16)
        if not equals or tag is None:
            raise Failed(f"{name!r}: write KEYWORD=VALUE, for example AccessionNumber=A77", EXIT_USAGE)
        values[f"{tag:08X}"] = text
    return values
