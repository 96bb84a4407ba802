"""What was performed, as modalities reported it (PS3.4 F.7), and what of it arrived."""

from __future__ import annotations

from collections.abc import Iterator

from hounsfield.archive.plugins import Key, Kind
from hounsfield.ris_plugin.records.base import Code, Row, seconds


class PerformedSeries(Row, frozen=True):
    """A series of (0040,0340), with the SOP Instance UIDs of its objects."""

    uid: str
    instances: tuple[str, ...] = ()
    description: str = ""
    protocol: str = ""


class Dose(Row, frozen=True):
    """What the step says of radiation (PS3.3 C.4.16): amounts as reported, with the attribute's keyword."""

    name: str
    value: float


class Performed(Row, frozen=True):
    """A modality performed procedure step. ``state``: of ``ris_plugin.acquisition.performed.MACHINE``.

    ``dataset``: all attributes of it as DICOM JSON (PS3.18 F), as N-CREATE and the N-SETs left them.
    """

    sop_uid: str
    state: str
    dataset: bytes
    number: str = ""  # Performed Procedure Step ID
    station_ae: str = ""
    modality: str = ""
    study_uid: str = ""
    patient: str = ""
    steps: tuple[str, ...] = ()  # records of scheduled steps; none: unscheduled
    orders: tuple[str, ...] = ()
    series: tuple[PerformedSeries, ...] = ()
    doses: tuple[Dose, ...] = ()
    started_ns: int = 0
    ended_ns: int = 0
    discontinued_for: Code | None = None


def _performed_keys(one: Performed) -> Iterator[Key]:
    yield Key("sop", one.sop_uid, unique=True)
    yield Key("state", one.state, seconds(one.started_ns))
    if one.study_uid:
        yield Key("study", one.study_uid)
    if one.patient:
        yield Key("patient", one.patient, seconds(one.started_ns))
    for order in one.orders:
        yield Key("order", order)


PERFORMED = Kind("performed", Performed, _performed_keys)


class Tracked(Row, frozen=True):
    """The images of one study on their way. ``state``: of ``ris_plugin.tracking.MACHINE``.

    ``stored`` counts what is in the archive; ``missing``: UIDs that a performed step named and that are not.
    ``accepted``: of so many that were expected somebody said that what is here is all. ``quiet``: nothing
    came for a while. ``images``: how many objects of it are images, at the last look but those of who reads.
    """

    study_uid: str
    state: str
    order: str = ""
    patient: str = ""
    accession: str = ""
    modality: str = ""
    expected: int = 0
    stored: int = 0
    missing: tuple[str, ...] = ()
    missing_count: int = 0
    accepted: int = 0
    images: int = 0
    quiet: bool = False
    since_ns: int = 0  # in this state
    alert: str = ""
    alert_ns: int = 0


def _tracked_keys(one: Tracked) -> Iterator[Key]:
    yield Key("study", one.study_uid, unique=True)
    yield Key("state", one.state, seconds(one.since_ns))
    if one.order:
        yield Key("order", one.order)
    if one.patient:
        yield Key("patient", one.patient, seconds(one.since_ns))
    if one.alert:
        yield Key("alert", "", seconds(one.alert_ns))
    elif one.state in ("read", "reported"):
        if one.missing_count:
            yield Key("untold", "missing", seconds(one.since_ns))
    elif one.order or one.state != "verified":  # what belongs to no order is read by nobody
        yield Key("untold", one.state, seconds(one.since_ns))


TRACKED = Kind("tracked", Tracked, _tracked_keys)


class Suggestion(Row, frozen=True):
    """An order that a study may belong to, and why; more for more."""

    order: str
    score: int
    because: tuple[str, ...] = ()


class Named(Row, frozen=True):
    """Whom objects name, as received."""

    patient_id: str = ""
    issuer: str = ""
    name: str = ""
    birth_day: str = ""
    sex: str = ""


class Mismatch(Row, frozen=True):
    """A study that came and belongs to no order by itself, or to another patient's.

    ``state``: "open", "fixing" and "undoing" while the archive is asked, "fixed", "dismissed", "gone", or
    "prior": so old that it is none of ours, and nobody has to look.
    ``issuer``: as received, "" for none. ``corrections``: numbers of the archive's, for the way back.
    ``reason``: as was said with the fix; ``error``: why the archive refused the last one. ``others``: whom
    its objects name, where they do not agree.
    """

    study_uid: str
    state: str
    why: str
    at_ns: int
    patient_id: str = ""
    issuer: str = ""
    name: str = ""
    birth_day: str = ""
    sex: str = ""
    accession: str = ""
    modality: str = ""
    study_ns: int = 0
    suggestions: tuple[Suggestion, ...] = ()
    order: str = ""  # it was fixed to
    corrections: tuple[int, ...] = ()
    by: str = ""
    ended_ns: int = 0
    reason: str = ""
    error: str = ""
    others: tuple[Named, ...] = ()


def _mismatch_keys(one: Mismatch) -> Iterator[Key]:
    yield Key("study", one.study_uid, seconds(one.at_ns))
    yield Key("state", one.state, seconds(one.at_ns))
    if one.state in ("open", "prior"):  # what may make it fit: an order, or a patient, that comes later
        if one.accession:
            yield Key("accession", one.accession)
        if one.patient_id:
            yield Key("number", one.patient_id)


MISMATCH = Kind("mismatch", Mismatch, _mismatch_keys)
