"""The suite of object stores, and large puts that fail, at Ceph's RADOS gateway: ``make test-ceph``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from hounsfield.storage_backends.object_store import ObjectStore, StoreAwayError, claim_tier
from hounsfield.storage_backends.s3_store import S3Limits, S3Store
from hounsfield.storage_backends.testing.object_store_suite import ARCHIVE, LARGE_BYTES, OBJECT_STORE_CHECKS
from support import faulty_store as faults
from support.ceph_server import ceph
from support.faulty_store import Fault, Request, faulty_store
from support.s3_servers import S3Server

pytestmark = pytest.mark.peer("radosgw")

LIMITS = S3Limits(range_bytes=1 << 20, part_bytes=5 << 20, whole_bytes=5 << 20)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with ceph() as started:
        yield started


@pytest.mark.parametrize("check", OBJECT_STORE_CHECKS, ids=lambda check: check.__name__)
def test_a_bucket_of_ceph(check: Callable[[Callable[[], ObjectStore]], None], server: S3Server) -> None:
    options = server.options()

    def open_store() -> ObjectStore:
        store = S3Store(options, LIMITS)
        claim_tier(store, ARCHIVE, first_time=True)
        return store

    check(open_store)


@pytest.mark.parametrize(
    "step",
    [
        lambda request: request.is_part and "partNumber=3" in request.path,
        lambda request: request.method == "POST" and "uploadId=" in request.path,
    ],
    ids=["a part", "the end"],
)
@pytest.mark.parametrize("fault", [faults.status(500, "InternalError"), faults.hang_up, faults.lost_answer])
def test_a_large_put_that_fails(server: S3Server, step: Callable[[Request], bool], fault: Fault) -> None:
    options = server.options()
    direct = S3Store(options)
    direct.put("object", [b"before"], 6)
    with faulty_store(server.port) as proxy:
        proxy.on(fault, step)
        store = S3Store(replace(options, endpoint=proxy.endpoint), replace(LIMITS, retries=0))
        with pytest.raises(StoreAwayError):
            store.put("object", [bytes(LARGE_BYTES)], LARGE_BYTES)
    assert b"".join(direct.stream("object")) in {b"before", bytes(LARGE_BYTES)}
    assert list(direct.names()) == ["object"]
    assert server.unfinished_uploads(options.prefix) == []
