"""A tier in a bucket of any S3 server, over obstore (the extra ``s3``).

obstore's blocking calls let the GIL go and make many requests at once in threads of their own. It repeats a
request that a server answers with 5xx, or whose connection breaks, a few times within seconds; whoever
wants to wait longer puts :class:`~hounsfield.storage_backends.store_wrappers.Retrying` around.

A large put is a multipart upload: nothing can be seen of it until it is completed, and when it fails it is
aborted. Only a process that is killed in the middle, or a store that is away when an upload is to be aborted,
leaves invisible parts that cost money: a lifecycle rule of the bucket (AbortIncompleteMultipartUpload after
7 days) ends them.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hounsfield.storage_backends.api import Buffer
from hounsfield.storage_backends.errors import BlobNotFoundError, ShortReadError, StorageError
from hounsfield.storage_backends.handover import Handover
from hounsfield.storage_backends.local_blobs import check_blob_name, is_blob_name
from hounsfield.storage_backends.object_store import StoreAwayError, StoreRefusedError
from hounsfield.storage_backends.s3_credentials import (
    ANONYMOUS,
    WHAT_THEY_ARE,
    credential_source,
    names_a_source,
)
from hounsfield.storage_backends.s3_errors import is_not_implemented, translated

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config
    from obstore.store import S3Store as ObstoreS3

__all__ = ["S3Limits", "S3Options", "S3Store"]

_MIB = 1 << 20
_PARTS_MAX = 10_000  # of one multipart upload: S3's own limit,
_PART_BYTES_MIN = 5 * _MIB  # and of all parts but the last


# What obstore takes the process down for, when it makes a request of it, is refused before.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_REGION = re.compile(r"[A-Za-z0-9-]{1,64}")
_HOST = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")


def _is_address(host: str) -> bool:
    """Also what an URL takes for one: its last part is a number."""
    return ":" in host or host.rstrip(".").rpartition(".")[2].isdigit()


@dataclass(frozen=True, slots=True)
class S3Options:
    """Where a bucket is and how it is spoken to. Holds no secret: it may be shown."""

    bucket: str
    endpoint: str | None = None
    """``https://host[:port]`` of the server; None: Amazon's, of the region."""

    region: str = "us-east-1"
    """Servers of one's own take the usual default."""

    prefix: str = ""
    """Folder within the bucket, so that several tiers can share one: ``hounsfield/cold``."""

    path_style: bool | None = None
    """``host/bucket/key`` (True) or ``bucket.host/key``; None: the former when an endpoint is given."""

    ca_file: Path | None = None
    """Certificates (PEM) trusted beside the system's, for a server whose certificate is one's own."""

    allow_http: bool = False
    """Speak without TLS. Contents are sealed, keys of the bucket are not sent; names and sizes are seen."""

    credentials: str = "default"
    """See :func:`~hounsfield.storage_backends.s3_credentials.credential_source`."""

    proxy: str | None = None
    """HTTP proxy; None: as the environment says (``HTTPS_PROXY``, ``NO_PROXY``)."""

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            raise ValueError(f"not the name of a bucket: {self.bucket!r}")
        if not _REGION.fullmatch(self.region):
            raise ValueError(f"not the name of a region: {self.region!r}")
        if self.prefix:
            check_blob_name(self.prefix)
        if not names_a_source(self.credentials):
            raise ValueError(f"{WHAT_THEY_ARE}: the keys themselves do not belong here")
        if self.endpoint is None:
            return
        parts = urlsplit(self.endpoint)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.path.strip("/")
            or not (_HOST.fullmatch(parts.hostname) or _is_address(parts.hostname))
        ):
            raise ValueError("an endpoint is https://host or https://host:port")
        if parts.username or parts.password:
            raise ValueError("an endpoint holds no keys; see credentials")
        if parts.port == 0:  # and urlsplit itself refuses one that is too large
            raise ValueError("an endpoint's port is 1 to 65535")
        if self.path_style is False and _is_address(parts.hostname):
            raise ValueError("no bucket goes before an address: path_style is path there, or auto")
        if parts.scheme == "http" and not self.allow_http:
            raise ValueError(
                f"{self.endpoint} is without TLS: use https://, or permit it there: plain = true"
            )


