"""One request performed, whoever brought it: who it is, what he may, the version, the transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.actors import Actor
from hounsfield.ris_plugin.api.endpoints import Ask, Endpoint
from hounsfield.ris_plugin.api.identity import Caller, actor_of
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import InvalidError, RisError, StaleError

__all__ = ["MissingVersionError", "perform"]

_EMPTY: Final[Mapping[str, str]] = {}


class MissingVersionError(RisError):
    """What two may edit is changed only as it was read."""

    status = 428


async def perform(
    ris: Ris,
    endpoint: Endpoint,
    caller: Caller,
    *,
    path: Mapping[str, str] = _EMPTY,
    query: Mapping[str, str] = _EMPTY,
    body: bytes = b"",
    version: int | None = None,
) -> Any:
    """What the endpoint answers: a struct, or None. RisError, RecordError; EngineError when nothing is kept.

    ``body``: JSON. ``version``: which one of the record is to be changed, StaleError when it is another now.
    """
    with ris.reading() as view:  # nobody learns from a stranger's mistakes what there is; and again below
        _actor(view, ris, endpoint, caller)
    parameters = _query(endpoint, query)
    content = _body(endpoint, body)
    if endpoint.must_match and version is None and not caller.local_user:
        raise MissingVersionError(
            "say which version is changed: If-Match with the ETag that it was read with"
        )

    def run(view: View) -> tuple[Any, Ask]:
        actor = _actor(view, ris, endpoint, caller)
        ask = Ask(ris, actor, dict(path), parameters, content, ris.now_ns(), version)
        if version is not None and endpoint.kind is not None:
            record_id = path[endpoint.parameters[-1]]
            held = view.version(endpoint.kind, record_id)
            if held and held != version:
                raise StaleError("somebody else has changed it since it was read: look at it again")
        return endpoint.run(view, ask), ask

    if not endpoint.is_read:
        return (await ris.commit(run))[0]
    with ris.reading() as view:
        answer, ask = run(view)
    if endpoint.later is not None:
        answer = await endpoint.later(ask, answer)
    if ask.seen:
        await ris.commit(lambda change: _note(change, ask))
    return answer


def _actor(view: View, ris: Ris, endpoint: Endpoint, caller: Caller) -> Actor:
    actor = actor_of(view, ris.settings, caller)
    actor.require(*endpoint.roles, what="this")
    return actor


def _note(change: Change, ask: Ask) -> None:
    for patient_id in dict.fromkeys(ask.seen):
        change.say("confidential-seen", {"patient": patient_id, "actor": ask.actor.person})


def _query(endpoint: Endpoint, query: Mapping[str, str]) -> Any:
    try:
        return msgspec.convert(dict(query), endpoint.query, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidError(f"a parameter cannot be: {error}") from None


def _body(endpoint: Endpoint, body: bytes) -> Any:
    if endpoint.body is None:
        if body.strip():
            raise InvalidError("this takes no body")
        return None
    try:
        return msgspec.json.decode(body, type=endpoint.body)
    except msgspec.ValidationError as error:
        raise InvalidError(f"the body cannot be: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidError("the body is no JSON") from None
