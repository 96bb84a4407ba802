"""What one worker's memory comes to with many associations, each in the middle of a CT slice at once.

    python -m benchmarks.worker_memory [--associations 64] [--rounds 8] [--directory DIR]

In each round every association sends nine tenths of its object, waits until all others have, and sends the
rest: the most that so many senders can have in flight. One program sends for all of them.
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian

from benchmarks import upper_layer as ul
from benchmarks.large_object import (
    MULTI_FRAME_GRAYSCALE_WORD,
    LargeObject,
    memory_growth,
    memory_of,
    receive_pdu,
    server,
)

_PDU_BYTES_MAX = 256 * 1024


class Sender:
    """One association."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        contexts = [(1, MULTI_FRAME_GRAYSCALE_WORD, [ExplicitVRLittleEndian])]
        request = ul.associate_request(
            called_ae="HOUNSFIELD", calling_ae="BENCH", contexts=contexts, max_pdu=_PDU_BYTES_MAX
        )
        self._sock.sendall(request)
        ul.parse_accept(receive_pdu(self._sock))

    def send(self, one: LargeObject, barrier: threading.Barrier) -> int:
        """C-STORE it, meeting the others nine tenths of the way; the status."""
        data = b"".join(one.pieces())
        fragment = _PDU_BYTES_MAX - ul.PDV_OVERHEAD
        wire = ul.command_pdu(1, ul.store_request(MULTI_FRAME_GRAYSCALE_WORD, one.sop_uid, 1))
        for start in range(0, len(data), fragment):
            part = data[start : start + fragment]
            flags = 2 if start + fragment >= len(data) else 0
            head = ul.PDU_HEADER.pack(ul.P_DATA, len(part) + ul.PDV_OVERHEAD)
            wire += head + ul.PDV_HEADER.pack(len(part) + 2, 1, flags) + part
        most = len(wire) * 9 // 10
        self._sock.sendall(wire[:most])
        barrier.wait(60)
        self._sock.sendall(wire[most:])
        answer = ul.parse_command(receive_pdu(self._sock)[ul.FRAGMENT_OVERHEAD :])
        return int(struct.unpack("<H", answer[0x0900])[0])

    def close(self) -> None:
        self._sock.sendall(ul.RELEASE_RQ_PDU)
        receive_pdu(self._sock)
        self._sock.close()


def send_all(senders: Sequence[Sender], rounds: int) -> list[int]:
    """Every sender sends one object a round; the statuses."""
    barrier = threading.Barrier(len(senders))
    statuses: list[int] = []

    def run(sender: Sender) -> None:
        statuses.extend(sender.send(LargeObject.of(1), barrier) for _ in range(rounds))

    threads = [threading.Thread(target=run, args=(sender,)) for sender in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def main() -> None:
    """Start an archive of one worker, send, print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--associations", type=int, default=64)
    options.add_argument("--rounds", type=int, default=8)
    options.add_argument("--directory", type=Path, default=None)
    wanted = options.parse_args()
    with tempfile.TemporaryDirectory(dir=wanted.directory) as folder, server(Path(folder)) as ready:
        port = next(each["port"] for each in ready["listeners"] if each["kind"] == "dicom")
        worker = ready["worker"]
        at_start = memory_of(worker, "VmRSS")
        senders = [Sender(port) for _ in range(wanted.associations)]
        idle = memory_of(worker, "VmRSS")
        with memory_growth(worker):
            statuses = send_all(senders, wanted.rounds)
        peak, after = memory_of(worker, "VmHWM"), memory_of(worker, "VmRSS")
        anonymous = memory_of(worker, "RssAnon")
        for sender in senders:
            sender.close()
        figures = {
            "associations": wanted.associations,
            "objects": len(statuses),
            "failed": sum(status != 0 for status in statuses),
            "rss_mib": {
                "at_start": at_start >> 20,
                "associations_open": idle >> 20,
                "peak": peak >> 20,
                "after": after >> 20,
                "after_anonymous": anonymous >> 20,
            },
        }
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
