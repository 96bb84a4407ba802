"""A desk: an archive's stores, in which actions of the RIS are done one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.records import Planned
from hounsfield.archive.index.rows import Event
from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.records.base import NS, Code
from hounsfield.ris_plugin.records.catalog import PROCEDURE, Procedure
from hounsfield.ris_plugin.records.patients import Identifier, Patient
from hounsfield.ris_plugin.settings import RisSettings
from support.archives import stores_in

Result = TypeVar("Result")
NOON_NS = 1_795_348_800 * NS  # 2026-11-22T12:00:00Z


def actor(*roles: str, person: str = "") -> Actor:
    return Actor(person or roles[0], frozenset(roles))


CLERK = actor(Role.CLERK)
TECHNOLOGIST = actor(Role.TECHNOLOGIST)
RADIOLOGIST = actor(Role.RADIOLOGIST)
TRAINEE = actor(Role.TRAINEE)
REFERRER = actor(Role.REFERRER)
ADMINISTRATOR = actor(Role.ADMINISTRATOR)
INTERFACE = actor(Role.INTERFACE, person="HIS")
MODALITY = actor(Role.MODALITY, person="CT1")


@dataclass
class Desk:
    """Does actions, each in a transaction of its own, at the moment ``now_ns``."""

    stores: Stores
    settings: RisSettings = field(default_factory=RisSettings)
    now_ns: int = NOON_NS

    def commit(self, plan: Callable[[Change], Result]) -> Result:
        (result,) = self.stores.plugin_records.commit([Planned("ris", plan)], self.now_ns)
        if isinstance(result, Exception):
            raise result
        done: Result = result
        return done

    def do(self, action: Callable[..., Result], who: Actor, *arguments: Any, **more: Any) -> Result:
        """``action(change, who, …)`` in a transaction."""
        return self.commit(lambda change: action(change, who, *arguments, **more))

    @contextmanager
    def view(self) -> Iterator[View]:
        with self.stores.store.snapshot() as snapshot:
            yield self.stores.plugin_records.view("ris", snapshot)

    def look(self, read: Callable[..., Result], *arguments: Any, **more: Any) -> Result:
        """``read(view, …)``."""
        with self.view() as view:
            return read(view, *arguments, **more)

    def said(self) -> list[Event]:
        """Everything that was told so far."""
        with self.stores.store.snapshot() as snapshot:
            events = self.stores.journal.read(snapshot, 0, 1 << 20)
        return [event for _, event in events if event.kind.startswith("ris.")]

    # ------------------------------------------------------------ what most tests need

    def patient(self, number: str = "P1", name: str = "DOE^JANE", **fields: Any) -> str:
        from hounsfield.ris_plugin.patients import register

        given = {"birth_day": "19700101", "sex": "F", **fields}
        patient = Patient(identifiers=(Identifier(value=number, issuer="HOSP"),), name=name, **given)
        return self.do(register, CLERK, patient)

    def procedure(self, value: str = "CTHEAD", modality: str = "CT", **fields: Any) -> Procedure:
        given = {"body_part": "HEAD", "needs_protocol": False, **fields}
        procedure = Procedure(
            code=Code(value=value, scheme="99H", meaning=value.title()), modality=modality, **given
        )
        self.commit(lambda change: change.put(PROCEDURE, change.new_id(), procedure))
        return procedure

    def order(self, patient: str, procedure: str = "CTHEAD", **fields: Any) -> str:
        from hounsfield.ris_plugin.orders import NewOrder, place

        return self.do(
            place, REFERRER, self.settings, NewOrder(patient=patient, procedure=procedure, **fields)
        )


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with stores_in(tmp_path / "data") as stores:
        yield Desk(stores)


@pytest.fixture(scope="module")
def shared_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    """For properties, whose examples begin with patients of their own."""
    with stores_in(tmp_path_factory.mktemp("ris") / "data") as stores:
        yield stores
