"""Trains the dictionary of instance rows, and says what it saves: ``python -m benchmarks.row_dictionary``.

Rows come from the synthetic studies and from the files that pydicom carries, with their identifiers, times
and places drawn anew many times over. ``--write FILE`` keeps the dictionary. A release's dictionary is part
of the index format (``archive/index/row_dictionary.py``): write a new version, never over an old one.
"""

from __future__ import annotations

import argparse
import json
import random
import warnings
from pathlib import Path

import pydicom
import zstandard
from msgspec import msgpack, structs

from benchmarks.studies import EXPLICIT_VR_LITTLE_ENDIAN, Identity, Kind, template
from hounsfield.archive.dicom.part10 import Part10Error, split
from hounsfield.archive.engine.receiving import scanned
from hounsfield.archive.engine.types import Source
from hounsfield.archive.index.catalog import Place, Stored, instance_row
from hounsfield.archive.index.row_dictionary import LEVEL, compress
from hounsfield.archive.index.rows import InstanceRow, Location, encode
from hounsfield.storage_backends.segment_format import RecordRef

DICTIONARY_BYTES = 8192  # 4 KiB: 5 % larger rows; 16 KiB: 3 % smaller ones
UID_ROOTS = (
    "1.2.840.113619.2.{}.{}.{}.{}", "1.3.12.2.1107.5.{}.{}.{}.{}", "1.3.46.670589.{}.{}.{}.{}",
    "2.25.{}{}{}{}", "1.2.392.200036.9116.{}.{}.{}.{}", "1.2.826.0.1.3680043.{}.{}.{}.{}",
)  # fmt: skip
DATES = (0x00080012, 0x00080022, 0x00080023)
TIMES = (0x00080013, 0x00080032, 0x00080033)
INSTANCE_NUMBER, SOP_INSTANCE_UID = 0x00200013, 0x00080018


def row_of(data: bytes, syntax: str, chance: random.Random) -> InstanceRow:
    """The index row of one data set."""
    received = scanned(memoryview(data), syntax, "", "", Source("dimse"))
    lengths = (len(encode(received.row)), *(len(piece) for piece in received.slices))
    ref = RecordRef(chance.randbytes(16), chance.randbytes(16), chance.randrange(1 << 30), lengths, 1)
    row = received.row
    stored = Stored(row, Location.of(ref, None))
    return instance_row(stored, Place(row.study_uid, row.series_uid, row.sop_uid))


def varied(row: InstanceRow, chance: random.Random) -> InstanceRow:
    """Another row of the same kind: whatever is particular to an instance is drawn anew."""
    numbers = (
        chance.randrange(999),
        chance.randrange(10**6),
        chance.randrange(10**12),
        chance.randrange(10**10),
    )
    uid = chance.choice(UID_ROOTS).format(*numbers)[:64]
    attributes = dict(row.attributes)
    for tag, text in row.attributes.items():
        if not text:
            continue
        if tag == SOP_INSTANCE_UID:
            attributes[tag] = uid
        elif tag in DATES:
            attributes[tag] = (
                f"20{chance.randrange(10, 40)}{chance.randrange(1, 13):02}{chance.randrange(1, 29):02}"
            )
        elif tag in TIMES:
            fraction = f".{chance.randrange(10**6):06}" if "." in text else ""
            second = chance.randrange(86400)
            attributes[tag] = f"{second // 3600:02}{second // 60 % 60:02}{second % 60:02}{fraction}"
        elif tag == INSTANCE_NUMBER:
            attributes[tag] = str(chance.randrange(1, 800))
    place = structs.replace(
        row.location,
        segment=chance.randbytes(16),
        record_id=chance.randbytes(16),
        offset=chance.randrange(1 << 30),
    )
    received_ns = 1_790_000_000_000_000_000 + chance.randrange(10**18)
    return structs.replace(row, sop_uid=uid, attributes=attributes, location=place, received_ns=received_ns)


def samples(chance: random.Random) -> list[bytes]:
    """Rows as MessagePack, shuffled."""
    rows = []
    for kind in Kind:
        made = template(kind)
        one = Identity(run=1, patient=1, study=1, series=1, instance=1)
        rows += [row_of(bytes(made.encode(one)), EXPLICIT_VR_LITTLE_ENDIAN, chance)] * 250
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*.dcm")):
        data = path.read_bytes()
        try:
            part = split(data)
        except Part10Error:
            continue
        if len(data) < 3 << 20:
            rows += [row_of(data[part.offset :], part.transfer_syntax_uid, chance)] * 12
    found = [msgpack.encode(varied(row, chance)) for row in rows]
    chance.shuffle(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the dictionary here")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = samples(random.Random(1))
    learnt, tried = rows[: len(rows) * 4 // 5], rows[len(rows) * 4 // 5 :]
    figures = {"rows": len(tried), "bytes_each": sum(map(len, tried)) / len(tried)}
    if options.write:
        options.write.write_bytes(
            zstandard.train_dictionary(DICTIONARY_BYTES, learnt, level=LEVEL).as_bytes()
        )
    else:
        figures["compressed_bytes_each"] = sum(len(compress(row)) for row in tried) / len(tried)
    print(json.dumps(figures) if options.json else "\n".join(f"{k}: {v:.1f}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
