"""DICOM over TLS: weak bargains, certificates of strangers, expired, revoked or of another device."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from pydicom.data import get_testdata_file

from hounsfield.archive.net import accepting, listener
from hounsfield.archive.net.connection import Connection
from hounsfield.archive.net.destinations import ClientTls, Destinations
from hounsfield.archive.net.errors import ConnectionLostError, TlsError
from hounsfield.archive.net.limits import NetLimits
from hounsfield.archive.net.policy import ListenerPolicy, RemoteAe
from hounsfield.archive.net.scu import VERIFICATION_CONTEXT, associate
from hounsfield.archive.net.tls import client_context, server_context
from hounsfield.archive.wire import PresentationContext
from support.pki import Authority, Shown

CT = get_testdata_file("CT_small.dcm")
PATIENCE_S = 60


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
def ours(authority: Authority) -> Shown:
    return authority.sign("ARCHIVE")


# ---------------------------------------------------------------- what is agreed on


def _client(**wanted: Any) -> ssl.SSLContext:
    """A client that takes anything, also what a system's defaults forbid."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers(wanted.get("ciphers", "ALL:@SECLEVEL=0"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = wanted.get("least", ssl.TLSVersion.TLSv1)
        context.maximum_version = wanted.get("most", ssl.TLSVersion.MAXIMUM_SUPPORTED)
    return context


