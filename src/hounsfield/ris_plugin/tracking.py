"""Images on their way: expected, acquired, stored, verified, read, reported. Nothing is lost or overlooked.

What is known of a study's images comes from four sides, in any order: it was scheduled, a modality says what
it made, the archive has objects, somebody reads. The state is what all of that amounts to, computed anew
whenever one side says something; only verifying what no modality accounted for is somebody's action.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

from msgspec import structs

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.actors import SYSTEM, Actor, Role
from hounsfield.ris_plugin.errors import NotNowError, UnknownError
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.base import NS, seconds
from hounsfield.ris_plugin.records.orders import ORDER, Order
from hounsfield.ris_plugin.records.performed import MISMATCH, PERFORMED, TRACKED, Performed, Tracked
from hounsfield.ris_plugin.settings import RisSettings
from hounsfield.ris_plugin.states import SAME, Machine, Transition

__all__ = [
    "MACHINE",
    "alert",
    "expect",
    "expect_no_more",
    "in_doubt",
    "late",
    "needs_uids",
    "of_study",
    "parted",
    "performed",
    "reported",
    "stored",
    "verify",
]

_IMAGES: Final = (Role.SYSTEM, Role.MODALITY, Role.TECHNOLOGIST)

MACHINE: Final = Machine(
    "tracked study",
    ("expected", "acquired", "stored", "verified", "read", "reported"),
    (
        Transition("acquire", ("expected", "stored", "verified"), "acquired", _IMAGES),
        Transition("store", ("expected", "acquired"), "stored", _IMAGES),
        Transition("verify", ("stored",), "verified", _IMAGES),
        Transition("verify", ("read", "reported"), SAME, _IMAGES),  # what came late was looked at
        Transition("read", ("stored", "verified"), "read", (Role.SYSTEM,)),
        Transition("report", ("stored", "verified", "read"), "reported", (Role.SYSTEM,)),
        Transition("part", ("read",), "verified", (Role.SYSTEM,)),  # it is read anew, as another order's
    ),
)
"""``acquired``: a modality says that it has made images, and not all of them are here. ``stored``: some are
here and nobody has said yet that it is all. An appended step takes a verified study back to ``acquired``."""

ALERTS: Final = {
    "images-missing": "images-missing",
    "unverified": "images-unverified",
    "unread": "study-unread",
    "images-added": "images-added",
}
"""What is told of a study that waits too long, by why."""
MISSING_KEPT_MAX: Final = 1000
"""UIDs of missing objects that are kept; of more it is known how many."""


def of_study(view: View, study_uid: str) -> tuple[str, Tracked] | None:
    """How far the images of a study are."""
    return view.first(TRACKED, "study", study_uid)


# ---------------------------------------------------------------- the four sides


def expect(change: Change, order_id: str, order: Order) -> None:
    """An order was scheduled: there will be images."""
    tracked_id, tracked = _of(change, order.study_uid)
    linked = structs.replace(
        tracked, order=order_id, patient=order.patient, accession=order.accession, modality=order.modality
    )
    if linked != tracked or not change.version(TRACKED, tracked_id):
        change.put(TRACKED, tracked_id, linked)
        if linked.state == MACHINE.initial:
            _say(change, "images-expected", linked)
        else:  # before anybody knew whose they are
            _say(change, f"images-{linked.state}", linked)
    if linked.state == "verified" and not in_doubt(change, linked.study_uid):
        reporting.ready(change, SYSTEM, _read_together(change, linked))


def expect_no_more(change: Change, order_id: str) -> None:
    """An order will not be done, or not as it was scheduled: nobody waits for its images. Those that come all
    the same are tracked as they come."""
    for tracked_id, one in list(change.find(TRACKED, "order", order_id)):
        if one.state == MACHINE.initial and change.first(PERFORMED, "study", one.study_uid) is None:
            change.delete(TRACKED, tracked_id)


def performed(change: Change, performed_id: str, one: Performed) -> None:
    """A modality says what it has made."""
    del performed_id
    if not one.study_uid:
        return
    tracked_id, tracked = _of(change, one.study_uid)
    order_id = tracked.order or next(iter(one.orders), "")
    order = change.get(ORDER, order_id) if order_id else None
    linked = structs.replace(
        tracked,
        order=order_id,
        patient=tracked.patient or one.patient,
        accession=tracked.accession or (order.accession if order is not None else ""),
        modality=tracked.modality or one.modality,
    )
    _settle(change, tracked_id, linked)


def in_doubt(view: View, study_uid: str) -> bool:
    """Whether somebody has to say first where a study belongs; until then nobody reads it as its order's."""
    last = next(view.find(MISMATCH, "study", study_uid, reverse=True, limit=1), None)
    return last is not None and last[1].state in ("open", "fixing", "undoing")


