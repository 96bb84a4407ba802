"""Merging: fresh studies get their merged postings, many studies in one sorted pass.

One round takes up to some thousands of fresh studies through four stages, each in short commits, so that
nobody who stores waits long for the index's one writer:

1. *say what will stand*: each study's ``grams`` row gets its present texts and day besides those of before;
2. *change postings*, token by token in order: add what the present texts give, remove what only former
   ones gave;
3. *say what stands*: former texts leave the ``grams`` row, which goes when the study is gone;
4. *no longer fresh*: only if ``fresh`` still holds what was read when the round began.

A round that dies anywhere leaves its studies fresh, so that queries still look at them and the next
round does everything again; adding twice is adding once, and the ``grams`` row names all texts whose postings
may stand. Every commit requires and moves the *turn*, so that of two who believe to lead only one gets on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from hounsfield.archive.index import postings, tokens
from hounsfield.archive.index.corrections import is_hidden
from hounsfield.archive.index.rows import Attributes, StudyRow, decode
from hounsfield.archive.index.sealed import KeyedHash, RowSealer
from hounsfield.archive.index.tables import FRESH, GRAMS, META, STUDY
from hounsfield.storage_backends.api import Batch, KeyValueStore, Snapshot
from hounsfield.storage_backends.errors import PreconditionError

STUDIES_PER_READ = 256  # rows opened in one snapshot: some milliseconds
#: What one commit should take, so that who stores meanwhile waits no longer: commits shrink and grow to meet
#: it. In a busy process every write waits for the interpreter, a hundred times as long as it takes.
COMMIT_S = 0.01
CHANGES_PER_COMMIT_MIN = 16
STUDIES_PER_UPGRADE_READ = 1000

_TURN = b"grams/turn"
_TOKENIZER = b"grams/tokenizer"


@dataclass(frozen=True, slots=True)
class MergeLimits:
    """How much at once."""

    #: More share more blocks, and a round holds all their postings in memory: 100 bytes each, 200 a study.
    studies_per_round: int = 4096
    #: Rows or blocks (of 2 KB) written in one commit, at most.
    changes_per_commit: int = 512


class TextRow(msgspec.Struct, array_like=True, frozen=True):
    """Texts for which merged postings may stand."""

    tokenizer: int
    day: bytes
    attributes: Attributes


class GramsRow(msgspec.Struct, array_like=True, frozen=True):
    """All texts of one study for which merged postings may stand; several while they change."""

    texts: tuple[TextRow, ...]


@dataclass(slots=True)
class _Study:
    """A fresh study, in a round."""

    study_id: bytes
    fresh: bytes
    former: tuple[TextRow, ...]
    present: TextRow | None
    stale: list[TextRow] = field(default_factory=list)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(GramsRow)


def is_complete(snapshot: Snapshot) -> bool:
    """Whether every study is either fresh or merged by the present tokenizer, so that grams miss nothing."""
    return snapshot.get(META, _TOKENIZER) == b"%d" % tokens.TOKENIZER


class Merger:
    """Merges fresh studies. Blocking; one at a time does the work, others notice and stop."""

    def __init__(
        self, store: KeyValueStore, sealer: RowSealer, hashes: KeyedHash, limits: MergeLimits | None = None
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._hashes = hashes
        self._limits = limits or MergeLimits()
        self._turn: bytes | None = None
        self._changes = min(64, self._limits.changes_per_commit)  # in the next commit

    def merge_all(self) -> int:
        """Merge until nothing is fresh; how many studies were."""
        merged = 0
        while True:
            before = merged
            for done in self.round():
                merged += done
            if merged == before:
                return merged

    def round(self) -> Iterator[int]:
        """One round, commit by commit: each step is short, and says how many studies it finished.

        ``PreconditionError`` when somebody else took the turn.
        """
        with self._store.snapshot() as snapshot:
            self._turn = snapshot.get(META, _TURN)
            complete = is_complete(snapshot)
        if not complete:
            yield from self._upgrade()
        studies = self._fresh_studies()
        if not studies:
            return
        yield 0
        yield from self._say_what_will_stand(studies)
        yield from self._change_postings(studies)
        yield from self._finish(studies)

    # ------------------------------------------------------------ reading

    def _fresh_studies(self) -> list[_Study]:
        studies: list[_Study] = []
        after: bytes | None = None
        while len(studies) < self._limits.studies_per_round:
            with self._store.snapshot() as snapshot:
                found = list(snapshot.scan(FRESH, after=after, limit=STUDIES_PER_READ))
                studies += [self._fresh_study(snapshot, study_id, fresh) for study_id, fresh in found]
            if len(found) < STUDIES_PER_READ:
                break
            after = found[-1][0]
        return studies

    def _fresh_study(self, snapshot: Snapshot, study_id: bytes, fresh: bytes) -> _Study:
        held = snapshot.get(GRAMS, study_id)
        former = () if held is None else self._opened(study_id, held).texts
        sealed = snapshot.get(STUDY, study_id)
        if sealed is None:
            return _Study(study_id, fresh, former, None)
        row = decode(StudyRow, self._sealer.open(STUDY, study_id, sealed))
        day = tokens.inverted_day(row.attributes)
        present = TextRow(tokens.TOKENIZER, day, tokens.merged_attributes(row))
        return _Study(study_id, fresh, former, present)

    def _opened(self, study_id: bytes, sealed: bytes) -> GramsRow:
        return _decoder.decode(self._sealer.open(GRAMS, study_id, sealed))

    # ------------------------------------------------------------ the stages

    def _say_what_will_stand(self, studies: list[_Study]) -> Iterator[int]:
        for group in self._groups(studies):
            self._sealer.prepare(len(group))
            batch = Batch(uses_reserve=all(study.present is None for study in group))
            with self._store.snapshot() as snapshot:
                for study in group:
                    study.stale = [text for text in study.former if text != study.present]
                    if study.present is not None and study.present not in study.former:
                        self._put(batch, study.study_id, (*study.former, study.present))
                    if study.stale:
                        self._free_neighbours(snapshot, batch, study.study_id)
            self._commit(batch)
            yield 0

    def _free_neighbours(self, snapshot: Snapshot, batch: Batch, study_id: bytes) -> None:
        """Studies that share a value with one whose postings go get theirs written again."""
        prefix = study_id[: postings.STUDY_ID_BYTES_HELD]
        for neighbour, sealed in snapshot.scan(STUDY, prefix=prefix):
            if neighbour != study_id and snapshot.get(FRESH, neighbour) is None:
                row = decode(StudyRow, self._sealer.open(STUDY, neighbour, sealed))
                if is_hidden(row.uid):
                    continue
                batch.put(FRESH, neighbour, tokens.fresh_value(row))

    def _change_postings(self, studies: list[_Study]) -> Iterator[int]:
        adds: dict[bytes, set[int]] = {}
        removes: dict[bytes, set[int]] = {}
        for i, study in enumerate(studies):
            for into, texts in ((adds, [study.present] if study.present else []), (removes, study.stale)):
                for text in texts:
                    value = postings.value_of(text.day + study.study_id)
                    for token in tokens.merged_tokens(self._hashes, text.attributes, text.tokenizer):
                        into.setdefault(token, set()).add(value)
            if i % STUDIES_PER_READ == STUDIES_PER_READ - 1:
                yield 0
        nothing: set[int] = set()
        order = sorted(adds.keys() | removes.keys())
        at = 0
        while at < len(order):
            batch = Batch(uses_reserve=not adds)
            with self._store.snapshot() as snapshot:
                while at < len(order) and len(batch.puts) + len(batch.deletes) < self._changes:
                    token = order[at]
                    postings.plan_change(
                        snapshot, batch, token, adds.get(token, nothing), removes.get(token, nothing)
                    )
                    at += 1
            self._commit(batch)
            yield 0

    def _finish(self, studies: list[_Study]) -> Iterator[int]:
        for group in self._groups(studies):
            self._sealer.prepare(len(group))
            batch = Batch(uses_reserve=True)
            for study in group:
                if study.present is None:
                    batch.delete(GRAMS, study.study_id)
                elif study.stale:
                    self._put(batch, study.study_id, (study.present,))
            if batch.puts or batch.deletes:
                self._commit(batch)
            yield self._no_longer_fresh(group)

    def _no_longer_fresh(self, group: list[_Study]) -> int:
        """Those that did not change meanwhile; how many."""
        while True:
            with self._store.snapshot() as snapshot:
                same = [study for study in group if snapshot.get(FRESH, study.study_id) == study.fresh]
            batch = Batch(uses_reserve=True)
            for study in same:
                batch.require(FRESH, study.study_id, study.fresh)
                batch.delete(FRESH, study.study_id)
            try:
                self._commit(batch)
            except PreconditionError as error:
                if error.table != FRESH.name:
                    raise  # not our turn any more
            else:
                return len(same)

    def _groups(self, studies: list[_Study]) -> Iterator[list[_Study]]:
        start = 0
        while start < len(studies):
            end = start + self._changes
            yield studies[start:end]
            start = end

    # ------------------------------------------------------------ an older tokenizer

    def _upgrade(self) -> Iterator[int]:
        """Make fresh what another tokenizer version indexed; then say that this version rules."""
        after: bytes | None = None
        while True:
            with self._store.snapshot() as snapshot:
                found = list(snapshot.scan(STUDY, after=after, limit=STUDIES_PER_UPGRADE_READ))
            for study_id, sealed in found:
                self._upgrade_study(study_id, sealed)
            yield 0
            if len(found) < STUDIES_PER_UPGRADE_READ:
                break
            after = found[-1][0]
        batch = Batch(uses_reserve=True)
        batch.put(META, _TOKENIZER, b"%d" % tokens.TOKENIZER)
        self._commit(batch)
        yield 0

    def _upgrade_study(self, study_id: bytes, sealed: bytes) -> None:
        """Whoever changes the study at the same time gives it the new tokens: then this has nothing to do."""
        old = decode(StudyRow, self._sealer.open(STUDY, study_id, sealed))
        if old.tokenizer == tokens.TOKENIZER:
            return
        new = msgspec.structs.replace(old, tokenizer=tokens.TOKENIZER)
        self._sealer.prepare(1)
        batch = Batch()
        batch.require(STUDY, study_id, sealed)
        batch.put(STUDY, study_id, self._sealer.seal(STUDY, study_id, msgspec.msgpack.encode(new)))
        tokens.plan_tokens(batch, self._hashes, study_id, old, new)
        (result,) = self._store.commit_many([batch])
        if isinstance(result, Exception) and not isinstance(result, PreconditionError):
            raise result

    # ------------------------------------------------------------ writing

    def _put(self, batch: Batch, study_id: bytes, texts: tuple[TextRow, ...]) -> None:
        row = _encoder.encode(GramsRow(texts))
        batch.put(GRAMS, study_id, self._sealer.seal(GRAMS, study_id, row))

    def _commit(self, batch: Batch) -> None:
        """Commit with the turn, and make the next commit larger or smaller by how long this one took."""
        batch.require(META, _TURN, self._turn)
        turn = os.urandom(8)
        batch.put(META, _TURN, turn)
        began = time.monotonic()
        self._store.commit(batch)
        took = time.monotonic() - began
        self._turn = turn
        if took > COMMIT_S:
            self._changes = max(CHANGES_PER_COMMIT_MIN, self._changes // 2)
        elif took < COMMIT_S / 4:
            self._changes = min(self._limits.changes_per_commit, self._changes * 2)
