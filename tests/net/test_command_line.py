"""``hounsfield echo``, ``send`` and ``move``: exit codes and JSON are what scripts rely on."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.data import get_testdata_file

from hounsfield.archive.net.policy import ListenerPolicy
from hounsfield.archive.wire import CMoveResponse
from support.scripted_scp import ScriptedScp, scripted

HOUNSFIELD = (sys.executable, "-m", "hounsfield.archive.cli")


@pytest.fixture
def refused_port() -> Iterator[int]:
    """A port on which nobody listens, and which nobody else can take."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


def _file(name: str) -> str:
    path = get_testdata_file(name)
    assert path is not None
    return str(path)


async def test_echo(serve: Any, sink: Any, refused_port: int, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    async with serve(sink, ListenerPolicy()) as archive:
        config.write_text(f'[[aes]]\ntitle = "HOUNSFIELD"\nhost = "127.0.0.1"\nport = {archive.port}\n')
        done = await archive.run(*HOUNSFIELD, "echo", f"127.0.0.1:{archive.port}", "--json")
        assert done.returncode == 0, done.stdout
        assert json.loads(done.stdout)["status"] == 0
        by_title = await archive.run(*HOUNSFIELD, "echo", "HOUNSFIELD", "--config", config)
        assert by_title.returncode == 0, by_title.stdout
        other = await archive.run(*HOUNSFIELD, "echo", f"OTHER@127.0.0.1:{archive.port}")
        assert other.returncode == 1
        assert b"another AE title" in other.stdout
        nobody = await archive.run(*HOUNSFIELD, "echo", f"127.0.0.1:{refused_port}", "--timeout", "5")
        assert nobody.returncode == 3
        unknown = await archive.run(*HOUNSFIELD, "echo", "NOBODY", "--data", tmp_path / "none")
        assert unknown.returncode == 2
        assert b"NOBODY@" in unknown.stdout or b"AE@HOST:PORT" in unknown.stdout


async def test_send(serve: Any, sink: Any, refused_port: int, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not an image, and longer than one data element is")
    async with serve(sink, ListenerPolicy()) as archive:
        target = f"127.0.0.1:{archive.port}"
        done = await archive.run(*HOUNSFIELD, "send", target, _file("CT_small.dcm"), text, "--json")
        assert done.returncode == 0, done.stdout
        report = json.loads(done.stdout)
        assert report["counts"] == {"sent": 1, "warned": 0, "failed": 0, "unsendable": 1}
        assert {Path(file["path"]).name: file["outcome"] for file in report["files"]} == {
            "CT_small.dcm": "sent",
            "notes.txt": "unsendable",
        }
        table = await archive.run(*HOUNSFIELD, "send", target, _file("CT_small.dcm"), text)
        assert table.returncode == 0
        assert b"not a DICOM file" in table.stdout
        only_text = await archive.run(*HOUNSFIELD, "send", target, text)
        assert only_text.returncode == 1
        archive.listener.endpoints[0].policy = ListenerPolicy(
            refused_sop_classes=frozenset({"1.2.840.10008.5.1.4.1.1.2"})
        )
        part = await archive.run(*HOUNSFIELD, "send", target, _file("CT_small.dcm"), _file("rtplan.dcm"))
        assert part.returncode == 4, part.stdout
        nobody = await archive.run(
            *HOUNSFIELD, "send", f"127.0.0.1:{refused_port}", _file("CT_small.dcm"), "--retries", "0"
        )
        assert nobody.returncode == 3, nobody.stdout


@pytest.mark.parametrize(
    ("failed", "warned", "code", "complains"),
    [(0, 2, 0, False), (1, 1, 4, True), (0, 0, 4, True)],
    ids=["all with warnings", "one failed", "a warning about nothing"],
)
async def test_what_was_moved_with_warnings_is_moved(
    failed: int, warned: int, code: int, complains: bool
) -> None:
    """Whose destination coerces hears B000 of every move (PS3.4 C.4.2.1.5): that is no failure of it."""

    async def script(scp: ScriptedScp) -> None:
        await scp.accept()
        asked = (await scp.message()).command
        sop_class = asked.affected_sop_class_uid
        await scp.say(1, CMoveResponse(asked.message_id, 0xB000, sop_class, None, 1, failed, warned))

    async with scripted(script) as scp:
        words = [*HOUNSFIELD, "move", f"127.0.0.1:{scp.port}", "--to", "THERE", "1.2.3", "--json"]
        with trio.fail_after(60):
            done = await trio.run_process(words, capture_stdout=True, check=False)
        report = json.loads(done.stdout)
        assert (done.returncode, bool(report["complaints"])) == (code, complains), report
        assert (report["completed"], report["failed"], report["warned"]) == (1, failed, warned)
