"""Wiring: from a worker's resources to its services. The only place where the archive's objects meet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hounsfield.archive.app.resources import Resources, Services


@asynccontextmanager
async def build_services(resources: Resources) -> AsyncIterator[Services]:
    """Everything one worker runs, opened; closed again when the block is left."""
    services = Services()
    del resources
    yield services
