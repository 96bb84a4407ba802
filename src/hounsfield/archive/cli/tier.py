"""``hounsfield tier status|plan|apply|verify``; what is asked of single studies: :mod:`.tier_studies`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_PARTIAL, ago, err, print_json, print_table, remark, size
from hounsfield.archive.cli.tier_prefetch import prefetch
from hounsfield.archive.cli.tier_studies import history, hold, pin, recall, unpin

if TYPE_CHECKING:
    from rich.progress import Progress

    from hounsfield.archive.app.asking import Archive

POLL_SECONDS = 1.0
_PINNED = "(pinned)"


@click.group("tier")
def command() -> None:
    """Tiers: where studies lie, and which rules move them.

    [[tiers]] in config.toml names directories and buckets beside the data directory ("hot"), [[tier_rules]]
    says what goes where, and when. Look with `hounsfield tier plan` before you `hounsfield tier apply`; a
    running server carries the rules out by itself, every tiering.plan_minutes.
    """


for _one in (recall, pin, unpin, prefetch, hold, history):
    command.add_command(_one)


# ---------------------------------------------------------------- status


@command.command(
    "status",
    epilog="""\b
Examples:
  hounsfield tier status
  hounsfield tier status --json | jq '.tiers[] | select(.trouble != "")'""",
)
@config_options
@json_option
def status(*, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool) -> int:
    """Show what lies in which tier, which do not answer, what is being done, what waits, and what was saved.

    Exit code 4 when copies are damaged and no right one lies beside them, or a tier does not answer.
    """
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        found: dict[str, Any] = archive.call("tier-status")
        running = archive.running
    code = EXIT_PARTIAL if found["damaged"] or any(one["trouble"] for one in found["tiers"]) else 0
    if as_json:
        print_json(found)
        return code
    print_table(
        ["tier", "packs", "bytes", "objects", "damaged", "state"],
        [
            (
                one["tier"],
                f"{one['packs']:,}",
                size(one["bytes"]),
                f"{one['objects']:,}",
                one["damaged"] or "",
                one["trouble"] or "there",
            )
            for one in found["tiers"]
        ],
        right=["packs", "bytes", "objects", "damaged"],
    )
    remark(f"the disk of the data directory is {found['hot_fill']:.0%} full")
    _say_progress(found, running=running)
    _say_savings(found["done"])
    if found["recalls"]:
        since = ago(time.time() - found["oldest_recall"])
        remark(f"to be brought back: {found['recalls']} series, the first asked for {since} ago")
    if found["stuck"]:
        remark(f"of them {found['stuck']} wait for packs of which no copy is right: see below")
    if wrong := found["damaged"] - found["missing"]:
        remark(f"damaged, with no right copy beside them: {wrong} copies")
    if found["missing"]:
        remark(
            f"not where they were put, with no right copy beside them: {found['missing']} copies; the tier "
            "answers otherwise. When they are there again that is noticed by itself"
        )
    if found["damaged"]:
        remark("bring the bytes back where they lie, then `hounsfield tier verify`")
    return code


def _say_progress(found: dict[str, Any], *, running: bool) -> None:
    now = time.time()
    for run in found["runs"].values():
        if run["running"]:
            since = ago(now - run["began"])
            remark(
                f"under way: {run['task']} for {since}, {size(run['bytes'])} read and written, {_did(run)}"
            )
    if not found["rules"]:
        remark("no tier rules: everything stays where it is")
        return
    last = found["runs"].get("plan")
    if last is not None and last["ended"]:
        remark(f"the last plan ended {ago(now - last['ended'])} ago: {_did(last)}")
    if found["plan_asked"]:
        remark("asked to carry the rules out now" + ("" if running else ": as soon as a server runs"))
    elif running:
        remark(f"the next plan: {_in(found['next_plan'] - now)}")


def _did(run: dict[str, Any]) -> str:
    words = {
        "plan": (
            f"{run['series'] - run['expired_series']} series placed, "
            + (
                f"{size(run['gathered_bytes'])} put into packs of {size(run['packed_bytes'])}, "
                if run["gathered_bytes"]
                else ""
            )
            + f"{size(run['copied_bytes'])} copied, {size(run['freed_bytes'])} of packs freed"
            + (f", {run['expired_series']} series expired" if run["expired_series"] else "")
        ),
        "verify": f"{run['verified_copies']} copies are right, {run['repaired_packs']} repaired",
        "recall": f"{run['recalled_series']} series brought back",
    }[run["task"]]
    if not run["failures"]:
        return words
    return f"{words}; {run['failures']} errors, and what they put off is in the next one"


def _say_savings(done: dict[str, int]) -> None:
    before, after = done["gathered_bytes"], done["packed_bytes"]
    if before:
        less = f" ({1 - after / before:.0%} less)" if after < before else ""
        remark(f"so far {size(before)} were put into packs of {size(after)}{less}")
    if done["copied_bytes"]:
        remark(
            f"{size(done['copied_bytes'])} went to other tiers, {size(done['freed_bytes'])} were freed in hot"
        )
    if done["recalled_series"]:
        remark(f"{done['recalled_series']} series ({size(done['recalled_bytes'])}) were brought back")


def _in(seconds: float) -> str:
    return "now" if seconds < 1 else f"in {ago(seconds)}"


# ---------------------------------------------------------------- plan


@command.command(
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
        _bar("planning", "{task.completed} series") as bar,
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


# ---------------------------------------------------------------- apply


@command.command(
    "apply",
    epilog="""\b
