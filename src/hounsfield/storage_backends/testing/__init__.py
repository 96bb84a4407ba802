"""The conformance suites: what every blob store, key-value store and object store must do.

A backend's test calls each check of :data:`BLOB_CHECKS`, :data:`KEY_VALUE_CHECKS` or
:data:`OBJECT_STORE_CHECKS` with a function that opens the store. Called again after ``close`` it must
open the same content (memory stores return the same object). Checks raise ``AssertionError``; they need
nothing but the standard library.
"""

from __future__ import annotations

from hounsfield.storage_backends.testing.blob_suite import BLOB_CHECKS
from hounsfield.storage_backends.testing.key_value_suite import (
    CONFORMANCE_TABLES,
    KEY_VALUE_CHECKS,
    LOG,
    OTHER,
    PLAIN,
    POSTINGS,
    check_increments,
    increment_once,
)
from hounsfield.storage_backends.testing.object_store_suite import OBJECT_STORE_CHECKS

__all__ = [
    "BLOB_CHECKS",
    "CONFORMANCE_TABLES",
    "KEY_VALUE_CHECKS",
    "LOG",
    "OBJECT_STORE_CHECKS",
    "OTHER",
    "PLAIN",
    "POSTINGS",
    "check_increments",
    "increment_once",
]
