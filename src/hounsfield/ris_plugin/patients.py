"""Patients: registered, changed by the newest event, merged, and unmerged again exactly as they were.

A merge is a pointer: the merged record says into whom, and everything goes on naming the patient that it was
said of, whenever it came. Who shows it asks :func:`resolve`, who lists what a patient has asks
:func:`of_patient`. So a merge moves everything at once, what still comes under the old number too; its way
back is exact; and messages about a merged patient end alike before, while and after. A ring is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from datetime import date
from typing import Any, Final, TypeVar

import msgspec
from msgspec import structs

from hounsfield.archive.plugins import ORDINAL_MAX, Change, Kind, View
from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.errors import InvalidError, NotNowError, UnknownError
from hounsfield.ris_plugin.moments import at_last, newest
from hounsfield.ris_plugin.records.base import BEGINNING_CHARACTERS_MAX, folded
from hounsfield.ris_plugin.records.patients import (
    ACTIVE,
    MERGE,
    MERGED,
    PATIENT,
    Identifier,
    Merge,
    Patient,
)

__all__ = [
    "by_identifier",
    "change_identifier",
    "family",
    "merge",
    "of_patient",
    "owner",
    "register",
    "register_provisional",
    "resolve",
    "search",
    "unmerge",
    "update",
    "upsert",
]

EDITORS: Final = (Role.CLERK, Role.TECHNOLOGIST, Role.RADIOLOGIST, Role.INTERFACE)
MERGERS: Final = (Role.CLERK, Role.ADMINISTRATOR, Role.INTERFACE)
SEXES: Final = frozenset({"", "M", "F", "O"})
NUMBER_CHARACTERS_MAX: Final = 64
"""Of (0010,0020), VR LO (PS3.5 6.2)."""
FAMILY_MAX: Final = 256
"""Patients merged into one: more is a mistake of whoever sends merges."""
CHAIN_MAX: Final = 64
"""Merges of merges that are followed: an identifier that was merged so often is somebody's mistake."""
SEARCH_CANDIDATES_MAX: Final = 2000
"""Patients looked at for one search: as many have one short beginning of a name in a large town."""
SAYABLE: Final = frozenset(Patient.__struct_fields__) - {
    "identifiers", "provisional", "state", "merged_into", "as_of_ns", "as_of_from", "said",
}  # fmt: skip
"""Of what an event can speak."""
SILENT: Final = ("weight_kg", "size_m", "pregnancy", "alerts", "confidential")
"""What a message that leaves it out says nothing of, be it otherwise complete."""
MEASURED: Final = {"weight_kg": 1000, "size_m": 3, "pregnancy": 4}
"""What nobody has more of, or less than none. For who types: a system may count in other units, and is taken
at its word."""
Row = TypeVar("Row", bound=msgspec.Struct)
_DAY = re.compile(r"\d{8}", re.ASCII)


# ---------------------------------------------------------------- finding


def resolve(view: View, patient_id: str) -> tuple[str, Patient]:
    """The patient, or who it was merged into. UnknownError."""
    for _ in range(CHAIN_MAX):
        patient = view.get(PATIENT, patient_id)
        if patient is None:
            break
        if patient.state == ACTIVE:
            return patient_id, patient
        patient_id = patient.merged_into
    raise UnknownError("there is no such patient")


def owner(view: View, value: str, issuer: str) -> str | None:
    """The id of who was given an identifier, merged or not: what belongs to that patient names this id."""
    return next(iter(view.ids(PATIENT, "identifier", f"{issuer}\0{value}", limit=1)), None)


def by_identifier(view: View, value: str, issuer: str) -> tuple[str, Patient] | None:
    """Who has an identifier of an issuer, or whom that patient was merged into."""
    found = owner(view, value, issuer)
    return None if found is None else resolve(view, found)


def family(view: View, patient_id: str) -> list[str]:
    """The patient's id, and those of all that were merged into it, and into them."""
    found = [patient_id]
    for one in found:
        found += view.ids(PATIENT, "merged-into", one)
        if len(found) > FAMILY_MAX:
            raise NotNowError(f"more than {FAMILY_MAX} patients were merged into one: take some of it back")
    return found


def of_patient(
    view: View, kind: Kind[Row], patient_id: str, *, at_least: int = 0, at_most: int = ORDINAL_MAX
) -> list[tuple[str, Row]]:
    """The records of a kind that belong to a patient, or to whom it was merged with, by their ordinal."""
    who, _ = resolve(view, patient_id)
    found = [
        (record_id, record)
        for one in family(view, who)
        for record_id, record in view.find(kind, "patient", one, at_least=at_least, at_most=at_most)
    ]

    def ordinal(one: tuple[str, Row]) -> tuple[int, str]:
        return next(key.ordinal for key in kind.keys(one[1]) if key.lookup == "patient"), one[0]

    return sorted(found, key=ordinal)


