"""What administrators see of tiers, and what they ask of them, as plain values: for command line and HTTP.

Nothing here names a patient; UIDs of series and studies are told when they are asked for.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple

import structlog
import trio

from hounsfield.archive.engine.errors import NotFoundError, RefusedError, UnavailableError
from hounsfield.archive.engine.tier_moves import ACTOR, EVENT_TIERED, EXPIRED_BY
from hounsfield.archive.engine.tier_planning import SeriesTask
from hounsfield.archive.engine.tier_progress import runs, sums
from hounsfield.archive.engine.tier_returns import EVENT_RECALLED
from hounsfield.archive.engine.tier_rules import TierRule
from hounsfield.archive.engine.tier_sums import NOTHING, added, totals, turn
from hounsfield.archive.index.deletion import FACT_DELETION
from hounsfield.archive.index.demand import FACT_PIN, Pin, PinError, pin, pins, unpin
from hounsfield.archive.index.holds import Holds
from hounsfield.archive.index.packs import HOT
from hounsfield.archive.index.prefetching import Prefetch, PrefetchError
from hounsfield.archive.index.rows import Event
from hounsfield.archive.index.verifying import EVENT_DAMAGED, EVENT_FOUND, EVENT_REPAIRED
from hounsfield.storage_backends.errors import StorageError

if TYPE_CHECKING:
    from hounsfield.archive.engine.engine import Engine

__all__ = ["TierOversight"]

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

WHY_CHARS_MAX: Final = 1024  # it is kept for ever: a sentence, not a file
HISTORY_PAGE: Final = 2000
"""Events that are looked at for one page of history: some milliseconds of a thread."""
HISTORY_PAGES_MAX: Final = 50
"""In one answer: a second."""
EVENT_UNPINNED: Final = "study-unpinned"
TOLD: Final = frozenset({
    EVENT_TIERED, EVENT_RECALLED, EVENT_REPAIRED, EVENT_DAMAGED, EVENT_FOUND, EVENT_UNPINNED, FACT_PIN,
    FACT_DELETION,
})  # fmt: skip
_NS = 1_000_000_000

log = structlog.get_logger(__name__)


class TierOversight:
    """Over one engine; any number of tasks."""

    def __init__(self, engine: Engine) -> None:
        self._stores = engine.stores
        self._tiering = engine.tiering
        self._read = engine.read
        self._limits = engine.stores.tiers.options.limits
        self._thread = trio.CapacityLimiter(2)  # for what waits for a tier, or walks over all packs

    async def _slowly(self, function: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
        return await trio.to_thread.run_sync(function, *arguments, limiter=self._thread)

    # ------------------------------------------------------------ how it is

    async def status(self) -> dict[str, Any]:
        """What lies in which tier, what is being done, what waits, and what was saved so far."""
        return await self._slowly(self._status)

    def _status(self) -> dict[str, Any]:
        standing = self._tiering.standing
        return {
            **standing.plain(standing.look()),
            "hot_fill": self._tiering.hot_fill(),
            "rules": [rule.name for rule in self._stores.tiers.options.rules],
            **self._progress(),
        }

    async def progress(self) -> dict[str, Any]:
        """How far it is: a part of :meth:`status` that costs next to nothing."""
        return await self._read(self._progress)

    def _progress(self) -> dict[str, Any]:
        tiering = self._tiering
        now_ns = tiering.now()
        asked, planned = tiering.planned_ns()
        store = self._stores.store
        with store.snapshot() as snapshot:
            done = runs(snapshot, now_ns)
            saved = sums(snapshot)
        due_ns = planned + int(self._limits.plan_s * _NS)
        return {
            "plan_asked": asked > planned,
            "planned": planned / _NS if planned else None,
            "next_plan": max(due_ns, now_ns) / _NS if self._stores.tiers.options.rules else None,
            "runs": done,
            "done": saved,
            "series": store.statistics()["entries_series"],
            "bytes_per_second": self._limits.bytes_per_second,
        }

    async def take(self, name: str) -> None:
        """Have a tier be written from this data directory, and from no other one of this archive any more.

        ``NotFoundError``; ``UnavailableError`` when the tier does not answer, or will not.
        """
        if name == HOT or name not in self._stores.tiers.by_name:
            raise NotFoundError("no such tier in config.toml")
        try:
            await self._slowly(self._stores.tiers.take, name)
        except StorageError as error:
            raise UnavailableError(f"tier {name} was not taken: {error}") from error
        log.warning("a tier is written from this data directory from now on", tier=name)

    # ------------------------------------------------------------ plans

    async def plan_page(
        self, after: str = "", *, listed: bool = False, rules: Sequence[TierRule] | None = None
    ) -> dict[str, Any]:
        """What the rules want done with some series, and where to go on (``after``, None at the end).

        Changes nothing. ``listed``: each series, too, with its UIDs. ``rules``: None for those in force.
        """
        try:
            start = bytes.fromhex(after) or None
        except ValueError:
            raise RefusedError("this is no place in a plan: go on where the last page says") from None
        return await self._read(self._plan_page, start, listed, rules)

    def _plan_page(
        self, after: bytes | None, listed: bool, by_rules: Sequence[TierRule] | None
    ) -> dict[str, Any]:
        page = self._tiering.plan_page(after, by_rules)
        now_ns = self._tiering.now()
        rules: dict[str, Any] = {}
        with self._stores.store.snapshot() as snapshot:
            holds: Holds | None = None
            for task in page.tasks:
                held = False
                if task.action == "expire":
                    holds = holds or Holds.load(snapshot, self._stores.journal, self._stores.catalog, now_ns)
                    held = bool(holds.on_study(snapshot, self._stores.catalog, task.study_uid))
                one = {task.rule: _sum_of(task, held=held)}
                rules = added(rules, one)
        return {
            "looked": page.looked,
            "quiet": page.quiet,
            "unmatched": page.unmatched,
            "damaged": page.damaged,
            "settled": dict(page.settled),
            "rules": rules,
            "series": [_listed(task) for task in page.tasks] if listed else [],
            "after": None if page.after is None else page.after.hex(),
        }

    async def plan(self, series_max: int = 0, *, rules: Sequence[TierRule] | None = None) -> dict[str, Any]:
        """The whole plan, added up; ``series_max``: with so many series of it, those whose turn comes first.

        ``rules``: as of :meth:`plan_page`. Some 40 µs a series of the archive.
        """
        found: dict[str, Any] = NOTHING
        after: str | None = ""
        while after is not None:
            page = await self.plan_page(after, listed=bool(series_max), rules=rules)
            after = page.pop("after")
            found = added(found, page)
            found["series"] = heapq.nsmallest(series_max, found["series"], key=turn)
        return {**found, "totals": totals(found, self._limits.bytes_per_second)}

    async def apply(self) -> dict[str, Any]:
        """Have the rules carried out soon; :meth:`progress` then."""
        await self._tiering.apply()
        return await self.progress()

    # ------------------------------------------------------------ single studies

    async def recall(self, study: str, series: str = "") -> dict[str, int]:
        """Have a study, or one series of it, be hot soon: how many series are not. ``NotFoundError``."""
        return {"series": await self._tiering.recall(study, series)}

    async def pin(self, study: str, *, by: str, why: str, until: float = 0) -> dict[str, Any]:
        """Keep a study hot until then (seconds since 1970; 0: until it is unpinned), and bring it back.

        ``RefusedError``.
        """
        if not why.strip() or len(why) > WHY_CHARS_MAX:
            raise RefusedError(f"say in up to {WHY_CHARS_MAX} characters why it stays")
        until_ns = int(until) * _NS
        if not 0 <= until_ns < 1 << 63:
            raise RefusedError("a pin ends before the year 2262, or with `hounsfield tier unpin`")
        wanted = Pin(study, by, why.strip(), self._tiering.now(), until_ns)
        try:
            await self._read(pin, self._stores.journal, wanted)
        except PinError as error:
            raise RefusedError(str(error)) from error
        try:
            brought = await self._tiering.recall(study)
        except NotFoundError:
            return {"here": False, "series": 0}
        return {"here": True, "series": brought}

    async def unpin(self, study: str, *, by: str) -> None:
        """Let the rules decide again. ``NotFoundError`` when it is not pinned."""

        def end() -> None:
            journal, now_ns = self._stores.journal, self._tiering.now()
            unpin(journal, self._stores.store, study, now_ns)
            journal.commit_events([Event(EVENT_UNPINNED, now_ns, {"study": study, "by": by})])

        try:
            await self._read(end)
        except PinError as error:
            raise NotFoundError(str(error)) from error

    async def prefetch(  # noqa: PLR0917  an appointment
        self, name: str, patient: str, issuer: str, modality: str, body_part: str, at: float
    ) -> None:
        """Have a patient's priors back before an appointment (``at``: in seconds since 1970)."""
        at_ns = int(at) * _NS
        if not 0 <= at_ns < 1 << 63:
            raise RefusedError("an appointment is before the year 2262")
        wanted = Prefetch(name, patient, at_ns, issuer, modality, body_part)
        try:
            await self._read(self._tiering.prefetching.announce, wanted, self._tiering.now())
        except PrefetchError as error:
            raise RefusedError(str(error)) from error

    async def forget_prefetch(self, name: str) -> None:
        """The appointment of that name is cancelled. Nothing happens when there is none."""
        await self._read(self._tiering.prefetching.forget, name, self._tiering.now())

    async def prefetches(self) -> list[dict[str, Any]]:
        """The appointments whose priors were not brought back yet. Names patients, by their ids."""
        found = await self._read(self._tiering.prefetching.waiting)
        return [
            {
                "name": one.name,
                "patient": one.patient_id,
                "issuer": one.issuer,
                "modality": one.modality,
                "body_part": one.body_part,
                "at": one.at_ns / _NS,
            }
            for one in found
        ]

    async def pins(self) -> list[dict[str, Any]]:
        """Every pin, those whose time is over, too."""

        def read() -> list[dict[str, Any]]:
            now_ns = self._tiering.now()
            with self._stores.store.snapshot() as snapshot:
                found = sorted(pins(snapshot, self._stores.journal), key=lambda one: one.since_ns)
            return [
                {
                    "study": one.study_uid,
                    "by": one.by,
                    "why": one.why,
                    "since": one.since_ns / _NS,
                    "until": one.until_ns / _NS if one.until_ns else None,
                    "in_force": one.in_force(now_ns),
                }
                for one in found
            ]

        return await self._read(read)

    # ------------------------------------------------------------ verifying

    async def verify(self) -> dict[str, Any]:
        """Have every copy read again soon; what that is."""
        await self._tiering.verify()
        return await self.verifying()

    async def verifying(self) -> dict[str, Any]:
        """How much of what was asked for is still to be read, and what is known to be damaged."""
        return await self._slowly(self._verifying)

    def _verifying(self) -> dict[str, Any]:
        verifying = self._tiering.verifying
        copies, size = verifying.left(name for name in self._tiering.standing.names if name != HOT)
        with self._stores.store.snapshot() as snapshot:
            done = runs(snapshot, self._tiering.now())
        return {
            "asked": verifying.asked_ns() / _NS,
            "copies": copies,
            "bytes": size,
            "run": done.get("verify"),
            "damaged": [
                {"pack": one.segment.hex(), "tier": one.tier, "missing": one.row.missing}
                for one in verifying.damages()
            ],
        }

    # ------------------------------------------------------------ what was done

    async def history(self, limit: int, before: int | None = None) -> dict[str, Any]:
        """At most so many things that were done, newest first, and where to go on (None: nowhere).

        Fewer where the journal is mostly of other things: go on as long as there is a place to go on from.
        """
        found: list[dict[str, Any]] = []
        for _ in range(HISTORY_PAGES_MAX):
            page, before = await self._read(self._history_page, before, limit - len(found))
            found += page
            if before is None or len(found) >= limit:
                break
        return {"events": found, "before": before}

    def _history_page(self, before: int | None, limit: int) -> tuple[list[dict[str, Any]], int | None]:
        with self._stores.store.snapshot() as snapshot:
            page = self._stores.journal.read_back(snapshot, before, HISTORY_PAGE)
            found: list[dict[str, Any]] = []
            for sequence, event in page:
                before = sequence
                if _is_told(event):
                    found.append({"sequence": sequence, **self._told(event)})
                    if len(found) == limit:
                        return found, before
        return found, before if len(page) == HISTORY_PAGE else None

    def _told(self, event: Event) -> dict[str, Any]:
        told: dict[str, Any] = {"at": event.at_ns / _NS, "kind": event.kind, "by": "tiering"}
        if event.kind in {EVENT_TIERED, EVENT_RECALLED}:
            return {**told, **event.body}
        if event.kind == EVENT_UNPINNED:
            return {**told, "kind": "unpinned", **event.body}
        if event.kind == FACT_DELETION:
            body = event.body["body"]
            of = {name: body[name] for name in ("study", "series", "instances", "bytes")}
            return {**told, "kind": "series-expired", "rule": body["reason"].removeprefix(EXPIRED_BY), **of}
        if event.kind != FACT_PIN:
            row = self._tiering.copying.packs.get(bytes.fromhex(event.body["pack"]))
            return {**told, **event.body, "bytes": None if row is None else row.size}
        body = event.body["body"]
        until = body.get("until_ns")
        return {
            **told,
            "kind": "pinned",
            "by": body["by"],
            "study": body["study_uid"],
            "why": body["why"],
            "until": until / _NS if until else None,
        }


