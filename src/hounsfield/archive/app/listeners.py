"""Opening the listening sockets, once, in the supervisor; every worker inherits them."""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hounsfield.archive.app.plugins import listens_of
from hounsfield.archive.config import Config
from hounsfield.archive.errors import ListenError
from hounsfield.archive.security.bearer import BearerTokens

# Connections that the kernel holds while every worker is busy; the kernel caps it at net.core.somaxconn.
BACKLOG = 1024
DESCRIPTORS_MAX = 65_536
DESCRIPTORS_BESIDE = 256
"""Segments, the index, pipes to decoders, connections without an association: of one worker."""


@dataclass(frozen=True)
class Listener:
    """A listening socket, and the entry of the configuration that asked for it."""

    kind: str  # "dicom", "http", or PLUGIN.LISTENER
    index: int
    sock: socket.socket
    tls: bool = False

    @property
    def address(self) -> tuple[str, int]:
        """The address and port really listened on (the port that the kernel chose, when 0 was asked for)."""
        host, port = self.sock.getsockname()[:2]
        return host, port


def open_listeners(config: Config) -> list[Listener]:
    """Listen on every address of the configuration, or on none: ListenError for the first bad one."""
    opened: list[Listener] = []
    try:
        for kind, index, listener, tls in _wanted(config):
            host, port = listener.host, listener.port
            opened += [Listener(kind, index, sock, tls) for sock in _listen(kind, index, host, port)]
    except BaseException:
        for listener in opened:
            listener.sock.close()
        raise
    return opened


def _wanted(config: Config) -> Iterator[tuple[str, int, Any, bool]]:
    for index, dicom in enumerate(config.dicom.listeners):
        yield "dicom", index, dicom, dicom.tls
    for index, http in enumerate(config.http.listeners):
        yield "http", index, http, http.tls
    for name, listen in listens_of(config):
        yield name, 0, listen, bool(listen.tls_certificate)


def allow_descriptors(config: Config) -> str:
    """Take as many file descriptors as this process and its children may have: a shell gives 1024.

    What must be announced, "" for nothing: without a descriptor no connection is accepted and no object kept.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    needed = config.dicom.associations_max + config.http.connections_max + DESCRIPTORS_BESIDE
    needed += sum(listen.connections_max for _, listen in listens_of(config))
    if most >= needed:
        return ""
    return (
        f"{most} open files are permitted (ulimit -Hn), {needed} may be needed: raise it, or lower "
        "dicom.associations_max and http.connections_max"
    )


def _listen(kind: str, index: int, host: str, port: int) -> list[socket.socket]:
    name = f"{kind if '.' in kind else f'{kind}.listeners[{index}]'} ({host}:{port})"
    try:
        found = socket.getaddrinfo(
            host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ListenError(f"{name}: no such host ({error.strerror})") from error
    sockets: list[socket.socket] = []
    try:
        for family, kind_, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind_, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            if port == 0:
                break  # a second family would get another port, and one answer is wanted
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ListenError(f"{name}: {_why(error, kind, port)}") from error
    return sockets


def _why(error: OSError, kind: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"something else listens there already; stop it, or choose another port{_how(kind)}"
    if error.errno == errno.EACCES and port < 1024:
        return f"ports below 1024 need a privilege; choose another{_how(kind)} or grant CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return str(error.strerror or error)


def _how(kind: str) -> str:
    """With which option; a plugin's listeners have none."""
    return "" if "." in kind else f" with --{kind}"


def check_token_file(config: Config) -> None:
    """Raise TokenFileError when http.bearer_token_file is set and cannot be used; workers read it again."""
    if config.http.bearer_token_file:
        BearerTokens(Path(config.http.bearer_token_file))
