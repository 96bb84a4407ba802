"""One object of gigabytes streams in: what a worker's memory grows by, how fast it goes, what a frame costs.

    python -m benchmarks.large_object [--gigabytes 4] [--way dimse|stow] [--directory DIR]

The object is a multi-frame of 512 KiB frames, made while it is sent, so that the sender holds none of it.
Growth is the worker's peak resident memory while it receives, less what it had before. Frames are then read
over HTTP, in no order, the first time (from disk: segments bypass the page cache) and again.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from benchmarks import upper_layer as ul

FRAME_BYTES = 512 * 1024
MULTI_FRAME_GRAYSCALE_WORD = "1.2.840.10008.5.1.4.1.1.7.3"
_PDU_BYTES_MAX = 256 * 1024
_BOUNDARY = b"large-object"
_FRAMES_READ = 25


@dataclass(frozen=True)
class LargeObject:
    """A multi-frame object that is never there as a whole. ``frames`` of 512 KiB each."""

    frames: int
    study_uid: str
    series_uid: str
    sop_uid: str

    @classmethod
    def of(cls, frames: int) -> LargeObject:
        return cls(frames, generate_uid(), generate_uid(), generate_uid())

    @property
    def header(self) -> bytes:
        """The data set up to the pixels, the pixel data element's own header included."""
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID = MULTI_FRAME_GRAYSCALE_WORD, self.sop_uid
        data.StudyDate, data.Modality, data.PatientName, data.PatientID = (
            "20250314",
            "OT",
            "Large^Object",
            "L1",
        )
        data.StudyInstanceUID, data.SeriesInstanceUID = self.study_uid, self.series_uid
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.NumberOfFrames, data.Rows, data.Columns = self.frames, 512, 512
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        out = io.BytesIO()
        pydicom.dcmwrite(out, data, enforce_file_format=False)
        whole = out.getvalue()
        start = whole.index(b"\x08\x00\x16\x00UI")
        return whole[start:] + b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", self.frames * FRAME_BYTES)

    @property
    def length(self) -> int:
        return len(self.header) + self.frames * FRAME_BYTES

    def frame(self, number: int) -> bytes:
        """Frame ``number``, from 1: noise that no two share."""
        return struct.pack("<Q", number) + _NOISE[number % 64 : number % 64 + FRAME_BYTES - 8]

    def pieces(self) -> Iterator[bytes]:
        yield self.header
        for number in range(1, self.frames + 1):
            yield self.frame(number)


_NOISE = random.Random(0).randbytes(FRAME_BYTES + 64)


def send_dimse(one: LargeObject, port: int, *, stop_after: int | None = None) -> int:
    """C-STORE it; the status. ``stop_after``: hang up after so many frames, status -1."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        contexts = [(1, MULTI_FRAME_GRAYSCALE_WORD, [ExplicitVRLittleEndian])]
        sock.sendall(
            ul.associate_request(
                called_ae="HOUNSFIELD", calling_ae="BENCH", contexts=contexts, max_pdu=_PDU_BYTES_MAX
            )
        )
        accepted, maximum = ul.parse_accept(receive_pdu(sock))
        assert 1 in accepted
        fragment = min(maximum or _PDU_BYTES_MAX, _PDU_BYTES_MAX) - ul.PDV_OVERHEAD
        sock.sendall(ul.command_pdu(1, ul.store_request(MULTI_FRAME_GRAYSCALE_WORD, one.sop_uid, 1)))
        left = one.length
        for count, piece in enumerate(one.pieces()):
            if stop_after is not None and count > stop_after:
                return -1
            for start in range(0, len(piece), fragment):
                part = piece[start : start + fragment]
                left -= len(part)
                flags = 0 if left else 2
                head = ul.PDU_HEADER.pack(ul.P_DATA, len(part) + ul.PDV_OVERHEAD)
                sock.sendall(head + ul.PDV_HEADER.pack(len(part) + 2, 1, flags) + part)
        answer = ul.parse_command(receive_pdu(sock)[ul.FRAGMENT_OVERHEAD :])
        sock.sendall(ul.RELEASE_RQ_PDU)
        receive_pdu(sock)
        return int(struct.unpack("<H", answer[0x0900])[0])


def send_stow(one: LargeObject, port: int) -> int:
    """STOW-RS it, in one multipart request; the HTTP status."""
    meta = Dataset()
    meta.file_meta = FileMetaDataset()
    meta.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.file_meta.MediaStorageSOPClassUID = MULTI_FRAME_GRAYSCALE_WORD
    meta.file_meta.MediaStorageSOPInstanceUID = one.sop_uid
    out = io.BytesIO()
    pydicom.dcmwrite(out, meta, enforce_file_format=True)
    begin = b"--" + _BOUNDARY + b"\r\nContent-Type: application/dicom\r\n\r\n" + out.getvalue()
    end = b"\r\n--" + _BOUNDARY + b"--\r\n"
    with socket.create_connection(("127.0.0.1", port)) as sock:
        head = (
            f"POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Accept: application/dicom+json\r\n"
            f'Content-Type: multipart/related; type="application/dicom"; boundary={_BOUNDARY.decode()}\r\n'
            f"Content-Length: {len(begin) + one.length + len(end)}\r\nConnection: close\r\n\r\n"
        )
        sock.sendall(head.encode() + begin)
        for piece in one.pieces():
            sock.sendall(piece)
        sock.sendall(end)
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        answer.read()
        return answer.status


def receive_pdu(sock: socket.socket) -> bytes:
    """The next PDU, whole."""
    head = _exactly(sock, 6)
    return head + _exactly(sock, ul.PDU_HEADER.unpack(head)[1])


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise ConnectionError("the server hung up")
        data += more
    return data


@contextlib.contextmanager
def memory_growth(pid: int) -> Iterator[list[int]]:
    """Appends by how many bytes a process's peak resident memory exceeds what it had before."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = memory_of(pid, "VmRSS")
    found: list[int] = []
    yield found
    found.append(memory_of(pid, "VmHWM") - before)


