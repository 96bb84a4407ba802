"""Users in associations: who proves who they are, who does not, and who guesses (PS3.7 D.3.3.7)."""

from __future__ import annotations

import base64
import hmac
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from pydicom.data import get_testdata_file
from pynetdicom import AE, evt
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.pdu_primitives import UserIdentityNegotiation

from hounsfield.archive.app.identities import Identities, IdentityLimits, UserError, token_verifier
from hounsfield.archive.config import Config, Identity, check_safety
from hounsfield.archive.errors import ConfigError
from hounsfield.archive.net.policy import ListenerPolicy, Refusal, RemoteAe
from hounsfield.archive.net.services import Identified
from hounsfield.archive.security.passcodes import PasscodeError, fits, hashed
from hounsfield.archive.security.tokens import TokenError, TokenKeyError, TokenVerifier
from hounsfield.archive.wire import IdentityType, UserIdentity

VERIFICATION = "1.2.840.10008.1.1"
GOOD = "correct horse"
REJECTED = (1, 2, 1)  # permanent, by the provider's ACSE function, no reason given (PS3.7 D.3.3.7)
LATER = (2, 2, 1)
ISSUER, AUDIENCE = "https://id.example.org", "hounsfield"


class Facts:
    """What the archive keeps, without one."""

    def __init__(self) -> None:
        self.kept: dict[str, Mapping[str, Any]] = {}

    async def state(self, kind: str, /) -> list[Mapping[str, Any]]:
        assert kind == "dicom-user"
        return list(self.kept.values())

    async def commit_fact(self, kind: str, name: str, body: dict[str, Any] | None, at_ns: int, /) -> int:
        assert (kind, at_ns > 0) == ("dicom-user", True)
        if body is None:
            del self.kept[name]
        else:
            self.kept[name] = body
        return len(self.kept)


@pytest.fixture(scope="module")
def kept() -> str:
    return hashed(GOOD)


@pytest.fixture
def identities(kept: str) -> Any:
    """``await identities()``: with a user RADIOLOGIST, and whatever else is given."""

    async def made(**settings: Any) -> Identities:
        limits = settings.pop("limits", None)
        made = Identities(Facts(), limits=limits)
        await made.add(name="RADIOLOGIST", hash=kept)
        await made.refresh()
        identity = Identity(**settings)
        made.use(identity, token_verifier(Config(identity=identity)))
        return made

    return made


def _negotiation(kind: int, primary: bytes, secondary: bytes = b"", *, answer: bool = True) -> Any:
    item = UserIdentityNegotiation()
    item.user_identity_type = kind
    item.primary_field = primary
    if kind == IdentityType.USERNAME_PASSCODE:
        item.secondary_field = secondary
    item.positive_response_requested = answer
    return item


async def _associate(port: int, item: Any = None) -> tuple[tuple[int, int, int] | None, bytes | None]:
    """How pynetdicom's association fares: what rejects it, None when nothing; and the server's response."""

    def blocking() -> tuple[tuple[int, int, int] | None, bytes | None]:
        requestor = AE("PYNETDICOM")
        requestor.add_requested_context(VERIFICATION)
        rejections: list[tuple[int, int, int]] = []

        def heard(event: Any) -> None:
            if isinstance(event.pdu, A_ASSOCIATE_RJ):
                rejections.append((event.pdu.result, event.pdu.source, event.pdu.reason_diagnostic))

        # what it makes of a rejection is now and then "aborted", when the connection is closed as soon
        made = requestor.associate(
            "127.0.0.1",
            port,
            ae_title="HOUNSFIELD",
            ext_neg=[item] if item is not None else [],
            evt_handlers=[(evt.EVT_PDU_RECV, heard)],
        )
        if not made.is_established:
            return rejections[0], None
        found = made.acceptor.user_identity
        response = found.server_response if found is not None else None
        assert made.send_c_echo().Status == 0
        made.release()
        return None, response

    return await trio.to_thread.run_sync(blocking)


@asynccontextmanager
async def _listening(
    serve: Callable[..., Any], sink: Any, identities: Identities, **policy: Any
) -> AsyncIterator[Any]:
    aes = policy.pop("aes", {})
    async with serve(sink, ListenerPolicy(**policy), identify=identities.identify, aes=aes) as archive:
        yield archive


# ---------------------------------------------------------------- over the network


