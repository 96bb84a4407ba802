"""Every limit on what a peer can make this package hold, wait for or do, with its default and its reason."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NetLimits"]

_KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NetLimits:
    """Limits of one worker's listener, and of one association. Times are in seconds."""

    pdu_bytes_max: int = 256 * _KIB
    """The longest P-DATA-TF that we announce (PS3.8 D.1): past it throughput stops growing."""

    associations_max: int = 200
    """Open at once, over all workers. One beyond it is told "local limit exceeded", which is transient."""

    associations_per_address_max: int = 100
    """Of those, from one address: one device that leaks associations does not shut out the others."""

    pending_connections_max: int = 128
    """Connections without an association: within the TLS handshake, before the request, or refused and not
    closed yet. One more cuts the oldest of the address that has the most of them: a device sends its
    request at once, who holds connections open without one is first to go."""

    artim_s: float = 30.0
    """From the connection until the association request is here whole, the TLS handshake included
    (PS3.8 9.1.5). All of it is a few round trips; a link that wakes up first takes seconds."""

    idle_s: float = 600.0
    """Between two messages of an association. Modalities keep one open through a whole examination."""

    dimse_s: float = 60.0
    """Between two receptions within a message, and until the response to a request of ours."""

    receive_rate_min: int = 1024
    """Bytes a second that a message must come with, once ``dimse_s`` has passed: a byte a minute
    is no sender. A 9600 baud line would just do."""

    write_s: float = 30.0
    """A peer that takes nothing of what we have to say for so long is gone."""

    identifier_bytes_max: int = 4096 * _KIB
    """The data set of a query or another long request, which is held whole; those of one association that
    are not answered, together. The longest honest ones list UIDs: 60,000 of them fit, or 30,000
    instances whose storage is to be committed. What is longer is taken, forgotten, and answered with "out of
    resources"."""

    operations_invoked_max: int = 16
    """Operations that a peer may have outstanding with us, if it asks for more than one (PS3.7 D.3.3.3). Each
    C-STORE among them holds its object until it is durable; 16 CT slices fill a group commit, and past
    it throughput stops growing. Also how many long operations of one association may still be at work."""

    operations_performed_max: int = 16
    """The same, of ours with the peer: sub-operations of its C-GET."""

    linger_s: float = 2.0
    """After our last word, until the peer closes. Closing first, with bytes unread, would reset the
    connection and the peer might never see why."""

    linger_bytes_max: int = 16 * 1024 * _KIB
    """What is read and thrown away meanwhile: a peer in the middle of an object does not stop at once."""

    drain_release_s: float = 0.25
    """While draining, how long a sender whose object was just answered may take to release or go on."""

    unyielded_bytes_max: int = 4 * 1024 * _KIB
    """A peer faster than us never blocks: after so many bytes the other associations get a turn."""

    unyielded_fragments_max: int = 500
    """The same, counted in fragments, which may hold a byte each: each costs some 15 microseconds. A sender
    of whole PDUs of 16 KiB gets to the bytes first."""
