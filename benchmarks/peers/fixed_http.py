"""An HTTP server that answers every request with the same bytes: what the HTTP load generator can do at most.

python -m benchmarks.peers.fixed_http [--port 0] [--bytes 524288]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket


def serve(sock: socket.socket, answer: bytes) -> None:
    """One keep-alive connection; a request is whatever ends with an empty line."""
    buffer = bytearray(65536)
    view = memoryview(buffer)
    have = 0
    while got := sock.recv_into(view[have:]):
        have += got
        if buffer.find(b"\r\n\r\n", 0, have) >= 0:
            have = 0
            sock.sendall(answer)


def main() -> None:
    """Listens, prints `ready PORT`, forks a process for each connection."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.fixed_http", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bytes", type=int, default=512 * 1024)
    arguments = parser.parse_args()
    body = os.urandom(arguments.bytes)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    listener = socket.create_server(("127.0.0.1", arguments.port), backlog=64)
    listener.settimeout(0.1)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print(f"ready {listener.getsockname()[1]}", flush=True)
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        try:
            sock, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listener.close()
            sock.setblocking(True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(ConnectionError):
                serve(sock, answer)
            os._exit(0)
        sock.close()


if __name__ == "__main__":
    main()
