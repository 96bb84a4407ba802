"""A C-FIND, C-MOVE and C-GET load generator: one process per association, one request at a time on each.

Nothing of the archive's own wire code is used. Identifiers are encoded before the clock starts; of objects
that a C-GET brings the bytes are counted and nothing is kept. References: PS3.7 9.1.2 to 9.1.4, PS3.4 C.4.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.cstore_load import ASSOCIATE_TIMEOUT_SECONDS, EXPLICIT_VR_LITTLE_ENDIAN
from benchmarks.figures import together
from benchmarks.processes import Fleet, worker_input, worker_ready
from benchmarks.upper_layer import (
    P_DATA,
    PDU_HEADER,
    PDV_HEADER,
    RELEASE_RQ_PDU,
    RefusedError,
    associate_request,
    command_pdu,
    parse_accept,
    parse_command,
    request_command,
    store_response,
)

FIND, MOVE, GET, WORKLIST = "find", "move", "get", "worklist"
#: Study Root, and the Modality Worklist: SOP class, command field (PS3.4 C.6.2, K.6.1, PS3.7 E.1).
MODELS = {
    FIND: ("1.2.840.10008.5.1.4.1.2.2.1", 0x0020),
    MOVE: ("1.2.840.10008.5.1.4.1.2.2.2", 0x0021),
    GET: ("1.2.840.10008.5.1.4.1.2.2.3", 0x0010),
    WORKLIST: ("1.2.840.10008.5.1.4.31", 0x0020),
}
_ANSWERED = (FIND, WORKLIST)
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
PENDING = (0xFF00, 0xFF01)
RESPONSE_TIMEOUT_SECONDS = 300.0  # a C-MOVE of a whole study, from a server that says nothing meanwhile
_MAX_PDU = 262_144
_BUFFER_BYTES = 4 << 20
_QUESTION, _STORE = 1, 3  # presentation contexts


@dataclass(frozen=True, slots=True)
class QueryLoad:
    """What is asked of whom. Each association asks its own identifiers, over and over, until ``seconds`` are
    over; with ``once``, each one time.
    """

    kind: str
    port: int
    called_ae: str
    seconds: float = 5.0
    once: bool = False
    destination: str = ""
    calling_ae: str = "HFBENCH"
    host: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class QueryReport:
    """What came back. ``answers``: pending responses of C-FIND, completed sub-operations else; ``received``:
    bytes of data sets that C-GET brought.
    """

    failures: dict[str, int]
    requests: int
    answers: int
    received: int
    seconds: float
    rate: float
    p50_ms: float
    p99_ms: float
    worst_ms: float


def element(tag: int, vr: str, value: bytes = b"") -> bytes:
    """One element of a short VR, Explicit VR Little Endian."""
    value += (b"\0" if vr == "UI" else b" ") * (len(value) & 1)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value


def run_queries(load: QueryLoad, identifiers: Sequence[Sequence[bytes]]) -> QueryReport:
    """Asks, one association for each list of identifiers. Failures are counted, and raise nothing."""
    inputs = [{"load": asdict(load), "number": number} for number in range(len(identifiers))]
    timeout = load.seconds + 2 * RESPONSE_TIMEOUT_SECONDS
    with Fleet("benchmarks.query_load", inputs, shared=[list(one) for one in identifiers]) as fleet:
        parts = fleet.run(timeout_seconds=timeout)
    return QueryReport(
        **together(parts),
        requests=sum(len(part["latencies_ns"]) for part in parts),
        answers=sum(part["answers"] for part in parts),
        received=sum(part["received"] for part in parts),
    )


class Requestor:
    """One association over a blocking socket."""

    def __init__(self, load: QueryLoad) -> None:
        self._load = load
        self._sop_class, self._field = MODELS[load.kind]
        self._socket = socket.create_connection((load.host, load.port), timeout=ASSOCIATE_TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._begin = self._end = 0
        contexts = [(_QUESTION, self._sop_class, [EXPLICIT_VR_LITTLE_ENDIAN])]
        roles = []
        if load.kind == GET:
            contexts.append((_STORE, CT_IMAGE_STORAGE, [EXPLICIT_VR_LITTLE_ENDIAN]))
            roles.append((CT_IMAGE_STORAGE, False, True))
        self._socket.sendall(
            associate_request(
                called_ae=load.called_ae,
                calling_ae=load.calling_ae,
                contexts=contexts,
                max_pdu=_MAX_PDU,
                roles=roles,
            )
        )
        accepted, _ = parse_accept(bytes(self._pdu()))
        if _QUESTION not in accepted or (load.kind == GET and _STORE not in accepted):
            raise RefusedError(f"presentation contexts accepted: {sorted(accepted)}")
        self._socket.settimeout(RESPONSE_TIMEOUT_SECONDS)
        self.answers = self.received = 0

    def ask(self, identifier: bytes, message_id: int) -> int:
        """One request, to its final response; the status of that."""
        destination = self._load.destination if self._load.kind == MOVE else ""
        command = request_command(self._field, self._sop_class, message_id, destination=destination)
        fragment = PDV_HEADER.pack(len(identifier) + 2, _QUESTION, 2) + identifier
        data = PDU_HEADER.pack(P_DATA, len(fragment)) + fragment
        self._socket.sendall(command_pdu(_QUESTION, command) + data)
        command = b""
        values: dict[int, bytes] = {}
        while True:
            pdu = self._pdu()
            if pdu[0] != P_DATA:
                raise RefusedError(f"PDU type {pdu[0]} in place of a response")
            at = 6
            while at < len(pdu):
                size, context, control = PDV_HEADER.unpack_from(pdu, at)
                if control & 1:
                    command += pdu[at + 6 : at + 4 + size]
                    if control & 2:
                        values, command = parse_command(command), b""
                        if context == _QUESTION:
                            status = int.from_bytes(values[0x0900], "little")
                            if status not in PENDING:
                                if self._load.kind not in _ANSWERED:
                                    self.answers += int.from_bytes(values.get(0x1021, b""), "little")
                                return status
                            self.answers += self._load.kind in _ANSWERED
                else:
                    if context == _STORE:
                        self.received += size - 2
                        if control & 2:
                            self._stored(values)
                at += 4 + size

    def _stored(self, values: dict[int, bytes]) -> None:
        message_id = int.from_bytes(values[0x0110], "little")
        self._socket.sendall(command_pdu(_STORE, store_response(values[0x0002], values[0x1000], message_id)))

    def release(self) -> None:
        """Orderly release; what goes wrong now loses nothing."""
        try:
            self._socket.sendall(RELEASE_RQ_PDU)
            self._socket.settimeout(2.0)
            self._pdu()
        except (OSError, RefusedError):
            pass
        self._socket.close()

    def _pdu(self) -> memoryview:
        """The next PDU, which lives until the next call."""
        self._need(6)
        size = 6 + int.from_bytes(self._buffer[self._begin + 2 : self._begin + 6], "big")
        self._need(size)
        pdu = self._buffer[self._begin : self._begin + size]
        self._begin += size
        return pdu

    def _need(self, size: int) -> None:
        if size > len(self._buffer):
            raise RefusedError(f"a PDU of {size} bytes, more than was negotiated")
        if self._begin == self._end:
            self._begin = self._end = 0
        elif self._begin + size > len(self._buffer):
            rest = bytes(self._buffer[self._begin : self._end])
            self._buffer[: len(rest)] = rest
            self._begin, self._end = 0, len(rest)
        while self._end - self._begin < size:
            got = self._socket.recv_into(self._buffer[self._end :])
            if got == 0:
                raise RefusedError("connection closed by the peer")
            self._end += got


def worker() -> None:
    """One association: reads what to do, says ready, waits for the others, asks, reports."""
    task, shared = worker_input()
    load, identifiers = QueryLoad(**task["load"]), shared[task["number"]]
    failures: dict[str, int] = {}
    latencies: list[int] = []
    requestor = None
    try:
        requestor = Requestor(load)
    except (OSError, RefusedError) as error:
        failures[f"association: {error}"] = 1
    worker_ready()
    clock = time.monotonic_ns
    began = ended = time.monotonic()
    stop_ns = clock() + int(load.seconds * 1e9)
    number = 0
    try:
        while requestor is not None and not (load.once and number == len(identifiers)):
            start = clock()
            if start >= stop_ns and not load.once:
                break
            status = requestor.ask(identifiers[number % len(identifiers)], number % 65535 + 1)
            number += 1
            if status == 0:
                latencies.append(clock() - start)
                ended = time.monotonic()
            else:
                failures[f"status {status:04X}"] = failures.get(f"status {status:04X}", 0) + 1
    except (OSError, RefusedError) as error:
        failures[f"lost: {error}"] = 1
    result: dict[str, Any] = {
        "failures": failures,
        "latencies_ns": latencies,
        "answers": 0 if requestor is None else requestor.answers,
        "received": 0 if requestor is None else requestor.received,
        "began": began,
        "ended": ended,
    }
    if requestor is not None:
        requestor.release()
    json.dump(result, sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    worker()
