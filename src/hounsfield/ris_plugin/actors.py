"""Who acts: a person with roles, or a machine. Every action names the roles that may do it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hounsfield.ris_plugin.errors import ForbiddenError

__all__ = ["PEOPLES_ROLES", "ROLES", "SYSTEM", "Actor", "Role"]


class Role:
    """The roles. A person may have several."""

    ADMINISTRATOR: Final = "administrator"
    """Runs the system: catalog, devices, people, messages; nothing clinical."""
    CLERK: Final = "clerk"
    """Registers patients, takes orders, books appointments."""
    TECHNOLOGIST: Final = "technologist"
    """Performs procedures."""
    RADIOLOGIST: Final = "radiologist"
    """Protocols, reads, signs."""
    TRAINEE: Final = "trainee"
    """Reads as a radiologist does, and cannot make a report final."""
    REFERRER: Final = "referrer"
    """Places orders and sees what became of them."""
    INTERFACE: Final = "interface"
    """Another system that sends messages; what it may do is what its messages can say."""
    MODALITY: Final = "modality"
    """A device that reports what it performs."""
    SYSTEM: Final = "system"
    """The RIS itself, for what follows from what happened."""


ROLES: Final = frozenset(
    value for name, value in vars(Role).items() if not name.startswith("_") and isinstance(value, str)
)


PEOPLES_ROLES: Final = ROLES - {Role.INTERFACE, Role.MODALITY, Role.SYSTEM}
"""Those that a person can be given."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something. ``person`` is a code of the people's list, or the name of an interface or AE."""

    person: str
    roles: frozenset[str]

    def may(self, roles: Iterable[str]) -> bool:
        """Whether one of ``roles`` is the actor's."""
        return not self.roles.isdisjoint(roles)

    def require(self, *roles: str, what: str) -> None:
        """Raise ForbiddenError when none of ``roles`` is the actor's."""
        if not self.may(roles):
            raise ForbiddenError(f"{what} needs the role {' or '.join(sorted(roles))}")


SYSTEM: Final = Actor("system", frozenset({Role.SYSTEM}))
