"""Every object store passes the same suite, and so does whatever is put around one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hounsfield.storage_backends.directory_store import DirectoryLimits, DirectoryStore
from hounsfield.storage_backends.object_store import ObjectStore, claim_tier
from hounsfield.storage_backends.s3_store import S3Limits, S3Store
from hounsfield.storage_backends.store_memory import Remembering
from hounsfield.storage_backends.store_wrappers import Limited, Metered, Retrying, TimedOut
from hounsfield.storage_backends.testing.object_store_suite import (
    ARCHIVE,
    OBJECT_STORE_CHECKS,
    many_names_come_in_pages,
)
from support.s3_servers import S3Server, s3_server  # noqa: F401 - a fixture

NO_RESERVE = DirectoryLimits(reserve_bytes=0, piece_bytes=1 << 20)
SMALL_REQUESTS = S3Limits(range_bytes=1 << 20, part_bytes=5 << 20, whole_bytes=5 << 20)

Opens = Callable[[], ObjectStore]


@pytest.fixture
def open_directory(tmp_path: Path) -> Opens:
    (tmp_path / "tier").mkdir()
    return lambda: claimed(DirectoryStore(tmp_path / "tier", NO_RESERVE))


@pytest.fixture
def open_bucket(s3_server: S3Server) -> Opens:  # noqa: F811
    options = s3_server.options()
    return lambda: claimed(S3Store(options, SMALL_REQUESTS))


def claimed(store: ObjectStore) -> ObjectStore:
    claim_tier(store, ARCHIVE, first_time=True)
    return store


@pytest.mark.parametrize("check", OBJECT_STORE_CHECKS, ids=lambda check: check.__name__)
def test_a_directory(check: Callable[[Opens], None], open_directory: Opens) -> None:
    check(open_directory)


AROUND: dict[str, Callable[[ObjectStore], ObjectStore]] = {
    "Retrying": Retrying,
    "Remembering": Remembering,
    "Limited": lambda store: Limited(store, 2),
    "Metered": Metered,
    "TimedOut": TimedOut,
    "all": lambda store: Retrying(Remembering(Limited(Metered(TimedOut(store)), 8))),
}
QUICK = [check for check in OBJECT_STORE_CHECKS if check is not many_names_come_in_pages]


@pytest.mark.parametrize("wrapper", AROUND)
@pytest.mark.parametrize("check", QUICK, ids=lambda check: check.__name__)
def test_what_is_put_around_a_store(
    check: Callable[[Opens], None], wrapper: str, open_directory: Opens
) -> None:
    check(lambda: AROUND[wrapper](open_directory()))


@pytest.mark.peer("weed")
@pytest.mark.parametrize("check", OBJECT_STORE_CHECKS, ids=lambda check: check.__name__)
def test_a_bucket(check: Callable[[Opens], None], open_bucket: Opens) -> None:
    check(open_bucket)
