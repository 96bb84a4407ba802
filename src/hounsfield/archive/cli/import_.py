"""``hounsfield import``."""

from __future__ import annotations

import os
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hounsfield.archive.cli.conversation import converse, heeding_interrupts, limits_for
from hounsfield.archive.cli.identifiers import model_of_keys, parse_keys
from hounsfield.archive.cli.options import config_options, effective_config, json_option, split_address
from hounsfield.archive.cli.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    Failed,
    complain,
    err,
    print_json,
    print_table,
    printable,
    remark,
    size,
)
from hounsfield.archive.cli.remote import listening_tls, remote_options, resolve, secret

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Iterator, Sequence

    from rich.progress import Progress as Bar

    from hounsfield.archive.app.importing.fates import Tally
    from hounsfield.archive.app.importing.run import ImportOptions
    from hounsfield.archive.app.importing.work import Source
    from hounsfield.archive.config import Config

ROWS_MAX = 40  # of what was not simply taken; all of it stands in --report


@click.command(
    "import",
    epilog="""\b
Examples:
  hounsfield import /mnt/old-archive
  hounsfield import /media/cdrom/DICOMDIR /var/lib/orthanc/db --jobs 4
  hounsfield import /mnt/old-archive --report import.jsonl --json
  hounsfield import /mnt/old-archive --dry-run
  hounsfield import https://pacs.example.org/dicom-web --match StudyDate=20200101-20201231 \\
    --user import --passcode file:/etc/hounsfield/pacs-password
  hounsfield import ae:OLDPACS --match ModalitiesInStudy=CT --jobs 2
  hounsfield import ae:OLDPACS@192.0.2.10:104 --listen 0.0.0.0:11113 --calling HOUNSFIELD_IMP

\b
Where from (several at once, one after the other):
  a folder        every file below it that is DICOM, whatever its name; ZIP archives; an Orthanc
                  storage folder, compressed or not
  a DICOMDIR      stands for the files that it lists
  a file          DICOM, or a ZIP archive
  http(s)://…     the base URL of a DICOMweb server (QIDO-RS, WADO-RS)
  ae:TARGET       an AE, as for `hounsfield get`: C-FIND, then C-GET; with --listen C-MOVE to us""",
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Read so many files, or fetch so many series, at once.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Remember what is done with in this file.  [default: in the data directory]",
)
@click.option("--again", is_flag=True, help="Forget what is done with: read everything again.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Add what was not simply taken to this file, with the reason: a JSON object a line.",
)
@click.option("--dry-run", is_flag=True, help="List what would be read, and read nothing.")
@click.option(
    "--match",
    "keys",
    metavar="KEY=VALUE",
    multiple=True,
    help="Of servers and AEs only the studies that match: keys as for `hounsfield find`. Repeatable.",
)
@click.option("--bearer", metavar="SOURCE", help="A token for DICOMweb servers: file:PATH or env:NAME.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Have AEs send to us here (C-MOVE): they know our title (--calling) at this address.",
)
@click.option("--listen-tls", is_flag=True, help="With TLS there: --tls-certificate, --tls-key, --tls-ca.")
@remote_options
@config_options
@json_option
def command(
    *,
    sources: tuple[str, ...],
    jobs: int,
    state: Path | None,
    again: bool,
    report: Path | None,
    dry_run: bool,
    keys: tuple[str, ...],
    bearer: str | None,
    listen: str | None,
    listen_tls: bool,
    timeout: float,
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    as_json: bool,
    **remote_words: Any,
) -> int:
    """Bring existing studies into the archive, beside its running server or without one.

    Objects are kept byte for byte, and acknowledged when they are durable, as those are that a device sends;
    coercions and routes apply (protocol "import"). Sources are read only, each file once. Kill it whenever
    you like: started again it goes on, and reads nothing again that was done with.

    Exit codes: 0 all of it is here, 4 some is not, 1 none is, 3 nobody answers.
    """
    from hounsfield.archive.app.importing.fates import Tally, open_report
    from hounsfield.archive.app.importing.run import ImportOptions
    from hounsfield.archive.app.logs import set_up_logs

    config = effective_config(config_file, overrides, data)
    options = ImportOptions(jobs=jobs, state=state, afresh=again)
    with ExitStack() as stack:
        tls = listening_tls(listen, remote_words) if listen_tls else None
        found = list(_Sources(config, keys, bearer, (listen, tls), timeout, remote_words, stack).of(sources))
        # What the engine, or our listener, has to say stays off standard output.
        set_up_logs(level="warning", form=config.logs.format, salt=os.urandom(16))
        tally = Tally(None if report is None else stack.enter_context(open_report(report)))
        if dry_run:
            return _listed(config, found, tally, options, as_json)
        interrupted = _bring(config, found, tally, options, None if as_json else _bar())
    _show(tally, as_json, interrupted)
    return EXIT_INTERRUPTED if interrupted else _exit_code(tally)


