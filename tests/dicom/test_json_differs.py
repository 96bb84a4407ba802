"""Danger: metadata over HTTP says something else than the object.

The reference is pydicom's, on every file.
"""

from __future__ import annotations

import json
import math
import random
import struct
import warnings
from base64 import b64decode
from typing import Any

import msgspec
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.dicom import json_elements
from hounsfield.archive.dicom.bulk import find_bulk
from hounsfield.archive.dicom.json import INLINE_BYTES_MAX, JsonWriter, to_json
from hounsfield.archive.dicom.json_model import attributes_to_model
from hounsfield.archive.dicom.scan import scan
from hounsfield.archive.dicom.walk import elements, looks_implicit
from hounsfield.codecs.registry import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    TransferSyntax,
)

PIXELS = ("7FE00008", "7FE00009", "7FE00010")
#: Files that pydicom itself does not turn into JSON.
NO_REFERENCE = {
    "badVR.dcm",  # NumberOfFrames "1A" raises
    "emri_small_jpeg_2k_lossless_too_short.dcm",  # pydicom gives up on the whole file
}


def comparable(model: dict[str, Any], swap: bool = False) -> dict[str, Any]:
    """The differences that are meant, taken out of both sides.

    Group lengths and trailing padding are left out; the character set is that of the JSON; spaces around text
    are not kept; an empty sequence or name group has no value; binary is little endian whatever the transfer
    syntax; pixel data is a link.
    """
    out: dict[str, Any] = {}
    for key, element in model.items():
        if key.endswith("0000") or key == "00080005" or key >= "FFFC":
            continue
        vr = str(element["vr"])
        if key in PIXELS:
            out[key] = vr
        elif vr == "SQ":
            out[key] = [comparable(item, swap) for item in element.get("Value", [])]
        elif "InlineBinary" in element:
            raw = b64decode(element["InlineBinary"])
            out[key] = (vr, raw[1::2] + raw[::2] if vr == "OW" and swap else raw[::2] + raw[1::2])
        else:
            values = [tidy(value) for value in element.get("Value", [])]
            out[key] = (vr, [] if values == [None] else values)
    return out


