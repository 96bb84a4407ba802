"""What patients, studies and series say of themselves: merged from what their objects carry.

The first value wins, a later one fills in what was missing, and what disagrees is flagged. Where corrections
exist a study also remembers what it was *made of*: objects that were received as one study and came here in
one way are a group (:class:`MadeOf`), so that each correction can be taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import structs

from hounsfield.archive.index.corrections import Group, View
from hounsfield.archive.index.rows import Attributes, InstanceRow, ReceivedRow, StudyRow

FLAG_DEMOGRAPHICS = "attributes-disagree"

Said = tuple[Attributes, Attributes]
"""The attributes that were merged last, and into which."""
NOTHING_SAID: Said = ({}, {})


class MadeOf:
    """The groups of one study's objects, and the attributes that each brought; with corrections as ``view``
    has them."""

    def __init__(self, study_uid: str, old: StudyRow | None, view: View) -> None:
        self._uid = study_uid
        self._view = view
        self._groups: dict[Group, ReceivedRow] = {}
        if old is not None:
            own = ReceivedRow(study_uid, (), old.attributes)
            self._groups = {(one.study_uid, one.path): one for one in old.received or (own,)}

    def group_of(self, series_uid: str, row: InstanceRow) -> Group:
        """The group of an object that is filed here, in that series."""
        received = row.received or (self._uid, series_uid)
        return received[0], self._view.route(*received, row.sop_uid, row.received_ns).path

    def is_of(self, groups: set[Group]) -> bool:
        """Whether it is of just these."""
        return self._groups.keys() == groups

    def add(self, group: Group, attributes: Attributes, flags: set[str]) -> None:
        """Merge what one more object of a group brings; ``flags`` are the study's."""
        held = self._groups.get(group) or ReceivedRow(*group, {})
        merged = dict(held.attributes)
        merge(merged, attributes, flags)
        self._groups[group] = structs.replace(held, attributes=merged)

    def note(self, group: Group) -> bool:
        """Note that there is a group, although it does not speak for the study; whether that is new."""
        if group in self._groups:
            return False
        self._groups[group] = ReceivedRow(*group, {})
        return True

    def state(self, brought: Mapping[Group, Attributes]) -> None:
        """Have these groups say what they brought, merged anew; the others say what they said."""
        for group, attributes in brought.items():
            held = self._groups.get(group) or ReceivedRow(*group, {})
            self._groups[group] = structs.replace(held, attributes=attributes)

    def regroup(self, speaking: set[Group], beside: set[Group]) -> None:
        """Be of these from now on: those that speak for the study, and those of further versions only."""
        said = {group[0]: one.attributes for group, one in self._groups.items()}
        self._groups = {
            **{group: ReceivedRow(*group, said.get(group[0], {})) for group in speaking},
            **{group: ReceivedRow(*group, {}) for group in beside - speaking},
        }

    def shown(self) -> tuple[Attributes, tuple[ReceivedRow, ...], tuple[int, ...]]:
        """The attributes that the study shows, what they were made of, and by which corrections."""
        groups = self._groups
        attributes, numbers = self._view.shown(
            self._uid, {group: one.attributes for group, one in groups.items()}
        )
        own = groups.get((self._uid, ()))
        if len(groups) == 1 and own is not None and not numbers:
            return own.attributes, (), ()
        return attributes, tuple(groups[group] for group in sorted(groups)), numbers


def merge(into: Attributes, new: Attributes, flags: set[str]) -> None:
    """First value wins; what was missing is filled in; what disagrees is flagged."""
    if new.items() <= into.items():
        return  # as it is with all instances of a series but the first
    for tag, text in new.items():
        held = into.get(tag)
        if not held:
            into[tag] = text
        elif text and text != held:
            flags.add(f"{FLAG_DEMOGRAPHICS}:{tag:08X}")


def merge_once(into: Attributes, new: Attributes, flags: set[str], said: Said) -> Said:
    """As :func:`merge`, but for what ``said`` tells was merged just before: objects of a series share it."""
    if said[0] is into and said[1] is new:
        return said
    merge(into, new, flags)
    return into, new


def union(old: tuple[str, ...], new: Iterable[str]) -> tuple[str, ...]:
    """Both, sorted, without repetition; ``old`` itself when nothing is new."""
    known = set(old)
    added = {value for value in new if value} - known
    return old if not added else tuple(sorted(known | added))