def _is_told(event: Event) -> bool:
    """Whether it is of tiers, and not the end of a pin, which an event of its own tells with who ended it."""
    if event.kind == FACT_DELETION:
        body = event.body["body"]
        return bool(body["actor"] == ACTOR and body["reason"].startswith(EXPIRED_BY))
    return event.kind in TOLD and not (event.fact and event.body["body"] is None)


def _sum_of(task: SeriesTask, *, held: bool) -> dict[str, Any]:
    copied: dict[str, int] = {}
    for pack in task.packs:
        copied = added(copied, dict.fromkeys(pack.copy_to, pack.size))
    if task.gather:
        copied = added(copied, dict.fromkeys(sorted(task.tiers - {HOT}), task.gather_bytes))
    return {
        "action": task.action,
        "series": 1,
        "bytes": task.size,
        "gathered_bytes": task.gather_bytes if task.gather else 0,
        "copied": copied,
        "moved_bytes": task.moved_bytes,
        "freed_bytes": task.freed_bytes,
        "held": int(held),
        "held_bytes": task.size if held else 0,
    }


def _listed(task: SeriesTask) -> dict[str, Any]:
    return {
        "key": task.series_key.hex(),
        "study": task.study_uid,
        "series": task.series_uid,
        "modality": task.modality,
        "rule": task.rule,
        "action": task.action,
        "since": task.since.isoformat(),
        "for_room": task.for_room,
        "tiers": sorted(task.tiers),
        "compress": task.compress,
        "packs": len(task.packs) + task.gather,
        "bytes": task.size,
        "copied_bytes": task.copied_bytes,
        "freed_bytes": task.freed_bytes,
    }
