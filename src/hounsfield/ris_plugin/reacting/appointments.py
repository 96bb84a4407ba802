"""Appointments ask the archive to have the patient's priors back in time, and say when that is over."""

from __future__ import annotations

from functools import partial

from hounsfield.archive.plugins import Event
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.following import Consumer, Heeded
from hounsfield.ris_plugin.patients import resolve
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, HOLDING

__all__ = ["consumers"]


def consumers(ris: Ris) -> list[Consumer]:
    """Who has priors brought back."""
    kinds = {
        "appointment-booked", "appointment-moved", "appointment-cancelled", "appointment-missed",
        "appointment-fulfilled", "appointment-arrived", "appointment-changed",
    }  # fmt: skip
    return [
        Consumer("prefetch", kinds, lambda *_: None, partial(_prefetch, ris), together=_appointment),
    ]


def _appointment(event: Event) -> str:
    return str(event.body["appointment"])


async def _prefetch(ris: Ris, event: Heeded) -> None:
    """Have an appointment's priors back as it stands now; the archive knows it by its number."""
    with ris.reading() as view:
        appointment = view.get(APPOINTMENT, event.body["appointment"])
        if appointment is None:
            return
        wanted = appointment.state in HOLDING and appointment.to_ns > ris.now_ns()
        if wanted:
            _, patient = resolve(view, appointment.patient)
            order = view.get(ORDER, appointment.orders[0])
    if not wanted:
        await ris.archive.forget_prefetch(appointment.number)
        return
    first = patient.identifiers[0]
    rows = await ris.archive.search("study", {"PatientID": first.value}, limit=20)
    issuers = {row.get("IssuerOfPatientID", "") for row in rows if row.get("PatientID") == first.value}
    await ris.archive.prefetch(
        appointment.number,
        patient_id=first.value,
        issuer=first.issuer if first.issuer in issuers else "",
        at_ns=appointment.from_ns,
        modality=order.modality if order is not None else "",
        body_part=order.body_part if order is not None else "",
    )
