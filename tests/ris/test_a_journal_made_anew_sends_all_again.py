"""Danger: after a reindex receivers are sent what they had already, or what was before they were there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from hounsfield.archive.plugins import GoneError
from hounsfield.ris_plugin import orders
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.hl7.telling import consumer
from hounsfield.ris_plugin.journal import PAGE_EVENTS
from hounsfield.ris_plugin.patients import register
from hounsfield.ris_plugin.records.base import Code
from hounsfield.ris_plugin.records.catalog import PROCEDURE, Procedure
from hounsfield.ris_plugin.records.messages import MESSAGE
from hounsfield.ris_plugin.records.patients import Identifier, Patient
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