class _Sources:
    """What the words of the command line name, and how it is asked."""

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        config: Config,
        keys: Sequence[str],
        bearer: str | None,
        listen: tuple[str | None, ssl.SSLContext | None],
        timeout: float,
        remote_words: dict[str, Any],
        stack: ExitStack,
    ) -> None:
        self._config = config
        self._keys = keys
        self._bearer = bearer
        self._listen, self._listen_tls = listen
        self._timeout = timeout
        self._words = remote_words
        self._stack = stack

    def of(self, words: Sequence[str]) -> Iterator[Source]:
        """Raises Failed for what is none."""
        from hounsfield.archive.app.importing.tree import Met, Tree

        met = Met()
        for word in words:
            if word.startswith(("http://", "https://")):
                yield self._web(word)
            elif word.startswith("ae:"):
                yield self._entity(word.removeprefix("ae:"))
            elif _is_there(word):
                yield Tree(Path(word), met)
            else:
                raise Failed(
                    f"{word}: no such file or folder; an AE is ae:{word}, a DICOMweb server https://…",
                    EXIT_USAGE,
                )

    def _web(self, url: str) -> Source:
        from urllib.parse import urlsplit

        from hounsfield.archive.app.importing.dicomweb import DicomWeb
        from hounsfield.archive.app.importing.web_client import WebOptions

        parts = urlsplit(url)
        if parts.username or parts.password or parts.query or parts.fragment or not parts.hostname:
            raise Failed(
                "the URL of a DICOMweb server is its base alone, such as https://pacs.example.org/dicom-web: "
                "filters are given with --match, a user with --user and --passcode",
                EXIT_USAGE,
            )
        user, passcode = self._words["user"], self._words["passcode"]
        if bool(user) != bool(passcode):
            raise Failed("for a DICOMweb server --user and --passcode go together", EXIT_USAGE)
        parse_keys(self._keys)  # refuses what is no attribute
        match = [(name, value) for name, _, value in (one.partition("=") for one in self._keys)]
        return DicomWeb(
            url,
            match,
            WebOptions(
                user=user or "",
                password=secret(passcode, "--passcode") if passcode else "",
                bearer=secret(self._bearer, "--bearer") if self._bearer else "",
                tls=self._tls(),
                timeout_s=self._timeout,
            ),
        )

    def _tls(self) -> ssl.SSLContext | None:
        import ssl

        words = self._words
        if not (words["tls_ca"] or words["tls_certificate"]):
            return None
        try:
            context = ssl.create_default_context(cafile=words["tls_ca"])
            if words["tls_certificate"]:
                context.load_cert_chain(words["tls_certificate"], words["tls_key"])
        except (OSError, ssl.SSLError) as error:
            raise Failed(f"the certificates cannot be used: {error}", EXIT_USAGE) from error
        return context

    def _entity(self, target: str) -> Source:
        from hounsfield.archive.app.importing.entity import Entity
        from hounsfield.archive.app.importing.entity_ways import EntityOptions

        remote = resolve(target, self._config, **self._words)
        options = EntityOptions(
            limits=limits_for(self._timeout),
            listen=None if self._listen is None else self._bound(self._listen),
            listen_tls=self._listen_tls,
            title=remote.calling_ae,
        )
        return Entity(remote, model_of_keys(parse_keys(self._keys)), options)

    def _bound(self, listen: str) -> socket.socket:
        import socket

        host, port = split_address(listen, "--listen")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            return self._stack.enter_context(socket.create_server((host, port), family=family, backlog=64))
        except OSError as error:
            raise Failed(f"cannot listen at {listen}: {error.strerror}") from error


