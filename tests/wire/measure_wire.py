"""Measures the wire package alone, without sockets: ``python tests/wire/measure_wire.py``."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

from hounsfield.archive.wire import (
    NEED_DATA,
    AssociateAccept,
    AssociateRequest,
    Association,
    CStoreRequest,
    CStoreResponse,
    DataFragment,
    DatasetFragment,
    MessageReader,
    MessageWriter,
    PresentationContext,
    PresentationResult,
    Role,
    UserInformation,
    decode_command,
    encode_command,
)

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
UID = "1.2.826.0.1.3680043.8.498.10000000000000000000000000000000001"
OBJECT_BYTES = 512 * 1024
RECEIVED_BYTES = 256 * 1024
REQUEST = CStoreRequest(1, CT, UID)
RESPONSE = CStoreResponse(1, 0, CT, UID)


def _pair(pdu_bytes: int) -> tuple[Association, Association]:
    user = UserInformation(max_pdu_length=pdu_bytes)
    contexts = (PresentationContext(1, CT, (EXPLICIT,)),)
    request = AssociateRequest(called_ae="A", calling_ae="B", contexts=contexts, user=user)
    results = (PresentationResult(1, 0, EXPLICIT),)
    accept = AssociateAccept(called_ae="A", calling_ae="B", contexts=results, user=user)
    requestor, acceptor = Association(Role.REQUESTOR), Association(Role.ACCEPTOR)
    acceptor.receive_data(b"".join(requestor.send(request)))
    acceptor.next_event()
    requestor.receive_data(b"".join(acceptor.send(accept)))
    requestor.next_event()
    return requestor, acceptor


def _median_seconds(work: Callable[[], object], times: int) -> float:
    samples = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(times):
            work()
        samples.append((time.perf_counter() - start) / times)
    return statistics.median(samples)


def main() -> int:
    data = os.urandom(OBJECT_BYTES)
    out = sys.stdout.write
    for pdu_bytes in (16 * 1024, 128 * 1024, 256 * 1024):
        requestor, acceptor = _pair(pdu_bytes)
        writer, reader = MessageWriter(requestor), MessageReader()
        stream = memoryview(b"".join(b for batch in writer.message(1, REQUEST, [data]) for b in batch))

        def receive(
            acceptor: Association = acceptor, reader: MessageReader = reader, stream: memoryview = stream
        ) -> None:
            position, got = 0, 0
            while position < len(stream):
                buffer = acceptor.receive_buffer()
                count = min(len(buffer), len(stream) - position, RECEIVED_BYTES)
                buffer[:count] = stream[position : position + count]  # stands for recv_into
                position += count
                acceptor.received(count)
                while (event := acceptor.next_event()) is not NEED_DATA:
                    assert isinstance(event, DataFragment)
                    message = reader.receive(event)
                    if isinstance(message, DatasetFragment):
                        got += len(message.data)
            assert got == OBJECT_BYTES

        target = bytearray(len(stream))

        def copy(target: bytearray = target, stream: memoryview = stream) -> None:
            target[:] = stream

        def send(writer: MessageWriter = writer) -> None:
            for _ in writer.message(1, REQUEST, [data]):
                pass

        received, copied, sent = (_median_seconds(work, 400) for work in (receive, copy, send))
        out(
            f"PDUs of {pdu_bytes >> 10:3} KiB: receive {received * 1e6:6.1f} µs an object "
            f"({OBJECT_BYTES / received / 1e9:4.1f} GB/s; of which the copy {copied * 1e6:.1f} µs), "
            f"send {sent * 1e6:5.1f} µs\n"
        )
    _, acceptor = _pair(RECEIVED_BYTES)
    answers, raw = MessageWriter(acceptor), encode_command(REQUEST)
    out(f"C-STORE-RQ decode {_median_seconds(lambda: decode_command(raw), 5000) * 1e6:.1f} µs\n")
    out(f"C-STORE-RSP encode {_median_seconds(lambda: answers.command(1, RESPONSE), 5000) * 1e6:.1f} µs\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