Examples:
  hounsfield tier apply
  hounsfield tier apply --wait""",
)
@click.option(
    "--wait", is_flag=True, help="Return when it is done; Ctrl-C leaves it going, --wait watches again."
)
@config_options
@json_option
def apply(
    *, wait: bool, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Carry the tier rules out now, without waiting for the next plan.

    A running server does it beside its work, as fast as tiering.bytes_per_second says. Without a server it is
    done here and now, as fast as it goes. Whatever interrupts it, nothing is lost and the next plan goes on.
    Exit code 4 when errors put some of it off, or copies are damaged.
    """
    from hounsfield.archive.app.opening import open_archive

    with (
        open_archive(effective_config(config_file, overrides, data)) as archive,
        _bar("carrying out", "{task.fields[words]}") as bar,
    ):
        before = archive.call("tier-progress")
        task = bar.add_task("", total=before["series"] or None, words="")

        def show(found: dict[str, Any]) -> None:
            running = {name: run for name, run in found["runs"].items() if run["running"]}
            if "plan" in running:
                run = running["plan"]
                words = f"{size(run['copied_bytes'])} copied, {size(run['freed_bytes'])} freed"
                bar.update(task, completed=run["looked"], words=words)
            elif running:
                bar.update(task, words=f"after what is under way: {', '.join(running)}")

        found: dict[str, Any] = {}
        watching = before["plan_asked"] and wait and archive.running
        if not archive.running:
            found = archive.apply_tier_rules(show)
        else:
            if not watching:
                archive.call("tier-apply")
            if wait:
                found = _watch(archive, "tier-progress", show, lambda now: not now["plan_asked"])
        damaged = archive.call("tier-verifying")["damaged"] if found else []
    run = found.get("runs", {}).get("plan")
    if as_json:
        print_json({"done": bool(found), "run": run, "damaged": damaged})
    elif not found:
        remark(
            "asked for: `hounsfield tier status` shows how it goes, `hounsfield tier apply --wait` watches"
        )
    elif run is not None:
        remark(f"{'watched what was asked for before' if watching else 'done'}: {_did(run)}")
        if not watching and _is_running(before):
            remark("a plan was under way already, and did the rest: see `hounsfield tier history`")
    return EXIT_PARTIAL if damaged or (run and run["failures"]) else 0


