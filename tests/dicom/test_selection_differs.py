"""Danger: an attribute picked out of an object is another than in its whole metadata."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hounsfield.archive.dicom.json import to_json
from hounsfield.archive.dicom.scan import scan
from hounsfield.archive.dicom.selection import prune, select


def test_every_attribute_of_every_real_file_is_that_of_its_metadata(sample: Any) -> None:
    header = scan(sample.data, sample.syntax).slices(sample.data)[0]
    whole: dict[str, Any] = json.loads(to_json(header, b"", sample.syntax, base_uri="u/"))
    tags = [int(key, 16) for key in whole if key < "7FE00000"]
    found = select(header, sample.syntax, [(tag,) for tag in tags], base_uri="u/")
    assert found == {key: element for key, element in whole.items() if key < "7FE00000"}
    step = max(len(tags) // 7, 1)
    for tag in tags[::step]:
        alone = select(header, sample.syntax, [(tag,)], base_uri="u/")
        key = f"{tag:08X}"
        assert alone[key] == whole[key]
        creators = {other for other in alone if other != key}
        assert creators <= {f"{key[:4]}00{key[4:6]}"}
        assert int(key[3], 16) & 1 or not creators
    for path in [(0x7FE00010,), (0x00100010, 0x00100010), (0xFFFCFFFC,)]:
        picked = select(header, sample.syntax, [path])
        assert picked.keys() <= {"00100010"}


ITEMS = {
    "00400275": {
        "vr": "SQ",
        "Value": [
            {"00400009": {"vr": "SH", "Value": ["a"]}, "00401001": {"vr": "SH", "Value": ["b"]}},
            {"00401001": {"vr": "SH", "Value": ["c"]}},
        ],
    },
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A"}]},
}


@pytest.mark.parametrize(
    ("paths", "items"),
    [
        ({(0x00400275, 0x00400009)}, [{"00400009": {"vr": "SH", "Value": ["a"]}}, {}]),
        ({(0x00400275, 0x00400009), (0x00400275,)}, ITEMS["00400275"]["Value"]),
        ({(0x00400275, 0x00081199, 0x00081150)}, [{}, {}]),
    ],
)
def test_paths_into_sequences(paths: set[tuple[int, ...]], items: list[Any]) -> None:
    before = json.dumps(ITEMS)
    pruned = prune(ITEMS, frozenset(paths))
    assert pruned["00400275"] == {"vr": "SQ", "Value": items}
    assert json.dumps(ITEMS) == before
