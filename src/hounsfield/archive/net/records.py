"""What the listener tells about itself: figures of the moment, and one record for each call."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CallRecord", "EndRecord", "ListenerObserver", "ListenerStatistics"]


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One A-ASSOCIATE-RQ and what we said to it; titles are the caller's own words, not trusted.

    ``outcome`` is ``accepted`` or ``refused``; ``reason`` says why it was refused, "" otherwise.
    ``time`` is seconds since the epoch. ``identity`` is the verified user, ``certificate`` the subject of the
    one shown in the TLS handshake; "" when there is none.
    """

    time: float
    address: str
    calling_ae: str
    called_ae: str
    outcome: str
    reason: str = ""
    identity: str = ""
    certificate: str = ""


@dataclass(frozen=True, slots=True)
class EndRecord:
    """An accepted association that is over, and what was done in it."""

    call: CallRecord
    time: float
    reason: str
    """``released``, or why it ended without a release."""
    seconds: float
    objects: int
    """Received and answered with success or a warning."""
    objects_failed: int
    bytes_in: int
    bytes_out: int


@dataclass(frozen=True, slots=True)
class ListenerStatistics:
    """A moment's figures of one worker's listener. Counts are since its start."""

    connections_open: int
    connections_total: int
    connections_failed: int
    """Ended before an association request came: garbage, silence, a failed TLS handshake, evicted."""
    associations_open: int
    associations_accepted: int
    associations_refused: int
    associations_released: int
    associations_aborted: int
    """By either side, or cut off."""
    associations_timed_out: int
    """Of the aborted ones, those that were too slow."""
    echoes: int
    objects_received: int
    """Answered with success or a warning."""
    objects_warned: int
    objects_failed: int
    objects_abandoned: int
    """Begun and never finished by the sender: nothing of them is kept."""
    bytes_in: int
    bytes_out: int


class ListenerObserver:
    """What a listener tells its owner, as it happens; override what is of interest. Must not block.

    The default counts this listener's own associations, so limits hold for one worker. The
    composition root overrides the counts with the whole archive's.
    """

    def __init__(self) -> None:
        self._open = 0
        self._from: dict[str, int] = {}
        self._of: dict[str, int] = {}

    def connection_opened(self) -> None:
        """A connection was accepted."""

    def connection_closed(self) -> None:
        """A connection is gone."""

    def association_opened(self, address: str) -> None:
        """An association is about to be accepted: counted before the limits are looked at."""
        self._open += 1
        self._from[address] = self._from.get(address, 0) + 1

    def association_closed(self, address: str) -> None:
        """What ``association_opened`` counted is over."""
        self._open -= 1
        left = self._from[address] - 1
        if left:
            self._from[address] = left
        else:
            del self._from[address]

    def associations_open(self) -> int:
        """How many associations are open now, the one just announced included."""
        return self._open

    def associations_from(self, address: str) -> int:
        """How many of them are from ``address``."""
        return self._from.get(address, 0)

    def entity_opened(self, title: str) -> None:
        """An association of a known AE that has a limit of its own is about to be accepted: counted before
        the limit is looked at."""
        self._of[title] = self._of.get(title, 0) + 1

    def entity_closed(self, title: str) -> None:
        """What ``entity_opened`` counted is over."""
        self._of[title] -= 1
        if not self._of[title]:
            del self._of[title]

    def associations_of(self, title: str) -> int:
        """How many of those are open now, the one just announced included."""
        return self._of.get(title, 0)

    def called(self, call: CallRecord) -> None:
        """An association request was answered."""

    def handshake_failed(self, call: CallRecord) -> None:
        """A TLS handshake failed: nobody knows which AE it would have been, its titles are empty."""

    def ended(self, end: EndRecord) -> None:
        """An accepted association is over."""

    def association_aborted(self) -> None:
        """An association ended without a release."""