@pytest.mark.parametrize("answer", [True, False])
async def test_a_passcode_that_is_right(
    serve: Callable[..., Any], sink: Any, identities: Any, answer: bool
) -> None:
    async with _listening(serve, sink, await identities(), identity_required=True) as archive:
        item = _negotiation(2, b"RADIOLOGIST", GOOD.encode(), answer=answer)
        rejected, response = await _associate(archive.port, item)
        assert (rejected, response) == (None, b"" if answer else None)
        await archive.until(lambda: len(archive.observer.ends) == 1)
        assert archive.observer.calls[0].identity == "RADIOLOGIST"
        assert archive.observer.ends[0].call.identity == "RADIOLOGIST"
        assert archive.observer.ends[0].reason == "released"


@pytest.mark.parametrize(
    ("kind", "primary", "secondary", "reason"),
    [
        (None, b"", b"", "none was named"),
        (1, b"RADIOLOGIST", b"", "a user name without a passcode"),
        (2, b"RADIOLOGIST", b"wrong horse", "user name or passcode not recognized"),
        (2, b"NOBODY", GOOD.encode(), "user name or passcode not recognized"),
        (2, b"\xff\xfe", GOOD.encode(), "user name or passcode not recognized"),
        (2, b"RADIOLOGIST", b"x" * 5000, "user name or passcode not recognized"),
        (3, b"ticket", b"", "a Kerberos ticket, which is not supported"),
        (4, b"<saml:Assertion/>", b"", "a SAML assertion, which is not supported"),
        (5, b"a.b.c", b"", "a token, and no identity.jwt_keys are configured"),
    ],
)
async def test_who_proves_nothing_is_rejected_where_that_is_required(
    serve: Callable[..., Any],
    sink: Any,
    identities: Any,
    kind: int | None,
    primary: bytes,
    secondary: bytes,
    reason: str,
) -> None:
    async with _listening(serve, sink, await identities(), identity_required=True) as archive:
        item = None if kind is None else _negotiation(kind, primary, secondary)
        rejected, _ = await _associate(archive.port, item)
        assert rejected == REJECTED
        (call,) = archive.observer.calls
        assert reason in call.reason
        assert "RADIOLOGIST" not in call.reason
        assert "horse" not in repr(call)


@pytest.mark.parametrize("kind", [None, 1, 3, 4, 5])
async def test_devices_that_tell_everybody_their_user_can_send(
    serve: Callable[..., Any], sink: Any, identities: Any, kind: int | None
) -> None:
    """What we cannot verify is left alone and not answered, where nobody has to be named."""
    async with _listening(serve, sink, await identities()) as archive:
        item = None if kind is None else _negotiation(kind, b"SOMEBODY")
        assert await _associate(archive.port, item) == (None, None)
        assert archive.observer.calls[0].identity == ""


async def test_a_wrong_passcode_is_rejected_even_where_none_is_required(
    serve: Callable[..., Any], sink: Any, identities: Any
) -> None:
    async with _listening(serve, sink, await identities()) as archive:
        rejected, _ = await _associate(archive.port, _negotiation(2, b"RADIOLOGIST", b"wrong horse"))
        assert rejected == REJECTED


