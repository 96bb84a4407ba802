"""A whole server with a tier beside it: what an administrator plans, does and sees, and what readers get."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from hounsfield.archive.app.asking import ask
from support.server import ArchiveServer, Sample, archive_server, until

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning")

NAMES = ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm")


def settings(cold: Path, **rule: object) -> tuple[str, ...]:
    cold.mkdir(exist_ok=True)
    return (
        f'tiers=[{{name="cold", directory="{cold}"}}]',
        'tier_rules=[{name="all", action="move", to=["cold"], compress="zstd"}]',
        "tiering.quiet_minutes=0",
        "tiering.recall_when_opened=false",
        "tiering.plan_minutes=1000",
        *(f"{name}={value}" for name, value in rule.items()),
    )


def sent(server: ArchiveServer, sample_files: Callable[..., list[Sample]]) -> list[Sample]:
    files = sample_files(*NAMES)
    server.run_json("send", server.dicom_target, str(files[0].path.parent))
    return files


def tier_of(server: ArchiveServer, name: str) -> dict[str, int]:
    (found,) = [one for one in asked(server, "tier-status")["tiers"] if one["tier"] == name]
    return dict(found)


def asked(server: ArchiveServer, op: str) -> dict[str, Any]:
    """What the command line asks, without a process for each look."""
    return dict(ask(server.data / "control.sock", op))


def recalls_said(server: ArchiveServer) -> int:
    return sum(one["kind"] == "series-recalled" for one in server.run_json("tier", "history"))


def require_all(server: ArchiveServer, files: list[Sample]) -> None:
    """Frames and objects over HTTP, bit for bit."""
    for sample in files:
        assert server.dataset_bytes(*sample.ids) == sample.data
        frame = server.client.get(
            f"{sample.url}/frames/1", headers={"accept": "application/octet-stream; transfer-syntax=*"}
        )
        assert frame.status_code == 200, frame.text
        assert frame.content in sample.data


def test_planned_carried_out_read_and_brought_back(
    tmp_path: Path, sample_files: Callable[..., list[Sample]]
) -> None:
    with archive_server(tmp_path / "server", *settings(tmp_path / "cold"), workers=2) as server:
        # The first plan is made at the start, of nothing.
        until(lambda: asked(server, "tier-progress")["planned"], "the first plan")
        files = sent(server, sample_files)
        plan = server.run_json("tier", "plan", "--series", "--identify")
        assert plan["totals"]["series"] == plan["looked"] == len(files)
        assert plan["rules"]["all"]["copied"]["cold"] == plan["totals"]["freed_bytes"] > 0
        assert {one["study"] for one in plan["series"]} == {sample.ids[0] for sample in files}
        trial = tmp_path / "trial.toml"
        trial.write_text('[[tier_rules]]\nname = "ct"\nmatch = { Modality = "CT" }\naction = "pin"\n')
        tried = server.run_json("tier", "plan", "--rules", str(trial))
        assert (tried["settled"], tried["unmatched"]) == ({"ct": 1}, 2)
        unnamed = server.run("tier", "plan", "--series", "--json").stdout
        assert not any(uid in unnamed for sample in files for uid in sample.ids)
        assert tier_of(server, "cold")["packs"] == 0

        done = server.run_json("tier", "apply", "--wait")
        assert done["run"]["series"] == len(files)
        assert (tier_of(server, "cold")["packs"], tier_of(server, "hot")["packs"]) == (len(files), 0)
        require_all(server, files)
        again = server.run_json("tier", "plan")
        assert again["totals"]["series"] == 0
        assert again["settled"] == {"all": len(files)}

        study, series, _ = files[0].ids
        assert server.run_json("tier", "recall", study, "--series", series) == {"series": 1}
        until(lambda: recalls_said(server) == 1, "what was recalled")
        assert tier_of(server, "hot")["packs"] == 1
        too_late = ("tier", "pin", files[1].ids[0], "--why", "a board", "--until", "2999-12-31")
        assert "2262" in server.run(*too_late).stderr
        pinned = server.run_json("tier", "pin", files[1].ids[0], "--why", "a board", "--until", "2199-12-31")
        assert pinned == {"here": True, "series": 1}
        until(lambda: recalls_said(server) == 2, "what was pinned")
        assert tier_of(server, "hot")["packs"] == 2
        (pin,) = server.run_json("tier", "pin", "--list")
        assert (pin["study"], pin["why"], pin["in_force"]) == (files[1].ids[0], "a board", True)
        require_all(server, files)

        history = server.run_json("tier", "history", "--identify")
        back, pinning, earlier, *tiered = history
        assert [one["kind"] for one in history[:3]] == ["series-recalled", "pinned", "series-recalled"]
        assert (earlier["series"], earlier["why"]) == (series, "asked")
        assert back["study"] == pinning["study"] == files[1].ids[0]
        assert {one["study"] for one in tiered} == {sample.ids[0] for sample in files}
        assert all(one["kind"] == "series-tiered" and one["rule"] == "all" for one in tiered)
        assert all(one["moved_bytes"] for one in tiered)
        assert server.run("tier", "unpin", files[1].ids[0]).returncode == 0
        assert server.run("tier", "unpin", files[1].ids[0]).returncode == 1

        verified = server.run_json("tier", "verify", "--wait")
        assert (verified["copies"], verified["damaged"]) == (0, [])
        assert verified["run"]["verified_copies"] == len(files)
        assert_metrics(server, len(files))
        (tmp_path / "cold").rename(tmp_path / "gone")
        away = server.run("tier", "status", "--json")
        assert away.returncode == 4
        assert "mount" in next(
            one["trouble"] for one in json.loads(away.stdout)["tiers"] if one["tier"] == "cold"
        )
        (tmp_path / "gone").rename(tmp_path / "cold")
        assert "Traceback" not in server.log_text()


def assert_metrics(server: ArchiveServer, packs: int) -> None:
    """Every worker's figures, from whichever answers."""

    def shown() -> dict[str, float]:
        text = httpx.get(f"{server.url.removesuffix('/dicom-web')}/metrics").text
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    until(lambda: shown().get('hounsfield_tier_packs{tier="cold"}') == packs, "what the leader tells")
    now = shown()
    assert now['hounsfield_tier_away{tier="cold"}'] == 0
    assert now["hounsfield_tiering_copied_bytes_total"] > 0
    assert now["hounsfield_tiering_recalled_series_total"] == 2
    assert now["hounsfield_tiering_verified_copies_total"] == packs
    assert now["hounsfield_tiering_failures_total"] == 0
    assert now['hounsfield_tier_requests_total{operation="put",tier="cold"}'] >= packs
    assert now['hounsfield_tier_bytes_total{operation="put",tier="cold"}'] > 0
    assert now['hounsfield_tier_request_seconds_total{operation="put",tier="cold"}'] < 60
    assert now["hounsfield_tiering_recalls_waiting"] == 0
