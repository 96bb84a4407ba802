"""Deleting over HTTP: ``DELETE`` of a study, series or instance, by those whom ``http.deletion_by`` names.

DICOMweb has no such transaction; the paths are those of retrieval, as other archives have it. What it means
is :meth:`~hounsfield.archive.engine.deletion.Deleting.delete`: all of it or nothing, durable, for good.
"""

from __future__ import annotations

from typing import Final

from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.index.deletion import Target
from hounsfield.archive.web.http import Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.problems import WebError
from hounsfield.archive.web.responses import BuffersResponse
from hounsfield.archive.web.urls import parameters

REASON_CHARS_MAX: Final = 1024  # it is kept for ever, in every ledger and backup: a sentence, not a file
_REASON_DEFAULT: Final = "deleted over HTTP"


class Deletion:
    """Answers delete requests."""

    def __init__(self, engine: Engine, settings: WebSettings) -> None:
        self._engine = engine
        self._allowed = frozenset(settings.deletion_by)

    async def delete(
        self, scope: Scope, study_uid: str, series_uid: str | None, sop_uid: str | None
    ) -> BuffersResponse:
        """204 when it is gone. 403 for who may not, 404 for what is not here, 409 for what is on hold."""
        actor: str = scope.get("identity", "")
        if not actor or actor not in self._allowed:
            raise WebError(
                403,
                "nothing was deleted: http.deletion_by lists the names of the bearer tokens whose holders "
                "may delete, and this request has none of them",
            )
        target = Target(study_uid, series_uid or "", () if sop_uid is None else (sop_uid,))
        await self._engine.delete(target, reason=_reason(scope), actor=f"http:{actor}")
        return BuffersResponse(204, [])


def _reason(scope: Scope) -> str:
    """The ``reason`` parameter."""
    given = [value.strip() for name, value in parameters(scope) if name == "reason"]
    if len(given) > 1 or any(len(one) > REASON_CHARS_MAX for one in given):
        raise WebError(400, f"nothing was deleted: give one reason of at most {REASON_CHARS_MAX} characters")
    return (given[0] if given else "") or _REASON_DEFAULT
