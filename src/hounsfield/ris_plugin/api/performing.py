"""One request performed, whoever brought it: who it is, what he may, the version, the transaction.

A change that comes under a key of its own (draft-ietf-httpapi-idempotency-key-header) is made once: who has
lost the answer asks again under the same key, and has it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from hounsfield.archive.plugins import Change, View
from hounsfield.ris_plugin.actors import Actor
from hounsfield.ris_plugin.api.bounds import check
from hounsfield.ris_plugin.api.endpoints import Ask, Endpoint
from hounsfield.ris_plugin.api.identity import Caller, actor_of
from hounsfield.ris_plugin.context import Ris
from hounsfield.ris_plugin.errors import InvalidError, RisError, StaleError
from hounsfield.ris_plugin.records.base import NS, seconds
from hounsfield.ris_plugin.records.requests import DONE, Done

__all__ = ["KEY", "KEY_CHARACTERS_MAX", "MissingVersionError", "perform"]

_EMPTY: Final[Mapping[str, str]] = {}
KEY_CHARACTERS_MAX: Final = 255
KEPT_NS: Final = 2 * 86_400 * NS
"""How long a request is known by its key: who asks again does so within minutes, or after a night."""
FORGOTTEN_AT_ONCE: Final = 8
"""Older ones that go with each new one: more than come, so that they become no more."""
_SIGHT: Final = (403, 404)
KEY: Final = "Idempotency-Key"


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
    key: str = "",
) -> Any:
    """What the endpoint answers: a struct, or None. RisError, RecordError; EngineError when nothing is kept.

    ``body``: JSON. ``version``: which one of the record is to be changed, StaleError when it is another now.
    ``key``: under which a change is made once, and answered again as it was.
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
        stale = _stale(view, endpoint, path, version)
        try:
            answer = endpoint.run(view, ask)
        except RisError as error:
            # Who may not see it is not told that it has changed.
            if stale is not None and error.status not in _SIGHT:
                raise stale from error
            raise
        if stale is not None:
            raise stale
        return answer, ask

    def once(change: Change) -> Any:
        name = f"{_actor(change, ris, endpoint, caller).person}\0{key}"
        if key:
            _forget(change)
            found = change.first(DONE, "key", name)
            if found is not None:
                return _again(endpoint, found[1], digest)
        answer, ask = run(change)
        _note(change, ask)
        if key:
            kept = b"" if answer is None else msgspec.json.encode(answer)
            change.put(DONE, change.new_id(), Done(key=name, digest=digest, answer=kept, at_ns=change.now_ns))
        return answer

    if not endpoint.is_read:
        _check_key(key)
        digest = _digest(endpoint, path, query, body)
        return await ris.commit(once)
    with ris.reading() as view:
        answer, ask = run(view)
    if endpoint.later is not None:
        answer = await endpoint.later(ask, answer)
    if ask.noted:
        await ris.commit(lambda change: _note(change, ask))
    return answer


def _actor(view: View, ris: Ris, endpoint: Endpoint, caller: Caller) -> Actor:
    actor = actor_of(view, ris.settings, caller)
    actor.require(*endpoint.roles, what="this")
    return actor


def _stale(view: View, endpoint: Endpoint, path: Mapping[str, str], version: int | None) -> StaleError | None:
    """What to raise where another version is there than the one that was read."""
    if version is None or endpoint.kind is None:
        return None
    held = view.version(endpoint.kind, path[endpoint.parameters[-1]])
    if not held or held == version:
        return None
    return StaleError("somebody else has changed it since it was read: look at it again")


def _check_key(key: str) -> None:
    if len(key) > KEY_CHARACTERS_MAX or not (key.isascii() and key.isprintable()):
        raise InvalidError(f"a key has at most {KEY_CHARACTERS_MAX} characters of ASCII", KEY)


def _digest(endpoint: Endpoint, path: Mapping[str, str], query: Mapping[str, str], body: bytes) -> bytes:
    said = msgspec.json.encode([endpoint.name, sorted(path.items()), sorted(query.items())])
    return hashlib.sha256(said + b"\0" + body).digest()


def _again(endpoint: Endpoint, done: Done, digest: bytes) -> Any:
    """What was answered when it was done."""
    if done.digest != digest:
        raise InvalidError("another request was made under this key: give each its own", KEY)
    return None if endpoint.answer is None else msgspec.json.decode(done.answer, type=endpoint.answer)


def _forget(change: Change) -> None:
    old = seconds(change.now_ns - KEPT_NS)
    for record_id in change.ids(DONE, "at", "", at_most=old, limit=FORGOTTEN_AT_ONCE):
        change.delete(DONE, record_id)


def _note(change: Change, ask: Ask) -> None:
    for event, patient_id in dict.fromkeys(ask.noted):
        change.say(event, {"patient": patient_id, "actor": ask.actor.person})


def _query(endpoint: Endpoint, query: Mapping[str, str]) -> Any:
    try:
        asked = msgspec.convert(dict(query), endpoint.query, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidError(f"a parameter cannot be: {error}") from None
    check(asked)
    return asked


def _body(endpoint: Endpoint, body: bytes) -> Any:
    if endpoint.body is None:
        if body.strip():
            raise InvalidError("this takes no body")
        return None
    try:
        content = msgspec.json.decode(body, type=endpoint.body)
    except msgspec.ValidationError as error:
        raise InvalidError(f"the body cannot be: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidError("the body is no JSON") from None
    check(content)
    return content
