"""What an S3 server's answers mean here. obstore says most of it in words, so words are read."""

from __future__ import annotations

import re

from hounsfield.storage_backends.errors import BlobNotFoundError, ShortReadError, StorageError, StoreFullError
from hounsfield.storage_backends.object_store import StoreAwayError, StoreRefusedError

__all__ = ["is_not_implemented", "translated"]

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,80})</Code>")
_FULL = {"QuotaExceeded", "InsufficientCapacity", "XMinioStorageFull", "EntityTooLarge"}
_PASSING_4XX = {408, 409, 425, 429}
_PASSING_CODES = {
    "RequestTimeout",  # 400: the connection was idle for too long
    "SlowDown",
    "XAmzContentSHA256Mismatch",  # what arrived is not what was sent
    "BadDigest",
    "IncompleteBody",
    "MalformedXML",  # the list of an upload's parts, damaged on the way,
    "InvalidPart",  # or naming one that the store has lost: the whole put is made again
    "InvalidPartOrder",
    "NoSuchUpload",  # an end whose answer was lost: there is nothing to abort
}
_CERTIFICATE = ("certificate", "UnknownIssuer", "CertificateError")


def is_not_implemented(error: Exception) -> bool:
    """Whether the server said that it has no such thing as a header that was sent (501)."""
    found = _STATUS.search(str(error))
    return found is not None and found.group(1) == "501"


def translated(error: Exception, what: str) -> StorageError:
    """``error`` of obstore's as one of ours; ``what`` was tried, e.g. ``reading 'packs/…' of s3://bucket``."""
    text = str(error)
    status_found, code_found = _STATUS.search(text), _CODE.search(text)
    status = int(status_found.group(1)) if status_found else 0
    code = code_found.group(1) if code_found else ""
    said = " ".join(part for part in (str(status or ""), code) if part)
    if code == "NoSuchBucket":
        return StoreRefusedError(f"{what}: there is no such bucket; make it, or correct the tier's address")
    if "/latest/api/token" in text or "/latest/meta-data" in text:
        return StoreAwayError(
            f"{what}: the tier has no keys, and no instance metadata service gives any; see credentials"
        )
    if isinstance(error, FileNotFoundError) and code != "NoSuchUpload":
        return BlobNotFoundError(f"{what}: no such object")
    if status == 416:
        return ShortReadError(f"{what}: the object ends before the range does")
    if code in _FULL or status == 507:
        return StoreFullError(f"{what}: the store is full, or a quota is used up ({said})")
    if status != 501 and (code in _PASSING_CODES or status in _PASSING_4XX or status >= 500):
        return StoreAwayError(f"{what}: the store answers {said}; try again later")
    if code == "RequestTimeTooSkewed":
        return StoreRefusedError(f"{what}: this machine's clock and the store's differ too much ({said})")
    if status in (401, 403) or type(error).__name__ in ("UnauthenticatedError", "PermissionDeniedError"):
        return StoreRefusedError(f"{what}: refused ({said}); check the tier's credentials and their rights")
    if 300 <= status < 400 or "BareRedirect" in text:
        return StoreRefusedError(f"{what}: the bucket is elsewhere ({said}); check region and endpoint")
    if status >= 400:
        return StoreRefusedError(f"{what}: the store does not take the request ({said})")
    if any(word in text for word in _CERTIFICATE):
        return StoreRefusedError(
            f"{what}: the server's certificate is not trusted; give the tier the authority that signed it"
        )
    if "URL scheme is not allowed" in text or "builder error" in text:
        return StoreRefusedError(f"{what}: the address cannot be used; http:// must be permitted")
    if code:  # an error in the body of an answer that began well
        return StoreAwayError(f"{what}: the store answers {code}; try again later")
    return StoreAwayError(f"{what}: {_reason(text)}; try again later")


_REASONS = (
    ("operation timed out", "no answer in time"),
    ("TimedOut", "no answer in time"),
    ("dns error", "the server's name is not known"),
    ("Connection refused", "nobody listens there"),
    ("ConnectionRefused", "nobody listens there"),
    ("Requested ", "the answer is another range than was asked for"),
    ("body error", "the connection broke in the middle of an answer"),
    ("error sending request", "the connection broke before an answer"),
)


def _reason(text: str) -> str:
    return next((reason for sign, reason in _REASONS if sign in text), "the answer is not to be understood")