def needs_uids(view: View, study_uid: str, count: int, *, quiet: bool) -> bool:
    """Whether to verify a study it has to be known which ``count`` objects of it are here: a modality has
    said which there are to be, and that may be all of them now."""
    made = [one for _, one in view.find(PERFORMED, "study", study_uid)]
    expected = sum(len(series.instances) for one in made for series in one.series)
    if not expected:
        return False
    tracked = of_study(view, study_uid)
    if tracked is not None and tracked[1].state in ("read", "reported"):
        return quiet
    return quiet or (count >= expected and all(one.state != "in-progress" for one in made))


def stored(
    change: Change,
    study_uid: str,
    uids: Collection[str] | None,
    *,
    quiet: bool | None,
    count: int = 0,
    modality: str = "",
    order: str = "",
    images: int | None = None,
    rejected: bool = False,
) -> Tracked:
    """What the archive has of a study now: which objects, or where nobody looked (None) how many. ``quiet``:
    nothing came for a while; None: as it was. ``images``: how many objects are images, where that is known.
    ``rejected``: some were rejected. What is tracked then."""
    tracked_id, tracked = _of(change, study_uid)
    linked = structs.replace(
        tracked,
        modality=tracked.modality or modality,
        quiet=tracked.quiet if quiet is None else quiet,
    )
    if order and not linked.order:
        held = change.get(ORDER, order)
        if held is not None:
            linked = structs.replace(linked, order=order, patient=held.patient, accession=held.accession)
    here = None if uids is None else frozenset(uids)
    late_images = 0
    if images is not None:
        known = tracked.images if tracked.state in ("read", "reported") else 0
        late_images = max(0, images - known) if known else 0
        linked = structs.replace(linked, images=images)
    settled = _settle(change, tracked_id, linked, here=here, count=count, rejected=rejected)
    if late_images:  # whoever read it has not seen them
        alert(change, tracked_id, "images-added")
    return settled


def reported(change: Change, study_uid: str, *, final: bool) -> None:
    """Somebody reads the study, or its report is signed."""
    found = of_study(change, study_uid)
    if found is None:
        return
    tracked_id, tracked = found
    action = "report" if final else "read"
    rows = [row for row in MACHINE.table if row.action == action and tracked.state in row.before]
    if final and tracked.alert == "images-added":
        tracked = structs.replace(tracked, alert="", alert_ns=0)
    _put(change, tracked_id, tracked, MACHINE.after(tracked.state, action, SYSTEM) if rows else tracked.state)


def parted(change: Change, study_uid: str) -> None:
    """A study is nobody's now; who had begun to read it as an order's has nothing to read any more."""
    found = of_study(change, study_uid)
    if found is not None:
        tracked_id, tracked = found
        loose = structs.replace(tracked, order="", patient="", accession="")
        state = tracked.state
        _put(change, tracked_id, loose, MACHINE.after(state, "part", SYSTEM) if state == "read" else state)


def verify(change: Change, actor: Actor, study_uid: str) -> Tracked:
    """Somebody has looked: all images are there, although no modality has said how many there are to be."""
    found = of_study(change, study_uid)
    if found is None:
        raise UnknownError("no such study is tracked")
    tracked_id, tracked = found
    state = MACHINE.after("stored" if tracked.state == "acquired" and tracked.stored else tracked.state,
                          "verify", actor)  # fmt: skip
    if not tracked.stored:
        raise NotNowError("not one image of the study is here")
    accepted = structs.replace(
        tracked, accepted=tracked.expected, missing=(), missing_count=0, alert="", alert_ns=0
    )
    return _put(change, tracked_id, accepted, state)


# ---------------------------------------------------------------- what it amounts to


