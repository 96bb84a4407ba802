"""Corrections are an overlay: what is shown is a pure function of what was received and of them, in order.

Nothing stored is changed by a correction, and each can be taken back. This module is the function; when
it is applied, and how the index is brought to what it says, is :mod:`~hounsfield.archive.index.correcting`'s
concern. Everything that files objects asks it, so that what arrives later is corrected as well.

=============== ========================= ==============================================================
kind            for                       does
=============== ========================= ==============================================================
``set-patient`` a patient                 sets or empties attributes of the patient
``set-study``   a study                   sets or empties attributes of the study, its patient's included
``merge``       a patient                 makes its studies another patient's
``move-study``  a study                   makes it another patient's
``move-series`` series of a study         files them in another study, which may be new
``split``       series or instances       files them in another study, the instances in new series
=============== ========================= ==============================================================

A correction speaks of what was shown when it was made: corrections are applied one after the other, each
to whatever then is the study or the patient that it names. One that is taken back is as if it had never
been made, for those that follow it too.

``values`` are texts by tag, "" empties. Of a merge or a move they are what the other patient or study had
then, so that the outcome does not depend on what becomes of it; but attributes set for that patient by
corrections that are still in force are taken from these.

A study that has objects of its own shows their attributes; those moved to it are delivered with them too.
A study of moved objects only shows what the first of them to be moved brought along.

A rejection (:mod:`~hounsfield.archive.index.rejections`) takes objects out of sight: they are filed in a
*hidden* study, which nothing leads to. It names objects by the UIDs they were received with, and is asked for
at each point of their way, before any move: taking a correction back never shows what was rejected.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from hounsfield.archive.dicom.attributes import SERIES_INSTANCE_UID, STUDY_INSTANCE_UID, STUDY_LEVEL
from hounsfield.archive.dicom.dictionary import TAG_OF
from hounsfield.archive.index.corrections_in_force import InForce, Rejections
from hounsfield.archive.index.rows import Attributes, CorrectionRow, InstanceRow, StudyRow
from hounsfield.archive.index.tables import META
from hounsfield.storage_backends.api import Snapshot

if TYPE_CHECKING:
    from hounsfield.archive.index.catalog import Catalog

SET_PATIENT: Final = "set-patient"
SET_STUDY: Final = "set-study"
MERGE: Final = "merge"
MOVE_STUDY: Final = "move-study"
MOVE_SERIES: Final = "move-series"
SPLIT: Final = "split"
KINDS: Final = (SET_PATIENT, SET_STUDY, MERGE, MOVE_STUDY, MOVE_SERIES, SPLIT)
OF_PATIENT: Final = frozenset({SET_PATIENT, MERGE})
MOVES_OBJECTS: Final = frozenset({MOVE_SERIES, SPLIT})
REJECT: Final = "reject"
"""Not one of the kinds that can be asked for as a correction."""
HIDDEN: Final = "!"
"""How the UIDs of hidden studies begin: no UID that is received does."""

CORRECTIONS: Final = b"corrections"
"""In META: changes with every correction; absent as long as there never was one."""

PATIENT_ID: Final = 0x00100020
ISSUER: Final = 0x00100021
PatientRef = tuple[str, str]
"""A patient: id and issuer of the id, which may be empty."""


def _tags(keywords: str) -> frozenset[int]:
    return frozenset(TAG_OF[keyword] for keyword in keywords.split())


#: Who the patient is (PS3.3 C.7.1.1), of what the index has: this is what goes with a patient.
DEMOGRAPHICS: Final = _tags("""
    PatientName PatientID IssuerOfPatientID PatientBirthDate PatientBirthTime PatientSex OtherPatientIDs
    OtherPatientNames EthnicGroup PatientComments
""")
#: What else a header says of who the patient is: of another patient it would be wrong.
IDENTITY_BESIDES: Final = _tags("""
    TypeOfPatientID IssuerOfPatientIDQualifiersSequence OtherPatientIDsSequence PatientBirthName
    PatientMotherBirthName PatientAddress PatientTelephoneNumbers PatientTelecomInformation
    InsurancePlanIdentification MilitaryRank BranchOfService CountryOfResidence RegionOfResidence
    PatientPrimaryLanguageCodeSequence PatientReligiousPreference EthnicGroupCodeSequence
    ReferencedPatientSequence ReferencedPatientPhotoSequence ResponsiblePerson ResponsiblePersonRole
    ResponsibleOrganization PatientBirthDateInAlternativeCalendar PatientDeathDateInAlternativeCalendar
    PatientAlternativeCalendar SourcePatientGroupIdentificationSequence
    GroupOfPatientsIdentificationSequence
