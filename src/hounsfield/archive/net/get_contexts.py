"""What a C-GET proposes: an association has room for 127 presentation contexts beside its own (PS3.4 C.5.3).

A peer that converts nothing sends an object only in the one transfer syntax that it picked for its SOP class
out of those proposed. So image classes get two contexts: one for uncompressed objects, one for
compressed ones. Some peers (DCMTK's) look at the first context of a class only; :func:`further_contexts` are
for what they failed to send then. A caller who knows what is there names the classes, and the syntaxes: each
pair gets a context of its own then, as far as there is room.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from hounsfield.archive.net.query_retrieve import proposal
from hounsfield.archive.wire import PresentationContext, RoleSelection
from hounsfield.codecs.registry import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, lookup

__all__ = ["CONTEXTS_MAX", "DEFAULT_CLASSES", "further_contexts", "get_contexts"]

CONTEXTS_MAX: Final = 127
"""For storage: context ids are odd and fit into a byte (PS3.8 9.3.2.2), and one is the C-GET's."""

_ARC: Final = "1.2.840.10008.5.1.4.1.1."
_NATIVE: Final = (EXPLICIT_VR_LITTLE_ENDIAN.uid, IMPLICIT_VR_LITTLE_ENDIAN.uid)

# What is most often stored before what is not.
_LOSSLESS: Final = tuple(
    f"1.2.840.10008.1.2.{suffix}"
    for suffix in (
        "4.70",
        "4.90",
        "4.80",
        "5",
        "4.57",
        "4.201",
        "4.202",
        "4.110",
    )  # JPEG, J2K, JPEG-LS, RLE …
)
_LOSSY: Final = tuple(
    f"1.2.840.10008.1.2.{suffix}"
    for suffix in (
        "4.50", "4.51", "4.91", "4.81", "4.203", "4.111", "4.112",
        "4.102", "4.103", "4.100", "4.107",  # video
    )
)  # fmt: skip
_COMPRESSED: Final = _LOSSLESS + _LOSSY

# Image classes that are met compressed.
_IMAGES: Final = tuple(
    f"{_ARC}{suffix}"
    for suffix in (
        "2", "2.1", "2.2", "4", "4.1", "4.3", "4.4", "1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "6.1", "6.2",
        "3.1", "7", "7.1", "7.2", "7.3", "7.4", "12.1", "12.1.1", "12.2", "12.2.1", "13.1.1", "13.1.2",
        "13.1.3", "13.1.4", "20", "30", "66.4", "77.1.1", "77.1.1.1", "77.1.2", "77.1.3", "77.1.4",
        "77.1.4.1", "77.1.5.1", "77.1.5.2", "77.1.5.4", "77.1.6", "77.1.7", "128", "130", "481.1", "481.2",
    )
)  # fmt: skip

# The rest of what hospitals store.
_OTHERS: Final = tuple(
    f"{_ARC}{suffix}"
    for suffix in (
        "4.2", "9.1.1", "9.1.2", "9.1.3", "9.2.1", "9.3.1", "11.1", "11.2", "11.3", "11.4", "66", "66.1",
        "66.2", "66.3", "66.5", "67", "78.8", "79.1", "80.1", "88.11", "88.22", "88.33", "88.34", "88.40",
        "88.50", "88.59", "88.65", "88.67", "104.1", "104.2", "481.3", "481.4", "481.5",
    )
)  # fmt: skip

DEFAULT_CLASSES: Final = _IMAGES + _OTHERS


def get_contexts(
    get_uid: str, classes: Sequence[str] = (), syntaxes: Sequence[str] = ()
) -> tuple[list[PresentationContext], tuple[RoleSelection, ...], list[str]]:
    """The contexts of a C-GET, the first its own; the roles; and the classes for which there was no room.

    ``classes`` and ``syntaxes`` in the order of preference; () is this module's choice.
    """
    groups = [
        (sop_class, group)
        for sop_class in dict.fromkeys(classes or DEFAULT_CLASSES)
        for group in _groups(sop_class, syntaxes, chosen=bool(classes))
    ]
    if len(groups) > CONTEXTS_MAX:  # every class once before any class twice
        firsts = list(dict(reversed(groups)).items())[::-1]
        groups = [*firsts, *(group for group in groups if group not in firsts)]
    kept, left = groups[:CONTEXTS_MAX], groups[CONTEXTS_MAX:]
    contexts, roles = _contexts(get_uid, kept)
    proposed = {sop_class for sop_class, _ in kept}
    left_out = dict.fromkeys(sop_class for sop_class, _ in left if sop_class not in proposed)
    return contexts, roles, list(left_out)


def further_contexts(get_uid: str) -> Iterator[tuple[list[PresentationContext], tuple[RoleSelection, ...]]]:
    """For what failed with :func:`get_contexts`' own choice: image classes without, then with loss."""
    for syntaxes in (_LOSSLESS, _LOSSY):
        yield _contexts(get_uid, [(sop_class, syntaxes) for sop_class in _IMAGES])


def _contexts(
    get_uid: str, groups: Sequence[tuple[str, tuple[str, ...]]]
) -> tuple[list[PresentationContext], tuple[RoleSelection, ...]]:
    contexts = [
        proposal(1, get_uid),
        *(
            PresentationContext(2 * number + 3, sop_class, group)
            for number, (sop_class, group) in enumerate(groups)
        ),
    ]
    # our role for these: SCP, and not SCU (PS3.7 D.3.3.4)
    classes = dict.fromkeys(sop_class for sop_class, _ in groups)
    return contexts, tuple(RoleSelection(sop_class, scu=False, scp=True) for sop_class in classes)


def _groups(sop_class: str, syntaxes: Sequence[str], *, chosen: bool) -> Iterable[tuple[str, ...]]:
    if syntaxes:
        native = tuple(uid for uid in syntaxes if not lookup(uid).encapsulated)
        others = [uid for uid in syntaxes if uid not in native]
        return [group for group in (native, *((uid,) for uid in others)) if group]
    if chosen:
        return [_NATIVE, *((uid,) for uid in _COMPRESSED)]
    return [_NATIVE, _COMPRESSED] if sop_class in _IMAGES else [_NATIVE]
