"""``hounsfield tier apply|verify``: what takes hours, and is watched or left going."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_PARTIAL, err, print_json, print_table, remark, size

if TYPE_CHECKING:
    from rich.progress import Progress

    from hounsfield.archive.app.asking import Archive

POLL_SECONDS = 1.0


@click.command(
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
        progress_bar("carrying out", "{task.fields[words]}") as bar,
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
        remark(f"{'watched what was asked for before' if watching else 'done'}: {did(run)}")
        if not watching and _is_running(before):
            remark("a plan was under way already, and did the rest: see `hounsfield tier history`")
    return EXIT_PARTIAL if damaged or (run and run["failures"]) else 0


def _is_running(progress: dict[str, Any]) -> bool:
    plan = progress["runs"].get("plan")
    return plan is not None and bool(plan["running"])


@click.command(
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
        progress_bar("verifying", "{task.percentage:.0f} %") as bar,
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
    remark(did(run) if began else "there is no copy to verify")
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


def did(run: dict[str, Any]) -> str:
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


def progress_bar(what: str, words: str) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), TextColumn(words), TimeRemainingColumn())
    return Progress(*columns, console=err(), disable=not err().is_terminal, transient=True)
