"""HL7 orders over MLLP, acknowledged when they are durable. Sizes: --size connections=8

Each message (ORM^O01: PID, PV1, ORC, OBR, NTE) registers a patient that nobody knew and places an order. A
connection sends the next one when it has the acknowledgement of the one before, as interfaces do. Afterwards
the archive is opened and the orders are counted: as many as were acknowledged with AA, or the run has failed.

Cost of an order: 0.5 KB come in, 0.1 KB go out. Three records (patient 0.6 KB, order 1 KB, that the message
was taken 0.3 KB) with 24 lookup keys of 36 bytes, a counter, and two events of the journal; one fact of 2.4
KB in the ledger. One transaction; a commit holds those that wait when its turn comes (four, where two
workers have four connections each), and costs one write and sync of the ledger, and the pages that the keys
lie in: 4 KB each, eight to thirty an order. What the sender takes of the same cores is a figure of its own.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from benchmarks import archives, bars
from benchmarks.bars import Figure, Say, Settings
from benchmarks.peers.ours import Hounsfield
from benchmarks.processes import cpu_seconds, wait_idle
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.records import Change, Planned
from hounsfield.ris_plugin.records.base import Code
from hounsfield.ris_plugin.records.catalog import PROCEDURE, Procedure
from hounsfield.ris_plugin.records.orders import ORDER

AT_LEAST = 500.0
EXPERIMENT = "hl7-orders"
WARM_SECONDS = 0.5
ANSWER_SECONDS = 30.0
FAMILIES = (
    "ANDERSON", "BAUER", "CHEN", "DIALLO", "EVANS", "FISCHER", "GARCIA", "HUSSEIN", "IVANOVA", "JONES",
)  # fmt: skip
GIVEN = ("ADA", "BRUNO", "CLARA", "DAVID", "ELENA", "FELIX", "GRETA", "HUGO", "IRIS", "JONAS")
ORDER_TEXT = (
    "MSH|^~\\&|HIS|HOSP|HOUNSFIELD|RAD|20261122120000||ORM^O01^ORM_O01|{id}|P|2.5.1||||||UNICODE UTF-8\r"
    "PID|1||{id}^^^HOSP^MR||{family}^{given}^^^^^L||19{year:02}0{month}1{day}|F|||1 RAY STREET^^TOWN||"
    "555 {number}\r"
    "PV1|1|O|RAD^1^2|||||REF1^REFERRER^RHEA|||||||||||{id}^^^HOSP\r"
    "ORC|NW|{id}^HIS||||||||||ORD1^ORDERER^OTTO\r"
    "OBR|1|{id}^HIS||CTHEAD^CT of the head^99B|||||||||headache for days|||ORD1^ORDERER^OTTO"
    "|||||||||||1^^^20261123^^R||||^headache\rNTE|1||walks with a stick\r"
)


@dataclass(slots=True)
class _Run:
    acknowledged: int = 0
    counted: int = 0
    seconds: float = 0.0
    refused: list[bytes] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    """Of the sender."""


def run(settings: Settings, say: Say) -> list[Figure]:
    """One server, ``rounds`` runs, each of patients of its own."""
    connections = settings.size("connections", 8, 8)
    rates: list[float] = []
    cpu: list[float] = []
    sender_cpu: list[float] = []
    median: list[float] = []
    total = 0
    with archives.folder(settings.scratch) as place:
        with archives.stores_in(place) as stores:
            _offer(stores)
        with _server(place, settings.scratch) as peer:
            port = _port(peer)
            for number in range(settings.rounds):
                wait_idle(peer.pid)
                before = cpu_seconds(peer.pid)
                done = _send(port, connections, settings.seconds, f"{number}-{int(time.time())}")
                if done.refused:
                    raise RuntimeError(f"not acknowledged with AA: {done.refused[0]!r}")
                cpu.append(1000 * (cpu_seconds(peer.pid) - before) / done.acknowledged)
                sender_cpu.append(1000 * done.cpu_seconds / done.acknowledged)
                rates.append(done.counted / done.seconds)
                median.append(sorted(done.latency_ms)[len(done.latency_ms) // 2])
                total += done.acknowledged
                say(f"round {number + 1}: {rates[-1]:,.0f} orders/s, {cpu[-1]:.2f} ms CPU each")
        with archives.stores_in(place) as stores, stores.store.snapshot() as snapshot:
            kept = sum(1 for _ in stores.plugin_records.view("ris", snapshot).every(ORDER))
    if kept != total:
        raise RuntimeError(f"{total} orders were acknowledged, {kept} are there")
    what = f"HL7 orders of new patients, {connections} connections"
    return [
        Figure(EXPERIMENT, f"{what}, acknowledged durable", rates, "orders/s", at_least=AT_LEAST),
        Figure(EXPERIMENT, f"{what}, CPU", cpu, "ms/order"),
        Figure(EXPERIMENT, f"{what}, the sender's CPU", sender_cpu, "ms/order"),
        Figure(EXPERIMENT, f"{what}, round trip", median, "ms"),
    ]


def _offer(stores: Stores) -> None:
    def plan(change: Change) -> None:
        code = Code(value="CTHEAD", scheme="99B", meaning="CT of the head")
        change.put(PROCEDURE, change.new_id(), Procedure(code=code, modality="CT", body_part="HEAD"))

    stores.plugin_records.commit([Planned("ris", plan)], 1)


def _server(place: Path, scratch: Path | None) -> Hounsfield:
    arguments = (
        "--set", f"keys.master_key=file:{place / 'master.key'}",
        "--set", 'plugins.ris.hl7_listeners=[{name="his", port=0, issuer="HOSP"}]',
    )  # fmt: skip
    members = {"_data": place / "data", "arguments": arguments}
    return cast(Hounsfield, type("WithInterface", (Hounsfield,), members)(scratch=scratch))


def _port(peer: Hounsfield) -> int:
    status = peer.asked("status")
    assert status is not None
    return next(int(one["port"]) for one in status["listeners"] if one["kind"] == "ris.his")


def _messages(run: str, connection: int) -> Iterator[tuple[bytes, bytes]]:
    """Control ids, and messages as they go over the wire."""
    number = 0
    while True:
        name = f"{run}-{connection}-{number}"
        text = ORDER_TEXT.format(
            id=name, number=number, family=FAMILIES[number % 10], given=GIVEN[number // 10 % 10],
            year=number % 90 + 10, month=number % 9 + 1, day=number % 9 + 1,
        )  # fmt: skip
        yield name.encode(), b"\x0b" + text.encode() + b"\x1c\r"
        number += 1


def _send(port: int, connections: int, seconds: float, name: str) -> _Run:
    """Keep one message under way on each connection; what came back after the first half second counts."""
    done = _Run()
    cpu_before = time.process_time()
    with selectors.DefaultSelector() as selector:
        for number in range(connections):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            messages = _messages(name, number)
            control_id, data = next(messages)
            selector.register(sock, selectors.EVENT_READ, [messages, control_id, time.perf_counter()])
            sock.sendall(data)
        began = time.perf_counter()
        end = began + WARM_SECONDS + seconds
        open_ = connections
        while open_:
            ready = selector.select(ANSWER_SECONDS)
            if not ready:
                raise RuntimeError("no acknowledgement for half a minute")
            for key, _ in ready:
                sock = cast(socket.socket, key.fileobj)
                messages, control_id, sent = key.data
                answer = sock.recv(4096)
                now = time.perf_counter()
                if b"MSA|AA|" + control_id + b"\r" not in answer:
                    done.refused.append(answer)
                done.acknowledged += 1
                if began + WARM_SECONDS <= now <= end:
                    done.counted += 1
                    done.latency_ms.append(1000 * (now - sent))
                if now > end or done.refused:
                    selector.unregister(sock)
                    sock.close()
                    open_ -= 1
                    continue
                key.data[1], data = next(messages)
                key.data[2] = now
                sock.sendall(data)
        done.seconds = seconds
    done.cpu_seconds = time.process_time() - cpu_before
    return done


if __name__ == "__main__":
    sys.exit(bars.main(run, __doc__))
