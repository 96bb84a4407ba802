"""Which stored objects a C-MOVE's or C-GET's identifier names (PS3.4 C.4.2.1.4, C.4.3.1.3).

The unique keys of the level, and of those above it where they are given, select; what else an identifier
holds is not looked at (requestors send back whole answers of a C-FIND). Keys above the level may always be
left out, as in relational retrieval (PS3.4 C.4.2.2.2): UIDs are unique without them. The key of the level
itself may not: nobody gets a whole archive by an empty key, or by an asterisk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from hounsfield.archive.dicom.attributes import (
    SERIES_INSTANCE_UID,
    SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID,
)
from hounsfield.archive.dicom.find_identifier import (
    QUERY_RETRIEVE_LEVEL,
    MismatchError,
    name_of,
    read_identifier,
)
from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import Query
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.listing import Named
from hounsfield.archive.index.rows import Attributes
from hounsfield.codecs.registry import lookup

__all__ = ["INSTANCES_MAX", "Keys", "TooManyError", "keys_of", "select"]

INSTANCES_MAX: Final = 200_000
"""Of one request: their names take 60 MB. More are asked for study by study."""

_PATIENT_ID, _ISSUER = 0x00100020, 0x00100021
_UNIQUE: Final = {
    Level.PATIENT: _PATIENT_ID,
    Level.STUDY: STUDY_INSTANCE_UID,
    Level.SERIES: SERIES_INSTANCE_UID,
    Level.INSTANCE: SOP_INSTANCE_UID,
}


class TooManyError(Exception):
    """More objects than one request may name."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The unique keys of an identifier: empty where one does not restrict."""

    level: Level
    patient_id: str = ""
    issuer: str = ""
    study_uids: tuple[str, ...] = ()
    series_uids: tuple[str, ...] = ()
    sop_uids: tuple[str, ...] = ()


def keys_of(data: bytes, transfer_syntax_uid: str, levels: Iterable[Level]) -> Keys:
    """What an encoded identifier asks for, at one of ``levels``.

    IdentifierError when it cannot be read, MismatchError when it does not fit its SOP class: its level is
    none of those, or the level's unique key has no value.
    """
    found = read_identifier(data, lookup(transfer_syntax_uid))
    asked = found.text(QUERY_RETRIEVE_LEVEL).strip().upper()
    level = next((one for one in levels if one.value == asked), None)
    if level is None:
        raise MismatchError("no level of this information model", QUERY_RETRIEVE_LEVEL)
    tag = _UNIQUE[level]
    keys = Keys(
        level,
        found.text(_PATIENT_ID).strip(),
        found.text(_ISSUER).strip(),
        *(_uids(found.text(uid)) for uid in (STUDY_INSTANCE_UID, SERIES_INSTANCE_UID, SOP_INSTANCE_UID)),
    )
    here = {_PATIENT_ID: keys.patient_id, STUDY_INSTANCE_UID: keys.study_uids,
            SERIES_INSTANCE_UID: keys.series_uids, SOP_INSTANCE_UID: keys.sop_uids}  # fmt: skip
    if not here[tag]:
        raise MismatchError(f"{name_of(tag)} has no value that could be retrieved", tag)
    return keys


def _uids(text: str) -> tuple[str, ...]:
    """A list of UIDs; what is none (an asterisk, say) stays in it, and is nobody's."""
    return tuple(dict.fromkeys(uid for uid in (one.strip(" \0") for one in text.split("\\")) if uid))


async def select(engine: Engine, keys: Keys) -> list[Named]:
    """The stored instances that ``keys`` name, by series and instance number. TooManyError."""
    return await engine.read(_select, engine, keys)


def _select(engine: Engine, keys: Keys) -> list[Named]:
    found: dict[tuple[str, str, str], Named] = {}
    for named in _names(engine, keys):
        found[named[:3]] = named
        if len(found) > INSTANCES_MAX:
            raise TooManyError(f"more than {INSTANCES_MAX} instances")
    return list(found.values())


def _names(engine: Engine, keys: Keys) -> Iterator[Named]:
    listing = engine.listing
    match keys.level:
        case Level.PATIENT:
            for row in engine.stores.planner.find(Query(Level.STUDY, {_PATIENT_ID: keys.patient_id})):
                if _is_of_patient(row.study, keys):
                    yield from listing.names(row.study[STUDY_INSTANCE_UID])
        case Level.STUDY:
            for study_uid in _studies(engine, keys):
                yield from listing.names(study_uid)
        case Level.SERIES if keys.study_uids:
            for study_uid in _studies(engine, keys):
                for series_uid in keys.series_uids:
                    yield from listing.names(study_uid, series_uid)
        case Level.SERIES:
            for series_uid in keys.series_uids:
                for study, study_uid in listing.series_anywhere(series_uid):
                    if _is_of_patient(study, keys):
                        yield from listing.names(study_uid, series_uid)
        case Level.INSTANCE if len(keys.study_uids) == len(keys.series_uids) == 1:
            for study_uid in _studies(engine, keys):  # what viewers ask for, slice by slice
                for sop_uid in keys.sop_uids:
                    found = listing.instance(study_uid, keys.series_uids[0], sop_uid)
                    if found is not None:
                        yield found
        case Level.INSTANCE:
            for sop_uid in keys.sop_uids:
                for study, named in listing.instances_anywhere(sop_uid):
                    above = (keys.study_uids, named.study_uid), (keys.series_uids, named.series_uid)
                    if all(not uids or uid in uids for uids, uid in above) and _is_of_patient(study, keys):
                        yield named


def _studies(engine: Engine, keys: Keys) -> Iterator[str]:
    for study_uid in keys.study_uids:
        study = engine.listing.study(study_uid)
        if study is not None and _is_of_patient(study, keys):
            yield study_uid


def _is_of_patient(study: Attributes, keys: Keys) -> bool:
    """Letter by letter: an asterisk in a patient's ID is one. An issuer that nobody named is no other one."""
    if keys.patient_id and study.get(_PATIENT_ID, "").strip() != keys.patient_id:
        return False
    issuer = study.get(_ISSUER, "").strip()
    return not (keys.issuer and issuer and issuer != keys.issuer)
