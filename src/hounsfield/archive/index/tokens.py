"""Blind tokens: what a study can be found by without its names standing anywhere in clear.

A token is the keyed hash of one folded value, or one gram of it (:mod:`~hounsfield.archive.index.grams`), of
one field. Its postings are ``inverted study day | study id``, so that reading them in order gives the
newest study first, a range of study dates is a range of the postings, and an intersection of several
stops at the limit. Studies without a date come last.

There are two sorts. *Exact* tokens (ids, whole names, modalities, and the one that every study has) are
written in the commit that stores the object. *Merged* tokens, which are many, follow later, in sorted
batches (:mod:`~hounsfield.archive.index.merging`): until then the study stands in ``fresh``, where every
query looks at it.

Tokens only narrow: every candidate's row is opened and verified by ``dicom.query.matches``, so a token
must never miss a study that matches. :data:`TOKENIZER` is stored in each study's row, and with its
merged postings; a change of folding or of fields is a new version, and leader work brings old studies
up to it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from functools import lru_cache

from hounsfield.archive.dicom.levels import MODALITIES_IN_STUDY
from hounsfield.archive.dicom.matching import all_name_groups, date_period, name_groups
from hounsfield.archive.index import grams
from hounsfield.archive.index.corrections import is_hidden
from hounsfield.archive.index.rows import Attributes, StudyRow
from hounsfield.archive.index.sealed import KeyedHash
from hounsfield.archive.index.tables import DAY_BYTES, FRESH, TOKEN, TOKEN_BYTES
from hounsfield.storage_backends.api import Batch

TOKENIZER = 2

STUDY_DATE = 0x00080020
ACCESSION_NUMBER = 0x00080050
REFERRING_PHYSICIAN = 0x00080090
STUDY_DESCRIPTION = 0x00081030
PATIENT_NAME = 0x00100010
PATIENT_ID = 0x00100020
BIRTH_DATE = 0x00100030
PATIENT_SEX = 0x00100040
STUDY_ID = 0x00200010

ANY = "any"  # the one token that every study has
ODD_DATE = "odd"  # studies whose date is not one day: their place says nothing about it

#: Found by the exact value from the moment of the commit (person names: each group as it is compared).
EXACT_FIELDS = {
    ACCESSION_NUMBER: "AccessionNumber",
    MODALITIES_IN_STUDY: "ModalitiesInStudy",
    PATIENT_NAME: "PatientName",
    PATIENT_ID: "PatientID",
}
#: Found by the exact value too, once merged. A birth date by its day, month, year and century.
MERGED_FIELDS = {
    MODALITIES_IN_STUDY: "ModalitiesInStudy",
    REFERRING_PHYSICIAN: "ReferringPhysicianName",
    STUDY_DESCRIPTION: "StudyDescription",
    BIRTH_DATE: "PatientBirthDate",
    PATIENT_SEX: "PatientSex",
    STUDY_ID: "StudyID",
}
#: Found by any part of the value: what viewers search with ``*…*``.
GRAM_FIELDS = {
    ACCESSION_NUMBER: "AccessionNumber-grams",
    REFERRING_PHYSICIAN: "ReferringPhysicianName-grams",
    STUDY_DESCRIPTION: "StudyDescription-grams",
    PATIENT_NAME: "PatientName-grams",
    PATIENT_ID: "PatientID-grams",
    STUDY_ID: "StudyID-grams",
}
NAME_FIELDS = frozenset({PATIENT_NAME, REFERRING_PHYSICIAN})
HASHED_FIELDS = (
    ANY, ODD_DATE, *{**EXACT_FIELDS, **MERGED_FIELDS}.values(), *GRAM_FIELDS.values(),
)  # fmt: skip

#: Lengths of the prefixes of a birth date that are tokens: century, year, month, day.
DATE_PREFIXES = (2, 4, 6, 8)
DAYS_REMEMBERED = 16_384  # of forty years
GRAMS_REMEMBERED = 16_384  # a few megabytes: the grams of a language's names are some thousands
TEXTS_REMEMBERED = 4096  # two kilobytes each: names of the day, descriptions, who refers
_MERGED_TAGS = sorted(({*MERGED_FIELDS} | {*GRAM_FIELDS}) - {MODALITIES_IN_STUDY})

_DAY = struct.Struct(">I")
_NO_DAY = 0xFFFFFFFF
NO_DAY = _DAY.pack(_NO_DAY)
_RANDOM_BYTES = 8

Posting = tuple[bytes, bytes]


# ---------------------------------------------------------------- days


def inverted_day(attributes: Attributes) -> bytes:
    """Four bytes that sort the newest study first; studies without one valid date sort last."""
    return _inverted(attributes.get(STUDY_DATE, ""))


@lru_cache(maxsize=DAYS_REMEMBERED)
def _inverted(text: str) -> bytes:
    period = date_period(text.strip())
    return NO_DAY if period is None else day_bytes(period[0])


def day_bytes(day: str) -> bytes:
    """A day YYYYMMDD as postings hold it."""
    return _DAY.pack(_NO_DAY - 1 - int(day))


def _inverted_day_1(attributes: Attributes) -> bytes:
    """As tokenizer 1 read dates."""
    date = attributes.get(STUDY_DATE, "").replace(".", "")[:8]
    if len(date) == 8 and date.isascii() and date.isdigit():
        return day_bytes(date)
    return NO_DAY


# ---------------------------------------------------------------- what a study is found by


def exact_postings(hashes: KeyedHash, study_id: bytes, row: StudyRow) -> set[Posting]:
    """What the commit of a study writes, as the row's tokenizer version makes it."""
    first = row.tokenizer == 1
    day = _inverted_day_1(row.attributes) if first else inverted_day(row.attributes)
    value = day + study_id
    found = {token(hashes, ANY, "")}
    fields = EXACT_FIELDS | _FIELDS_1 if first else EXACT_FIELDS
    for tag, field in fields.items():
        text = "\\".join(row.modalities) if tag == MODALITIES_IN_STUDY else row.attributes.get(tag)
        found.update(token(hashes, field, form) for form in _forms(tag, text or ""))
    date = row.attributes.get(STUDY_DATE, "")
    if not first and date and day == NO_DAY:
        found.add(token(hashes, ODD_DATE, ""))
    return {(one, value) for one in found}


