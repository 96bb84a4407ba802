"""Data sets made of JSON say what the JSON says; what they cannot say is refused, whoever sends it."""

from __future__ import annotations

import io
import json
import math
import warnings
from base64 import b64decode
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hounsfield.archive.dicom import from_json as module
from hounsfield.archive.dicom.bulk import find_bulk
from hounsfield.archive.dicom.from_json import ModelError, PixelLink, from_json, links, pixel_link, text_of
from hounsfield.archive.dicom.json import to_json
from hounsfield.archive.dicom.part10 import file_header
from hounsfield.archive.dicom.rewrite import element
from hounsfield.archive.dicom.scan import scan
from hounsfield.archive.dicom.walk import DEPTH_MAX, elements
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, TransferSyntax

Model = dict[str, Any]
NO_REFERENCE = {"badVR.dcm", "emri_small_jpeg_2k_lossless_too_short.dcm"}  # pydicom makes no JSON of them
WORDS = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


def slices_of(data: Any, syntax: TransferSyntax) -> tuple[Any, Any]:
    slices = scan(data, syntax).slices(data)
    return slices[0], slices[-1] if len(slices) > 1 else b""


def whole(model: Model, bulk: dict[str, bytes] | None = None) -> bytes:
    """The data set, with two bytes of pixels where those are left to others."""
    head, pixels, trailer = from_json(model, bulk)
    if pixels is None:
        return head + trailer
    return head + element(pixels.tag, pixels.vr, bytes(2), implicit=False, little=True) + trailer


def written(model: Model, bulk: dict[str, bytes] | None = None) -> Model:
    """What our JSON says of the data set made of ``model``."""
    data = whole(model, bulk)
    again: Model = json.loads(
        to_json(
            *slices_of(data, EXPLICIT_VR_LITTLE_ENDIAN), EXPLICIT_VR_LITTLE_ENDIAN, inline_bytes_max=1 << 40
        )
    )
    return again


def padded(model: Model) -> Model:
    """With what a data set cannot keep: binary values have an even length (PS3.5 7.1.1)."""
    out: Model = {}
    for key, entry in model.items():
        if entry["vr"] == "SQ":
            entry = {
                **entry,
                **({"Value": [padded(one) for one in entry["Value"]]} if "Value" in entry else {}),
            }
            entry["Value"] = [
                {k: v for k, v in one.items() if k != "00080005"} for one in entry.get("Value", [])
            ]
            entry = entry if entry["Value"] else {"vr": "SQ"}
        elif "InlineBinary" in entry:
            raw = b64decode(entry["InlineBinary"])
            entry = {"vr": entry["vr"], "InlineBinary": raw + bytes(len(raw) % 2)}
        out[key] = entry
    return out


def test_every_real_file_comes_back_from_its_json(sample: Any) -> None:
    header, trailer = slices_of(sample.data, sample.syntax)
    model = json.loads(to_json(header, trailer, sample.syntax, inline_bytes_max=1 << 40))
    if any("BulkDataURI" in one for key, one in model.items() if not key.startswith("7FE0")):
        return  # a sequence too long for JSON
    model.pop("00083002", None)
    assert padded(written(model)) == padded(model)


def test_every_real_file_comes_back_from_json_and_bulk_data(sample: Any) -> None:
    header, trailer = slices_of(sample.data, sample.syntax)
    if not sample.syntax.little_endian:
        return  # bulk data is little endian: whoever sends it has swapped it
    model = json.loads(to_json(header, trailer, sample.syntax, inline_bytes_max=16))
    bulk = {}
    for uri in links(model):
        found = find_bulk(header, trailer, sample.syntax, uri.partition("bulkdata/")[2])
        assert found is not None
        bulk[uri] = bytes(found.value)
    inline = json.loads(to_json(header, trailer, sample.syntax, inline_bytes_max=1 << 40))
    inline.pop("00083002", None)
    assert padded(written(model, bulk)) == padded(inline)
    for uri in bulk:
        with pytest.raises(ModelError, match="not in the request"):
            from_json(model, {other: value for other, value in bulk.items() if other != uri})


