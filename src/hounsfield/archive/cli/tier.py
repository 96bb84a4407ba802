"""``hounsfield tier``, with ``status`` and ``take``; the others: :mod:`.tier_plan`, :mod:`.tier_runs`,
:mod:`.tier_studies`, :mod:`.tier_prefetch`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_PARTIAL, ago, print_json, print_table, remark, size
from hounsfield.archive.cli.tier_plan import plan
from hounsfield.archive.cli.tier_prefetch import prefetch
from hounsfield.archive.cli.tier_runs import apply, did, verify
from hounsfield.archive.cli.tier_studies import history, hold, pin, recall, unpin


@click.group("tier")
def command() -> None:
    """Tiers: where studies lie, and which rules move them.

    [[tiers]] in config.toml names directories and buckets beside the data directory ("hot"), [[tier_rules]]
    says what goes where, and when. Look with `hounsfield tier plan` before you `hounsfield tier apply`; a
    running server carries the rules out by itself, every tiering.plan_minutes.
    """


for _one in (plan, apply, verify, recall, pin, unpin, prefetch, hold, history):
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
            remark(f"under way: {run['task']} for {since}, {size(run['bytes'])} read and written, {did(run)}")
    if not found["rules"]:
        remark("no tier rules: everything stays where it is")
        return
    last = found["runs"].get("plan")
    if last is not None and last["ended"]:
        remark(f"the last plan ended {ago(now - last['ended'])} ago: {did(last)}")
    if found["plan_asked"]:
        remark("asked to carry the rules out now" + ("" if running else ": as soon as a server runs"))
    elif running:
        remark(f"the next plan: {_in(found['next_plan'] - now)}")


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
