"""What other people's senders send is stored bit for bit, whatever they propose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
import trio
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from hounsfield.archive.dicom import part10
from hounsfield.archive.net.policy import ListenerPolicy

CT = "CT_small.dcm"
VERIFICATION = "1.2.840.10008.1.1"
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

# file, options of storescu that make it propose the file's own syntax
STORESCU = [
    ("CT_small.dcm", ()),
    ("MR_small_implicit.dcm", ("-xi",)),
    ("MR_small_bigendian.dcm", ("-xb",)),
    ("JPEG-LL.dcm", ("-xs",)),
    ("SC_rgb_jpeg_dcmtk.dcm", ("-xy",)),
    ("JPGExtended.dcm", ("-xx",)),
    ("MR_small_jp2klossless.dcm", ("-xv",)),
    ("MR_small_jpeg_ls_lossless.dcm", ("-xt",)),
    ("MR_small_RLE.dcm", ("-xr",)),
]


def _file(name: str) -> Path:
    path = get_testdata_file(name)
    assert path is not None
    return Path(path)


def _dataset_of(path: Path) -> tuple[Dataset, bytes]:
    raw = path.read_bytes()
    return pydicom.dcmread(path), raw[part10.split(raw).offset :]


async def _assert_kept(archive: Any, path: Path, *, rewritten: bool = False) -> None:
    """The stored data set is the file's: to the bit, or to the element when the sender writes it anew."""
    ds, sent = _dataset_of(path)
    got = await archive.stored(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
    (instance,) = await archive.engine.instances(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
    assert instance.row.transfer_syntax_uid == ds.file_meta.TransferSyntaxUID
    if not rewritten:
        assert got == sent
        return
    back = pydicom.dcmread(pydicom.filebase.DicomBytesIO(_as_file(ds, got)))
    for element in ds:
        if element.tag.element != 0 and element.tag != 0xFFFCFFFC and element.VR != "SQ":
            assert back[element.tag].value == element.value


def _as_file(ds: Dataset, data: bytes) -> bytes:
    header = part10.file_header(ds.file_meta.TransferSyntaxUID, ds.SOPClassUID, ds.SOPInstanceUID)
    return header + data


@pytest.mark.peer("echoscu")
async def test_echoscu_is_answered(open_archive: Callable[..., Any]) -> None:
    async with open_archive() as archive:
        done = await archive.run("echoscu", "-aec", "HOUNSFIELD", "127.0.0.1", "PORT", "--repeat", "3")
        assert done.returncode == 0, done.stdout
        assert archive.listener.statistics().echoes == 3
        await archive.until(lambda: archive.listener.statistics().associations_released == 1)


@pytest.mark.peer("echoscu")
async def test_echoscu_with_many_contexts_and_a_small_pdu(open_archive: Callable[..., Any]) -> None:
    async with open_archive() as archive:
        done = await archive.run(
            "echoscu", "-aec", "HOUNSFIELD", "-ppc", "128", "-pts", "38", "-pdu", "4096", "127.0.0.1", "PORT"
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.peer("echoscu")
async def test_echoscu_that_calls_somebody_else_is_refused(open_archive: Callable[..., Any]) -> None:
    async with open_archive() as archive:
        done = await archive.run("echoscu", "-aec", "OTHER", "127.0.0.1", "PORT")
        assert done.returncode != 0
        assert b"Called AE Title Not Recognized" in done.stdout


@pytest.mark.peer("echoscu")
async def test_echoscu_that_aborts(open_archive: Callable[..., Any]) -> None:
    async with open_archive() as archive:
        await archive.run("echoscu", "-aec", "HOUNSFIELD", "--abort", "127.0.0.1", "PORT")
        await archive.until(lambda: archive.listener.statistics().associations_aborted == 1)


@pytest.mark.peer("storescu")
@pytest.mark.parametrize(("name", "options"), STORESCU, ids=lambda value: "".join(value))
async def test_storescu(open_archive: Callable[..., Any], name: str, options: tuple[str, ...]) -> None:
    path = _file(name)
    async with open_archive() as archive:
        done = await archive.run("storescu", *options, "-aec", "HOUNSFIELD", "127.0.0.1", "PORT", path)
        assert done.returncode == 0, done.stdout
        await _assert_kept(archive, path, rewritten=True)  # DCMTK parses and writes what it sends


@pytest.mark.peer("dcmsend")
async def test_dcmsend_with_many_files_and_syntaxes(open_archive: Callable[..., Any]) -> None:
    paths = [_file(name) for name, _ in STORESCU]
    async with open_archive() as archive:
        done = await archive.run("dcmsend", "-v", "-aec", "HOUNSFIELD", "127.0.0.1", "PORT", *paths)
        assert done.returncode == 0, done.stdout
        statistics = archive.listener.statistics()
        assert statistics.objects_received == len(paths)
        assert statistics.objects_failed == 0


@pytest.mark.peer("storescu")
@pytest.mark.parametrize(
    "options",
    [
        ("-R",),  # only the contexts that are needed
        ("+C",),  # transfer syntaxes together in one context
        ("-R", "+C"),
        ("--repeat", "3", "+IR", "2"),  # other UIDs each time
        ("--max-pdu", "4096", "--max-send-pdu", "4096"),
        ("--max-pdu", "131072", "--max-send-pdu", "131072"),
        ("-x=",),
    ],
    ids=" ".join,
)
async def test_storescu_in_its_other_ways(open_archive: Callable[..., Any], options: tuple[str, ...]) -> None:
    async with open_archive() as archive:
        words = ("storescu", *options, "-aec", "HOUNSFIELD", "127.0.0.1", "PORT", _file(CT))
        done = await archive.run(*words)
        assert done.returncode == 0, done.stdout
        await archive.until(lambda: archive.listener.statistics().connections_open == 0)
        statistics = archive.listener.statistics()
        assert (statistics.objects_received > 0, statistics.objects_failed) == (True, 0)
        assert statistics.associations_aborted == 0


@pytest.mark.peer("storescu")
async def test_storescu_that_aborts_when_all_is_answered(open_archive: Callable[..., Any]) -> None:
    async with open_archive() as archive:
        await archive.run("storescu", "--abort", "-aec", "HOUNSFIELD", "127.0.0.1", "PORT", _file(CT))
        await archive.until(lambda: archive.listener.statistics().associations_aborted == 1)
        await _assert_kept(archive, _file(CT), rewritten=True)


@pytest.mark.peer("termscu")
async def test_termscu_asks_in_vain(open_archive: Callable[..., Any]) -> None:
    """It proposes a private way to stop DCMTK's own servers: nobody stops this one from outside."""
    async with open_archive() as archive:
        await archive.run("termscu", "-aec", "HOUNSFIELD", "127.0.0.1", "PORT")
        done = await archive.run("echoscu", "-aec", "HOUNSFIELD", "127.0.0.1", "PORT")
        assert done.returncode == 0, done.stdout


# ---------------------------------------------------------------- pynetdicom


def _pynetdicom(
    port: int, contexts: list[tuple[str, list[str]]], use: Callable[[Any], Any], **more: Any
) -> Any:
    """Run ``use`` with a pynetdicom association, on a thread."""
    from pynetdicom import AE

    entity = AE(ae_title="PYNETDICOM")
    for abstract, syntaxes in contexts:
        entity.add_requested_context(abstract, syntaxes)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 30
    association = entity.associate("127.0.0.1", port, ae_title=more.pop("called", "HOUNSFIELD"), **more)
    try:
        return use(association)
    finally:
        if association.is_established:
            association.release()
        else:
            association.abort()


@pytest.mark.peer("pynetdicom")
async def test_pynetdicom_stores_bits_and_gets_its_window(open_archive: Callable[..., Any]) -> None:
    from pynetdicom.pdu_primitives import (
        AsynchronousOperationsWindowNegotiation,
        SCP_SCU_RoleSelectionNegotiation,
        SOPClassExtendedNegotiation,
    )

    path = _file(CT)
    ds, sent = _dataset_of(path)
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked = 8
    window.maximum_number_operations_performed = 8
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = CT_CLASS, True, True
    extended = SOPClassExtendedNegotiation()
    extended.sop_class_uid, extended.service_class_application_information = (
        CT_CLASS,
        b"\x02\x00\x00\x00\x00\x00",
    )

    def use(association: Any) -> tuple[Any, Any, Any]:
        assert association.is_established
        return (
            association.send_c_echo().Status,
            association.send_c_store(ds),
            association.acceptor,
        )

    async with open_archive() as archive:
        echoed, stored, acceptor = await trio.to_thread.run_sync(
            lambda: _pynetdicom(
                archive.port,
                [(VERIFICATION, [EXPLICIT]), (CT_CLASS, [EXPLICIT])],
                use,
                ext_neg=[window, role, extended],
            )
        )
        assert (echoed, stored.Status) == (0, 0)
        assert acceptor.asynchronous_operations == (8, 8)
        assert acceptor.sop_class_extended[CT_CLASS] == b"\x02\x00\x03\x00\x00\x00"
        got = await archive.stored(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
        assert got[: len(got) - 140] == sent[: len(got) - 140]  # all but the trailing padding


@pytest.mark.peer("pynetdicom")
async def test_pynetdicom_is_refused(open_archive: Callable[..., Any]) -> None:
    def rejected(association: Any) -> tuple[bool, Any] | None:
        # On a busy machine pynetdicom's reactor now and then sees the end of the connection before the PDU.
        answer = association.acceptor.primitive
        return None if answer is None else (association.is_rejected, answer.diagnostic)

    policy = ListenerPolicy(calling_titles=frozenset({"PYNETDICOM"}))
    async with open_archive(policy=policy) as archive:
        contexts = [(VERIFICATION, [EXPLICIT])]
        for attempt in range(1, 4):
            seen = await trio.to_thread.run_sync(
                lambda: _pynetdicom(archive.port, contexts, rejected, called="OTHER")
            )
            reasons = [call.reason for call in archive.observer.calls]
            assert reasons == ["called AE title not recognized"] * attempt
            if seen is not None:
                break
        assert seen == (True, 7)


@pytest.mark.peer("pynetdicom")
async def test_what_is_not_storage_is_not_accepted_and_private_syntaxes_are(
    open_archive: Callable[..., Any],
) -> None:
    def use(association: Any) -> tuple[list[str], list[str]]:
        return (
            [context.abstract_syntax for context in association.accepted_contexts],
            [context.abstract_syntax for context in association.rejected_contexts],
        )

    async with open_archive() as archive:
        contexts = [
            ("1.2.840.10008.5.1.4.1.2.2.1", [EXPLICIT]),
            ("1.2.840.10008.5.1.4.31", [EXPLICIT]),
            ("1.2.3.4.5", ["1.2.3.4.5.6"]),
        ]
        accepted, rejected = await trio.to_thread.run_sync(lambda: _pynetdicom(archive.port, contexts, use))
        assert accepted == ["1.2.3.4.5"]
        assert rejected == ["1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.31"]


@pytest.mark.peer("pynetdicom")
async def test_an_object_without_uids_is_a_warning(open_archive: Callable[..., Any]) -> None:
    ds, _ = _dataset_of(_file(CT))
    del ds.StudyInstanceUID

    async with open_archive() as archive:
        answer = await trio.to_thread.run_sync(
            lambda: _pynetdicom(
                archive.port, [(CT_CLASS, [EXPLICIT])], lambda association: association.send_c_store(ds)
            )
        )
        assert answer.Status == 0xB007
        assert "quarantine" in answer.ErrorComment
        assert archive.listener.statistics().objects_warned == 1
