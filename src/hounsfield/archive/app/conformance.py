"""The tables of the DICOM conformance statement, made from those that the code goes by: docs/conformance.md.

``python -m hounsfield.archive.app.conformance docs/conformance.md`` writes them anew between their marks; a
test says when the document is not what this makes (PS3.2).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from hounsfield.archive.dicom.availability import INSTANCE_AVAILABILITY_NOTIFICATION
from hounsfield.archive.dicom.commitment import STORAGE_COMMITMENT
from hounsfield.archive.dicom.dictionary import KEYWORD_OF
from hounsfield.archive.dicom.find_request import LEVELS
from hounsfield.archive.dicom.levels import (
    HEADER_SERIES,
    HEADER_STUDY,
    MATCHED_INSTANCE,
    MATCHED_SERIES,
    MATCHED_STUDY,
)
from hounsfield.archive.dicom.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from hounsfield.archive.dicom.text import CHARACTER_SETS
from hounsfield.archive.net.commitment import CommitmentLimits
from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.retrieving import GET_CLASSES, MOVE_CLASSES
from hounsfield.archive.net.sop_classes import VERIFICATION, StorageRule, is_storage
from hounsfield.archive.net.statuses import BY_ERROR, BY_OUTCOME, COERCION, CUT, MISMATCH, StoreAnswer
from hounsfield.archive.wire import Service, describe_status
from hounsfield.codecs import support_table

__all__ = ["PROVIDED", "TABLES", "USED", "written_anew"]

#: SOP classes beyond storage that we are the SCP of, and the SCU of.
PROVIDED: Final = frozenset({VERIFICATION, *LEVELS, *MOVE_CLASSES, *GET_CLASSES, STORAGE_COMMITMENT})
USED: Final = frozenset(
    {
        VERIFICATION, *LEVELS, *MOVE_CLASSES, *GET_CLASSES, STORAGE_COMMITMENT,
        INSTANCE_AVAILABILITY_NOTIFICATION,
    }
)  # fmt: skip

_SERVICES: Final = {
    Service.FIND: ("C-FIND", (0x0000, 0xFF00, 0xFF01, 0xFE00, 0xA700, 0xA900, 0xC000)),
    Service.MOVE: ("C-MOVE", (0x0000, 0xFF00, 0xFE00, 0xA701, 0xA702, 0xA801, 0xA900, 0xB000, 0xC000)),
    Service.GET: ("C-GET", (0x0000, 0xFF00, 0xFE00, 0xA701, 0xA702, 0xA900, 0xB000, 0xC000)),
    Service.ANY: ("N-ACTION (commitment)", (0x0000, 0x0112, 0x0115, 0x0123, 0x0213)),
}


def sop_classes() -> str:
    """Who we are for each SOP class beyond storage."""
    rows = [
        (_name(uid), uid, "yes" if uid in USED else "no", "yes" if uid in PROVIDED else "no")
        for uid in sorted(PROVIDED | USED)
    ]
    return _table(("SOP class", "UID", "SCU", "SCP"), rows)


def storage_classes() -> str:
    """Every SOP class of the standard, retired ones too, that is taken as storage."""
    rows = [(_name(uid), uid) for uid in _standard_classes() if is_storage(uid, StorageRule.EVERY_OBJECT)]
    return _table(("storage SOP class", "UID"), rows)


def associations() -> str:
    """What an association may be."""
    limits, commitment = NetLimits(), CommitmentLimits()
    rows = [
        ("implementation class UID", IMPLEMENTATION_CLASS_UID),
        ("implementation version name", IMPLEMENTATION_VERSION_NAME),
        ("maximum length received (`dicom.pdu_bytes_max`)", f"{limits.pdu_bytes_max:,} bytes"),
        ("associations at once (`dicom.associations_max`)", f"{limits.associations_max}"),
        ("… of one address (`dicom.associations_per_address_max`)", f"{limits.associations_per_address_max}"),
        ("operations that a peer may have outstanding, when it asks", f"{limits.operations_invoked_max}"),
        ("operations of ours outstanding with it, when it allows", f"{limits.operations_performed_max}"),
        ("identifier of a query or another request", f"{limits.identifier_bytes_max:,} bytes"),
        ("instances in one commitment request", f"{commitment.instances_max:,}"),
        ("ARTIM timer (`dicom.artim_seconds`)", f"{limits.artim_s:g} s"),
        ("nothing happens (`dicom.idle_seconds`)", f"{limits.idle_s:g} s"),
        ("between two fragments of a message (`dicom.dimse_seconds`)", f"{limits.dimse_s:g} s"),
    ]  # fmt: skip
    return _table(("", "default"), rows)


def matching_keys() -> str:
    """What is matched by the index at each level, and what stored headers tell for studies and series."""
    rows = []
    for level, attributes in (
        ("patient and study", MATCHED_STUDY),
        ("series", MATCHED_SERIES),
        ("image", MATCHED_INSTANCE),
    ):
        rows += [(level, _attribute(tag), _tag(tag), vr) for tag, vr in sorted(attributes.items())]
    return _table(("level", "attribute", "tag", "VR"), rows)


def header_keys() -> str:
    """What is read from a stored header for whole studies and series."""
    rows = [("study", _attribute(tag), _tag(tag)) for tag in sorted(HEADER_STUDY)]
    rows += [("series", _attribute(tag), _tag(tag)) for tag in sorted(HEADER_SERIES)]
    return _table(("level", "attribute", "tag"), rows)


def statuses() -> str:
    """What the C-STORE SCP answers, and when; and what the others may."""
    said: dict[tuple[int, str], list[str]] = {}
    found: Iterable[tuple[str, StoreAnswer]] = (
        *((outcome.value, answer) for outcome, answer in BY_OUTCOME.items()),
        ("the command names another object", MISMATCH),
        ("coerced on receipt", COERCION),
        ("bytes are missing", CUT),
        *((error.__name__, answer) for error, answer in BY_ERROR.items()),
    )
    for why, answer in found:
        said.setdefault((answer.status, answer.comment or ""), []).append(why)
    rows = []
    for (code, comment), reasons in sorted(said.items()):
        kind = describe_status(code, Service.STORAGE).category.value
        rows.append(("C-STORE", f"{code:04X}", kind, comment or ", ".join(reasons)))
    for service, (name, codes) in _SERVICES.items():
        rows += [
            (name, f"{code:04X}", meaning.category.value, meaning.meaning)
            for code, meaning in ((code, describe_status(code, service)) for code in codes)
        ]
    return _table(("service", "status", "kind", "when"), rows)


def character_sets() -> str:
    """The terms of Specific Character Set that are read, and written in answers."""
    return ", ".join(f"`{term}`" for term in CHARACTER_SETS if term) + "\n"


TABLES: Final[Mapping[str, Callable[[], str]]] = {
    "sop-classes": sop_classes,
    "storage-classes": storage_classes,
    "associations": associations,
    "statuses": statuses,
    "matching-keys": matching_keys,
    "header-keys": header_keys,
    "character-sets": character_sets,
    "transfer-syntaxes": support_table.markdown,
}
_MARKED: Final = re.compile(r"(<!-- table:([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def written_anew(document: str) -> str:
    """``document`` with what stands between its marks made anew. KeyError for a table that there is not."""
    return _MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", document)


def _standard_classes() -> Sequence[str]:
    from pydicom._uid_dict import UID_dictionary

    return sorted(uid for uid, entry in UID_dictionary.items() if entry[1] == "SOP Class")


def _name(uid: str) -> str:
    from pydicom._uid_dict import UID_dictionary

    name, _, _, retired, _ = UID_dictionary[uid]
    return f"{name} (retired)" if retired and "etired" not in name else name


def _attribute(tag: int) -> str:
    return KEYWORD_OF.get(tag) or _tag(tag)


def _tag(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main(path: str) -> None:
    """Write the document's tables anew."""
    file = Path(path)
    file.write_text(written_anew(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
