"""A C-STORE load generator that is several times faster than any server under it.

One process per association. Objects are framed into PDUs once (`PreparedObject`); per object only the slots
of `studies.Template` and the UID in the command are overwritten, then everything goes out in one send. Each
association waits for the response to its object before it sends the next, as most senders do; with a
`window` it asks for an asynchronous one (PS3.7 D.3.3.3) and has so many objects outstanding.

    python -m benchmarks.cstore_load 127.0.0.1 11112 --called HOUNSFIELD --associations 8 --seconds 10
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.figures import due, together
from benchmarks.processes import Fleet, worker_input, worker_ready
from benchmarks.upper_layer import (
    ABORT,
    FRAGMENT_OVERHEAD,
    P_DATA,
    PDU_HEADER,
    PDV_HEADER,
    PDV_OVERHEAD,
    RELEASE_RQ_PDU,
    RefusedError,
    associate_request,
    command_pdu,
    granted_window,
    parse_accept,
    parse_command,
    store_request,
)

if TYPE_CHECKING:
    from benchmarks.studies import Template

EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
CONTEXT_ID = 1
# Some acceptors announce no limit (0); a fragment is then this long.
MAX_PDU_OURS = 262_144
RESPONSE_TIMEOUT_SECONDS = 60.0
ASSOCIATE_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent to whom. Each association stops after `count` objects or `seconds`, whichever comes
    first.
    """

    host: str
    port: int
    called_ae: str = "ANY-SCP"
    calling_ae: str = "HFBENCH"
    associations: int = 1
    seconds: float = 5.0
    count: int = 1_000_000
    first: int = 0  # where to go on in a run that was begun before
    kind: str = "ct"
    variants: int = 4
    study_per_object: bool = False
    instances_per_series: int = 500
    max_pdu: int = MAX_PDU_OURS
    run: int = 0  # 0: drawn at random, so that no UID was ever seen
    window: int = 1
    interval_s: float = 0.0  # an object is due so long after the one before, and timed from when it is due
    untimed_s: float = 0.0  # what was sent so early is acknowledged, but not counted


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What came back. `acknowledged` counts success and warning statuses; everything else is in
    `failures`.
    """

    acknowledged: int
    warnings: int
    failures: dict[str, int]
    seconds: float
    rate: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    bytes_each: int
    max_pdu: int
    run: int
    studies: list[int] = field(default_factory=list)  # instances acknowledged, by association


class PreparedObject:
    """A C-STORE request and its data set, framed for one maximum PDU length, ready to be patched and sent."""

    def __init__(self, template: Template, max_pdu: int) -> None:
        self._chunk = chunk = max_pdu - PDV_OVERHEAD
        uid = "0" * 44
        self._command = bytearray(command_pdu(CONTEXT_ID, store_request(template.sop_class_uid, uid, 1)))
        self._uid_at = self._command.index(uid.encode())
        self._message_at = self._command.index(b"\x10\x01\x02\x00\x00\x00") + 6
        framed = bytearray(self._command)
        self._base = len(framed)
        data = template.data
        for start in range(0, len(data), chunk):
            piece = data[start : start + chunk]
            last = start + chunk >= len(data)
            framed += PDU_HEADER.pack(P_DATA, len(piece) + PDV_OVERHEAD)
            framed += PDV_HEADER.pack(len(piece) + 2, CONTEXT_ID, 2 if last else 0)
            framed += piece
        self.framed = framed
        self.view = memoryview(framed)
        self._slots = [
            (name, place) for name, offset, length in template.slots for place in self._places(offset, length)
        ]

    def _places(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """(position in `framed`, from, to) for each fragment that a slot touches."""
        places = []
        done = 0
        while done < length:
            at = offset + done
            number, within = divmod(at, self._chunk)
            take = min(length - done, self._chunk - within)
            position = self._base + number * (self._chunk + FRAGMENT_OVERHEAD) + FRAGMENT_OVERHEAD + within
            places.append((position, done, done + take))
            done += take
        return places

    def patch(self, values: dict[str, bytes], message_id: int) -> None:
        """Makes it the instance with these slot values."""
        framed = self.framed
        for name, (position, start, stop) in self._slots:
            framed[position : position + stop - start] = values[name][start:stop]
        framed[self._uid_at : self._uid_at + 44] = values["sop_instance_uid"]
        framed[self._message_at : self._message_at + 2] = message_id.to_bytes(2, "little")


class Association:
    """A requestor's association over a blocking socket: exactly what a C-STORE needs."""

    def __init__(self, load: Load, sop_class_uid: str) -> None:
        self._socket = socket.create_connection((load.host, load.port), timeout=ASSOCIATE_TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(65536)
        self._view = memoryview(self._buffer)
        self._have = 0
        contexts = [(CONTEXT_ID, sop_class_uid, [EXPLICIT_VR_LITTLE_ENDIAN])]
        self._socket.sendall(
            associate_request(
                called_ae=load.called_ae,
                calling_ae=load.calling_ae,
                contexts=contexts,
                max_pdu=len(self._buffer) - 6,
                window=load.window,
            )
        )
        answer = self._pdu()
        accepted, maximum = parse_accept(answer)
        self._socket.settimeout(RESPONSE_TIMEOUT_SECONDS)
        if accepted.get(CONTEXT_ID) != EXPLICIT_VR_LITTLE_ENDIAN:
            raise RefusedError(f"presentation context not accepted for SOP class {sop_class_uid}")
        self.max_pdu = min(maximum or load.max_pdu, load.max_pdu)
        self.window = min(load.window, granted_window(answer))

    def store(self, framed: memoryview, message_id: int) -> int:
        """Sends one framed object, returns the status of its response. Raises RefusedError or OSError."""
        self.send(framed)
        answered, status = self.response()
        if answered != message_id:
            raise RefusedError("the response answers another message")
        return status

    def send(self, framed: memoryview) -> None:
        """Sends one framed object. Raises OSError."""
        self._socket.sendall(framed)

    def response(self) -> tuple[int, int]:
        """The next response: the message it answers, and its status. Raises RefusedError or OSError."""
        command = b""
        while True:
            pdu = self._pdu()
            if pdu[0] != P_DATA:
                name = "A-ABORT" if pdu[0] == ABORT else f"PDU type {pdu[0]}"
                raise RefusedError(f"{name} instead of a C-STORE response")
            offset = 6
            while offset < len(pdu):
                length, _, control = PDV_HEADER.unpack_from(pdu, offset)
                command += pdu[offset + 6 : offset + 4 + length]
                offset += 4 + length
                if control == 3:
                    values = parse_command(command)
                    return (
                        int.from_bytes(values.get(0x0120, b""), "little"),
                        int.from_bytes(values[0x0900], "little"),
                    )

    def release(self) -> None:
        """Orderly release; errors at this point lose nothing and are ignored."""
        try:
            self._socket.sendall(RELEASE_RQ_PDU)
            self._socket.settimeout(2.0)
            self._pdu()
        except (OSError, RefusedError):
            pass
        self._socket.close()

    def _pdu(self) -> bytes:
        while True:
            if self._have >= 6:
                size = 6 + int.from_bytes(self._buffer[2:6], "big")
                if size > len(self._buffer):
                    raise RefusedError(f"a PDU of {size} bytes, more than was negotiated")
                if self._have >= size:
                    pdu = bytes(self._view[:size])
                    self._buffer[: self._have - size] = self._buffer[size : self._have]
                    self._have -= size
                    return pdu
            got = self._socket.recv_into(self._view[self._have :])
            if got == 0:
                raise RefusedError("connection closed by the peer")
            self._have += got


def run_load(load: Load) -> LoadReport:
    """Runs the load and returns its report. Failures are counted, never hidden; nothing is raised for
    them.
    """
    from benchmarks.studies import Kind, template

    run = load.run or secrets.randbelow(10**14 - 1) + 1
    templates = [template(Kind(load.kind), variant=number) for number in range(load.variants)]
    inputs = [{"load": asdict(load), "number": n, "run": run} for n in range(load.associations)]
    timeout = load.seconds + 2 * RESPONSE_TIMEOUT_SECONDS
    with Fleet("benchmarks.cstore_load", inputs, shared=templates) as fleet:
        parts = fleet.run(timeout_seconds=timeout)
    return _combine(run, parts, len(templates[0].data))


def _combine(run: int, parts: list[dict[str, Any]], bytes_each: int) -> LoadReport:
    studies = [len(part["latencies_ns"]) for part in parts]
    return LoadReport(
        **together(parts),
        acknowledged=sum(studies),
        warnings=sum(part["warnings"] for part in parts),
        bytes_each=bytes_each,
        max_pdu=max((part["max_pdu"] for part in parts), default=0),
        run=run,
        studies=studies,
    )


def worker() -> None:
    """One association: reads what to do, says ready, waits for the others, sends, reports."""
    from benchmarks.studies import Identity

    task, templates = worker_input()
    load, number, run = Load(**task["load"]), task["number"], task["run"]
    failures: dict[str, int] = {}
    latencies: list[int] = []
    warnings = 0
    association = None
    began = ended = 0.0
    max_pdu = 0
    try:
        association = Association(load, templates[0].sop_class_uid)
        max_pdu = association.max_pdu
        prepared = [PreparedObject(template, max_pdu) for template in templates]
    except (OSError, RefusedError) as error:
        failures[f"association: {error}"] = 1
    worker_ready()
    clock = time.monotonic_ns
    began_ns = clock()
    began = ended = time.monotonic()
    stop_ns = began_ns + int(load.seconds * 1e9)
    timed_ns = began_ns + int(load.untimed_s * 1e9)
    sent: dict[int, int] = {}  # when, by message

    def take_response() -> None:
        nonlocal ended, warnings
        assert association
        message_id, status = association.response()
        if message_id not in sent:
            raise RefusedError("the response answers another message")
        start = sent.pop(message_id)
        if status == 0 or status & 0xF000 == 0xB000:
            if start >= timed_ns:
                latencies.append(clock() - start)
            ended = time.monotonic()
            warnings += status != 0
        else:
            failures[f"status {status:04X}"] = failures.get(f"status {status:04X}", 0) + 1

    try:
        for index in range(load.count if association else 0):
            identity = identity_of(Identity, load, run, number, load.first + index)
            message_id = index % 65535 + 1
            chosen = prepared[index % len(prepared)]
            chosen.patch(identity.values(), message_id)
            start = due(began_ns, index, load.interval_s)
            if start >= stop_ns:
                break
            association.send(chosen.view)  # type: ignore[union-attr]
            sent[message_id] = start
            if len(sent) >= association.window:  # type: ignore[union-attr]
                take_response()
        while sent:
            take_response()
    except (OSError, RefusedError) as error:
        failures[f"lost: {error}"] = 1
    if association:
        association.release()
    result = {
        "failures": failures,
        "latencies_ns": latencies,
        "warnings": warnings,
        "began": began,
        "ended": ended,
        "max_pdu": max_pdu,
    }
    json.dump(result, sys.stdout)
    sys.stdout.write("\n")


def identity_of(make: Any, load: Load, run: int, association: int, index: int) -> Any:
    """The identity of the `index`-th object of an association: its own study, or a study for every object."""
    if load.study_per_object:
        study = association * 10_000_000 + index
        return make(run, study, study, 0, 0)
    series, instance = divmod(index, load.instances_per_series)
    return make(run, association, association, series, instance)


def main() -> None:
    """Runs one load and prints its report as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cstore_load", description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--called", default="ANY-SCP")
    parser.add_argument("--associations", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--count", type=int, default=1_000_000, help="per association")
    parser.add_argument("--kind", default="ct")
    parser.add_argument("--study-per-object", action="store_true")
    parser.add_argument("--window", type=int, default=1, help="objects outstanding per association")
    arguments = parser.parse_args()
    report = run_load(
        Load(
            host=arguments.host,
            port=arguments.port,
            called_ae=arguments.called,
            associations=arguments.associations,
            seconds=arguments.seconds,
            count=arguments.count,
            kind=arguments.kind,
            study_per_object=arguments.study_per_object,
            window=arguments.window,
            run=random.SystemRandom().randrange(1, 10**14),
        )
    )
    print(json.dumps(asdict(report), indent=2))
    if report.failures:
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker()
    else:
        main()
