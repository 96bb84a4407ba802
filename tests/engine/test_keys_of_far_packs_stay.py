"""A pack that only lies in another tier gets another key like any segment, and the old one is destroyed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.test_tiers_lose_what_they_move import Place, applied, tidied
from hounsfield.archive.app.care import Care


async def test_a_far_pack_is_gathered_anew_under_another_key(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.limits = replace(place.limits, recall_when_opened=False, remove_after_s=0.0)
    async with place.open() as engine:
        await place.send(engine)
        await place.send(engine, 1, pixels=bytes(range(256)) * 4096 * 2)
        await applied(engine)
        old = set(place.named(engine.stores))
        assert len(old) == 2
        due = await Care(engine).rekey_due(1e12, [])
        assert {one["segment"] for one in due if not one["open"]} >= old
        (one,) = await Care(engine).rekey_due(1e12, [min(old)])
        assert one["segment"] == min(old)
        for name in old:
            report = await engine.compaction.rewrite(bytes.fromhex(name), throttled=False)
            assert not report.kept_because
        await place.require_all(engine)
        await tidied(engine)
        await applied(engine)
        named = place.named(engine.stores)
        assert len(named) == 2
        assert not set(named) & old
        assert place.packs("cold") == set(named)
        keys = set(engine.stores.keyring.key_ids("segment"))
        assert set(named) <= keys
        assert not old & keys
        assert {path.stem for path in (tmp_path / "cold" / "keys" / "segment").iterdir()} == set(named)
        await place.require_all(engine)
