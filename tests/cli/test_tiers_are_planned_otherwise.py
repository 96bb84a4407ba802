"""``hounsfield tier`` without a server: what it says would be done is done, no more, and damage is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import trio

from hounsfield.archive.app import opening
from hounsfield.archive.app.data_directory import open_data_directory
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.engine.tier_progress import SUMMED
from hounsfield.storage_backends.master_key import create_master_key_file
from support.archives import ct_slice, open_stores, store

EXPLICIT = "1.2.840.10008.1.2.1"
STUDIES = ("1.2.77.1", "1.2.77.2", "1.2.77.3")
Tier = Callable[..., Any]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three studies: two CT from 2010, one from 2020."""
    folder = tmp_path_factory.mktemp("template")
    create_master_key_file(folder / "state/hounsfield/development-master.key")
    open_data_directory(folder / "a", create=True).close()

    async def fill() -> None:
        options = EngineOptions(direct_writes=False)
        stores = open_stores(folder / "a", f"file:{folder}/state/hounsfield/development-master.key", options)
        async with open_engine(stores, options, owner="a test") as engine:
            for number, study in enumerate(STUDIES):

                def dated(data: Any, number: int = number) -> None:
                    data.StudyDate = "20200101" if number == 2 else "20100101"

                for one in range(2):
                    data = ct_slice(
                        study_uid=study, series_uid=f"{study}.5", sop_uid=f"{study}.5.{one}", change=dated
                    )
                    await store(engine, data, EXPLICIT)
        stores.close()

    trio.run(fill)
    return folder


