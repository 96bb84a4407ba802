"""What ``move`` and ``get`` share: one request after the other on one association, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hounsfield.archive.cli.conversation import heeding_interrupts
from hounsfield.archive.cli.identifiers import encoded
from hounsfield.archive.cli.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    err,
    remark,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from hounsfield.archive.net.incoming import Storage
    from hounsfield.archive.net.query_retrieve import SubOperations
    from hounsfield.archive.net.scu import Offer, RemoteEntity, RequestorAssociation, ScuLimits
    from hounsfield.archive.wire import PresentationContext

FAILED_SHOWN_MAX = 20


@dataclass
class Tally:
    """What became of all requests together."""

    completed: int = 0
    warned: int = 0
    failed: int = 0
    failed_uids: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Of requests that ended otherwise than well, why."""
    failed_requests: list[int] = field(default_factory=list)
    """Those with failed sub-operations, by their places."""
    requests: int = 0
    interrupted: bool = False
    seconds: float = 0.0

    def exit_code(self, got: int) -> int:
        """``got``: objects that are where they should be."""
        if self.interrupted:
            return EXIT_INTERRUPTED
        if not (self.failed or self.complaints):
            return 0
        return EXIT_PARTIAL if got else EXIT_FAILED

    @property
    def cancelled_words(self) -> str:
        """For the last line."""
        return "; cancelled" if self.interrupted else ""

    def body(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "requests": self.requests,
            "completed": self.completed,
            "warned": self.warned,
            "failed": self.failed,
            "failed_uids": self.failed_uids,
            "complaints": self.complaints,
            "cancelled": self.interrupted,
            "seconds": round(self.seconds, 3),
        }

    def show(self) -> None:
        """What went wrong, for people."""
        for complaint in self.complaints:
            remark(complaint)
        for uid in self.failed_uids[:FAILED_SHOWN_MAX]:
            remark(f"  failed: {uid}")
        if len(self.failed_uids) > FAILED_SHOWN_MAX:
            remark(f"  … and {len(self.failed_uids) - FAILED_SHOWN_MAX} more; --json lists all")


def counting(as_json: bool) -> Progress | None:
    """A progress bar for sub-operations, None when nobody sees it."""
    if as_json or not err().is_terminal:
        return None
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rest]}"),
        TimeElapsedColumn(),
        console=err(),
        transient=True,
    )


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What is asked for, of whom."""

    remote: RemoteEntity
    sop_class_uid: str
    contexts: Sequence[PresentationContext]
    identifiers: Sequence[dict[str, Any]]
    character_set: str
    limits: ScuLimits
    offer: Offer
    destination: str = ""
    """Empty for a C-GET."""
    storage: Storage | None = None
    relational: bool = False
    on_association: Callable[[RequestorAssociation], None] = lambda _: None
    """Sees what was agreed."""

    async def perform(self, progress: Progress | None = None) -> Tally:
        """One request after the other. A refused one is a complaint; the next follows. Raises NetError."""
        import trio

        from hounsfield.archive.net.query_retrieve import RefusedError
        from hounsfield.archive.net.scu import associate

        tally = Tally()
        began = trio.current_time()
        bar: TaskID | None = None
        async with associate(
            self.remote, self.contexts, self.limits, self.offer, storage=self.storage
        ) as association:
            context = association.context_for(self.sop_class_uid)
            self.on_association(association)
            if self.relational and association.extended.get(self.sop_class_uid, b"")[:1] != b"\1":
                remark(f"note: {self.remote} does not agree to relational retrieval")
            identifiers = [encoded(one, context, self.character_set) for one in self.identifiers]
            message_ids = [association.next_message_id() for _ in identifiers]
            current = 0

            async def cancel() -> None:
                await association.cancel(context, message_ids[current])

            async with heeding_interrupts(cancel) as interrupts:
                for current, identifier in enumerate(identifiers):
                    if interrupts.asked:
                        break
                    if progress is not None:
                        number = f" {current + 1}/{len(identifiers)}" if len(identifiers) > 1 else ""
                        bar = progress.add_task(f"{self.remote}{number}", total=None, rest="")
                    tally.requests += 1
                    failed_before = tally.failed
                    try:
                        await self._one(
                            association, context, identifier, message_ids[current], tally, progress, bar
                        )
                    except RefusedError as error:
                        tally.complaints.append(f"{self.remote}: {error}")
                    if tally.failed > failed_before:
                        tally.failed_requests.append(current)
                tally.interrupted = interrupts.asked
        tally.seconds = trio.current_time() - began
        return tally

    async def _one(  # noqa: PLR0917 - the state of perform()
        self,
        association: Any,
        context: Any,
        identifier: bytes,
        message_id: int,
        tally: Tally,
        progress: Progress | None,
        bar: TaskID | None,
    ) -> None:
        from hounsfield.archive.net.query_retrieve import Ended, retrieve
        from hounsfield.archive.wire import Category

        async with aclosing(
            retrieve(association, context, identifier, destination=self.destination, message_id=message_id)
        ) as steps:
            async for step in steps:
                counts = step.suboperations if isinstance(step, Ended) else step
                if progress is not None and bar is not None:
                    _advance(progress, bar, counts)
                if not isinstance(step, Ended):
                    continue
                tally.completed += counts.completed
                tally.warned += counts.warned
                tally.failed += counts.failed
                tally.failed_uids += step.failed_uids
                # B000 is said of objects that were taken with a warning, too: those are where they should be.
                all_taken = step.category is Category.WARNING and counts.warned and not counts.failed
                if step.category not in {Category.SUCCESS, Category.CANCEL} and not all_taken:
                    tally.complaints.append(f"{self.remote}: {step.status:04X}H: {step.meaning}")


def _advance(progress: Progress, bar: TaskID, counts: SubOperations) -> None:
    total = None if counts.remaining is None else counts.done + counts.remaining
    rest = ", ".join(
        f"{number} {name}"
        for number, name in ((counts.failed, "failed"), (counts.warned, "warned"))
        if number
    )
    progress.update(bar, completed=counts.done, total=total, rest=rest)
