"""JSON Web Tokens (RFC 7519, RFC 8725): who signed, for whom, until when, and whom they name.

Which algorithm is taken follows from the key, never from the token alone: a public key verifies signatures of
its own kind, a shared secret HMACs, and "none" nothing.
"""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from hounsfield.archive.errors import HounsfieldError

LEEWAY_S: Final = 30
"""Clocks of a hospital differ by that much."""
SECRET_BYTES_MIN: Final = 32
"""RFC 7518 3.2: no shorter than the hash."""
RSA_BITS_MIN: Final = 2048
KEYS_MAX: Final = 16
"""Each may have to be tried."""
NAME_CHARS_MAX: Final = 256
_FILE_BYTES_MAX: Final = 1 << 20
_PARTS: Final = 3  # of a signed token in its compact form

_Key: TypeAlias = RSAKey | ECKey | OKPKey | OctKey
_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC: Final[Mapping[str, str]] = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_ED25519: Final = ("EdDSA", "Ed25519")
# Who signs with an Ed25519 key may still call it by its older name (RFC 9864 4).
warnings.filterwarnings("ignore", message="EdDSA is deprecated")
_HMAC: Final = ("HS256", "HS384", "HS512")


class TokenError(HounsfieldError):
    """A token that is not taken. The text says why, and nothing of what stands in it."""


class TokenKeyError(HounsfieldError):
    """A file of keys cannot be used."""


@dataclass(frozen=True, slots=True)
class _Signer:
    key: _Key
    algorithms: tuple[str, ...]


class TokenVerifier:
    """Verifies tokens of one issuer, made for one audience."""

    def __init__(self, signers: list[_Signer], *, issuer: str, audience: str, user_claim: str) -> None:
        """See :meth:`load`."""
        self._signers = signers
        self._claim = user_claim
        self._claims = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_S,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
        )

    @classmethod
    def load(
        cls, keys: list[Path], secret: Path | None, *, issuer: str, audience: str, user_claim: str
    ) -> TokenVerifier:
        """With the keys of these files: public ones as PEM (a certificate too), JWK or JWKS, and a secret.

        Raises TokenKeyError.
        """
        signers = [signer for path in keys for signer in _public_keys(path)]
        if secret is not None:
            try:
                signers.append(_Signer(OctKey.import_key(_secret(secret)), _HMAC))
            except (ValueError, JoseError):
                raise TokenKeyError(
                    f"identity.jwt_secret_file: {secret} holds a public key, which is no secret"
                ) from None
        if len(signers) > KEYS_MAX:
            raise TokenKeyError(f"identity.jwt_keys holds {len(signers)} keys; {KEYS_MAX} are the most")
        return cls(signers, issuer=issuer, audience=audience, user_claim=user_claim)

    def user_of(self, token: bytes) -> str:
        """Whom a token names, when all of it is right. Raises TokenError."""
        if token.count(b".") != _PARTS - 1:
            raise TokenError("not a signed token")
        for signer in self._signers:
            try:
                claims = jwt.decode(token, signer.key, algorithms=signer.algorithms).claims
            except (JoseError, ValueError, TypeError, RecursionError):
                continue  # another key's, or nobody's; or of JSON that nobody should read
            break
        else:
            raise TokenError("a token that none of the known keys signed")
        try:
            self._claims.validate(claims)
        except JoseError as error:
            raise TokenError(f"a token that does not hold: {error.error}") from None
        user = claims.get(self._claim)
        if not isinstance(user, str) or not user.strip() or not user.isprintable():
            raise TokenError("a token that names no user")
        if len(user) > NAME_CHARS_MAX:
            raise TokenError("a token with a long user name")
        return user.strip()


def _public_keys(path: Path) -> list[_Signer]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TokenKeyError(f"identity.jwt_keys: {path} cannot be read ({error.strerror})") from None
    if len(raw) > _FILE_BYTES_MAX:
        raise TokenKeyError(f"identity.jwt_keys: {path} is longer than {_FILE_BYTES_MAX} bytes")
    try:
        if raw.lstrip().startswith(b"{"):
            found = json.loads(raw)
            bodies = found.get("keys", [found])
            return [_of_jwk(body) for body in bodies if body.get("use", "sig") == "sig"]
        if b"BEGIN CERTIFICATE" in raw:
            return [_signer(load_pem_x509_certificate(raw).public_key())]
        return [_signer(load_pem_public_key(raw))]
    except TokenKeyError as error:
        raise TokenKeyError(f"identity.jwt_keys: {path}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, JoseError):
        raise TokenKeyError(
            f"identity.jwt_keys: {path} holds no public key: PEM, a certificate, JWK or JWKS"
        ) from None


def _of_jwk(body: dict[str, Any]) -> _Signer:
    kinds: dict[str, type[RSAKey | ECKey | OKPKey]] = {"RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}
    kind = kinds.get(body["kty"])
    if kind is None:
        raise TokenKeyError("a shared secret among public keys; identity.jwt_secret_file is for one")
    if "d" in body:
        raise TokenKeyError("a private key; only its public half belongs here")
    return _signer(kind.import_key(body).public_key)


def _signer(key: object) -> _Signer:
    if isinstance(key, RSAPublicKey):
        if key.key_size < RSA_BITS_MIN:
            raise TokenKeyError(f"an RSA key of {key.key_size} bits; {RSA_BITS_MIN} are the least")
        return _Signer(RSAKey(key, key), _RSA)
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _EC:
        return _Signer(ECKey(key, key), (_EC[key.curve.name],))
    if isinstance(key, Ed25519PublicKey):
        return _Signer(OKPKey(key, key), _ED25519)
    raise TokenKeyError("a key of another kind than RSA, P-256, P-384, P-521 or Ed25519")


def _secret(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise TokenKeyError(f"identity.jwt_secret_file: {path} is open to others: chmod 600 it")
            secret = file.read(_FILE_BYTES_MAX).strip()
    except OSError as error:
        raise TokenKeyError(f"identity.jwt_secret_file: {path} cannot be read ({error.strerror})") from None
    if len(secret) < SECRET_BYTES_MIN:
        raise TokenKeyError(
            f"identity.jwt_secret_file: {path} holds {len(secret)} bytes; {SECRET_BYTES_MIN} are the least"
        )
    return secret
