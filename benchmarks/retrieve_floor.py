"""The least that a C-GET of 512 KiB slices costs in Python: `python -m benchmarks.retrieve_floor`.

A process per association, blocking sockets, no index, no event loop. For each slice one `preadv` of sealed
bytes, one record key, two AES-GCM openings into memory that is used again, one `sendmsg` of PDU headers and
pieces of it, one `recv` of the response. One thing after the other (`serial`); with the next slice opened
while the last one is on its way (`ahead`); and with neither reading nor opening (`sent`), which is the
generator's and the kernel's share. It is asked, and megabytes are counted, as in `benchmarks.query_retrieve`.
"""

from __future__ import annotations

import hmac
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.query_load import GET, MODELS, QueryLoad, element, run_queries
from benchmarks.upper_layer import (
    P_DATA,
    PDU_HEADER,
    PDV_HEADER,
    RELEASE_RP_PDU,
    RELEASE_RQ,
    associate_accept,
    command_pdu,
    get_response,
    store_request,
)

SLICES, HEAD_BYTES, SLICE_BYTES, TAG_BYTES = 100, 2048, 512 * 1024, 16
RECORD_BYTES = HEAD_BYTES + SLICE_BYTES + 2 * TAG_BYTES
PDU_BYTES = 262_144
CT = "1.2.840.10008.5.1.4.1.1.2"
BOUND = bytes(68)
WAYS = ("serial", "ahead", "sent")
ASSOCIATIONS = (1, 4)
ROUNDS, SECONDS = 5, 1.0


def _seal(key: bytes, number: int) -> AESGCM:
    return AESGCM(hmac.digest(key, b"%d" % number, "sha256"))


def _fill(path: Path, key: bytes) -> None:
    with path.open("wb") as file:
        for number in range(SLICES):
            seal = _seal(key, number)
            file.write(seal.encrypt(bytes(12), bytes(HEAD_BYTES), BOUND))
            file.write(seal.encrypt(b"\1" + bytes(11), os.urandom(SLICE_BYTES), BOUND))


class _Server:
    """One association."""

    def __init__(self, sock: socket.socket, path: Path, key: bytes, way: str) -> None:
        self._sock, self._key, self._way = sock, key, way
        self._file = os.open(path, os.O_RDONLY)
        self._sealed = memoryview(bytearray(RECORD_BYTES))
        self._open = [memoryview(bytearray(HEAD_BYTES + SLICE_BYTES)) for _ in range(2)]

    def serve(self) -> tuple[int, float]:
        """Slices sent, and the seconds of a processor that they took."""
        sock = self._sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(associate_accept(self._pdu(), max_pdu=PDU_BYTES))
        sent, before = 0, time.process_time()
        while self._pdu()[0] != RELEASE_RQ:
            self._pdu()  # the identifier
            self._give()
            sent += SLICES
        spent = time.process_time() - before
        sock.sendall(RELEASE_RP_PDU)
        return sent, spent

    def _give(self) -> None:
        ahead = self._way == "ahead"
        answer = bytearray(65_536)
        self._load(0)
        for number in range(SLICES):
            self._send(number)
            if ahead and number + 1 < SLICES:
                self._load(number + 1)
            self._sock.recv_into(answer)
            if not ahead and number + 1 < SLICES:
                self._load(number + 1)
        self._sock.sendall(command_pdu(1, get_response(MODELS[GET][0], 1, SLICES)))

    def _load(self, number: int) -> None:
        if self._way == "sent":
            return
        os.preadv(self._file, (self._sealed,), number * RECORD_BYTES)
        seal, into, at = _seal(self._key, number), self._open[number & 1], HEAD_BYTES + TAG_BYTES
        seal.decrypt_into(bytes(12), self._sealed[:at], BOUND, into[:HEAD_BYTES])
        seal.decrypt_into(b"\1" + bytes(11), self._sealed[at:], BOUND, into[HEAD_BYTES:])

    def _send(self, number: int) -> None:
        data = self._open[number & 1]
        out: list[bytes | memoryview] = [command_pdu(3, store_request(CT, f"1.2.3.{number}", number + 1))]
        size = PDU_BYTES - PDV_HEADER.size
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            last = 2 if at + size >= len(data) else 0
            out.append(PDU_HEADER.pack(P_DATA, len(piece) + 6) + PDV_HEADER.pack(len(piece) + 2, 3, last))
            out.append(piece)
        while out:
            sent = self._sock.sendmsg(out)
            while out and sent >= len(out[0]):
                sent -= len(out.pop(0))
            if out:
                out[0] = memoryview(out[0])[sent:]

    def _pdu(self) -> bytes:
        head = self._exactly(6)
        return head + self._exactly(int.from_bytes(head[2:], "big"))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._sock.recv(count - len(data))
            if not more:
                sys.exit("the generator hung up")
            data += more
        return data


def measured(way: str, associations: int, folder: Path) -> tuple[float, float]:
    """Megabytes a second over so many associations, and milliseconds of the server's processor a slice."""
    key, path = os.urandom(32), folder / "sealed"
    _fill(path, key)
    told, tell = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        children = []
        for _ in range(associations):
            child = os.fork()
            if not child:
                sent, spent = _Server(listener.accept()[0], path, key, way).serve()
                os.write(tell, b"%d %f\n" % (sent, spent))
                os._exit(0)
            children.append(child)
        load = QueryLoad(GET, listener.getsockname()[1], "FLOOR", seconds=SECONDS)
        report = run_queries(load, [[element(0x00080052, "CS", b"SERIES")]] * associations)
    os.close(tell)
    for child in children:
        os.waitpid(child, 0)
    with os.fdopen(told) as lines:
        counts = [line.split() for line in lines]
    spent = sum(float(seconds) for _, seconds in counts) / sum(int(sent) for sent, _ in counts)
    return report.answers * SLICE_BYTES / 1e6 / report.seconds, 1000 * spent


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the floor."""
    del arguments
    with tempfile.TemporaryDirectory() as folder:
        for associations in ASSOCIATIONS:
            for way in WAYS:
                runs = sorted(measured(way, associations, Path(folder)) for _ in range(ROUNDS))
                rate, spent = runs[ROUNDS // 2]
                print(f"{way:6} × {associations}: {rate:5,.0f} MB/s, {spent:.3f} ms of the server a slice")
    return 0


if __name__ == "__main__":
    sys.exit(main())
