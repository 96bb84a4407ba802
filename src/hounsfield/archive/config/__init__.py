"""config.toml as frozen structs: :func:`load_config` reads it, :func:`check_safety` refuses the unsafe."""

from __future__ import annotations

from hounsfield.archive.config.entities import check_ae
from hounsfield.archive.config.load import known_keys, load_config
from hounsfield.archive.config.safety import check_safety, is_loopback
from hounsfield.archive.config.sections import (
    SECRET_SOURCES,
    Archive,
    Config,
    Dicom,
    DicomListener,
    Http,
    HttpListener,
    Identity,
    Ingest,
    Keys,
    Logs,
    Metrics,
    RemoteAE,
    Scrub,
    Section,
    Storage,
)

__all__ = [
    "SECRET_SOURCES",
    "Archive",
    "Config",
    "Dicom",
    "DicomListener",
    "Http",
    "HttpListener",
    "Identity",
    "Ingest",
    "Keys",
    "Logs",
    "Metrics",
    "RemoteAE",
    "Scrub",
    "Section",
    "Storage",
    "check_ae",
    "check_safety",
    "is_loopback",
    "known_keys",
    "load_config",
]
