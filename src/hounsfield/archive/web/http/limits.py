"""Every limit of the HTTP server: a name, a default, a reason. ``tests/web_http/test_limits.py`` has a
test for each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """How much of anything one peer, or all of them, may take. Times in seconds, sizes in bytes."""

    # -- the request head
    request_line_bytes_max: int = 16 * 1024
    """QIDO queries carry lists of UIDs (64 bytes each): 16 KiB holds 200 of them. Past it: 414."""
    header_bytes_max: int = 32 * 1024
    """The whole head, request line included: cookies and a bearer token fit four times over. Past it: 431."""
    header_count_max: int = 100
    """Browsers send some 20. Past it: 431."""

    # -- time
    first_byte_s: float = 15.0
    """A new connection that says nothing holds a slot: a browser's speculative connection is cheap to
    reopen."""
    header_s: float = 15.0
    """From a request's first byte to the end of its head, however steadily it drips (slow-loris). Past it:
    408."""
    keep_alive_s: float = 75.0
    """Idle time between requests: longer than the 60 s that proxies in front keep theirs, so that they
    close first."""
    body_idle_s: float = 30.0
    """No byte of a request body for so long: a radio link's worst pause. Past it: 408."""
    body_rate_min: int = 1024
    """Bytes a second, over the time spent waiting beyond ``rate_grace_s``: a modality on a bad line does
    10 KiB/s."""
    write_stall_s: float = 30.0
    """The peer's window stayed shut for so long: it is not reading. The connection is reset."""
    write_rate_min: int = 1024
    """Bytes a second, as ``body_rate_min``, for slow readers; what their kernels take of ours counts."""
    rate_grace_s: float = 15.0
    """Waiting that the rates forgive: slow starts, a laptop that wakes up."""
    linger_s: float = 2.0
    """After an error answer, how long to swallow what the peer still sends, so that a reset does not eat
    the answer."""
    tls_handshake_s: float = 10.0
    """A handshake is two round trips and some arithmetic."""
    grace_s: float = 30.0
    """How long requests in flight may take once the server drains: orchestrators kill after 30 to 90 s."""
    lifespan_s: float = 60.0
    """Start-up and shut-down of the application: opening the archive may replay a journal's tail."""

    # -- the request body
    body_bytes_max: int = 64 * 1024**3
    """One STOW-RS request may carry a whole study; the largest seen are some 20 GiB. Past it: 413."""
    body_unread_max: int = 256 * 1024
    """What the application left unread is swallowed up to here to keep the connection; past it, it closes."""
    chunk_line_bytes_max: int = 256
    """A chunk's size and extensions: real ones are under 10 bytes, signed S3 uploads under 90."""
    chunk_overhead_bytes_max: int = 64 * 1024
    """Chunk extensions and trailers of one request together: nothing reads them, so a flood of them is an
    attack."""
    trailer_count_max: int = 32
    """Trailers are checked and dropped; real senders have one or two."""

    # -- counts
    connections_max: int = 1000
    """Sockets and some 20 KiB each. At the limit, the longest idle one makes room, else 503."""
    refuse_after_s: float = 1.0
    """When full, a new connection waits this long in the kernel's queue (another worker may take it)
    before its 503."""
    pipelined_bytes_max: int = 64 * 1024
    """What a peer may send ahead while its request is being answered; past it the socket is not read."""
    requests_per_connection_max: int = 100_000
    """A connection that never ends keeps its worker for ever: re-balance now and then."""

    # -- WebSocket
    websocket_message_bytes_max: int = 1024 * 1024
    """Ours are live updates and commands: kilobytes. Past it: close 1009."""
    websocket_queue_bytes_max: int = 4 * 1024 * 1024
    """Messages the application has not taken yet; past it the socket is not read."""
    websocket_ping_s: float = 20.0
    """Keeps proxies' idle timers (60 s) quiet and finds dead peers."""
    websocket_pong_s: float = 20.0
    """A ping unanswered for so long: the peer is gone (1006)."""
    websocket_close_s: float = 5.0
    """How long to wait for the peer's half of the closing handshake."""
