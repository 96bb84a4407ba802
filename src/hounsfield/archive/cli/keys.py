"""``hounsfield keys list|check|backup|rotate-master|rekey|recovery``."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import ago, out, print_json, print_table, remark, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hounsfield.archive.app.tier_roots import TierRoot
    from hounsfield.storage_backends.master_key import RecoveryKey


@click.group("keys")
def command() -> None:
    """The keys that seal the archive: what there is, what to save, and how to change it.

    A master key (or the recovery key) opens one root key, which opens every other. See
    docs/decisions/0002-one-root-key.md.
    """


@command.command(
    "list",
    epilog="""\b
Examples:
  hounsfield keys list
  hounsfield keys list --all --json""",
)
@click.option("--all", "every", is_flag=True, help="Every key, not only how many of each purpose.")
@config_options
@json_option
def list_(
    *, every: bool, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """List the archive's keys: purposes, how many, how old; with --all each one and what it seals."""
    from hounsfield.archive.app.keys import data_path, key_states, keyring_of

    config = effective_config(config_file, overrides, data)
    keyring = keyring_of(config)
    states = key_states(data_path(config), keyring)
    now = time.time()
    if every:
        if as_json:
            print_json([asdict(state) for state in states])
            return 0
        shown = []
        for s in states:
            length = size(s.seals_bytes) if s.seals else ""
            shown.append((s.purpose, s.key_id, _age(now, s.made_at), s.seals, length, s.problem))
        print_table(["purpose", "id", "age", "seals", "size", "problem"], shown, right=["age", "size"])
        return 0
    rows: list[dict[str, Any]] = []
    for purpose in sorted({state.purpose for state in states}):
        own = [state for state in states if state.purpose == purpose]
        made = [state.made_at for state in own if state.made_at]
        rows.append(
            {
                "purpose": purpose,
                "keys": len(own),
                "oldest": min(made, default=0.0),
                "newest": max(made, default=0.0),
                "seals_bytes": sum(state.seals_bytes for state in own),
                "problems": sum(bool(state.problem) for state in own),
            }
        )
    if as_json:
        print_json({"purposes": rows, "root_opened_by": keyring.wraps()})
        return 0
    print_table(
        ["purpose", "keys", "oldest", "newest", "seals", "problems"],
        [
            (
                row["purpose"],
                row["keys"],
                _age(now, row["oldest"]),
                _age(now, row["newest"]),
                size(row["seals_bytes"]) if row["seals_bytes"] else "",
                row["problems"] or "",
            )
            for row in rows
        ],
        right=["keys", "oldest", "newest", "seals", "problems"],
    )
    remark(f"the root key is opened by: {', '.join(keyring.wraps())}")
    return 0


@command.command(
    "check",
    epilog="""\b
Examples:
  hounsfield keys check
  hounsfield keys check --set keys.master_key=file:/media/safe/master.key""",
)
@config_options
@json_option
def check(*, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool) -> int:
    """Open every key from its file, and prove that the master key fits. Changes nothing.

    Says which tiers have the root key as it is wrapped now: these and the master key are enough for
    `hounsfield restore --from-tier`. Exit code 1 when a key is missing, damaged or of another archive.
    """
    from rich.progress import track

    from hounsfield.archive.app.keys import data_path, key_source, key_states, keyring_of
    from hounsfield.archive.app.tier_roots import tier_roots
    from hounsfield.archive.cli.output import err

    config = effective_config(config_file, overrides, data)
    keyring = keyring_of(config)
    states = key_states(data_path(config), keyring)
    unused = [s for s in states if s.problem == "seals nothing that is here"]
    bad = [
        s
        for s in track(states, "keys", console=err(), transient=True, disable=not err().is_terminal)
        if s.problem and s not in unused
    ]
    tiers = tier_roots(config, keyring, put=False)
    if as_json:
        print_json(
            {
                "master_key": key_source(config),
                "opened_by": keyring.wraps(),
                "keys": len(states),
                "bad": [asdict(s) for s in bad],
                "unused": [asdict(s) for s in unused],
                "tiers": [asdict(one) for one in tiers],
            }
        )
        return 1 if bad else 0
    remark(f"the master key ({key_source(config)}) opens the archive; so does: {', '.join(keyring.wraps())}")
    remark(f"{len(states) - len(bad)} of {len(states)} keys open")
    if unused:
        remark(
            f"{len(unused)} segment keys seal nothing that is here (packs in other tiers, or a crash left "
            "them, or files are missing: `hounsfield fsck` tells)"
        )
    for state in bad:
        remark(f"{state.purpose} {state.key_id}: {state.problem}")
    _tell_of_tiers(tiers)
    if "recovery" not in keyring.wraps():
        remark("note: there is no recovery key; `hounsfield keys recovery new` makes one")
    return 1 if bad else 0


