"""HTTP: the server (:mod:`.http`) and the DICOMweb application on it. ``create_app`` is the way in."""

from __future__ import annotations

from hounsfield.archive.web.application import create_app
from hounsfield.archive.web.limits import WebLimits, WebSettings

__all__ = ["WebLimits", "WebSettings", "create_app"]
