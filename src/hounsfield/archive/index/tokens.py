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
import unicodedata

from hounsfield.archive.index.rows import Attributes, StudyRow
from hounsfield.archive.index.sealed import KeyedHash
from hounsfield.archive.index.tables import TOKEN_BYTES

TOKENIZER = 1

STUDY_DATE = 0x00080020
PATIENT_NAME = 0x00100010
MODALITIES_IN_STUDY = 0x00080061
ANY = "any"  # the one token that every study has

#: Fields found by their exact (folded) value.
EXACT_FIELDS = {
    STUDY_DATE: "StudyDate",
    0x00080050: "AccessionNumber",
    0x00080090: "ReferringPhysicianName",
    PATIENT_NAME: "PatientName",
    0x00100020: "PatientID",
    0x00100030: "PatientBirthDate",
    0x00200010: "StudyID",
}

_DAY = struct.Struct(">I")
_NO_DAY = 0xFFFFFFFF
_VALUE_CHARACTERS_MAX = 256  # of one value; the longest VR with a token is 64 characters a component group


def fold(value: str) -> str:
    """Case, accents, padding and trailing delimiters aside: what two spellings of one value share."""
    decomposed = unicodedata.normalize("NFKD", value)
    plain = "".join(c for c in decomposed if not unicodedata.combining(c))
    return " ".join(plain.casefold().split()).strip("^= ")[:_VALUE_CHARACTERS_MAX]


def inverted_day(attributes: Attributes) -> bytes:
    """Four bytes that sort the newest study first; studies without a valid date sort last."""
    date = attributes.get(STUDY_DATE, "").replace(".", "")[:8]
    if len(date) == 8 and date.isascii() and date.isdigit():
        return _DAY.pack(_NO_DAY - 1 - int(date))
    return _DAY.pack(_NO_DAY)


def study_tokens(hashes: KeyedHash, row: StudyRow) -> set[bytes]:
    """Every token of a study, as the row's tokenizer version makes them."""
    tokens = {hashes.digest(ANY, "", TOKEN_BYTES)}
    for tag, field in EXACT_FIELDS.items():
        text = row.attributes.get(tag)
        if text:
            tokens.update(value_token(hashes, field, value) for value in values_of(tag, text))
    tokens.update(value_token(hashes, "ModalitiesInStudy", modality) for modality in row.modalities)
    return tokens


def values_of(tag: int, text: str) -> list[str]:
    """The values a token is made of: each of several; of a person name, each representation too."""
    values = text.split("\\")
    if tag in {PATIENT_NAME, 0x00080090}:
        values += [group for value in values if "=" in value for group in value.split("=")]
    return [value for value in values if value.strip()]


def value_token(hashes: KeyedHash, field: str, value: str) -> bytes:
    return hashes.digest(field, fold(value), TOKEN_BYTES)