@dataclass(frozen=True, slots=True)
class S3Limits:
    """What one ``S3Store`` may use, and how long it waits."""

    connect_s: float = 5
    """For a connection. A server in the same house takes milliseconds, one across an ocean 0.3 s."""

    silence_s: float = 20
    """Without a byte of an answer. Busy servers have been seen to take seconds for the first one."""

    request_s: float = 60
    """For one request with its body: a range or part of 8 MiB then needs 140 kB/s."""

    retries: int = 2
    """Of one request, within ``retry_s``: for the part of a large put that fails once."""

    retry_s: float = 10

    range_bytes: int = 8 * _MIB
    """Of one request when much is read: large enough that its latency is small beside it. Half of it costs
    both ends a tenth more of their processors."""

    ranges_in_flight: int = 4
    """Of one stream or large read, which so holds at most 32 MiB."""

    part_bytes: int = 8 * _MIB
    """Of a multipart upload; at least 5 MiB (S3). Parts of very large objects are larger."""

    parts_in_flight: int = 4
    """Of one put, which so holds at most 48 MiB (one part more is being filled, one waits)."""

    whole_bytes: int = 16 * _MIB
    """Objects up to this size are put in one request."""

    threads: int = 16
    """That fetch ranges, of all streams and large reads together; more wait."""

    def __post_init__(self) -> None:
        if self.part_bytes < _PART_BYTES_MIN:
            raise ValueError(f"parts have at least {_PART_BYTES_MIN >> 20} MiB; servers refuse smaller ones")


