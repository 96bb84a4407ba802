"""``hounsfield tier recall|pin|unpin|hold|history``: what is asked of single studies, and what was done."""

from __future__ import annotations

import getpass
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_USAGE, Failed, ago, print_json, print_table, remark, size


@click.command(
    "recall",
    epilog="""\b
Examples:
  hounsfield tier recall 1.2.840.113619.2.1
  hounsfield tier recall 1.2.840.113619.2.1 --series 1.2.840.113619.2.1.3""",
)
@click.argument("study", metavar="STUDY")
@click.option("--series", default="", metavar="UID", help="Only this series.")
@config_options
@json_option
def recall(
    *,
    study: str,
    series: str,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Bring a study back into the data directory, before somebody reads it.

    Whoever opens it need not: it is read from where it lies, and brought back then, where
    tiering.recall_when_opened says so. It stays for tiering.recalled_days at least; `hounsfield tier pin`
    keeps it.
    """
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        asked: dict[str, int] = archive.call("tier-recall", study=study, series=series)
        running = archive.running
    if as_json:
        print_json(asked)
    else:
        _say_brought(asked["series"], running=running)
    return 0


def _say_brought(series: int, *, running: bool) -> None:
    if not series:
        remark("all of it is in the data directory already")
        return
    when = "" if running else ", as soon as a server runs"
    remark(f"{series} series are brought back{when}; `hounsfield tier status` shows what waits")


@click.command(
    "pin",
    epilog="""\b
Examples:
  hounsfield tier pin 1.2.840.113619.2.1 --why "tumour board every month" --until 2027-06-30
  hounsfield tier pin --list
  hounsfield tier pin 1.2.840.113619.2.1 --remove""",
)
@click.argument("study", metavar="[STUDY]", default="", required=False)
@click.option("--why", default="", metavar="TEXT", help="Why it stays. It is kept for good.")
@click.option(
    "--until", type=click.DateTime(["%Y-%m-%d"]), help="The last day (UTC).  [default: until it is unpinned]"
)
@click.option("--list", "listed", is_flag=True, help="List what is pinned, by whom, why, and until when.")
@click.option("--remove", is_flag=True, help="As `hounsfield tier unpin`.")
@config_options
@json_option
def pin(
    *,
    study: str,
    why: str,
    until: datetime | None,
    listed: bool,
    remove: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Keep a study in the data directory, whatever the rules say, and bring it back if it is elsewhere.

    Also one that is not here yet. Copies that it has elsewhere stay, so that unpinning it moves nothing.
    """
    from hounsfield.archive.app.opening import open_archive

    if listed == bool(study):
        raise Failed("name a study to pin, or give --list", EXIT_USAGE)
    if study and not remove and not why.strip():
        raise Failed("say why it stays: --why TEXT", EXIT_USAGE)
    with open_archive(effective_config(config_file, overrides, data)) as archive:
        if listed:
            return _list_pins(archive.call("tier-pins"), as_json=as_json)
        if remove:
            archive.call("tier-unpin", study=study, by=getpass.getuser())
            return _say_unpinned(as_json=as_json)
        day_after = 0 if until is None else until.replace(tzinfo=UTC).timestamp() + 86_400
        done: dict[str, Any] = archive.call(
            "tier-pin", study=study, by=getpass.getuser(), why=why, until=day_after
        )
        running = archive.running
    if as_json:
        print_json(done)
        return 0
    remark("it is pinned; `hounsfield tier unpin` lets the rules decide again")
    if done["here"]:
        _say_brought(done["series"], running=running)
    else:
        remark("warning: there is no such study here now; unless it is to come, check the UID")
    return 0


def _list_pins(pins: list[dict[str, Any]], *, as_json: bool) -> int:
    if as_json:
        print_json(pins)
        return 0
    now = time.time()
    print_table(
        ["study", "by", "why", "since", "until"],
        [
            (one["study"], one["by"], one["why"], f"{ago(now - one['since'])} ago", _until(one))
            for one in pins
        ],
    )
    return 0


def _until(one: dict[str, Any]) -> str:
    if one["until"] is None:
        return "unpinned"
    day = datetime.fromtimestamp(one["until"] - 1, UTC)
    return f"{day:%Y-%m-%d}" + ("" if one["in_force"] else " (over)")


@click.command(
    "unpin",
    epilog="""\b
Example:
  hounsfield tier unpin 1.2.840.113619.2.1""",
)
@click.argument("study", metavar="STUDY")
@config_options
@json_option
def unpin(
    *, study: str, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Let the rules decide again where a pinned study lies."""
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        archive.call("tier-unpin", study=study, by=getpass.getuser())
    return _say_unpinned(as_json=as_json)


def _say_unpinned(*, as_json: bool) -> int:
    if as_json:
        print_json({"pinned": False})
    else:
        remark("it is not pinned any more: the rules decide from the next plan on")
    return 0


@click.command(
    "hold",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""\b
Examples:
  hounsfield tier hold add --study 1.2.840.113619.2.1 --reason "case 4711"
  hounsfield tier hold list --json""",
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="add|release|list …")
def hold(*, words: tuple[str, ...]) -> int:
    """The same as `hounsfield hold`: what is on legal hold never expires, in no tier, by no rule.

    A hold does not keep a study in the data directory: `hounsfield tier pin` does.
    """
    from hounsfield.archive.cli.hold import command

    done = command.main(list(words) or ["--help"], prog_name="hounsfield hold", standalone_mode=False)
    return done if isinstance(done, int) else 0


@click.command(
    "history",
    epilog="""\b
Examples:
  hounsfield tier history
  hounsfield tier history --limit 1000 --identify --json""",
)
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The newest so many."
)
@click.option("--identify", is_flag=True, help="With the UIDs of studies and series.")
@config_options
@json_option
def history(
    *,
    limit: int,
    identify: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """List what was moved, brought back, pinned, repaired, damaged, expired: when, by whom or which rule.

    Newest first. It is in the journal, which `hounsfield reindex` begins anew.
    """
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        events: list[dict[str, Any]] = []
        before: int | None = None
        while len(events) < limit:
            page = archive.call("tier-history", limit=limit - len(events), before=before)
            events += page["events"]
            before = page["before"]
            if before is None:
                break
    if not identify:
        events = [
            {name: value for name, value in one.items() if name not in {"study", "series"}} for one in events
        ]
    if as_json:
        print_json(events)
        return 0
    print_table(
        ["time", "what", "by", "rule", "to", "copied", "freed", *(["study", "series"] if identify else [])],
        [
            (
                datetime.fromtimestamp(one["at"], UTC).strftime("%Y-%m-%d %H:%M:%S"),
                _what(one),
                one["by"],
                one.get("rule", ""),
                ", ".join(one["tiers"]) if "tiers" in one else one.get("tier", ""),
                size(_copied(one)),
                size(one["freed_bytes"]) if "freed_bytes" in one else "",
                *((one.get("study", ""), one.get("series", "")) if identify else ()),
            )
            for one in events
        ],
        right=["copied", "freed"],
    )
    return 0


def _copied(one: dict[str, Any]) -> int:
    return int(one.get("moved_bytes") or (one["bytes"] if one["kind"] == "series-recalled" else 0))


def _what(one: dict[str, Any]) -> str:
    match one["kind"]:
        case "series-expired":
            return f"deleted: {one['instances']} instances, {size(one['bytes'])}"
        case "series-tiered":
            return str(one["action"])
        case "series-recalled":
            return f"brought back: {one['why']}"
        case "pack-repaired":
            return f"repaired {one['pack']}"
        case "pack-damaged":
            return f"{'missing' if one.get('missing') else 'damaged'} {one['pack']}"
        case "pack-found":
            return f"right again {one['pack']}"
        case "pinned":
            return f"pinned: {one['why']}"
    return str(one["kind"])
