"""Danger: a C-FIND finds something else than it asks for, or says something else of what it finds.

Random keys in random character sets and transfer syntaxes are put to a real listener over a random catalog;
what comes back is compared with a slow, obvious look at every record, written from PS3.4 C.2.2.2.
``ORACLE_ROUNDS=200 pytest tests/net/test_queries_find_something_else.py`` looks for longer.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pydicom
import pytest

from hounsfield.archive.dicom.find_request import (
    PATIENT_ROOT_FIND,
    STUDY_ROOT_FIND,
    UNIQUE_KEY,
)
from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import Query
from hounsfield.archive.dicom.text import trim
from hounsfield.archive.net.find import find_service
from hounsfield.archive.wire import (
    CFindRequest,
    ExtendedNegotiation,
    PresentationContext,
    UserInformation,
)
from hounsfield.codecs.registry import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from support.archives import store
from support.identifiers import CHARACTER_SETS, data_set, declared_in, holds, read, text_in
from support.random_queries import IDS, INSTANCE_VALUES, SERIES_VALUES, STUDY_VALUES, TEXTS, random_key
from support.slow_matcher import clock, date, key_matches, satisfies, tag_of

ROUNDS = int(os.environ.get("ORACLE_ROUNDS", "3"))
QUERIES = 220
STUDIES = 40
SYNTAXES = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)
ROOTS = (STUDY_ROOT_FIND, PATIENT_ROOT_FIND)
LEVELS = (Level.PATIENT, Level.STUDY, Level.SERIES, Level.INSTANCE)
CONTEXTS = tuple(
    PresentationContext(2 * number + 1, root, (syntax.uid,))
    for number, (root, syntax) in enumerate((root, syntax) for root in ROOTS for syntax in SYNTAXES)
)

#: Attributes that no index row holds: of the same value in a whole study or series, or of instances.
OF_STUDY = {"Allergies": TEXTS, "MedicalAlerts": IDS}
OF_SERIES = {"GantryID": TEXTS}
OF_INSTANCE = {"FilterType": IDS, "ContrastBolusAgent": TEXTS}
IN_HEADER = {
    Level.STUDY: OF_STUDY,
    Level.SERIES: OF_STUDY | OF_SERIES,
    Level.INSTANCE: OF_STUDY | OF_SERIES | OF_INSTANCE,
}
REQUESTS, STEP, PROCEDURE = 0x00400275, 0x00400009, 0x00401001
VIEWS, CODE, MEANING = 0x00540220, 0x00080100, 0x00080104
CREATOR = "ACME 1.1"
PRIVATE_KEY = 0x00291010  # the key's block; objects have others
#: In implicit VR nobody knows that these are text, so that they are in no character set.
PRIVATE_VALUES = tuple(text for text in IDS if text.isascii())

INDEXED = {
    Level.PATIENT: {name: STUDY_VALUES[name] for name in ("PatientName", "PatientID", "PatientBirthDate")},
    Level.STUDY: STUDY_VALUES,
    Level.SERIES: STUDY_VALUES | SERIES_VALUES,
    Level.INSTANCE: STUDY_VALUES | SERIES_VALUES | INSTANCE_VALUES,
}
COMPUTED = {
    Level.STUDY: ("ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
    Level.SERIES: ("ModalitiesInStudy", "NumberOfSeriesRelatedInstances"),
    Level.INSTANCE: ("SOPClassUID",),
}


@dataclass
class Record:
    """One thing that can be found: its attributes, and the sequences and the private one of its header."""

    attributes: dict[int, str]
    sequences: dict[int, list[dict[int, str]]] = field(default_factory=dict)
    private: str | None = None


@dataclass
class Asked:
    """One question."""

    level: Level
    matched: dict[int, str] = field(default_factory=dict)
    returned: set[int] = field(default_factory=set)
    sequences: dict[int, dict[int, str]] = field(default_factory=dict)
    private: str | None = None


class Catalog:
    """Random objects in a real archive, and what their headers say."""

    def __init__(self, engine: Any, source: random.Random) -> None:
        self.engine = engine
        self.source = source
        self.headers: dict[str, Record] = {}
        self.records: dict[Level, list[Record]] = {}

    async def fill(self) -> None:
        source = self.source
        for number in range(STUDIES):
            study = self.values(STUDY_VALUES) | self.values(OF_STUDY)
            study[tag_of("StudyInstanceUID")] = f"2.25.1{number}"
            for nth in range(source.choice((1, 1, 2))):
                series = self.values(SERIES_VALUES) | self.values(OF_SERIES)
                series[tag_of("SeriesInstanceUID")] = f"2.25.1{number}.{nth}"
                requests = [self.item(STEP, PROCEDURE) for _ in range(source.choice((0, 0, 1, 2)))]
                for each in range(source.choice((1, 1, 2, 3))):
                    instance = self.values(INSTANCE_VALUES) | self.values(OF_INSTANCE)
                    instance[tag_of("SOPClassUID")] = "1.2.840.10008.5.1.4.1.1.7"
                    uid = instance[tag_of("SOPInstanceUID")] = f"2.25.1{number}.{nth}.{each}"
                    views = [self.item(CODE, MEANING) for _ in range(source.choice((0, 1, 2)))]
                    record = Record(study | series | instance, {REQUESTS: requests, VIEWS: views})
                    if source.random() < 0.5:
                        record.private = source.choice(PRIVATE_VALUES)
                    self.headers[uid] = record
                    await self.store(record)
        await self.read_records()

    def values(self, values: Mapping[str, tuple[str, ...]]) -> dict[int, str]:
        return {tag_of(name): self.source.choice(values[name]) for name in values}

    def item(self, *tags: int) -> dict[int, str]:
        return {tag: self.source.choice(("A", "B", "C*", "Ä")) for tag in tags}

    async def store(self, record: Record) -> None:
        values: dict[int, Any] = dict(record.attributes)
        values |= {tag: items for tag, items in record.sequences.items() if items}
        if record.private is not None:
            block = self.source.choice((0x10, 0x11, 0x7F))
            values[0x00290000 | block] = CREATOR
            values[0x00290010 | block << 8] = record.private
            other = 0x12 if block != 0x12 else 0x10
            values[0x00290000 | other] = "SOMEBODY ELSE"
            values[0x00290010 | other << 8] = "1"
        texts = texts_of(values)
        fitting = [declared for declared in CHARACTER_SETS if holds(declared, *texts)]
        syntax = self.source.choice(SYNTAXES)
        raw = data_set(values, syntax, self.source.choice(fitting))
        await store(self.engine, raw, syntax.uid)

    async def read_records(self) -> None:
        """Every record: from the index what it holds, which other tests compare with the objects."""
        for level in LEVELS:
            found = []
            for row in (await self.engine.search(Query(level, limit=10_000))).rows:
                attributes = {**row.study, **(row.series or {}), **(row.instance or {})}
                record = Record(attributes)
                header = self.header_of(attributes, level)
                if header is not None:
                    for name in IN_HEADER[level]:
                        record.attributes[tag_of(name)] = trim(header.attributes[tag_of(name)], "LO")
                    if level is not Level.STUDY:
                        record.sequences[REQUESTS] = header.sequences[REQUESTS]
                    if level is Level.INSTANCE:
                        record.sequences[VIEWS] = header.sequences[VIEWS]
                        record.private = header.private
                found.append(record)
            self.records[level] = found

    def header_of(self, attributes: Mapping[int, str], level: Level) -> Record | None:
        if level is Level.PATIENT:
            return None
        tag = UNIQUE_KEY[level]
        return next(one for one in self.headers.values() if one.attributes[tag] == attributes[tag])

    # ------------------------------------------------------------ asking

    def question(self, level: Level) -> Asked:
        source = self.source
        asked = Asked(level)
        values = INDEXED[level] | IN_HEADER.get(level, {})
        for name in source.sample(sorted(values), source.choice((0, 1, 1, 2, 3))):
            vr_key = trim(random_key(source, name, values[name]), "PN" if name.endswith("Name") else "LO")
            if name.endswith(("Date", "Time")) or vr_key.strip("*"):
                asked.matched[tag_of(name)] = vr_key
        asked.returned |= {tag_of(name) for name in source.sample(sorted(values), min(len(values), 4))}
        computed = COMPUTED.get(level, ())
        asked.returned |= {tag_of(name) for name in computed if source.random() < 0.5}
        if level in {Level.SERIES, Level.INSTANCE} and source.random() < 0.2:
            asked.sequences[REQUESTS] = self.item_key(STEP, PROCEDURE)
        if level is Level.INSTANCE and source.random() < 0.2:
            asked.sequences[VIEWS] = self.item_key(CODE, MEANING)
        if level is Level.INSTANCE and source.random() < 0.15:
            asked.private = source.choice((*PRIVATE_VALUES, "*", "1*"))
        return asked

    def item_key(self, *tags: int) -> dict[int, str]:
        return {tag: self.source.choice(("", "A", "B", "?", "C*", "Ä")) for tag in tags}

    def expected(self, asked: Asked, fuzzy: bool, combined: bool) -> list[Record]:
        level = Level.STUDY if asked.level is Level.PATIENT else asked.level
        found = [record for record in self.records[level] if matches(asked, record, fuzzy, combined)]
        if asked.level is not Level.PATIENT:
            return found
        # A patient has an id; without one each study is a patient's of its own.
        patients = {patient_of(record): record for record in found}
        return list(patients.values())


def patient_of(record: Record) -> str:
    return record.attributes.get(tag_of("PatientID"), "") or record.attributes[tag_of("StudyInstanceUID")]


def texts_of(values: Mapping[int, Any]) -> list[str]:
    """All text of a data set that is to be written."""
    found = [value for value in values.values() if isinstance(value, str)]
    items = [item for value in values.values() if not isinstance(value, str) for item in value]
    return found + [text for item in items for text in texts_of(item)]


def matches(asked: Asked, record: Record, fuzzy: bool, combined: bool) -> bool:
    keys = {pydicom.datadict.keyword_for_tag(tag): key for tag, key in asked.matched.items()}
    if combined:
        for kind in ("Study", "Series"):
            days, times = keys.get(f"{kind}Date", ""), keys.get(f"{kind}Time", "")
            if days and "-" in times and "\\" not in days:
                del keys[f"{kind}Date"], keys[f"{kind}Time"]
                text = record.attributes.get(tag_of(f"{kind}Date"), "")
                if not in_moments(days, times, text, record.attributes.get(tag_of(f"{kind}Time"), "")):
                    return False
    if not satisfies(keys, record.attributes, fuzzy=fuzzy):
        return False
    for tag, wanted in asked.sequences.items():
        items = record.sequences.get(tag, [])
        if any(wanted.values()) and not any(
            all(key_matches("SH", key, item[each], fuzzy) for each, key in wanted.items()) for item in items
        ):
            return False
    key = asked.private
    return key is None or key == "*" or not key or key_matches("LO", key, record.private or "", fuzzy)


def in_moments(days: str, times: str, date_text: str, time_text: str) -> bool:
    """PS3.4 C.2.2.2.5.4: from the first day at the first time until the last day at the last one."""
    first, dash, last = days.partition("-")
    last = last if dash else first
    from_time, _, to_time = times.partition("-")
    at = clock(time_text)
    for value in date_text.split("\\"):
        day = date(value)
        if day is None:
            continue
        moment = when(day[0], at[0] if at else "000000000000")
        low = when(date(first)[0], clock(from_time)[0] if from_time else "0" * 12) if first else None
        high = when(date(last)[0], clock(to_time)[1] if to_time else "235959999999") if last else None
        if (low is None or low <= moment) and (high is None or moment <= high):
            return True
    return False


def when(day: str, time: str) -> datetime:
    """A moment; days that no calendar has come behind those that it has."""
    base = datetime(int(day[:4]), int(day[4:6]), 1) if int(day[:4]) < 9999 else datetime(9998, 12, 1)  # noqa: DTZ001
    return base + timedelta(
        days=int(day[6:8]) - 1, hours=int(time[:2]), minutes=int(time[2:4]), seconds=int(time[4:6]),
        microseconds=int(time[6:]),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_random_keys_find_what_a_slow_look_finds(
    open_archive: Callable[..., Any], peer_to: Callable[..., Any], seed: int
) -> None:
    warnings.simplefilter("ignore")  # pydicom's, about values that are meant to be odd
    source = random.Random(seed)
    found = 0
    async with open_archive(provide=lambda engine: [find_service(engine)]) as archive:
        catalog = Catalog(archive.engine, source)
        await catalog.fill()
        for negotiated in (b"\1", b"\1\1", b"\1\0\1", b"\1\1\1\1"):
            combined, fuzzy = negotiated[1:2] == b"\1", negotiated[2:3] == b"\1"
            extended = tuple(ExtendedNegotiation(root, negotiated) for root in ROOTS)
            peer = await peer_to(archive)
            accept = await peer.associate(*CONTEXTS, user=UserInformation(extended=extended))
            assert {item.information for item in accept.user.extended} == {
                negotiated[:3] + b"\0" * (len(negotiated) - 3)
            }
            for _ in range(QUERIES // 4):
                context = source.choice(CONTEXTS)
                root = context.abstract_syntax
                asked = catalog.question(source.choice(LEVELS[root == STUDY_ROOT_FIND :]))
                if fuzzy and any("?" in key or key.count(" ") > 3 for key in asked.matched.values()):
                    continue
                found += await check(peer, context, catalog, asked, fuzzy=fuzzy, combined=combined)
            await peer.stream.aclose()
    assert found > QUERIES


async def check(
    peer: Any, context: PresentationContext, catalog: Catalog, asked: Asked, *, fuzzy: bool, combined: bool
) -> int:
    """Ask, and compare; how many answers there were."""
    source = catalog.source
    syntax = next(each for each in SYNTAXES if each.uid in context.transfer_syntaxes)
    values: dict[int, Any] = dict.fromkeys(asked.returned, "") | asked.matched
    values[0x00080052] = asked.level.value
    if asked.private is not None:
        values |= {0x00290010: CREATOR, PRIVATE_KEY: asked.private}
    for tag, wanted in asked.sequences.items():
        values[tag] = [wanted]
    fitting = [declared for declared in CHARACTER_SETS if holds(declared, *texts_of(values))]
    declared = source.choice(fitting)
    raw = data_set(values, syntax, declared)
    await peer.say(context.context_id, CFindRequest(1, context.abstract_syntax), raw)
    answers = []
    while True:
        _, response, identifier = await peer.message()
        if response.status != 0xFF00:
            break
        answers.append(read(identifier, syntax))
    assert response.status == 0, (hex(response.status), response.error_comment, asked)
    expected = catalog.expected(asked, fuzzy, combined)
    unique = UNIQUE_KEY[asked.level]
    told = sorted(text_in(answer, unique) or "" for answer in answers)
    assert told == sorted(record.attributes.get(unique, "") for record in expected), (asked, fuzzy, combined)
    if asked.level is Level.PATIENT:
        return len(answers)
    by_uid = {record.attributes[unique]: record for record in expected}
    for answer in answers:
        record = by_uid[text_in(answer, unique) or ""]
        compare(answer, record, asked, declared)
    return len(answers)


def compare(answer: pydicom.Dataset, record: Record, asked: Asked, declared: bytes) -> None:
    """Everything that was asked for is in the answer, as it is; and its character set is the right one."""
    told = []
    for tag in {*asked.returned, *asked.matched}:
        text = text_in(answer, tag)
        assert text == trim(record.attributes.get(tag, ""), "LO"), (hex(tag), text)
        told.append(text)
    for tag in asked.sequences:
        items = [
            {each: text_in(item, each, declared_in(answer)) or "" for each in asked.sequences[tag]}
            for item in answer[tag].value
        ]
        assert items == record.sequences.get(tag, [])
        told += [text for item in items for text in item.values()]
    if asked.private is not None:
        assert answer[0x00290010].value == CREATOR
        assert text_in(answer, PRIVATE_KEY) == (record.private or "")
        told.append(record.private or "")
    assert (text_in(answer, 0x00080052), text_in(answer, 0x00080054)) == (asked.level.value, "HOUNSFIELD")
    told.append(text_in(answer, tag_of("PatientID")) or "")  # which may have come without being asked for
    assert declared_in(answer) == (declared if holds(declared, *told) else b"ISO_IR 192")