def search(
    view: View, *, name: str = "", number: str = "", birth_day: str = "", limit: int = 50
) -> list[tuple[str, Patient]]:
    """Active patients by the beginnings of the words of their name, a number, a day of birth: all given.

    InvalidError when nothing is given.
    """
    words = folded(name.replace("^", " ").replace("=", " ").replace(",", " ")).split()
    if number:
        candidates = view.ids(PATIENT, "number", number, limit=SEARCH_CANDIDATES_MAX)
        # Who has it now: a merged patient's number leads to the survivor.
        candidates = list(dict.fromkeys(resolve(view, one)[0] for one in candidates))
    elif words:
        longest = max(words, key=len)[:BEGINNING_CHARACTERS_MAX]
        candidates = view.ids(PATIENT, "name", longest, limit=SEARCH_CANDIDATES_MAX)
    elif birth_day:
        candidates = view.ids(PATIENT, "birth-day", birth_day, limit=SEARCH_CANDIDATES_MAX)
    else:
        raise InvalidError("search by a name, a number or a day of birth", "name")
    found: list[tuple[str, Patient]] = []
    for patient_id in candidates:
        patient = view.get(PATIENT, patient_id)
        if patient is None or (birth_day and patient.birth_day != birth_day):
            continue
        if all(any(part.startswith(word) for part in _words(patient)) for word in words):
            found.append((patient_id, patient))
            if len(found) == limit:
                break
    return sorted(found, key=lambda one: (folded(one[1].name), one[0]))


def _words(patient: Patient) -> Iterator[str]:
    for name in (patient.name, *patient.other_names):
        for group in name.split("="):
            for part in group.split("^"):
                yield from folded(part).split()


# ---------------------------------------------------------------- registering


def register(change: Change, actor: Actor, patient: Patient, *, issuer: str = "") -> str:
    """A new patient's id. Without an identifier it gets the next number of ``issuer``, ours.

    NotNowError when somebody has one of its identifiers already.
    """
    actor.require(*EDITORS, what="registering a patient")
    if not patient.identifiers:
        number = change.count("patient")
        patient = structs.replace(patient, identifiers=(Identifier(value=f"{number:08}", issuer=issuer),))
    _check(patient)
    _check_measured(patient)
    for one in patient.identifiers:
        if change.first(PATIENT, "identifier", f"{one.issuer}\0{one.value}") is not None:
            raise NotNowError(
                "a patient with one of these identifiers is registered already: change that one"
            )
    patient_id = change.new_id()
    change.put(PATIENT, patient_id, structs.replace(patient, state=ACTIVE, merged_into=""))
    _say(change, "patient-changed", actor, patient=patient_id, registered=True)
    return patient_id


def register_provisional(change: Change, actor: Actor, *, issuer: str, sex: str = "", note: str = "") -> str:
    """An emergency of whom nobody knows the name yet; merged into who it turns out to be (IHE PIR)."""
    actor.require(*EDITORS, what="registering a patient")
    number = change.count("provisional")
    patient = Patient(
        identifiers=(Identifier(value=f"TMP{number:06}", issuer=issuer, kind="TEMP"),),
        name=f"UNKNOWN^{number:06}",
        sex=sex,
        provisional=True,
        alerts=(note,) if note else (),
    )
    return register(change, actor, patient)


def update(change: Change, actor: Actor, patient_id: str, **fields: Any) -> None:
    """Change what is known of an active patient. Identifiers are changed by :func:`change_identifier`."""
    actor.require(*EDITORS, what="changing a patient")
    unknown = fields.keys() - set(Patient.__struct_fields__) | (
        fields.keys() & {"identifiers", "state", "merged_into", "as_of_ns", "as_of_from", "said"}
    )
    if unknown:
        raise InvalidError("of a patient this cannot be set", min(unknown))
    patient = _active(change, patient_id)
    at = (at_last(patient.said, change.now_ns), actor.person)
    said = newest(patient.said, {name: fields[name] for name in fields.keys() & SAYABLE}, at)[1]
    changed = structs.replace(patient, **fields, as_of_ns=at[0], as_of_from=at[1], said=said)
    _check(changed)
    if fields.keys() & MEASURED.keys():
        _check_measured(changed)
    change.put(PATIENT, patient_id, changed)
    _say(change, "patient-changed", actor, patient=patient_id)