@pytest.fixture
def tier(cli: Any, template: Path, tmp_path: Path) -> Tier:
    """``hounsfield tier …`` on an archive with a tier and a rule for what is older than 2015."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    (tmp_path / "cold").mkdir()

    def call(*words: str, rules: str = "", code: int = 0, quiet: str = "0") -> Any:
        rule = '{name="old", match={StudyDate="-20141231"}, action="move", to=["cold"], compress="zstd"}'
        settings = (
            f"archive.data={tmp_path / 'a'}",
            f'tiers=[{{name="cold", directory="{tmp_path / "cold"}"}}]',
            f"tier_rules=[{rules or rule}]",
            f"tiering.quiet_minutes={quiet}",
        )
        result = cli("tier", *words, *(word for setting in settings for word in ("--set", setting)))
        assert result.code == code, result.err
        return result

    return call


def json_of(tier: Tier, *words: str, **more: Any) -> Any:
    return tier(*words, "--json", **more).json()


def packs(tier: Tier) -> dict[str, int]:
    return {one["tier"]: one["packs"] for one in json_of(tier, "status")["tiers"]}


def test_a_plan_says_what_is_done_and_changes_nothing(tier: Tier, tmp_path: Path) -> None:
    before = sorted((tmp_path / "a/segments").iterdir())
    plan = json_of(tier, "plan", "--series")
    assert (plan["looked"], plan["unmatched"], plan["quiet"]) == (3, 1, 0)
    assert plan["totals"]["series"] == plan["rules"]["old"]["series"] == len(plan["series"]) == 2
    assert plan["totals"]["copied"]["cold"] == plan["totals"]["freed_bytes"] > 0
    assert plan["totals"]["seconds"] > 0
    assert "study" not in plan["series"][0]
    assert {one["study"] for one in json_of(tier, "plan", "--series", "--identify")["series"]} == {
        *STUDIES[:2]
    }
    shown = tier("plan", "--series").out
    assert "old" in shown
    assert not any(word in shown for word in (*STUDIES, "Muster", "P-0001"))
    assert packs(tier) == {"hot": 0, "cold": 0}
    assert sorted((tmp_path / "a/segments").iterdir()) == before
    assert not list((tmp_path / "cold").iterdir())
    assert json_of(tier, "plan", quiet="60")["quiet"] == 3

    done = json_of(tier, "apply")
    assert done["run"]["series"] == 2
    assert done["run"]["copied_bytes"] == done["run"]["freed_bytes"] > 0
    assert packs(tier) == {"hot": 0, "cold": 2}
    after = json_of(tier, "plan")
    assert (after["totals"]["series"], after["settled"]) == (0, {"old": 2})
    status = json_of(tier, "status")
    assert status["done"]["series"] == 2
    assert status["done"]["packed_bytes"] > 0
    assert "no rule matches 1" in tier("plan").err
    assert "2 series placed" in tier("status").err
    assert json_of(tier, "apply")["run"]["series"] == 0


def test_rules_are_tried_before_they_are_in_force(tier: Tier, tmp_path: Path) -> None:
    file = tmp_path / "new.toml"
    file.write_text(
        '[[tiers]]\nname = "elsewhere"\ndirectory = "/nowhere"\n'
        '[[tier_rules]]\nname = "all"\naction = "move"\nto = ["elsewhere"]\nfill_above = 0.000001\n'
    )
    plan = json_of(tier, "plan", "--rules", str(file))
    assert plan["rules"]["all"]["series"] == 3
    assert plan["totals"]["copied"].keys() == {"elsewhere"}
    assert "old" in json_of(tier, "plan")["rules"]
    assert "in force when" in tier("plan", "--rules", str(file)).err
    file.write_text('[[tier_rules]]\nname = "all"\naction = "move"\nto = ["nowhere"]\n')
    assert "no tier 'nowhere'" in tier("plan", "--rules", str(file), code=2).err


def test_what_expires_is_told_with_its_holds_before_it_goes(tier: Tier, cli: Any, tmp_path: Path) -> None:
    expire = (
        '{name="over", match={StudyDate="-20141231"}, action="expire", keep_years=1, keep_from_study=true}'
    )
    data = ("--set", f"archive.data={tmp_path / 'a'}")
    held = cli("tier", "hold", "add", "--study", STUDIES[0], "--reason", "a case", "--json", *data)
    assert held.code == 0
    assert held.json()["studies"] == 1
    plan = json_of(tier, "plan", rules=expire)
    assert (plan["rules"]["over"]["series"], plan["rules"]["over"]["held"]) == (2, 1)
    over = plan["rules"]["over"]
    assert 0 < plan["totals"]["expired_bytes"] == over["bytes"] - over["held_bytes"] < over["bytes"]
    assert plan["totals"]["series"] == 1, "as many as apply will say"
    assert "legal hold" in tier("plan", rules=expire).out
    assert json_of(tier, "apply", rules=expire)["run"]["expired_series"] == 1
    (gone,) = json_of(tier, "history")
    assert (gone["kind"], gone["rule"], gone["bytes"] > 0) == ("series-expired", "over", True)
    assert "deleted: 2 instances" in tier("history").out
    assert len(cli("ls", "--json", *data).json()) == 2


def test_recalls_wait_for_a_server_and_pins_are_facts(tier: Tier) -> None:
    tier("apply")
    assert json_of(tier, "recall", STUDIES[0]) == {"series": 1}
    assert json_of(tier, "recall", STUDIES[2]) == {"series": 0}
    tier("recall", "1.2.3", code=1)
    status = json_of(tier, "status")
    assert status["recalls"] == 1
    assert json_of(tier, "pin", STUDIES[1], "--why", "teaching", "--until", "2199-01-01")["here"]
    assert not json_of(tier, "pin", "1.2.99", "--why", "it comes")["here"]
    assert {one["study"]: one["why"] for one in json_of(tier, "pin", "--list")} == {
        STUDIES[1]: "teaching",
        "1.2.99": "it comes",
    }
    assert "2199-01-01" in tier("pin", "--list").out
    tier("pin", STUDIES[1], code=2)
    tier("pin", code=2)
    tier("pin", STUDIES[1], "--list", code=2)
    tier("pin", "no-uid", "--why", "x", code=1)
    assert "hot" in str(json_of(tier, "plan", "--series")["series"])  # what is pinned is wanted back
    tier("pin", "1.2.99", "--remove")
    tier("unpin", "1.2.99", code=1)
    events = json_of(tier, "history", "--identify")
    assert [one["kind"] for one in events] == ["unpinned", "pinned", "pinned", *["series-tiered"] * 2]
    assert {one["study"] for one in events[3:]} == {*STUDIES[:2]}
    assert "study" not in json_of(tier, "history", "--limit", "1")[0]
    assert "old" in tier("history").out
    tier("pin", "1.2.98", "--why", "\x1b[31mred [bold] :heart:")
    assert "\x1b" not in tier("pin", "--list").out + tier("history").out
    assert "red [bold] :heart:" in tier("pin", "--list").out


def test_damage_and_missing_tiers_are_exit_code_4(tier: Tier, tmp_path: Path) -> None:
    assert json_of(tier, "verify")["copies"] == 0
    tier("apply")
    assert json_of(tier, "verify")["run"]["verified_copies"] == 2
    assert "put into packs of" in tier("status").err  # what a plan promised to free was that, before
    path = next((tmp_path / "cold/packs").glob("*/*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:])
    (wrong,) = json_of(tier, "verify", code=4)["damaged"]
    assert wrong == {"pack": path.name, "tier": "cold", "missing": False}
    assert json_of(tier, "status", code=4)["damaged"] == 1
    assert "damaged" in tier("status", code=4).err
    path.rename(path.with_suffix(".gone"))
    assert json_of(tier, "verify", code=4)["damaged"] == [{**wrong, "missing": True}]
    assert json_of(tier, "status", code=4)["missing"] == 1
    assert "not where they were put" in tier("status", code=4).err
    path.with_suffix(".gone").rename(path)
    assert path.name in tier("history").out
    path.write_bytes(whole)
    assert not json_of(tier, "verify")["damaged"]
    tier("status")
    (tmp_path / "cold").rename(tmp_path / "gone")
    assert "mount" in tier("status", code=4).out
    assert json_of(tier, "verify", code=4)["copies"] == 2
    assert json_of(tier, "apply")["run"]["failures"] == 0  # there was nothing to move


def test_what_a_plan_under_way_did_is_not_told_as_nothing(
    cli: Any, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(*, running: bool, asked: bool) -> dict[str, Any]:
        figures = dict.fromkeys(SUMMED, 0)
        run = {"task": "plan", "running": running, "began": 1.0, "ended": None if running else 2.0, **figures}
        return {"series": 9, "plan_asked": asked, "runs": {"plan": {**run, "looked": 4}}}

    answers = iter(
        [progress(running=True, asked=False), {}, progress(running=False, asked=False), {"damaged": []}]
    )

    class Server:
        running = True

        def call(self, op: str, **_: Any) -> Any:
            return next(answers)

    monkeypatch.setattr(opening, "open_archive", lambda _: nullcontext(Server()))
    done = cli("tier", "apply", "--wait", "--data", archive)
    assert done.code == 0
    assert "0 series placed" in done.err
    assert "under way already, and did the rest" in done.err


def test_what_a_missing_tier_puts_off_is_said(tier: Tier, tmp_path: Path) -> None:
    (tmp_path / "cold").rename(tmp_path / "gone")
    done = tier("apply", code=4)
    assert "1 errors, and what they put off is in the next one" in done.err
    (tmp_path / "gone").rename(tmp_path / "cold")
    assert "2 series placed" in tier("apply").err


def test_appointments_are_said_changed_and_cancelled(tier: Tier) -> None:
    tier("prefetch", "P-0001", "--order", "A-1", "--at", "2031-11-23 09:30", "--modality", "CT")
    tier("prefetch", "P-0001", "--order", "A-1", "--at", "2031-11-24T10:00", "--body-part", "CHEST")
    (one,) = json_of(tier, "prefetch", "--list")
    assert (one["name"], one["patient"], one["modality"], one["body_part"]) == ("A-1", "P-0001", "", "CHEST")
    assert "2031-11-24 10:00" in tier("prefetch", "--list").out
    assert json_of(tier, "prefetch", "--cancel", "A-1") == {"waiting": 0}
    tier("prefetch", "P-0001", "--order", "A-1", code=2)
    tier("prefetch", "--order", "A-1", "--at", "2031-11-24", code=2)
    tier("prefetch", "P-0001", "--order", "A-1", "--at", "2999-01-01", code=1)
    tier("prefetch", "P-0001", "--order", "A" * 129, "--at", "2031-11-24", code=1)
    assert "over" in tier("prefetch", "P-0001", "--order", "A-1", "--at", "2020-11-24", code=2).err
    assert "no such moment" in tier("prefetch", "P-0001", "--order", "A-1", "--at", "0001-01-01", code=2).err
    assert "no appointment" in tier("prefetch", "--cancel", "A-2", code=1).err
    tier("prefetch", "--cancel", "A-1", "--list", code=2)
    assert json_of(tier, "prefetch", "--list") == []
