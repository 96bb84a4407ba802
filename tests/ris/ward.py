"""A department with a CT, in which things happen one by one; what follows from them is waited for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from hounsfield.archive.engine.engine import EngineOptions
from hounsfield.ris_plugin import orders, patients, tracking
from hounsfield.ris_plugin.acquisition.performed import create, update
from hounsfield.ris_plugin.acquisition.reconciling import mismatch_of
from hounsfield.ris_plugin.catalog import put_resource
from hounsfield.ris_plugin.orders import NewOrder
from hounsfield.ris_plugin.reacting import consumers
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.base import NS, Code
from hounsfield.ris_plugin.records.catalog import PROCEDURE, Procedure, Resource
from hounsfield.ris_plugin.records.orders import Order
from hounsfield.ris_plugin.records.patients import Identifier, Patient
from hounsfield.ris_plugin.records.performed import Mismatch, Tracked
from hounsfield.ris_plugin.records.reports import Report
from hounsfield.ris_plugin.schedule import steps
from hounsfield.ris_plugin.schedule.scheduling import book
from hounsfield.ris_plugin.settings import RisSettings
from ris.conftest import ADMINISTRATOR, CLERK, MODALITY, REFERRER
from ris.following import Department, department

UTC = ZoneInfo("UTC")
PEOPLE = {"P1": ("DOE^JANE", "19700101", "F"), "P2": ("ROE^RICHARD", "19551231", "M")}


@dataclass
class Ward(Department):
    """A department, whose consumers run until they have caught up with :meth:`settle`."""

    booked: int = 0

    async def settle(self) -> None:
        """Let everything follow that follows from what happened."""
        await self.catch_up(*(replace(one, pause_seconds=0) for one in consumers(self.ris)))

    async def stable(self, *studies: str) -> None:
        """Let nothing more come of studies, for so long that they are stable."""
        from hounsfield.archive.engine.stable import EVENT_STABLE
        from hounsfield.archive.index.rows import Event

        self.stores.journal.commit_events(
            [Event(EVENT_STABLE, self.ris.now_ns(), {"study": one}) for one in studies]
        )
        await self.settle()

    # ------------------------------------------------------------ people, orders

    async def patient(self, number: str = "P1", **fields: Any) -> str:
        name, birth_day, sex = PEOPLE.get(number, ("MOE^MAX", "19800229", "M"))
        given = {"name": name, "birth_day": birth_day, "sex": sex, **fields}
        one = Patient(identifiers=(Identifier(value=number, issuer="HOSP"),), **given)
        return await self.do(patients.register, CLERK, one)

    async def order(self, patient: str, *, booked: bool = True, **fields: Any) -> str:
        new = NewOrder(patient=patient, procedure="CTHEAD", **fields)
        order = await self.do(orders.place, REFERRER, self.ris.settings, new)
        if booked:
            now_ns = self.ris.now_ns() // NS * NS
            await self.do(book, CLERK, UTC, orders=[order], from_ns=now_ns + self.booked * 40 * 60 * NS)
            self.booked += 1
        return order

    def held(self, order: str) -> Order:
        return self.look(orders.get, order)

    def step_states(self, order: str) -> list[str]:
        return [step.state for _, step in self.look(steps.of_order, order)]

    # ------------------------------------------------------------ the modality

    async def begin(self, uid: str, *of: str, study: str = "", accession: str = "", number: str = "") -> None:
        """N-CREATE for the steps of orders; of none of them: unscheduled. ``study``: if another one."""
        said = Dataset()
        said.PerformedProcedureStepStatus, said.PerformedProcedureStepID = "IN PROGRESS", "P1"
        said.PerformedStationAETitle, said.Modality = "CT1", "CT"
        said.PerformedProcedureStepStartDate, said.PerformedProcedureStepStartTime = "20261122", "120500"
        said.PatientID, said.IssuerOfPatientID = number, ""
        said.ScheduledStepAttributesSequence = []
        for order in of:
            held = self.held(order)
            item = Dataset()
            item.StudyInstanceUID, item.AccessionNumber = study or held.study_uid, held.accession
            item.ScheduledProcedureStepID = next(one.number for _, one in self.look(steps.of_order, order))
            said.ScheduledStepAttributesSequence.append(item)
        if not of:
            item = Dataset()
            item.StudyInstanceUID, item.AccessionNumber, item.ScheduledProcedureStepID = study, accession, ""
            said.ScheduledStepAttributesSequence.append(item)
        await self.do(create, MODALITY, UTC, uid, said, issuer="HOSP")

    async def end(
        self, uid: str, instances: Iterable[str], *, status: str = "COMPLETED", reason: str = ""
    ) -> None:
        """N-SET: what was made."""
        said = Dataset()
        said.PerformedProcedureStepStatus = status
        said.PerformedProcedureStepEndDate, said.PerformedProcedureStepEndTime = "20261122", "121500"
        item = Dataset()
        item.SeriesInstanceUID, item.ReferencedImageSequence = "1.2.3.1", []
        for one in instances:
            image = Dataset()
            image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", one
            item.ReferencedImageSequence.append(image)
        said.PerformedSeriesSequence = [item]
        if reason:
            code = Dataset()
            code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = reason, "DCM", "why"
            said.PerformedProcedureStepDiscontinuationReasonCodeSequence = [code]
        await self.do(update, MODALITY, UTC, uid, said)

    async def send(self, order: str, count: int = 2, *, uids: Iterable[str] = (), **said: Any) -> list[str]:
        """C-STORE of images as the worklist has an order, but for what is ``said`` otherwise; their UIDs."""
        held = self.held(order)
        _, who = self.look(patients.resolve, held.patient)
        as_listed: dict[str, Any] = {
            "StudyInstanceUID": held.study_uid,
            "AccessionNumber": held.accession,
            "PatientID": who.identifiers[0].value,
            "PatientName": who.name,
            "PatientBirthDate": who.birth_day,
            "PatientSex": who.sex,
        }
        as_listed["SeriesInstanceUID"] = f"{held.study_uid[:60]}.1"
        sent = [*uids] or [str(generate_uid()) for _ in range(count)]
        for uid in sent:
            await self.store(**{**as_listed, **said, "SOPInstanceUID": uid})
        return sent

    # ------------------------------------------------------------ what became of it

    def tracked(self, study: str) -> Tracked:
        found = self.look(tracking.of_study, study)
        assert found is not None
        return found[1]

    def report(self, study: str) -> Report | None:
        found = self.look(reporting.of_study, study)
        return None if found is None else found[1]

    def mismatch(self, study: str) -> tuple[str, Mismatch]:
        found = self.look(mismatch_of, study)
        assert found is not None
        return found

    async def shown(self, study: str) -> dict[str, str]:
        """What the archive shows of a study."""
        (row,) = await self.ris.archive.search("study", {"StudyInstanceUID": study})
        return dict(row)


@asynccontextmanager
async def ward(directory: Path) -> AsyncIterator[Ward]:
    """A department with a CT and a procedure for it; its consumers have begun."""
    settings = RisSettings(issuer="HOSP", prior_days=0)  # what is sent in tests is of some day
    options = EngineOptions(study_stable_s=3600)
    async with department(directory, settings=settings, options=options) as found:
        here = Ward(found.ris, found.stores, found.engine)
        if here.look(lambda view: view.first(PROCEDURE, "value", "CTHEAD")) is None:
            await here.do(
                put_resource,
                ADMINISTRATOR,
                Resource(code="CT1", kind="device", modality="CT", ae_title="CT1", station_name="CT1"),
            )
            procedure = Procedure(
                code=Code(value="CTHEAD", scheme="99H", meaning="CT Head"),
                modality="CT",
                body_part="HEAD",
                resources=(("CT1",),),
                needs_protocol=False,
            )
            await here.commit(lambda change: change.put(PROCEDURE, change.new_id(), procedure))
        await here.settle()
        yield here
