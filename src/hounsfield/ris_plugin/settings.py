"""``[plugins.ris]`` of config.toml: every key with its type, its bounds and its default."""

from __future__ import annotations

from typing import Annotated

import msgspec

from hounsfield.archive.plugins import Settings

__all__ = ["Hl7Destination", "Hl7Listener", "RisSettings"]

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class Hl7Listener(Settings, frozen=True):
    """Where HL7 v2 messages come in over MLLP."""

    name: str = "hl7"
    host: str = "127.0.0.1"
    port: Port = 2575
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    plain: bool = False  # true permits MLLP without TLS beyond loopback
    sources: tuple[str, ...] = ()
    mapping: str = ""  # file of rules for what this sender says otherwise; "": as the standard has it
    issuer: str = ""  # of patients' identifiers, and of placers' numbers, that name none
    character_set: str = ""  # of messages without MSH-18, as table 0211 calls it; "": looked at
    processing: tuple[str, ...] = ("P",)  # MSH-11 of messages that are taken; add "T" where one tries things
    accession_in: str = ""  # such as "OBR-18": where orders bring an accession number, beside IPC-1
    reused_ids: bool = False  # true for a sender whose MSH-10 begins anew; else such a message is refused


class Hl7Destination(Settings, frozen=True):
    """Whom HL7 v2 messages go to over MLLP."""

    name: str
    host: str
    port: Port
    tls: bool = False
    tls_ca: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    sends: tuple[str, ...] = ("ORU", "ORM", "SIU")
    application: str = ""  # MSH-5
    facility: str = ""  # MSH-6
    character_set: str = "UNICODE UTF-8"  # MSH-18
    answer_seconds: Seconds = 30.0


class RisSettings(Settings, frozen=True):
    """The settings of the RIS."""

    institution: str = ""
    department: str = "Radiology"
    address: str = ""
    time_zone: str = "UTC"  # IANA's name; of opening hours, worklists and HL7 moments without an offset
    issuer: str = ""  # of patients' identifiers that we give
    application: str = "HOUNSFIELD"  # MSH-3 of what we send
    facility: str = ""  # MSH-4
    accession_format: str = "{year}{number:06}"  # at most 16 characters
    uid_root: str = "2.25"  # of Study Instance UIDs that we give; 2.25: random (PS3.5 B.2)
    worklist_days_before: Count = 2
    worklist_days_after: Count = 7
    worklist_answers_max: Count = 1000
    worklist_character_set: str = "ISO_IR 100"  # of text beyond ASCII for who names none; else ISO_IR 192
    worklist_own_only: bool = False  # a modality sees what is scheduled for its AE title, whatever it asks
    mpps_forward_to: tuple[str, ...] = ()
    orders_late_seconds: Annotated[float, msgspec.Meta(gt=0, le=31_622_400)] = 172_800.0  # without a time
    urgent_orders_late_seconds: Seconds = 3600.0  # the same of STAT and HIGH
    images_late_seconds: Seconds = 1800.0  # from the end of a step until missing images are an alert
    unread_late_seconds: Seconds = 28_800.0
    prior_days: Annotated[int, msgspec.Meta(ge=0)] = 30  # older studies that fit nothing are priors; 0: none
    lock_seconds: Seconds = 1800.0  # how long a report that nobody writes on stays locked
    report_language: str = ""  # of reports that name none, and of the words printed around them (RFC 5646)
    report_words: dict[str, dict[str, str]] = msgspec.field(default_factory=dict)  # by language; ours else
    report_fonts: tuple[str, ...] = ()
    report_logo: str = ""
    report_foot: str = ""
    without_token: str = ""  # the person that callers are where HTTP needs no token; "": nobody is answered
    hl7_listeners: tuple[Hl7Listener, ...] = ()
    hl7_destinations: tuple[Hl7Destination, ...] = ()
    hl7_message_bytes_max: Annotated[int, msgspec.Meta(ge=1024, le=1 << 30)] = 16 << 20
    hl7_keep_days: Count = 90  # how long messages that were taken or sent are known, and not done twice
    hl7_retry_seconds: Seconds = 5.0
    hl7_retry_seconds_max: Seconds = 600.0
