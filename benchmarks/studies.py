"""Realistic synthetic studies, thousands a second, the same for the same seed.

A full data set is encoded once per (kind, picture); every element that differs between instances has a
value of fixed length there (its *slot*). An instance is that template with the slots overwritten, so
producing one costs a copy of the bytes and no DICOM encoding. UIDs are UUID-derived (PS3.5 B.2), all 44
characters long.

No person in here exists. Run `python -m benchmarks.studies --help` to write Part 10 files.
"""

from __future__ import annotations

import argparse
import enum
import io
import random
import struct
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.headers import SLOT_MARKERS, build_header
from benchmarks.people import GIVEN_NAMES, SURNAMES
from benchmarks.pictures import picture

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
IMPLEMENTATION_UID = "2.25.190446363527459130178441170286012344777"


class Kind(enum.Enum):
    """What is sent. Sizes are those of the pixel data."""

    CT = "ct"  # 512x512x16 bit: 512 KiB
    MR = "mr"  # 256x256x16 bit: 128 KiB
    CR = "cr"  # 2500x2048x16 bit: 9.8 MiB
    US = "us"  # 10 frames 640x480 RGB: 8.8 MiB
    SMALL = "small"  # 128x128x16 bit: 32 KiB

    @property
    def frames(self) -> int:
        """Frames in one instance."""
        return 10 if self is Kind.US else 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Which instance of which run: everything that a slot holds follows from these numbers.

    `run` (< 10^14) sets runs apart, so that no server ever sees a UID twice unless asked to.
    """

    run: int
    patient: int
    study: int
    series: int
    instance: int

    def study_uid(self) -> str:
        return self._uid(1, 0, 0)

    def series_uid(self) -> str:
        return self._uid(2, self.series, 0)

    def sop_instance_uid(self) -> str:
        return self._uid(3, self.series, self.instance)

    def values(self) -> dict[str, bytes]:
        """Slot name to exactly as many bytes as the slot is long."""
        day = 1 + self.study % 28
        month = 1 + self.study // 28 % 12
        year = 2016 + self.study // 336 % 10
        second = (self.study * 7919) % 86400
        surname = SURNAMES[(self.patient * 7 + 3) % len(SURNAMES)]
        given = GIVEN_NAMES[(self.patient // len(SURNAMES) + self.patient) % len(GIVEN_NAMES)]
        slice_mm = self.instance * 0.625 - 200
        return {
            "sop_instance_uid": self.sop_instance_uid().encode(),
            "study_uid": self.study_uid().encode(),
            "series_uid": self.series_uid().encode(),
            "frame_of_reference_uid": self._uid(4, 0, 0).encode(),
            "patient_id": b"HF%010d" % (self.patient % 10**10),
            "patient_name": f"{surname}^{given}".encode().ljust(24)[:24],
            "birth_date": b"%04d%02d%02d"
            % (1930 + self.patient % 80, 1 + self.patient % 12, 1 + self.patient % 28),
            "accession": b"A%011d" % (self.study % 10**11),
            "study_id": b"S%07d" % (self.study % 10**7),
            "date": b"%04d%02d%02d" % (year, month, day),
            "time": b"%02d%02d%02d" % (second // 3600, second // 60 % 60, second % 60),
            "series_number": b"%-6d" % (self.series + 1),
            "instance_number": b"%-8d" % (self.instance + 1),
            "slice_mm": (b"%.3f" % slice_mm).ljust(10)[:10],
        }

    def _uid(self, what: int, series: int, instance: int) -> str:
        where = f"{self.study % 10**9:09d}{series % 10**4:04d}{instance % 10**10:010d}"
        return f"2.25.1{self.run % 10**14:014d}{what}{where}"


@dataclass(frozen=True, slots=True)
class Template:
    """An encoded data set (Explicit VR Little Endian) with slots.

    `slots`: (name, offset, length). `pixels`: (offset, length) of the pixel data's value; all slots lie
    before it.
    """

    kind: Kind
    sop_class_uid: str
    data: bytes
    slots: tuple[tuple[str, int, int], ...]
    pixels: tuple[int, int]

    def encode(self, identity: Identity) -> bytearray:
        """The instance's whole encoded data set."""
        out = bytearray(self.data)
        values = identity.values()
        for name, offset, length in self.slots:
            out[offset : offset + length] = values[name]
        return out


