"""Bearer tokens and cross-origin rules: who gets in, and whose scripts may read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hounsfield.archive.security.bearer import BearerTokens, TokenFileError
from hounsfield.archive.web.guard import Guard
from hounsfield.archive.web.http import ClientGoneError

TOKEN, OTHER = "correct-horse-battery", "staple-of-another-one"


@pytest.fixture
def token_file(tmp_path: Path):
    def write(text: str, mode: int = 0o600) -> Path:
        path = tmp_path / "tokens"
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


async def test_without_a_token_only_health_is_told(archives, token_file, sample):
    tokens = BearerTokens(token_file(f"# who\n\nviewer:{TOKEN}\n"))
    async with archives(tokens=tokens) as archive, archive.client() as client:
        result = await archive.put(sample["CT_small.dcm"])
        instance = (
            f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
            f"/instances/{result.sop_instance_uid}"
        )
        closed = [
            "/",
            "/metrics",
            "/openapi.json",
            "/dicom-web/studies",
            f"{instance}/frames/1",
            "/healthzx",
            "/no",
        ]
        for path in closed:
            for headers in (
                {},
                {"authorization": f"Bearer {TOKEN}x"},
                {"authorization": f"Basic {TOKEN}"},
                {"authorization": "Bearer"},
                {"authorization": "Bearer " + "x" * 5000},
            ):
                answer = await client.get(path, headers=headers)
                assert answer.status_code == 401, (path, headers)
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.headers["content-type"] == "application/problem+json"
        refused = await client.post(
            "/dicom-web/studies",
            content=sample["MR_small.dcm"],
            headers={"content-type": "application/dicom"},
        )
        assert refused.status_code == 401
        assert archive.engine.statistics().objects_stored == 1
        for path in ("/healthz", "/healthz/live", "/healthz/ready"):
            assert (await client.get(path)).status_code == 200
        for path in ("/", "/dicom-web/studies", f"{instance}/frames/1"):
            headers = {"authorization": f"bearer {TOKEN}"}
            assert (await client.get(path, headers=headers)).status_code == 200


async def test_a_web_socket_is_told_nothing_more_when_its_token_is_taken_away(token_file):
    path = token_file(f"desk:{TOKEN}\nrobot:{OTHER}\n")
    tokens = BearerTokens(path)
    sent = []

    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        for line in (f"desk:{TOKEN}\nrobot:{OTHER}\n# the same\n", f"robot:{OTHER}\n"):
            token_file(line)
            tokens.reload()
            await send({"type": "websocket.send", "text": scope["identity"]})

    async def send(message):
        sent.append(message)

    scope = {
        "type": "websocket", "path": "/live", "headers": [(b"authorization", f"Bearer {TOKEN}".encode())],
    }  # fmt: skip
    with pytest.raises(ClientGoneError):
        await Guard(app, tokens)(scope, None, send)
    assert sent == [
        {"type": "websocket.accept"},
        {"type": "websocket.send", "text": "desk"},
        {"type": "websocket.close", "code": 1008},
    ]


def test_tokens_may_be_written_as_hashes_and_change(token_file):
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    path = token_file(f"desk:sha256:{digest}\nrobot : {OTHER}\n")
    tokens = BearerTokens(path)
    assert len(tokens) == 2
    assert tokens.identify(f"Bearer {TOKEN}".encode()) == "desk"
    assert tokens.identify(f"Bearer {OTHER}".encode()) == "robot"
    assert tokens.identify(f"Bearer {digest}".encode()) is None
    token_file(f"robot:{OTHER}\n")
    tokens.reload()
    assert tokens.identify(f"Bearer {TOKEN}".encode()) is None
    token_file("robot")
    with pytest.raises(TokenFileError):
        tokens.reload()
    assert tokens.identify(f"Bearer {OTHER}".encode()) == "robot"
    assert OTHER not in repr(vars(tokens))


@pytest.mark.parametrize(
    "text",
    ["", "# nobody\n", "name", "na me:" + TOKEN, "name:short", "name:with space in the token", "a:sha256:12"],
)
def test_files_that_are_refused(token_file, text):
    with pytest.raises(TokenFileError) as refused:
        BearerTokens(token_file(text))
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read_is_refused(token_file, mode):
    with pytest.raises(TokenFileError, match="600"):
        BearerTokens(token_file(f"viewer:{TOKEN}", mode))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TokenFileError):
        BearerTokens(tmp_path / "none")
    with pytest.raises(TokenFileError):
        BearerTokens(tmp_path)


async def test_only_configured_origins_may_read(archives, settings, sample):
    origin = "https://viewer.example"
    async with archives(settings=settings(cors_origins=(origin,))) as archive, archive.client() as client:
        result = await archive.put(sample["CT_small.dcm"])
        frame = (
            f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
            f"/instances/{result.sop_instance_uid}/frames/1"
        )
        for path in ("/dicom-web/studies", frame, "/nope"):
            answer = await client.get(path, headers={"origin": origin})
            assert answer.headers["access-control-allow-origin"] == origin
            exposed = answer.headers["access-control-expose-headers"]
            assert {"content-type", "content-range"} <= set(exposed.split(", "))
            for stranger in ("https://evil.example", "null", origin + ".evil.example"):
                answer = await client.get(path, headers={"origin": stranger})
                assert "access-control-allow-origin" not in answer.headers
        preflight = await client.options(
            frame,
            headers={
                "origin": origin,
                "access-control-request-method": "GET",
                "access-control-request-headers": "accept, authorization",
            },
        )
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "accept, authorization"
        assert set(preflight.headers["access-control-allow-methods"].split(", ")) == {
            *("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"),
        }


EXPOSED = {"content-range", "content-type", "etag", "warning", "retry-after", "content-location", "location"}


async def test_scripts_read_what_answers_say(archives, settings, sample):
    """And a shared cache keeps the answer to one origin from another (Fetch, "CORS protocol and caches")."""
    origin = "https://viewer.example"
    async with (
        archives(settings=settings(cors_origins=(f"{origin}/",))) as archive,
        archive.client() as client,
    ):
        result = await archive.put(sample["CT_small.dcm"])
        for path, status in (
            (f"/dicom-web/studies/{result.study_uid}/metadata", 200),
            ("/dicom-web/studies?limit=x", 400),
            ("/dicom-web/studies/1.2.3", 404),
        ):
            answer = await client.get(path, headers={"origin": origin})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == origin
            assert set(answer.headers["access-control-expose-headers"].split(", ")) >= EXPOSED
            assert "access-control-allow-credentials" not in answer.headers
            for headers in ({}, {"origin": "https://evil.example"}, {"origin": origin}):
                varies = (await client.get(path, headers=headers)).headers.get_list("vary", split_commas=True)
                assert "origin" in varies
        asked = {"origin": origin, "access-control-request-method": "DELETE"}
        long = {**asked, "access-control-request-headers": "x" * 5000}
        assert "access-control-allow-headers" not in (await client.options("/", headers=long)).headers
        stranger = {**asked, "origin": "https://evil.example"}
        answer = await client.options("/dicom-web/studies", headers=stranger)
        assert "access-control-allow-methods" not in answer.headers


async def test_preflights_carry_no_token(archives, settings, token_file):
    tokens = BearerTokens(token_file(f"viewer:{TOKEN}"))
    options = {"tokens": tokens, "settings": settings(cors_origins=("*",))}
    async with archives(**options) as archive, archive.client() as client:
        headers = {"origin": "https://any.example", "access-control-request-method": "GET"}
        assert (await client.options("/dicom-web/studies", headers=headers)).status_code == 204
        refused = await client.get("/dicom-web/studies", headers=headers)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "*"