def upsert(
    change: Change,
    actor: Actor,
    patient: Patient,
    *,
    sender: str,
    event_ns: int,
    only_visit: bool = False,
    says: Collection[str] | None = None,
) -> str:
    """Take what another system says of a patient as of an event; the id of the record that it is said of.

    Found by any of the identifiers, else registered; of a merged patient its own record is changed. Who has
    another number of the authority that gave the first is somebody else, whatever they share: a mother's
    insurance number comes with her child's messages.
    ``says`` names the fields that it speaks of, those with a value when it is None; each is taken when the
    event is newer than what is known of it (of one moment: when the sender's name sorts later). Identifiers
    that are new are added in any case. ``only_visit``: the message speaks of the
    visit alone, so that an unknown patient is registered with what there is, and a known one's stay.
    """
    actor.require(*EDITORS, what="changing a patient")
    if not patient.identifiers:
        raise InvalidError("the message names no patient: PID-3 is empty", "PID-3")
    _check(patient)
    held = _of_identifiers(change, patient.identifiers)
    if says is None:
        says = SAYABLE if not only_visit or held is None else ("visit",)
        silent = {name for name in SILENT if not getattr(patient, name)}
        says = set(says) - silent - (set() if patient.visit.number else {"visit"})
    words = {name: getattr(patient, name) for name in says}
    if held is None:
        patient_id = change.new_id()
        _, who = newest((), words, (event_ns, sender))
        new = structs.replace(
            patient,
            # Nobody has the first, or that would be who it is.
            identifiers=(patient.identifiers[0], *_unclaimed(change, patient.identifiers[1:])),
            state=ACTIVE, as_of_ns=event_ns, as_of_from=sender, said=who,
        )  # fmt: skip
        change.put(PATIENT, patient_id, new)
        _say(change, "patient-changed", actor, patient=patient_id, registered=True)
        return patient_id
    patient_id, known = held
    taken, who = newest(known.said, words, (event_ns, sender))
    changed = structs.replace(known, **taken, said=who)
    changed = structs.replace(changed, provisional=known.provisional and patient.provisional)
    if (event_ns, sender) > (known.as_of_ns, known.as_of_from):
        changed = structs.replace(changed, as_of_ns=event_ns, as_of_from=sender)
    pairs = {(one.value, one.issuer) for one in known.identifiers}
    unknown = [one for one in patient.identifiers if (one.value, one.issuer) not in pairs]
    new_ones = _unclaimed(change, unknown)
    # Sorted behind the first, so that whoever said it first does not matter.
    first, *others = known.identifiers
    others = sorted((*others, *new_ones), key=lambda one: (one.issuer, one.value))
    changed = structs.replace(changed, identifiers=(first, *others))
    if changed != known:
        change.put(PATIENT, patient_id, changed)
        _say(change, "patient-changed", actor, patient=patient_id)
    return patient_id


def change_identifier(
    change: Change, actor: Actor, patient_id: str, *, old: Identifier, new: Identifier
) -> None:
    """Give a patient another number in place of one (HL7 v2 A47). NotNowError when somebody has it."""
    actor.require(*MERGERS, what="changing a patient's number")
    patient = _active(change, patient_id)
    if not new.value.strip():
        raise InvalidError("the new number is empty", "identifiers")
    held = change.first(PATIENT, "identifier", f"{new.issuer}\0{new.value}")
    if held is not None:
        if held[0] == patient_id:
            return  # said twice
        raise NotNowError("another patient has the new number: that is a merge")
    pairs = [(one.value, one.issuer) for one in patient.identifiers]
    if (old.value, old.issuer) not in pairs:
        raise UnknownError("the patient has no such number")
    identifiers = tuple(
        new if (one.value, one.issuer) == (old.value, old.issuer) else one for one in patient.identifiers
    )
    former = tuple(one for one in patient.former if (one.value, one.issuer) != (new.value, new.issuer))
    renumbered = structs.replace(patient, identifiers=identifiers, former=(*former, old))
    change.put(PATIENT, patient_id, renumbered)
    _say(change, "patient-changed", actor, patient=patient_id, renumbered=True)


# ---------------------------------------------------------------- merging


def merge(
    change: Change,
    actor: Actor,
    *,
    survivor: str,
    merged: str,
    reason: str = "",
    sender: str = "",
    event_ns: int = 0,
) -> str:
    """Make two records one person: all that belonged to ``merged`` belongs to ``survivor``. The merge's id.

    NotNowError for a patient into itself, and when it would close a ring. A patient that was merged already
    goes where the newer event says; said twice, once.
    """
    actor.require(*MERGERS, what="merging patients")
    at_ns, sender = event_ns or change.now_ns, sender or actor.person
    victim = change.get(PATIENT, merged)
    if victim is None or change.get(PATIENT, survivor) is None:
        raise UnknownError("there is no such patient")
    if survivor in family(change, merged):
        raise NotNowError("a patient cannot be merged into itself, nor into who was merged into it")
    if victim.state == MERGED:
        before_id, before = last_merge(change, merged)
        if not event_ns:
            at_ns = max(at_ns, before.at_ns + 1)  # said by who knows of it, whatever the clocks say
        if (at_ns, sender) < (before.at_ns, before.sender):
            return before_id  # overtaken by what is known
        if before.survivor == survivor:
            change.put(MERGE, before_id, structs.replace(before, at_ns=at_ns, sender=sender))
            return before_id
        _undo(change, actor, before_id, before)
    merge_id = change.new_id()
    made = Merge(
        merged=merged, survivor=survivor, at_ns=at_ns, sender=sender, actor=actor.person, reason=reason
    )
    change.put(MERGE, merge_id, made)
    change.put(PATIENT, merged, structs.replace(victim, state=MERGED, merged_into=survivor))
    _say(change, "patients-merged", actor, merge=merge_id, survivor=survivor, merged=merged)
    return merge_id


