"""STOW-RS: each part gets its own fate, whatever its neighbours'; nothing wrongly stored, nothing lost."""

from __future__ import annotations

import httpx
import pytest
import trio

from hounsfield.archive.dicom.part10 import file_header, split
from hounsfield.archive.engine.errors import OutOfResourcesError
from hounsfield.archive.engine.ingest import IngestSession

HEADERS = {"content-type": 'multipart/related; type="application/dicom"; boundary="b:0"'}


def body_of(*parts: bytes, part_type: bytes = b"application/dicom") -> bytes:
    head = b"\r\n--b:0\r\nContent-Type: " + part_type + b"\r\n\r\n"
    return b"".join(head + one for one in parts) + b"\r\n--b:0--\r\n"


def counts(answer: httpx.Response) -> tuple[int, int, int]:
    """Referenced, failed, and other failures."""
    body = answer.json()
    return tuple(len(body.get(tag, {}).get("Value", [])) for tag in ("00081199", "00081198", "0008119A"))


async def test_a_mixture(archive, sample):
    async with archive.client() as client:
        mixed = body_of(sample["CT_small.dcm"], b"not DICOM", sample["MR_small.dcm"], b"")
        answer = await client.post("/dicom-web/studies", content=mixed, headers=HEADERS)
        assert answer.status_code == 202
        assert counts(answer) == (2, 0, 2)
        reasons = [one["00081197"]["Value"] for one in answer.json()["0008119A"]["Value"]]
        assert reasons == [[0xC000], [0xC000]]
        again = await client.post(
            "/dicom-web/studies",
            content=body_of(sample["CT_small.dcm"], sample["MR_small.dcm"]),
            headers=HEADERS,
        )
        assert again.status_code == 200
        assert counts(again) == (2, 0, 0)
        assert len((await client.get("/dicom-web/instances")).json()) == 2
        for item in again.json()["00081199"]["Value"]:
            assert (await client.get(item["00081190"]["Value"][0])).status_code == 200


async def test_what_was_cut_short_is_kept_with_a_warning(archive, sample):
    async with archive.client() as client:
        cut = body_of(sample["CT_small.dcm"][:-2000], sample["MR_small.dcm"])
        answer = await client.post("/dicom-web/studies", content=cut, headers=HEADERS)
        assert answer.status_code == 202
        first, second = answer.json()["00081199"]["Value"]
        assert first["00081196"]["Value"] == [0xB007]
        assert "00081196" not in second
        assert (await client.get(first["00081190"]["Value"][0])).status_code == 200


async def test_nothing_good_is_409_and_stores_nothing(archive):
    async with archive.client() as client:
        answer = await client.post("/dicom-web/studies", content=body_of(b"x" * 9000, b"y"), headers=HEADERS)
        assert answer.status_code == 409
        assert counts(answer) == (0, 0, 2)
        assert (await client.get("/dicom-web/instances")).json() == []


@pytest.mark.parametrize("size", [1, 1000, 100_000])
async def test_the_path_names_the_study(archive, sample, size):
    async def slowly(body: bytes):
        for at in range(0, len(body), size):
            yield body[at : at + size]

    ct, mr = sample["CT_small.dcm"], sample["MR_small.dcm"]
    if size == 1:
        ct, mr = sample["rtplan.dcm"], sample["test-SR.dcm"]
    async with archive.client() as client:
        refused = await client.post(
            "/dicom-web/studies/1.2.3", content=slowly(body_of(ct, mr)), headers=HEADERS
        )
        assert refused.status_code == 409
        assert counts(refused) == (0, 2, 0)
        for one in refused.json()["00081198"]["Value"]:
            assert one["00081197"]["Value"] == [0xA901]
            assert one["00081155"]["Value"]
        assert (await client.get("/dicom-web/instances")).json() == []
        await client.post("/dicom-web/studies", content=slowly(body_of(ct)), headers=HEADERS)
        (study,) = (await client.get("/dicom-web/studies")).json()
        uid = study["0020000D"]["Value"][0]
        half = await client.post(
            f"/dicom-web/studies/{uid}", content=slowly(body_of(ct, mr)), headers=HEADERS
        )
        assert half.status_code == 202
        assert counts(half) == (1, 1, 0)


async def test_conflict_and_quarantine_are_warned_of(archive, sample):
    raw = sample["CT_small.dcm"]
    changed = bytearray(raw)
    changed[-10] ^= 1
    async with archive.client() as client:
        answer = await client.post(
            "/dicom-web/studies", content=body_of(raw, bytes(changed)), headers=HEADERS
        )
        assert answer.status_code == 202
        assert counts(answer) == (2, 0, 0)
        first, second = answer.json()["00081199"]["Value"]
        assert "00081196" not in first
        assert second["00081196"]["Value"] == [0xB000]
        nameless = file_header("1.2.840.10008.1.2.1", "1.2.3", "") + b"\x08\0\x05\0CS\x0a\0ISO_IR 100"
        answer = await client.post("/dicom-web/studies", content=body_of(nameless), headers=HEADERS)
        assert answer.status_code == 202
        (item,) = answer.json()["00081199"]["Value"]
        assert item["00081196"]["Value"] == [0xB007]


