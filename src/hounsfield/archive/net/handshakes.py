"""TLS handshakes that are waited for, by whoever listens."""

from __future__ import annotations

import trio

__all__ = ["Handshake"]


class Handshake:
    """A TLS handshake under way, which can be cut."""

    def __init__(self, address: str, deadline: float) -> None:
        self.address = address
        self.because = ""
        self.scope = trio.CancelScope(deadline=deadline)

    def end(self, because: str) -> None:
        self.because = self.because or because
        self.scope.cancel()
