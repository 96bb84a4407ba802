"""State machines as tables: which action takes a record from which states to which, and who may do it.

A machine is one literal table. Nothing else changes a record's state; the pictures in docs/ris-states.md are
made from these tables by a test's rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from hounsfield.ris_plugin.actors import Actor
from hounsfield.ris_plugin.errors import ForbiddenError, NotNowError

__all__ = ["SAME", "Machine", "Transition"]

SAME: Final = "="
"""As a transition's ``to``: the state stays."""


class Transition(NamedTuple):
    """One row: ``action`` takes from each of ``before`` to ``after``; one of ``roles`` may do it."""

    action: str
    before: tuple[str, ...]
    after: str
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Machine:
    """A table of transitions for one kind of record. ``states``: all of them, the initial one first."""

    name: str
    states: tuple[str, ...]
    table: tuple[Transition, ...]

    def __post_init__(self) -> None:
        for row in self.table:
            for state in (*row.before, *(() if row.after == SAME else (row.after,))):
                if state not in self.states:
                    raise ValueError(f"{self.name}: no state {state!r} in the list")
        pairs = [(row.action, state) for row in self.table for state in row.before]
        if len(pairs) != len(set(pairs)):
            raise ValueError(f"{self.name}: an action has two rows for one state")

    @property
    def initial(self) -> str:
        """The state in which a record begins."""
        return self.states[0]

    def after(self, state: str, action: str, actor: Actor) -> str:
        """The state after ``action``. NotNowError when it is not possible from ``state``, ForbiddenError when
        it is not the actor's to do."""
        rows = [row for row in self.table if row.action == action]
        if not rows:
            raise ValueError(f"{self.name} has no action {action!r}")
        for row in rows:
            if state in row.before:
                if not actor.may(row.roles):
                    raise ForbiddenError(
                        f"to {action} {self._one} needs the role {' or '.join(sorted(row.roles))}"
                    )
                return state if row.after == SAME else row.after
        possible = sorted({one for row in rows for one in row.before})
        raise NotNowError(
            f"{self._one} that is {state} cannot be taken through {action!r}; "
            f"that is for one that is {' or '.join(possible)}"
        )

    @property
    def _one(self) -> str:
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"

    def possible(self, state: str, actor: Actor) -> list[str]:
        """The actions that an actor may do now, in the order of the table: what a desk shows as buttons."""
        return [row.action for row in self.table if state in row.before and actor.may(row.roles)]

    def is_final(self, state: str) -> bool:
        """Whether no action leaves ``state``."""
        return not any(state in row.before and row.after not in (SAME, state) for row in self.table)

    def picture(self) -> Iterator[str]:
        """The machine as lines of a Mermaid state diagram."""
        yield "stateDiagram-v2"
        yield f"    [*] --> {_word(self.initial)}"
        arrows: dict[tuple[str, str], list[str]] = {}
        for row in self.table:
            for state in row.before:
                arrows.setdefault((state, state if row.after == SAME else row.after), []).append(row.action)
        for (before, after), actions in arrows.items():
            yield f"    {_word(before)} --> {_word(after)}: {', '.join(actions)}"
        for state in self.states:
            if self.is_final(state):
                yield f"    {_word(state)} --> [*]"


def _word(state: str) -> str:
    return state.replace("-", "_")