async def test_many_objects_in_one_request_keep_their_order(archive, sample):
    raw = sample["CT_small.dcm"]
    uid = split(raw).sop_instance_uid.encode()
    copies = [raw.replace(uid, uid[:-3] + b"%03d" % n) for n in range(60)]
    async with archive.client() as client:
        answer = await client.post("/dicom-web/studies", content=body_of(*copies), headers=HEADERS)
        assert answer.status_code == 200
        got = [one["00081155"]["Value"][0] for one in answer.json()["00081199"]["Value"]]
        assert got == [(uid[:-3] + b"%03d" % n).decode() for n in range(60)]
    assert archive.engine.statistics().groups < 60
    assert archive.engine.statistics().bytes_in_flight == 0


async def test_a_torn_body_stores_what_came_whole(archive, sample):
    body = body_of(sample["CT_small.dcm"], sample["MR_small.dcm"])[:-4000]
    async with archive.client() as client:
        answer = await client.post("/dicom-web/studies", content=body, headers=HEADERS)
        assert answer.status_code == 202
        assert counts(answer)[0] == 1
    assert archive.engine.statistics().sessions_open == 0
    assert archive.engine.statistics().bytes_in_flight == 0


async def test_a_client_that_goes_away_leaves_nothing_behind(archive, sample):
    body = body_of(sample["CT_small.dcm"], sample["MR_small.dcm"])
    stream = await trio.open_tcp_stream("127.0.0.1", archive.port)
    head = (
        b"POST /dicom-web/studies HTTP/1.1\r\nHost: a\r\nContent-Type: "
        + HEADERS["content-type"].encode()
        + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    await stream.send_all(head + body[: len(body) - 3000])
    await stream.send_eof()
    with trio.fail_after(20):
        while await stream.receive_some():
            pass
        while archive.engine.statistics().sessions_open:
            await trio.lowlevel.checkpoint()
    assert archive.engine.statistics().bytes_in_flight == 0
    assert archive.engine.statistics().objects_stored == 1


async def test_no_room_is_503(archive, sample, monkeypatch):
    async def full(self):
        self.abandon()
        raise OutOfResourcesError("full")

    monkeypatch.setattr(IngestSession, "commit", full)
    async with archive.client() as client:
        answer = await client.post(
            "/dicom-web/studies", content=body_of(sample["CT_small.dcm"]), headers=HEADERS
        )
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        (item,) = answer.json()["00081198"]["Value"]
        assert item["00081197"]["Value"] == [0xA700]


async def test_part_types(archive, sample):
    raw = sample["CT_small.dcm"]
    async with archive.client() as client:
        wrong = await client.post(
            "/dicom-web/studies", content=body_of(raw, part_type=b"image/jpeg"), headers=HEADERS
        )
        assert wrong.status_code == 409
        good = await client.post(
            "/dicom-web/studies",
            content=body_of(raw, part_type=b"application/dicom; transfer-syntax=*"),
            headers=HEADERS,
        )
        assert good.status_code == 200


async def test_limits(archives, settings, sample):
    from hounsfield.archive.web import WebLimits

    limited = settings(limits=WebLimits(parts_max=2, part_header_bytes_max=64, preamble_bytes_max=16))
    raw = sample["CT_small.dcm"]
    async with archives(settings=limited) as archive, archive.client() as client:

        async def post(body: bytes) -> int:
            return (await client.post("/dicom-web/studies", content=body, headers=HEADERS)).status_code

        assert await post(body_of(raw, raw)) == 200
        assert await post(body_of(raw, raw, raw)) == 413
        assert await post(body_of(raw, part_type=b"application/dicom; x=" + b"y" * 80)) == 400
        assert await post(b"preamble" * 9 + body_of(raw)) == 400
        assert archive.engine.statistics().sessions_open == 0


async def test_a_body_that_turns_to_nonsense_reports_what_was_stored(archive, sample):
    body = body_of(sample["CT_small.dcm"], sample["MR_small.dcm"])
    body = body.replace(b"\r\n--b:0--", b"\r\n--b:0 nonsense\r\n")
    async with archive.client() as client:
        answer = await client.post("/dicom-web/studies", content=body, headers=HEADERS)
        assert answer.status_code == 202
        assert counts(answer) == (2, 0, 1)
        answer = await client.post("/dicom-web/studies", content=b"--b:0 nonsense\r\n", headers=HEADERS)
        assert answer.status_code == 400


async def test_a_transfer_syntax_of_evil_content_injects_nothing(archive, sample):
    raw = sample["CT_small.dcm"]
    evil = file_header("1.2.3\r\nX-Evil: 1", "1.2", "1.3") + raw[split(raw).offset :]
    async with archive.client() as client:
        answer = await client.post("/dicom-web/studies", content=body_of(evil), headers=HEADERS)
        assert answer.status_code == 200
        url = answer.json()["00081199"]["Value"][0]["00081190"]["Value"][0]
        for path in (url, f"{url}/frames/1", f"{url}/metadata", f"{url}/bulkdata/7FE00010"):
            got = await client.get(path)
            assert got.status_code == 200
            assert "x-evil" not in got.headers
            assert b"\r\nX-Evil" not in got.content[:300]


async def test_long_lists_are_whole(archive, sample):
    raw = sample["MR_small.dcm"]
    uid = split(raw).sop_instance_uid.encode()
    copies = [raw.replace(uid, uid[:-3] + b"%03d" % n) for n in range(100, 170)]
    async with archive.client() as client:
        await client.post("/dicom-web/studies", content=body_of(*copies), headers=HEADERS)
        found = (await client.get("/dicom-web/instances")).json()
        assert len({one["00080018"]["Value"][0] for one in found}) == 70
        study = found[0]["0020000D"]["Value"][0]
        assert len((await client.get(f"/dicom-web/studies/{study}/metadata")).json()) == 70