@pytest.mark.peer("storescu")
@pytest.mark.parametrize(
    ("words", "code_is_0"),
    [
        (("-usr", "RADIOLOGIST", "-pwd", GOOD, "-rsp"), True),
        (("-usr", "RADIOLOGIST", "-pwd", GOOD), True),
        (("-usr", "RADIOLOGIST", "-pwd", "wrong horse", "-rsp"), False),
        (("-usr", "RADIOLOGIST", "-epw", "-rsp"), False),
        (("-usr", "RADIOLOGIST"), False),
        (("--kerberos", "FILE"), False),
        (("--saml", "FILE", "-rsp"), False),
        (("--jwt", "FILE", "-rsp"), True),
        ((), False),
    ],
)
async def test_storescu_names_its_user(
    serve: Callable[..., Any],
    sink: Any,
    identities: Any,
    signer: tuple[ECKey, Path],
    tmp_path: Path,
    words: tuple[str, ...],
    code_is_0: bool,
) -> None:
    ct = get_testdata_file("CT_small.dcm")
    key, public = signer
    file = tmp_path / "token"
    file.write_bytes(_token("ES256", key))
    words = tuple(str(file) if word == "FILE" else word for word in words)
    known = await identities(jwt_keys=(str(public),), jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    async with _listening(serve, sink, known, identity_required=True) as archive:
        done = await archive.run("storescu", *words, "-aec", "HOUNSFIELD", "127.0.0.1", "PORT", ct)
        assert (done.returncode == 0) is code_is_0, done.stdout
        assert len(sink.objects) == code_is_0
        assert archive.observer.calls[0].identity == ("RADIOLOGIST" if code_is_0 else "")


async def test_an_entity_says_whose_it_is(serve: Callable[..., Any], sink: Any, identities: Any) -> None:
    known = await identities(names_alone=True)
    item = _negotiation(1, b"RADIOLOGIST")
    for ae, right in (
        (RemoteAe("PYNETDICOM", users=frozenset({"RADIOLOGIST"})), True),
        (RemoteAe("PYNETDICOM", users=frozenset({"PHYSICIST"})), False),
        (RemoteAe("PYNETDICOM", identity_required=True), True),
    ):
        async with _listening(serve, sink, known, aes={"PYNETDICOM": ae}) as archive:
            assert (await _associate(archive.port, item))[0] == (None if right else REJECTED)
            assert (await _associate(archive.port))[0] == REJECTED


# ---------------------------------------------------------------- guessing


def _passcode(name: str, word: str) -> UserIdentity:
    return UserIdentity(IdentityType.USERNAME_PASSCODE, name.encode(), word.encode())


def _code(who: Any) -> tuple[int, int, int]:
    assert isinstance(who, Refusal), who
    return who.reject.result, who.reject.source, who.reject.reason


async def test_guessing_is_held_up(
    identities: Any, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    hashes = 0

    def count(passcode: bytes, kept: str) -> bool:
        nonlocal hashes
        hashes += 1
        return passcode == GOOD.encode() and kept != "nobody's"

    monkeypatch.setattr("hounsfield.archive.security.passcodes.fits", count)
    known = await identities(limits=IdentityLimits(failures_max=3, failures_from_address_max=6))

    async def ask(word: str, address: str = "192.0.2.1", name: str = "RADIOLOGIST") -> Any:
        return await known.identify(_passcode(name, word), address, None)

    for number in range(3):
        assert _code(await ask(f"guess {number}")) == REJECTED
    for number in range(20):
        assert _code(await ask(f"another {number}")) == LATER
    assert hashes == 3, "what is not looked at costs nothing"
    assert _code(await ask(GOOD)) == LATER
    assert await ask(GOOD, "192.0.2.2") == Identified("RADIOLOGIST"), "others are not held up"
    for number in range(3):
        assert _code(await ask("guess", name=f"user {number}")) == REJECTED
    assert _code(await ask("guess", name="user 4")) == LATER, "the address tried enough names"
    await trio.sleep(IdentityLimits().failures_s + 1)
    assert await ask(GOOD) == Identified("RADIOLOGIST")


@pytest.mark.parametrize(("workers", "expected"), [(1, (5, 50)), (2, (3, 25)), (4, (2, 13)), (64, (2, 10))])
def test_workers_share_the_guesses(workers: int, expected: tuple[int, int]) -> None:
    limits = IdentityLimits.of_one(workers)
    assert (limits.failures_max, limits.failures_from_address_max) == expected


async def test_guesses_at_the_same_time_are_not_more(
    identities: Any, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    hashes = 0

    def count(_: bytes, __: str) -> bool:
        nonlocal hashes
        hashes += 1
        return False

    monkeypatch.setattr("hounsfield.archive.security.passcodes.fits", count)
    known = await identities(limits=IdentityLimits(failures_max=3, hashing_max=8))
    codes = []

    async def guess(number: int) -> None:
        codes.append(_code(await known.identify(_passcode("RADIOLOGIST", str(number)), "192.0.2.1", None)))

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(guess, number)
    assert hashes == 3
    assert (codes.count(REJECTED), codes.count(LATER)) == (3, 47)


async def test_a_right_passcode_is_hashed_once(identities: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = 0

    def count(passcode: bytes, kept: str) -> bool:
        nonlocal hashes
        hashes += 1
        return fits(passcode, kept)

    monkeypatch.setattr("hounsfield.archive.security.passcodes.fits", count)
    known = await identities()
    for _ in range(5):
        who = await known.identify(_passcode("RADIOLOGIST", GOOD), "192.0.2.1", None)
        assert who == Identified("RADIOLOGIST")
    assert hashes == 1
    await known.add(name="RADIOLOGIST", hash=hashed("another passcode"))
    await known.refresh()
    assert _code(await known.identify(_passcode("RADIOLOGIST", GOOD), "192.0.2.1", None)) == REJECTED
    await known.remove(name="RADIOLOGIST")
    await known.refresh()
    assert await known.identify(_passcode("RADIOLOGIST", "another passcode"), "192.0.2.1", None) is None


async def test_what_is_kept_of_a_passcode_is_no_passcode(kept: str) -> None:
    assert GOOD not in kept
    assert hashed(GOOD) != kept, "salted"
    assert fits(GOOD.encode(), kept)
    assert not fits(GOOD.encode(), kept[:-5] + "AAAA=")
    assert not fits(b"", "")
    with pytest.raises(PasscodeError, match="8 characters or more"):
        hashed("short")
    known = Identities(Facts())
    for name, words in (("", "is no user name"), ("a:b", "is no user name"), ("x" * 65, "is no user name")):
        with pytest.raises(UserError, match=words):
            await known.add(name=name, hash=kept)
    with pytest.raises(UserError, match="not the hash of a passcode"):
        await known.add(name="A", hash=GOOD)
    with pytest.raises(UserError, match="no user 'B' is known"):
        await known.remove(name="B")


# ---------------------------------------------------------------- tokens

SIGNERS: dict[str, tuple[Any, Any]] = {
    "RS256": (RSAKey, lambda: rsa.generate_private_key(65537, 2048)),
    "PS384": (RSAKey, lambda: rsa.generate_private_key(65537, 2048)),
    "ES256": (ECKey, lambda: ec.generate_private_key(ec.SECP256R1())),
    "ES384": (ECKey, lambda: ec.generate_private_key(ec.SECP384R1())),
    "EdDSA": (OKPKey, ed25519.Ed25519PrivateKey.generate),
    "Ed25519": (OKPKey, ed25519.Ed25519PrivateKey.generate),
}


def _pem(key: Any) -> bytes:
    data: bytes = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data


def _claims(**more: Any) -> dict[str, Any]:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "RADIOLOGIST", "exp": int(time.time()) + 600, **more}
    return {name: value for name, value in claims.items() if value is not None}


def _token(algorithm: str, key: Any, **more: Any) -> bytes:
    return jwt.encode({"alg": algorithm}, _claims(**more), key, algorithms=[algorithm]).encode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _verifier(*keys: Path, secret: Path | None = None, claim: str = "sub") -> TokenVerifier:
    return TokenVerifier.load(list(keys), secret, issuer=ISSUER, audience=AUDIENCE, user_claim=claim)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> tuple[ECKey, Path]:
    """A key, and the file of its public half."""
    private = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path_factory.mktemp("keys") / "public.pem"
    path.write_bytes(_pem(private.public_key()))
    return ECKey(private, private), path


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize("form", ["pem", "jwk", "jwks"])
@pytest.mark.parametrize("algorithm", SIGNERS)
def test_tokens_of_every_kind_of_key(tmp_path: Path, algorithm: str, form: str) -> None:
    kind, generate = SIGNERS[algorithm]
    private = generate()
    key = kind(private, private)
    path = tmp_path / "key"
    if form == "pem":
        path.write_bytes(_pem(private.public_key()))
    else:
        body = key.as_dict(private=False)
        other = ECKey.generate_key("P-256").as_dict(private=False)
        path.write_text(json.dumps(body if form == "jwk" else {"keys": [other, body]}), encoding="ascii")
    assert _verifier(path).user_of(_token(algorithm, key)) == "RADIOLOGIST"
    stranger = generate()
    with pytest.raises(TokenError, match="none of the known keys signed"):
        _verifier(path).user_of(_token(algorithm, kind(stranger, stranger)))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"exp": int(time.time()) - 60}, "expired_token"),
        ({"exp": None}, "missing_claim"),
        ({"exp": "soon"}, "invalid_claim"),
        ({"nbf": int(time.time()) + 86_400}, "invalid_claim"),
        ({"iss": "https://elsewhere.example.org"}, "invalid_claim"),
        ({"iss": None}, "missing_claim"),
        ({"aud": "another"}, "invalid_claim"),
        ({"aud": None}, "missing_claim"),
        ({"sub": None}, "names no user"),
        ({"sub": " "}, "names no user"),
        ({"sub": 7}, "invalid_claim"),
        ({"sub": "a\nb"}, "names no user"),
        ({"sub": "x" * 300}, "a long user name"),
    ],
)
def test_a_signature_is_not_everything(signer: tuple[ECKey, Path], more: dict[str, Any], words: str) -> None:
    key, path = signer
    with pytest.raises(TokenError, match=words) as caught:
        _verifier(path).user_of(_token("ES256", key, **more))
    assert "RADIOLOGIST" not in str(caught.value)