def _is_there(word: str) -> bool:
    try:
        return Path(word).exists()
    except OSError as error:  # a folder above it that we may not look into, a name that is too long
        raise Failed(f"{word}: {error.strerror}", EXIT_USAGE) from error


def _bring(
    config: Config, sources: Sequence[Source], tally: Tally, options: ImportOptions, bar: Bar | None
) -> bool:
    """Whether it was interrupted: what is here is here."""
    import trio

    from hounsfield.archive.app.importing.run import run_import

    async def run() -> bool:
        scope = trio.CancelScope()

        async def cancel() -> None:
            scope.cancel()

        async with heeding_interrupts(cancel) as interrupts:
            with scope:
                shown = None if bar is None else _Shown(bar)
                await run_import(config, sources, tally, options, progress=shown)
        return interrupts.asked

    with bar or nullcontext():
        return converse(run)


def _bar() -> Bar | None:
    if not err().is_terminal:
        return None
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[objects]} objects, {task.fields[things]} of {task.fields[of]} done"),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=err(),
        transient=True,
    )


class _Shown:
    """The bar: of bytes, since files differ. Its end is what has been found so far."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._objects = self._things = self._of = self._total = 0
        self._task = bar.add_task("import", total=None, objects=0, things=0, of=0)

    def found(self, things: int, size: int) -> None:
        self._of += things
        self._total += size
        self._bar.update(self._task, total=self._total or None, of=self._of)

    def done(self, things: int, size: int) -> None:
        self._things += things
        self._bar.update(self._task, advance=size, things=self._things)

    def object(self) -> None:
        self._objects += 1
        self._bar.update(self._task, objects=self._objects)


def _listed(
    config: Config, sources: Sequence[Source], tally: Tally, options: ImportOptions, as_json: bool
) -> int:
    from functools import partial

    import trio

    from hounsfield.archive.app.importing.fates import as_text
    from hounsfield.archive.app.importing.run import run_import

    count = total = 0

    def show(place: str, length: int | None) -> None:
        nonlocal count, total
        count += 1
        total += length or 0
        if as_json:
            print_json({"place": as_text(place), "bytes": length})
        else:
            click.echo(printable(place))

    trio.run(partial(run_import, config, sources, tally, options, listing=show))
    remark(f"{count} to be read" + (f", {size(total)}" if total else ""))
    for complaint in tally.complaints:
        complain(complaint)
    return _exit_code(tally)


def _show(tally: Tally, as_json: bool, interrupted: bool) -> None:
    from hounsfield.archive.app.importing.fates import Fate

    if as_json:
        print_json(
            {
                "counts": {fate.key: tally.fates[fate] for fate in Fate},
                "flagged": tally.flagged,
                "before": tally.before,
                "bytes": tally.bytes,
                "noted": [one.body() for one in tally.noted],
                "remarks": tally.remarks,
                "complaints": tally.complaints,
                "interrupted": interrupted,
            }
        )
    else:
        if tally.noted:
            rows = [(printable(one.place), one.fate.value, one.reason) for one in tally.noted[:ROWS_MAX]]
            print_table(["where", "what became of it", "why"], rows)
            if sum(tally.fates.values()) and len(tally.noted) > ROWS_MAX:
                remark("… and more; --report writes all of them to a file")
        counts = [(fate.value, tally.fates[fate]) for fate in Fate if tally.fates[fate]]
        if tally.before:
            counts.append(("done with before", tally.before))
        if counts:
            print_table(["", "objects"], counts, right=["objects"])
        elif not tally.complaints and not interrupted:
            remark("nothing was found: no file there, or no study that matches")
        if tally.flagged:
            remark(f"{tally.flagged} of those imported have something that is worth a look")
        remark(f"{size(tally.bytes)} in objects that are here{'; interrupted' if interrupted else ''}")
        for text in tally.remarks:
            remark(printable(text))
    for complaint in tally.complaints:
        complain(complaint)


def _exit_code(tally: Tally) -> int:
    if not tally.failed and not tally.complaints:
        return 0
    if tally.here or tally.before:
        return EXIT_PARTIAL
    only_silence = tally.unreachable == len(tally.complaints) > 0 and not tally.failed
    return EXIT_UNREACHABLE if only_silence else EXIT_FAILED
