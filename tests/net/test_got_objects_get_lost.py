"""A C-GET gives what was asked for on the requestor's own association, in what it said it takes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import trio
from pynetdicom import AE, build_role, evt

from hounsfield.archive.engine.engine import EngineOptions
from hounsfield.archive.engine.ingest import IngestLimits
from hounsfield.archive.engine.large_objects import LargeLimits
from hounsfield.archive.net.getting import get_service
from hounsfield.archive.net.suboperations import RetrieveLimits
from hounsfield.archive.wire import (
    AsynchronousOperations,
    CCancelRequest,
    CGetRequest,
    CGetResponse,
    CStoreRequest,
    CStoreResponse,
    PresentationContext,
    RoleSelection,
    UserInformation,
)
from support.retrieving import (
    CT,
    EXPLICIT,
    IMPLICIT,
    STUDY_GET,
    by_uid,
    dataset_of,
    failed_uids,
    identifier,
    sample,
    slices,
    stored,
)

QUICK = RetrieveLimits(pause_s=0.001, poll_s=0.005)
STUDY = identifier("STUDY", StudyInstanceUID="1.2.3.4")
CONTEXTS = (PresentationContext(1, STUDY_GET, (EXPLICIT,)), PresentationContext(3, CT, (EXPLICIT,)))


@pytest.fixture
def getting(open_archive: Callable[..., Any]) -> Callable[..., Any]:
    """``async with getting() as archive``: it gives what it has."""

    def opened(limits: RetrieveLimits = QUICK, **options: Any) -> Any:
        return open_archive(provide=lambda engine: [get_service(engine, limits)], **options)

    return opened


async def associated(peer: Any, *contexts: PresentationContext, window: int = 0, roles: bool = True) -> Any:
    """An association whose requestor takes objects."""
    proposed = contexts or CONTEXTS
    classes = {one.abstract_syntax for one in proposed if one.abstract_syntax != STUDY_GET}
    user = UserInformation(
        max_pdu_length=65536,
        implementation_class_uid="1.2.3",
        roles=tuple(RoleSelection(uid, scu=False, scp=True) for uid in sorted(classes)) if roles else (),
        asynchronous_operations=AsynchronousOperations(1, window) if window else None,
    )
    return await peer.associate(*proposed, user=user)


async def ask(peer: Any, keys: bytes = STUDY, answer: Callable[[int], int] = lambda _: 0) -> Any:
    """C-GET: its final response and identifier, the pending ones, and what came by UID."""
    await peer.say(1, CGetRequest(7, STUDY_GET), keys)
    pending: list[Any] = []
    came: dict[str, bytes] = {}
    number = 0
    while True:
        context_id, command, data = await peer.message()
        if isinstance(command, CStoreRequest):
            status = answer(number)
            number += 1
            if not status:
                came[command.affected_sop_instance_uid] = data
            await peer.say(
                context_id, CStoreResponse(command.message_id, status, command.affected_sop_class_uid)
            )
        else:
            assert isinstance(command, CGetResponse)
            if command.status != 0xFF00:
                return command, data, pending, came
            pending.append(command)


def counts(response: Any) -> tuple[Any, ...]:
    return (
        response.remaining_suboperations,
        response.completed_suboperations,
        response.failed_suboperations,
        response.warning_suboperations,
    )


async def test_what_was_asked_for_comes_and_nothing_is_changed(getting: Any, peer_to: Any) -> None:
    async with getting() as archive:
        files = slices(7, series=2)
        for raw in files:
            await stored(archive.engine, raw)
        peer = await peer_to(archive)
        await associated(peer)
        final, data, pending, came = await ask(peer)
        assert (final.status, counts(final), data) == (0, (None, 7, 0, 0), b"")
        assert counts(pending[0]) == (7, 0, 0, 0)
        assert came == by_uid(files)


async def test_nothing_is_given_to_who_did_not_take_the_role(getting: Any, peer_to: Any) -> None:
    async with getting() as archive:
        await stored(archive.engine, slices(1)[0])
        peer = await peer_to(archive)
        await associated(peer, roles=False)
        final, data, _, came = await ask(peer)
        assert (final.status, counts(final), came) == (0xA702, (None, 0, 1, 0), {})
        assert failed_uids(data) == ["1.2.3.4.1.1"]


async def test_only_classes_that_were_offered_come(getting: Any, peer_to: Any) -> None:
    async with getting() as archive:
        for raw in (*slices(2), sample("MR_small_implicit.dcm")):
            instance = await stored(archive.engine, raw)
        peer = await peer_to(archive)
        await associated(peer)
        keys = identifier("STUDY", StudyInstanceUID=f"1.2.3.4\\{instance.study_uid}")
        final, data, _, came = await ask(peer, keys)
        assert (final.status, counts(final), len(came)) == (0xB000, (None, 2, 1, 0), 2)
        assert failed_uids(data) == [instance.row.sop_uid]


async def test_warnings_and_failures_are_told(getting: Any, peer_to: Any) -> None:
    async with getting() as archive:
        for raw in slices(4):
            await stored(archive.engine, raw)
        peer = await peer_to(archive)
        await associated(peer)
        final, data, *_ = await ask(peer, answer=[0, 0xB000, 0xC001, 0].__getitem__)
        assert (final.status, counts(final)) == (0xB000, (None, 2, 1, 1))
        assert failed_uids(data) == ["1.2.3.4.1.3"]


async def test_what_there_was_no_room_for_is_sent_again(getting: Any, peer_to: Any) -> None:
    async with getting() as archive:
        files = slices(3)
        for raw in files:
            await stored(archive.engine, raw)
        peer = await peer_to(archive)
        await associated(peer)
        final, _, _, came = await ask(peer, answer=lambda number: 0xA700 if number == 1 else 0)
        assert (final.status, counts(final)) == (0, (None, 3, 0, 0))
        assert came == by_uid(files)
        # who never has room is not asked for ever
        final, data, _, came = await ask(peer, answer=lambda _: 0xA700)
        assert (final.status, counts(final), len(failed_uids(data))) == (0xA702, (None, 0, 3, 0), 3)


async def test_a_window_is_used(getting: Any, peer_to: Any) -> None:
    async with getting() as archive:
        for raw in slices(5):
            await stored(archive.engine, raw)
        peer = await peer_to(archive)
        await associated(peer, window=3)
        await peer.say(1, CGetRequest(7, STUDY_GET), STUDY)
        asked = []
        while len(asked) < 3:  # none of them answered
            _, command, _ = await peer.message()
            if isinstance(command, CStoreRequest):
                asked.append(command)
        assert len({one.message_id for one in asked}) == 3
        answered = 0
        while True:
            if asked:
                command = asked.pop()
                answered += 1
                await peer.say(3, CStoreResponse(command.message_id, 0))
                continue
            _, command, _ = await peer.message()
            if isinstance(command, CStoreRequest):
                asked.append(command)
            elif command.status != 0xFF00:
                break
        assert (command.status, counts(command), answered) == (0, (None, 5, 0, 0), 5)


async def test_a_cancelled_get_says_what_is_left(getting: Any, peer_to: Any) -> None:
    async with getting() as archive:
        for raw in slices(6):
            await stored(archive.engine, raw)
        peer = await peer_to(archive)
        await associated(peer)
        await peer.say(1, CGetRequest(7, STUDY_GET), STUDY)
        got = 0
        while True:
            context_id, command, _ = await peer.message()
            if isinstance(command, CStoreRequest):
                got += 1
                if got == 2:
                    await peer.say(1, CCancelRequest(7))
                await peer.say(context_id, CStoreResponse(command.message_id, 0))
            elif command.status != 0xFF00:
                break
        assert (command.status, counts(command), got) == (0xFE00, (4, 2, 0, 0), 2)


async def test_a_record_that_is_damaged_fails_alone(getting: Any, peer_to: Any, tmp_path: Path) -> None:
    async with getting() as archive:
        files = slices(3)
        instances = [await stored(archive.engine, raw) for raw in files]
        place = instances[1].row.location
        (segment,) = (tmp_path / "data" / "segments").rglob(f"*{place.segment.hex()}*")
        with segment.open("r+b") as file:
            file.seek(place.offset + 2000 + place.row_bytes)
            found = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes((found[0] ^ 1,)))
        peer = await peer_to(archive)
        await associated(peer)
        final, data, _, came = await ask(peer)
        assert (final.status, counts(final)) == (0xB000, (None, 2, 1, 0))
        assert failed_uids(data) == [instances[1].row.sop_uid]
        assert sorted(came.values()) == sorted(map(dataset_of, (files[0], files[2])))


def large_slice() -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(slices(1)[0]))
    dataset.Rows, dataset.Columns = 2048, 1536
    dataset.PixelData = np.random.default_rng(1).bytes(2048 * 1536 * 2)
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


async def test_a_large_object_comes_in_pieces_and_whole(getting: Any, peer_to: Any) -> None:
    # stored in pieces, as what has gigabytes is
    options = EngineOptions(
        ingest=IngestLimits(stream_bytes_min=1 << 20, large=LargeLimits(piece_bytes=1 << 20))
    )
    async with getting(engine_options=options) as archive:
        raw = large_slice()
        instance = await stored(archive.engine, raw)
        assert instance.row.location.stream is not None
        peer = await peer_to(archive)
        await associated(peer)
        final, _, _, came = await ask(peer)
        assert (final.status, came) == (0, by_uid([raw]))
        # in another syntax, too
        peer = await peer_to(archive)
        await associated(peer, CONTEXTS[0], PresentationContext(3, CT, (IMPLICIT,)))
        final, _, _, came = await ask(peer)
        assert final.status == 0
        ((_, data),) = came.items()
        assert pydicom.dcmread(io.BytesIO(raw)).PixelData in data


async def test_a_large_object_that_cannot_be_read_to_its_end_hides_the_others_once(
    getting: Any, peer_to: Any, tmp_path: Path
) -> None:
    """Its association is over, since a part of it was sent. Asked for again, the others come."""
    options = EngineOptions(
        ingest=IngestLimits(stream_bytes_min=1 << 20, large=LargeLimits(piece_bytes=1 << 20))
    )
    async with getting(engine_options=options) as archive:
        raw = large_slice()
        small = slices(3)[1:]
        instance = await stored(archive.engine, raw)
        for one in small:
            await stored(archive.engine, one)
        segment = max((tmp_path / "data" / "segments").rglob("*"), key=lambda path: path.stat().st_size)
        with segment.open("r+b") as file:
            file.seek(5 << 20)
            found = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes((found[0] ^ 1,)))
        peer = await peer_to(archive)
        await associated(peer)
        with pytest.raises(AssertionError, match="Abort"):
            await ask(peer)
        peer = await peer_to(archive)
        await associated(peer)
        final, data, _, came = await ask(peer)
        assert (final.status, counts(final)) == (0xB000, (None, 2, 1, 0))
        assert failed_uids(data) == [instance.row.sop_uid]
        assert sorted(came.values()) == sorted(map(dataset_of, small))
        with segment.open("r+b") as file:  # put back: it comes again
            file.seek(5 << 20)
            file.write(found)
        peer = await peer_to(archive)
        await associated(peer)
        final, _, _, came = await ask(peer)
        assert (final.status, len(came)) == (0, 3)


async def test_the_requestors_end_is_the_end(getting: Any, peer_to: Any) -> None:
    async with getting() as archive:
        for raw in slices(6):
            await stored(archive.engine, raw)
        peer = await peer_to(archive)
        await associated(peer)
        await peer.say(1, CGetRequest(7, STUDY_GET), STUDY)
        while not isinstance((await peer.message())[1], CStoreRequest):
            pass
        await peer.stream.aclose()
        await archive.until(lambda: not archive.listener.statistics().associations_open)


# ---------------------------------------------------------------- other people's


@pytest.mark.peer("getscu")
async def test_getscu_gets_what_is_stored(getting: Any, tmp_path: Path) -> None:
    async with getting() as archive:
        files = slices(5)
        for raw in files:
            await stored(archive.engine, raw)
        kept = tmp_path / "kept"
        kept.mkdir()
        done = await archive.run(
            "getscu", "-v", "-S", "--bit-preserving", "-od", kept, "-aec", "HOUNSFIELD",
            "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.3.4", "127.0.0.1", "PORT",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert by_uid(kept.iterdir()) == by_uid(files)


@pytest.mark.peer("pynetdicom")
async def test_pynetdicom_gets_in_the_syntax_that_it_knows(getting: Any) -> None:
    async with getting() as archive:
        names = ["CT_small.dcm", "JPEG-LL.dcm", "MR_small_RLE.dcm", "rtplan.dcm"]
        studies = [(await stored(archive.engine, sample(name))).study_uid for name in names]
        taken: dict[str, pydicom.Dataset] = {}

        def take(event: Any) -> int:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            taken[str(dataset.SOPInstanceUID)] = dataset
            return 0

        def get() -> list[int]:
            entity = AE("PYNETDICOM")
            entity.add_requested_context(STUDY_GET)
            classes = {str(pydicom.dcmread(io.BytesIO(sample(name))).SOPClassUID) for name in names}
            roles = []
            for uid in classes:
                entity.add_requested_context(uid, [IMPLICIT])
                roles.append(build_role(uid, scp_role=True))
            association = entity.associate(
                "127.0.0.1", archive.port, ae_title="HOUNSFIELD", ext_neg=roles,
                evt_handlers=[(evt.EVT_C_STORE, take)],
            )  # fmt: skip
            assert association.is_established
            keys = pydicom.Dataset()
            keys.QueryRetrieveLevel = "STUDY"
            keys.StudyInstanceUID = list(dict.fromkeys(studies))
            statuses = [status.Status for status, _ in association.send_c_get(keys, STUDY_GET)]
            association.release()
            return statuses

        statuses = await trio.to_thread.run_sync(get)
        assert statuses[-1] == 0
        assert len(taken) == len(names)
        for name in names:
            before = pydicom.dcmread(io.BytesIO(sample(name)))
            after = taken[str(before.SOPInstanceUID)]
            assert after.file_meta.TransferSyntaxUID == IMPLICIT
            if "PixelData" in before:
                assert np.array_equal(after.pixel_array, before.pixel_array)
