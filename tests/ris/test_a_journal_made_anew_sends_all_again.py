"""Danger: after a reindex receivers are sent what they had already, or what was before they were there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from hounsfield.archive.engine.stable import EVENT_STABLE as STABLE
from hounsfield.archive.index.rows import Event
from hounsfield.archive.plugins import GoneError
from hounsfield.ris_plugin import orders
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.hl7.telling import consumer
from hounsfield.ris_plugin.journal import PAGE_EVENTS
from hounsfield.ris_plugin.patients import register
from hounsfield.ris_plugin.reacting.images import consumers
from hounsfield.ris_plugin.records.base import Code
from hounsfield.ris_plugin.records.catalog import PROCEDURE, Procedure
from hounsfield.ris_plugin.records.messages import MESSAGE
from hounsfield.ris_plugin.records.patients import Identifier, Patient
from hounsfield.ris_plugin.records.performed import MISMATCH, TRACKED
from hounsfield.ris_plugin.settings import Hl7Destination, RisSettings
from ris.conftest import CLERK, REFERRER
from ris.following import Department, department

HOUR_NS = 3600 * 10**9


async def an_order(made: Department) -> None:
    def plan(change: Any) -> None:
        if change.first(PROCEDURE, "value", "CTHEAD") is None:
            code = Code(value="CTHEAD", scheme="99H", meaning="CT of the head")
            change.put(PROCEDURE, change.new_id(), Procedure(code=code, modality="CT", needs_protocol=False))
        number = f"P{change.count('test patients')}"
        patient = Patient(identifiers=(Identifier(value=number, issuer="HOSP"),), name="DOE^JANE", sex="F")
        who = register(change, CLERK, patient)
        orders.place(change, REFERRER, made.ris.settings, orders.NewOrder(patient=who, procedure="CTHEAD"))

    await made.commit(plan)


def messages(made: Department, destination: str) -> int:
    return sum(one.destination == destination for _, one in made.look(lambda view: list(view.every(MESSAGE))))


async def test_who_was_not_there_yet_is_not_sent_what_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (Hl7Destination(name=name, host="127.0.0.1", port=1) for name in ("old", "new"))
    settings = RisSettings(hl7_destinations=(old,))
    async with department(tmp_path / "data", settings=settings) as made:
        with monkeypatch.context() as clock:
            now = time.time_ns
            place = "hounsfield.archive.engine.record_keeping.time.time_ns"
            clock.setattr(place, lambda: now() - 5 * HOUR_NS)
            await an_order(made)
            await made.catch_up(consumer(made.ris))
        before = messages(made, "old")
        assert before
        made.ris = Ris(made.ris.archive, structs.replace(settings, hl7_destinations=(old, new)))
        await an_order(made)
        await made.catch_up(consumer(made.ris))
        assert messages(made, "new") == messages(made, "old") - before > 0
        told = messages(made, "new")
        gone: list[str] = []
        events = made.ris.archive.events

        async def made_anew(after: str, limit: int) -> Any:
            if after and limit == PAGE_EVENTS and not gone:
                gone.append(after)
                raise GoneError("gone")
            return await events(after, limit)

        monkeypatch.setattr(made.ris.archive, "events", made_anew)
        await an_order(made)
        await made.catch_up(consumer(made.ris))
        assert gone
        assert messages(made, "new") == 2 * told
        assert messages(made, "old") == before + 2 * told


async def test_a_study_of_before_that_is_told_quiet_anew_is_nobodys_to_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that was made anew has each study be quiet once more, of years before there was a RIS too."""
    async with department(tmp_path / "data") as made:

        async def quiet(study: str) -> None:
            told = Event(STABLE, time.time_ns(), {"study": study, "since": 1})
            await made.engine.read(made.stores.journal.commit_events, [told])

        follows = consumers(made.ris)[0]
        with monkeypatch.context() as clock:
            now = time.time_ns
            clock.setattr(time, "time_ns", lambda: now() - 5 * HOUR_NS)
            old = await made.store(PatientID="OLD")
        await made.catch_up(follows)
        await quiet(old.study_uid)
        new = await made.store(PatientID="NEW")
        await quiet(new.study_uid)
        await made.catch_up(follows)
        put_up = made.look(lambda view: [one.study_uid for _, one in view.every(MISMATCH)])
        assert put_up == [new.study_uid]
        tracked = made.look(lambda view: [(one.study_uid, one.quiet) for _, one in view.every(TRACKED)])
        assert tracked == [(new.study_uid, True)]
