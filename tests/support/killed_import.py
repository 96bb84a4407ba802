"""Imports in processes of their own, which kill themselves (kill -9) after so many objects.

Arguments: after how many; a JSON list of imports: settings, what the source is (folder, web, ae), where.
Writes how each ended, as a JSON list of waitpid's statuses. One process has read the program for all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import trio

from hounsfield.archive.app.importing.dicomweb import DicomWeb
from hounsfield.archive.app.importing.entity import Entity
from hounsfield.archive.app.importing.fates import Tally
from hounsfield.archive.app.importing.run import ImportOptions, run_import
from hounsfield.archive.app.importing.tree import Met, Tree
from hounsfield.archive.app.importing.work import NoProgress, Source
from hounsfield.archive.config import load_config
from hounsfield.archive.net.remote import RemoteEntity


class Killing(NoProgress):
    def __init__(self, after: int) -> None:
        self._left = after

    def object(self) -> None:
        """See :class:`~hounsfield.archive.app.importing.work.Progress`."""
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


def source_of(kind: str, where: str) -> Source:
    if kind == "folder":
        return Tree(Path(where), Met())
    if kind == "web":
        return DicomWeb(where)
    return Entity(RemoteEntity("127.0.0.1", int(where), called_ae="THEIRS", calling_ae="OURS"), {})


def bring(settings: list[str], kind: str, where: str, after: int) -> None:
    config = load_config(None, settings)
    work = partial(run_import, progress=Killing(after))
    trio.run(work, config, [source_of(kind, where)], Tally(), ImportOptions(jobs=1))


def main(after: str, imports: str) -> None:
    processes = []
    for settings, kind, where in json.loads(imports):
        pid = os.fork()  # there is no other thread yet
        if not pid:
            try:
                bring(settings, kind, where, int(after))
            finally:
                os._exit(1)
        processes.append(pid)
    json.dump([os.waitpid(pid, 0)[1] for pid in processes], sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
