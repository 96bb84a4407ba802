"""Users who prove in an association who they are (PS3.7 D.3.3.7): passcodes, tokens, and guessing held up."""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from hounsfield.archive.app.ae_registry import FactStore
from hounsfield.archive.config import Config, Identity
from hounsfield.archive.errors import HounsfieldError
from hounsfield.archive.net.policy import Refusal, RemoteAe
from hounsfield.archive.net.services import Identified
from hounsfield.archive.security import passcodes
from hounsfield.archive.wire import (
    AssociateReject,
    IdentityType,
    RejectReason,
    RejectResult,
    RejectSource,
    UserIdentity,
)

if TYPE_CHECKING:
    from hounsfield.archive.security.tokens import TokenVerifier

__all__ = ["FACT_KIND", "Identities", "IdentityLimits", "UserError"]

FACT_KIND = "dicom-user"
"""The kind of the facts; a fact's name is the user's, its body ``{"name", "hash", "comment"}``."""

_NAME = re.compile(r"[^\x00-\x1f\x7f:$]{1,64}")
_DIGEST_BYTES = 32


class UserError(HounsfieldError):
    """A user cannot be added or removed as asked."""

    mistaken = True


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityLimits:
    """How fast identities may be guessed."""

    failures_max: int = 5
    """Of one name from one address within :attr:`failures_s`; then none from there is looked at."""
    failures_from_address_max: int = 50
    """Of any names from one address: a gateway has several users, and some mistype."""
    failures_s: float = 60.0
    remembered_max: int = 4096
    """Names and addresses with failures; the oldest are forgotten."""
    hashing_max: int = 8
    """Passcodes that are hashed or wait for it: one at a time, 200 ms of a core each."""
    known_s: float = 600.0
    """A passcode that was right is not hashed again for so long: workstations associate for each query."""
    known_max: int = 256

    @classmethod
    def of_one(cls, workers: int) -> IdentityLimits:
        """One worker's part of them: who is refused by one is served by another. Two mistakes are allowed."""
        whole = cls()
        return cls(
            failures_max=max(2, math.ceil(whole.failures_max / workers)),
            failures_from_address_max=max(10, math.ceil(whole.failures_from_address_max / workers)),
        )


async def _nobody() -> None:
    """Nobody else keeps the list."""


