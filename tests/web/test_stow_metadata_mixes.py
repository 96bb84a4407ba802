"""STOW-RS with metadata and bulk data apart: an instance gets its own bulk data, all of it, or is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import imagecodecs
import numpy as np
import pydicom
import pytest

from hounsfield.archive.dicom import part10
from hounsfield.archive.dicom.bulk import find_bulk
from hounsfield.archive.dicom.codestreams import without_container
from hounsfield.archive.dicom.from_json import links
from hounsfield.archive.dicom.json import to_json
from hounsfield.archive.dicom.scan import scan
from hounsfield.archive.dicom.xml import model_to_xml
from hounsfield.archive.engine.errors import OutOfResourcesError
from hounsfield.archive.engine.ingest import IngestSession
from hounsfield.archive.web import WebLimits
from hounsfield.codecs.registry import OCTETS, lookup

JSON, XML = "application/dicom+json", "application/dicom+xml"
EXPLICIT = "1.2.840.10008.1.2.1"


@dataclass
class Part:
    content_type: str
    data: bytes
    location: str = ""
    length: bool = True

    def encode(self) -> bytes:
        head = f"\r\n--b\r\nContent-Type: {self.content_type}\r\n"
        head += f"Content-Location: {self.location}\r\n" if self.location else ""
        head += f"Content-Length: {len(self.data)}\r\n" if self.length else ""
        return head.encode() + b"\r\n" + self.data


async def post(
    client: httpx.AsyncClient, parts: Sequence[Part], *, kind: str = JSON, study: str = "", size: int = 0
) -> httpx.Response:
    body = b"".join(part.encode() for part in parts) + b"\r\n--b--\r\n"

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at : at + size]

    headers = {"content-type": f'multipart/related; type="{kind}"; boundary=b'}
    path = f"/dicom-web/studies/{study}" if study else "/dicom-web/studies"
    return await client.post(path, content=pieces() if size else body, headers=headers)


def metadata(*models: Any, kind: str = JSON) -> list[Part]:
    if kind == XML:
        return [Part(f"{XML}; transfer-syntax={EXPLICIT}", model_to_xml(model)) for model in models]
    return [Part(JSON, json.dumps(models).encode())]


def reasons(answer: httpx.Response) -> tuple[int, list[int], list[int]]:
    """How many are stored, why the failed ones are not, and the other failures."""
    body = answer.json()
    failed, others = (
        [one["00081197"]["Value"][0] for one in body.get(tag, {}).get("Value", [])]
        for tag in ("00081198", "0008119A")
    )
    return len(body.get("00081199", {}).get("Value", [])), failed, others


def taken_apart(raw: bytes, name: str) -> tuple[dict[str, Any], list[Part]]:
    """The metadata of an object and its bulk data; links begin with ``name``."""
    found = part10.split(raw)
    data, syntax = raw[found.offset :], lookup(found.transfer_syntax_uid)
    scanned = scan(data, syntax)
    slices = scanned.slices(data)
    header, trailer = slices[0], slices[-1] if len(slices) > 1 else b""
    model = json.loads(to_json(header, trailer, syntax, base_uri=f"{name}/", inline_bytes_max=64))
    parts = []
    for uri in links(model):
        bulk = find_bulk(header, trailer, syntax, uri.partition("bulkdata/")[2])
        assert bulk is not None
        parts.append(Part(OCTETS, bytes(bulk.value), uri))
    pixels = next((model[key] for key in ("7FE00008", "7FE00009", "7FE00010") if key in model), {})
    if "BulkDataURI" not in pixels:
        return model, parts
    uri = pixels["BulkDataURI"]
    frames = [bytes(one) for one in slices[1:-1]]
    if not syntax.encapsulated:
        parts.append(
            Part(OCTETS, b"".join(frames) + (trailer[:1] if sum(map(len, frames)) % 2 else b""), uri)
        )
        return model, parts
    kind = f'{syntax.media_type}; transfer-syntax="{syntax.uid}"'
    return model, [*parts, *(Part(kind, joined(one), uri) for one in frames)]


def joined(fragments: bytes) -> bytes:
    """A frame without its item headers."""
    at, out = 0, b""
    while at < len(fragments):
        length = int.from_bytes(fragments[at + 4 : at + 8], "little")
        out += fragments[at + 8 : at + 8 + length]
        at += 8 + length
    return out


SKIPPED = {
    # Frames cannot be told apart, or what the scan keeps is not whole.
    "MR_truncated.dcm",
    "JPEG2000-embedded-sequence-delimiter.dcm",
    "emri_small_jpeg_2k_lossless_too_short.dcm",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "size"), [(JSON, 0), (JSON, 7001), (XML, 0)])
async def test_every_real_object_is_put_together_again(archive, sample, kind, size):
    seen: set[str] = set()
    async with archive.client() as client:
        for name, raw in sample.items():
            if b"DICM" not in raw[:132]:
                continue
            found = part10.split(raw)
            syntax = lookup(found.transfer_syntax_uid)
            if name in SKIPPED or not syntax.little_endian:
                continue
            model, parts = taken_apart(raw, "https://elsewhere.example")
            model["00080018"] = {"vr": "UI", "Value": [f"2.25.{len(seen) + 1}"]}  # many files share theirs
            if any(not part.data for part in parts) or not {"0020000D", "0020000E", "00080018"} <= set(model):
                continue
            if syntax.encapsulated and len(parts) != int(model.get("00280008", {}).get("Value", [1])[0]):
                continue
            answer = await post(client, metadata(model, kind=kind) + parts, kind=kind, size=size)
            assert answer.status_code == 200, (name, answer.text)
            url = answer.json()["00081199"]["Value"][0]["00081190"]["Value"][0]
            got = (await client.get(url, headers={"accept": "application/dicom; transfer-syntax=*"})).content
            again, pieces = taken_apart(got, "https://elsewhere.example")
            assert [one.data for one in pieces] == [padded(without_container(one.data)) for one in parts], (
                name
            )
            for one in (model, again):
                one.pop("00083002", None)
                one.pop("00080005", None)
                one.get("7FE00010", {}).pop("vr", None)
            if kind == JSON:
                assert even(again) == even(model), name
            expected = syntax.uid if syntax.encapsulated else EXPLICIT
            assert part10.split(got).transfer_syntax_uid == expected, name
            pydicom.dcmread(io.BytesIO(got))
            # Sent again: the same, and one object still.
            answer = await post(client, metadata(model, kind=kind) + parts, kind=kind)
            assert answer.status_code == 200, name
            assert "00081196" not in answer.json()["00081199"]["Value"][0]
            seen.add(name)
    assert len(seen) > 50
    assert archive.engine.statistics().objects_conflict == 0


def padded(data: bytes) -> bytes:
    return data + bytes(len(data) % 2)


def even(model: dict[str, Any]) -> dict[str, Any]:
    """Without the character sets of items, which have that of their data set."""
    return json.loads(
        json.dumps(model), object_hook=lambda one: {k: v for k, v in one.items() if k != "00080005"}
    )


ROOT = "1.2.840.10008.1.2.4"


def model_of(
    number: int = 1, *, frames: int = 1, rows: int = 4, link: str = "", **more: Any
) -> dict[str, Any]:
    """The metadata of a small image of a study 2.25.7, its pixel data at ``px/{number}``."""
    values: dict[str, tuple[str, Any]] = {
        "00080016": ("UI", "1.2.840.10008.5.1.4.1.1.7"),
        "00080018": ("UI", f"2.25.70{number}"),
        "00080060": ("CS", "OT"),
        "00100010": ("PN", {"Alphabetic": "Müller^Jörg"}),
        "00100020": ("LO", "P1"),
        "0020000D": ("UI", "2.25.7"),
        "0020000E": ("UI", "2.25.71"),
        "00280002": ("US", 1),
        "00280004": ("CS", "MONOCHROME2"),
        "00280008": ("IS", frames),
        "00280010": ("US", rows),
        "00280011": ("US", 4),
        "00280100": ("US", 8),
        "00280101": ("US", 8),
        "00280102": ("US", 7),
        "00280103": ("US", 0),
    }
    model = {tag: {"vr": vr, "Value": [value]} for tag, (vr, value) in values.items()}
    return {**model, "7FE00010": {"vr": "OW", "BulkDataURI": link or f"px/{number}"}, **more}


def pixels(number: int, length: int = 16, **how: Any) -> Part:
    return Part(OCTETS, bytes([number]) * length, how.pop("location", f"px/{number}"), **how)


async def frame(client: httpx.AsyncClient, number: int, which: int = 1, kind: str = OCTETS) -> bytes:
    url = f"/dicom-web/studies/2.25.7/series/2.25.71/instances/2.25.70{number}/frames/{which}"
    answer = await client.get(url, headers={"accept": f"{kind}; transfer-syntax=*"})
    assert answer.status_code == 200, answer.text
    return answer.content


async def stored(client: httpx.AsyncClient) -> set[str]:
    found = (await client.get("/dicom-web/instances")).json()
    return {one["00080018"]["Value"][0] for one in found}


async def test_each_gets_its_own_whatever_the_order(archive):
    models = [model_of(n) for n in range(1, 6)]
    parts = [pixels(n) for n in (3, 1, 5, 2, 4)]
    for part in parts[::2]:
        part.length = False
    async with archive.client() as client:
        answer = await post(client, metadata(*models) + parts)
        assert answer.status_code == 200, answer.text
        named = [one["00081155"]["Value"][0] for one in answer.json()["00081199"]["Value"]]
        assert named == [f"2.25.70{n}" for n in range(1, 6)]
        for number in range(1, 6):
            assert await frame(client, number) == bytes([number]) * 16
        (study,) = (await client.get("/dicom-web/studies?PatientName=Müller*")).json()
        assert study["0020000D"]["Value"] == ["2.25.7"]
    assert archive.engine.statistics().sessions_open == 0
    assert archive.engine.statistics().bytes_in_flight == 0


async def test_a_mixture_is_202_and_each_has_its_reason(archive):
    models = [
        model_of(1),
        model_of(2),  # its pixel data does not come
        model_of(3),  # too little of it
        model_of(4),  # too much of it
        {**model_of(5), "00280010": {"vr": "US", "Value": [-1]}},  # no data set can be made of it
        "nonsense",
        model_of(6, **{"60003000": {"vr": "OW", "BulkDataURI": "overlay"}}),  # its overlay does not come
    ]
    parts = [pixels(1), pixels(3, 15), pixels(4, 18), pixels(5), pixels(6), pixels(8)]
    async with archive.client() as client:
        answer = await post(client, metadata(*models) + parts)
        assert answer.status_code == 202
        count, failed, others = reasons(answer)
        assert (count, sorted(failed), others) == (1, [0xA900] * 4 + [0xC000], [0xC000, 0xC000])
        assert await stored(client) == {"2.25.701"}
        answer = await post(client, metadata(*models[1:4]) + parts[1:3])
        assert answer.status_code == 409
        assert reasons(answer) == (0, [0xA900] * 3, [])
    assert archive.engine.statistics().sessions_open == 0
    assert archive.engine.statistics().bytes_in_flight == 0


async def test_the_path_names_the_study(archive):
    async with archive.client() as client:
        answer = await post(client, [*metadata(model_of(1)), pixels(1)], study="2.25.8")
        assert (answer.status_code, reasons(answer)) == (409, (0, [0xA901], []))
        answer = await post(client, [*metadata(model_of(1)), pixels(1)], study="2.25.7")
        assert answer.status_code == 200
        assert answer.json()["00081190"]["Value"][0].endswith("/studies/2.25.7")


async def test_pixels_before_the_rest_and_one_value_for_several(archive):
    more = {
        "00281201": {"vr": "OW", "BulkDataURI": "lut"},
        "00880200": {"vr": "SQ", "Value": [{"7FE00010": {"vr": "OW", "BulkDataURI": "icon"}}]},
    }
    models = [model_of(1, **more), model_of(2, **more), model_of(3, link="px/1")]
    shared = [Part(OCTETS, b"LUT!", "lut"), Part(OCTETS, b"ICON", "icon")]
    async with archive.client() as client:
        answer = await post(client, [*metadata(*models), pixels(1), pixels(2), *shared])
        assert answer.status_code == 200, answer.text
        for number, value in ((1, 1), (2, 2), (3, 1)):
            assert await frame(client, number) == bytes([value]) * 16
        for number in (1, 2):
            url = f"/dicom-web/studies/2.25.7/series/2.25.71/instances/2.25.70{number}"
            raw = (await client.get(url, headers={"accept": "application/dicom; transfer-syntax=*"})).content
            data = pydicom.dcmread(io.BytesIO(raw))
            assert data[0x00281201].value == b"LUT!"
            assert data[0x00880200].value[0].PixelData == b"ICON"


async def test_relative_and_absolute_links_are_the_same(archive):
    links = ["/x/1", "./px/2", f"{archive.base}/px/3", "https://elsewhere.example/4", "urn:uuid:5"]
    locations = [
        f"{archive.origin}/x/1",
        "px/2",
        "/dicom-web/px/3",
        "https://elsewhere.example/4",
        " urn:uuid:5 ",
    ]
    models = [model_of(n, link=link) for n, link in enumerate(links, 1)]
    parts = [pixels(n, location=location) for n, location in enumerate(locations, 1)]
    async with archive.client() as client:
        answer = await post(client, metadata(*models) + parts)
        assert answer.status_code == 200, answer.text
        assert await frame(client, 5) == b"\5" * 16


def images(count: int, codec: str = "j2k") -> list[bytes]:
    ramp = [np.full((4, 4), number, np.uint8) for number in range(count)]
    if codec == "j2k":
        return [imagecodecs.jpeg2k_encode(one, codecformat="J2K", reversible=True, level=0) for one in ramp]
    return [imagecodecs.jpeg8_encode(one) for one in ramp]


@pytest.mark.parametrize("said", ["part", "metadata", "image"])
async def test_the_transfer_syntax_is_what_is_said_or_what_it_is(archive, said):
    uid = f"{ROOT}.50"
    kind = f"image/jpeg; transfer-syntax={uid}" if said == "part" else "image/jpeg"
    more = {"00083002": {"vr": "UI", "Value": [uid]}} if said == "metadata" else {}
    frames = images(3, "jpeg")
    async with archive.client() as client:
        parts = [Part(kind, one, "px/1", length=number != 1) for number, one in enumerate(frames)]
        answer = await post(client, [*metadata(model_of(1, frames=3, **more)), *parts])
        assert answer.status_code == 200, answer.text
        for number, one in enumerate(frames, 1):
            got = await frame(client, 1, number, "image/jpeg")
            assert got in (one, one + b"\0")
        (found,) = (await client.get("/dicom-web/instances")).json()
        assert found["00083002"]["Value"] == [uid]


async def test_files_around_images_are_taken_off(archive):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    file = imagecodecs.jpeg2k_encode(pixels, codecformat="JP2", reversible=True, level=0)
    async with archive.client() as client:
        answer = await post(client, [*metadata(model_of(1)), Part("image/jp2", file, "px/1")])
        assert answer.status_code == 200
        got = await frame(client, 1, 1, "image/jp2")
        assert got.startswith(b"\xff\x4f\xff\x51")
        assert (imagecodecs.jpeg2k_decode(got) == pixels).all()


@pytest.mark.parametrize(("sent", "wanted", "status"), [(2, 3, 409), (4, 3, 202), (3, 3, 200)])
async def test_there_are_as_many_frames_as_the_metadata_says(archive, sent, wanted, status):
    parts = [Part(f"image/jp2; transfer-syntax={ROOT}.90", one, "px/1") for one in images(sent)]
    async with archive.client() as client:
        answer = await post(client, [*metadata(model_of(1, frames=wanted)), *parts])
        expected = {409: (0, [0xA900], []), 202: (1, [], [0xC000]), 200: (1, [], [])}
        assert (answer.status_code, reasons(answer)) == (status, expected[status])
    assert archive.engine.statistics().sessions_open == 0


@pytest.mark.parametrize(
    "kind", ["image/png", "image/jpeg", "image/jp2; transfer-syntax=1.2.3", "text/plain"]
)
async def test_what_does_not_say_what_it_is_is_not_stored_as_something_else(archive, kind):
    async with archive.client() as client:
        answer = await post(client, [*metadata(model_of(1)), Part(kind, b"x" * 16, "px/1")])
        assert (answer.status_code, reasons(answer)) == (409, (0, [0xA900], []))


async def test_without_pixels_the_metadata_is_all(archive):
    models = []
    for number in (1, 2):
        model = model_of(number)
        model["7FE00010"] = {"vr": "OB", "InlineBinary": "AAECAwQFBgcICQoLDA0ODw=="}
        models.append(model)
    async with archive.client() as client:
        for kind in (JSON, XML):
            answer = await post(client, metadata(*models, kind=kind), kind=kind)
            assert answer.status_code == 200
            assert await frame(client, 2) == bytes(range(16))
        single = await post(client, [Part(JSON, json.dumps(models[0]).encode())])
        assert single.status_code == 200


async def test_metadata_that_is_none_stores_nothing(archive):
    async with archive.client() as client:
        for document in (b"", b"x", b"[", b"5", b'"a"', b"[" * 100_000, b"{", b"\xff\xfe"):
            answer = await post(client, [Part(JSON, document), pixels(1)])
            assert answer.status_code in (400, 409), document[:10]
        for document in (
            b"",
            b"<a/>",
            b"<!DOCTYPE a [<!ENTITY b 'c'>]><NativeDicomModel/>",
            b"<NativeDicomModel>",
        ):
            answer = await post(client, [Part(XML, document), pixels(1)], kind=XML)
            assert answer.status_code in (400, 409), document
        late = [*metadata(model_of(1)), pixels(1), *metadata(model_of(2)), pixels(2)]
        answer = await post(client, late)
        assert answer.status_code in (200, 202)
        assert await stored(client) == {"2.25.701"}
        assert (await post(client, [pixels(1)])).status_code == 409


async def test_a_torn_body_stores_what_came_whole(archive):
    body = b"".join(one.encode() for one in [*metadata(model_of(1), model_of(2)), pixels(1), pixels(2)])
    headers = {"content-type": f'multipart/related; type="{JSON}"; boundary=b'}
    async with archive.client() as client:
        answer = await client.post("/dicom-web/studies", content=body[:-3], headers=headers)
        assert (answer.status_code, reasons(answer)) == (202, (1, [0xC000], []))
        assert await stored(client) == {"2.25.701"}
    assert archive.engine.statistics().sessions_open == 0
    assert archive.engine.statistics().bytes_in_flight == 0


async def test_limits(archives, settings):
    limits = WebLimits(metadata_bytes_max=5000, bulk_bytes_max=64, parts_max=6)
    async with archives(settings=settings(limits=limits)) as archive, archive.client() as client:
        assert (await post(client, metadata(*(model_of(n) for n in range(1, 9))))).status_code == 413
        big = model_of(1, rows=100)
        # Pixel data streams: it is not gathered. A value that must be gathered is bounded.
        assert (await post(client, [*metadata(big), pixels(1, 400)])).status_code == 200
        lut = {"00281201": {"vr": "OW", "BulkDataURI": "lut"}}
        parts = [
            *metadata(model_of(2, **lut), model_of(3)),
            Part(OCTETS, bytes(80), "lut"),
            pixels(2),
            pixels(3),
        ]
        answer = await post(client, parts)
        assert (answer.status_code, reasons(answer)) == (202, (1, [0xA700], []))
        answer = await post(
            client, [*metadata(model_of(2, **lut)), Part(OCTETS, bytes(80), "lut"), pixels(2)]
        )
        assert answer.status_code == 413
        many = [
            *metadata(model_of(4, frames=9)),
            *(Part(f"image/jp2; transfer-syntax={ROOT}.90", b"", "px/4"),) * 9,
        ]
        assert (await post(client, many)).status_code == 413
        assert archive.engine.statistics().sessions_open == 0


async def test_no_room_is_503(archive, monkeypatch):
    async def full(self: IngestSession) -> None:
        self.abandon()
        raise OutOfResourcesError("full")

    monkeypatch.setattr(IngestSession, "commit", full)
    async with archive.client() as client:
        answer = await post(client, [*metadata(model_of(1)), pixels(1)])
        assert (answer.status_code, reasons(answer)) == (503, (0, [0xA700], []))
        assert int(answer.headers["retry-after"]) > 0


async def test_objects_too_long_for_memory_stream(archive):
    """What is past ``ingest.stream_bytes_min`` goes to the disk while it comes in."""
    frames, rows = 160, 60_000
    length = frames * rows * 4
    assert length > 32 << 20
    async with archive.client() as client:
        model = model_of(1, rows=rows, frames=frames)
        answer = await post(client, [*metadata(model), pixels(1, length)], size=1 << 20)
        assert answer.status_code == 200, answer.text
        assert await frame(client, 1, frames) == b"\1" * rows * 4
    assert archive.engine.statistics().bytes_in_flight == 0


async def test_mutilated_requests_never_fail_the_server(archive):
    """Parts lost, doubled, swapped and cut, bytes changed, numbers out of all proportion: never a 5xx."""
    rng = random.Random(18)
    numbers = ["00280010", "00280008", "00280100", "00280002", "00200013"]
    values = [0, -1, 1.5, 65535, 10**18, "1" * 5000, "x", None, [], {}, True, "1\\\\2"]
    lut = {"00281201": {"vr": "OW", "BulkDataURI": "lut"}}
    async with archive.client() as client:
        for _ in range(80):
            models: list[Any] = [model_of(1, **lut), model_of(2, frames=2), model_of(3)]
            for model in models:
                if rng.random() < 0.4:
                    model[rng.choice(numbers)] = {
                        "vr": rng.choice(["US", "IS", "LO", "SQ"]),
                        "Value": [rng.choice(values)],
                    }
            kind = f"image/jp2; transfer-syntax={ROOT}.90"
            parts = [*metadata(*models), Part(OCTETS, b"12", "lut"), pixels(1), pixels(3)]
            parts += [
                Part(rng.choice([kind, "image/jp2", "image/jpeg", "", "x/y"]), one, "px/2")
                for one in images(2)
            ]
            for _ in range(rng.randrange(4)):
                at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
                match rng.randrange(5):
                    case 0:
                        del parts[at]
                        parts = parts or metadata(model_of(1))
                    case 1:
                        parts.insert(other, parts[at])
                    case 2:
                        parts[at], parts[other] = parts[other], parts[at]
                    case 3:
                        data = bytearray(parts[at].data) or bytearray(b"x")
                        data[rng.randrange(len(data))] = rng.randrange(256)
                        parts[at] = dataclasses.replace(parts[at], data=bytes(data))
                    case 4:
                        parts[at] = dataclasses.replace(
                            parts[at], length=False, data=parts[at].data[: rng.randrange(20)]
                        )
            answer = await post(client, parts, size=rng.choice([0, 0, 7, 300]))
            assert answer.status_code in (200, 202, 400, 409, 413), answer.text
            assert archive.engine.statistics().sessions_open == 0
            assert archive.engine.statistics().bytes_in_flight == 0


async def test_what_is_gathered_is_in_the_memory_budget(archive):
    """Metadata and bulk data count as objects do; what does not fit is to be sent again."""
    lut = {"00281201": {"vr": "OW", "BulkDataURI": "lut"}}
    whole = [
        *metadata(model_of(1, **lut), model_of(2)),
        Part(OCTETS, bytes(1_200_000), "lut"),
        pixels(1),
        pixels(2),
    ]
    budget = archive.engine.memory
    free = budget._bytes_max
    async with archive.client() as client:
        for left, status in ((100, 503), (1_000_000, 202), (free, 200)):
            taken = free - left
            assert budget.take_nowait(taken)
            answer = await post(client, whole, size=1000)
            budget.give_back(taken)
            assert answer.status_code == status, answer.text
            if status == 202:
                assert reasons(answer) == (1, [0xA700], [])
            assert budget.in_flight == 0
