"""A scheduled step with its order and its patient as the attributes of one worklist item (PS3.4 Table K.6-1).

Values are text as in the catalog: several joined by backslashes; a sequence is a tuple of its items. What
nobody knows is not there, and returned empty. Text that is only to be read is cut to what its VR holds
(PS3.5 6.2); what names something is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, tzinfo
from typing import Final, TypeAlias

from hounsfield.archive.dicom.dictionary import TAG_OF
from hounsfield.ris_plugin.records.base import NS, Code
from hounsfield.ris_plugin.records.orders import Order
from hounsfield.ris_plugin.records.patients import Patient
from hounsfield.ris_plugin.records.schedule import Step
from hounsfield.ris_plugin.settings import RisSettings

__all__ = ["Item", "worklist_item"]

Item: TypeAlias = Mapping[int, str | tuple["Item", ...]]
"""Values by tag."""

_LENGTHS: Final = {"SH": 16, "LO": 64, "ST": 1024, "LT": 10_240}
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_STATES: Final = {"scheduled": "SCHEDULED", "arrived": "ARRIVED", "ready": "READY", "started": "STARTED"}
"""PS3.3 C.4.10, Scheduled Procedure Step Status."""
_CONTROL: Final = dict.fromkeys([*range(0x20), 0x7F])
_PROSE_CONTROL: Final = {code: None for code in _CONTROL if code not in b"\r\n\t\f"}


def worklist_item(step: Step, order: Order, patient: Patient, settings: RisSettings, zone: tzinfo) -> Item:
    """The item of a step. ``patient``: whom it is shown as, the survivor of merges."""
    return _by_tag({
        **_patient(patient, settings),
        **_visit(order, patient, settings),
        **_request(order, zone),
        **_procedure(step, order),
        "MedicalAlerts": _list([*patient.alerts, *_warnings(order)]),
        "ScheduledProcedureStepSequence": (_scheduled(step, order, zone),),
    })  # fmt: skip


def _scheduled(step: Step, order: Order, zone: tzinfo) -> Item:
    begins, ends = _local(step.from_ns, zone), _local(step.to_ns, zone)
    protocol = order.protocol.text if order.protocol is not None else ""
    comments = [text for text in (protocol if protocol != step.description else "", step.preparation) if text]
    if len(step.description) > _LENGTHS["LO"]:
        comments.insert(0, step.description)
    return _by_tag({
        "Modality": step.modality,
        "ScheduledStationAETitle": "\\".join(step.ae_titles),
        "ScheduledProcedureStepStartDate": begins[:8],
        "ScheduledProcedureStepStartTime": begins[8:],
        "ScheduledProcedureStepEndDate": ends[:8],
        "ScheduledProcedureStepEndTime": ends[8:],
        "ScheduledPerformingPhysicianName": step.performer,
        "ScheduledProcedureStepDescription": _line(step.description),
        "ScheduledStationName": _line(step.station_name, "SH"),
        "ScheduledProcedureStepLocation": _line(step.location, "SH"),
        "ScheduledProcedureStepID": step.number,
        "ScheduledProcedureStepStatus": _STATES.get(step.state, ""),
        "RequestedContrastAgent": _line(step.contrast),
        "CommentsOnTheScheduledProcedureStep": _prose("\n".join(comments), "LT"),
        "ScheduledProtocolCodeSequence": _codes(step.codes),
    })  # fmt: skip


def _procedure(step: Step, order: Order) -> dict[str, str | tuple[Item, ...]]:
    return {
        "StudyInstanceUID": order.study_uid,
        "RequestedProcedureID": order.requested_procedure_id or step.requested_procedure_id,
        "RequestedProcedureDescription": _line(order.procedure.meaning or order.procedure.value),
        "RequestedProcedureCodeSequence": _codes([order.procedure]),
        "RequestedProcedurePriority": order.priority,
        "RequestedProcedureComments": _prose(order.clinical_information, "LT"),
        "ReasonForTheRequestedProcedure": _line(order.reason),
        "ReasonForRequestedProcedureCodeSequence": _codes(order.reason_codes),
        "PatientTransportArrangements": _line(order.transport),
        "NamesOfIntendedRecipientsOfResults": "\\".join(name for name in order.copies_to if "\\" not in name),
    }


def _request(order: Order, zone: tzinfo) -> dict[str, str | tuple[Item, ...]]:
    placed = _local(order.placed_ns, zone)
    return {
        "AccessionNumber": order.accession,
        "RequestingPhysician": order.requester,
        "ReferringPhysicianName": order.referring,
        "RequestingService": _line(order.requester_location),
        "OrderEntererLocation": _line(order.requester_location, "SH"),
        "OrderCallbackPhoneNumber": _line(order.requester_phone, "SH"),
        "IssueDateOfImagingServiceRequest": placed[:8],
        "IssueTimeOfImagingServiceRequest": placed[8:],
        "PlacerOrderNumberImagingServiceRequest": order.placer_number,
        "FillerOrderNumberImagingServiceRequest": order.filler_number,
        "OrderPlacerIdentifierSequence": _authority(order.placer_issuer),
        "OrderFillerIdentifierSequence": _authority(order.filler_issuer),
        "ReasonForTheImagingServiceRequest": _line(order.reason),
    }


def _visit(order: Order, patient: Patient, settings: RisSettings) -> dict[str, str | tuple[Item, ...]]:
    own = bool(order.visit_number)  # else the one that is under way
    visit = patient.visit
    return {
        "AdmissionID": order.visit_number if own else visit.number,
        "IssuerOfAdmissionIDSequence": _authority(order.visit_issuer if own else visit.issuer),
        "CurrentPatientLocation": _line(visit.location),
        "InstitutionName": _line(settings.institution),
        "InstitutionAddress": _prose(settings.address, "ST"),
        "InstitutionalDepartmentName": _line(settings.department),
    }


def _patient(patient: Patient, settings: RisSettings) -> dict[str, str | tuple[Item, ...]]:
    shown, *others = patient.identifiers or (None,)
    language = patient.language.replace("_", "-")
    return {
        "PatientName": patient.name,
        "PatientID": shown.value if shown is not None else "",
        "IssuerOfPatientID": (shown.issuer if shown is not None else "") or settings.issuer,
        "OtherPatientIDs": "\\".join(one.value for one in others if one is not None),
        "OtherPatientIDsSequence": tuple(
            _by_tag({"PatientID": one.value, "IssuerOfPatientID": one.issuer, "TypeOfPatientID": "TEXT"})
            for one in others
            if one is not None
        ),
        "OtherPatientNames": "\\".join(name for name in patient.other_names if "\\" not in name),
        "PatientBirthDate": patient.birth_day,
        "PatientSex": patient.sex,
        "PatientSize": f"{patient.size_m:.4g}" if patient.size_m else "",
        "PatientWeight": f"{patient.weight_kg:.6g}" if patient.weight_kg else "",
        "PatientAddress": _line(patient.address),
        "PatientTelephoneNumbers": _list(patient.phones, "SH"),
        "ConfidentialityConstraintOnPatientDataDescription": "CONFIDENTIAL" if patient.confidential else "",
        "PregnancyStatus": str(patient.pregnancy) if patient.pregnancy else "",
        "Allergies": _list(_allergy(one.substance, one.reaction) for one in patient.allergies),
        # RFC 5646 tags, PS3.16 CID 5000
        "PatientPrimaryLanguageCodeSequence": _codes(
            [Code(value=language, scheme="RFC5646", meaning=language)]
            if _LANGUAGE.fullmatch(language)
            else []
        ),
    }


def _warnings(order: Order) -> Iterable[str]:
    """Answers to safety questions that whoever performs it has to know of."""
    for question in order.questions:
        if question.blocks and question.answer:
            yield f"{question.name}: {question.answer}"


def _allergy(substance: str, reaction: str) -> str:
    return f"{substance} ({reaction})" if reaction else substance


def _authority(issuer: str) -> tuple[Item, ...]:
    return (_by_tag({"LocalNamespaceEntityID": issuer}),) if issuer else ()


def _codes(codes: Iterable[Code]) -> tuple[Item, ...]:
    return tuple(
        _by_tag({
            "CodeValue": code.value,
            "CodingSchemeDesignator": code.scheme,
            "CodeMeaning": _line(code.meaning or code.value),
        })
        for code in codes
        if code.value
    )  # fmt: skip


def _local(moment_ns: int, zone: tzinfo) -> str:
    """YYYYMMDDHHMMSS; "" for none."""
    if not moment_ns:
        return ""
    return datetime.fromtimestamp(moment_ns // NS, UTC).astimezone(zone).strftime("%Y%m%d%H%M%S")


def _line(text: str, vr: str = "LO") -> str:
    return " ".join(text.split()).translate(_CONTROL).replace("\\", "/")[: _LENGTHS[vr]].rstrip()


def _list(texts: Iterable[str], vr: str = "LO") -> str:
    return "\\".join(filter(None, (_line(text, vr) for text in texts)))


def _prose(text: str, vr: str) -> str:
    return text.translate(_PROSE_CONTROL)[: _LENGTHS[vr]].rstrip()


def _by_tag(values: Mapping[str, str | tuple[Item, ...]]) -> Item:
    return {TAG_OF[keyword]: value for keyword, value in values.items() if value}