class Identities:
    """Whom associations are from; one worker's. :meth:`identify` is what negotiation asks."""

    def __init__(
        self,
        store: FactStore,
        changed: Callable[[], Awaitable[None]] = _nobody,
        limits: IdentityLimits | None = None,
    ) -> None:
        """``changed`` is called when a user was added or removed here: the others must :meth:`refresh`."""
        self._store = store
        self._changed = changed
        self._limits = limits or IdentityLimits()
        self._users: dict[str, str] = {}
        self._verifier: TokenVerifier | None = None
        self._names_alone = False
        self._failures: OrderedDict[tuple[str, ...], tuple[int, float]] = OrderedDict()
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self._known_key = os.urandom(_DIGEST_BYTES)
        self._hashing = 0
        self._one_at_a_time = trio.Lock()

    async def refresh(self) -> None:
        """Read the users with passcodes now."""
        self._users = {str(body["name"]): str(body["hash"]) for body in await self._store.state(FACT_KIND)}

    def use(self, identity: Identity, verifier: TokenVerifier | None) -> None:
        """Use these settings, and this to verify tokens."""
        self._verifier = verifier
        self._names_alone = identity.names_alone

    # ------------------------------------------------------------ negotiation

    async def identify(
        self, identity: UserIdentity | None, address: str, ae: RemoteAe | None
    ) -> Identified | Refusal | None:
        """Who an identity item names; None when it names nobody that we know how to verify.

        An acceptor that does not support an identity's type leaves it alone (PS3.7 D.3.3.7), so that devices
        which send their user's name to everybody can send. Whether somebody *has* to be named is the
        policy's to say. What can be verified and is wrong is refused.
        """
        del ae  # what it requires is judged by the policy
        if identity is None:
            return None
        match identity.identity_type:
            case IdentityType.USERNAME if self._names_alone:
                name = _name(identity.primary)
                return Identified(name) if name else _refused("a user name that is none")
            case IdentityType.USERNAME_PASSCODE if self._users:
                return await self._passcode(identity, address)
            case IdentityType.JWT if self._verifier is not None:
                return self._token(identity, self._verifier)
        return None

    async def _passcode(self, identity: UserIdentity, address: str) -> Identified | Refusal:
        name = _name(identity.primary)
        # a name that nobody has is hashed for, too: how long it takes says nothing
        kept = self._users.get(name) or passcodes.NOBODY
        words = b"\0".join((name.encode(), kept.encode(), identity.secondary))
        digest = hashlib.blake2b(words, key=self._known_key, digest_size=_DIGEST_BYTES).digest()
        if self._is_known(digest):
            return Identified(name)
        if self._guesses_too_much(address, name):
            return _TOO_MANY
        if self._hashing >= self._limits.hashing_max:
            return _refused("too many passcodes are being verified", later=True)
        self._hashing += 1
        try:
            async with self._one_at_a_time:  # and after each the question is asked again: has it failed?
                if self._is_known(digest):
                    return Identified(name)
                if self._guesses_too_much(address, name):
                    return _TOO_MANY
                if not await trio.to_thread.run_sync(passcodes.fits, identity.secondary, kept):
                    self._failed(address, name)
                    return _refused("user name or passcode not recognized")
        finally:
            self._hashing -= 1
        self._failures.pop((address, name), None)
        self._known[digest] = trio.current_time() + self._limits.known_s
        while len(self._known) > self._limits.known_max:
            self._known.popitem(last=False)
        return Identified(name)

    def _is_known(self, digest: bytes) -> bool:
        return self._known.get(digest, 0.0) > trio.current_time()

    def _token(self, identity: UserIdentity, verifier: TokenVerifier) -> Identified | Refusal:
        """Nobody guesses a signature: failures are not counted, which would shut out others there."""
        from hounsfield.archive.security.tokens import TokenError

        try:
            name = verifier.user_of(identity.primary)
        except TokenError as error:
            return _refused(str(error))
        return Identified(name, identity.primary)  # the response to a token is a token (PS3.7 D.3.3.7.2)

    # ------------------------------------------------------------ guessing

    def _guesses_too_much(self, address: str, name: str) -> bool:
        limits = self._limits
        return (
            self._count((address, name)) >= limits.failures_max
            or self._count((address,)) >= limits.failures_from_address_max
        )

    def _count(self, key: tuple[str, ...]) -> int:
        count, until = self._failures.get(key, (0, 0.0))
        return count if trio.current_time() < until else 0

    def _failed(self, address: str, name: str) -> None:
        for key in ((address, name), (address,)):
            count = self._count(key) + 1
            self._failures[key] = (count, trio.current_time() + self._limits.failures_s)
            self._failures.move_to_end(key)
        while len(self._failures) > self._limits.remembered_max:
            self._failures.popitem(last=False)

    # ------------------------------------------------------------ the command line's operations

    def operations(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """What ``hounsfield ae user`` asks for, over the control socket."""
        return {"ae-user-list": self.list, "ae-user-add": self.add, "ae-user-remove": self.remove}

    async def list(self) -> list[dict[str, Any]]:
        """Every user with a passcode, by name; without its hash."""
        found = [
            {"name": body["name"], "comment": body.get("comment", ""), "changed": body.get("changed", 0)}
            for body in await self._store.state(FACT_KIND)
        ]
        return sorted(found, key=lambda user: str(user["name"]))

    async def add(self, *, name: str, hash: str, comment: str = "") -> dict[str, Any]:  # noqa: A002
        """Keep the hash of a user's passcode, in place of a former one. Raises UserError."""
        name = name.strip()
        if not _NAME.fullmatch(name):
            raise UserError(f"{name!r} is no user name: 1 to 64 characters, no colon, no dollar")
        if not passcodes.is_hash(hash):
            raise UserError("not the hash of a passcode; `hounsfield ae user add` makes one")
        body = {"name": name, "hash": hash, "comment": comment, "changed": int(time.time())}
        await self._store.commit_fact(FACT_KIND, name, body, time.time_ns())
        await self._changed()
        return {"name": name, "comment": comment}

    async def remove(self, *, name: str) -> dict[str, Any]:
        """Remove a user. Raises UserError when there is none."""
        if all(user["name"] != name for user in await self.list()):
            raise UserError(f"no user {name!r} is known; `hounsfield ae user list` shows those that are")
        await self._store.commit_fact(FACT_KIND, name, None, time.time_ns())
        await self._changed()
        return {"name": name}


def token_verifier(config: Config) -> TokenVerifier | None:
    """What verifies tokens as the configuration says, None when it names no key. Raises TokenKeyError."""
    identity = config.identity
    if not identity.jwt_keys and not identity.jwt_secret_file:
        return None
    from hounsfield.archive.security.tokens import TokenVerifier  # its library is needed by nobody else

    return TokenVerifier.load(
        [Path(key) for key in identity.jwt_keys],
        Path(identity.jwt_secret_file) if identity.jwt_secret_file else None,
        issuer=identity.jwt_issuer,
        audience=identity.jwt_audience,
        user_claim=identity.jwt_user_claim,
    )


def _name(primary: bytes) -> str:
    """A user name as it was sent, in UTF-8; "" for what cannot be one."""
    try:
        name = primary.rstrip(b"\0").decode().strip()
    except UnicodeDecodeError:
        return ""
    return name if _NAME.fullmatch(name) else ""


def _refused(words: str, *, later: bool = False) -> Refusal:
    """Rejected as PS3.7 D.3.3.7 says: permanently, by the ACSE related function of the service provider."""
    return Refusal(
        AssociateReject(
            RejectResult.TRANSIENT if later else RejectResult.PERMANENT,
            RejectSource.PROVIDER_ACSE,
            RejectReason.ACSE_NO_REASON,
        ),
        words,
    )


_TOO_MANY = _refused("too many wrong passcodes from there; wait a minute", later=True)
