"""Every limit on what a peer can make this package hold or do, with its default and its reason."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WireLimits"]

_KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WireLimits:
    """What a peer may ask of one association. Lengths are bytes unless the name says otherwise."""

    receive_buffer_bytes: int = 512 * _KIB
    """The one buffer a peer can fill. A P-DATA-TF may be longer: its payload streams through. Two PDUs
    of the length we advertise: a fast sender is read in few calls, and 100 associations hold 50 MiB."""

    receive_buffer_bytes_first: int = 16 * _KIB
    """What that buffer is until so much has come at once: who only connects or asks costs no more."""

    associate_bytes_max: int = 256 * _KIB
    """A-ASSOCIATE-RQ/AC, held whole before parsing: 128 contexts of 60 transfer syntaxes each are
    some 200 KiB, and the user information item cannot be over 64 KiB."""

    pdata_tolerance_bytes: int = 128
    """By how much a P-DATA-TF may be longer than the maximum we advertised (PS3.8 D.1). Some devices
    count only the fragment against it and forget the 6-byte header of each PDV. Takes no memory."""

    pdata_unlimited_bytes_max: int = 64 * 1024 * _KIB
    """The longest P-DATA-TF when we advertised 0, "no maximum". A length beyond it is garbage, not data."""

    presentation_contexts_max: int = 128
    """There are 128 odd numbers in a byte (PS3.8 9.3.2.2)."""

    transfer_syntaxes_max: int = 128
    """Transfer syntaxes in one context. The standard has some 60, retired ones included."""

    uid_bytes_max: int = 128
    """A UID is at most 64 (PS3.5 9.1). Twice that: a bad UID costs a device that context, not everything."""

    user_items_max: int = 1024
    """Sub-items in the user information: 128 contexts × role, extended, common extended; and spare."""

    related_classes_max: int = 128
    """Related general SOP classes in one common extended negotiation item (PS3.7 D.3.3.6)."""

    identity_bytes_max: int = 60 * _KIB
    """One field of a user identity: SAML assertions and Kerberos tickets reach tens of KiB."""

    version_name_bytes_max: int = 64
    """Implementation version name: 16 by the standard (PS3.7 D.3.3.2); some devices send more."""

    peer_pdu_bytes_min: int = 64
    """The least maximum length a peer may ask for. Every PDU costs 12 bytes of header and some
    microseconds: a peer that asks for 7-byte PDUs is asking us to spend a thousand times its own effort."""

    peer_pdu_bytes_default: int = 16 * _KIB
    """What we send to a peer that did not state a maximum (mandatory, PS3.7 D.3.3.1, yet some forget)."""

    send_pdu_bytes_max: int = 256 * _KIB
    """Our own ceiling on a P-DATA-TF, for peers that accept any length: beyond it nothing gets faster."""

    command_bytes_max: int = 16 * _KIB
    """A command set, held whole. Real ones are 100–300; an N-GET can list 4,000 attributes within this."""

    dataset_bytes_max: int = 2 * 1024 * 1024 * 1024 * _KIB
    """One data set, streamed, never held here: 2 TiB, more than any receiver takes, so that it is the
    receiver who says no. Memory and disk budgets are its; this ends a data set that never ends."""

    def __post_init__(self) -> None:
        if self.receive_buffer_bytes < 1024:
            raise ValueError("receive_buffer_bytes must be at least 1024: command PDUs would come in crumbs")
        if self.peer_pdu_bytes_min < 16:
            raise ValueError(
                "peer_pdu_bytes_min must be at least 16: a PDV needs 6 bytes of header and an even payload"
            )
        if not self.peer_pdu_bytes_min <= self.send_pdu_bytes_max:
            raise ValueError("send_pdu_bytes_max must not be below peer_pdu_bytes_min")
