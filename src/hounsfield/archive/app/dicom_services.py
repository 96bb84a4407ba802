"""What is provided over DIMSE beyond C-ECHO and C-STORE, and what the archive tells others by itself."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence

from hounsfield.archive.app.resources import Resources
from hounsfield.archive.config import Config
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.finding import FindLimits
from hounsfield.archive.engine.leadership import Leadership
from hounsfield.archive.net.availability import AvailabilityNotices
from hounsfield.archive.net.commitment import StorageCommitment
from hounsfield.archive.net.destinations import Destinations
from hounsfield.archive.net.find import FindProvider
from hounsfield.archive.net.getting import get_service
from hounsfield.archive.net.moving import move_service
from hounsfield.archive.net.services import Service
from hounsfield.archive.net.suboperations import RetrieveFigures, RetrieveLimits

LEASE_S = 15.0
"""Of those that call others back: who falls silent is succeeded after this long."""


class DicomServices:
    """The services of one worker."""

    def __init__(self, resources: Resources, engine: Engine, destinations: Destinations) -> None:
        config = resources.config
        owner = f"worker {resources.boot.worker} {os.getpid()}"

        def leadership(name: str) -> Leadership:
            return Leadership(engine.stores.store, engine.gate, name, owner=owner, lease_s=LEASE_S)

        self._engine = engine
        self._commitment = StorageCommitment(engine.commitments, destinations, leadership("commitment"))
        self._notices = AvailabilityNotices(
            engine.availability,
            destinations,
            leadership("availability"),
            ae_title=config.archive.ae_title,
        )
        dicom = config.dicom
        retrieving = RetrieveLimits(associations=dicom.move_associations, retries=dicom.move_retries)
        self._retrieved = RetrieveFigures()
        limits = FindLimits(answers_max=dicom.find_answers_max, headers_max=dicom.find_headers_max)
        self._find = FindProvider(engine, limits, relational=dicom.find_relational_always)
        self.services: Sequence[Service] = (
            self._find.service(),
            move_service(engine, destinations, retrieving, figures=self._retrieved),
            get_service(engine, retrieving, self._retrieved),
            self._commitment.service(),
        )
        self.load(config)

    def load(self, config: Config) -> None:
        """Use what ``config`` says of them from now on."""
        self._engine.availability.to = config.dicom.availability_to

    def background(self) -> list[Callable[[], Awaitable[None]]]:
        """What runs beside the listener, until cancelled."""
        return [self._commitment.run, self._notices.run]

    def figures(self) -> Mapping[str, int]:
        """For the scoreboard."""
        return {
            **self._find.figures(),
            **self._retrieved.named(),
            **self._commitment.figures(),
            **self._notices.figures(),
        }