def test_what_is_right_beside_it(signer: tuple[ECKey, Path]) -> None:
    key, path = signer
    assert _verifier(path).user_of(_token("ES256", key, aud=["x", AUDIENCE])) == "RADIOLOGIST"
    assert _verifier(path, claim="name").user_of(_token("ES256", key, name="R. Adler")) == "R. Adler"
    assert _verifier(path).user_of(_token("ES256", key, exp=int(time.time()) - 5)), "clocks differ"


def test_a_public_key_is_no_secret(signer: tuple[ECKey, Path]) -> None:
    """RFC 8725 2.1: an HMAC made with the public key's bytes, and "none"."""
    _, path = signer
    head, body = (_base64(json.dumps(part).encode()) for part in ({"alg": "HS256"}, _claims()))
    signature = hmac.digest(path.read_bytes(), head + b"." + body, "sha256")
    forged = b".".join((head, body, _base64(signature)))
    for token in (forged, b".".join((head, body, b"")), b"", b"..", b"a.b", b"a.b.c.d.e", b"\xff.\xff.\xff"):
        with pytest.raises(TokenError):
            _verifier(path).user_of(token)
    none = b".".join((_base64(b'{"alg":"none"}'), body, b""))
    with pytest.raises(TokenError):
        _verifier(path).user_of(none)


