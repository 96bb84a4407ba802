"""What the command line asks of an archive to correct what it shows: plain JSON in and out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from hounsfield.archive.engine.corrections import Correcting, CorrectionError, Request
from hounsfield.archive.errors import HounsfieldError
from hounsfield.archive.index.corrections import KINDS

__all__ = ["FixError", "Fixes"]


Answer = TypeVar("Answer")


class FixError(HounsfieldError):
    """A correction cannot be made or taken back as asked; the text says what to do."""


class Fixes:
    """The operations over one engine."""

    def __init__(self, correcting: Correcting) -> None:
        self._correcting = correcting

    def table(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Every operation by the name it is asked for with."""
        return {
            "fix-look": self.look,
            "fix-make": self.make,
            "fix-look-revert": self.look_revert,
            "fix-revert": self.revert,
            "fix-list": self.list,
            "fix-show": self.show,
            "fix-merge-of": self.merge_of,
        }

    async def look(self, **asked: Any) -> dict[str, Any]:
        """What a correction would change: each study before and after. Changes nothing. Raises FixError."""
        return await _or_error(self._correcting.look(_request(asked)))

    async def make(self, **asked: Any) -> dict[str, Any]:
        """Make a correction; it, when everything shows it. Raises FixError."""
        return await _or_error(self._correcting.make(_request(asked)))

    async def look_revert(self, number: int, actor: str, reason: str) -> dict[str, Any]:
        """What taking a correction back would change. Changes nothing. Raises FixError."""
        return await _or_error(self._correcting.look_reverted(number, actor, reason))

    async def revert(self, number: int, actor: str, reason: str) -> dict[str, Any]:
        """Take a correction back. Raises FixError."""
        return await _or_error(self._correcting.revert(number, actor, reason))

    async def list(self) -> Any:
        """Every correction that was ever made, oldest first."""
        return await self._correcting.all()

    async def show(self, number: int) -> dict[str, Any]:
        """One correction. Raises FixError."""
        return await _or_error(self._correcting.get(number))

    async def merge_of(self, patient: Any) -> int:
        """The number of the merge that is in force for a patient. Raises FixError."""
        return await _or_error(self._correcting.merge_of(tuple(patient)))


async def _or_error(answer: Awaitable[Answer]) -> Answer:
    try:
        return await answer
    except CorrectionError as error:
        raise FixError(str(error)) from error


def _request(asked: dict[str, Any]) -> Request:
    """A request out of JSON: tags are eight hexadecimal digits, patients are pairs."""
    if asked.get("kind") not in KINDS:
        raise FixError(f"there is no such kind of correction; these are: {', '.join(KINDS)}")
    plain = dict(asked)
    for name in ("patient", "to_patient", "series", "instances"):
        if name in plain:
            plain[name] = tuple(plain[name])
    plain["values"] = {int(tag, 16): text for tag, text in asked.get("values", {}).items()}
    return Request(**plain)
