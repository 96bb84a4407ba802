"""A bucket on a bad day: every call ends, in the right error or the right bytes; no half object is seen."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from hounsfield.storage_backends.errors import BlobNotFoundError, StorageError, StoreFullError
from hounsfield.storage_backends.object_store import (
    TIER_MARKER,
    ForeignTierError,
    StoreAwayError,
    StoreRefusedError,
    claim_tier,
)
from hounsfield.storage_backends.s3_store import S3Limits, S3Store
from hounsfield.storage_backends.store_wrappers import Limited, Metered, Retrying
from support import faulty_store as faults
from support.faulty_store import Fault, FaultyStore, Request, faulty_store
from support.s3_servers import S3Server, s3_server  # noqa: F401 - a fixture

pytestmark = pytest.mark.peer("weed")

MIB = 1 << 20
PATIENCE = S3Limits(
    connect_s=30, silence_s=30, request_s=30, retries=0, range_bytes=MIB, part_bytes=5 * MIB, whole_bytes=MIB
)
SMALL, LARGE = os.urandom(5000), os.urandom(10 * MIB + 11)
OTHER_SMALL, OTHER_LARGE = SMALL[::-1], LARGE[::-1]

Act = Callable[[S3Store], object]


class Bucket:
    """A place in a bucket with a small and a large object, seen through the proxy and past it."""

    def __init__(self, server: S3Server, proxy: FaultyStore, limits: S3Limits) -> None:
        options = server.options()
        self.server, self.proxy, self.prefix = server, proxy, options.prefix
        self.direct = S3Store(options)
        self.options, self.limits = replace(options, endpoint=proxy.endpoint), limits
        self.store = self.opened()
        for key, data in (("small", SMALL), ("large", LARGE)):
            self.direct.put(key, [data], len(data))

    def opened(self, **limits: float) -> S3Store:
        """Through the proxy."""
        return S3Store(self.options, replace(self.limits, **limits))  # type: ignore[arg-type]

    def require_whole(self) -> None:
        """Each object is the one before or the other; nothing else is there, seen or unseen."""
        for key, contents in (("small", (SMALL, OTHER_SMALL)), ("large", (LARGE, OTHER_LARGE))):
            assert b"".join(self.direct.stream(key)) in contents
        assert set(self.direct.names()) <= {"small", "large"}
        assert self.server.unfinished_uploads(self.prefix) == []


@pytest.fixture(scope="module")
def proxy(s3_server: S3Server) -> Iterator[FaultyStore]:  # noqa: F811
    with faulty_store(s3_server.port) as started:
        yield started


@pytest.fixture(scope="module")
def module_bucket(s3_server: S3Server, proxy: FaultyStore) -> Bucket:  # noqa: F811
    return Bucket(s3_server, proxy, PATIENCE)


@pytest.fixture
def bucket(module_bucket: Bucket) -> Iterator[Bucket]:
    module_bucket.proxy.behave()
    yield module_bucket
    wrote = any(request.method in {"PUT", "POST"} for request in module_bucket.proxy.requests)
    module_bucket.proxy.behave()
    if wrote:
        module_bucket.require_whole()


def put_small(store: S3Store) -> None:
    store.put("small", [OTHER_SMALL], len(OTHER_SMALL))


def put_large(store: S3Store) -> None:
    store.put("large", [OTHER_LARGE], len(OTHER_LARGE))


READS: dict[str, Act] = {
    "size": lambda store: store.size("large"),
    "read": lambda store: store.read("large", 100, 1000),
    "read much": lambda store: store.read("large", 100, 5 * MIB),
    "stream": lambda store: list(store.stream("large")),
    "names": lambda store: list(store.names()),
}
ALL: dict[str, Act] = {
    **READS,
    "put small": put_small,
    "put large": put_large,
    "delete": lambda store: store.delete("none"),
}
ANSWERS: dict[str, tuple[Fault, type[StorageError]]] = {
    "500": (faults.status(500, "InternalError"), StoreAwayError),
    "503": (faults.status(503, "SlowDown"), StoreAwayError),
    "429": (faults.status(429, "TooManyRequests"), StoreAwayError),
    "502 of a gateway": (faults.status(502, "no XML"), StoreAwayError),
    "403": (faults.status(403, "AccessDenied"), StoreRefusedError),
    "403 wrong clock": (faults.status(403, "RequestTimeTooSkewed"), StoreRefusedError),
    "401": (faults.status(401, "Unauthorized"), StoreRefusedError),
    "400": (faults.status(400, "InvalidRequest"), StoreRefusedError),
    "301": (faults.status(301, "PermanentRedirect"), StoreRefusedError),
    "501": (faults.status(501, "NotImplemented"), StoreRefusedError),
    "hangs up": (faults.hang_up, StoreAwayError),
    "no HTTP": (faults.not_http, StoreAwayError),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("act", ALL)
def test_an_answer_that_is_none_is_the_right_error(bucket: Bucket, act: str, answer: str) -> None:
    fault, error = ANSWERS[answer]
    bucket.proxy.on(fault, lambda request: True)
    with pytest.raises(error) as raised:
        ALL[act](bucket.store)
    assert raised.value.retry is (error is StoreAwayError)


@pytest.mark.parametrize("act", ["put small", "put large"])
@pytest.mark.parametrize("status,name", [(507, "InsufficientStorage"), (403, "QuotaExceeded")])
def test_a_full_store_says_so(bucket: Bucket, act: str, status: int, name: str) -> None:
    bucket.proxy.on(faults.status(status, name), lambda request: True)
    with pytest.raises(StoreFullError):
        ALL[act](bucket.store)


@pytest.mark.parametrize("act", ["put small", "put large"])
def test_what_is_damaged_on_the_way_is_not_put(bucket: Bucket, act: str) -> None:
    """The server compares what came with what was signed; sending it again helps."""
    bucket.proxy.on_method(faults.damaged_request, "PUT")
    with pytest.raises(StoreAwayError):
        ALL[act](bucket.store)


@pytest.mark.parametrize("act", ["size", "read", "names", "put small", "delete"])
def test_silence_ends(bucket: Bucket, act: str) -> None:
    bucket.proxy.on(faults.silence, lambda request: True)
    with pytest.raises(StoreAwayError):
        ALL[act](bucket.opened(request_s=0.2))


@pytest.mark.parametrize("act", ["read", "stream", "names"])
def test_a_byte_now_and_then_ends(bucket: Bucket, act: str) -> None:
    bucket.proxy.on_method(faults.drip, "GET")
    with pytest.raises(StoreAwayError):
        ALL[act](bucket.opened(request_s=0.4))


@pytest.mark.parametrize("act", ["read", "read much", "stream"])
@pytest.mark.parametrize(
    "fault",
    [
        faults.half_a_body,
        faults.half_a_body_called_whole,
        faults.whole_object_for_a_range(LARGE),
        faults.another_range,
    ],
    ids=["half", "half called whole", "whole for a range", "another range"],
)
@pytest.mark.parametrize("good", [0, 1, 4])
def test_other_bytes_than_asked_for_are_not_given(bucket: Bucket, act: str, fault: Fault, good: int) -> None:
    """Even when the first ranges of a stream came well."""
    bucket.proxy.on_method(faults.after(0 if act == "read" else good, fault), "GET")
    with pytest.raises(StoreAwayError):
        ALL[act](bucket.store)


def test_as_many_other_bytes_are_for_digests_to_find(bucket: Bucket) -> None:
    """What this layer cannot see it does not promise: the length is right; above, seals and digests look."""
    bucket.proxy.on_method(faults.wrong_bytes, "GET")
    assert len(bucket.store.read("large", 0, 1000)) == 1000


@pytest.mark.parametrize("fault", [faults.half_a_body, faults.half_a_body_called_whole, faults.wrong_bytes])
def test_a_list_is_whole_or_an_error(bucket: Bucket, fault: Fault) -> None:
    bucket.proxy.on_method(fault, "GET")
    with pytest.raises(StoreAwayError):
        list(bucket.store.names())


def test_an_object_that_is_replaced_under_a_stream(bucket: Bucket) -> None:
    stream = bucket.store.stream("large")
    next(stream)
    before, after = (
        (OTHER_LARGE, LARGE) if bucket.direct.read("large", 0, 9) == LARGE[:9] else (LARGE, OTHER_LARGE)
    )
    bucket.direct.put("large", [before], len(before))
    with pytest.raises(StoreAwayError, match="replaced"):
        list(stream)
    bucket.direct.put("large", [after], len(after))


# ---------------------------------------------------------------- puts


def is_start(request: Request) -> bool:
    return request.method == "POST" and "uploads" in request.path


def is_end(request: Request) -> bool:
    return request.method == "POST" and "uploadId=" in request.path


def is_third_part(request: Request) -> bool:
    return request.is_part and "partNumber=3" in request.path


@pytest.mark.parametrize("step", [is_start, is_third_part, is_end])
@pytest.mark.parametrize(
    "fault",
    [faults.status(500, "InternalError"), faults.hang_up, faults.lost_answer, faults.silence],
    ids=["500", "hangs up", "lost answer", "silence"],
)
def test_a_large_put_fails_at_any_step(
    bucket: Bucket, step: Callable[[Request], bool], fault: Fault, request: pytest.FixtureRequest
) -> None:
    """And leaves no upload behind, but where the answer with its name was lost: a lifecycle rule ends it."""
    bucket.proxy.on(fault, step)
    with pytest.raises(StoreAwayError):
        put_large(bucket.opened(request_s=2) if fault is faults.silence else bucket.store)
    if step is is_start and "lost answer" in request.node.name:
        left = bucket.server.unfinished_uploads(bucket.prefix)
        assert len(left) == 1
        bucket.server.abort_uploads(left)


def test_the_end_of_a_large_put_may_be_an_error_that_begins_well(bucket: Bucket) -> None:
    """S3 answers 200 while it is still putting the parts together."""
    bucket.proxy.on(faults.status(200, "InternalError"), is_end)
    with pytest.raises(StoreAwayError):
        put_large(bucket.store)


@pytest.mark.parametrize("act", ["put small", "put large"])
def test_the_connection_breaks_in_the_middle_of_a_put(bucket: Bucket, act: str) -> None:
    bucket.proxy.breaks_puts_after = 1000
    with pytest.raises(StoreAwayError):
        ALL[act](bucket.store)


def test_a_small_put_whose_answer_is_lost_is_there_whole(bucket: Bucket) -> None:
    bucket.proxy.on_method(faults.lost_answer, "PUT")
    with pytest.raises(StoreAwayError):
        put_small(bucket.store)
    assert bucket.direct.read("small", 0, len(OTHER_SMALL)) == OTHER_SMALL


def test_an_object_is_made_once_also_when_the_answer_is_lost(bucket: Bucket) -> None:
    """The second try finds what the first one made: who reads what is there knows whose it is."""
    bucket.proxy.on_method(faults.lost_answer, "PUT", 1)
    claimed = Retrying(bucket.store)
    try:
        assert claim_tier(claimed, bytes(16), first_time=True)
        with pytest.raises(ForeignTierError):
            claim_tier(claimed, bytes(range(16)), first_time=True)
    finally:
        bucket.direct.delete(TIER_MARKER)


def test_a_server_that_knows_no_conditions_is_given_the_object(bucket: Bucket) -> None:
    bucket.proxy.on_method(faults.status(501, "NotImplemented"), "PUT", 1)
    assert bucket.store.create("small", OTHER_SMALL)
    assert bucket.direct.read("small", 0, len(SMALL)) == OTHER_SMALL


def test_an_upload_that_cannot_be_aborted_either(bucket: Bucket) -> None:
    """The error is still that of the put; what is left is invisible, and for a lifecycle rule."""
    bucket.proxy.on(faults.status(500, "InternalError"), lambda request: request.is_part)
    bucket.proxy.on_method(faults.status(500, "InternalError"), "DELETE")
    with pytest.raises(StoreAwayError):
        put_large(bucket.store)
    bucket.server.abort_uploads(bucket.server.unfinished_uploads(bucket.prefix))


def test_an_upload_that_ended_unheard_has_nothing_to_abort(bucket: Bucket) -> None:
    """Ceph's and Amazon's answer to the abort is 404; that is not the object's."""
    bucket.proxy.on(faults.lost_answer, is_end)
    bucket.proxy.on_method(faults.status(404, "NoSuchUpload"), "DELETE")
    with pytest.raises(StoreAwayError):
        put_large(bucket.store)
    assert b"".join(bucket.direct.stream("large")) == OTHER_LARGE


