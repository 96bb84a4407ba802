"""Blind tokens: what a study can be found by without its names standing anywhere in clear.

A token is the keyed hash of one folded value of one field; its postings are
``inverted study day | study id``, so that reading them in order gives the newest study first, and
an intersection of several stops at the limit. Studies without a date come last.

Tokens only narrow: every candidate's row is opened and verified by ``dicom.query.matches``, so a
token must never miss a study that matches. :data:`TOKENIZER` is stored in each study's row; a
change of folding or of fields is a new version, and old studies keep their old tokens until
they are reindexed.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from hounsfield.archive.dicom.levels import MATCHED_STUDY, MODALITIES_IN_STUDY
from hounsfield.archive.dicom.matching import date_period, date_range, name_groups
from hounsfield.archive.index.rows import Attributes, StudyRow
from hounsfield.archive.index.sealed import KeyedHash
from hounsfield.archive.index.tables import TOKEN, TOKEN_BYTES
from hounsfield.storage_backends.api import Batch

TOKENIZER = 1

STUDY_DATE = 0x00080020
ANY = "any"  # the one token that every study has

#: Fields found by their exact value (person names and dates: by their compared form).
EXACT_FIELDS = {
    STUDY_DATE: "StudyDate",
    0x00080050: "AccessionNumber",
    MODALITIES_IN_STUDY: "ModalitiesInStudy",
    0x00080090: "ReferringPhysicianName",
    0x00100010: "PatientName",
    0x00100020: "PatientID",
    0x00100030: "PatientBirthDate",
    0x00200010: "StudyID",
}

_DAY = struct.Struct(">I")
_NO_DAY = 0xFFFFFFFF


def inverted_day(attributes: Attributes) -> bytes:
    """Four bytes that sort the newest study first; studies without a valid date sort last."""
    date = attributes.get(STUDY_DATE, "").replace(".", "")[:8]
    if len(date) == 8 and date.isascii() and date.isdigit():
        return _DAY.pack(_NO_DAY - 1 - int(date))
    return _DAY.pack(_NO_DAY)


def study_tokens(hashes: KeyedHash, row: StudyRow) -> set[bytes]:
    """Every token of a study, as the row's tokenizer version makes them."""
    found = {_token(hashes, ANY, "")}
    for tag, field in EXACT_FIELDS.items():
        text = "\\".join(row.modalities) if tag == MODALITIES_IN_STUDY else row.attributes.get(tag)
        if text:
            found.update(
                _token(hashes, field, form) for value in text.split("\\") for form in _forms(tag, value)
            )
    return found


def plan_tokens(
    batch: Batch, hashes: KeyedHash, study_id: bytes, old: StudyRow | None, new: StudyRow | None
) -> None:
    """Have ``batch`` change a study's postings from what ``old`` has to what ``new`` has (None: nothing)."""
    if old and new and old.attributes == new.attributes and old.modalities == new.modalities:
        return
    before = _postings(hashes, study_id, old)
    after = _postings(hashes, study_id, new)
    for token, value in before - after:
        batch.remove(TOKEN, token, value)
    for token, value in after - before:
        batch.add(TOKEN, token, value)


def _postings(hashes: KeyedHash, study_id: bytes, row: StudyRow | None) -> set[tuple[bytes, bytes]]:
    if row is None:
        return set()
    value = inverted_day(row.attributes) + study_id
    return {(token, value) for token in study_tokens(hashes, row)}


def key_tokens(hashes: KeyedHash, matches: Mapping[int, str], *, fuzzy: bool) -> list[bytes]:
    """Tokens that every study satisfying the keys has: the universal one when no key gives a better."""
    found = []
    for tag, key in matches.items():
        field = EXACT_FIELDS.get(tag)
        form = None if field is None else _key_form(tag, key, fuzzy=fuzzy)
        if field is not None and form is not None:
            found.append(_token(hashes, field, form))
    return found or [_token(hashes, ANY, "")]


def _forms(tag: int, value: str) -> list[str]:
    """What a stored value is found by; mirrors what ``dicom.matching`` compares."""
    match MATCHED_STUDY[tag]:
        case "PN":
            return [group for group in name_groups(value) if group]
        case "DA":
            period = date_period(value.strip())
            return [] if period is None else [period[0]]
    return [value] if value else []


def _key_form(tag: int, key: str, *, fuzzy: bool) -> str | None:
    """The one form that all matches of a key share, None when there is no such form."""
    if "\\" in key:
        return None
    match MATCHED_STUDY[tag]:
        case "PN":
            return None if fuzzy or any(c in key for c in "*?=") else name_groups(key)[0]
        case "DA":
            period = date_range(key)
            return period[0] if period is not None and period[0] == period[1] else None
    return None if "*" in key or "?" in key else key


def _token(hashes: KeyedHash, field: str, form: str) -> bytes:
    return hashes.digest(field, form, TOKEN_BYTES)
