"""Several associations that store at once, and what was acknowledged to them, by SOP Instance UID.

With the plain upper layer of ``benchmarks``, not ours: a test of the archive must not share its mistakes.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from dataclasses import dataclass, field

from benchmarks.cstore_load import CONTEXT_ID, Association, Load
from benchmarks.upper_layer import (
    FRAGMENT_OVERHEAD,
    P_DATA,
    PDU_HEADER,
    PDV_HEADER,
    PDV_OVERHEAD,
    RefusedError,
    command_pdu,
    store_request,
)
from pydicom.uid import CTImageStorage

from support.archives import ct_slice

_UID = "2.25." + "9" * 38
_RECONNECT_SECONDS = 0.05


@dataclass
class Made:
    """One object of a load."""

    study: str
    series: str
    sop: str
    digest: str


@dataclass
class StoreLoad:
    """``associations`` threads that store until told to stop. Each has a study and a series of its own.

    Loads with the same ``study_seed`` go on in the same studies, each in new series.

    With ``reconnect`` a sender whose association ends calls again and repeats what was not answered, as
    modalities do; without, it ends.
    """

    port: int
    seed: int
    associations: int = 8
    reconnect: bool = False
    objects_max: int = 100_000
    study_seed: int | None = None
    acknowledged: list[Made] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)
    """SOP Instance UID of all that was sent, acknowledged or not."""
    made: dict[str, Made] = field(default_factory=dict)
    """All that was sent, by SOP Instance UID."""
    failures: list[str] = field(default_factory=list)
    lost_associations: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> StoreLoad:
        for number in range(self.associations):
            thread = threading.Thread(target=self._send, args=(number,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def finish(self, seconds: float = 60.0) -> None:
        """Stop after the object under way; every thread has ended then."""
        self._stop.set()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "a sender waits for ever"

    def _send(self, number: int) -> None:
        rng = random.Random(f"{self.seed}-{number}")
        # Sizes from one fragment to several, so that associations are at different points when it ends.
        pixels = rng.randbytes(rng.choice((512, 60_000, 300_000, 524_288)) & ~1)
        study, series = _uid(rng), _uid(rng)
        if self.study_seed is not None:
            study = _uid(random.Random(f"{self.study_seed}-{number}"))
        template = ct_slice(study_uid=study, series_uid=series, sop_uid=_UID, pixels=pixels)
        association: Association | None = None
        pending: tuple[Made, bytes] | None = None
        for _ in range(self.objects_max):
            if self._stop.is_set():
                break
            if pending is None:
                sop = _uid(rng)
                data = template.replace(_UID.encode(), sop.encode())
                pending = Made(study, series, sop, hashlib.sha256(data).hexdigest()), data
            made, data = pending
            try:
                if association is None:
                    association = Association(Load("127.0.0.1", self.port, "HOUNSFIELD"), CTImageStorage)
                self.sent.add(made.sop)
                self.made[made.sop] = made
                status = association.store(memoryview(framed(data, made.sop, association.max_pdu)), 1)
            except (OSError, RefusedError):
                association = None
                self.lost_associations += 1
                if not self.reconnect:
                    return
                self._stop.wait(_RECONNECT_SECONDS)
                continue
            if status == 0:
                self.acknowledged.append(made)
                pending = None
            else:
                self.failures.append(f"{status:04X}")
                if not self.reconnect:
                    return
                self._stop.wait(_RECONNECT_SECONDS)
        if association is not None:
            association.release()


def framed(data: bytes, sop: str, max_pdu: int) -> bytearray:
    """A C-STORE request and its data set as PDUs."""
    out = bytearray(command_pdu(CONTEXT_ID, store_request(CTImageStorage, sop, 1)))
    chunk = max_pdu - PDV_OVERHEAD
    for start in range(0, len(data), chunk):
        piece = data[start : start + chunk]
        out += PDU_HEADER.pack(P_DATA, len(piece) + FRAGMENT_OVERHEAD - PDU_HEADER.size)
        out += PDV_HEADER.pack(len(piece) + 2, CONTEXT_ID, 2 if start + chunk >= len(data) else 0)
        out += piece
    return out


def _uid(rng: random.Random) -> str:
    """A UID of the length of :data:`_UID`."""
    return f"2.25.{rng.randrange(10**37, 10**38)}"
