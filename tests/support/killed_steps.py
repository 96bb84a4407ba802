"""Work of the leader stopped at any of its steps, as a process that dies there; and what another does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.rewriting import RewriteLimits, Rewriter
from hounsfield.archive.index.use import uses
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.lmdb_store import LmdbStore
from hounsfield.storage_backends.local_blobs import LocalBlobs
from hounsfield.storage_backends.local_writer import LocalBlobWriter

STEPS: tuple[tuple[type, str], ...] = (
    (Keyring, "create_key"),
    (Keyring, "destroy_key"),
    (LocalBlobs, "create"),
    (LocalBlobs, "delete"),
    (LocalBlobWriter, "append"),
    (LocalBlobWriter, "sync"),
    (LmdbStore, "commit"),
    (LmdbStore, "sync"),
)


class Killed(BaseException):
    """The process is dead: nothing that it would still do happens."""


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> Iterator[list[str]]:
    """Die at the so-manieth step, before it or just after it; every later step fails, too."""
    seen: list[str] = []

    def patched(cls: type, name: str) -> Callable[..., Any]:
        real = getattr(cls, name)

        def call(*args: Any, **named: Any) -> Any:
            seen.append(f"{cls.__name__}.{name}")
            if len(seen) > step or (len(seen) == step and not after):
                raise Killed
            result = real(*args, **named)
            if len(seen) == step:
                if isinstance(result, LocalBlobWriter):
                    result.close()  # as the end of a process does, which gives up its locks
                raise Killed
            return result

        return call

    with monkeypatch.context() as patch:
        for cls, name in STEPS:
            patch.setattr(cls, name, patched(cls, name))
        yield seen


def compact_everything(stores: Stores) -> None:
    """As the leader does: emptied ones go, then all of which something is dead."""
    rewriter = Rewriter(stores.indexer, RewriteLimits(group_bytes=4096, group_records=2))
    for _ in range(4):
        rewriter.remove_emptied()
        with stores.store.snapshot() as snapshot:
            todo = [segment for segment, _ in uses(snapshot)]
        todo += [one for one in stores.log.segment_ids() if stores.log.size(one) <= 8192]
        for segment in dict.fromkeys(todo):
            rewriter.rewrite_segment(segment)
