"""Studies that belong to no order by themselves, over the API: listed with suggestions, fixed, dismissed."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.acquisition import reconciling
from hounsfield.ris_plugin.api.endpoints import Ask, Endpoint, Nothing, Paged, page_of, paged
from hounsfield.ris_plugin.api.models import item
from hounsfield.ris_plugin.errors import InvalidError, UnknownError
from hounsfield.ris_plugin.records.performed import MISMATCH, Mismatch

__all__ = ["ENDPOINTS"]

TAG: Final = "Mismatches"
MismatchItem: Final[Any] = item(Mismatch)
STATES: Final = ("open", "prior", "fixing", "fixed", "undoing", "dismissed", "gone")


class OfState(Paged, frozen=True, kw_only=True):
    """In one state."""

    state: str = "open"


class Fixing(Nothing, frozen=True, kw_only=True):
    """Which order a study belongs to."""

    order: str
    reason: str = ""


def _now(view: View, ask: Ask) -> Any:
    key = ask.path["mismatch"]
    held = view.get(MISMATCH, key)
    if held is None:
        raise UnknownError("there is no such mismatch")
    return ask.item(view, MISMATCH, key, held)


def listed(view: View, ask: Ask) -> Any:
    """Mismatches, the oldest first, each with the orders it may belong to, the likeliest first."""
    if ask.query.state not in STATES:
        raise InvalidError(f"a state is one of {', '.join(STATES)}", "state")
    return paged(
        ask,
        view,
        MISMATCH,
        ("state", ask.query.state),
        partial(ask.item, view, MISMATCH),
        answer=MismatchItem,
    )


def get(view: View, ask: Ask) -> Any:
    """A mismatch."""
    return _now(view, ask)


def fix(change: Change, ask: Ask) -> Any:
    """Say which order a study belongs to; the archive shows it so within a moment."""
    reconciling.fix(change, ask.actor, ask.path["mismatch"], ask.body.order, reason=ask.body.reason)
    return _now(change, ask)


def undo(change: Change, ask: Ask) -> Any:
    """Take a fix back."""
    reconciling.undo(change, ask.actor, ask.path["mismatch"])
    return _now(change, ask)


def doubt(change: Change, ask: Ask) -> Any:
    """Put a study up that was matched: it is another order's."""
    key = reconciling.doubt(change, ask.actor, ask.path["study"])
    held = change.get(MISMATCH, key)
    assert held is not None
    return ask.item(change, MISMATCH, key, held)


def dismiss(change: Change, ask: Ask) -> Any:
    """Say that a study belongs to no order of ours."""
    reconciling.dismiss(change, ask.actor, ask.path["mismatch"])
    return _now(change, ask)


ENDPOINTS: Final = (
    Endpoint(
        "ListMismatches", "GET", "/mismatches", TAG,
        "Studies that belong to no order by themselves, with the orders they may belong to",
        listed, page_of(MismatchItem), OfState,
    ),
    Endpoint("GetMismatch", "GET", "/mismatches/{mismatch}", TAG, "A mismatch", get, MismatchItem),
    Endpoint(
        "FixMismatch", "POST", "/mismatches/{mismatch}/fix", TAG, "Say which order a study belongs to",
        fix, MismatchItem, body=Fixing, kind=MISMATCH,
    ),
    Endpoint(
        "UndoFix", "POST", "/mismatches/{mismatch}/undo", TAG, "Take a fix back: it is shown as it came",
        undo, MismatchItem, kind=MISMATCH,
    ),
    Endpoint(
        "DoubtStudy", "POST", "/tracking/{study}/doubt", TAG,
        "Put a study up that was matched to an order: the wrong entry of the worklist was chosen",
        doubt, MismatchItem,
    ),
    Endpoint(
        "DismissMismatch", "POST", "/mismatches/{mismatch}/dismiss", TAG,
        "Say that a study belongs to no order of ours",
        dismiss, MismatchItem, kind=MISMATCH,
    ),
)  # fmt: skip
