"""``hounsfield tier plan``: what the rules, or others, would do now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import ago, print_json, print_table, remark, size
from hounsfield.archive.cli.tier_runs import progress_bar

if TYPE_CHECKING:
    from rich.progress import Progress

    from hounsfield.archive.app.asking import Archive

_PINNED = "(pinned)"


@click.command(
    "plan",
    epilog="""\b
Examples:
  hounsfield tier plan
  hounsfield tier plan --rules new-config.toml
  hounsfield tier plan --series --identify
  hounsfield tier plan --json | jq .totals.freed_bytes""",
)
@click.option("--series", "listed", is_flag=True, help="List every series of which something would be done.")
@click.option("--identify", is_flag=True, help="With their UIDs.")
@click.option(
    "--rules",
    "rules_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Plan by the [[tier_rules]] of this configuration file, before a server is started with them.",
)
@config_options
@json_option
def plan(
    *,
    listed: bool,
    identify: bool,
    rules_file: Path | None,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Show what each rule would do now: how many series, what is copied where, what is freed; change nothing.

    Bytes are as they lie now: what a rule recompresses gets smaller on the way.
    """
    from hounsfield.archive.app.opening import open_archive

    with (
        open_archive(effective_config(config_file, overrides, data)) as archive,
        progress_bar("planning", "{task.completed} series") as bar,
    ):
        found = _planned(archive, bar, listed=listed, **_tried(rules_file))
        now = archive.call("tier-progress")
    from hounsfield.archive.engine.tier_sums import totals, turn

    found["series"].sort(key=turn)
    found["totals"] = totals(found, now["bytes_per_second"])
    if not identify:
        found["series"] = [
            {name: value for name, value in one.items() if name not in {"study", "series"}}
            for one in found["series"]
        ]
    if as_json:
        print_json(found)
        return 0
    _show_plan(found)
    if listed:
        _show_series(found["series"], identify=identify)
    if rules_file is not None:
        remark("these rules are in force when a server is started with them")
    elif found["totals"]["series"] and not now["plan_asked"]:
        remark("`hounsfield tier apply` does it now")
    return 0


def _tried(file: Path | None) -> dict[str, Any]:
    """The rules of a file, and the tiers that it has, as an operation takes them; nothing without one."""
    if file is None:
        return {}
    from msgspec import to_builtins

    from hounsfield.archive.app.tier_options import check_tiers
    from hounsfield.archive.config import load_config

    config = load_config(file)
    check_tiers(config)
    return {"rules": to_builtins(config.tier_rules), "tiers": [tier.name for tier in config.tiers]}


def _planned(archive: Archive, bar: Progress, *, listed: bool, **tried: Any) -> dict[str, Any]:
    from hounsfield.archive.engine.tier_sums import NOTHING, added

    task = bar.add_task("", total=archive.call("tier-progress")["series"] or None)
    found: dict[str, Any] = NOTHING
    after: str | None = ""
    while after is not None:
        page = archive.call("tier-plan", after=after, listed=listed, **tried)
        after = page.pop("after")
        found = added(found, page)
        bar.update(task, completed=found["looked"])
    return found


def _show_plan(found: dict[str, Any]) -> None:
    rules = found["rules"]
    print_table(
        ["rule", "action", "series", "bytes", "copied", "freed in hot", "as it should be", "note"],
        [
            (
                name or _PINNED,
                rule.get("action", ""),
                rule.get("series", 0),
                size(rule.get("bytes", 0)),
                ", ".join(f"{size(count)} to {tier}" for tier, count in rule.get("copied", {}).items()),
                size(rule.get("freed_bytes", 0)),
                found["settled"].get(name, 0),
                f"{rule['held']} series stay: legal hold" if rule.get("held") else "",
            )
            for name in dict.fromkeys((*rules, *found["settled"]))
            for rule in (rules.get(name, {}),)
        ],
        right=["series", "bytes", "freed in hot", "as it should be"],
    )
    remark(
        f"looked at {found['looked']} series: no rule matches {found['unmatched']}, "
        f"{found['quiet']} changed too lately (tiering.quiet_minutes)"
    )
    if found["damaged"]:
        remark(f"{found['damaged']} series stay where no copy is right: `hounsfield tier status`")
    total = found["totals"]
    if total["series"]:
        copied = ", ".join(f"{size(count)} to {tier}" for tier, count in total["copied"].items()) or "nothing"
        time_taken = "" if total["seconds"] is None else f", some {ago(total['seconds'])}"
        remark(
            f"in all: {total['series']} series; copies {copied}; "
            f"frees {size(total['freed_bytes'])}{time_taken}"
        )
        if total["expired_bytes"]:
            remark(f"{size(total['expired_bytes'])} would be deleted for good: their retention is over")
    else:
        remark("nothing is to be done")


def _show_series(series: list[dict[str, Any]], *, identify: bool) -> None:
    print_table(
        [*(["study", "series"] if identify else ["key"]), "modality", "rule", "action", "to", "as", "bytes"],
        [
            (
                *((one["study"], one["series"]) if identify else (one["key"],)),
                one["modality"],
                one["rule"] or _PINNED,
                one["action"],
                ", ".join(one["tiers"]),
                one["compress"],
                size(one["bytes"]),
            )
            for one in series
        ],
        right=["bytes"],
    )