def test_pieces_that_fail_abort_the_upload(bucket: Bucket) -> None:
    def failing() -> Iterator[bytes]:
        yield OTHER_LARGE[: 10 * MIB]
        raise BlobNotFoundError("the source is gone")

    with pytest.raises(BlobNotFoundError, match="the source is gone"):
        bucket.store.put("large", failing(), len(OTHER_LARGE))
    assert [request.method for request in bucket.proxy.requests].count("DELETE") == 1


def test_pieces_may_come_from_a_bucket(bucket: Bucket) -> None:
    """Copying from one bucket to another, both through obstore."""
    large = b"".join(bucket.direct.stream("large"))
    bucket.direct.put("large", bucket.store.stream("large"), len(large))
    bucket.store.put("large", bucket.direct.stream("large"), len(large))
    assert b"".join(bucket.direct.stream("large")) == large


# ---------------------------------------------------------------- how much is under way


@pytest.fixture
def fresh(s3_server: S3Server) -> Iterator[Bucket]:  # noqa: F811
    """With a proxy at which nothing hangs any more."""
    with faulty_store(s3_server.port) as proxy:
        yield Bucket(s3_server, proxy, PATIENCE)


@pytest.mark.parametrize("taken", [1, 3])
@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_stream_reads_so_far_ahead_and_no_further(fresh: Bucket, in_flight: int, taken: int) -> None:
    """Whatever its reader does: memory is bounded by that."""
    stream = fresh.opened(ranges_in_flight=in_flight).stream("large")
    for _ in range(taken):
        next(stream)
    assert len(fresh.proxy.requests) <= taken + in_flight
    assert sum(map(len, stream)) == len(LARGE) - taken * MIB
    assert fresh.proxy.at_once_max <= in_flight


