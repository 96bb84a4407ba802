"""Danger: an order becomes no image, or a report goes nowhere; or either happens twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest
from benchmarks.day import (
    STEPS,
    Day,
    all_images_are_there,
    images_are_sent,
    it_is_signed,
    play,
    the_report_is_received,
)
from benchmarks.day_peers import Api, Receiver

from benchmarks import department
from hounsfield.archive.app.asking import ask
from support.server import ArchiveServer, archive_server

pytestmark = pytest.mark.peer("findscu", "dcmsend")


@contextmanager
def department_of(folder: Path, workers: int) -> Iterator[tuple[ArchiveServer, Receiver, dict[str, str]]]:
    """A furnished department whose server runs, and the receiver of its reports."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = department.tokens_file(folder / "tokens")
    with (
        Receiver() as receiver,
        archive_server(
            folder / "archive", *department.settings(folder / "tokens", receiver.port), workers=workers
        ) as server,
    ):
        department.furnish(partial(ask, server.data / "control.sock"))
        yield server, receiver, tokens
        errors = [line for line in server.log_text().splitlines() if '"level": "error"' in line]
        assert all('"signal SIGKILL"' in line for line in errors), errors


def day_in(server: ArchiveServer, receiver: Receiver, tokens: dict[str, str], folder: Path) -> Day:
    host, port = server.address("http")
    return Day(
        api=Api(f"http://{host}:{port}", tokens),
        dicom=server.address("dicom"),
        hl7=server.address("ris.his"),
        receiver=receiver,
        folder=folder,
        procedure=department.PROCEDURE,
    )


@pytest.mark.parametrize("workers", [1, 4])
def test_a_day(tmp_path: Path, workers: int) -> None:
    played: list[str] = []
    with department_of(tmp_path, workers) as (server, receiver, tokens):
        day = day_in(server, receiver, tokens, tmp_path)
        play(day, lambda title, told: played.append(f"{title}: {told}"))
        assert len(played) == len(STEPS)
        check_once(day)
        assert server.terminate() == 0


def test_whoever_leads_is_killed_in_the_middle(tmp_path: Path) -> None:
    """Each of the four once, before what is done by who leads: tracking, putting up for reading, sending."""
    with department_of(tmp_path, 4) as (server, receiver, tokens):
        day = day_in(server, receiver, tokens, tmp_path)
        victims = {each["worker"]: each["pid"] for each in server.status()["workers"]}
        before = {images_are_sent, all_images_are_there, it_is_signed, the_report_is_received}
        for step in STEPS:
            if step.play in before:
                psutil.Process(victims.popitem()[1]).kill()
            play(day, lambda title, told: None, [step])
        assert victims == {}
        check_once(day)
        assert server.terminate() == 0


def check_once(day: Day) -> None:
    """One order, one report, one message of it, one PDF."""
    found = day.api.ask("clerk", "GET", "/orders", placer=day.placer, placer_issuer="HIS")["items"]
    assert [one["state"] for one in found] == ["completed"]
    reports = day.api.ask("radiologist", "GET", "/reports", study=day.study)["items"]
    assert [len(one["versions"]) for one in reports] == [1]
    assert [one["priors"] for one in reports] == [[day.prior]]
    assert len(day.received()) == 1
    assert len(day.documents()) == 1