async def _agreed(port: int, context: ssl.SSLContext) -> tuple[str, str]:
    """Version and cipher that a handshake ends with. Raises what fails it."""
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context)
    async with stream:
        await stream.do_handshake()
        return str(stream.version()), stream.cipher()[0]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, ("TLSv1.3", None)),
        ({"most": ssl.TLSVersion.TLSv1_2}, ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384")),
        (
            {"most": ssl.TLSVersion.TLSv1_2, "ciphers": "ECDHE-ECDSA-AES128-GCM-SHA256"},
            ("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        ),
        (
            {"most": ssl.TLSVersion.TLSv1_2, "ciphers": "ECDHE-ECDSA-CHACHA20-POLY1305"},
            ("TLSv1.2", "ECDHE-ECDSA-CHACHA20-POLY1305"),
        ),
    ],
)
async def test_good_bargains_are_made(
    serve: Callable[..., Any], sink: Any, ours: Shown, wanted: dict[str, Any], expected: tuple[str, Any]
) -> None:
    async with serve(sink, ListenerPolicy(), tls=server_context(ours.pem, ours.key)) as archive:
        version, cipher = await _agreed(archive.port, _client(**wanted))
        assert version == expected[0]
        assert expected[1] in {None, cipher}


@pytest.mark.parametrize(
    "wanted",
    [
        {"most": ssl.TLSVersion.TLSv1},
        {"most": ssl.TLSVersion.TLSv1_1},
        {"most": ssl.TLSVersion.TLSv1_2, "ciphers": "AES256-GCM-SHA384:@SECLEVEL=0"},  # no forward secrecy
        {"most": ssl.TLSVersion.TLSv1_2, "ciphers": "ECDHE-ECDSA-AES256-SHA384:@SECLEVEL=0"},  # CBC
        {"most": ssl.TLSVersion.TLSv1_2, "ciphers": "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"},
        {"most": ssl.TLSVersion.TLSv1_2, "ciphers": "DHE-RSA-AES256-GCM-SHA384:@SECLEVEL=0"},
        {"most": ssl.TLSVersion.TLSv1_2, "ciphers": "aNULL:@SECLEVEL=0"},
        {"most": ssl.TLSVersion.TLSv1_2, "ciphers": "eNULL:@SECLEVEL=0"},
    ],
    ids=lambda wanted: f"{wanted['most'].name} {wanted.get('ciphers', '')}",
)
async def test_weak_bargains_are_refused(
    serve: Callable[..., Any], sink: Any, ours: Shown, wanted: dict[str, Any]
) -> None:
    async with serve(sink, ListenerPolicy(), tls=server_context(ours.pem, ours.key)) as archive:
        with pytest.raises(trio.BrokenResourceError):
            await _agreed(archive.port, _client(**wanted))
        await archive.until(lambda: archive.listener.statistics().connections_failed == 1)
        (record,) = archive.observer.calls
        assert (record.outcome, record.calling_ae) == ("refused", "")
        assert record.reason.startswith("no TLS: ")
        assert await _agreed(archive.port, _client())  # and goes on


def test_our_own_offer_is_no_weaker(ours: Shown) -> None:
    for context in (server_context(ours.pem, ours.key), client_context(bindings=("a",))):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        for cipher in context.get_ciphers():
            assert cipher["aead"], cipher
            assert cipher["kea"] in {"kx-ecdhe", "kx-any"}, cipher


# ---------------------------------------------------------------- who calls us

needs_storescu = pytest.mark.peer("storescu")


async def _storescu(archive: Any, ca: Path, shown: Shown | None, *titles: str) -> int:
    assert CT is not None
    tls = ["+tls", shown.key, shown.pem] if shown else ["+tla"]
    words = ["storescu", *tls, "+cf", ca, "-aec", "HOUNSFIELD", *titles, "127.0.0.1", "PORT", CT]
    done = await archive.run(*words)
    return int(done.returncode)


@needs_storescu
async def test_storescu_sends_with_its_certificate(
    serve: Callable[..., Any], sink: Any, authority: Authority, ours: Shown
) -> None:
    tls = server_context(ours.pem, ours.key, client_ca=authority.pem)
    async with serve(sink, ListenerPolicy(), tls=tls) as archive:
        assert await _storescu(archive, authority.pem, authority.sign("CT1"), "-aet", "CT1") == 0
        assert len(sink.objects) == 1
        (call,) = archive.observer.calls
        assert (call.outcome, call.certificate) == ("accepted", "CN=CT1")


@needs_storescu
async def test_storescu_sends_without_one_where_none_is_asked_for(
    serve: Callable[..., Any], sink: Any, authority: Authority, ours: Shown
) -> None:
    async with serve(sink, ListenerPolicy(), tls=server_context(ours.pem, ours.key)) as archive:
        assert await _storescu(archive, authority.pem, None) == 0
        assert archive.observer.calls[0].certificate == ""


@needs_storescu
@pytest.mark.parametrize("fault", ["none", "of another authority", "expired", "revoked"])
async def test_certificates_that_prove_nothing(
    serve: Callable[..., Any], sink: Any, authority: Authority, ours: Shown, tmp_path: Path, fault: str
) -> None:
    good = authority.sign("CT1")
    shown = {
        "none": None,
        "of another authority": Authority(tmp_path / "other", "elsewhere").sign("CT1"),
        "expired": authority.sign("CT1", days=-0.5, file="expired"),
        "revoked": good,
    }[fault]
    crl = authority.revoke(*([good] if fault == "revoked" else []))
    tls = server_context(ours.pem, ours.key, client_ca=authority.pem, client_crl=crl)
    async with serve(sink, ListenerPolicy(), tls=tls) as archive:
        assert await _storescu(archive, authority.pem, shown) != 0
        assert sink.objects == []
        await archive.until(lambda: len(archive.observer.calls) == 1)
        words = {
            "none": "peer did not return a certificate",
            "of another authority": "unable to get local issuer certificate",
            "expired": "certificate has expired",
            "revoked": "certificate revoked",
        }[fault]
        assert words in archive.observer.calls[0].reason


@pytest.mark.parametrize(
    ("fault", "alert"),
    [
        ("none", "CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE"),
        ("of another authority", "UNKNOWN_CA"),
        ("expired", "CERTIFICATE_EXPIRED"),
        ("revoked", "CERTIFICATE_REVOKED"),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_who_is_not_let_in_is_told_why(
    serve: Callable[..., Any], sink: Any, authority: Authority, ours: Shown, tmp_path: Path,
    fault: str, alert: str, version: ssl.TLSVersion,
) -> None:  # fmt: skip
    """In its own log: the alert comes before the connection is closed."""
    good = authority.sign("CT1")
    shown = {
        "none": None,
        "of another authority": Authority(tmp_path / "other", "elsewhere").sign("CT1"),
        "expired": authority.sign("CT1", days=-0.5, file="expired"),
        "revoked": good,
    }[fault]
    context = _client(least=version, most=version)
    if shown is not None:
        context.load_cert_chain(shown.pem, shown.key)
    crl = authority.revoke(*([good] if fault == "revoked" else []))
    tls = server_context(ours.pem, ours.key, client_ca=authority.pem, client_crl=crl)
    async with serve(sink, ListenerPolicy(), tls=tls) as archive:
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", archive.port, ssl_context=context)
        with trio.fail_after(PATIENCE_S), pytest.raises(trio.BrokenResourceError) as caught:
            await stream.send_all(b"our request")
            await stream.receive_some(100)
        assert re.search(alert, str(caught.value.__cause__)), caught.value.__cause__
        await trio.aclose_forcefully(stream)
        await archive.until(lambda: archive.listener.statistics().connections_open == 0)
        assert archive.listener.statistics().connections_failed == 1


@needs_storescu
@pytest.mark.parametrize(
    ("binding", "lets_in"),
    [
        ("pin", True),
        ("ct1.example.org", True),
        ("CT1", True),
        ("mr1.example.org", False),
        ("other pin", False),
    ],
)
async def test_a_title_is_bound_to_its_certificate(
    serve: Callable[..., Any], sink: Any, authority: Authority, ours: Shown, binding: str, lets_in: bool
) -> None:
    shown = authority.sign("CT1")
    bound = {"pin": shown.pin.upper().replace("SHA256", "sha256"), "other pin": ours.pin}.get(
        binding, binding
    )
    aes = {"CT1": RemoteAe("CT1", certificates=(bound,))}
    tls = server_context(ours.pem, ours.key, client_ca=authority.pem)
    async with serve(sink, ListenerPolicy(), tls=tls, aes=aes) as archive:
        code = await _storescu(archive, authority.pem, shown, "-aet", "CT1")
        assert (code == 0) is lets_in
        (call,) = archive.observer.calls
        assert call.certificate == "CN=CT1"
        if not lets_in:
            assert call.reason == "the certificate shown is not one that this AE title is bound to"
        # whose title is bound to nothing may show any certificate of the authority
        assert await _storescu(archive, authority.pem, shown, "-aet", "MR1") == 0


@pytest.mark.peer("storescu")
async def test_a_bound_title_cannot_be_used_without_tls(serve: Callable[..., Any], sink: Any) -> None:
    aes = {"CT1": RemoteAe("CT1", certificates=("ct1.example.org",))}
    async with serve(sink, ListenerPolicy(), aes=aes) as archive:
        done = await archive.run("echoscu", "-aec", "HOUNSFIELD", "-aet", "CT1", "127.0.0.1", "PORT")
        assert b"Calling AE Title Not Recognized" in done.stdout
        assert (
            archive.observer.calls[0].reason == "this AE title is bound to a certificate, and none was shown"
        )


# ---------------------------------------------------------------- whom we call


@contextmanager
def _storescp(authority: Authority, shown: Shown, directory: Path, *words: str) -> Iterator[int]:
    program = shutil.which("storescp")
    assert program is not None
    directory.mkdir()
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = int(reserved.getsockname()[1])
    command = [
        program,
        "+tls",
        shown.key,
        shown.pem,
        "+cf",
        authority.pem,
        *words,
        "-od",
        directory,
        str(port),
    ]
    process = subprocess.Popen(
        command, env={**os.environ, "TCP_NODELAY": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


async def _echoes(ae: RemoteAe, tls: ClientTls) -> int:
    """The status of a C-ECHO to ``ae``, called as the registry says; tried until it listens."""
    remote = Destinations(lambda: {ae.title: ae}, tls=tls).find(ae.title)
    assert remote is not None
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                await (await trio.open_tcp_stream("127.0.0.1", ae.port)).aclose()
            except OSError:
                await trio.sleep(0.02)
                continue
            break
    async with associate(remote, [VERIFICATION_CONTEXT]) as association:
        return (await association.echo()).status


@pytest.mark.peer("storescp")
@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("its host in the certificate", None),
        ("another host in the certificate", "IP address mismatch"),
        ("another host, bound by name", None),
        ("another host, bound by fingerprint", None),
        ("bound to another certificate", "not one that this AE is bound to"),
        ("bound to another name", "not one that this AE is bound to"),
        ("expired", "certificate has expired"),
        ("of another authority", "unable to get local issuer certificate"),
        ("not among the revoked", None),
        ("revoked", "certificate revoked"),
        ("revoked, bound by name", "certificate revoked"),
        ("revoked, by the list of its entry", "certificate revoked"),
        ("judged by a list that has ended", "CRL has expired"),
        ("judged by a list of another authority", "unable to get certificate CRL"),
        ("of another authority, bound by fingerprint", None),
        ("of another authority, bound by name", "unable to get local issuer certificate"),
    ],
)
async def test_storescp_is_who_it_should_be(
    authority: Authority, tmp_path: Path, case: str, error: str | None
) -> None:
    theirs = (
        Authority(tmp_path / "other", "elsewhere") if case.startswith("of another authority") else authority
    )
    shown = theirs.sign(
        "STORE",
        host="192.0.2.1" if "another host" in case else "127.0.0.1",
        days=-0.5 if case == "expired" else 9,
    )
    client = authority.sign("ARCHIVE")
    bindings = {
        "another host, bound by name": ("store.example.org",),
        "another host, bound by fingerprint": (shown.pin,),
        "bound to another certificate": (client.pin,),
        "bound to another name": ("mr1.example.org",),
        "of another authority, bound by fingerprint": (shown.pin,),
        "of another authority, bound by name": ("store.example.org",),
    }.get(case, ())
    if case.startswith("revoked"):
        bindings = ("store.example.org",) if "bound" in case else ()
    crl = {
        "not among the revoked": lambda: authority.revoke(client),
        "judged by a list that has ended": lambda: authority.revoke(days=-0.5),
        "judged by a list of another authority": lambda: Authority(tmp_path / "other", "elsewhere").revoke(),
    }.get(case, lambda: authority.revoke(shown) if case.startswith("revoked") else "")()
    own = {"tls_ca": str(authority.pem), "tls_crl": str(crl)} if "of its entry" in case else {}
    tls = ClientTls(str(client.pem), str(client.key), str(authority.pem), "" if own else str(crl))
    with _storescp(authority, shown, tmp_path / "in", "-rc") as port:
        ae = RemoteAe("STORE", "127.0.0.1", port, tls=True, certificates=bindings, **own)
        if error is None:
            assert await _echoes(ae, tls) == 0
        else:
            with pytest.raises(TlsError, match=error):
                await _echoes(ae, tls)


@pytest.mark.peer("storescp")
@pytest.mark.parametrize(
    ("shown", "words"),
    [("none", "alert certificate required"), ("a stranger's", "alert unknown ca|alert decrypt")],
)
async def test_storescp_says_what_it_has_against_ours(
    authority: Authority, tmp_path: Path, shown: str, words: str
) -> None:
    """In TLS 1.3 it says so when our part of the handshake is done."""
    wrong = Authority(tmp_path / "other", "elsewhere").sign("ARCHIVE")
    own = (str(wrong.pem), str(wrong.key)) if shown != "none" else ("", "")
    with _storescp(authority, authority.sign("STORE"), tmp_path / "in", "-rc") as port:
        ae = RemoteAe("STORE", "127.0.0.1", port, tls=True)
        with pytest.raises((TlsError, ConnectionLostError)) as caught:
            await _echoes(ae, ClientTls(*own, str(authority.pem)))
        # the alert, unless the end of the connection overtook it
        said = (
            f"STORE@127.0.0.1:{port} (ended TLS: .*({words})|closed .* perhaps it does not accept our cert)"
        )
        assert re.match(said, str(caught.value))


@pytest.mark.peer("storescp")
async def test_an_entry_goes_before_what_holds_for_all(authority: Authority, tmp_path: Path) -> None:
    client, shown = authority.sign("ARCHIVE"), authority.sign("STORE")
    with _storescp(authority, shown, tmp_path / "in", "-rc") as port:
        ae = RemoteAe(
            "STORE", "127.0.0.1", port, tls=True, tls_ca=str(authority.pem),
            tls_certificate=str(client.pem), tls_key=str(client.key),
        )  # fmt: skip
        elsewhere = Authority(tmp_path / "other", "elsewhere")
        wrong = elsewhere.sign("ARCHIVE")
        tls = ClientTls(str(wrong.pem), str(wrong.key), str(elsewhere.pem))
        assert await _echoes(ae, tls) == 0


def test_whom_nobody_can_call() -> None:
    known = {"CT1": RemoteAe("CT1", sources=("192.0.2.7",)), "WS": RemoteAe("WS", "192.0.2.9", 11112)}
    destinations = Destinations(lambda: known, ae_title="OURS")
    assert destinations.find("CT1") is None
    assert destinations.find("NOBODY") is None
    remote = destinations.find("WS ")
    assert remote is not None
    assert (str(remote), remote.calling_ae, remote.tls) == ("WS@192.0.2.9:11112", "OURS", None)
    known["WS"] = RemoteAe("WS", "192.0.2.9", called_title="THEIRS", calling_title="MINE")
    remote = destinations.find("WS")
    assert remote is not None
    assert (remote.called_ae, remote.calling_ae, remote.port) == ("THEIRS", "MINE", 104)


def test_results_of_commitment_go_where_the_entry_says() -> None:
    known = {
        "CT1": RemoteAe("CT1", "192.0.2.7", commitment_to="CT1_COMMIT"),
        "CT1_COMMIT": RemoteAe("CT1_COMMIT", "192.0.2.7", 105),
        "CT2": RemoteAe("CT2", "192.0.2.8"),
        "CT3": RemoteAe("CT3", "192.0.2.9", commitment_to="NOBODY"),
    }
    destinations = Destinations(lambda: known)
    told = {title: str(destinations.find_for_commitment(title)) for title in (*known, "STRANGER")}
    assert told == {
        "CT1": "CT1_COMMIT@192.0.2.7:105",
        "CT1_COMMIT": "CT1_COMMIT@192.0.2.7:105",
        "CT2": "CT2@192.0.2.8:104",
        "CT3": "None",
        "STRANGER": "None",
    }


def test_files_that_are_no_keys_are_named(authority: Authority, ours: Shown, tmp_path: Path) -> None:
    none = tmp_path / "none.pem"
    none.write_text("nothing", encoding="ascii")
    with pytest.raises(TlsError, match=r"none\.pem holds no PEM revocation list"):
        server_context(ours.pem, ours.key, client_ca=authority.pem, client_crl=none)
    with pytest.raises(TlsError, match="holds no PEM revocation list"):
        server_context(ours.pem, ours.key, client_ca=authority.pem, client_crl=authority.pem)
    with pytest.raises(TlsError, match="are not a PEM certificate and its key"):
        server_context(ours.pem, authority.sign("OTHER").key)
    ae = RemoteAe("WS", "192.0.2.9", tls=True, tls_ca=str(none))
    with pytest.raises(TlsError, match=r"none\.pem holds no PEM certificates"):
        Destinations(dict).entity(ae)


def test_certificates_are_read_anew(authority: Authority, ours: Shown) -> None:
    ae = RemoteAe("WS", "192.0.2.9", tls=True)
    tls = ClientTls(str(ours.pem), str(ours.key), str(authority.pem))
    destinations = Destinations(dict, tls=tls)
    first = destinations.entity(ae).tls
    assert destinations.entity(ae).tls is first
    destinations.load(ae_title="OURS", tls=tls)
    assert destinations.entity(ae).tls is not first


async def test_who_speaks_no_tls_is_told_apart(
    serve: Callable[..., Any], sink: Any, ours: Shown, authority: Authority, peer_to: Any
) -> None:
    """The commonest mistake of all: TLS is on at one end only."""
    async with serve(sink, ListenerPolicy(), tls=server_context(ours.pem, ours.key)) as archive:
        plain = await peer_to(archive)
        await plain.request(PresentationContext(1, "1.2.840.10008.1.1", ("1.2.840.10008.1.2",)))
        await archive.until(lambda: len(archive.observer.calls) == 1)
        assert "speaks no TLS" in archive.observer.calls[0].reason
    async with serve(sink, ListenerPolicy()) as archive:
        ae = RemoteAe("PLAIN", "127.0.0.1", archive.port, tls=True)
        with pytest.raises(TlsError, match="speaks no TLS"):
            await _echoes(ae, ClientTls("", "", str(authority.pem)))


# ---------------------------------------------------------------- the security profiles of PS3.15 B


@pytest.mark.peer("echoscu")
@pytest.mark.parametrize(
    ("profile", "agreed"),
    [
        ("--profile-bcp195-nd", True),
        ("--profile-bcp195", True),
        ("--profile-bcp195-ex", True),
        ("--profile-aes", False),  # retired: no forward secrecy, CBC
        ("--profile-null", False),  # retired: not even encrypted
    ],
)
@pytest.mark.parametrize("kind", ["EC", "RSA"])
async def test_profiles_of_others(
    serve: Callable[..., Any], sink: Any, authority: Authority, profile: str, agreed: bool, kind: str
) -> None:
    ours = authority.sign("ARCHIVE", rsa_key=kind == "RSA")
    theirs = authority.sign("CT1", rsa_key=kind == "RSA")
    tls = server_context(ours.pem, ours.key, client_ca=authority.pem)
    async with serve(sink, ListenerPolicy(), tls=tls) as archive:
        done = await archive.run(
            "echoscu", "+tls", theirs.key, theirs.pem, "+cf", authority.pem, profile, "-aec", "HOUNSFIELD",
            "127.0.0.1", "PORT",
        )  # fmt: skip
        assert (done.returncode == 0) is agreed, done.stdout
        await archive.until(lambda: archive.listener.statistics().connections_open == 0)
        assert archive.listener.statistics().echoes == agreed


# ---------------------------------------------------------------- handshakes that do not end


async def _half(port: int) -> trio.SocketStream:
    """A connection on which half of a TLS record came."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(b"\x16\x03\x01\x02\x00\x01")
    return stream


async def _cut(stream: trio.SocketStream) -> None:
    with trio.fail_after(PATIENCE_S):
        try:
            while await stream.receive_some(1000):
                pass
        except trio.BrokenResourceError:
            pass


async def test_half_a_handshake_is_as_slow_as_no_request(
    serve: Callable[..., Any], sink: Any, ours: Shown
) -> None:
    tls = server_context(ours.pem, ours.key)
    limits = NetLimits(artim_s=0.05, linger_s=0.2)
    async with serve(sink, ListenerPolicy(), tls=tls, limits=limits) as archive:
        await _cut(await _half(archive.port))
        await archive.until(lambda: len(archive.observer.calls) == 1)
        assert archive.observer.calls[0].reason == "no TLS: too slow"


async def test_a_handshake_gives_no_second_time_for_the_request(
    serve: Callable[..., Any], sink: Any, ours: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One period for both, from the connection on."""
    begun: list[float] = []
    deadlines: list[float] = []

    class Noted(Connection):
        def _patience(self) -> float:
            deadlines.append(super()._patience())
            return deadlines[-1]

    class NotedHandshake(accepting.Handshake):
        def __init__(self, address: str, deadline: float) -> None:
            begun.append(deadline)
            super().__init__(address, deadline)

    monkeypatch.setattr(listener, "Connection", Noted)
    monkeypatch.setattr(accepting, "Handshake", NotedHandshake)
    async with serve(sink, ListenerPolicy(), tls=server_context(ours.pem, ours.key)) as archive:
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", archive.port, ssl_context=_client())
        await stream.do_handshake()
        await archive.until(lambda: bool(deadlines))
        await trio.aclose_forcefully(stream)
    assert deadlines == begun


async def test_half_handshakes_do_not_pile_up(serve: Callable[..., Any], sink: Any, ours: Shown) -> None:
    tls = server_context(ours.pem, ours.key)
    limits = NetLimits(pending_connections_max=2, linger_s=0.2)
    async with serve(sink, ListenerPolicy(), tls=tls, limits=limits) as archive:
        half = [await _half(archive.port) for _ in range(4)]
        await _cut(half[0])
        await _cut(half[1])
        await archive.until(lambda: archive.listener.statistics().connections_open == 2)
        assert await _agreed(archive.port, _client())


async def test_a_drain_waits_for_no_handshake(serve: Callable[..., Any], sink: Any, ours: Shown) -> None:
    tls = server_context(ours.pem, ours.key)
    async with serve(sink, ListenerPolicy(), tls=tls, limits=NetLimits(artim_s=3600)) as archive:
        half = await _half(archive.port)
        await archive.until(lambda: archive.listener.statistics().connections_open == 1)
        with trio.fail_after(PATIENCE_S):
            await archive.listener.drain()
        await _cut(half)