def _is_running(progress: dict[str, Any]) -> bool:
    plan = progress["runs"].get("plan")
    return plan is not None and bool(plan["running"])


def _watch(
    archive: Archive,
    op: str,
    show: Callable[[dict[str, Any]], None],
    is_done: Callable[[dict[str, Any]], bool],
) -> dict[str, Any]:
    while True:
        found: dict[str, Any] = archive.call(op)
        show(found)
        if is_done(found):
            return found
        time.sleep(POLL_SECONDS)


# ---------------------------------------------------------------- take


@command.command(
    "take",
    epilog="""\b
Examples:
  hounsfield tier take cold""",
)
@click.argument("tier")
@config_options
@json_option
def take(
    *, tier: str, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Write to a tier from this data directory from now on, and from no other one.

    For an archive that was restored or moved to other disks. Its former data directory must not be served any
    more: it would miss what is changed there from here. One that was restored to be tried takes nothing.
    """
    from hounsfield.archive.app.opening import open_archive

    with open_archive(effective_config(config_file, overrides, data)) as archive:
        archive.call("tier-take", tier=tier)
    if as_json:
        print_json({"tier": tier})
    else:
        remark(f"tier {tier} is written from this data directory from now on")
    return 0


# ---------------------------------------------------------------- verify


@command.command(
    "verify",
    epilog="""\b
Examples:
  hounsfield tier verify
  hounsfield tier verify --wait --json | jq .damaged""",
)
@click.option("--wait", is_flag=True, help="Return when it is done; Ctrl-C leaves it going.")
@config_options
@json_option
def verify(
    *, wait: bool, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Read every copy in every tier again now, all of it, and put wrong ones anew from right ones.

    It happens by itself every verify_days of a tier; reading a whole bucket may cost money. Known damage is
    looked at again, too: what was brought back is found. Exit code 4 when something stays damaged, or was not
    read.
    """
    from hounsfield.archive.app.opening import open_archive

    with (
        open_archive(effective_config(config_file, overrides, data)) as archive,
        _bar("verifying", "{task.percentage:.0f} %") as bar,
    ):
        total = 0
        task = bar.add_task("", total=None)

        def show(now: dict[str, Any]) -> None:
            nonlocal total
            total = max(total, now["bytes"])
            bar.update(task, completed=total - now["bytes"], total=total or None)

        if archive.running:
            asked = archive.call("tier-verify")
            found = (
                _watch(archive, "tier-verifying", show, lambda now: _is_over(now, asked)) if wait else asked
            )
        else:
            found = archive.verify_tiers(show)
        is_done = wait or not archive.running
    if as_json:
        print_json({"done": is_done, **found})
    elif is_done:
        _say_verified(found)
    else:
        remark(
            f"asked for {found['copies']} copies ({size(found['bytes'])}): "
            "`hounsfield tier status` shows how it goes"
        )
    return EXIT_PARTIAL if is_done and (found["damaged"] or found["copies"]) else 0


def _say_verified(found: dict[str, Any]) -> None:
    run = found["run"]
    began = run is not None and run["began"] >= found["asked"]
    remark(_did(run) if began else "there is no copy to verify")
    if found["copies"]:
        remark(f"{found['copies']} copies could not be read now; they are tried again")
    if found["damaged"]:
        rows = [
            (one["pack"], one["tier"], "missing" if one["missing"] else "wrong") for one in found["damaged"]
        ]
        print_table(["pack", "tier", "it is"], rows, title="damaged")


def _is_over(now: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Everything was read, or a look that began after it was asked for has ended: a tier may be away."""
    run = now["run"]
    return not now["copies"] or (
        run is not None and run["began"] >= asked["asked"] and run["ended"] is not None
    )


def _bar(what: str, words: str) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), TextColumn(words), TimeRemainingColumn())
    return Progress(*columns, console=err(), disable=not err().is_terminal, transient=True)
