"""An application that raises, lies or stops half-way: an honest answer, and a log with no patient in it."""

from __future__ import annotations

import json

import pytest
import structlog.testing
import trio.testing

from hounsfield.archive.web.http import ClientGoneError

SECRET = "DOE^JANE"
GET = b"GET /patients/DOE%5EJANE?PatientName=DOE%5EJANE HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_an_exception_is_a_500_without_internals(connect, answers_of):
    async def app(scope, receive, send):
        raise ValueError(f"no such patient: {SECRET}")

    peer = await connect(app)
    with structlog.testing.capture_logs() as logs:
        answers, _ = answers_of(await peer.exchange(GET), ["GET"])
    (answer,) = answers
    assert answer.status == 500
    assert answer.headers[b"content-type"] == b"application/problem+json"
    assert answer.headers[b"connection"] == b"close"
    problem = json.loads(answer.body)
    request_id = answer.headers[b"x-request-id"].decode()
    assert problem["instance"] == f"urn:hounsfield:request:{request_id}"
    assert SECRET not in answer.body.decode() and "ValueError" not in answer.body.decode()
    (entry,) = logs
    assert entry["request_id"] == request_id
    assert entry["error"] == "ValueError"
    assert any("test_app_failures.py" in line for line in entry["at"])
    assert "DOE" not in str(entry) and "patients" not in str(entry)
    assert peer.server.statistics().app_errors == 1


