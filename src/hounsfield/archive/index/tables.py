"""Every table of the index, with the layout of its keys.

All identifiers in keys are keyed hashes (:class:`~hounsfield.archive.index.sealed.KeyedHash`), all
values but ``meta``'s counters are sealed.

========== ======== ==================================================== ===========================
table      kind     key                                                  value
========== ======== ==================================================== ===========================
patient    plain    patient id hash (12)                                 PatientRow
study      plain    study id (12) = hash of the Study Instance UID       StudyRow
series     plain    study id (12) | series hash (8)                      SeriesRow
instance   plain    study id (12) | series hash (8) | SOP hash (12)      InstanceRow
place      postings family (2) | run (2) | hash of a UID (6)             study id | series hash (20)
token      postings field token (16)                                     inverted day (4) | study id (12)
version    plain    instance key (32) | record id (16)                   InstanceRow, not served
quarantine plain    record id (16)                                       QuarantineRow
state      plain    kind, NUL, hash of the name (12)                     what facts say now
journal    log      sequence (8)                                         Event
meta       plain    name                                                 counters, leases, cursors, lanes
segment    plain    segment id (16)                                      SegmentRow: how far it is indexed
fresh      plain    study id (12)                                        random: its n-grams are not merged
grams      plain    study id (12)                                        for which texts n-grams stand
gram       plain    field token (16) | last of the block (8)             block of postings, not sealed
tombstone  plain    record id (16)                                       segments: deleted records
spare      plain    record id (16) | other record (16) | segment (16)    SpareRow: a record of the same
use        plain    segment id (16)                                      UseRow: dead bytes and records
correction plain    P, patient id hash (12); or S, study id (12)         CorrectionsRow: those in force for it
corrected  postings a correction's number (8)                            ids of studies it has a part in (12)
scrub      plain    segment id (16); "suspect/" | segment | record id    ScrubRow; SuspectRow; and two names
pack       plain    segment id (16)                                      PackRow: its series, and who has it
packed     plain    study id (12) | series hash (8) | segment id (16)    nothing: the packs of a series
opened     plain    study id (12) | series hash (8)                      day (4) on which it was opened last
recall     plain    study id (12) | series hash (8)                      RecallRow: it is to be hot
record     plain    plugin and kind, NUL, record id (16)                 RecordRow: a plugin's record
lookup     plain    hash of what is looked for (12) | ordinal (8) | id   nothing: records that are found so
========== ======== ==================================================== ===========================
"""

from __future__ import annotations

from hounsfield.storage_backends.api import Table, TableKind

STUDY_ID_BYTES = 12  # 96 bits: at 10^9 studies the odds of one collision are 10^-11
SERIES_HASH_BYTES = 8  # unique within one study only
SOP_HASH_BYTES = 12
INSTANCE_KEY_BYTES = STUDY_ID_BYTES + SERIES_HASH_BYTES + SOP_HASH_BYTES
PLACE_KEY_BYTES = 10
TOKEN_BYTES = 16
DAY_BYTES = 4

PATIENT = Table("patient")
STUDY = Table("study")
SERIES = Table("series")
INSTANCE = Table("instance")
PLACE = Table("place", TableKind.POSTINGS, STUDY_ID_BYTES + SERIES_HASH_BYTES)
TOKEN = Table("token", TableKind.POSTINGS, DAY_BYTES + STUDY_ID_BYTES)
VERSION = Table("version")
QUARANTINE = Table("quarantine")
STATE = Table("state")
JOURNAL = Table("journal", TableKind.LOG)
META = Table("meta")
SEGMENT = Table("segment")
FRESH = Table("fresh")
GRAMS = Table("grams")
GRAM = Table("gram")
TOMBSTONE = Table("tombstone")
SPARE = Table("spare")
USE = Table("use")
CORRECTION = Table("correction")
CORRECTED = Table("corrected", TableKind.POSTINGS, STUDY_ID_BYTES)
SCRUB = Table("scrub")
PACK = Table("pack")
PACKED = Table("packed")
OPENED = Table("opened")
RECALL = Table("recall")
RECORD = Table("record")
LOOKUP = Table("lookup")

ALL_TABLES = (
    PATIENT, STUDY, SERIES, INSTANCE, PLACE, TOKEN, VERSION, QUARANTINE, STATE, JOURNAL, META, SEGMENT,
    FRESH, GRAMS, GRAM, TOMBSTONE, SPARE, USE, CORRECTION, CORRECTED, SCRUB, PACK, PACKED,
    OPENED, RECALL, RECORD, LOOKUP,
)  # fmt: skip