def test_a_large_read_asks_for_so_many_ranges_at_once(fresh: Bucket) -> None:
    assert fresh.opened(ranges_in_flight=2).read("large", 0, len(LARGE)) == LARGE
    assert len(fresh.proxy.requests) == 11
    assert fresh.proxy.at_once_max <= 2


def test_all_streams_together_have_so_many_threads(fresh: Bucket) -> None:
    store = fresh.opened(ranges_in_flight=8, threads=2)
    streams = [store.stream("large", 0, len(LARGE)) for _ in range(4)]
    for pieces in zip(*streams, strict=True):
        assert len(set(map(bytes, pieces))) == 1
    assert fresh.proxy.at_once_max <= 2


def test_a_put_holds_so_many_parts_and_no_more(fresh: Bucket) -> None:
    """A store that takes nothing for a while is not sent a whole pack's memory."""
    both, made = threading.Barrier(2), 0

    def takes_nothing(exchange: faults.Exchange) -> None:
        both.wait(60)
        exchange.proxy.closing.wait(0.5)
        exchange.hang_up()

    fresh.proxy.on(takes_nothing, lambda request: request.is_part)

    def pieces() -> Iterator[bytes]:
        nonlocal made
        for _ in range(200):
            yield bytes(MIB)
            made += MIB

    with pytest.raises(StoreAwayError):
        fresh.opened(parts_in_flight=2).put("new", pieces(), 200 * MIB)
    assert made <= (2 + 4) * 5 * MIB
    assert sum(request.is_part for request in fresh.proxy.requests) == 2