@command.command(
    "backup",
    epilog="""\b
Example:
  hounsfield keys backup""",
)
@config_options
@json_option
def backup(*, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool) -> int:
    """Print exactly what must be saved elsewhere, what each thing is for, and how to test the copy.

    `hounsfield backup` copies the first three.
    """
    from hounsfield.archive.app.keys import keyring_of, must_save

    config = effective_config(config_file, overrides, data)
    things = must_save(config, keyring_of(config))
    if as_json:
        print_json([asdict(thing) for thing in things])
        return 0
    print_table(
        ["what", "where it is", "why", "test the copy with"],
        [(thing.what, thing.where, thing.why, thing.test) for thing in things],
    )
    return 0


@command.command(
    "rotate-master",
    epilog="""\b
Examples:
  hounsfield keys rotate-master --to file:/etc/hounsfield/master-2.key --new-key
  hounsfield keys rotate-master --to credential:master.key
  hounsfield keys rotate-master --to file:/etc/hounsfield/new.key --new-key --with-recovery-key""",
)
@click.option("--to", required=True, metavar="SOURCE", help="The new key, as keys.master_key names it.")
@click.option("--new-key", is_flag=True, help="Make the file that --to file:PATH names; it must not exist.")
@click.option(
    "--with-recovery-key",
    is_flag=True,
    help="The present master key is lost: open with the recovery key, read from the terminal or a pipe.",
)
@config_options
@json_option
def rotate_master(
    *,
    to: str,
    new_key: bool,
    with_recovery_key: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Let another master key open the archive, in place of the present one.

    Only the root key is wrapped anew: one small file, at once, whatever the archive's size. A running
    server goes on. The configuration must name the new key before its next start. A copy of the old
    keys/root together with the old master key still opens what it sealed: see docs/threat-model.md.
    Tiers have copies: each that answers gets the new one at once, the others when they are back.
    """
    from hounsfield.archive.app import keys
    from hounsfield.archive.app.tier_roots import tier_roots

    config = effective_config(config_file, overrides, data)
    recovery = ask_recovery_key() if with_recovery_key else None
    changed, keyring = keys.rotate_master(config, to, make=new_key, recovery=recovery)
    tiers = tier_roots(config, keyring, put=True)
    source = "a command" if to.startswith("command:") else to
    if as_json:
        print_json({"changed": changed, "master_key": source, "tiers": [asdict(one) for one in tiers]})
        return 0
    remark("the archive is opened by the new master key now" if changed else "that key opens it already")
    remark(f"before the next start set in config.toml, section [keys]: master_key = the source of {source}")
    remark("save the new key elsewhere, then destroy the old one")
    _tell_of_tiers(tiers)
    return 0


@command.command(
    "rekey",
    epilog="""\b
Examples:
  hounsfield keys rekey
  hounsfield keys rekey --before 2026-03-01
  hounsfield keys rekey --segment 0f3a9c2e5b7d41c8a6e0d9b2f1c4735e --full-speed""",
)
@click.option(
    "--before",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="Only segments whose key was made before this time.  [default: now]",
)
@click.option("--segment", "segments", multiple=True, metavar="ID", help="Only this one. Repeatable.")
@click.option("--full-speed", is_flag=True, help="As fast as it goes, also beside a running server.")
@config_options
@json_option
def rekey(
    *,
    before: datetime | None,
    segments: tuple[str, ...],
    full_speed: bool,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> int:
    """Write segments anew under new keys, and destroy the old ones: after a master key leaked.

    Needs space for one segment at a time. Interrupt it whenever you like: with the same --before it goes on.
    Packs in other tiers are read from there and gathered anew; a running server removes the old ones, with
    their keys, a minute later. Objects get new keys; ledger and index keep theirs, under the same root key:
    see docs/threat-model.md.
    Exit code 4 when segments keep their keys: those being written to, or damaged.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from hounsfield.archive.app.opening import open_archive
    from hounsfield.archive.cli.output import EXIT_PARTIAL, err

    limit = time.time() if before is None else before.timestamp()
    columns = (TextColumn("segments"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        open_archive(effective_config(config_file, overrides, data)) as archive,
        Progress(*columns, console=err(), disable=not err().is_terminal, transient=True) as bar,
    ):
        due = archive.call("rekey-due", before=limit, segments=list(segments))
        todo = [one["segment"] for one in due if not one["open"]]
        throttled = archive.running and not full_speed
        reports = [
            archive.call("compact-segment", segment=segment, throttled=throttled)
            for segment in bar.track(todo)
        ]
        removed = archive.call("compact-finish")
    stayed = [report for report in reports if report["kept_because"]]
    written = [one["segment"] for one in due if one["open"]]
    if as_json:
        print_json(
            {"before": limit, "rekeyed": len(reports) - len(stayed), "stayed": stayed, "open": written}
        )
        return EXIT_PARTIAL if stayed or written else 0
    remark(f"{len(reports) - len(stayed)} segments have new keys; {removed} old keys are destroyed")
    for report in stayed:
        remark(f"segment {report['segment']} keeps its key: {report['kept_because']}")
    if written:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(limit))
        remark(
            f"{len(written)} are being written to: restart the server, then `keys rekey --before {moment}`"
        )
    return EXIT_PARTIAL if stayed or written else 0


@command.group("recovery")
def recovery_group() -> None:
    """The recovery key, which opens the archive when the master key is lost."""


@recovery_group.command(
    "new",
    epilog="""\b
Example:
  hounsfield keys recovery new""",
)
@config_options
@json_option
def recovery_new(
    *, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Make a recovery key and print it, once. The former one opens nothing from now on."""
    from hounsfield.archive.app.keys import keyring_of
    from hounsfield.archive.app.tier_options import check_tiers
    from hounsfield.archive.app.tier_roots import tier_roots
    from hounsfield.storage_backends.master_key import RecoveryKey

    config = effective_config(config_file, overrides, data)
    keyring = keyring_of(config)
    check_tiers(config)  # before the former key opens nothing any more
    recovery = RecoveryKey.generate()
    keyring.rewrap(recovery)
    if as_json:
        tiers = [asdict(one) for one in tier_roots(config, keyring, put=True)]
        print_json({"recovery_key": recovery.text(), "tiers": tiers})
        return 0
    remark("recovery key, shown once; keep it where neither this machine nor its backups are:")
    out().print(recovery.text())
    _tell_of_tiers(tier_roots(config, keyring, put=True))
    return 0


@recovery_group.command(
    "remove",
    epilog="""\b
Example:
  hounsfield keys recovery remove""",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@config_options
@json_option
def recovery_remove(
    *, yes: bool, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Let no recovery key open the archive. When the master key is then lost, everything is."""
    from hounsfield.archive.app.keys import keyring_of
    from hounsfield.archive.app.tier_options import check_tiers
    from hounsfield.archive.app.tier_roots import tier_roots

    config = effective_config(config_file, overrides, data)
    keyring = keyring_of(config)
    check_tiers(config)
    if not yes:
        click.confirm("Without it a lost master key means a lost archive. Remove it?", abort=True, err=True)
    removed = keyring.remove_recovery()
    tiers = tier_roots(config, keyring, put=True)
    if as_json:
        print_json({"removed": removed, "tiers": [asdict(one) for one in tiers]})
    else:
        remark("no recovery key opens the archive any more" if removed else "there was none")
        _tell_of_tiers(tiers)
    return 0


@recovery_group.command(
    "check",
    epilog="""\b
Example:
  hounsfield keys recovery check""",
)
@config_options
@json_option
def recovery_check(
    *, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool
) -> int:
    """Say whether a recovery key, typed in or piped, opens this archive. Needs no master key.

    Exit code 1 when it does not.
    """
    from hounsfield.archive.app.keys import data_path
    from hounsfield.storage_backends.keyring import Keyring

    folder = data_path(effective_config(config_file, overrides, data)) / "keys"
    Keyring.open(folder, ask_recovery_key())
    if as_json:
        print_json({"opens": True})
    else:
        remark("this recovery key opens the archive")
    return 0


def ask_recovery_key() -> RecoveryKey:
    """The recovery key from the terminal, unseen, or from a pipe: never from the command line."""
    from hounsfield.storage_backends.master_key import RecoveryKey

    if sys.stdin.isatty():
        text: Any = click.prompt("Recovery key", hide_input=True, err=True)
    else:
        text = sys.stdin.readline()
    return RecoveryKey.from_text(text)


def _tell_of_tiers(tiers: Sequence[TierRoot]) -> None:
    for one in tiers:
        remark(one.text())


def _age(now: float, made_at: float) -> str:
    return ago(now - made_at) if made_at else ""