""")
#: Required, but may be empty (type 2): emptied where others are removed.
EMPTIED: Final = _tags("""
    PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime AccessionNumber
    ReferringPhysicianName StudyID
""")

_NUMBER: Final = struct.Struct(">Q")


class Route(NamedTuple):
    """Where an object received elsewhere is filed, and which corrections took it there."""

    study_uid: str
    series_uid: str
    path: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """What one correction does to the header of an object; None removes."""

    correction: CorrectionRow
    values: Mapping[int, str | None]


@dataclass(slots=True)
class Chain:
    """What corrections made of attributes, one after the other."""

    attributes: Attributes
    steps: list[Step] = field(default_factory=list)


Group = tuple[str, tuple[int, ...]]
"""Objects that came in one way: the study UID they were received with, and the path they took."""


def number_key(number: int) -> bytes:
    """A correction's number as a key."""
    return _NUMBER.pack(number)


def is_hidden(study_uid: str) -> bool:
    """Whether a study is one of rejected objects, which nobody finds."""
    return study_uid.startswith(HIDDEN)


def hidden_uid(row: CorrectionRow, study_uid: str) -> str:
    """The study in which a rejection files objects of a study."""
    return f"{row.to_study}/{study_uid}"


def uid_before_hiding(study_uid: str) -> str:
    """The study from which the objects of a hidden one were taken."""
    return study_uid.partition("/")[2] if is_hidden(study_uid) else study_uid


def patient_of(attributes: Mapping[int, str]) -> PatientRef:
    return attributes.get(PATIENT_ID, ""), attributes.get(ISSUER, "")


def change(attributes: Attributes, values: Mapping[int, str]) -> dict[int, str | None]:
    """Set ``values`` in ``attributes``; the same as a header has to be changed for it."""
    header: dict[int, str | None] = {}
    for tag, text in values.items():
        if text or tag in EMPTIED:
            attributes[tag] = header[tag] = text
        else:
            attributes.pop(tag, None)
            header[tag] = None
    return header


