"""All endpoints of the RIS, one row each."""

from __future__ import annotations

from typing import Final

from hounsfield.ris_plugin.api import (
    catalog,
    examinations,
    messages,
    mismatches,
    orders,
    patients,
    planning,
    reports,
    schedule,
    templates,
)
from hounsfield.ris_plugin.api.endpoints import Endpoint

__all__ = ["BY_NAME", "ENDPOINTS"]

ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    *patients.ENDPOINTS,
    *orders.ENDPOINTS,
    *schedule.ENDPOINTS,
    *planning.ENDPOINTS,
    *examinations.ENDPOINTS,
    *mismatches.ENDPOINTS,
    *reports.ENDPOINTS,
    *templates.ENDPOINTS,
    *catalog.ENDPOINTS,
    *messages.ENDPOINTS,
)
BY_NAME: Final = {one.name: one for one in ENDPOINTS}
