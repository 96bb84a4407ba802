"""What is asked of tiers: when series were opened last, which are wanted hot, and which studies stay there.

The first two are hints, lost with an index: then a series counts as opened when it came, and who waits for a
recall asks again. A *pin* is a fact: it is there after a reindex, and says who wants it and why.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from hounsfield.archive.dicom.attributes import uid_is_usable
from hounsfield.archive.index.journal import Journal
from hounsfield.archive.index.rows import decode, encode
from hounsfield.archive.index.tables import OPENED, RECALL
from hounsfield.storage_backends.api import Batch, KeyValueStore, Snapshot
from hounsfield.storage_backends.errors import PreconditionError

__all__ = [
    "FACT_PIN",
    "Pin",
    "PinError",
    "RecallRow",
    "ask_for",
    "day_of",
    "is_pinned",
    "last_opened",
    "note_opened",
    "pin",
    "pinned",
    "pins",
    "recalls",
    "satisfied",
    "unpin",
]

FACT_PIN = "pin"
_DAY_BYTES = 4


def day_of(at_ns: int) -> datetime.date:
    """The local day of a moment."""
    return datetime.datetime.fromtimestamp(at_ns / 1_000_000_000).astimezone().date()


# ---------------------------------------------------------------- opened


def note_opened(store: KeyValueStore, series_keys: Iterable[bytes], day: datetime.date) -> int:
    """Note that series were opened on a day; of how many that was news."""
    ordinal = day.toordinal().to_bytes(_DAY_BYTES, "big")
    keys = sorted(set(series_keys))
    with store.snapshot() as snapshot:
        known = snapshot.get_many(OPENED, keys)
    batch = Batch()
    for key, held in zip(keys, known, strict=True):
        if held is None or held < ordinal:
            batch.put(OPENED, key, ordinal)
    if batch.puts:
        store.commit(batch)
    return len(batch.puts)


def last_opened(snapshot: Snapshot, series_key: bytes) -> datetime.date | None:
    """The last day on which a series was opened; None: nobody noted any."""
    held = snapshot.get(OPENED, series_key)
    return None if held is None else datetime.date.fromordinal(int.from_bytes(held, "big"))


# ---------------------------------------------------------------- wanted hot


class RecallRow(msgspec.Struct, array_like=True, frozen=True):
    """A series is to be hot: since when, and why (``opened``, ``asked``, ``prefetch``)."""

    asked_ns: int
    why: str = ""


#: What is waited for by somebody goes before what will be wanted tomorrow.
URGENCY: Mapping[str, int] = {"opened": 0, "asked": 1, "prefetch": 2}


def ask_for(store: KeyValueStore, series_keys: Iterable[bytes], row: RecallRow) -> int:
    """Have series become hot as soon as may be; of how many that was not asked for yet, or less urgently."""
    keys = sorted(set(series_keys))
    with store.snapshot() as snapshot:
        known = snapshot.get_many(RECALL, keys)
    batch = Batch()
    for key, held in zip(keys, known, strict=True):
        if held is None or _urgency(decode(RecallRow, held)) > _urgency(row):
            batch.put(RECALL, key, encode(row))
    if batch.puts:
        store.commit(batch)
    return len(batch.puts)


def recalls(
    store: KeyValueStore, limit: int, *, without: Collection[bytes] = ()
) -> list[tuple[bytes, RecallRow]]:
    """Series that are to become hot, the most urgent first, then those asked for longest ago."""
    with store.snapshot() as snapshot:
        found = [(key, decode(RecallRow, held)) for key, held in snapshot.scan(RECALL) if key not in without]
    return sorted(found, key=lambda one: (_urgency(one[1]), one[1].asked_ns, one[0]))[:limit]


def satisfied(store: KeyValueStore, series_key: bytes, row: RecallRow) -> None:
    """It is hot, or cannot be; unless somebody asked more urgently meanwhile."""
    batch = Batch(uses_reserve=True)
    batch.require(RECALL, series_key, encode(row))
    batch.delete(RECALL, series_key)
    try:
        store.commit(batch)
    except PreconditionError:
        return


def _urgency(row: RecallRow) -> int:
    return URGENCY.get(row.why, len(URGENCY))


# ---------------------------------------------------------------- pins


class PinError(ValueError):
    """A study cannot be pinned as asked; the text says why."""

    retry = False


@dataclass(frozen=True, slots=True)
class Pin:
    """A study stays in the hot tier, until a moment (0: until it is taken back)."""

    study_uid: str
    by: str
    why: str
    since_ns: int
    until_ns: int = 0

    def in_force(self, now_ns: int) -> bool:
        """Whether it holds now."""
        return not self.until_ns or now_ns < self.until_ns

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Pin:
        """From a fact's body; what a later release added is left out."""
        return cls(**{name: body[name] for name in cls.__slots__ if name in body})


def pin(journal: Journal, wanted: Pin) -> None:
    """Pin a study, also one that is not here yet. ``PinError``."""
    if not uid_is_usable(wanted.study_uid):
        raise PinError("this is no Study Instance UID: digits and dots, at most 64; nothing is pinned by it")
    if wanted.until_ns and wanted.until_ns <= wanted.since_ns:
        raise PinError("the day on which the pin ends is over already")
    study_uid = str(wanted.study_uid)  # plain text: subclasses do not encode
    body = {name: getattr(wanted, name) for name in Pin.__slots__} | {"study_uid": study_uid}
    journal.commit_fact(FACT_PIN, study_uid, body, wanted.since_ns)


def unpin(journal: Journal, store: KeyValueStore, study_uid: str, now_ns: int) -> None:
    """Take a pin back; the rules decide again. ``PinError`` when there is none."""
    with store.snapshot() as snapshot:
        if journal.state_of(snapshot, FACT_PIN, study_uid) is None:
            raise PinError("this study is not pinned; `hounsfield tier pin --list` shows those that are")
    journal.commit_fact(FACT_PIN, study_uid, None, now_ns)


def pins(snapshot: Snapshot, journal: Journal) -> Iterator[Pin]:
    """Every pin, also those whose time is over."""
    return map(Pin.of, journal.state(snapshot, FACT_PIN))


def pinned(snapshot: Snapshot, journal: Journal, now_ns: int) -> frozenset[str]:
    """The studies that are pinned now."""
    return frozenset(one.study_uid for one in pins(snapshot, journal) if one.in_force(now_ns))


def is_pinned(snapshot: Snapshot, journal: Journal, study_uid: str, now_ns: int) -> bool:
    """Whether one study is pinned now."""
    held = journal.state_of(snapshot, FACT_PIN, study_uid)
    return held is not None and Pin.of(held).in_force(now_ns)
