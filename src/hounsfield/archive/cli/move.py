"""``hounsfield move``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.conversation import converse, limits_for
from hounsfield.archive.cli.identifiers import level_options, query_model, retrieval_identifiers
from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import Failed, print_json, remark
from hounsfield.archive.cli.remote import ae_title, remote_options, resolve
from hounsfield.archive.cli.retrieval import Retrieval, counting


@click.command(
    "move",
    epilog="""\b
Examples:
  hounsfield move PACS --to HOUNSFIELD 1.2.840.113619.2.1
  hounsfield move PACS@192.0.2.10:104 --to WORKSTATION 1.2.840.113619.2.1/1.2.840.113619.2.1.3
  hounsfield move PACS --to HOUNSFIELD PatientID=4711 --level patient
  hounsfield find PACS PatientID=4711 --json | jq -r '."0020000D".Value[0]' \\
    | xargs hounsfield move PACS --to HOUNSFIELD

What is moved is named by UIDs, STUDY[/SERIES[/INSTANCE]], or by keys as for `hounsfield find`.""",
)
@click.argument("target")
@click.argument("what", nargs=-1, required=True, metavar="UID|KEY=VALUE...")
@click.option(
    "--to", "destination", required=True, metavar="AE", help="Who gets it: a title that TARGET knows."
)
@level_options
@remote_options
@config_options
@json_option
def command(
    *,
    target: str,
    what: tuple[str, ...],
    destination: str,
    level: str | None,
    model: str | None,
    relational: bool,
    character_set: str,
    timeout: float,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
    **remote_words: Any,
) -> int:
    """Have an application entity send studies, series or images to another (C-MOVE).

    TARGET is [AE@]HOST:PORT, or the title of an AE in config.toml or from `hounsfield ae add`. The objects go
    from TARGET to the AE given with --to, past us; to get them into this archive, name our own title. Ctrl-C
    cancels. Each response renews --timeout.

    Exit codes: 0 all were sent, 4 some were not, 1 none was, 3 nobody answers.
    """
    from hounsfield.archive.net.query_retrieve import Extensions, proposal
    from hounsfield.archive.net.scu import Offer

    asked = retrieval_identifiers(what, level)
    uid = query_model(model, [at for at, _ in asked]).move_uid
    remote = resolve(target, effective_config(config_file, overrides, data), **remote_words)

    retrieval = Retrieval(
        remote,
        uid,
        [proposal(1, uid)],
        [identifier for _, identifier in asked],
        character_set,
        limits_for(timeout),
        Offer(extended=Extensions(relational=relational).negotiation(uid, find=False)),
        destination=ae_title(destination, "destination's"),
        relational=relational,
    )
    progress = counting(as_json)
    with progress or nullcontext():
        tally = converse(lambda: retrieval.perform(progress))
    moved = tally.completed + tally.warned
    if as_json:
        print_json({"target": str(remote), "destination": destination, **tally.body()})
    else:
        tally.show()
        words = [f"{moved} sent to {destination}"]
        words += [
            f"{number} {name}"
            for number, name in ((tally.warned, "of them with warnings"), (tally.failed, "failed"))
            if number
        ]
        remark(f"{remote}: {', '.join(words)}{tally.cancelled_words} ({tally.seconds:.1f} s)")
    if not moved and not tally.failed and not tally.complaints and not tally.interrupted:
        raise Failed(f"{remote} has nothing of that")
    return tally.exit_code(moved)
