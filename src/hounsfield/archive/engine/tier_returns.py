"""What comes back into the data directory: series that somebody opened or asked for, and priors.

Whoever waits for a series goes before what will be wanted tomorrow. One that cannot be brought back is put
off for a while, so that others are not kept waiting by it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable

from hounsfield.archive.engine.errors import NotFoundError
from hounsfield.archive.engine.led_work import LedWork
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.tier_progress import TieringFigures, TierProgress
from hounsfield.archive.engine.tier_troubles import Troubles
from hounsfield.archive.index.carrying import Pace
from hounsfield.archive.index.copying import Copying, NoCopyError
from hounsfield.archive.index.demand import RecallRow, ask_for, recalls, satisfied
from hounsfield.archive.index.packs import HOT, PackGoneError, PackRow, packs_holding
from hounsfield.archive.index.prefetching import Prefetching
from hounsfield.archive.index.rows import Event
from hounsfield.archive.index.tables import STUDY_ID_BYTES
from hounsfield.archive.index.verifying import Verifying
from hounsfield.storage_backends.errors import StorageError, StoreFullError

__all__ = ["EVENT_RECALLED", "TierReturns"]

EVENT_RECALLED = "series-recalled"
RECALLS_AT_ONCE = 16  # looked up together; whoever is urgent waits for no more than these
RECALL_AGAIN_S = 15.0  # what could not be brought back is tried again then: others are waiting, too
AWAY_AGAIN_MAX_S = 60.0  # and ever more seldom, while a tier is away so seldom: it costs one question
FAILED_AGAIN_MAX_S = 3600.0  # and what else went wrong may have cost reading a whole pack
OPENED_LOOKED_AT = 64  # objects of a series that was opened, for packs of others in which they lie: 1 ms


class TierReturns:
    """Brings series back. Blocking; asking is for any thread, bringing for one at a time, under a lease."""

    def __init__(
        self,
        stores: Stores,
        copying: Copying,
        figures: TieringFigures,
        *,
        progress: TierProgress,
        leading: LedWork,
        prefetching: Prefetching,
        verifying: Verifying,
        on_commit: Callable[[], None],
    ) -> None:
        self._stores = stores
        self._store = stores.store
        self._copying = copying
        self._figures = figures
        self._progress = progress
        self._leading = leading
        self._prefetching = prefetching
        self._verifying = verifying
        self._on_commit = on_commit
        self.put_off: dict[bytes, float] = {}  # series, and until when by the monotonic clock
        self._tries: Counter[bytes] = Counter()  # in vain, of series that are asked for

    # ------------------------------------------------------------ asked for

    def ask(self, series_keys: Iterable[bytes], why: str) -> int:
        """Have those of these series that are elsewhere brought back soon; how many they are."""
        rows_max = OPENED_LOOKED_AT if why == "opened" else None
        away = [key for key in series_keys if self._is_away(key, rows_max)]
        if away:
            ask_for(self._store, away, RecallRow(self._copying.now(), why))
        return len(away)

    def ask_for_study(self, study_uid: str, series_uid: str, why: str) -> int:
        """The same for a study, or one of its series. ``NotFoundError``."""
        catalog = self._stores.catalog
        with self._store.snapshot() as snapshot:
            series = [
                key
                for key, row in catalog.series_of(snapshot, catalog.study_id(study_uid))
                if series_uid in {"", row.uid}
            ]
        if not series:
            raise NotFoundError("no such study or series in this archive")
        return self.ask(series, why)

    def _is_away(self, series_key: bytes, rows_max: int | None) -> bool:
        if len(self._copying.tiers) < 2:
            return False
        return any(HOT not in row.copies for _, row in self._packs(series_key, rows_max))

    def _packs(self, series_key: bytes, rows_max: int | None = None) -> list[tuple[bytes, PackRow]]:
        """The packs in which a series lies, those of another series that it was moved out of, too."""
        return packs_holding(self._store, self._stores.catalog, series_key, rows_max)

    # ------------------------------------------------------------ brought back

    def is_anything_due(self) -> bool:
        """Whether somebody waits for a series that was not just tried in vain."""
        return bool(self._recalls(1))

    def _recalls(self, limit: int) -> list[tuple[bytes, RecallRow]]:
        now = time.monotonic()
        self.put_off = {key: until for key, until in self.put_off.items() if now < until}
        return recalls(self._store, limit, without=self.put_off)

    def bring_back(self) -> None:
        """Everything that is asked for, but for what was just tried in vain.

        A tier that is found to be away is asked once in such a round, and said once.
        """
        troubles = Troubles()
        try:
            while found := self._recalls(RECALLS_AT_ONCE):
                with self._progress.of("recall", self._leading.pace(throttled=False)) as (pace, _):
                    for series_key, row in found:
                        again_s = self._recalled(series_key, row.why, pace, troubles)
                        if again_s is None:
                            self._tries.pop(series_key, None)
                            satisfied(self._store, series_key, row)
                        else:  # it stays asked for
                            self.put_off[series_key] = time.monotonic() + again_s
        finally:
            troubles.say("series could not be brought back yet")

    def _recalled(self, series_key: bytes, why: str, pace: Pace, troubles: Troubles) -> float | None:
        """Bring a series back; in how many seconds it is to be tried again, None: it is done, or over."""
        brought = 0
        for segment, row in self._packs(series_key):
            sources = row.copies.keys() & set(self._copying.tiers) - {HOT}
            if HOT in row.copies:
                continue
            if sources and sources <= troubles.away:
                troubles.note(sources, "it does not answer")
                return self._later(series_key, AWAY_AGAIN_MAX_S)
            known = {tier for pack, tier in self._verifying.damaged() if pack == segment}
            if sources and sources <= known:  # nothing of it is read again before it is seen to be right
                troubles.note(sources, "the only copy is damaged or missing")
                return self._later(series_key, AWAY_AGAIN_MAX_S)
            try:
                brought += self._copying.copy(segment, HOT, pace=pace).size
            except PackGoneError:
                continue
            except (NoCopyError, StorageError) as error:
                self._figures.failures += 1
                away = sources & self._stores.tiers.troubled()
                troubles.away |= away
                troubles.note(away or (sources if isinstance(error, NoCopyError) else {HOT}), str(error))
                if away or isinstance(error, StoreFullError):  # neither costs more than a question
                    return self._later(series_key, AWAY_AGAIN_MAX_S)
                if isinstance(error, NoCopyError):  # it answers, and gives what is not right
                    self._verifying.doubt([segment])
                return self._later(series_key, FAILED_AGAIN_MAX_S)
        if brought:
            self._figures.recalled_series += 1
            self._figures.recalled_bytes += brought
            self._announce_recalled(series_key, why, brought)
        return None

    def _later(self, series_key: bytes, most_s: float) -> float:
        self._tries[series_key] += 1
        return float(min(most_s, RECALL_AGAIN_S * 2 ** min(20, self._tries[series_key] - 1)))

    def _announce_recalled(self, series_key: bytes, why: str, brought: int) -> None:
        catalog = self._stores.catalog
        with self._store.snapshot() as snapshot:
            study = catalog.study_by_id(snapshot, series_key[:STUDY_ID_BYTES])
            series = catalog.series_by_key(snapshot, series_key)
        if study is not None and series is not None:
            body = {"study": study.uid, "series": series.uid, "why": why, "bytes": brought}
            self._stores.journal.commit_events([Event(EVENT_RECALLED, self._copying.now(), body)])
            self._on_commit()

    def prefetch(self) -> None:
        """Ask for the priors of those who come soon."""
        for wanted in self._prefetching.due(self._copying.now()):
            self._figures.prefetched_series += self.ask(self._prefetching.series_for(wanted), "prefetch")
            self._prefetching.forget(wanted.name, self._copying.now())
        self.bring_back()
