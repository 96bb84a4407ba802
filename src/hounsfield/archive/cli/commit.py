"""``hounsfield commit``."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hounsfield.archive.cli.conversation import converse, limits_for
from hounsfield.archive.cli.options import (
    Seconds,
    config_options,
    effective_config,
    json_option,
    split_address,
)
from hounsfield.archive.cli.output import (
    EXIT_FAILED,
    EXIT_PARTIAL,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    Failed,
    print_json,
    print_table,
    remark,
)
from hounsfield.archive.cli.remote import listening_tls, remote_options, resolve

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from hounsfield.archive.config import Config
    from hounsfield.archive.dicom.commitment import Reference
    from hounsfield.archive.net.commitment_requests import Awaited
    from hounsfield.archive.net.records import ListenerStatistics
    from hounsfield.archive.net.scu import RemoteEntity, ScuLimits

# In one transaction: far more than a study has, and a data set that everybody can hold.
REFERENCES_MAX = 5000
# With --listen: how long the association is kept open for a report before the other side is left to call.
HOLD_S = 5.0
ROWS_MAX = 40


@click.command(
    "commit",
    epilog="""\b
Examples:
  hounsfield commit PACS study/
  hounsfield commit PACS 1.2.840.113619.2.1 --wait 600
  hounsfield commit PACS@192.0.2.10:104 *.dcm --listen 0.0.0.0:11113 --ae MODALITY1
  hounsfield send PACS study/ && hounsfield commit PACS study/ --json