def test_a_store_that_is_closed_under_a_stream(fresh: Bucket) -> None:
    store = fresh.opened(ranges_in_flight=2)
    stream = store.stream("large")
    next(stream)
    store.close()
    with pytest.raises(StoreAwayError, match="closed"):
        list(stream)


# ---------------------------------------------------------------- what passes by itself


@pytest.mark.parametrize("act", ALL)
@pytest.mark.parametrize("answer", ["500", "503", "hangs up"])
def test_what_fails_once_is_not_noticed(bucket: Bucket, act: str, answer: str) -> None:
    patient = bucket.opened(retries=2, retry_s=30)
    bucket.proxy.on(ANSWERS[answer][0], lambda request: not is_end(request), times=1)
    ALL[act](patient)


@pytest.mark.parametrize("act", READS)
def test_an_answer_that_breaks_off_once_is_not_noticed(bucket: Bucket, act: str) -> None:
    patient = Retrying(bucket.opened(retries=2, retry_s=30), pause=lambda seconds: None)
    bucket.proxy.on_method(faults.half_a_body, "GET", times=1)
    ALL[act](patient)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_bucket_that_has_many_bad_days(s3_server: S3Server, seed: int) -> None:  # noqa: F811
    """One request in five ends badly, in any way: what is put is read all the same; nothing else is there."""
    choose = random.Random(seed)
    for_reading = [faults.half_a_body, faults.half_a_body_called_whole, faults.another_range]
    for_writing = [faults.damaged_request, faults.lost_answer]
    for_any = [faults.hang_up, faults.not_http, ANSWERS["500"][0], ANSWERS["503"][0]]

    def badly(exchange: faults.Exchange) -> None:
        kind = for_reading if exchange.request.method == "GET" else for_writing
        choose.choice(for_any + kind)(exchange)

    options = s3_server.options()
    with faulty_store(s3_server.port) as proxy:
        proxy.on(badly, lambda request: choose.random() < 0.2)
        bad = S3Store(replace(options, endpoint=proxy.endpoint), PATIENCE)
        store = Retrying(Limited(Metered(bad), 4), pause=lambda seconds: None)
        contents = {
            f"packs/{number}": choose.randbytes(choose.choice((10, 300_000, 6 * MIB))) for number in range(6)
        }
        for key, data in contents.items():
            store.put(key, [data], len(data))
        for key, data in contents.items():
            assert store.size(key) == len(data)
            assert b"".join(store.stream(key)) == data
            assert store.read(key, 5, len(data) - 5) == data[5:]
        gone = list(contents)[:3]
        for key in gone:
            store.delete(key)
        assert set(store.names()) == contents.keys() - set(gone)
    direct = S3Store(options)
    assert set(direct.names()) == contents.keys() - set(gone)
    # Those whose beginning, or abort, was lost: for a lifecycle rule.
    s3_server.abort_uploads(s3_server.unfinished_uploads(options.prefix))
