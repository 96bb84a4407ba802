"""Programs that someone else wrote: h11 over real sockets, httpx, curl, wrk; and Starlette on top of us."""

from __future__ import annotations

import json
import os
import shutil

import h11
import httpx
import pytest
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

BODY = bytes(range(256)) * 2048  # 512 KiB


def program(name: str) -> str:
    """Its path; without it, skip and say how to get it (CI has it: there it fails)."""
    found = shutil.which(name)
    if found is None:
        message = f"{name} is missing: apt-get install --no-install-recommends {name}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


async def stream(request: Request) -> StreamingResponse:
    async def echo():
        async for piece in request.stream():
            if piece:
                yield bytes(piece)

    return StreamingResponse(echo(), media_type="application/octet-stream")


async def study(request: Request) -> JSONResponse:
    if request.path_params["uid"] == "boom":
        raise ValueError("1.2.3")
    return JSONResponse({"uid": request.path_params["uid"], "query": dict(request.query_params)})


async def live(websocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


@pytest.fixture
def starlette_app() -> Starlette:
    return Starlette(
        routes=[
            Route("/echo", stream, methods=["POST"]),
            Route("/studies/{uid}", study),
            WebSocketRoute("/live", live),
        ]
    )


@pytest.mark.peer("httpx")
async def test_httpx(listening, starlette_app):
    records = []
    async with (
        listening(starlette_app, on_request=records.append) as (server, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        answer = await client.get("/studies/1.2.3", params={"PatientName": "DOE^J*"})
        assert answer.json() == {"uid": "1.2.3", "query": {"PatientName": "DOE^J*"}}
        head = await client.head("/studies/1.2.3", params={"PatientName": "DOE^J*"})
        assert head.headers["content-length"] == str(len(answer.content))

        async def pieces():
            for at in range(0, len(BODY), 10_000):
                yield BODY[at : at + 10_000]

        assert (await client.post("/echo", content=pieces())).content == BODY  # chunked both ways
        assert (await client.post("/echo", content=BODY)).content == BODY
        assert (await client.get("/nowhere")).status_code == 404
        answer = await client.get("/studies/boom")
        assert answer.status_code == 500
        assert "1.2.3" not in answer.text
        assert server.statistics().connections_total <= 2  # kept alive, but for the 500
    assert records[0].route == "/studies/{uid}"
    assert "1.2.3" not in str(records)


@pytest.mark.peer("h11")
async def test_h11_pipelines_over_a_real_socket(listening, starlette_app, answers_of):
    """h11 writes the requests, chunked and with lengths, all at once; h11 reads the answers."""
    wire = b""
    for index in range(20):
        client = h11.Connection(h11.CLIENT)
        framing = ("transfer-encoding", "chunked") if index % 2 else ("content-length", "3000")
        headers = [("host", "a"), framing, *([("connection", "close")] if index == 19 else [])]
        wire += client.send(h11.Request(method="POST", target="/echo", headers=headers))
        for _ in range(3):
            wire += client.send(h11.Data(data=b"%d" % (index % 10) * 1000))
        wire += client.send(h11.EndOfMessage())
    async with listening(starlette_app) as (_, port):
        peer = await trio.open_tcp_stream("127.0.0.1", port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.send_all, wire)
            raw = b"".join([piece async for piece in peer])
        answers, rest = answers_of(raw, ["POST"] * 20)
    assert [answer.body for answer in answers] == [b"%d" % (index % 10) * 3000 for index in range(20)]
    assert rest == b""


@pytest.mark.peer("curl")
async def test_curl(listening, starlette_app, tmp_path):
    curl = [program("curl"), "-sS", "--max-time", "60"]
    (tmp_path / "body").write_bytes(BODY)

    async def run(*arguments: str) -> bytes:
        done = await trio.run_process([*curl, *arguments], capture_stdout=True)
        return done.stdout

    async with listening(starlette_app) as (_server, port):
        base = f"http://127.0.0.1:{port}"
        assert json.loads(await run(f"{base}/studies/1.2?x=y")) == {"uid": "1.2", "query": {"x": "y"}}
        upload = ["-X", "POST", "--data-binary", f"@{tmp_path}/body", f"{base}/echo"]
        assert await run("-H", "Expect: 100-continue", *upload) == BODY
        assert await run("-H", "Transfer-Encoding: chunked", *upload) == BODY
        assert await run("--http1.0", *upload) == BODY
        # two URLs over one connection, with an upgrade to HTTP/2 offered and declined
        both = await run(
            "--http2", "-w", "%{num_connects} %{http_version}\n", f"{base}/studies/1", f"{base}/studies/2"
        )
        assert both.count(b"1.1\n") == 2
        head = await run("-I", f"{base}/studies/1")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.peer("wrk")
async def test_wrk_finds_no_errors(listening, starlette_app):
    wrk = program("wrk")

    async def hello(scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": BODY})

    for app in (hello, starlette_app):
        async with listening(app) as (server, port):
            command = [wrk, "-t1", "-c16", "-d1", f"http://127.0.0.1:{port}/studies/1"]
            done = await trio.run_process(command, capture_stdout=True)
            report = done.stdout.decode()
            assert "Socket errors" not in report
            assert "Non-2xx" not in report
            assert server.statistics().requests_total > 16
            assert server.statistics().parse_errors == 0
