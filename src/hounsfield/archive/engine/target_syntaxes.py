"""In which transfer syntaxes an object can be given, and whether it is then still the same object."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from hounsfield.archive.engine.derivation import LOSSY_METHODS, derived_uid
from hounsfield.archive.engine.types import Instance
from hounsfield.codecs.coders import coder_of

_ROOT: Final = "1.2.840.10008.1.2"
#: What is written here, in the order of what decoding it costs a viewer; what loses comes last.
TARGETS: Final = tuple(
    f"{_ROOT}{suffix}"
    for suffix in (
        ".1", ".4.201", ".4.202", ".4.203", ".4.80", ".4.110", ".4.112", ".4.70", ".5", ".4.90", ".4.91", "",
        ".1.99", ".4.50",
    )
)  # fmt: skip
#: A frame of the one is a frame of the others, too: nothing has to be done.
SAME_FRAMES: Final = {
    f"{_ROOT}.4.{stored}": tuple(f"{_ROOT}.4.{other}" for other in others)
    for stored, others in {
        50: (51,), 70: (57,), 80: (81,), 90: (91,), 110: (112,), 111: (112,), 201: (203,), 202: (201, 203),
    }.items()
}  # fmt: skip


@lru_cache(maxsize=256)  # asked for every frame; there are some 60 transfer syntaxes
def transcodable(stored_uid: str) -> tuple[str, ...]:
    """Transfer syntaxes in which objects stored so can be given: as they are stored first, then TARGETS.

    A single object may be refused nevertheless: 16 bits do not go into JPEG baseline.
    """
    source = coder_of(stored_uid)
    same = SAME_FRAMES.get(stored_uid, ())
    if source is None or not source.decoders:
        return (stored_uid, *same)
    others = (uid for uid in TARGETS if uid != stored_uid and uid not in same)
    return (stored_uid, *same, *others)


def sop_uid_of(one: Instance, syntax: str) -> str:
    """The SOP Instance UID in a transfer syntax: where something is lost it is another object's."""
    stored = one.row.transfer_syntax_uid
    if syntax == stored or syntax not in LOSSY_METHODS or syntax in SAME_FRAMES.get(stored, ()):
        return one.row.sop_uid
    return derived_uid(one.row.sop_uid, syntax)