def test_every_real_file_is_read_as_pydicom_reads_its_json(sample: Any) -> None:
    if sample.path.name in NO_REFERENCE:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = pydicom.dcmread(sample.path, force=True)
        for tag in (0x7FE00008, 0x7FE00009, 0x7FE00010):
            original.pop(tag, None)
        model = original.to_json_dict()
        try:
            data = whole(model)
        except ModelError as refused:
            raise AssertionError(sample.path.name) from refused
        reference = pydicom.Dataset.from_json(json.loads(json.dumps(model)))
        file = file_header(EXPLICIT_VR_LITTLE_ENDIAN.uid, "1.2", "1.3") + data
        ours = pydicom.dcmread(io.BytesIO(file))
        assert spoken(ours.to_json_dict()) == spoken(reference.to_json_dict())


def spoken(model: Model) -> Model:
    """Without what no data set keeps: group lengths, padding, the character set of items."""
    out: Model = {}
    for key, entry in model.items():
        if key.endswith("0000") or key == "00080005" or key >= "FFFC" or key.startswith("0002"):
            continue
        if entry["vr"] == "SQ":
            out[key] = [spoken(one) for one in entry.get("Value", [])]
        elif "InlineBinary" in entry:
            raw = b64decode(entry["InlineBinary"])
            out[key] = (entry["vr"], raw + bytes(len(raw) % 2))
        else:
            values = [
                value.strip(" \0") or None if isinstance(value, str) else value
                for value in entry.get("Value", [])
            ]
            while values and values[-1] is None:
                values.pop()
            out[key] = (entry["vr"], values)
    return out


def one(entry: Model, key: str = "00091010") -> Any:
    """The VR and the bytes of one attribute."""
    data = from_json({key: entry}).head
    *_, (tag, vr, at, length, _) = elements(data, 0, len(data), False, True)
    assert tag == int(key, 16)
    return vr, data[at : at + length]


@pytest.mark.parametrize(
    ("vr", "values", "raw"),
    [
        ("CS", ["A", None, "B"], b"A\\\\B"),
        ("CS", [None], b""),
        ("UI", ["1.2.3"], b"1.2.3\0"),
        ("LO", ["Grün"], "Grün ".encode()),
        ("SH", [12], b"12"),
        ("LT", [" a\\b"], b" a\\b"),
        ("PN", [{"Alphabetic": "A^B", "Phonetic": "C"}], b"A^B==C"),
        ("PN", [{"Ideographic": "山田^太郎"}], "=山田^太郎".encode()),
        ("PN", ["A^B", None, {}], b"A^B\\\\ "),
        ("IS", [12, "-3", 4.0], b"12\\-3\\4 "),
        ("DS", [1.5, 2, "1e3"], b"1.5\\2\\1e3 "),
        ("DS", [-1.2345678901234567e-05], b"-1.23456789e-05 "),
        ("DS", [0.1234567890123456789], b"0.12345678901235"),
        ("DS", [123456789012345678.0], b"1.2345678901e+17"),
        ("FD", [0.5], b"\0\0\0\0\0\0\xe0?"),
        ("FL", [None], b"\0\0\xc0\x7f"),
        ("US", [1, 65535], b"\1\0\xff\xff"),
        ("SS", [-1], b"\xff\xff"),
        ("UL", ["5"], b"\5\0\0\0"),
        ("UV", ["18446744073709551615"], b"\xff" * 8),
        ("SV", [-(1 << 63)], bytes(7) + b"\x80"),
        ("AT", ["00181063"], b"\x18\0\x63\x10"),
        ("SQ", [None, {}], b"\xfe\xff\0\xe0\0\0\0\0" * 2),
    ],
)
def test_values(vr: str, values: list[Any], raw: bytes) -> None:
    assert one({"vr": vr, "Value": values}) == (vr, raw)