class View:
    """The corrections as one snapshot has them. Short-lived; ``replaced`` stands in for rows."""

    def __init__(
        self,
        catalog: Catalog,
        snapshot: Snapshot,
        replaced: Mapping[bytes, tuple[CorrectionRow, ...]] | None = None,
    ) -> None:
        self._catalog = catalog
        self._snapshot = snapshot
        self._rows = {key: InForce(rows) for key, rows in (replaced or {}).items()}
        self._moves: dict[str, list[tuple[CorrectionRow, frozenset[str]]]] = {}
        self._rejections: dict[str, Rejections] = {}

    # ------------------------------------------------------------ rows

    def of(self, key: bytes) -> tuple[CorrectionRow, ...]:
        """The corrections in force for a target, by number."""
        return self._in_force(key).corrections

    def _in_force(self, key: bytes) -> InForce:
        found = self._rows.get(key)
        if found is None:
            found = self._rows[key] = self._catalog.in_force(self._snapshot, key)
        return found

    def of_study(self, study_uid: str) -> tuple[CorrectionRow, ...]:
        return self.of(study_key(self._catalog, study_uid))

    def of_patient(self, patient: PatientRef) -> tuple[CorrectionRow, ...]:
        return self.of(patient_key(self._catalog, patient)) if patient[0] else ()

    # ------------------------------------------------------------ where objects are filed

    def route(self, study_uid: str, series_uid: str, sop_uid: str, received_ns: int) -> Route:
        """Where an object that was received with these UIDs at that moment is filed.

        A rejection that means what came before it means its note whenever that comes.
        """
        path: tuple[int, ...] = ()
        while True:
            for row in self._rejections_of(study_uid).get(series_uid, {}).get(sop_uid, ()):
                if not 0 < row.before_ns <= received_ns or sop_uid == row.note:
                    return Route(hidden_uid(row, study_uid), series_uid, (*path, row.number))
            next_stop = self._moved(study_uid, series_uid, sop_uid, path)
            if next_stop is None:
                return Route(study_uid, series_uid, path)
            study_uid, series_uid, path = next_stop

    def route_unless_rejected(self, study_uid: str, series_uid: str, sop_uid: str) -> Route:
        """Where an object with these UIDs would be filed if nothing rejected it."""
        return self._stops(study_uid, series_uid, sop_uid)[-1]

    def way(self, study_uid: str, series_uid: str, sop_uid: str) -> list[tuple[str, str]]:
        """Study and series of each point on the way of an object with these UIDs, if nothing rejects it."""
        return [(stop.study_uid, stop.series_uid) for stop in self._stops(study_uid, series_uid, sop_uid)]

    def met(self, study_uid: str, series_uid: str, sop_uid: str) -> Iterator[tuple[str, str]]:
        """Study and series of each place where what is, or ever passes, here may be filed now.

        More than :meth:`way` tells, which is of what was received here: what came here by a later move goes
        on by later ones only. The hidden studies in which rejections file it are among them.
        """
        reached, ahead = {(study_uid, series_uid)}, [(study_uid, series_uid)]
        while ahead:
            here = ahead.pop()
            yield here
            for row in self._rejections_of(here[0]).get(here[1], {}).get(sop_uid, ()):
                yield hidden_uid(row, here[0]), here[1]
            for row, instances in self._moves_from(here[0]):
                if here[1] in row.series and (not instances or sop_uid in instances):
                    there = (row.to_study, row.series[here[1]])
                    if there not in reached:
                        reached.add(there)
                        ahead.append(there)

    def stops(self, group: Group) -> list[str]:
        """The studies on the way of a group of objects, up to where something rejects it."""
        study_uid, path = group
        found = [study_uid]
        for number in path:
            row = next((row for row in self.of_study(found[-1]) if row.number == number), None)
            if row is None or row.kind == REJECT:
                break
            found.append(row.to_study)
        return found

    def _stops(self, study_uid: str, series_uid: str, sop_uid: str) -> list[Route]:
        stops = [Route(study_uid, series_uid)]
        while (next_stop := self._moved(*stops[-1][:2], sop_uid, stops[-1].path)) is not None:
            stops.append(next_stop)
        return stops

    def _moved(self, study_uid: str, series_uid: str, sop_uid: str, path: tuple[int, ...]) -> Route | None:
        """Where a move takes an object from where it is, None when it stays there."""
        for row, instances in self._moves_from(study_uid):
            if path and row.number <= path[-1]:
                continue
            if series_uid in row.series and (not instances or sop_uid in instances):
                return Route(row.to_study, row.series[series_uid], (*path, row.number))
        return None

    def _moves_from(self, study_uid: str) -> list[tuple[CorrectionRow, frozenset[str]]]:
        moves = self._moves.get(study_uid)
        if moves is None:
            moves = self._moves[study_uid] = [
                (row, frozenset(row.instances))
                for row in self.of_study(study_uid)
                if row.kind in MOVES_OBJECTS
            ]
        return moves

    def _rejections_of(self, study_uid: str) -> Rejections:
        found = self._rejections.get(study_uid)
        if found is None:
            in_force = self._in_force(study_key(self._catalog, study_uid))
            found = self._rejections[study_uid] = in_force.rejections(study_uid)
        return found

    # ------------------------------------------------------------ what is shown

    def chain(
        self,
        group: Group,
        attributes: Attributes,
        skipped: Callable[[CorrectionRow], bool] = lambda _: False,
    ) -> Chain:
        """What becomes of the attributes of a group of objects on its way."""
        chain = Chain(dict(attributes))
        uid, path = group
        number = 0
        while True:
            known = patient_of(chain.attributes)
            row = min(
                (
                    row
                    for row in (*self.of_study(uid), *self.of_patient(known))
                    if row.number > number
                    and row.kind != REJECT
                    and (row.kind not in MOVES_OBJECTS or row.number in path)
                    and not skipped(row)
                ),
                key=lambda row: row.number,
                default=None,
            )
            if row is None:
                return chain
            number = row.number
            values = change(chain.attributes, row.values)
            if row.kind in MOVES_OBJECTS:
                uid = row.to_study
            elif row.kind in {MERGE, MOVE_STUDY}:
                values |= dict.fromkeys(IDENTITY_BESIDES)
            chain.steps.append(Step(row, values))
            if row.kind in {MERGE, MOVE_STUDY}:
                for earlier in self.of_patient(row.to_patient):
                    if earlier.number < number and _keeps_id(earlier) and not skipped(earlier):
                        chain.steps.append(Step(earlier, change(chain.attributes, earlier.values)))

    def shown(self, study_uid: str, groups: Mapping[Group, Attributes]) -> tuple[Attributes, tuple[int, ...]]:
        """The attributes of a study made of ``groups``, and the numbers of what had a part in it."""
        host = host_of(study_uid, groups)
        if is_hidden(study_uid):
            path = {number for _, path in groups for number in path}
            return {**groups[host], STUDY_INSTANCE_UID: study_uid}, tuple(sorted(path))
        chain = self.chain(host, groups[host])
        numbers = {step.correction.number for step in chain.steps}
        numbers.update(number for _, path in groups for number in path)
        return {**chain.attributes, STUDY_INSTANCE_UID: study_uid}, tuple(sorted(numbers))

    def steps(self, study: StudyRow, series_uid: str, instance: InstanceRow) -> list[Step]:
        """What is to be done to the header of one of a study's objects."""
        if is_hidden(study.uid):
            return []
        received = instance.received or (study.uid, series_uid)
        path = self.route(*received, instance.sop_uid, instance.received_ns).path
        groups = {(one.study_uid, one.path): one.attributes for one in study.received}
        group = (received[0], path)
        host = host_of(study.uid, groups) if groups else group
        moves = {row.number: row for uid in (received[0],) for row in self._path_rows(uid, path)}
        uids: dict[int, dict[int, str | None]] = {}
        series = received[1]
        for number in path:
            row = moves[number]
            series = row.series[series]
            uids[number] = {STUDY_INSTANCE_UID: row.to_study, SERIES_INSTANCE_UID: series}
        if group == host:
            return [
                Step(step.correction, {**step.values, **uids.get(step.correction.number, {})})
                for step in self.chain(group, groups.get(group, study.attributes)).steps
            ]
        # A guest: delivered as what its host is.
        values: dict[int, str | None] = dict.fromkeys(IDENTITY_BESIDES)
        values |= change({}, {tag: study.attributes.get(tag, "") for tag in STUDY_LEVEL})
        last = moves[path[-1]]
        return [Step(last, {**values, **uids[path[-1]]})]

    def _path_rows(self, study_uid: str, path: Iterable[int]) -> Iterable[CorrectionRow]:
        for number in path:
            row = next(row for row in self.of_study(study_uid) if row.number == number)
            study_uid = row.to_study
            yield row