@dataclass(frozen=True, slots=True)
class Instance:
    """What a C-STORE carries."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data: bytes | bytearray
    identity: Identity


@lru_cache(maxsize=64)
def template(kind: Kind, *, variant: int = 0, repertoire: str = "latin") -> Template:
    """One encoded data set of `kind`; `variant` is the picture, `repertoire` the character set of its texts
    (a key of `headers.REPERTOIRES`; in any but "latin" the patient's name is part of the template).
    """
    dataset = build_header(kind.value, repertoire)
    dataset.PixelData = picture(kind.value, variant)
    buffer = io.BytesIO()
    from pydicom import dcmwrite

    dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True, enforce_file_format=False)
    data = buffer.getvalue()
    pixel_length = len(dataset.PixelData)
    pixel_offset = len(data) - pixel_length  # pixel data is the last element and of even length
    if data[pixel_offset - 12 : pixel_offset - 8] != struct.pack("<HH", 0x7FE0, 0x0010):
        raise ValueError(f"the template of kind {kind.value} has elements after its pixel data")
    return Template(
        kind=kind,
        sop_class_uid=str(dataset.SOPClassUID),
        data=data,
        slots=_find_slots(data[:pixel_offset], optional={"patient_name"} if repertoire != "latin" else set()),
        pixels=(pixel_offset, pixel_length),
    )


def _find_slots(header: bytes, optional: set[str]) -> tuple[tuple[str, int, int], ...]:
    found = []
    for name, mark in SLOT_MARKERS.items():
        start = header.find(mark)
        if start < 0 and name not in optional:
            raise ValueError(f"the template has no slot {name!r}: headers.build_header must write its marker")
        while start >= 0:
            found.append((name, start, len(mark)))
            start = header.find(mark, start + len(mark))
    found.sort(key=lambda slot: slot[1])
    for (one, offset, length), (other, after, _) in pairwise(found):
        if offset + length > after:
            raise ValueError(f"the slots {one!r} and {other!r} overlap: their markers are too alike")
    return tuple(found)


def studies(
    kind: Kind,
    *,
    run: int,
    patients: int = 1,
    studies_per_patient: int = 1,
    series_per_study: int = 1,
    instances_per_series: int = 100,
    variants: int = 4,
    repertoires: tuple[str, ...] = ("latin",),
) -> Iterator[Instance]:
    """Yields instances in the order a modality sends them: patient, study, series, instance."""
    for patient in range(patients):
        repertoire = repertoires[patient % len(repertoires)]
        for study in range(patient * studies_per_patient, (patient + 1) * studies_per_patient):
            for series in range(series_per_study):
                for number in range(instances_per_series):
                    source = template(kind, variant=number % variants, repertoire=repertoire)
                    identity = Identity(run, patient, study, series, number)
                    yield Instance(
                        sop_class_uid=source.sop_class_uid,
                        sop_instance_uid=identity.sop_instance_uid(),
                        transfer_syntax_uid=EXPLICIT_VR_LITTLE_ENDIAN,
                        data=source.encode(identity),
                        identity=identity,
                    )


def part10(instance: Instance) -> bytes:
    """The instance as a DICOM file: preamble, file meta information, data set (PS3.10 7.1)."""
    meta = b"".join(
        (
            struct.pack("<HH2sHI2s", 2, 0x0001, b"OB", 0, 2, b"\x00\x01"),
            _ui(0x0002, instance.sop_class_uid),
            _ui(0x0003, instance.sop_instance_uid),
            _ui(0x0010, instance.transfer_syntax_uid),
            _ui(0x0012, IMPLEMENTATION_UID),
        )
    )
    group_length = struct.pack("<HH2sHI", 2, 0x0000, b"UL", 4, len(meta))
    return b"".join((bytes(128), b"DICM", group_length, meta, instance.data))


def write_part10(instance: Instance, directory: Path) -> Path:
    """Writes `<directory>/<study>/<series>/<instance>.dcm` and returns its path."""
    identity = instance.identity
    folder = directory / f"study{identity.study:06d}" / f"series{identity.series:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{identity.instance:06d}.dcm"
    path.write_bytes(part10(instance))
    return path


def _ui(element: int, uid: str) -> bytes:
    value = uid.encode()
    value += b"\x00" * (len(value) & 1)
    return struct.pack("<HH2sH", 2, element, b"UI", len(value)) + value


def main() -> None:
    """Writes Part 10 files of several patients below a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies", description=main.__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kind", choices=[kind.value for kind in Kind], default="ct")
    parser.add_argument("--patients", type=int, default=1)
    parser.add_argument("--studies", type=int, default=1, help="per patient")
    parser.add_argument("--series", type=int, default=1, help="per study")
    parser.add_argument("--instances", type=int, default=20, help="per series")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    written = 0
    for instance in studies(
        Kind(arguments.kind),
        run=random.Random(arguments.seed).randrange(10**14),
        patients=arguments.patients,
        studies_per_patient=arguments.studies,
        series_per_study=arguments.series,
        instances_per_series=arguments.instances,
        repertoires=("latin", "western", "greek", "japanese", "korean", "chinese"),
    ):
        write_part10(instance, arguments.directory)
        written += 1
    print(f"{written} files in {arguments.directory}")


if __name__ == "__main__":
    main()