WHAT is files, folders, DICOMDIRs; or UIDs of this archive, STUDY[/SERIES[/INSTANCE]].
Archives that report on an association of their own call the address that they know of our title:
--listen must be there.""",
)
@click.argument("target")
@click.argument("what", nargs=-1, required=True, metavar="FILE|DIR|UID...")
@click.option("--listen", metavar="HOST:PORT", help="Take reports on associations to this address too.")
@click.option("--listen-tls", is_flag=True, help="With TLS there: --tls-certificate, --tls-key, --tls-ca.")
@click.option("--ae", "ae", metavar="TITLE", help="Our AE title: the same as --calling.")
@click.option(
    "--wait",
    type=Seconds(min=0.1, max=86_400),
    default=60.0,
    show_default=True,
    help="Seconds to wait for the reports.",
)
@remote_options
@config_options
@json_option
def command(
    *,
    target: str,
    what: tuple[str, ...],
    listen: str | None,
    listen_tls: bool,
    ae: str | None,
    wait: float,
    timeout: float,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
    **remote_words: Any,
) -> int:
    """Ask an application entity to be responsible for objects, and wait for its report (storage commitment).

    TARGET is [AE@]HOST:PORT, or the title of an AE in config.toml or from `hounsfield ae add`. What it has
    committed to it keeps: it may be deleted here. The report is taken on the association that asked, and,
    with --listen, on those that the other side makes.

    Exit codes: 0 all are committed, 4 some are not, 1 none is, 3 nobody answers, or no report came.
    """
    config = effective_config(config_file, overrides, data)
    if ae is not None:
        if remote_words["calling"] not in {None, ae}:
            raise Failed("--ae and --calling are the same: give one", EXIT_USAGE)
        remote_words["calling"] = ae
    remote = resolve(target, config, **remote_words)
    tls = listening_tls(listen, remote_words) if listen_tls else None
    references = _references(what, config)
    with ExitStack() as stack:
        sock: socket.socket | None = None
        if listen is not None:
            _set_up_logs(config)
            sock = stack.enter_context(_bound(listen))
        commitment = _Commitment(remote, references, limits_for(timeout), wait, sock, tls)
        awaited = converse(commitment.ask)
    return _show(remote, awaited, commitment.complaints, as_json)


def _references(what: Sequence[str], config: Config) -> list[Reference]:
    """What is asked for, each instance once. Files that are no objects are named and left out."""
    from hounsfield.archive.cli.identifiers import split_words
    from hounsfield.archive.dicom.commitment import Reference
    from hounsfield.archive.net.survey import Sendable, survey

    here = [word for word in what if Path(word).exists()]
    others, uids = split_words([word for word in what if word not in here])
    if others:
        raise Failed(f"{others[0]}: no such file, and no UID", EXIT_USAGE)
    found: dict[Reference, None] = {}
    for one in survey(map(Path, here)):
        if isinstance(one, Sendable):
            found[Reference(one.sop_class_uid, one.sop_instance_uid)] = None
        else:
            remark(f"{one.path}: left out: {one.reason}")
    if uids:
        from hounsfield.archive.app.opening import open_archive

        with open_archive(config) as archive:
            for path in uids:
                study, series, instance = (*path, None, None)[:3]
                for row in archive.call("instances", study=study, series=series, instance=instance):
                    found[Reference(row["sop_class"], row["instance"])] = None
    if not found:
        raise Failed("there is no object among these")
    return list(found)


def _set_up_logs(config: Config) -> None:
    """What the listener has to say stays off standard output."""
    from hounsfield.archive.app.logs import set_up_logs

    set_up_logs(level="warning", form=config.logs.format, salt=os.urandom(16))


def _bound(listen: str) -> socket.socket:
    host, port = split_address(listen, "--listen")
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=16
        )
    except OSError as error:
        raise Failed(f"cannot listen at {listen}: {error.strerror}") from error


class _Commitment:
    """One request after the other, then the wait for all reports."""

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        remote: RemoteEntity,
        references: Sequence[Reference],
        limits: ScuLimits,
        wait: float,
        sock: socket.socket | None,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._remote = remote
        self._references = references
        self._limits = limits
        self._wait = wait
        self._sock = sock
        self._tls = tls
        self.complaints: list[str] = []

    async def ask(self) -> Awaited:
        """What came of it. Raises NetError when nothing could be asked."""
        import trio

        from hounsfield.archive.net.commitment_requests import Awaited, report_listener

        awaited = Awaited()
        async with trio.open_nursery() as nursery:
            if self._sock is not None:
                listener = report_listener(awaited, self._sock, self._remote.calling_ae, self._tls)
                await nursery.start(listener.serve)
            await self._on_one_association(awaited)
            if self._sock is not None and not awaited.complete:
                remark(f"waiting for {self._remote.called_ae} to call")
                with trio.move_on_after(self._wait):
                    await awaited.came.wait()
                if not awaited.complete:
                    self._tell_of_callers(listener.statistics())
            nursery.cancel_scope.cancel()
        return awaited

    def _tell_of_callers(self, figures: ListenerStatistics) -> None:
        """No report came: whether somebody tried to call, and what may be in the way."""
        if figures.connections_failed:
            why = "speak no TLS, or not take our certificate" if self._tls else "speak TLS: --listen-tls"
            remark(f"calls here that came to no association: {figures.connections_failed}; they may {why}")
        if figures.associations_refused:
            ours = self._remote.calling_ae
            remark(f"associations refused here: {figures.associations_refused}; they may not call us {ours}")

    async def _on_one_association(self, awaited: Awaited) -> None:
        import trio

        from hounsfield.archive.net.commitment_requests import COMMITMENT_CONTEXT, ask_for_commitment
        from hounsfield.archive.net.errors import NetError
        from hounsfield.archive.net.query_retrieve import RefusedError
        from hounsfield.archive.net.scu import associate

        async with associate(
            self._remote, [COMMITMENT_CONTEXT], self._limits, reports=awaited.hear
        ) as association:
            for start in range(0, len(self._references), REFERENCES_MAX):
                asked = awaited.expect(self._references[start : start + REFERENCES_MAX])
                try:
                    await ask_for_commitment(association, asked)
                except RefusedError as error:
                    awaited.forget(asked.transaction_uid)
                    self.complaints.append(f"{self._remote}: {error}")
            try:
                with trio.move_on_after(self._wait if self._sock is None else min(self._wait, HOLD_S)):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_or_there, awaited, nursery.cancel_scope)
                        await association.hear_until(lambda: awaited.complete)
                        nursery.cancel_scope.cancel()
            except* NetError as lost:
                # some leave when they have agreed, and call back; without --listen nobody would hear them
                if self._sock is None:
                    self.complaints.append(f"{lost.exceptions[0]}; if it calls back, --listen hears it")


async def _or_there(awaited: Awaited, scope: Any) -> None:
    """The report may come to the listener while the association is open."""
    await awaited.came.wait()
    scope.cancel()


def _show(remote: RemoteEntity, awaited: Awaited, complaints: Sequence[str], as_json: bool) -> int:
    committed, failed, unreported = awaited.committed(), awaited.failed(), awaited.unreported()
    if as_json:
        print_json(
            {
                "target": str(remote),
                "transactions": list(awaited.transactions),
                "committed": len(committed),
                "failed": [
                    {"sop_class": one.sop_class_uid, "instance": one.sop_instance_uid, "reason": why}
                    for one, why in failed
                ],
                "unreported": [one.sop_instance_uid for one in unreported],
                "complaints": list(complaints),
            }
        )
    else:
        if failed:
            print_table(["instance", "why"], [(one.sop_instance_uid, why) for one, why in failed[:ROWS_MAX]])
            if len(failed) > ROWS_MAX:
                remark(f"… and {len(failed) - ROWS_MAX} more; --json lists all")
        for complaint in complaints:
            remark(complaint)
        words = [f"{len(committed)} committed"]
        words += [f"{len(failed)} not"] if failed else []
        words += [f"no report on {len(unreported)}"] if unreported else []
        remark(f"{remote}: {', '.join(words)}")
    if not (failed or unreported or complaints):
        return 0
    if committed:
        return EXIT_PARTIAL
    return EXIT_UNREACHABLE if unreported and not failed and not complaints else EXIT_FAILED
