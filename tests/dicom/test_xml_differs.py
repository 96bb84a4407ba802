"""Danger: XML says something else than the JSON or the object; a stranger's XML eats the server.

The reference is DCMTK's dcm2xml, on every file.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from base64 import b64decode
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hounsfield.archive.dicom.json import to_json
from hounsfield.archive.dicom.scan import scan
from hounsfield.archive.dicom.xml import NAMESPACE, XmlError, XmlLimits, model_to_xml, xml_to_model

Model = dict[str, Any]


def model_of(sample: Any, **how: Any) -> Model:
    slices = scan(sample.data, sample.syntax).slices(sample.data)
    trailer = slices[-1] if len(slices) > 1 else b""
    parsed: Model = json.loads(to_json(slices[0], trailer, sample.syntax, **how))
    return parsed


def sayable(value: Any) -> Any:
    """What XML can say of a model: no control characters, no carets at a name's end, no values of nothing."""
    if isinstance(value, str):
        return "".join("\ufffd" if c < " " and c not in "\t\n\r" else c for c in value)
    if isinstance(value, list):
        return [sayable(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "vr" not in value:
        return {key: sayable(one) for key, one in value.items()}
    element = {key: sayable(one) for key, one in value.items()}
    values = element.get("Value", [])
    if element["vr"] == "PN":
        names = [
            {group: text for group, name in (one or {}).items() if (text := name.rstrip("^"))} or None
            for one in values
        ]
        element["Value"] = values = names
    while values and values[-1] is None:
        values.pop()
    if not values:
        element.pop("Value", None)
    return element


def test_every_real_file_comes_back_from_its_xml(sample: Any) -> None:
    model = model_of(sample, base_uri='http://[::1]/a?b="<&')
    back = xml_to_model(model_to_xml(model))
    assert back == sayable(model)
    assert list(back) == sorted(back)


# ------------------------------------------------------------ against DCMTK

DCM2XML = shutil.which("dcm2xml")
INLINE = 64 << 10  # dcm2xml's threshold is in KiB
#: Files that dcm2xml gives up on: text in ISO 2022 or in a character set it does not know; no end; DICOMDIRs.
NO_REFERENCE = {
    *("chrH31.dcm", "chrH32.dcm", "chrJapMulti.dcm", "chrJapMultiExplicitIR6.dcm", "chrSQEncoding.dcm"),
    *("chrSQEncoding1.dcm", "J2K_pixelrep_mismatch.dcm", "explicit_VR-UN.dcm"),
    *("MR_truncated.dcm", "SC_rgb_jpeg.dcm", "rtplan_truncated.dcm"),
    "emri_small_jpeg_2k_lossless_too_short.dcm",
    *("DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit", "DICOMDIR-nooffset", "DICOMDIR-nopatient"),
    "DICOMDIR-reordered",
}


def read(root: ElementTree.Element) -> dict[str, Any]:
    """A data set as (VR, values) by tag and creator, of either writer. A link has no value."""
    found: dict[str, Any] = {}
    for attribute in root:
        values: Any = {}
        for child in attribute:
            kind, number = child.tag.rpartition("}")[2], int(child.get("number", "1"))
            if kind == "Item":
                values[number] = read(child)
            elif kind == "PersonName":
                parts = [
                    (group.tag.rpartition("}")[2], part.tag.rpartition("}")[2], (part.text or "").strip())
                    for group in child
                    for part in group
                ]
                values[number] = [part for part in parts if part[2]]
            else:
                values[number] = "link" if kind == "BulkData" else (child.text or "").strip()
        tag, creator = attribute.get("tag", ""), attribute.get("privateCreator", "").strip()
        # dcm2xml leaves the block out also when it knows no creator, and elements then coincide.
        tag = tag[:4] + "00" + tag[6:] if int(tag[3], 16) & 1 and tag[4:6] >= "10" else tag
        # It names the creator of creators; group lengths and padding are no metadata of ours.
        if tag != "00080005" and not tag.endswith("0000") and tag < "FFFC":
            found[f"{tag} {creator}"] = (
                attribute.get("vr"),
                {number: value for number, value in values.items() if value not in ("", [])},
            )
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Elements that differ in another way than is meant."""
    found = [f"{key} is missing" for key in ours.keys() ^ theirs.keys()]
    for key in ours.keys() & theirs.keys():
        (vr, values), (their_vr, their_values) = ours[key], theirs[key]
        if "link" in {*map(str, values.values()), *map(str, their_values.values())}:
            continue  # pixel data, or longer than either writes inline
        if their_vr == "UN" and vr != "UN":
            continue  # it does not look UN up in the dictionary
        if vr != their_vr:
            found.append(f"{key}: {vr} {their_vr}")
        elif vr == "SQ":
            if values.keys() != their_values.keys():
                found.append(f"{key}: {len(values)} and {len(their_values)} items")
            for number in values.keys() & their_values.keys():
                found += [f"{key}/{one}" for one in differences(values[number], their_values[number])]
        elif values.keys() != their_values.keys() or any(
            not alike(vr, value, their_values[number]) for number, value in values.items()
        ):
            found.append(f"{key}: {values} {their_values}")
    return found


def alike(vr: str, value: Any, theirs: Any) -> bool:
    if vr in ("DS", "IS", "FL", "FD") and value != theirs:
        try:  # numbers in another notation; it writes binary ones with fewer digits
            return math.isclose(float(value), float(theirs), rel_tol=1e-7)
        except ValueError:
            return False
    if vr in ("OW", "UN", "OB") and value != theirs:
        mine, other = b64decode(value), b64decode(theirs)
        # It writes words with the high byte first, and pads an odd length.
        return other == mine[1::2] + mine[::2] or swapped(other) == mine or other == mine + b"\0"
    if vr == "PN" and value != theirs:  # it repeats the second group when the third is empty
        return value == [part for part in theirs if part[0] != "Phonetic"]
    return bool(value == theirs)


def swapped(raw: bytes) -> bytes:
    out = bytearray(raw)
    out[::2], out[1::2] = raw[1::2], raw[::2]
    return bytes(out)


@pytest.mark.peer("dcm2xml")
def test_every_real_file_is_the_xml_that_dcm2xml_writes(sample: Any) -> None:
    assert DCM2XML is not None
    how = ("-q", "--native-format", "+Xn", "+U8", "+Eb", "+R", str(INLINE >> 10), str(sample.path))
    done = subprocess.run((DCM2XML, *how), capture_output=True, check=False, timeout=60)
    assert (done.returncode != 0) == (sample.path.name in NO_REFERENCE), done.stderr
    if done.returncode == 0:
        theirs = read(ElementTree.fromstring(done.stdout))
        ours = read(ElementTree.fromstring(model_to_xml(model_of(sample, inline_bytes_max=INLINE))))
        assert not differences(ours, theirs)


# ------------------------------------------------------------ meanings


def test_private_elements_find_their_block() -> None:
    model = {
        "00091001": {"vr": "LO", "Value": ["of the first"]},
        "00090010": {"vr": "LO", "Value": ["FIRST & <ONE>\"'"]},
        "00090012": {"vr": "LO", "Value": ["SECOND"]},
        "00091201": {"vr": "US", "Value": [1, 2]},
        "00090013": {"vr": "LO", "Value": ["SECOND"]},
        "00091301": {"vr": "US", "Value": [3]},
        "00111001": {"vr": "LO", "Value": ["nobody's"]},
    }
    document = model_to_xml(model)
    assert b'tag="00090001" privateCreator="FIRST &amp; &lt;ONE&gt;&quot;\'"' in document
    assert xml_to_model(document) == dict(sorted(model.items()))


def test_a_creator_that_is_not_there_gets_a_block() -> None:
    found = xml_to_model(
        wrapped(
            '<DicomAttribute tag="00090010" vr="LO"><Value number="1">OTHER</Value></DicomAttribute>'
            '<DicomAttribute tag="00090027" vr="SL" privateCreator="ME"><Value number="1">-5</Value>'
            "</DicomAttribute>"
        )
    )
    assert found["00091127"] == {"vr": "SL", "Value": [-5]}
    assert found["00090011"] == {"vr": "LO", "Value": ["ME"]}


def test_empty_values_keep_their_place() -> None:
    model = {
        "00080008": {"vr": "CS", "Value": ["A", None, None, "B"]},
        "00200037": {"vr": "DS", "Value": [1.5, None, "1A", -3]},
        "0040A730": {"vr": "SQ", "Value": [{}, {"00080100": {"vr": "SH"}}]},
        "00080090": {"vr": "PN", "Value": [None, {"Alphabetic": "A^^C", "Phonetic": "x^y^z^p^s^t"}]},
        "00189346": {"vr": "FD", "Value": [0.1, None, 1e-300]},
    }
    assert xml_to_model(model_to_xml(model)) == dict(sorted(model.items()))


def test_without_a_namespace_and_in_another_character_set() -> None:
    text = (
        '<?xml version="1.0" encoding="ISO-8859-1"?><NativeDicomModel><DicomAttribute tag="00104000" vr="LT">'
        '<Value number="1">grün\n &#13; </Value></DicomAttribute></NativeDicomModel>'
    )
    assert xml_to_model(text.encode("latin-1")) == {"00104000": {"vr": "LT", "Value": ["grün\n \r "]}}
    bulk = wrapped('<DicomAttribute tag="7FE00010" vr="OW"><BulkData uuid="a-b"/></DicomAttribute>')
    assert xml_to_model(bulk) == {"7FE00010": {"vr": "OW", "BulkDataURI": "urn:uuid:a-b"}}


NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="^\ufffe\uffff"), min_size=1)
ELEMENTS = {
    "00104000": st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\r\n\t<>&\"']]>")),
    "00100010": st.builds("^".join, st.lists(NAME, min_size=1, max_size=7)).map(
        lambda text: {"Alphabetic": text, "Ideographic": text}
    ),
    "00280010": st.integers(0, 65535),
    "00189346": st.floats(allow_nan=False, allow_infinity=False),
}
VRS = {"00104000": "LT", "00100010": "PN", "00280010": "US", "00189346": "FD"}


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional=ELEMENTS))
def test_any_value_comes_back(values: dict[str, Any]) -> None:
    values.pop("00104000", None) if values.get("00104000") == "" else None
    inner = {tag: {"vr": VRS[tag], "Value": [value]} for tag, value in sorted(values.items())}
    model = {"0040A730": {"vr": "SQ", "Value": [inner]}, **inner} if inner else {}
    model = dict(sorted(model.items()))
    again = xml_to_model(model_to_xml(model))
    assert again == sayable(
        json.loads(json.dumps(model).replace("\\uffff", "\\ufffd").replace("\\ufffe", "\\ufffd"))
    )


# ------------------------------------------------------------ strangers' bytes


def wrapped(inner: str) -> bytes:
    return f'<NativeDicomModel xmlns="{NAMESPACE}">{inner}</NativeDicomModel>'.encode()


def attribute(inner: str, tag: str = "00100020", vr: str = "LO") -> str:
    return f'<DicomAttribute tag="{tag}" vr="{vr}">{inner}</DicomAttribute>'


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
REFUSED = {
    "laughs": f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]>'.encode() + wrapped(attribute("&l11;")),
    "files": b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + wrapped(attribute("&e;")),
    "dtd": b'<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd">' + wrapped(""),
    "entity": wrapped(attribute('<Value number="1">&secret;</Value>')),
    "cut": wrapped(attribute('<Value number="1">SECRET</Value>'))[:-5],
    "nothing": b"",
    "no XML": b"SECRET",
    "other XML": b"<html/>",
    "other namespace": b'<NativeDicomModel xmlns="urn:SECRET"/>',
    "unknown encoding": b'<?xml version="1.0" encoding="SECRET"?><NativeDicomModel/>',
    "text between": wrapped("SECRET"),
    "unknown element": wrapped(attribute("<SECRET/>")),
    "value without attribute": wrapped('<Value number="1">SECRET</Value>'),
    "no tag": wrapped('<DicomAttribute vr="LO"/>'),
    "bad tag": wrapped(attribute("", tag="SECRET__")),
    "bad VR": wrapped(attribute("", vr="SECRET")),
    "twice": wrapped(attribute("") * 2),
    "values again": wrapped(attribute('<Value number="1">a</Value><Value number="1">b</Value>')),
    "not numbered": wrapped(attribute("<Value>SECRET</Value>")),
    "numbered hugely": wrapped(attribute('<Value number="999999999">SECRET</Value>')),
    "no number": wrapped(attribute('<Value number="1">SECRET</Value>', "00280010", "US")),
    "no float": wrapped(attribute('<Value number="1">SECRET</Value>', "00189346", "FD")),
    "item in text": wrapped(attribute('<Item number="1"/>')),
    "value in sequence": wrapped(attribute('<Value number="1">SECRET</Value>', "0040A730", "SQ")),
    "both": wrapped(attribute('<Value number="1">SECRET</Value><InlineBinary>AA==</InlineBinary>')),
    "deep": wrapped(
        '<DicomAttribute tag="0040A730" vr="SQ"><Item number="1">' * 40 + "</Item></DicomAttribute>" * 40
    ),
    "very deep": b"<a>" * 200_000,
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_model_is_refused_without_repeating_it(case: str) -> None:
    with pytest.raises(XmlError) as caught:
        xml_to_model(REFUSED[case])
    assert "SECRET" not in str(caught.value)


def test_limits() -> None:
    document = wrapped("".join(attribute("", tag=f"0010{i:04X}") for i in range(100)))
    assert len(xml_to_model(document, XmlLimits(nodes_max=101))) == 100
    for limits in (XmlLimits(nodes_max=100), XmlLimits(bytes_max=len(document) - 1)):
        with pytest.raises(XmlError):
            xml_to_model(document, limits)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_bytes_raise_anything_else(data: st.DataObject) -> None:
    document = bytearray(
        wrapped(
            attribute('<Value number="1">a</Value>')
            + attribute('<Item number="2">' + attribute("") + "</Item>", "0040A730", "SQ")
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        document[data.draw(st.integers(0, len(document) - 1))] = data.draw(st.integers(0, 255))
    try:
        model = xml_to_model(bytes(document))
    except XmlError:
        return
    model_to_xml(model)
