"""Ours beside tuned Orthanc: both hold the same objects and are asked the same, in turn.

What an answer says is compared before anything is measured; while it is measured, every status and length is
checked. Ratios are of pairs: within a round both are asked one after the other, in an order that turns.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.bars import Figure, Say, Settings
from benchmarks.cstore_load import Load, run_load
from benchmarks.figures import median
from benchmarks.frames import asked
from benchmarks.http_load import Client, Target, build_request
from benchmarks.peers.base import Peer, PeerError
from benchmarks.peers.ours import Hounsfield
from benchmarks.peers.servers import Orthanc
from benchmarks.processes import wait_idle
from benchmarks.results import OURS, paired_ratios

CLIENTS = (1, 8)
CLIENTS_QUICK = (1,)
#: So many connections reach every worker process of a server with two or three, all but surely.
CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, whole: what is compared."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str:
        """A header's value, empty when there is none."""
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name:
                return value.strip()
        return ""


@dataclass(frozen=True, slots=True)
class Question:
    """What is measured: these URLs, asked at random; or, with ``each``, so many in order by every client.

    ``targets`` of a server, a round (from 0) and so many clients. ``bars``: ours over Orthanc in answers a
    second, by the number of clients. ``p99_ms``: at most so much for ours at one client. An answer counts as
    ``holds`` of ``unit``.
    """

    what: str
    targets: Callable[[Peer, int, int], Sequence[Target]]
    bars: Mapping[int, float] = field(default_factory=dict)
    p99_ms: float | None = None
    each: Mapping[int, int] = field(default_factory=dict)
    unit: str = "answers"
    holds: int = 1


def bar(ratio: float) -> dict[int, float]:
    """The same bar for every number of clients."""
    return dict.fromkeys(CLIENTS, ratio)


@contextmanager
def filled(settings: Settings, say: Say, load: Load) -> Iterator[tuple[list[Peer], Load]]:
    """Both servers, with what ``load`` sends over its associations: the same objects of the same UIDs."""
    load = replace(load, run=secrets.randbelow(10**13) + 1, seconds=3600.0)
    with ExitStack() as stack:
        peers: list[Peer] = [stack.enter_context(Hounsfield(scratch=settings.scratch))]
        if Orthanc.missing() is None:
            peers.append(stack.enter_context(Orthanc(scratch=settings.scratch)))
        else:
            say(f"no Orthanc to compare with: {Orthanc.missing()}")
        for peer in peers:
            where = replace(load, port=peer.endpoints.dicom_port, called_ae=peer.endpoints.ae_title)
            report = run_load(where)
            if report.acknowledged != load.associations * load.count:
                raise PeerError(
                    f"{peer.label} took {report.acknowledged} of {load.associations * load.count} objects: "
                    f"{report.failures}\n{peer.log_tail()}"
                )
            say(f"{peer.label} holds {report.acknowledged} objects")
        os.sync()
        for peer in peers:
            wait_idle(peer.pid)
        yield peers, load


def ask(peer: Peer, target: Target) -> Answer:
    """One answer. ``PeerError`` when it is none of success."""
    assert peer.endpoints.http_port
    client = Client("127.0.0.1", peer.endpoints.http_port)
    status, body, head = client.get(build_request("127.0.0.1", peer.endpoints.http_port, target))
    found = Answer(status, head, bytes(body))
    client.close()
    if status != 200:
        raise PeerError(f"{peer.label} answers {status} to {target.path}: {found.body[:300]!r}")
    return found


def read_once(peer: Peer, targets: Sequence[Target], *, connections: int = 1) -> None:
    """Ask for each once, so that all caches are as warm: on so many connections, where each worker process
    of a server has a cache of its own.
    """
    assert peer.endpoints.http_port
    clients = [Client("127.0.0.1", peer.endpoints.http_port) for _ in range(connections)]
    for target in targets:
        request = build_request("127.0.0.1", peer.endpoints.http_port, target)
        for client in clients:
            status, body, _ = client.get(request)
            if status != 200:
                raise PeerError(f"{peer.label} answers {status} to {target.path}: {bytes(body[:300])!r}")
    for client in clients:
        client.close()


def measured(
    settings: Settings,
    say: Say,
    experiment: str,
    peers: Sequence[Peer],
    questions: Sequence[Question],
    *,
    before: Callable[[Peer, int], None] | None = None,
) -> list[Figure]:
    """Each question at 1 and at 8 clients, ``rounds`` times. ``before`` runs for each server in each
    round.
    """
    clients = CLIENTS_QUICK if settings.quick else CLIENTS
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for number in range(settings.rounds):
        turn = number % len(peers)
        order = [*peers[turn:], *peers[:turn]]
        if before is not None:
            for peer in order:
                before(peer, number)
        for question in questions:
            for count in clients:
                for peer in order:
                    cell = asked(
                        peer,
                        list(question.targets(peer, number, count)),
                        question.what,
                        clients=count,
                        seconds=600.0 if question.each else settings.seconds,
                        count=question.each.get(count),
                    )
                    if cell["failures"] or not cell["completed"]:
                        raise PeerError(
                            f"{peer.label}, {question.what}: {cell['failures']}\n{peer.log_tail()}"
                        )
                    cell["round"] = number
                    cells.setdefault((question.what, count), []).append(cell)
                    say(
                        f"{question.what}, {count} at once, {peer.label}: {cell['rate']:,.1f}/s, "
                        f"p50 {cell['p50_ms']:.2f} ms, p99 {cell['p99_ms']:.2f} ms"
                    )
    return [
        figure
        for question in questions
        for count in clients
        for figure in _figures(experiment, question, count, cells[question.what, count])
    ]


def _figures(experiment: str, question: Question, clients: int, cells: list[dict[str, Any]]) -> list[Figure]:
    ours = [cell for cell in cells if cell["server"] == OURS]
    theirs = [cell for cell in cells if cell["server"] != OURS]
    title = f"{question.what}, {clients} client{'s' if clients > 1 else ''}"
    unit = f"{question.unit}/s"

    def rates(cells: list[dict[str, Any]]) -> list[float]:
        return [cell["rate"] * question.holds for cell in cells]

    figures = [Figure(experiment, title, rates(ours), unit, detail=_detail(ours))]
    if theirs:
        figures.append(Figure(experiment, f"{title}: Orthanc", rates(theirs), unit, detail=_detail(theirs)))
        ratios, least = paired_ratios(ours, theirs), question.bars.get(clients)
        figures.append(Figure(experiment, f"{title}: ours / Orthanc", ratios, "×", at_least=least))
    if question.p99_ms is not None and clients == 1:
        tails = [cell["p99_ms"] for cell in ours]
        figures.append(Figure(experiment, f"{title}: p99", tails, "ms", at_most=question.p99_ms))
    return figures


def _detail(cells: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the rounds."""
    return {
        name: round(median([cell[name] for cell in cells if cell[name] is not None]), 3)
        for name in ("p50_ms", "p99_ms", "cpu_ms_per_object")
    } | {"bytes_each": round(median([cell["body_bytes"] / cell["completed"] for cell in cells]))}
