"""Numbers that the RIS gives: of orders, patients, appointments, steps and reports, each without gaps.

An archive that was made again from an older backup does not know of those it gave since, and others
(modalities, receivers of reports, wristbands) do: given once more, one number would be two people's. So
whoever restores such a backup in earnest has some left out.
"""

from __future__ import annotations

from typing import Final

from hounsfield.archive.plugins import Change
from hounsfield.ris_plugin.actors import Actor, Role
from hounsfield.ris_plugin.errors import InvalidError

__all__ = ["SEQUENCES", "SKIPPED_MAX", "skip"]

SEQUENCES: Final = ("accession", "appointment", "patient", "provisional", "report", "step")
"""Those that others know."""
SKIPPED_MAX: Final = 100_000
"""At once: numbers have some six digits in all."""


def skip(change: Change, actor: Actor, by: int) -> dict[str, int]:
    """Leave out the next ``by`` numbers of each sequence; the last that is left out, by sequence."""
    actor.require(Role.ADMINISTRATOR, what="leaving out numbers")
    if not 0 < by <= SKIPPED_MAX:
        raise InvalidError(f"between 1 and {SKIPPED_MAX:,} numbers are left out at once", "by")
    reached = {name: change.count(name, by) for name in SEQUENCES}
    change.say("numbers-skipped", {"by": by, "actor": actor.person})
    return reached