def _settle(
    change: Change,
    tracked_id: str,
    tracked: Tracked,
    *,
    here: frozenset[str] | None = None,
    count: int | None = None,
    rejected: bool = False,
) -> Tracked:
    """Compute the state anew. ``here``: the objects in the archive, None when nobody has looked just now.
    ``rejected``: some were rejected."""
    made = [one for _, one in change.find(PERFORMED, "study", tracked.study_uid)]
    expected = {uid for one in made for series in one.series for uid in series.instances}
    ended = bool(made) and all(one.state != "in-progress" for one in made)
    if here is None:
        # Who has just heard of new objects does not know which of them are here: the archive is asked next.
        missing = expected if not tracked.stored else expected & set(tracked.missing)
        known = len(expected) == tracked.expected and tracked.missing_count == len(tracked.missing)
        missing = missing if known else expected
        count = tracked.stored if count is None else count
    else:
        missing, count = expected - here, len(here)
    if rejected and count and len(expected) == tracked.expected and not tracked.missing_count:
        # All were here. What was rejected since is not missing: somebody has seen it.
        tracked = structs.replace(tracked, accepted=len(expected))
    if len(expected) <= tracked.accepted:
        missing = set()
    if missing and not tracked.missing_count and tracked.state in ("read", "reported"):
        tracked = structs.replace(tracked, since_ns=change.now_ns)  # they have as long as others to come
    tracked = structs.replace(
        tracked,
        expected=len(expected),
        stored=count,
        missing=tuple(sorted(missing)[:MISSING_KEPT_MAX]),
        missing_count=len(missing),
    )
    if tracked.state in ("read", "reported"):
        state = tracked.state
    elif missing and (ended or tracked.state in ("acquired", "verified")):
        state = "acquired"
    elif (
        count
        and not missing
        and ((ended and expected) or (tracked.quiet and (not made or (ended and not expected))))
    ):  # all are here; or nothing more comes, and no modality says how many there are to be
        state = "verified"
    elif count:
        state = tracked.state if tracked.state == "verified" else "stored"
    else:
        done = any(one.state == "completed" for one in made)
        state = "acquired" if ended and (expected or done) else "expected"
    if not tracked.missing_count and tracked.alert == "images-missing":
        tracked = structs.replace(tracked, alert="", alert_ns=0)
    return _put(change, tracked_id, tracked, state)


def _put(change: Change, tracked_id: str, tracked: Tracked, state: str) -> Tracked:
    before = change.get(TRACKED, tracked_id)
    moved = structs.replace(tracked, state=state)
    if before is None or before.state != state:
        # What somebody was told of is over.
        moved = structs.replace(moved, since_ns=change.now_ns, alert="", alert_ns=0)
    if moved == before:
        return moved
    change.put(TRACKED, tracked_id, moved)
    if before is None or before.state != state:
        _say(change, f"images-{state}", moved)
        if state == "verified" and moved.order and not in_doubt(change, moved.study_uid):
            reporting.ready(change, SYSTEM, _read_together(change, moved))
    return moved


def _read_together(change: Change, tracked: Tracked) -> list[str]:
    """The orders that a study is read for: its own, and those that were performed together with it (IHE
    RAD-TF 1:3.4.4, group case) and have no images of their own; nobody waits for those."""
    found = [tracked.order]
    who = resolve(change, tracked.patient)[0] if tracked.patient else ""
    for _, one in change.find(PERFORMED, "study", tracked.study_uid):
        for order_id in one.orders:
            order = change.get(ORDER, order_id)
            if order is None or order_id in found or resolve(change, order.patient)[0] != who:
                continue
            own = of_study(change, order.study_uid)
            if own is None or not own[1].stored:
                found.append(order_id)
                expect_no_more(change, order_id)
    return found


def _of(change: Change, study_uid: str) -> tuple[str, Tracked]:
    found = of_study(change, study_uid)
    if found is not None:
        return found
    return change.new_id(), Tracked(study_uid=study_uid, state=MACHINE.initial, since_ns=change.now_ns)


# ---------------------------------------------------------------- overlooked


def late(
    view: View, settings: RisSettings, now_ns: int, limit: int = 1000
) -> Iterator[tuple[str, Tracked, str]]:
    """Studies that somebody has to be told of, and why: images that are missing, nobody says whether they are
    all, or nobody reads it."""
    missing = now_ns - int(settings.images_late_seconds * NS)
    unread = now_ns - int(settings.unread_late_seconds * NS)
    for state, before, why in (
        ("acquired", missing, "images-missing"),
        ("missing", missing, "images-missing"),
        ("stored", missing, "unverified"),
        ("verified", unread, "unread"),
    ):
        for tracked_id, one in view.find(TRACKED, "untold", state, at_most=seconds(before), limit=limit):
            yield tracked_id, one, why


def alert(change: Change, tracked_id: str, why: str) -> None:
    """Note that somebody has to be told, and tell the journal; once, and not of what is over meanwhile."""
    tracked = change.get(TRACKED, tracked_id)
    if tracked is None or tracked.alert == why or not _is_so(tracked, why):
        return
    changed = structs.replace(tracked, alert=why, alert_ns=change.now_ns)
    change.put(TRACKED, tracked_id, changed)
    _say(change, ALERTS[why], changed)


def _is_so(tracked: Tracked, why: str) -> bool:
    match why:
        case "images-missing":
            return tracked.state == "acquired" or tracked.missing_count > 0
        case "unverified":
            return tracked.state == "stored"
        case "unread":
            return tracked.state == "verified"
        case _:
            return True


def _say(change: Change, event: str, tracked: Tracked) -> None:
    body: dict[str, Any] = {"study": tracked.study_uid, "order": tracked.order, "patient": tracked.patient}
    change.say(event, {**body, "missing": tracked.missing_count, "actor": SYSTEM.person})
