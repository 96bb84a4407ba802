"""Who asks: the holder of a bearer token is a person of the people's list, with the roles that stand there.

Over HTTP nobody acts without being somebody. Where the archive needs no tokens (it listens on loopback alone,
and has none) the RIS answers nobody, unless ``plugins.ris.without_token`` names the person that everybody on
this machine then is. On the command line whoever can reach the archive's control socket, or its files, acts
as an administrator and a clerk under the name of the system's user: never as somebody who reads or signs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from hounsfield.archive.plugins import View
from hounsfield.ris_plugin.actors import PEOPLES_ROLES, Actor, Role
from hounsfield.ris_plugin.catalog import person
from hounsfield.ris_plugin.errors import ForbiddenError
from hounsfield.ris_plugin.settings import RisSettings

__all__ = ["LOCAL_ROLES", "Caller", "actor_of", "is_foreign"]

LOCAL_ROLES: Final = frozenset({Role.ADMINISTRATOR, Role.CLERK})
"""Of who uses the command line: he runs the system, and can do what a front desk does. What needs a
physician's or a technologist's name needs that person's token."""
LOCAL_PREFIX: Final = "local:"
"""Before the system user's name, so that no one on the command line has the name of a person."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as it was told: by a token, or by the command line."""

    token_holder: str | None = None
    """None where no token is needed."""
    local_user: str = ""


def actor_of(view: View, settings: RisSettings, caller: Caller) -> Actor:
    """The actor. ForbiddenError for who is nobody of the people's list, or not active any more."""
    if caller.local_user:
        return Actor(f"{LOCAL_PREFIX}{caller.local_user}", LOCAL_ROLES)
    code = settings.without_token if caller.token_holder is None else caller.token_holder
    if not code:
        raise ForbiddenError(
            "the RIS answers people whom it knows: set http.bearer_token_file, or to try it on this machine "
            "alone plugins.ris.without_token"
        )
    found = person(view, code)
    if found is None:
        raise ForbiddenError(
            "the token's holder is no active person of the RIS: an administrator adds people with "
            "`hounsfield ris people put`"
        )
    return Actor(code, frozenset(found[1].roles) & PEOPLES_ROLES)


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a page of somebody else asks, in the browser of who needs no token: a token is nothing that a
    browser sends by itself, being on this machine is (RFC 6455 10.2; Fetch Metadata)."""
    origin = headers.get("origin", "")
    if origin:
        return urlsplit(origin).netloc != headers.get("host", "")
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
