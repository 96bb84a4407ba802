"""TLS: versions, client certificates, what the application learns of them, peers that do not shake hands."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import ssl
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hounsfield.archive.web.http import HttpLimits, TlsConfigError, server_context


def _issue(directory: Path, name: str, issuer=None) -> SimpleNamespace:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(issuer.key if issuer else key, hashes.SHA256())
    )
    made = SimpleNamespace(
        key=key, certificate=certificate, pem=directory / f"{name}.pem", key_pem=directory / f"{name}.key"
    )
    made.pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key_pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return made


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pki")
    ca = _issue(directory, "ca")
    return SimpleNamespace(
        ca=ca,
        server=_issue(directory, "server", ca),
        client=_issue(directory, "viewer-7", ca),
        stranger=_issue(directory, "stranger"),
    )


def client_context(pki, certificate=None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=pki.ca.pem)
    if certificate is not None:
        context.load_cert_chain(certificate.pem, certificate.key_pem)
    return context


async def ask(port: int, context: ssl.SSLContext, wire=b"GET /x HTTP/1.0\r\n\r\n") -> bytes:
    stream = await trio.open_ssl_over_tcp_stream(
        "127.0.0.1", port, ssl_context=context, https_compatible=True
    )
    async with stream:
        await stream.send_all(wire)
        return b"".join([piece async for piece in stream])


async def test_https(listening, recorder, pki):
    context = server_context(pki.server.pem, pki.server.key_pem)
    async with listening(recorder, ssl_context=context) as (_server, port):
        body = bytes(range(256)) * 4096
        wire = b"POST /x HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        assert (await ask(port, client_context(pki), wire)).endswith(body)
        assert recorder.scopes[0]["scheme"] == "https"
        tls = recorder.scopes[0]["extensions"]["tls"]
        assert tls["tls_version"] == 0x0304
        assert (tls["client_cert_name"], tls["client_cert_chain"]) == (None, [])
        assert recorder.scopes[0]["client"][0] == "127.0.0.1"


async def test_tls_1_2_with_forward_secrecy_and_nothing_older(listening, recorder, pki):
    context = server_context(pki.server.pem, pki.server.key_pem)
    assert all(cipher["name"].startswith(("ECDHE", "TLS_")) for cipher in context.get_ciphers())
    async with listening(recorder, ssl_context=context) as (server, port):
        client = client_context(pki)
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        await ask(port, client)
        assert recorder.scopes[0]["extensions"]["tls"]["tls_version"] == 0x0303
        with pytest.warns(DeprecationWarning):
            client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
        client.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(trio.BrokenResourceError):
            await ask(port, client)
        while server.statistics().parse_errors == 0:
            await trio.lowlevel.checkpoint()


async def test_mutual_tls_names_the_client(listening, recorder, pki):
    context = server_context(pki.server.pem, pki.server.key_pem, client_ca=pki.ca.pem)
    async with listening(recorder, ssl_context=context) as (_, port):
        await ask(port, client_context(pki, pki.client))
        tls = recorder.scopes[0]["extensions"]["tls"]
        assert tls["client_cert_name"] == "CN=viewer-7"
        assert tls["client_cert_chain"][0] == pki.client.pem.read_text()
        for certificate in (None, pki.stranger):
            answer = b""
            with contextlib.suppress(trio.BrokenResourceError):  # TLS 1.3: refused after the client is done
                answer = await ask(port, client_context(pki, certificate))
            assert answer == b""
        assert len(recorder.seen) == 1


async def test_client_certificates_may_be_optional(listening, recorder, pki):
    context = server_context(
        pki.server.pem, pki.server.key_pem, client_ca=pki.ca.pem, require_client_certificate=False
    )
    async with listening(recorder, ssl_context=context) as (_, port):
        await ask(port, client_context(pki))
        await ask(port, client_context(pki, pki.client))
        names = [scope["extensions"]["tls"]["client_cert_name"] for scope in recorder.scopes]
        assert names == [None, "CN=viewer-7"]


async def test_plain_http_on_the_tls_port_is_cut(listening, recorder, pki):
    context = server_context(pki.server.pem, pki.server.key_pem)
    async with listening(recorder, ssl_context=context) as (_server, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        try:
            answer = b"".join([piece async for piece in stream])
        except trio.BrokenResourceError:
            answer = b""
        assert b"HTTP" not in answer
        assert recorder.seen == []


async def test_tls_handshake_s(listening, recorder, pki, mock_clock):
    context = server_context(pki.server.pem, pki.server.key_pem)
    limits = HttpLimits(tls_handshake_s=10)
    async with listening(recorder, limits, ssl_context=context) as (server, port):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        while server.statistics().connections_open == 0:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(11)
        with contextlib.suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
        assert server.statistics().timed_out == 1


def test_bad_files_are_named(pki, tmp_path):
    missing = tmp_path / "none.pem"
    with pytest.raises(TlsConfigError, match=r"none\.pem"):
        server_context(missing, pki.server.key_pem)
    with pytest.raises(TlsConfigError, match="its key"):
        server_context(pki.server.pem, pki.client.key_pem)
    (tmp_path / "empty.pem").touch()
    with pytest.raises(TlsConfigError, match=r"empty\.pem"):
        server_context(pki.server.pem, pki.server.key_pem, client_ca=tmp_path / "empty.pem")


async def test_large_bodies_and_pipelined_requests_over_tls(listening, pki):
    """Bodies past every buffer, and requests that OpenSSL holds decrypted when the socket is silent."""
    big = bytes(range(256)) * 16384

    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": [b"x" * 10, memoryview(big)]})

    context = server_context(pki.server.pem, pki.server.key_pem)
    async with listening(app, ssl_context=context) as (server, port):
        wire = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 7 + b"GET / HTTP/1.0\r\n\r\n"
        got = await ask(port, client_context(pki), wire)
        assert got.count(b"x" * 10 + big) == 8
        assert server.statistics().bytes_out == len(got)


async def test_a_body_cut_short_over_tls_does_not_look_whole(listening, pki):
    """A body that ends with the connection is whole only if close_notify says so."""

    async def app(scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    context = server_context(pki.server.pem, pki.server.key_pem)
    async with listening(app, ssl_context=context) as (_, port):
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=client_context(pki))
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        await trio.aclose_forcefully(stream)