class S3Store:
    """An ``ObjectStore`` (and ``CreatesOnce``) in a bucket. Thread-safe.

    Opening asks nothing of the server. ``StoreRefusedError``: obstore is not installed, keys or certificates
    cannot be read. Not to be used across a fork.
    """

    def __init__(self, options: S3Options, limits: S3Limits | None = None) -> None:
        self._options = options
        self._limits = limits or S3Limits()
        self._prefix = options.prefix + "/" if options.prefix else ""
        self._store = _opened(options, self._limits)
        self._threads = ThreadPoolExecutor(self._limits.threads, thread_name_prefix=f"s3-{options.bucket}")

    def __repr__(self) -> str:
        at = f" at {self._options.endpoint}" if self._options.endpoint else ""
        return f"<S3Store s3://{self._options.bucket}/{self._prefix}{at}>"

    # -- writing

    def put(self, key: str, pieces: Iterable[Buffer], length: int) -> None:
        import obstore

        path = self._path(key)
        if length > self._limits.whole_bytes:
            self._put_in_parts(key, path, pieces, length)
            return
        data = b"".join(_parts(pieces, length, max(length, 1)))
        try:
            obstore.put(self._store, path, data, use_multipart=False)
        except Exception as error:
            raise self._translated(error, "putting", key) from error

    def _put_in_parts(self, key: str, path: str, pieces: Iterable[Buffer], length: int) -> None:
        """Pieces are asked for in the caller's thread: where obstore asks, it takes no other call."""
        import obstore

        part_bytes = self._part_bytes(length)
        handover = Handover()

        def upload() -> None:
            try:
                obstore.put(
                    self._store,
                    path,
                    iter(handover),
                    use_multipart=True,
                    chunk_size=part_bytes,
                    max_concurrency=self._limits.parts_in_flight,
                )
            finally:
                handover.taker_left()

        with ThreadPoolExecutor(1, thread_name_prefix="s3-put") as thread:
            uploading = thread.submit(upload)
            try:
                for part in _parts(pieces, length, part_bytes):
                    if not handover.give(part):
                        break
            except BaseException:
                handover.give_up()
                raise
            handover.end()
            try:
                uploading.result()
            except Exception as error:
                raise self._translated(error, "putting", key) from error

    def create(self, key: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        path = self._path(key)
        try:
            obstore.put(self._store, path, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        except Exception as error:
            if not is_not_implemented(error):
                raise self._translated(error, "putting", key) from error
            self.put(
                key, [data], len(data)
            )  # a server without If-None-Match; whoever asks reads what is there
        return True

    def delete(self, key: str) -> None:
        import obstore

        path = self._path(key)
        try:
            obstore.delete(self._store, path)
        except Exception as error:
            ours = self._translated(error, "deleting", key)
            if not isinstance(ours, BlobNotFoundError):
                raise ours from error

    # -- reading

    def read(self, key: str, offset: int, length: int) -> bytes:
        if length <= self._limits.range_bytes:
            return bytes(self._range(key, offset, offset + length)[0])
        return b"".join(self.stream(key, offset, offset + length))

    def read_into(self, key: str, offset: int, buffer: bytearray | memoryview) -> None:
        view = memoryview(buffer).cast("B")
        at = 0
        for piece in self.stream(key, offset, offset + len(view)):
            view[at : at + len(piece)] = piece
            at += len(piece)

    def stream(self, key: str, start: int = 0, stop: int | None = None) -> Iterator[Buffer]:
        self._path(key)
        if stop is not None and stop - start <= self._limits.range_bytes:
            yield self._range(key, start, stop)[0]
            return
        if stop is None:
            try:
                first, whole = self._range(key, start, start + self._limits.range_bytes, clipped=True)
            except ShortReadError:
                if start != self.size(key):  # an empty range is none that a server can give
                    raise
                return
            yield first
            start, stop = start + len(first), whole.size
            yield from self._ranges(key, start, stop, whole)
        else:
            yield from self._ranges(key, start, stop, None)

    def _ranges(self, key: str, start: int, stop: int, same: _Whole | None) -> Iterator[Buffer]:
        """A window of ranges that moves on as its first is taken."""
        step = self._limits.range_bytes
        edges = iter(pairwise([*range(start, stop, step), stop]))
        window: deque[Future[tuple[memoryview, _Whole]]] = deque()

        def fill() -> None:
            while len(window) < self._limits.ranges_in_flight and (edge := next(edges, None)):
                try:
                    window.append(self._threads.submit(self._range, key, *edge))
                except RuntimeError:
                    raise StoreAwayError(f"{self._at('reading', key)}: it is being closed") from None

        try:
            fill()
            while window:
                try:
                    piece, whole = window.popleft().result()
                except CancelledError:
                    raise StoreAwayError(f"{self._at('reading', key)}: it is being closed") from None
                if same is not None and whole != same:
                    raise StoreAwayError(
                        f"{self._at('reading', key)}: it was replaced meanwhile; read it again"
                    )
                same = whole
                fill()
                yield piece
        finally:
            for waiting in window:
                waiting.cancel()

    def _range(self, key: str, start: int, stop: int, *, clipped: bool = False) -> tuple[memoryview, _Whole]:
        """One request's bytes, and what they are of; fewer only when ``clipped`` and the object ends."""
        import obstore

        path = self._path(key)
        if start >= stop:
            size = self.size(key)
            if start > size:
                raise ShortReadError(
                    f"{self._at('reading', key)}: the object ends {start - size} bytes before"
                )
            return memoryview(b""), _Whole(size, None)
        try:
            result = obstore.get(self._store, path, options={"range": (start, stop)})
            data = memoryview(result.bytes())
        except Exception as error:
            raise self._translated(error, "reading", key) from error
        whole = _Whole(result.meta["size"], result.meta["e_tag"])
        expected = min(stop, whole.size) - start
        if len(data) != expected:
            raise StoreAwayError(
                f"{self._at('reading', key)}: {len(data)} bytes came instead of {expected}; try again later"
            )
        if expected != stop - start and not clipped:
            raise ShortReadError(
                f"{self._at('reading', key)}: the object ends {stop - whole.size} bytes before the range does"
            )
        return data, whole

    def size(self, key: str) -> int:
        import obstore

        path = self._path(key)
        try:
            return obstore.head(self._store, path)["size"]
        except Exception as error:
            raise self._translated(error, "asking for", key) from error

    def names(self, prefix: str = "") -> Iterator[str]:
        import obstore

        # obstore's prefixes end where a folder does.
        folder = (self._prefix + prefix).rpartition("/")[0]
        if folder and not is_blob_name(folder):
            return
        try:
            for page in obstore.list(self._store, folder or None, chunk_size=1000):
                for found in page:
                    name = found["path"].removeprefix(self._prefix)
                    if name.startswith(prefix) and is_blob_name(name):
                        yield name
        except (StorageError, GeneratorExit):
            raise
        except Exception as error:
            raise self._translated(error, "listing", prefix) from error

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- what these share

    def _path(self, key: str) -> str:
        return self._prefix + check_blob_name(key)

    def _part_bytes(self, length: int) -> int:
        needed = -(-length // _PARTS_MAX)
        return max(self._limits.part_bytes, -(-needed // _MIB) * _MIB)

    def _at(self, doing: str, key: str) -> str:
        return f"{doing} {key!r} of {self!r}"

    def _translated(self, error: Exception, doing: str, key: str) -> StorageError:
        if isinstance(error, StorageError):
            return error
        return translated(error, self._at(doing, key))


@dataclass(frozen=True, slots=True)
class _Whole:
    """What a range is of: another answer to the same name differs in this."""

    size: int
    e_tag: str | None


def _parts(pieces: Iterable[Buffer], length: int, part_bytes: int) -> Iterator[bytearray]:
    """The bytes of pieces in parts of one size, each in memory of its own: it is sent while others come."""
    part, left = bytearray(), length
    for piece in pieces:
        view = memoryview(piece).cast("B")
        left -= len(view)
        if left < 0:
            raise ValueError(f"more than the {length} bytes that were said to come")
        while len(view):
            taken = view[: part_bytes - len(part)]
            part += taken
            view = view[len(taken) :]
            if len(part) == part_bytes:
                yield part
                part = bytearray()
    if left:
        raise ValueError(f"{left} bytes fewer than the {length} that were said to come")
    if part:
        yield part


# ---------------------------------------------------------------- opening


def _opened(options: S3Options, limits: S3Limits) -> ObstoreS3:
    try:
        from obstore.store import S3Store as Opened
    except ImportError:
        raise StoreRefusedError(
            "a tier in a bucket needs the package obstore: pip install 'hounsfield[s3]'"
        ) from None
    config: S3Config = {
        "region": options.region,
        "disable_bulk_delete": True,  # servers lack it, and one by one is what we do
        "unsigned_payload": False,  # so that the server compares what arrived with what was sent;
        "checksum_algorithm": "SHA256",  # some do so only for this, which costs no second digest
    }
    path_style = options.path_style if options.path_style is not None else options.endpoint is not None
    config["virtual_hosted_style_request"] = not path_style
    if options.endpoint is not None:
        config["endpoint"] = _endpoint(options.endpoint, None if path_style else options.bucket)
    if options.credentials == ANONYMOUS:
        config["skip_signature"] = True
    source = credential_source(options.credentials)
    client: ClientConfig = {
        "allow_http": options.allow_http,
        "connect_timeout": timedelta(seconds=limits.connect_s),
        "read_timeout": timedelta(seconds=limits.silence_s),
        "timeout": timedelta(seconds=limits.request_s),
    }
    if options.proxy is not None:
        client["proxy_url"] = options.proxy
    if options.ca_file is not None:
        try:
            client["root_certificate"] = options.ca_file.read_bytes()
        except OSError as error:
            raise StoreRefusedError(f"ca_file {options.ca_file} cannot be read: {error.strerror}") from None
    arguments: dict[str, Any] = {} if source is None else {"credential_provider": source}
    try:
        return Opened(
            options.bucket,
            config=config,
            client_options=client,
            retry_config={
                "max_retries": limits.retries,
                "retry_timeout": timedelta(seconds=limits.retry_s),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=2),
                    "base": 2,
                },
            },
            **arguments,
        )
    except Exception as error:
        raise translated(error, f"opening s3://{options.bucket}") from error


def _endpoint(endpoint: str, bucket: str | None) -> str:
    """The address requests go to; ``bucket``: as a part of the host's name."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{bucket + '.' if bucket else ''}{parts.netloc}"
