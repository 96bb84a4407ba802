"""Prints the state table as a page for people: ``python -m hounsfield.archive.wire.state_picture``."""

from __future__ import annotations

import sys

from hounsfield.archive.wire.states import (
    ACTIONS,
    STATE_MEANINGS,
    TRANSITIONS,
    Action,
    Effect,
    State,
    Trigger,
)

__all__ = ["graphviz", "markdown"]

_HEAD = """\
# The upper layer's states

Generated from the table in `src/hounsfield/archive/wire/states.py`, where the theory is; do not edit.
Remake with `python -m hounsfield.archive.wire.state_picture > docs/wire-states.md`.

Columns are the states of PS3.8 9.2.1, rows the events of PS3.8 Table 9-10, cells its actions. An empty
cell: not permitted (our own requests) or not possible (nothing can arrive then).
"""


def markdown() -> str:
    """The page: states, transitions, actions, and a picture of the ordinary ways through."""
    lines = [_HEAD, "## States\n", "| state | name | meaning |", "|---|---|---|"]
    lines += [f"| Sta{state.value} | `{state.name}` | {STATE_MEANINGS[state]} |" for state in State]
    lines += ["\n## Transitions\n", "| event | " + " | ".join(f"{state.value}" for state in State) + " |"]
    lines.append("|---|" + "---|" * len(State))
    for trigger in Trigger:
        cells = [TRANSITIONS.get((trigger, state)) for state in State]
        row = " | ".join(cell.value if cell else "" for cell in cells)
        lines.append(f"| {trigger.value} `{trigger.name}` | {row} |")
    lines += ["\n## Actions\n", "| action | does | next |", "|---|---|---|"]
    for action, effect in ACTIONS.items():
        lines.append(f"| {action.value} | {effect.text} | {_next(effect)} |")
    lines += ["\n## Picture\n", "Aborts are left out: they lead from everywhere to Sta13 or Sta1.\n"]
    lines += ["```mermaid", "stateDiagram-v2"]
    lines += [f"    Sta{a.value} --> Sta{b.value}: {label}" for a, b, label in _edges()]
    lines.append("```")
    return "\n".join(lines) + "\n"


def graphviz() -> str:
    """The same picture for ``dot -Tsvg``."""
    lines = ["digraph upper_layer {", "    rankdir=LR;"]
    lines += [f'    Sta{s.value} [label="Sta{s.value}\\n{STATE_MEANINGS[s]}"];' for s in State]
    lines += [f'    Sta{a.value} -> Sta{b.value} [label="{label}"];' for a, b, label in _edges()]
    return "\n".join([*lines, "}"]) + "\n"


def _next(effect: Effect) -> str:
    after = f"Sta{effect.next.value}"
    return after if effect.otherwise is None else f"{after} or Sta{effect.otherwise.value}"


def _edges() -> list[tuple[State, State, str]]:
    edges = []
    for (trigger, state), action in TRANSITIONS.items():
        if action.name.startswith("AA_") and action is not Action.AA_2:
            continue
        effect = ACTIONS[action]
        targets = (effect.next,) if effect.otherwise is None else (effect.next, effect.otherwise)
        data = action in (Action.DT_1, Action.DT_2)
        label = f"{trigger.name} / {action.value}"
        edges += [(state, to, label) for to in targets if data or to is not state]
    return edges


if __name__ == "__main__":
    sys.stdout.write(markdown())
