"""``hounsfield get``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hounsfield.archive.cli.conversation import converse, limits_for
from hounsfield.archive.cli.identifiers import (
    UID_CHARS_MAX,
    is_uid,
    level_options,
    query_model,
    retrieval_identifiers,
)
from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import EXIT_USAGE, Failed, print_json, remark, size
from hounsfield.archive.cli.remote import remote_options, resolve
from hounsfield.archive.cli.retrieval import Retrieval, Tally, counting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.progress import Progress

    from hounsfield.archive.net.received_files import ReceivedFile
    from hounsfield.archive.net.scu import RemoteEntity, RequestorAssociation, ScuLimits
    from hounsfield.archive.wire import PresentationContext, RoleSelection


@click.command(
    "get",
    epilog="""\b
Examples:
  hounsfield get PACS --to ./out 1.2.840.113619.2.1
  hounsfield get PACS --to ./out 1.2.840.113619.2.1/1.2.840.113619.2.1.3
  hounsfield get PACS@192.0.2.10:104 --to ./out PatientID=4711 --level patient --json
  hounsfield get PACS --to ./out 1.2.840.113619.2.1 \\
    --sop-class 1.2.840.10008.5.1.4.1.1.6.1 --syntax 1.2.840.10008.1.2.4.50

Files are OUT/STUDY/SERIES/INSTANCE.dcm. What is wanted is named by UIDs, or by keys as for `hounsfield find`.
An association has room for 127 classes and syntaxes: 80 usual classes are proposed, images
uncompressed and compressed; what fails is asked for again in other syntaxes. Other classes: name them.""",
)
@click.argument("target")
@click.argument("what", nargs=-1, required=True, metavar="UID|KEY=VALUE...")
@click.option(
    "--to",
    "directory",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The directory to write in.",
)
@click.option("--sop-class", "classes", metavar="UID", multiple=True, help="Propose this class. Repeatable.")
@click.option(
    "--syntax", "syntaxes", metavar="UID", multiple=True, help="Propose this transfer syntax. Repeatable."
)
@level_options
@remote_options
@config_options
@json_option
def command(
    *,
    target: str,
    what: tuple[str, ...],
    directory: Path,
    classes: tuple[str, ...],
    syntaxes: tuple[str, ...],
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
    """Fetch studies, series or images from an application entity into files (C-GET).

    TARGET is [AE@]HOST:PORT, or the title of an AE in config.toml or from `hounsfield ae add`. They come on
    the association that asks for them: TARGET need not know us. Ctrl-C cancels; files that are whole stay.

    Exit codes: 0 all are here, 4 some are not, 1 none is, 3 nobody answers.
    """
    from hounsfield.archive.net.get_contexts import get_contexts

    for chosen in (*classes, *syntaxes):
        if not is_uid(chosen):
            raise Failed(f"{chosen[:UID_CHARS_MAX]!r} is no UID", EXIT_USAGE)
    asked = retrieval_identifiers(what, level)
    uid = query_model(model, [at for at, _ in asked]).get_uid
    contexts, roles, left_out = get_contexts(uid, classes, syntaxes)
    if left_out:
        raise Failed(
            f"no room for {len(left_out)} of these classes in one association: name fewer", EXIT_USAGE
        )
    remote = resolve(target, effective_config(config_file, overrides, data), **remote_words)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(f"cannot make {directory}: {error.strerror}") from error
    progress = counting(as_json)
    identifiers = [identifier for _, identifier in asked]
    fetch = _Fetch(
        remote, uid, identifiers, character_set, limits_for(timeout), directory, relational, progress
    )
    with progress or nullcontext():
        tally = fetch.perform(contexts, roles, again=not classes and not syntaxes)
    files = fetch.files.values()
    written = [file for file in files if file.path is not None]
    lost = [file for file in files if file.path is None]
    total = sum(file.size for file in written)
    if as_json:
        print_json(
            {
                "target": str(remote),
                "directory": str(directory),
                "files": [str(file.path) for file in written],
                "bytes": total,
                "unwritten": [{"instance": file.sop_instance_uid, "reason": file.error} for file in lost],
                **tally.body(),
            }
        )
    else:
        tally.show()
        for reason in dict.fromkeys(file.error for file in lost):
            remark(f"{sum(file.error == reason for file in lost)} not written: {reason}")
        failed = f", {tally.failed} failed" if tally.failed else ""
        rate = total / tally.seconds if tally.seconds else 0.0
        remark(
            f"{remote}: {len(written)} files in {directory}{failed}{tally.cancelled_words}; {size(total)} in "
            f"{tally.seconds:.1f} s ({size(rate)}/s)"
        )
    if tally.failed and not files and not fetch.roles_granted:
        remark(f"note: {remote} let us take the SCP role for no class: it cannot send on this association")
    if not files and not tally.complaints and not tally.interrupted:
        raise Failed(f"{remote} has nothing of that")
    return tally.exit_code(len(written))


class _Fetch:
    """One C-GET after the other, and again in other transfer syntaxes for those that failed in part."""

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        remote: RemoteEntity,
        sop_class_uid: str,
        identifiers: Sequence[dict[str, Any]],
        character_set: str,
        limits: ScuLimits,
        directory: Path,
        relational: bool,
        progress: Progress | None,
    ) -> None:
        self._remote = remote
        self._sop_class_uid = sop_class_uid
        self._identifiers = identifiers
        self._character_set = character_set
        self._limits = limits
        self._directory = directory
        self._relational = relational
        self._progress = progress
        self.files: dict[str, ReceivedFile] = {}
        """What came, by SOP Instance UID."""
        self.roles_granted = False

    def perform(
        self, contexts: Sequence[PresentationContext], roles: tuple[RoleSelection, ...], *, again: bool
    ) -> Tally:
        """What became of it all. Raises NetError."""
        from hounsfield.archive.net.errors import NetError
        from hounsfield.archive.net.get_contexts import further_contexts

        tally = self._once(self._identifiers, contexts, roles)
        if not again:
            return tally
        for further, their_roles in further_contexts(self._sop_class_uid):
            unwritten = len(self.files) - self._written()
            if tally.interrupted or tally.failed <= unwritten or not self.roles_granted:
                break
            before = self._written()
            failed = [self._identifiers[place] for place in tally.failed_requests]
            try:
                more = self._once(failed, further, their_roles)
            except (Failed, NetError) as error:  # what is here is here
                tally.complaints.append(str(error))
                break
            came = self._written() - before
            tally.completed += came
            tally.failed -= came
            tally.seconds += more.seconds
            tally.interrupted = more.interrupted
            tally.failed_uids = [uid for uid in tally.failed_uids if uid not in self.files]
            if not tally.failed:
                tally.complaints.clear()
        return tally

    def _written(self) -> int:
        return sum(file.path is not None for file in self.files.values())

    def _once(
        self,
        identifiers: Sequence[dict[str, Any]],
        contexts: Sequence[PresentationContext],
        roles: tuple[RoleSelection, ...],
    ) -> Tally:
        from hounsfield.archive.net.query_retrieve import Extensions
        from hounsfield.archive.net.received_files import FileStorage
        from hounsfield.archive.net.scu import Offer

        uid = self._sop_class_uid
        retrieval = Retrieval(
            self._remote,
            uid,
            contexts,
            identifiers,
            self._character_set,
            self._limits,
            Offer(
                roles=roles,
                extended=Extensions(relational=self._relational).negotiation(uid, find=False),
            ),
            storage=FileStorage(self._directory, self._remote.called_ae, self._arrived),
            relational=self._relational,
            on_association=self._agreed,
        )
        return converse(lambda: retrieval.perform(self._progress))

    def _agreed(self, association: RequestorAssociation) -> None:
        self.roles_granted = self.roles_granted or bool(association.roles)

    def _arrived(self, file: ReceivedFile) -> None:
        self.files[file.sop_instance_uid] = file
        if self._progress is not None and self._progress.task_ids:
            self._progress.update(self._progress.task_ids[-1], rest=f"{len(self.files)} files here")
