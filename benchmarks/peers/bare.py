"""The bare acceptor: what storing durably costs at the least, and (with --discard) what the load generator
can do.

A fixed program, so that its figure means the same in every run: one process per association; each object
goes into a file of its own, gets one fdatasync, and is then acknowledged, each response in one send. No
index, no encryption, no check of anything. The PDU length and TCP_NODELAY are those of the archive that it
is compared with.

    python -m benchmarks.peers.bare --directory D [--port 0] [--discard] [--max-pdu 262144] [--status 0]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
from pathlib import Path

from benchmarks.upper_layer import (
    ASSOCIATE_RQ,
    P_DATA,
    PDU_HEADER,
    PDV_HEADER,
    RELEASE_RP_PDU,
    RELEASE_RQ,
    associate_accept,
    command_pdu,
    parse_command,
    store_response,
)

# A buffer holds a CT object with all its PDU headers; larger objects are written in several pieces.
BUFFER_BYTES = 4 * 1024 * 1024
IOV_MAX = 1024


class Connection:
    """One association, from A-ASSOCIATE-RQ to release."""

    def __init__(self, sock: socket.socket, *, directory: Path | None, max_pdu: int, status: int) -> None:
        self._socket = sock
        self._directory = directory
        self._max_pdu = max_pdu
        self._status = status
        self._buffer = memoryview(bytearray(BUFFER_BYTES + max_pdu + 6))
        self._begin = self._end = 0  # unparsed bytes
        self._pieces: list[memoryview] = []  # data set fragments not yet written
        self._command = b""
        self._file: int | None = None

    def serve(self) -> None:
        """Returns when the peer has released or gone."""
        while True:
            if not self._need(6):
                return
            kind, length = PDU_HEADER.unpack_from(self._buffer, self._begin)
            if not self._need(6 + length):
                return
            start, stop = self._begin + 6, self._begin + 6 + length
            self._begin = stop
            if kind == P_DATA:
                while start < stop:
                    size, context, control = PDV_HEADER.unpack_from(self._buffer, start)
                    self._value(context, control, self._buffer[start + 6 : start + 4 + size])
                    start += 4 + size
            elif kind == ASSOCIATE_RQ:
                request = bytes(self._buffer[start - 6 : stop])
                self._socket.sendall(associate_accept(request, max_pdu=self._max_pdu))
            elif kind == RELEASE_RQ:
                self._socket.sendall(RELEASE_RP_PDU)
                return
            else:
                return

    def _value(self, context: int, control: int, value: memoryview) -> None:
        if control & 1:
            self._command += bytes(value)
            return
        if self._directory:
            self._pieces.append(value)
        if control & 2:
            values = parse_command(self._command)
            self._command = b""
            uid = values[0x1000]
            if self._directory:
                self._write(uid)
                assert self._file is not None
                os.fdatasync(self._file)
                os.close(self._file)
                self._file = None
            message_id = int.from_bytes(values[0x0110], "little")
            self._socket.sendall(
                command_pdu(context, store_response(values[0x0002], uid, message_id, self._status))
            )

    def _write(self, uid: bytes) -> None:
        """Appends the gathered fragments to the object's file, which it creates at first."""
        assert self._directory
        if self._file is None:
            path = self._directory / uid.rstrip(b"\0 ").decode("ascii")
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        pieces = self._pieces
        while pieces:
            written = os.writev(self._file, pieces[:IOV_MAX])
            while pieces and written >= len(pieces[0]):
                written -= len(pieces.pop(0))
            if written:
                pieces[0] = pieces[0][written:]

    def _need(self, size: int) -> bool:
        """Has `size` unparsed bytes in one piece; False when the peer has gone."""
        if self._begin == self._end and not self._pieces:
            self._begin = self._end = 0
        if self._begin + size > len(self._buffer):
            if self._pieces:
                self._write(parse_command(self._command)[0x1000])
            rest = self._end - self._begin
            self._buffer[:rest] = bytes(self._buffer[self._begin : self._end])
            self._begin, self._end = 0, rest
            if size > len(self._buffer):
                return False
        while self._end - self._begin < size:
            got = self._socket.recv_into(self._buffer[self._end :])
            if got == 0:
                return False
            self._end += got
        return True


def main() -> None:
    """Listens, prints `ready PORT`, forks a process for each association."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.bare", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--discard", action="store_true", help="store nothing: the load generator's ceiling")
    parser.add_argument("--max-pdu", type=int, default=262_144)
    parser.add_argument(
        "--status", type=lambda text: int(text, 16), default=0, help="answer with this status (hex)"
    )
    arguments = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", arguments.port), backlog=64)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print(f"ready {listener.getsockname()[1]}", flush=True)
    listener.settimeout(0.1)
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        try:
            sock, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork():
            sock.close()
            continue
        listener.close()
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        directory = None if arguments.discard else arguments.directory
        with contextlib.suppress(ConnectionError):
            Connection(sock, directory=directory, max_pdu=arguments.max_pdu, status=arguments.status).serve()
        os._exit(0)


if __name__ == "__main__":
    main()
