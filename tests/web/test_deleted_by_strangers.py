"""Deleting over HTTP: only by whom the configuration names, only what was named, and never what is held."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest

from hounsfield.archive.index.deletion import FACT_DELETION
from hounsfield.archive.security.bearer import BearerTokens
from hounsfield.archive.web.deletion import REASON_CHARS_MAX
from support.archives import ct_slice, store

KEEPER, VIEWER = "keeper-of-the-archive", "somebody-who-may-look"
MAY, MAY_NOT = ({"authorization": f"Bearer {token}"} for token in (KEEPER, VIEWER))
EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture
def keyed(archives, settings, tmp_path: Path):
    """An archive with two tokens, of which ``deletion_by`` may delete; None: an archive without tokens."""

    def opened(deletion_by: tuple[str, ...] | None = ("keeper",)):
        if deletion_by is None:
            return archives(tmp_path / "data")
        digest = hashlib.sha256(KEEPER.encode()).hexdigest()
        file = tmp_path / "tokens"
        file.write_text(f"keeper:sha256:{digest}\nviewer:{VIEWER}\n")
        file.chmod(0o600)
        return archives(
            tmp_path / "data", tokens=BearerTokens(file), settings=settings(deletion_by=deletion_by)
        )

    return opened


async def fill(archive) -> None:
    """Study 2.25.1 with two series of two instances, and study 2.25.2 with one."""
    for study, series, count in (
        ("2.25.1", "2.25.11", 2),
        ("2.25.1", "2.25.12", 2),
        ("2.25.2", "2.25.21", 1),
    ):
        for number in range(1, count + 1):
            data = ct_slice(study_uid=study, series_uid=series, sop_uid=f"{series}.{number}", number=number)
            await store(archive.engine, data, EXPLICIT)


async def held(client: httpx.AsyncClient) -> set[str]:
    answer = await client.get("/dicom-web/instances", headers=MAY_NOT)
    return {one["00080018"]["Value"][0] for one in answer.json()}


EVERYTHING = {"2.25.11.1", "2.25.11.2", "2.25.12.1", "2.25.12.2", "2.25.21.1"}
STUDY = "/dicom-web/studies/2.25.1"
SERIES = f"{STUDY}/series/2.25.11"
INSTANCE = f"{SERIES}/instances/2.25.11.1"


@pytest.mark.parametrize("deletion_by", [None, (), ("",), ("keeper",)])
async def test_nobody_deletes_who_is_not_named(keyed, deletion_by):
    async with keyed(deletion_by) as archive, archive.client() as client:
        await fill(archive)
        for headers in (MAY_NOT, *(() if deletion_by == ("keeper",) else (MAY,))):
            for path in (STUDY, SERIES, INSTANCE, "/dicom-web/studies/1.2.3"):
                refused = await client.delete(path, headers=headers)
                assert refused.status_code == 403, path
                assert refused.headers["content-type"] == "application/problem+json"
        assert (await client.delete(STUDY)).status_code == (403 if deletion_by is None else 401)
        assert await held(client) == EVERYTHING


@pytest.mark.parametrize(
    ("path", "gone"),
    [
        (INSTANCE, {"2.25.11.1"}),
        (SERIES, {"2.25.11.1", "2.25.11.2"}),
        (STUDY, EVERYTHING - {"2.25.21.1"}),
    ],
    ids=["instance", "series", "study"],
)
async def test_what_was_named_is_gone_and_nothing_else(keyed, path, gone):
    async with keyed() as archive, archive.client(headers=MAY) as client:
        await fill(archive)
        await client.get(f"{STUDY}/metadata")
        answer = await client.delete(path, params={"reason": " sent to the wrong archive "})
        assert (answer.status_code, answer.content) == (204, b"")
        assert "content-length" not in answer.headers
        assert await held(client) == EVERYTHING - gone
        assert (await client.get(path)).status_code == 404
        assert (await client.get(f"{path}/metadata")).status_code == 404
        left = await client.get(f"{STUDY}/metadata")
        uids = {one["00080018"]["Value"][0] for one in left.json()} if left.status_code == 200 else set()
        assert uids == EVERYTHING - gone - {"2.25.21.1"}
        assert (await client.delete(path)).status_code == 404
        (fact,) = [event for _, event in _events(archive) if event.kind == FACT_DELETION]
        assert fact.body["body"]["reason"] == "sent to the wrong archive"
        assert fact.body["body"]["actor"] == "http:keeper"


async def test_what_is_held_stays_and_says_why(keyed):
    async with keyed() as archive, archive.client(headers=MAY) as client:
        await fill(archive)
        hold = await archive.engine.deleting.hold(study_uid="2.25.1", by="judge", why="a case")
        for path in (STUDY, SERIES, INSTANCE):
            refused = await client.delete(path)
            assert refused.status_code == 409
            assert "legal hold" in refused.json()["detail"]
            assert hold.hold_id in refused.json()["detail"]
        assert await held(client) == EVERYTHING
        await archive.engine.deleting.release(hold.hold_id, by="judge", why="over")
        assert (await client.delete(STUDY)).status_code == 204


async def test_a_request_that_is_not_understood_deletes_nothing(keyed):
    async with keyed() as archive, archive.client(headers=MAY) as client:
        await fill(archive)
        for query in (f"reason={'x' * (REASON_CHARS_MAX + 1)}", "reason=a&reason=b"):
            assert (await client.delete(f"{STUDY}?{query}")).status_code == 400
        for path in ("/dicom-web/studies", f"{STUDY}/series", f"{INSTANCE}/frames/1", f"{STUDY}/metadata"):
            assert (await client.delete(path)).status_code == 405
        other = "/dicom-web/studies/2.25.2/series/2.25.11/instances/2.25.11.1"
        assert (await client.delete(other)).status_code == 404
        assert await held(client) == EVERYTHING


async def test_what_was_deleted_and_is_sent_again_is_stored(keyed):
    async with keyed() as archive, archive.client(headers=MAY) as client:
        await fill(archive)
        assert (await client.delete(STUDY)).status_code == 204
        await fill(archive)
        assert await held(client) == EVERYTHING
        assert (await client.get(INSTANCE)).status_code == 200


def _events(archive):
    stores = archive.engine.stores
    with stores.store.snapshot() as snapshot:
        return stores.journal.read(snapshot, 0, 1000)