def test_the_vr_may_be_left_out_and_a_long_value_gets_another() -> None:
    assert one({"Value": ["A"]}, "00080060") == ("CS", b"A ")
    assert one({"Value": [7]}, "00280010") == ("US", b"\7\0")
    assert one({"vr": "US", "Value": [1] * 40_000})[0] == "UN"
    assert one({"vr": "OB", "InlineBinary": "AQID"}) == ("OB", b"\1\2\3\0")
    assert one({"vr": "UN"}) == ("UN", b"")


def test_text_is_utf8_and_said_to_be() -> None:
    assert from_json({"00100010": {"vr": "PN", "Value": ["A"]}}).head[:4] == b"\x10\0\x10\0"
    for model in (
        {"00081030": {"vr": "LO", "Value": ["Schädel"]}},
        {"00081030": {"vr": "LO", "Value": ["x"]}, "00080005": {"vr": "CS", "Value": ["ISO_IR 100"]}},
        {"00081140": {"vr": "SQ", "Value": [{"00081030": {"vr": "LO", "Value": ["ä"]}}]}},
    ):
        assert written(model)["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
    nested = {"00081140": {"vr": "SQ", "Value": [{"00080005": {"vr": "CS", "Value": ["ISO_IR 100"]}}]}}
    assert b"ISO_IR" not in from_json(nested).head


@pytest.mark.parametrize(
    "model",
    [
        [],
        None,
        {"": {}},
        {"0008": {"vr": "CS"}},
        {"ZZ080060": {"vr": "CS"}},
        {"00080060": []},
        {"00080060": {"vr": "ZZ"}},
        {"00080060": {"vr": 5}},
        {"00080060": {"vr": "CS", "Value": "CT"}},
        {"00080060": {"vr": "CS", "Value": [True]}},
        {"00080060": {"vr": "CS", "Value": [["CT"]]}},
        {"00080060": {"vr": "CS", "Value": ["\ud800"]}},
        {"00080060": {"vr": "CS", "InlineBinary": "AAAA"}},
        {"00080060": {"vr": "CS", "Value": ["CT"], "BulkDataURI": "x"}},
        {"00104000": {"vr": "LT", "Value": ["a", "b"]}},
        {"00100010": {"vr": "PN", "Value": [{"Alphabetic": 5}]}},
        {"00280010": {"vr": "US", "Value": [65536]}},
        {"00280010": {"vr": "US", "Value": [-1]}},
        {"00280010": {"vr": "US", "Value": [None]}},
        {"00280010": {"vr": "US", "Value": [1.5]}},
        {"00280010": {"vr": "US", "Value": [True]}},
        {"00280010": {"vr": "FL", "Value": [1e300]}},
        {"00200013": {"vr": "IS", "Value": [1.5]}},
        {"00200013": {"vr": "IS", "Value": [10**5000]}},
        {"00280030": {"vr": "DS", "Value": [math.inf]}},
        {"00280030": {"vr": "DS", "Value": [math.nan]}},
        {"00280010": {"vr": "FD", "Value": [10**5000]}},
        {"00080005": {"vr": "AT", "Value": ["xyz"]}},
        {"00080005": {"vr": "AT", "Value": ["+1234567"]}},
        {"7FE00010": {"vr": "OW", "Value": [1]}},
        {"7FE00010": {"vr": "OW", "InlineBinary": "%%%"}},
        {"7FE00010": {"vr": "OW", "InlineBinary": 5}},
        {"7FE00010": {"vr": "OW", "BulkDataURI": 5}},
        {"7FE00010": {"vr": "OW", "BulkDataURI": ""}},
        {"00081140": {"vr": "SQ", "Value": ["x"]}},
        {"00081140": {"vr": "SQ", "BulkDataURI": "x"}},
        {"0008114A": {"vr": "CS"}, "0008114a": {"vr": "CS"}},
    ],
)
def test_what_is_no_data_set_is_refused(model: Any) -> None:
    with pytest.raises(ModelError) as refused:
        from_json(model, {"x": b""})
    assert "xyz" not in str(refused.value)


def deep(levels: int) -> Model:
    model: Model = {}
    for _ in range(levels):
        model = {"00081140": {"vr": "SQ", "Value": [model]}}
    return model


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    from_json(deep(DEPTH_MAX))
    with pytest.raises(ModelError, match="nested"):
        from_json(deep(DEPTH_MAX + 1))
    with pytest.raises(ModelError, match="nested"):
        list(links(deep(DEPTH_MAX + 2)))
    monkeypatch.setattr(module, "ELEMENTS_MAX", 5)
    from_json({"00081140": {"vr": "SQ", "Value": [{}] * 4}})
    with pytest.raises(ModelError, match="more than 5"):
        from_json({"00081140": {"vr": "SQ", "Value": [{}] * 5}})


def test_links_are_found_and_pixels_left_to_others() -> None:
    inner = {"00091010": {"vr": "OB", "BulkDataURI": "c"}, "7FE00010": {"vr": "OW", "BulkDataURI": "d"}}
    model = {
        "60003000": {"vr": "OW", "BulkDataURI": "a"},
        "7fe00010": {"vr": "OW", "BulkDataURI": "b"},
        "00880200": {"vr": "SQ", "Value": [inner]},
        "FFFAFFFA": {"vr": "SQ"},
    }
    assert sorted(links(model)) == ["a", "c", "d"]
    assert pixel_link(model) == PixelLink(0x7FE00010, "OW", "b")
    head, pixels, trailer = from_json(model, {"a": b"aa", "c": b"cc", "d": b"dd"})
    assert pixels == PixelLink(0x7FE00010, "OW", "b")
    assert head.endswith(b"\0\x60\0\x30OW\0\0\2\0\0\0aa")
    assert trailer == b"\xfa\xff\xfa\xffSQ\0\0\0\0\0\0"
    assert (
        from_json({"00091010": {"vr": "LO", "BulkDataURI": "u"}}, {"u": "ä".encode()}).head[-2:]
        == "ä".encode()
    )
    with pytest.raises(ModelError, match="UTF-8"):
        from_json({"00091010": {"vr": "LO", "BulkDataURI": "u"}}, {"u": b"\xe4"})


def test_text_of() -> None:
    model = {
        "00080018": {"vr": "UI", "Value": ["1.2 "]},
        "00280008": {"vr": "IS", "Value": [3]},
        "00080016": {"vr": "UI"},
        "00080060": {"vr": "CS", "Value": [None]},
    }
    found = [text_of(model, tag) for tag in (0x00080018, 0x00280008, 0x00080016, 0x00080060, 0x00100010)]
    assert found == ["1.2", "3", "", "", ""]
    assert text_of([], 5) == text_of({"00000005": "x"}, 5) == text_of({"00000005": {"Value": {}}}, 5) == ""


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text("0123456789ABCDEF", min_size=8, max_size=8) | st.text(max_size=3), inner, max_size=3
        )
        | st.fixed_dictionaries(
            {},
            optional={
                "vr": st.sampled_from(["PN", "US", "SQ", "OB", "DS", "IS", "LO", "FD", "AT"]),
                "Value": inner,
            },
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.text("0123456789ABCDEF", min_size=8, max_size=8),
        st.fixed_dictionaries(
            {"vr": st.sampled_from(["PN", "US", "SQ", "OB", "DS", "IS", "LO", "UT", "FD", "AT", "CS", "UN"])},
            optional={"Value": anything, "InlineBinary": anything, "BulkDataURI": anything},
        )
        | anything,
        max_size=4,
    )
)
def test_anything_is_refused_or_written(model: Any) -> None:
    try:
        data = whole(model, {})
    except ModelError:
        return
    assert len(data) % 2 == 0
    again = json.loads(to_json(*slices_of(data, EXPLICIT_VR_LITTLE_ENDIAN), EXPLICIT_VR_LITTLE_ENDIAN))
    kept = {key.upper() for key in model if key[:4] not in ("0000", "0002") and key < "FFFC"}
    assert {key for key in kept if key[4:] != "0000" and key != "00083002"} <= set(again)
