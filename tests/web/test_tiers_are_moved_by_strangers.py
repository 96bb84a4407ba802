"""Tiers over HTTP: seen and moved only by whom the configuration names, and as asked."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from hounsfield.archive.app.tier_options import tried_rules
from hounsfield.archive.dicom.rules import parse_rule
from hounsfield.archive.engine.engine import EngineOptions
from hounsfield.archive.engine.tier_planning import PlanLimits
from hounsfield.archive.engine.tier_rules import TierRule
from hounsfield.archive.engine.tiers import TieringLimits, TieringOptions, TierOptions
from hounsfield.archive.security.bearer import BearerTokens
from hounsfield.archive.web.tiers import LISTED_MAX
from support.archives import ct_slice, store

KEEPER, VIEWER = "keeper-of-the-tiers", "somebody-who-may-look"
MAY, MAY_NOT = ({"authorization": f"Bearer {token}"} for token in (KEEPER, VIEWER))
EXPLICIT = "1.2.840.10008.1.2.1"
STUDY, SERIES = "2.25.1", "2.25.11"
PIN = f"/tiers/studies/{STUDY}/pin"
EVERYTHING = (
    ("GET", "/tiers"),
    ("GET", "/tiers/plan"),
    ("POST", "/tiers/plan"),
    ("GET", "/tiers/history"),
    ("GET", "/tiers/pins"),
    ("POST", "/tiers/apply"),
    ("POST", f"/tiers/studies/{STUDY}/recall"),
    ("POST", f"/tiers/studies/{STUDY}/series/{SERIES}/recall"),
    ("PUT", f"{PIN}?why=because"),
    ("DELETE", PIN),
)
LIMITS = TieringLimits(check_s=0.05, tidy_s=1e12, plan_s=1e12, sweep_s=1e12, recall_when_opened=False)


@pytest.fixture
def keyed(archives, settings, tmp_path: Path):
    """An archive with a tier, and two tokens, of which ``tiering_by`` may move; None: without tokens."""

    def opened(tiering_by: tuple[str, ...] | None = ("keeper",)):
        (tmp_path / "cold").mkdir()
        rule = TierRule("all", parse_rule({}, "match"), "move", ("cold",))
        tiering = TieringOptions(
            (TierOptions("cold", tmp_path / "cold"),), (rule,), LIMITS, PlanLimits(-3600.0, 0.0)
        )
        options = replace(EngineOptions(), tiering=tiering)
        if tiering_by is None:
            return archives(tmp_path / "data", engine_options=options)
        digest = hashlib.sha256(KEEPER.encode()).hexdigest()
        file = tmp_path / "tokens"
        file.write_text(f"keeper:sha256:{digest}\nviewer:{VIEWER}\n")
        file.chmod(0o600)
        return archives(
            tmp_path / "data",
            engine_options=options,
            tokens=BearerTokens(file),
            settings=settings(tiering_by=tiering_by, tier_rules=partial(tried_rules, tiers=["cold"])),
        )

    return opened


async def fill(archive) -> None:
    """Study 2.25.1 with two series, and 2.25.2 with one."""
    for study, series in ((STUDY, SERIES), (STUDY, "2.25.12"), ("2.25.2", "2.25.21")):
        for number in (1, 2):
            data = ct_slice(study_uid=study, series_uid=series, sop_uid=f"{series}.{number}", number=number)
            await store(archive.engine, data, EXPLICIT)


async def applied(client) -> dict:
    """Have the rules carried out; the status then."""
    assert (await client.post("/tiers/apply")).status_code == 202
    with trio.fail_after(60):
        while (await client.get("/tiers")).json()["plan_asked"]:
            await trio.sleep(0.02)
    status: dict = (await client.get("/tiers")).json()  # looked up when it was over
    return status


def packs(status: dict) -> dict[str, int]:
    return {one["tier"]: one["packs"] for one in status["tiers"]}


@pytest.mark.parametrize("tiering_by", [None, (), ("",), ("keeper",)])
async def test_nobody_sees_or_moves_who_is_not_named(keyed, tiering_by):
    async with keyed(tiering_by) as archive, archive.client() as client:
        await fill(archive)
        strangers = [MAY_NOT, *(() if tiering_by == ("keeper",) else (MAY,))]
        for headers in strangers:
            for method, path in EVERYTHING:
                refused = await client.request(method, path, headers=headers)
                assert refused.status_code == 403, path
                assert refused.headers["content-type"] == "application/problem+json"
        for method, path in EVERYTHING:
            alone = await client.request(method, path)
            assert alone.status_code == (403 if tiering_by is None else 401)
        assert archive.engine.tiering.planned_ns()[0] == 0


async def test_planned_carried_out_recalled_and_told(keyed):
    async with keyed() as archive, archive.client(headers=MAY) as client:
        await applied(client)  # of nothing, so that the first plan is over
        await fill(archive)
        plan = (await client.get("/tiers/plan", params={"list": 2})).json()
        assert plan["totals"]["series"] == 3
        assert len(plan["series"]) == 2
        assert not (await client.get("/tiers/plan")).json()["series"]
        assert packs(await applied(client)) == {"hot": 0, "cold": 3}
        one = await client.post(f"/tiers/studies/{STUDY}/series/{SERIES}/recall")
        assert (one.status_code, one.json()) == (202, {"series": 1})
        with trio.fail_after(60):
            while packs((await client.get("/tiers")).json())["hot"] < 1:
                await trio.sleep(0.02)
        more = await client.post(f"/tiers/studies/{STUDY}/recall")
        assert more.json() == {"series": 1}  # the other one
        for path in ("/tiers/studies/1.2.3/recall", f"/tiers/studies/{STUDY}/series/1.2/recall"):
            assert (await client.post(path)).status_code == 404
        with trio.fail_after(60):  # it is hot before it is said
            while "series-recalled" not in {
                one["kind"] for one in (await client.get("/tiers/history")).json()["events"]
            }:
                await trio.sleep(0.02)
        told = (await client.get("/tiers/history", params={"limit": 2})).json()
        assert len(told["events"]) == 2
        rest = (await client.get("/tiers/history", params={"before": told["before"]})).json()
        everything = [*told["events"], *rest["events"]]
        assert "series-recalled" in {one["kind"] for one in everything}
        assert {one["series"] for one in everything} == {SERIES, "2.25.12", "2.25.21"}
        assert rest["before"] is None


async def test_rules_are_tried_before_they_are_in_force(keyed):
    async with keyed() as archive, archive.client(headers=MAY) as client:
        await fill(archive)
        newer = {"name": "newer", "action": "move", "to": ["cold"], "match": {"StudyInstanceUID": "2.25.2"}}
        rest = {"name": "rest", "action": "copy", "to": ["cold"], "fill_above": 0.0}
        answer = await client.post("/tiers/plan?list=2", json={"tier_rules": [newer, rest]})
        assert answer.status_code == 200
        plan = answer.json()
        assert {name: one["series"] for name, one in plan["rules"].items()} == {"newer": 1, "rest": 2}
        assert len(plan["series"]) == 2
        assert archive.engine.tiering.planned_ns()[0] == 0  # nothing was asked for
        assert list((await client.get("/tiers/plan")).json()["rules"]) == ["all"]
        for body, said in (
            (b"", "tier_rules"),
            (b"[]", "tier_rules"),
            (b'{"tier_rules": {}}', "tier_rules"),
            (b'{"rules": []}', "tier_rules"),
            (b'{"tier_rules": [{"name": "a"}]}', "action"),
            (b'{"tier_rules": [{"name": "a", "action": "move", "to": ["attic"]}]}', "attic"),
            (b'{"tier_rules": [{"name": "a", "action": "pin", "colour": 1}]}', "colour"),
            (b'{"tier_rules": [{"name": "a", "action": "pin"}, {"name": "a", "action": "pin"}]}', "once"),
        ):
            refused = await client.post("/tiers/plan", content=body)
            assert refused.status_code == 400, body
            assert said in refused.json()["detail"]
        assert (await client.post("/tiers/plan", content=bytes(300_000))).status_code == 413


async def test_pins_say_who_and_why_and_end(keyed):
    async with keyed() as archive, archive.client(headers=MAY) as client:
        await fill(archive)
        await applied(client)
        done = await client.put(PIN, params={"why": " a board ", "until": "2199-12-31"})
        assert (done.status_code, done.json()) == (200, {"here": True, "series": 2})
        (pin,) = (await client.get("/tiers/pins")).json()
        assert (pin["by"], pin["why"], pin["in_force"]) == ("http:keeper", "a board", True)
        coming = await client.put("/tiers/studies/2.25.99/pin", params={"why": "it is to come"})
        assert coming.json() == {"here": False, "series": 0}
        with trio.fail_after(60):
            while packs((await client.get("/tiers")).json())["hot"] < 2:
                await trio.sleep(0.02)
        assert packs(await applied(client))["hot"] == 2  # whatever the rules say
        assert (await client.delete(PIN)).status_code == 204
        assert (await client.delete(PIN)).status_code == 404
        assert packs(await applied(client))["hot"] == 0
        events = (await client.get("/tiers/history")).json()["events"]
        who = [(one["kind"], one["by"]) for one in events if one["kind"].endswith("pinned")]
        assert who == [("unpinned", "http:keeper"), *[("pinned", "http:keeper")] * 2]


async def test_a_request_that_is_not_understood_does_nothing(keyed):
    async with keyed() as archive, archive.client(headers=MAY) as client:
        await fill(archive)
        for query in ("", "why=", "why=a&why=b", "why=a&until=soon", "why=a&until=2999-12-31", "why=a&who=me",
                      f"why={'x' * 1025}", "why=a&until=2001-01-01"):  # fmt: skip
            assert (await client.put(f"{PIN}?{query}")).status_code == 400, query
        assert (await client.put("/tiers/studies/no-uid/pin?why=a")).status_code == 400
        assert (await client.get("/tiers/pins")).json() == []
        for path in (
            "/tiers/plan?list=-1",
            "/tiers/plan?list=a",
            "/tiers/history?limit=x",
            "/tiers/plan?x=1",
        ):
            assert (await client.get(path)).status_code == 400, path
        assert (await client.get(f"/tiers/plan?list={LISTED_MAX * 9}")).status_code == 200
        assert (await client.put("/tiers")).status_code == 405