def _keeps_id(row: CorrectionRow) -> bool:
    return row.kind == SET_PATIENT and not row.values.keys() & {PATIENT_ID, ISSUER}


def host_of(study_uid: str, groups: Mapping[Group, Attributes]) -> Group:
    """The group whose attributes a study shows: its own objects, else those that were moved first.

    Further versions of objects speak for nothing.
    """
    return min(groups, key=lambda group: (not groups[group], group != (study_uid, ()), group[1], group[0]))


def study_key(catalog: Catalog, study_uid: str) -> bytes:
    """The key of the corrections of a study."""
    return b"S" + catalog.study_id(study_uid)


def patient_key(catalog: Catalog, patient: PatientRef) -> bytes:
    """The key of the corrections of a patient, who has an id."""
    return b"P" + catalog.patient_key({PATIENT_ID: patient[0], ISSUER: patient[1]}, "")


def target_key(catalog: Catalog, row: CorrectionRow) -> bytes:
    """The key below which a correction is looked for."""
    if row.kind in OF_PATIENT:
        return patient_key(catalog, row.patient)
    return study_key(catalog, row.study)


def generation(snapshot: Snapshot) -> bytes | None:
    """Changes with every correction; None as long as there never was one."""
    return snapshot.get(META, CORRECTIONS)
