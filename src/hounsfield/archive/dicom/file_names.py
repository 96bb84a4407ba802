"""File names for what strangers call things."""

from __future__ import annotations

import hashlib

__all__ = ["safe_name"]


def safe_name(uid: str) -> str:
    """A file name for a UID that a stranger sent: itself when it looks like one, else a hash."""
    if len(uid) <= 64 and set(uid) <= set("0123456789.") and uid[:1].isdigit():
        return uid
    return "x" + hashlib.sha256(uid.encode()).hexdigest()[:32]