def test_json_of_any_depth_is_no_fault_of_ours(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 40)
    secret.chmod(0o600)
    verifier = _verifier(secret=secret)
    deep = _base64(b"[" * 20_000)
    head = _base64(b'{"alg":"HS256"}')
    signed = b".".join((head, deep, _base64(hmac.digest(b"s" * 40, head + b"." + deep, "sha256"))))
    for token in (signed, b".".join((deep, head, b"AA"))):
        with pytest.raises(TokenError, match="none of the known keys"):
            verifier.user_of(token)


def test_shared_secrets_only_when_configured(signer: tuple[ECKey, Path], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(48).hex().encode())
    secret.chmod(0o600)
    token = _token("HS256", OctKey.import_key(secret.read_bytes()))
    assert _verifier(secret=secret).user_of(token) == "RADIOLOGIST"
    with pytest.raises(TokenError, match="none of the known keys"):
        _verifier(signer[1]).user_of(token)
    secret.chmod(0o644)
    with pytest.raises(TokenKeyError, match="chmod 600"):
        _verifier(secret=secret)
    secret.chmod(0o600)
    secret.write_bytes(signer[1].read_bytes())
    with pytest.raises(TokenKeyError, match="a public key, which is no secret"):
        _verifier(secret=secret)
    secret.write_text("too short", encoding="ascii")
    with pytest.raises(TokenKeyError, match="32 are the least"):
        _verifier(secret=secret)


def test_keys_that_are_none(tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    small = rsa.generate_private_key(65537, 1024)
    for name, content, words in (
        ("no.pem", b"nothing", "holds no public key"),
        ("private.json", json.dumps(ECKey(private, private).as_dict(private=True)).encode(), "private key"),
        ("oct.json", json.dumps(OctKey.generate_key(256).as_dict()).encode(), "shared secret among public"),
        ("small.pem", _pem(small.public_key()), "RSA key of 1024 bits"),
        ("curve.pem", _pem(ec.generate_private_key(ec.SECP256K1()).public_key()), "of another kind"),
        ("list.json", b'{"keys": [1]}', "holds no public key"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(TokenKeyError, match=words):
            _verifier(path)
    with pytest.raises(TokenKeyError, match="cannot be read"):
        _verifier(tmp_path / "missing")


def test_a_token_for_anybody_is_not_configured(signer: tuple[ECKey, Path]) -> None:
    keys = (str(signer[1]),)
    for identity, words in (
        (Identity(jwt_keys=keys), "jwt_issuer is not set"),
        (Identity(jwt_keys=keys, jwt_issuer=ISSUER), "jwt_audience is not set"),
        (Identity(jwt_keys=("/no/key",), jwt_issuer=ISSUER, jwt_audience="x"), "no such file: /no/key"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_safety(Config(identity=identity))


async def test_a_token_over_the_network(
    serve: Callable[..., Any], sink: Any, identities: Any, signer: tuple[ECKey, Path]
) -> None:
    key, path = signer
    known = await identities(jwt_keys=(str(path),), jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    async with _listening(serve, sink, known, identity_required=True) as archive:
        good = _token("ES256", key)
        rejected, response = await _associate(archive.port, _negotiation(5, good))
        assert (rejected, response) == (None, good)
        assert archive.observer.calls[0].identity == "RADIOLOGIST"
        late = _token("ES256", key, exp=int(time.time()) - 600)
        assert (await _associate(archive.port, _negotiation(5, late)))[0] == REJECTED
        assert archive.observer.calls[1].reason == "a token that does not hold: expired_token"
        for _ in range(IdentityLimits().failures_max):
            rejected, _ = await _associate(archive.port, _negotiation(5, late))
        assert rejected == REJECTED
        # nobody guesses a signature: others behind the same address are not shut out
        assert await _associate(archive.port, _negotiation(5, good)) == (None, good)