def tidy(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip(" \0") or None
    if isinstance(value, dict):
        return {group: text.strip() for group, text in value.items() if text.strip()} or None
    return value


def ours(data: Any, syntax: TransferSyntax, **how: Any) -> dict[str, Any]:
    slices = scan(data, syntax).slices(data)
    trailer = slices[-1] if len(slices) > 1 else b""
    parsed: dict[str, Any] = json.loads(to_json(slices[0], trailer, syntax, **how))
    return parsed


def test_every_real_file_is_the_json_that_pydicom_writes(sample: Any) -> None:
    if sample.path.name in NO_REFERENCE:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = pydicom.dcmread(sample.path, force=True).to_json_dict()
    got = ours(sample.data, sample.syntax, inline_bytes_max=1 << 40)
    assert comparable(got) == comparable(reference, swap=not sample.syntax.little_endian)
    assert list(got) == sorted(got)


def test_the_character_set_of_the_json_is_utf8(samples: list[Any]) -> None:
    seen = 0
    for sample in samples:
        got = ours(sample.data, sample.syntax)
        if "00080005" in got and "Value" in got["00080005"]:
            assert got["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
            seen += 1
    assert seen > 100


def test_elements_after_the_pixels_are_there(ct: Any) -> None:
    got = ours(ct.data, ct.syntax)
    assert "FFFCFFFC" not in got
    ds = explicit(
        (0x00280008, b"IS", b"1 "),
        (0x00280010, b"US", b"\3\0"),
        (0x00280011, b"US", b"\3\0"),
        (0x00280100, b"US", b"\x08\0"),
        (0x7FE00010, b"OB", bytes(10)),
        (0x88880010, b"LO", b"AB"),
    )
    got = ours(ds, EXPLICIT_VR_LITTLE_ENDIAN)
    assert got["88880010"] == {"vr": "LO", "Value": ["AB"]}
    assert got["7FE00010"] == {"vr": "OB", "BulkDataURI": "bulkdata/7FE00010"}


def explicit(*elements: tuple[int, bytes, bytes], order: str = "<") -> bytes:
    out = b""
    for tag, vr, value in elements:
        long = vr in (
            b"OB",
            b"OW",
            b"UN",
            b"SQ",
            b"UT",
            b"OD",
            b"OF",
            b"OL",
            b"OV",
            b"UV",
            b"SV",
            b"UC",
            b"UR",
        )
        form = "HH2sHL" if long else "HH2sH"
        lengths = (0, len(value)) if long else (len(value),)
        out += struct.pack(order + form, tag >> 16, tag & 0xFFFF, vr, *lengths) + value
    return out


def item(value: bytes) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(value)) + value


def one(tag: int, vr: bytes, value: bytes, **how: Any) -> dict[str, Any]:
    element: dict[str, Any] = ours(explicit((tag, vr, value)), EXPLICIT_VR_LITTLE_ENDIAN, **how)[f"{tag:08X}"]
    return element


@pytest.mark.parametrize(
    ("vr", "raw", "values"),
    [
        (b"IS", b"12 ", [12]),
        (b"IS", b" +7\\-08", [7, -8]),
        (b"IS", b"1_0 ", ["1_0"]),
        (b"IS", b"1.0", ["1.0"]),
        (b"IS", b"1\\\\3", [1, None, 3]),
        (b"DS", b"1.50\\2\\1e3", [1.5, 2, 1000.0]),
        (b"DS", b"nan ", ["nan"]),
        (b"DS", b"1e999 ", ["1e999"]),
        (b"DS", b"0x10", ["0x10"]),
        (b"FD", struct.pack("<dd", 1.25, math.inf), [1.25, None]),
        (b"FL", struct.pack("<f", math.nan), [None]),
        (b"US", b"\1\0\xff\xff", [1, 65535]),
        (b"SS", b"\xff\xff", [-1]),
        (b"UV", struct.pack("<QQ", 5, 1 << 63), [5, "9223372036854775808"]),
        (b"SV", struct.pack("<q", -(1 << 60)), ["-1152921504606846976"]),
        (b"AT", b"\x18\0\x63\x10\x10\0\x20\0", ["00181063", "00100020"]),
        (b"PN", b"A^B=C=D ", [{"Alphabetic": "A^B", "Ideographic": "C", "Phonetic": "D"}]),
        (b"PN", b"=C\\X^Y ", [{"Ideographic": "C"}, {"Alphabetic": "X^Y"}]),
        (b"LO", b"A\\B ", ["A", "B"]),
        (b"LT", b" A\\B  ", [" A\\B"]),
        (b"UR", b"http://x/a\\b", ["http://x/a\\b"]),
        (b"LO", b"\"\\\\\x01\x7f", ['"', None, "\x01\x7f"]),
    ],
)  # fmt: skip
def test_values(vr: bytes, raw: bytes, values: list[Any]) -> None:
    assert one(0x00091010, vr, raw) == {"vr": vr.decode(), "Value": values}


@pytest.mark.parametrize("vr", ["CS", "PN", "US", "DS", "SQ", "OB", "UN", "AT", "UT"])
def test_an_empty_value_has_a_vr_and_nothing_else(vr: str) -> None:
    assert one(0x00091010, vr.encode(), b"") == {"vr": vr}


def test_blank_text_is_empty() -> None:
    assert one(0x00091010, b"LO", b"    ") == {"vr": "LO"}


def test_small_binary_is_inline_and_large_is_a_link() -> None:
    small = one(0x00091010, b"OB", bytes(INLINE_BYTES_MAX))
    assert len(b64decode(small["InlineBinary"])) == INLINE_BYTES_MAX
    large = one(0x00091010, b"OB", bytes(INLINE_BYTES_MAX + 2), base_uri="../x/")
    assert large == {"vr": "OB", "BulkDataURI": "../x/bulkdata/00091010"}
    numbers = one(0x00091010, b"US", bytes(INLINE_BYTES_MAX + 2))
    assert numbers == {"vr": "US", "BulkDataURI": "bulkdata/00091010"}


def test_big_endian_binary_is_turned_round() -> None:
    raw = explicit((0x00091010, b"OW", b"\1\2\3\4"), (0x00091011, b"OD", bytes(range(8))), order=">")
    got = ours(raw, EXPLICIT_VR_BIG_ENDIAN)
    assert b64decode(got["00091010"]["InlineBinary"]) == b"\2\1\4\3"
    assert b64decode(got["00091011"]["InlineBinary"]) == bytes(range(7, -1, -1))


def test_a_private_value_that_a_viewer_needs_is_inline_with_its_vr() -> None:
    """Philips' SUV scale factor, (7053,xx00), arrives as UN or in implicit VR."""
    raw = struct.pack("<HHL", 0x7053, 0x0010, 28) + b"Philips PET Private Group \0\0"
    raw += struct.pack("<HHL", 0x7053, 0x1000, 4) + b"1.5 "
    assert ours(raw, IMPLICIT_VR_LITTLE_ENDIAN)["70531000"] == {"vr": "DS", "Value": [1.5]}
    raw = explicit((0x70530010, b"LO", b"Philips PET Private Group "), (0x70531000, b"UN", b"1.5 "))
    assert ours(raw, EXPLICIT_VR_LITTLE_ENDIAN)["70531000"] == {"vr": "DS", "Value": [1.5]}


def test_text_in_items_has_the_items_character_set_or_the_outer_one() -> None:
    inner = explicit((0x00080005, b"CS", b"ISO_IR 192"), (0x00081050, b"PN", "Bü^É".encode()))
    plain = explicit((0x00081050, b"PN", "Ää".encode("latin-1")))
    raw = explicit((0x00080005, b"CS", b"ISO_IR 100"), (0x00081140, b"SQ", item(inner) + item(plain)))
    items = ours(raw, EXPLICIT_VR_LITTLE_ENDIAN)["00081140"]["Value"]
    assert items[0]["00081050"]["Value"] == [{"Alphabetic": "Bü^É"}]
    assert items[1]["00081050"]["Value"] == [{"Alphabetic": "Ää"}]


def test_pixel_values_are_signed_when_the_pixels_are() -> None:
    raw = struct.pack("<HHLH", 0x28, 0x103, 2, 1) + struct.pack("<HHLH", 0x28, 0x106, 2, 0xFFFE)
    assert ours(raw, IMPLICIT_VR_LITTLE_ENDIAN)["00280106"] == {"vr": "SS", "Value": [-2]}


def test_every_link_leads_to_its_bytes(samples: list[Any]) -> None:
    links = 0
    for sample in samples:
        slices = scan(sample.data, sample.syntax).slices(sample.data)
        header, trailer = slices[0], slices[-1] if len(slices) > 1 else b""
        whole = ours(sample.data, sample.syntax, inline_bytes_max=1 << 40)
        for path, element in _links(ours(sample.data, sample.syntax, inline_bytes_max=16)):
            assert element["BulkDataURI"] == f"bulkdata/{path}"
            bulk = find_bulk(header, trailer, sample.syntax, path)
            if path in PIXELS:
                assert bulk is None
                continue
            assert bulk is not None
            links += 1
            there: Any = whole
            steps = path.split("/")
            for tag, number in zip(steps[::2], steps[1::2], strict=False):
                there = there[tag]["Value"][int(number) - 1]
            there = there[steps[-1]]
            if "InlineBinary" in there and sample.syntax.little_endian:
                assert b64decode(there["InlineBinary"]) == bulk.value
    assert links > 100


def _links(model: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    out: list[tuple[str, dict[str, Any]]] = []
    for key, element in model.items():
        if "BulkDataURI" in element:
            out.append((path + key, element))
        elif element["vr"] == "SQ":
            for number, inner in enumerate(element.get("Value", []), start=1):
                out += _links(inner, f"{path}{key}/{number}/")
    return out


@pytest.mark.parametrize("memo_bytes_max", [0, 20_000, 8 << 20])
def test_what_was_remembered_of_other_objects_changes_nothing(
    samples: list[Any], memo_bytes_max: int
) -> None:
    """One writer for every file, each file twice and in any order: character sets, syntaxes and signs mix."""
    writer = JsonWriter(memo_bytes_max=memo_bytes_max)
    order = [sample for sample in samples if len(sample.data) < 1_000_000] * 2
    random.Random(memo_bytes_max).shuffle(order)
    for sample in order:
        slices = scan(sample.data, sample.syntax).slices(sample.data)
        header, trailer = slices[0], slices[-1] if len(slices) > 1 else b""
        base = f"x/{sample.path.name}/"
        expected = to_json(header, trailer, sample.syntax, base_uri=base)
        assert writer.write(header, trailer, sample.syntax, base_uri=base) == expected, sample.name


def test_what_changes_how_others_are_read_is_not_remembered_away() -> None:
    writer = JsonWriter()
    sign = struct.pack("<HHLH", 0x28, 0x103, 2, 1)
    value = struct.pack("<HHLH", 0x28, 0x106, 2, 0xFFFE)
    nested = struct.pack("<HHL", 0x0040, 0xA730, 8 + len(sign)) + item(sign)
    for raw, expected in ((sign + value, -2), (value, 0xFFFE), (nested + value, 0xFFFE), (sign + value, -2)):
        got = json.loads(writer.write(raw, b"", IMPLICIT_VR_LITTLE_ENDIAN))
        assert got["00280106"]["Value"] == [expected]
    name = explicit((0x00081050, b"PN", "Ää".encode("latin-1")))
    for term, expected_name in ((b"ISO_IR 100", "Ää"), (b"ISO_IR 144", "Ф\u0444")):
        got = json.loads(
            writer.write(explicit((0x00080005, b"CS", term)) + name, b"", EXPLICIT_VR_LITTLE_ENDIAN)
        )
        assert got["00081050"]["Value"] == [{"Alphabetic": expected_name}]


def _changed(data: bytearray, source: random.Random, places: list[tuple[int, int]]) -> bytearray:
    """Other bytes in some values: what consecutive slices of a series are to each other, and worse."""
    out = bytearray(data)
    for at, length in source.sample(places, min(len(places), source.choice([0, 1, 1, 3]))):
        if at + length > len(out):
            continue  # something before it was taken out
        if source.random() < 0.8 and length:
            out[at + source.randrange(length)] = source.choice(b"0123456789 AZ\\\xe4\x1b\0")
        elif source.random() < 0.5:
            out[at - source.randrange(1, 9)] ^= 1 << source.randrange(8)  # a tag, a VR, a length
        else:
            del out[at : at + source.choice([1, 2, length])]
    return out


def test_objects_that_are_like_others_but_for_some_bytes(samples: list[Any]) -> None:
    source = random.Random(7)
    seen: set[str] = set()
    liked = 0
    for sample in samples:
        slices = scan(sample.data, sample.syntax).slices(sample.data)
        header = bytearray(slices[0])
        if len(header) > 10_000 or sample.syntax.deflated:
            continue
        seen.add(sample.syntax.uid)
        trailer = bytes(slices[-1]) if len(slices) > 1 else b""
        implicit = looks_implicit(header, 0, len(header), sample.syntax.implicit_vr)
        found = elements(header, 0, len(header), implicit, sample.syntax.little_endian)
        places = [(at, length) for _, _, at, length, _ in found]
        writer = JsonWriter()
        for number in range(13):
            one = _changed(header, source, places) if number % 3 else header
            got = writer.write(bytes(one), trailer, sample.syntax, base_uri=f"{number}/")
            assert got == to_json(bytes(one), trailer, sample.syntax, base_uri=f"{number}/"), sample.name
        liked += any(like._stretches for like in writer._likeness.values())
    assert len(seen) > 8
    assert liked > 50


def test_what_is_read_by_what_comes_before_it_is_read_anew() -> None:
    """Character set, sign and private creator change while the bytes that they decide about do not."""
    name = explicit((0x00081050, b"PN", "Ää".encode("latin-1")))
    terms = [explicit((0x00080005, b"CS", term)) + name for term in (b"ISO_IR 100", b"ISO_IR 144")]
    value = struct.pack("<HHLH", 0x28, 0x106, 2, 0xFFFE)
    signs = [struct.pack("<HHLH", 0x28, 0x103, 2, sign) + value for sign in (0, 1)]
    private = struct.pack("<HHL", 0x7053, 0x1000, 4) + b"1.5 "
    creators = [
        struct.pack("<HHL", 0x7053, 0x0010, 28) + creator + private
        for creator in (b"Philips PET Private Group \0\0", b"Somebody else's private    \0")
    ]
    for objects, syntax in (
        (terms, EXPLICIT_VR_LITTLE_ENDIAN),
        (signs, IMPLICIT_VR_LITTLE_ENDIAN),
        (creators, IMPLICIT_VR_LITTLE_ENDIAN),
    ):
        expected = [to_json(one, b"", syntax) for one in objects]
        assert expected[0] != expected[1]
        pixels = explicit((0x7FE00010, b"OW", b"")), struct.pack("<HHL", 0x7FE0, 0x10, 0)
        for end in (b"", pixels[syntax.implicit_vr]):
            writer = JsonWriter()
            for which in (0, 0, 0, 1, 1, 1, 0, 1, 0, 0, 1):
                got = writer.write(objects[which] + end, b"", syntax)
                assert got == to_json(objects[which] + end, b"", syntax)


def test_links_in_equal_items_are_their_own() -> None:
    one_item = item(explicit((0x00091010, b"OB", bytes(INLINE_BYTES_MAX + 2))))
    raw = explicit((0x00081140, b"SQ", one_item * 3), (0x00082112, b"SQ", one_item))
    writer = JsonWriter()
    for base in ("a/", "b/"):
        got = json.loads(writer.write(raw, b"", EXPLICIT_VR_LITTLE_ENDIAN, base_uri=base))
        links = [inner["00091010"]["BulkDataURI"] for inner in got["00081140"]["Value"]]
        assert links == [f"{base}bulkdata/00081140/{number}/00091010" for number in (1, 2, 3)]
        assert got["00082112"]["Value"][0]["00091010"]["BulkDataURI"] == f"{base}bulkdata/00082112/1/00091010"


def test_a_sequence_without_end_is_a_link_to_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_elements, "ELEMENTS_MAX", 10)
    few = item(explicit((0x00081150, b"UI", b"1.2\0"))) * 3
    many = b"".join(item(explicit((0x00081150, b"UI", b"1.%03d\0" % n))) for n in range(20))
    inner = item(explicit((0x00081140, b"SQ", many)))
    raw = explicit((0x00081115, b"SQ", few), (0x00081120, b"SQ", inner), (0x00100010, b"PN", b"A^B "))
    got = ours(raw, EXPLICIT_VR_LITTLE_ENDIAN)
    assert len(got["00081115"]["Value"]) == 3
    assert got["00081120"] == {"vr": "UN", "BulkDataURI": "bulkdata/00081120"}
    assert got["00100010"]["Value"] == [{"Alphabetic": "A^B"}]
    bulk = find_bulk(raw, b"", EXPLICIT_VR_LITTLE_ENDIAN, "00081120")
    assert bulk is not None and bytes(bulk.value) == inner
    wide = b"".join(explicit((0x00090010 + n * 2, b"LO", b"AB")) for n in range(100))
    assert len(ours(wide, EXPLICIT_VR_LITTLE_ENDIAN)) == 10


@pytest.mark.parametrize(
    "path",
    [
        "",
        "x",
        "00081140/0/00081150",
        "00081140/2/00081150",
        "00081140/1",
        "../../etc",
        "00081140/99999999/00081150",
    ],
)
def test_paths_that_lead_nowhere(path: str) -> None:
    raw = explicit((0x00081140, b"SQ", item(explicit((0x00081150, b"UI", b"1.2\0")))))
    assert find_bulk(raw, b"", EXPLICIT_VR_LITTLE_ENDIAN, path) is None


def test_query_answers_have_types() -> None:
    vrs = {
        0x00080020: "DA",
        0x00100010: "PN",
        0x00280010: "US",
        0x00201208: "IS",
        0x00080061: "CS",
        0x00101030: "DS",
    }
    got = json.loads(
        msgspec.json.encode(
            attributes_to_model(
                ({0x00280010: "512", 0x00201208: "12", 0x00101030: "70.5", 0x99990010: "no vr"}, vrs),
                ({0x00100010: "A^B=C", 0x00080020: "", 0x00080061: "CT\\SR"}, vrs),
            )
        )
    )
    assert got == {
        "00080020": {"vr": "DA"},
        "00080061": {"vr": "CS", "Value": ["CT", "SR"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A^B", "Ideographic": "C"}]},
        "00101030": {"vr": "DS", "Value": [70.5]},
        "00201208": {"vr": "IS", "Value": [12]},
        "00280010": {"vr": "US", "Value": [512]},
    }
    assert list(got) == sorted(got)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["LO", "PN", "IS", "DS", "US", "FD", "UI", "LT", "UT", "DA"]))
def test_any_index_text_becomes_json(text: str, vr: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    json.loads(msgspec.json.encode(attributes_to_model(({0x00081030: text}, {0x00081030: vr}))))
