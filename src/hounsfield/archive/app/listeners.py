"""Opening the listening sockets, once, in the supervisor; every worker inherits them."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from pathlib import Path

from hounsfield.archive.config import Config
from hounsfield.archive.errors import ConfigError, ListenError

# Connections that the kernel holds while every worker is busy; the kernel caps it at net.core.somaxconn.
BACKLOG = 1024
TOKEN_CHARACTERS_MIN = 20


@dataclass(frozen=True)
class Listener:
    """A listening socket, and the entry of the configuration that asked for it."""

    kind: str
    index: int
    sock: socket.socket

    @property
    def address(self) -> tuple[str, int]:
        """The address and port really listened on (the port that the kernel chose, when 0 was asked for)."""
        host, port = self.sock.getsockname()[:2]
        return host, port


def open_listeners(config: Config) -> list[Listener]:
    """Listen on every address of the configuration, or on none: ListenError for the first bad one."""
    opened: list[Listener] = []
    try:
        wanted = [("dicom", index, each.host, each.port) for index, each in enumerate(config.dicom.listeners)]
        wanted += [("http", index, each.host, each.port) for index, each in enumerate(config.http.listeners)]
        for kind, index, host, port in wanted:
            opened += [Listener(kind, index, sock) for sock in _listen(kind, index, host, port)]
    except BaseException:
        for listener in opened:
            listener.sock.close()
        raise
    return opened


def _listen(kind: str, index: int, host: str, port: int) -> list[socket.socket]:
    name = f"{kind}.listeners[{index}] ({host}:{port})"
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
        return f"something else listens there already; stop it, or choose another port with --{kind}"
    if error.errno == errno.EACCES and port < 1024:
        return (
            f"ports below 1024 need a privilege; choose another with --{kind} or grant CAP_NET_BIND_SERVICE"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    return str(error.strerror or error)


def read_bearer_tokens(path: str) -> tuple[str, ...]:
    """The bearer tokens in ``path``, one a line; ``#`` begins a comment. Raises ConfigError.

    The file must not be readable by others, and a token must be long enough not to be guessed.
    """
    if not path:
        return ()
    file = Path(path)
    try:
        if file.stat().st_mode & 0o007:
            raise ConfigError(f"http.bearer_token_file {path} can be read by everybody: `chmod 640 {path}`")
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds more than ASCII"
        raise ConfigError(f"cannot read http.bearer_token_file {path}: {reason}") from None
    tokens = tuple(token for line in lines if (token := line.partition("#")[0].strip()))
    if not tokens:
        raise ConfigError(f"http.bearer_token_file {path} holds no token: put one on a line")
    for number, token in enumerate(tokens, 1):
        if len(token) < TOKEN_CHARACTERS_MIN or any(character.isspace() for character in token):
            raise ConfigError(
                f"http.bearer_token_file {path}: token {number} must have at least "
                f"{TOKEN_CHARACTERS_MIN} characters and no spaces; `openssl rand -hex 32` makes a good one"
            )
    return tokens