async def test_an_exception_to_head_has_no_body(connect, answers_of):
    async def app(scope, receive, send):
        raise ValueError

    peer = await connect(app)
    answers, rest = answers_of(await peer.exchange(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"), ["HEAD"])
    assert (answers[0].status, answers[0].body, rest) == (500, b"", b"")


async def test_exception_groups_are_logged_inside(connect, answers_of):
    async def app(scope, receive, send):
        raise ExceptionGroup(SECRET, [KeyError(SECRET)])

    peer = await connect(app)
    with structlog.testing.capture_logs() as logs:
        answers, _ = answers_of(await peer.exchange(GET), ["GET"])
    assert answers[0].status == 500
    assert logs[0]["errors"][0]["error"] == "KeyError"
    assert "DOE" not in str(logs)


async def test_what_fails_before_the_first_byte_is_answered_as_such(connect, answers_of):
    async def app(scope, receive, send):
        headers = [(b"content-type", b"application/dicom"), (b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.start", "status": 503, "headers": [(b"retry-after", b"5")]})
        await send({"type": "http.response.body", "body": b"later"})

    peer = await connect(app)
    (answer,), _ = answers_of(await peer.exchange(GET), ["GET"])
    assert (answer.status, answer.headers[b"retry-after"], answer.body) == (503, b"5", b"later")
    assert b"content-type" not in answer.headers


async def cut_short(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


async def cut_by_exception(scope, receive, send):
    await cut_short(scope, receive, send)
    raise ValueError


async def cut_below_length(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def more_than_length(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    await send({"type": "http.response.body", "body": b"SMUGGLED"})


@pytest.mark.parametrize("app", [cut_short, cut_by_exception, cut_below_length, more_than_length])
async def test_a_response_that_breaks_off_never_looks_whole(app, connect):
    peer = await connect(app)
    raw = await peer.exchange(GET + GET)
    assert raw.count(b"HTTP/1.1") == 1
    assert b"half" in raw
    assert not raw.endswith(b"0\r\n\r\n")
    assert b"SMUGGLED" not in raw
    assert peer.server.statistics().app_errors == (0 if app is cut_short else 1)


START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b""}


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict:
    return {"type": "http.response.start", "status": status, "headers": headers}


MISUSE = {
    "nothing": [],
    "only a start": [START],
    "body before start": [BODY],
    "start twice": [START, START],
    "unknown message": [{"type": "http.response.trailers"}],
    "status 101": [start(status=101)],
    "status 999": [start(status=999)],
    "CRLF in a value": [start((b"location", b"/a\r\nset-cookie: b=c")), BODY],
    "LF in a value": [start((b"location", b"/a\nset-cookie: b=c")), BODY],
    "CR in a value": [start((b"location", b"/a\rset-cookie: b=c")), BODY],
    "NUL in a value": [start((b"location", b"/a\0b")), BODY],
    "CRLF in a name": [start((b"a: b\r\nset-cookie", b"b=c")), BODY],
    "colon in a name": [start((b"a:b", b"c")), BODY],
    "space in a name": [start((b"a b", b"c")), BODY],
    "empty name": [start((b"", b"c")), BODY],
    "two lengths": [start((b"content-length", b"1"), (b"content-length", b"2")), BODY],
    "a length that is none": [start((b"content-length", b"+1")), BODY],
    "another coding": [start((b"transfer-encoding", b"gzip, chunked")), BODY],
    "a body longer than its length": [start((b"content-length", b"1")), {**BODY, "body": b"ab"}],
    "a body shorter than its length": [start((b"content-length", b"3")), {**BODY, "body": b"ab"}],
}


@pytest.mark.parametrize("messages", MISUSE.values(), ids=MISUSE.keys())
async def test_misuse_is_a_500_and_nothing_of_it_is_sent(messages, connect, answers_of):
    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    peer = await connect(app)
    answers, rest = answers_of(await peer.exchange(GET), ["GET"])
    assert answers[0].status == 500
    assert b"set-cookie" not in answers[0].headers
    assert rest == b""
    assert peer.server.statistics().app_errors == 1


async def test_an_error_after_the_response_is_only_logged(connect, answers_of):
    async def app(scope, receive, send):
        await send(START)
        await send({**BODY, "body": b"fine"})
        raise ValueError

    peer = await connect(app)
    with structlog.testing.capture_logs() as logs:
        answers, rest = answers_of(await peer.exchange(GET), ["GET"])
    assert (answers[0].status, answers[0].body, rest) == (200, b"fine", b"")
    assert logs[0]["response_started"]


async def test_sending_after_the_end_is_an_error(connect):
    raised = []

    async def app(scope, receive, send):
        await send(START)
        await send(BODY)
        try:
            await send(BODY)
        except Exception as error:
            raised.append(type(error).__name__)

    peer = await connect(app)
    await peer.exchange(GET)
    assert raised == ["ResponseError"]


async def test_a_client_that_goes_is_not_the_applications_failure(connect):
    async def app(scope, receive, send):
        if (await receive())["type"] == "http.disconnect":
            raise RuntimeError("client gone")
        raise ClientGoneError("the peer closed the connection")

    peer = await connect(app)
    with structlog.testing.capture_logs() as logs:
        await peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        await peer.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
    assert {entry["log_level"] for entry in logs} <= {"debug"}
    assert peer.server.statistics().app_errors == 0


async def test_records_carry_the_pattern_and_never_the_path(connect):
    records = []

    class Route:
        path = "/patients/{patient}"

    async def app(scope, receive, send):
        scope["route"] = Route()
        await send(start(status=203))
        await send({**BODY, "body": b"12345"})

    peer = await connect(app, on_request=records.append)
    await peer.exchange(GET)
    (record,) = records
    assert (record.method, record.route, record.status, record.bytes) == (
        "GET",
        "/patients/{patient}",
        203,
        5,
    )
    assert record.seconds >= 0
    assert "DOE" not in str(record)


async def test_a_hook_that_fails_harms_nobody(connect, answers_of):
    async def app(scope, receive, send):
        await send(START)
        await send(BODY)

    def hook(record):
        raise ValueError(SECRET)

    peer = await connect(app, on_request=hook)
    with structlog.testing.capture_logs() as logs:
        answers, _ = answers_of(await peer.exchange(GET + GET), ["GET", "GET"])
    assert [answer.status for answer in answers] == [200, 200]
    assert len(logs) == 2 and "DOE" not in str(logs)