def merged_tokens(hashes: KeyedHash, attributes: Attributes, tokenizer: int = TOKENIZER) -> set[bytes]:
    """What merging writes for a study with these :func:`merged_attributes`."""
    if tokenizer not in _MERGED_BY:
        raise ValueError("the index was written by a newer version of this program; use that one, or reindex")
    return _MERGED_BY[tokenizer](hashes, attributes)


def _merged_tokens_2(hashes: KeyedHash, attributes: Attributes) -> set[bytes]:
    of_text = _remembered(hashes)
    return set().union(*(of_text(tag, text) for tag, text in attributes.items()))


#: What each version wrote, as long as an index may hold it.
_MERGED_BY = {2: _merged_tokens_2}


def merged_attributes(row: StudyRow) -> Attributes:
    """What merged tokens are made of: the attributes of :data:`MERGED_FIELDS` and :data:`GRAM_FIELDS`."""
    held = row.attributes
    found = {tag: held[tag] for tag in _MERGED_TAGS if held.get(tag)}
    if row.modalities:
        found[MODALITIES_IN_STUDY] = "\\".join(row.modalities)
    return found


def folded(tag: int, text: str) -> list[str]:
    """Every text of an attribute that grams are taken from, without case: values, of names their groups.

    Also groups past the third, whose words fuzzy matching finds.
    """
    values = [value for value in text.split("\\") if value]
    if tag in NAME_FIELDS:
        return [group for value in values for group in all_name_groups(value) if group]
    return [value.casefold() for value in values]


