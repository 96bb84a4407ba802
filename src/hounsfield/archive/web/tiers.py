"""Tiers over HTTP, for those whom ``http.tiering_by`` names: what lies where, plans, recalls, pins.

What ``hounsfield tier`` shows and does, as JSON. Nothing of a patient; UIDs of studies and series.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.tier_oversight import TierOversight
from hounsfield.archive.errors import ConfigError
from hounsfield.archive.web.http import Receive, Scope
from hounsfield.archive.web.limits import WebSettings
from hounsfield.archive.web.problems import Header, WebError
from hounsfield.archive.web.responses import BuffersResponse, json_response
from hounsfield.archive.web.urls import parameters

TIERS: Final = "/tiers"
HISTORY_DEFAULT: Final = 100
HISTORY_MAX: Final = 1000
LISTED_MAX: Final = 1000
"""Series of a plan in one answer; `hounsfield tier plan --series` lists them all."""
RULES_BYTES_MAX: Final = 256 << 10
"""Of rules that are tried: a hundred rules have 20 KiB."""
_FRESH: Final[tuple[Header, ...]] = ((b"cache-control", b"no-store"),)


class _Tried(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request that tries rules."""

    tier_rules: list[Any]


class TierRequests:
    """Answers requests about tiers. Every answer is 403 for who may not, those that change nothing, too."""

    def __init__(self, engine: Engine, settings: WebSettings) -> None:
        self._oversight = TierOversight(engine) if engine is not None else None
        self._allowed = frozenset(settings.tiering_by)
        self._rules_of = settings.tier_rules

    async def status(self, scope: Scope) -> BuffersResponse:
        """What lies in which tier, what is being done, what waits."""
        return _json(await self._for(scope).status())

    async def plan(self, scope: Scope) -> BuffersResponse:
        """What each rule would do; ``list=N``: and the first so many series."""
        oversight = self._for(scope)
        asked = _asked(scope, "list")
        return _json(await oversight.plan(_number(asked.get("list"), "list", 0, LISTED_MAX)))

    async def try_rules(self, scope: Scope, receive: Receive) -> BuffersResponse:
        """What rules that are not in force would do: ``{"tier_rules": [...]}``, as config.toml has them."""
        oversight = self._for(scope)
        asked = _asked(scope, "list")
        listed = _number(asked.get("list"), "list", 0, LISTED_MAX)
        entries = await _rules_in(receive)
        try:
            if self._rules_of is None:
                raise WebError(404, "this server tries no rules")
            rules = self._rules_of(entries)
        except ConfigError as error:
            raise WebError(400, f"nothing was planned: {error}") from error
        return _json(await oversight.plan(listed, rules=rules))

    async def apply(self, scope: Scope) -> BuffersResponse:
        """202: the rules are carried out soon."""
        return _json(await self._for(scope).apply(), status=202)

    async def recall(self, scope: Scope, study: str, series: str = "") -> BuffersResponse:
        """202 with the number of series that are brought back; 404."""
        return _json(await self._for(scope).recall(study, series), status=202)

    async def pin(self, scope: Scope, study: str) -> BuffersResponse:
        """Keep a study hot: ``why``, and ``until``, the last day."""
        oversight = self._for(scope)
        asked = _asked(scope, "why", "until")
        done = await oversight.pin(
            study, by=_actor(scope), why=asked.get("why", ""), until=_day_after(asked.get("until", ""))
        )
        return _json(done)

    async def unpin(self, scope: Scope, study: str) -> BuffersResponse:
        """204; 404 when it is not pinned."""
        await self._for(scope).unpin(study, by=_actor(scope))
        return BuffersResponse(204, [])

    async def pins(self, scope: Scope) -> BuffersResponse:
        """Every pin."""
        return _json(await self._for(scope).pins())

    async def history(self, scope: Scope) -> BuffersResponse:
        """What was done, newest first: ``limit``, and ``before`` of an answer to go on."""
        oversight = self._for(scope)
        asked = _asked(scope, "limit", "before")
        limit = _number(asked.get("limit"), "limit", HISTORY_DEFAULT, HISTORY_MAX)
        before = _number(asked.get("before"), "before", 0, (1 << 63) - 1)
        return _json(await oversight.history(max(1, limit), before or None))

    def _for(self, scope: Scope) -> TierOversight:
        if scope.get("identity", "") not in self._allowed - {""}:
            raise WebError(
                403,
                "nothing was shown or done: http.tiering_by lists the names of the bearer tokens whose "
                "holders may see and move what lies in tiers, and this request has none of them",
            )
        assert self._oversight is not None
        return self._oversight


def _actor(scope: Scope) -> str:
    return f"http:{scope['identity']}"


def _json(value: Any, status: int = 200) -> BuffersResponse:
    return json_response(msgspec.json.encode(value), "application/json", headers=_FRESH, status=status)


async def _rules_in(receive: Receive) -> list[Any]:
    """The entries of ``tier_rules`` in a request's body."""
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise WebError(400, "nothing was planned: the request broke off")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > RULES_BYTES_MAX:
            raise WebError(413, f"nothing was planned: rules of more than {RULES_BYTES_MAX >> 10} KiB")
    try:
        return msgspec.json.decode(body, type=_Tried).tier_rules
    except msgspec.MsgspecError as error:
        raise WebError(
            400, f'nothing was planned: send {{"tier_rules": [...]}}, each as in config.toml ({error})'
        ) from error


def _asked(scope: Scope, *names: str) -> Mapping[str, str]:
    """The parameters, each of which is known and given once."""
    given: dict[str, str] = {}
    for name, value in parameters(scope):
        if name in given or name not in names:
            raise WebError(400, f"nothing was done: parameters are {', '.join(names)}, each once at most")
        given[name] = value
    return given


def _number(text: str | None, name: str, default: int, most: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise WebError(400, f"{name} is a number")
    return min(int(text), most)


def _day_after(text: str) -> float:
    """The end of a day (UTC), 0 for none."""
    if not text:
        return 0.0
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp() + 86_400
    except ValueError:
        raise WebError(400, "nothing was pinned: until is a day, such as 2027-06-30") from None