def unmerge(change: Change, actor: Actor, merge_id: str, reason: str = "") -> None:
    """Take a merge back: everything is whose it was. NotNowError when it was taken back already."""
    actor.require(*MERGERS, what="taking a merge back")
    made = change.get(MERGE, merge_id)
    if made is None:
        raise UnknownError("there is no such merge")
    victim = change.get(PATIENT, made.merged)
    if made.undone_ns or victim is None or victim.merged_into != made.survivor:
        raise NotNowError("that merge was taken back already")
    _undo(change, actor, merge_id, made)
    change.put(PATIENT, made.merged, structs.replace(victim, state=ACTIVE, merged_into=""))
    _say(
        change,
        "patients-unmerged",
        actor,
        merge=merge_id,
        survivor=made.survivor,
        merged=made.merged,
        reason=reason,
    )


def last_merge(view: View, merged: str) -> tuple[str, Merge]:
    """The merge that is in force for a merged patient. UnknownError."""
    for merge_id, made in view.find(MERGE, "merged", merged):
        if not made.undone_ns:
            return merge_id, made
    raise UnknownError("there is no such merge")


def _undo(change: Change, actor: Actor, merge_id: str, made: Merge) -> None:
    change.put(MERGE, merge_id, structs.replace(made, undone_ns=change.now_ns, undone_by=actor.person))


# ---------------------------------------------------------------- parts


def _of_identifiers(view: View, identifiers: Sequence[Identifier]) -> tuple[str, Patient] | None:
    leading = identifiers[0]
    for one in identifiers:
        found = view.first(PATIENT, "identifier", f"{one.issuer}\0{one.value}")
        if found is not None and (one is leading or not _is_another(found[1], leading)):
            return found
    return None


def _is_another(known: Patient, leading: Identifier) -> bool:
    """Whether a patient has a number of the authority that gave somebody the number ``leading``."""
    return any((one.issuer, one.kind) == (leading.issuer, leading.kind) for one in known.identifiers)


def _unclaimed(view: View, identifiers: Sequence[Identifier]) -> tuple[Identifier, ...]:
    """Those that no patient has."""
    return tuple(
        one for one in identifiers if view.first(PATIENT, "identifier", f"{one.issuer}\0{one.value}") is None
    )


def _active(view: View, patient_id: str) -> Patient:
    patient = view.get(PATIENT, patient_id)
    if patient is None:
        raise UnknownError("there is no such patient")
    if patient.state != ACTIVE:
        raise NotNowError("that patient was merged into another one; change that one")
    return patient


def _check(patient: Patient) -> None:
    if any(not one.value.strip() for one in patient.identifiers):
        raise InvalidError("an identifier is empty", "identifiers")
    # Cut or changed on a worklist it would be somebody else's.
    for one in patient.identifiers[:1]:
        if len(one.value) > NUMBER_CHARACTERS_MAX or not one.value.isprintable() or "\\" in one.value:
            raise InvalidError(
                "the number that images carry has at most 64 characters and no backslash (VR LO)",
                "identifiers",
            )
    pairs = [(one.value, one.issuer) for one in patient.identifiers]
    if len(set(pairs)) != len(pairs):
        raise InvalidError("an identifier is there twice", "identifiers")
    if patient.sex not in SEXES:
        raise InvalidError("sex is M, F, O or empty (PS3.3 C.7.1.1)", "sex")
    if patient.birth_day and not _is_day(patient.birth_day):
        raise InvalidError("a day of birth is YYYYMMDD", "birth_day")


def _check_measured(patient: Patient) -> None:
    for name, most in MEASURED.items():
        if not 0 <= getattr(patient, name) <= most:
            raise InvalidError(f"this is a number from 0 (not known) to {most}", name)


def _is_day(text: str) -> bool:
    if not _DAY.fullmatch(text):
        return False
    try:
        date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return False
    return True


def _say(change: Change, event: str, actor: Actor, **ids: Any) -> None:
    change.say(event, {**ids, "actor": actor.person})