def _forms(tag: int, text: str) -> set[str]:
    """What the values of an attribute are found by exactly; mirrors what ``dicom.matching`` compares."""
    values = [value for value in text.split("\\") if value]
    if tag in NAME_FIELDS:
        return {group for value in values for group in name_groups(value) if group}
    if tag in {BIRTH_DATE, STUDY_DATE}:
        periods = [date_period(value.strip()) for value in values]
        return {period[0] for period in periods if period is not None}
    return set(values)


#: What tokenizer 1 wrote in the commit besides.
_FIELDS_1 = {
    STUDY_DATE: "StudyDate",
    REFERRING_PHYSICIAN: "ReferringPhysicianName",
    BIRTH_DATE: "PatientBirthDate",
    STUDY_ID: "StudyID",
}


def token(hashes: KeyedHash, field: str, form: str) -> bytes:
    """The key of the postings of one form of one field."""
    return hashes.digest(field, form, TOKEN_BYTES)


@lru_cache(maxsize=8)
def _remembered(hashes: KeyedHash) -> Callable[[int, str], frozenset[bytes]]:
    """Merged tokens of one attribute's text.

    Texts and grams repeat from study to study. They are remembered here, since they would push out what
    ``hashes`` remembers of UIDs.
    """

    @lru_cache(maxsize=GRAMS_REMEMBERED)
    def digest(field: str, piece: str) -> bytes:
        return hashes.digest_once(field, piece, TOKEN_BYTES)

    @lru_cache(maxsize=TEXTS_REMEMBERED)
    def of_text(tag: int, text: str) -> frozenset[bytes]:
        found: list[bytes] = []
        field = MERGED_FIELDS.get(tag)
        if field is not None:
            forms = _forms(tag, text)
            if tag == BIRTH_DATE:
                forms = {day[:length] for day in forms for length in DATE_PREFIXES}
            found += [digest(field, form) for form in forms]
        field = GRAM_FIELDS.get(tag)
        if field is not None:
            pieces: set[str] = set()
            for value in folded(tag, text):
                pieces |= grams.of_text(value, name=tag in NAME_FIELDS)
            found += [digest(field, piece) for piece in pieces]
        return frozenset(found)

    return of_text


# ---------------------------------------------------------------- a study changes


def plan_tokens(
    batch: Batch, hashes: KeyedHash, study_id: bytes, old: StudyRow | None, new: StudyRow | None
) -> None:
    """Add to ``batch`` what keeps a study findable when its row changes from ``old`` to ``new``.

    ``old`` None: the study is new; ``new`` None: it is deleted. Exact postings change with the batch; when
    what merged postings stand for changes, the study becomes fresh, and merging does the rest.
    """
    if old is not None and new is not None and _searched(old) == _searched(new):
        return
    if any(row is not None and is_hidden(row.uid) for row in (old, new)):
        return  # of rejected objects: nothing finds it
    before = set() if old is None else exact_postings(hashes, study_id, old)
    after = set() if new is None else exact_postings(hashes, study_id, new)
    for posting, value in before - after:
        batch.remove(TOKEN, posting, value)
    for posting, value in after - before:
        batch.add(TOKEN, posting, value)
    if new is None or old is None or _merged_part(old) != _merged_part(new):
        batch.put(FRESH, study_id, fresh_value(new))


def fresh_value(row: StudyRow | None) -> bytes:
    """The study's day, so that queries meet fresh studies in order, and 8 random bytes: each change's own."""
    day = NO_DAY if row is None else inverted_day(row.attributes)
    return day + os.urandom(_RANDOM_BYTES)


def fresh_day(value: bytes) -> bytes:
    """The day in a value of ``fresh``."""
    return value[:DAY_BYTES]


def _searched(row: StudyRow) -> tuple[int, Attributes, tuple[str, ...]]:
    return row.tokenizer, row.attributes, row.modalities


def _merged_part(row: StudyRow) -> tuple[int, bytes, Attributes]:
    return row.tokenizer, inverted_day(row.attributes), merged_attributes(row)