def memory_of(pid: int, name: str) -> int:
    """Bytes that the kernel states under ``name`` for a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


def read_frames(one: LargeObject, port: int, numbers: list[int]) -> list[float]:
    """Milliseconds that each frame took; every byte is compared."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    path = f"/dicom-web/studies/{one.study_uid}/series/{one.series_uid}/instances/{one.sop_uid}/frames/"
    took = []
    for number in numbers:
        began = time.perf_counter()
        connection.request("GET", path + str(number), headers={"Accept": "application/octet-stream"})
        answer = connection.getresponse()
        body = answer.read()
        took.append((time.perf_counter() - began) * 1000)
        if body != one.frame(number):
            raise SystemExit(f"frame {number} is not what was sent (status {answer.status})")
    connection.close()
    return took


def main() -> None:
    """Start an archive, send, read, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--gigabytes", type=float, default=4.0)
    options.add_argument("--way", choices=("dimse", "stow"), default="dimse")
    options.add_argument("--directory", type=Path, default=None)
    wanted = options.parse_args()
    # The length of native pixel data is a 32-bit number (PS3.5 7.1.2): 4 GiB less a frame is the most.
    frames = min(int(wanted.gigabytes * 1e9) // FRAME_BYTES, (1 << 32) // FRAME_BYTES - 1)
    one = LargeObject.of(frames)
    with tempfile.TemporaryDirectory(dir=wanted.directory) as folder, server(Path(folder)) as ready:
        ports = {each["kind"]: each["port"] for each in ready["listeners"]}
        send_dimse(LargeObject.of(80), ports["dicom"])  # everything is warm: buffers, keys, imports
        with memory_growth(ready["worker"]) as growth:
            began = time.perf_counter()
            if wanted.way == "dimse":
                status = send_dimse(one, ports["dicom"])
            else:
                status = send_stow(one, ports["http"])
            seconds = time.perf_counter() - began
        numbers = random.Random(1).sample(range(1, frames + 1), _FRAMES_READ)
        first = read_frames(one, ports["http"], numbers)
        again = read_frames(one, ports["http"], numbers)
        print(
            json.dumps(
                {
                    "way": wanted.way,
                    "status": status,
                    "bytes": one.length,
                    "seconds": round(seconds, 2),
                    "megabytes_per_second": round(one.length / seconds / 1e6),
                    "memory_growth_mib": round(growth[0] / 2**20, 1),
                    "frame_ms_p50": round(statistics.median(first), 2),
                    "frame_again_ms_p50": round(statistics.median(again), 2),
                },
                indent=2,
            )
        )


@contextlib.contextmanager
def server(folder: Path) -> Iterator[dict[str, Any]]:
    """An archive of one worker on loopback: what it says when it is ready, and its worker's process id."""
    read_end, write_end = os.pipe()
    words = [sys.executable, "-m", "hounsfield.archive.cli", "serve", "--data", str(folder / "archive")]
    words += ["--dicom", "127.0.0.1:0", "--http", "127.0.0.1:0", "--workers", "1"]
    words += ["--ready-fd", str(write_end), "--set", "logs.level=warning"]
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    process = subprocess.Popen(words, pass_fds=[write_end], env=environment, stdout=subprocess.DEVNULL)
    os.close(write_end)
    try:
        with os.fdopen(read_end) as file:
            ready = json.loads(file.readline())
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield {**ready, "worker": int(children[0])}
    finally:
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    main()
