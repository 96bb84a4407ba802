"""A whole server whose bucket misbehaves: what clients and administrators are told, and who waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet

from support import faulty_store as faults
from support.faulty_store import Exchange, Request, faulty_store
from support.s3_servers import S3Server, s3_server
from support.server import AS_STORED, ArchiveServer, Sample, archive_server, until

pytestmark = [
    pytest.mark.peer("weed"),
    pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning"),
]
__all__ = ["s3_server"]

FRAMES = {"accept": "application/octet-stream; transfer-syntax=*"}


@dataclass
class Held:
    """A fault: an answer is held back until the test lets go."""

    released: threading.Event = field(default_factory=threading.Event)
    count: int = 0

    def __call__(self, exchange: Exchange) -> None:
        self.count += 1
        self.released.wait(60)
        exchange.answer(exchange.forward())


def anything(request: Request) -> bool:
    return bool(request.path)


def packs_in(server: ArchiveServer, tier: str) -> int:
    status = server.run("tier", "status", "--json")
    assert status.returncode in {0, 4}, status.stderr
    return int(next(one["packs"] for one in httpx_json(status.stdout)["tiers"] if one["tier"] == tier))


def httpx_json(text: str) -> dict[str, list[dict[str, int | str]]]:
    answer: dict[str, list[dict[str, int | str]]] = httpx.Response(200, text=text).json()
    return answer


def is_given(server: ArchiveServer, sample: Sample) -> bool:
    return server.client.get(sample.url, headers=AS_STORED).status_code == 200


def gotten(server: ArchiveServer, sample: Sample) -> tuple[int, int, int, int]:
    """By C-GET: the last status, objects that came, and how many it says were given and failed."""
    came: list[str] = []

    def stored(event: evt.Event) -> int:
        came.append(event.request.AffectedSOPInstanceUID)
        return 0

    entity = AE("BADDAY")
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelGet)
    sop_class = sample.dataset.SOPClassUID
    entity.add_requested_context(sop_class, sample.transfer_syntax_uid)
    called = entity.associate(
        "127.0.0.1",
        server.dicom_port,
        ae_title="HOUNSFIELD",
        ext_neg=[build_role(sop_class, scp_role=True)],
        evt_handlers=[(evt.EVT_C_STORE, stored)],
    )
    assert called.is_established
    wanted = Dataset()
    wanted.QueryRetrieveLevel = "STUDY"
    wanted.StudyInstanceUID = sample.ids[0]
    try:
        *_, (last, _) = called.send_c_get(wanted, StudyRootQueryRetrieveInformationModelGet)
    finally:
        called.release()
    return last.Status, len(came), last.NumberOfCompletedSuboperations, last.NumberOfFailedSuboperations


def test_what_everybody_is_told_and_who_goes_on(
    tmp_path: Path,
    s3_server: S3Server,
    sample_files: Callable[..., list[Sample]],
) -> None:
    with faulty_store(s3_server.port) as proxy:
        place = s3_server.options()
        settings = (
            f'tiers=[{{name="cold", bucket="{place.bucket}", prefix="{place.prefix}", plain=true, '
            f'endpoint="{proxy.endpoint}", credentials="{place.credentials}", retry_seconds=0.5}}]',
            'tier_rules=[{name="all", action="move", to=["cold"]}]',
            "tiering.quiet_minutes=0",
            "tiering.recall_when_opened=false",
            "tiering.plan_minutes=1000",
            "storage.metadata_quiet_seconds=3600",  # or it reads headers, and frames with them
        )
        with archive_server(tmp_path / "server", *settings, workers=1) as server:
            check(server, proxy, sample_files)
            log = server.log_text()
            assert "Traceback" not in log
            assert "series stay where they are for now" in log
            assert not any(word in log for word in ("CompressedSamples", "1.3.6.1.4.1.5962"))


def check(
    server: ArchiveServer, proxy: faults.FaultyStore, sample_files: Callable[..., list[Sample]]
) -> None:
    until(lambda: server.run_json("tier", "status")["planned"], "the first plan")
    files = sample_files("CT_small.dcm", "MR_small.dcm", "rtdose.dcm", "SC_rgb_jpeg_dcmtk.dcm")
    server.run_json("send", server.dicom_target, str(files[0].path.parent))

    proxy.on(faults.status(503, "SlowDown"), anything)
    server.run("tier", "apply", "--wait")
    assert packs_in(server, "cold") == 0
    assert server.run("tier", "status").returncode == 4
    for sample in files:
        assert server.dataset_bytes(*sample.ids) == sample.data
    proxy.behave()

    def is_moved() -> bool:
        server.run("tier", "apply", "--wait")
        return packs_in(server, "cold") == len(files)

    until(is_moved, "what was put off")

    (hot,) = sample_files("JPEG2000.dcm")
    server.run_json("send", server.dicom_target, str(hot.path))
    every_fault = (faults.status(500, "InternalError"), faults.hang_up, faults.status(403, "AccessDenied"))
    for cold, fault in zip(files, every_fault, strict=False):  # what was read once is in memory for a while
        proxy.on(fault, anything)
        for path in (f"{cold.url}/frames/1", cold.url, cold.url.rpartition("/instances/")[0]):
            headers = FRAMES if "frames" in path else AS_STORED if path == cold.url else {}
            ask = partial(server.client.get, path, headers=headers)
            # A file that was open when its pack left is read on for some seconds.
            until(lambda ask=ask: ask().status_code == 503, f"{cold.path.name} at {path.count('/')}")  # type: ignore[misc]
            answer = ask()
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert "tier" in answer.json()["detail"]
            assert not any(uid in answer.text for uid in cold.ids)
            assert str(proxy.port) not in answer.text
        status, came, given, failed = gotten(server, cold)
        assert (came, given, failed) == (0, 0, 1)
        assert status in {0xA702, 0xB000}
        assert server.dataset_bytes(*hot.ids) == hot.data
        proxy.behave()
        until(partial(is_given, server, cold), "its return")

    hold(server, proxy, files, hot)
    proxy.behave()
    for sample in (*files, hot):
        until(partial(is_given, server, sample), "its return")
        assert server.dataset_bytes(*sample.ids) == sample.data
    server.run_json("tier", "apply", "--wait")
    assert server.run_json("tier", "plan")["totals"]["series"] == 0
    assert packs_in(server, "cold") == len(files) + 1
    assert sorted(server.listed()) == sorted(sample.ids[2] for sample in (*files, hot))
    assert gotten(server, files[3])[1:] == (1, 1, 0)


def hold(server: ArchiveServer, proxy: faults.FaultyStore, files: list[Sample], hot: Sample) -> None:
    """While the bucket says nothing, what is hot is read, and what comes is stored."""
    held = Held()
    proxy.on(held, anything)
    with ThreadPoolExecutor(8) as waiting:
        asked = [
            waiting.submit(
                httpx.get, server.url.removesuffix("/dicom-web") + f"{files[3].url}/frames/1",
                headers=FRAMES, timeout=60,
            )
            for _ in range(8)
        ]  # fmt: skip
        try:
            until(lambda: held.count, "a request that hangs")
            for _ in range(5):
                assert server.dataset_bytes(*hot.ids) == hot.data
                frame = server.client.get(f"{hot.url}/frames/1", headers=FRAMES)
                assert frame.status_code == 200
                server.run_json("send", server.dicom_target, str(hot.path))
            assert held.count
        finally:
            held.released.set()
        for answer in asked:
            assert answer.result().status_code in {200, 503}
