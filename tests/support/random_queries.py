"""Values for random catalogs, and random keys for them: names in many scripts, odd dates, wildcards."""

from __future__ import annotations

import random
from collections.abc import Sequence

NAMES = (
    "Doe^John", "DOE^JOHN^^^", "Doe^Jane^Q^Dr", "doering^hans", "Müller^Jürgen", "Mueller^Jurgen",
    "O'Neil^Åsa", "Yamada^Tarou=山田^太郎=やまだ^たろう", "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎", "=王^小明",
    "Hong^Gildong=洪^吉洞=홍^길동", "Wang^XiaoDong=王^小东", "Иванов^Иван", "Ёлкин^Пётр", "Διονυσιος",
    "قباني^لنزار", "שרון^דבורה", "สมชาย^ใจดี", "Łukasiewicz^Øyvind", "van der Berg^Jan Peter",
    "Smith-Jones^Mary Ann", "", "X", "A^B^C^D^E", "山", "Straße^Groß", "^Given", "a=b=c=dee",
    "Doe^John\\Roe^Jane", "İbrahim^Ali", "ﬁnch^amy",
)  # fmt: skip
TEXTS = (
    "CT Thorax nativ", "CT THORAX", "MR Schädel", "Knie re.", "", "a", "ab", "胸部CT", "胸部X線撮影",
    "흉부 CT", "Рентген", "*", "50%^x", "One\\Two words", "tab\tin", "x" * 64, "Str. ẞ ß", "?=", "\u0130x",
)  # fmt: skip
IDS = ("1", "10", "A-1", "a-1", "", "0001", "123-45-678", "PAT0001", "P A", "Ü7", "1\\2")
DATES = (
    "20240101", "20240102", "20231231", "", "19991231", "2024.01.02", "20240101\\20200202", "nonsense",
    "20240230", " 20240103", "00010101", "99991231",
)  # fmt: skip
BIRTHS = (
    "19640812", "19640813", "19650101", "20000229", "", "1964.08.12", "18991231", "19000101\\19640812",
    "196408",
)  # fmt: skip
TIMES = ("101112", "10", "1011", "235959.999999", "", "000000", "10:11:12", "101112.5", "99")
MODALITIES = ("CT", "MR", "US", "", "SR", "CT\\PT")

STUDY_VALUES: dict[str, tuple[str, ...]] = {
    "PatientName": NAMES,
    "ReferringPhysicianName": NAMES,
    "OtherPatientNames": NAMES,
    "PatientID": IDS,
    "AccessionNumber": IDS,
    "StudyID": IDS,
    "StudyDescription": TEXTS,
    "PatientComments": TEXTS,
    "StudyDate": DATES,
    "StudyTime": TIMES,
    "PatientBirthDate": BIRTHS,
    "PatientSex": ("F", "M", "O", ""),
}
SERIES_VALUES = {
    "Modality": MODALITIES,
    "SeriesDescription": TEXTS,
    "SeriesDate": DATES,
    "SeriesTime": TIMES,
    "SeriesNumber": ("1", "2", "10", "", "x"),
}
INSTANCE_VALUES = {"InstanceNumber": ("1", "2", "10", ""), "ContentTime": TIMES}


def random_key(source: random.Random, name: str, values: Sequence[str]) -> str:
    """A key for an attribute (its keyword) that has one of these values; often one that matches."""
    value = source.choice(values)
    if name.endswith("Date"):
        dates = ("20240101", "20240102", "19640812", "18500101", "19650101", "20991231")
        low, high = source.choice(dates), source.choice(dates)
        forms = (low, f"{low}-{high}", f"{low}-", f"-{high}", "2024.01.02", f"{low}\\{high}")
        return source.choice(forms)
    if name.endswith("Time"):
        return source.choice(("10", "1011", "101112", "10-11", "-12", "0930-1011", "101112.5", "00-"))
    if name.endswith("Number") and name != "AccessionNumber":
        return source.choice(("1", "2", "10"))
    if name in {"PatientSex", "Modality"}:
        return source.choice((value or "F", "*", "?", "C*", "CT\\MR"))
    return text_key(source, value)


def text_key(source: random.Random, value: str) -> str:
    """Part of a value, with wildcards; often one that matches."""
    start = source.randrange(len(value) + 1)
    piece = value[start : start + source.randrange(1, 5)]
    if source.random() < 0.3 and piece:
        at = source.randrange(len(piece))
        piece = piece[:at] + "?" + piece[at + 1 :]
    key = source.choice((
        value, value.upper(), value.swapcase(), f"*{piece}*", f"{value[:start]}*", f"*{value[start:]}",
        f"{value[:1]}*{piece}*", piece, f"*{piece}", f"{piece}*", f"{value}^*", f"{value[:3]}^*", "*^*",
        "?*", f"={value}", f"{value}=", "*zz*", f"{value}\\{piece}*", f"*{piece[:1]}*{piece[1:]}*", "q*",
        " ".join(value),
    ))  # fmt: skip
    return key.strip(" \0")
