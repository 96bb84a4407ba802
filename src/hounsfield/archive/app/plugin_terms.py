"""What a leading part of a plugin does holds only while it leads.

A worker may be stopped at any place for longer than its lease lasts (a virtual machine that is moved, a disk
that hangs), and go on where it was when another one leads already. It learns of that a moment later. Until
then nothing that it would change may be kept, nor anything go out: a *term* is one worker's time of leading,
which every task of the part carries with it, and whoever commits, corrects or sends looks first whether it
goes on. A transaction looks within itself, where nobody can come in between.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, TypeVar

from hounsfield.archive.index import leases
from hounsfield.archive.plugins import Change, SucceededError
from hounsfield.storage_backends.api import KeyValueStore

__all__ = ["TERM", "Term", "fenced", "leads", "require"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Term:
    """``owner`` holds the lease ``name``, as long as it does."""

    store: KeyValueStore
    name: str
    owner: str

    def goes_on(self) -> bool:
        """Blocking, some microseconds. A lease that has run out and that nobody took goes on."""
        return leases.is_held(self.store, self.name, self.owner)


TERM: Final[ContextVar[Term | None]] = ContextVar("TERM", default=None)
"""Of the part that a task belongs to; None for what leads nothing."""


def leads() -> bool:
    """Whether who asks still leads; whoever leads nothing has nothing to lose."""
    term = TERM.get()
    return term is None or term.goes_on()


def require() -> None:
    """Raise SucceededError unless :func:`leads`."""
    if not leads():
        raise SucceededError("another worker leads this part by now: nothing was done")


def fenced(plan: Callable[[Change], Result]) -> Callable[[Change], Result]:
    """``plan``, which raises SucceededError when whoever asks for it does not lead any more."""
    term = TERM.get()
    if term is None:
        return plan

    def within(change: Change) -> Result:
        if not term.goes_on():
            raise SucceededError("another worker leads this part by now: nothing has changed")
        return plan(change)

    return within
