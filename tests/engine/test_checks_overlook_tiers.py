"""What lies in another tier is taken for lost by checks and scrub, or what is lost for cold."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from engine.test_tiers_lose_what_they_move import NOW, Place, applied, rule, spoil
from hounsfield.archive.engine.engine import Engine
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.engine.tiers import TieringOptions
from hounsfield.archive.index import locations
from hounsfield.archive.index.checking import Archive, Finding, Severity, check_all
from hounsfield.archive.index.checking_logs import CHECKS
from hounsfield.archive.index.packs import HOT, Packs
from hounsfield.archive.index.rows import InstanceRow, encode
from hounsfield.archive.index.suspects import FLAG_DAMAGED
from hounsfield.archive.index.tables import PACK, PACKED
from hounsfield.storage_backends.api import Batch


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def checked(stores: Stores, *, quick: bool = False) -> list[Finding]:
    archive = Archive(
        store=stores.store, keyring=stores.keyring, catalog=stores.catalog, sealer=stores.sealer,
        hashes=stores.hashes, journal=stores.journal, log=stores.log, ledger=stores.ledger,
        tiers=stores.tiers.by_name, quick=quick,
    )  # fmt: skip
    return check_all(archive, CHECKS)


def said(place: Place, *, quick: bool = False) -> dict[str, Severity]:
    """What the checks say of a place, by what it is."""
    with place.stores() as stores:
        stores.log.start_anew()
        return {one.what: one.severity for one in checked(stores, quick=quick)}


async def filled(place: Place, *rules: str) -> bytes:
    """Two series gone to cold (and second, when it is named); the first one's pack."""
    place.rules = (rule("move", "cold", *rules),)
    async with place.open() as engine:
        await place.send(engine)
        await place.send(engine, 2)
        await applied(engine)
        first, _ = sorted(place.named(engine.stores))
    return bytes.fromhex(first)


async def copied(place: Place) -> str:
    """A series that is hot, with a copy in cold; its pack's name."""
    place.rules = (rule("copy", "cold"),)
    async with place.open() as engine:
        await place.send(engine)
        await applied(engine)
        (segment,) = place.named(engine.stores)
    return segment


def cold(place: Place, segment: bytes, tier: str = "cold") -> Path:
    name = segment.hex()
    return place.root / tier / "packs" / name[:2] / name


@pytest.mark.parametrize("quick", [True, False])
async def test_what_lies_elsewhere_is_neither_missing_nor_unknown(place: Place, quick: bool) -> None:
    await filled(place, "second")
    assert said(place, quick=quick) == {}


@pytest.mark.parametrize("quick", [True, False])
async def test_what_is_in_no_tier_is_lost(place: Place, quick: bool) -> None:
    segment = await filled(place)
    cold(place, segment).unlink()
    assert said(place, quick=quick)["a pack is nowhere"] is Severity.LOSS


@pytest.mark.parametrize("quick", [True, False])
async def test_one_of_two_copies_is_missing(place: Place, quick: bool) -> None:
    segment = await filled(place, "second")
    cold(place, segment).unlink()
    assert said(place, quick=quick) == {"a copy of a pack is not where its row says": Severity.INDEX}


@pytest.mark.parametrize("others", [(), ("second",)])
async def test_a_damaged_copy_is_told_by_its_contents(place: Place, others: tuple[str, ...]) -> None:
    segment = await filled(place, *others)
    path = cold(place, segment)
    spoil(path, path.stat().st_size - 4096 - 100)  # in the contents, or the end
    path.write_bytes(path.read_bytes()[:-1])
    assert said(place, quick=True) == {}
    what, how = (
        ("a copy of a pack is damaged in a tier", Severity.INDEX)
        if others
        else ("a copy of a pack is damaged, and no other one is right", Severity.LOSS)
    )
    assert said(place) == {what: how}


async def test_a_tier_that_is_configured_no_more_is_named(place: Place) -> None:
    await filled(place)
    options = place.options
    with_second = TieringOptions(options.tiering.tiers[1:], (), options.tiering.limits, NOW)

    class Without(Place):
        @property
        def options(self):  # type: ignore[no-untyped-def, override]
            return replace(options, tiering=with_second)

    found = said(Without(place.root))
    assert found["a tier that packs lie in is not configured"] is Severity.NOTE
    what = "a pack lies only in a tier that is not configured: nothing of it can be read"
    assert found[what] is Severity.LOSS


async def test_a_tier_that_is_away_is_no_loss(place: Place) -> None:
    await filled(place)
    (place.root / "cold").rename(place.root / "gone")
    assert said(place) == {"a tier does not answer: what lies there was not looked at": Severity.NOTE}


async def test_stray_rows_and_strangers_are_named(place: Place) -> None:
    segment = await filled(place)
    path = cold(place, segment)
    leftover = path.with_name("00" * 16).parent.parent / "00" / ("00" * 16)
    leftover.parent.mkdir(exist_ok=True)
    shutil.copy(path, leftover)
    with place.stores() as stores:
        row = Packs(stores.store).get(segment)
        assert row is not None
        batch = Batch()
        batch.delete(PACKED, row.series_key + segment)
        batch.put(PACKED, row.series_key + bytes(16), b"")
        batch.put(PACK, bytes([1]) * 16, encode(structs.replace(row, copies={})))
        stores.store.commit(batch)
    assert said(place) == {
        "a pack is not listed with its series": Severity.INDEX,
        "a series lists a pack that is not its own": Severity.INDEX,
        "a pack is nowhere": Severity.LOSS,
        "a segment has no key: nothing in it can be read": Severity.LOSS,
        "a leftover of a move lies in a tier": Severity.NOTE,
    }


async def test_a_place_that_is_not_in_the_pack_is_a_wrong_place(place: Place) -> None:
    """The index points into a pack that does not list the record: only its contents say so."""
    segment = await filled(place)
    with place.stores() as stores:
        for _, rows in locations.walk(stores.store, stores.catalog):
            (one, *_) = [one for one in rows if one.location and one.location.segment == segment]
            assert one.location is not None
            wrong = structs.replace(one.location, offset=one.location.offset + 8)
            stores.sealer.prepare(4)
            batch = Batch()
            locations.point_elsewhere(batch, stores.sealer, one, wrong)
            stores.store.commit(batch)
            break
    assert said(place, quick=True) == {}
    found = said(place)
    assert found["the index points to a record that is not there"] is Severity.LOSS
    assert found["a stored object is not in the index"] is Severity.INDEX


async def test_a_local_copy_that_is_gone_is_said_to_be_so(place: Place) -> None:
    place.rules = (rule("copy", "cold"),)
    async with place.open() as engine:
        await place.send(engine)
        await applied(engine)
        ((segment, tiers),) = place.named(engine.stores).items()
        assert tiers == {HOT, "cold"}
    (place.root / "data" / "segments" / segment).unlink()
    assert said(place) == {"a copy of a pack is not where its row says": Severity.INDEX}


# ---------------------------------------------------------------- scrub


async def scrubbed(engine: Engine) -> dict[str, Any]:
    await engine.scrub.start(full_speed=True)
    await engine.scrub.now()
    return await engine.scrub.status()


def flagged(stores: Stores) -> int:
    """Rows that are flagged as damaged."""
    pages = locations.walk(stores.store, stores.catalog)
    rows = [one.row for _, rows in pages for one in rows]
    return sum(isinstance(row, InstanceRow) and FLAG_DAMAGED in row.flags for row in rows)


async def test_scrub_takes_what_lies_elsewhere_for_neither_missing_nor_damaged(place: Place) -> None:
    await filled(place)
    async with place.open() as engine:
        status = await scrubbed(engine)
        assert (status["damaged"], status["suspects"]) == ([], 0)
        assert status["verified"] == status["segments"]
        assert not flagged(engine.stores)
        await place.require_all(engine)


@pytest.mark.parametrize("how", ["one byte", "cut off", "gone", "all of it"])
@pytest.mark.parametrize("pixels", [0, 1 << 21])
async def test_a_damaged_pack_is_put_here_anew_as_a_whole(place: Place, how: str, pixels: int) -> None:
    place.rules = (rule("copy", "cold"),)
    place.limits = replace(place.limits, recall_when_opened=False)
    async with place.open() as engine:
        await place.send(engine, 1 if pixels else 4, pixels=random.Random(3).randbytes(pixels))
        await applied(engine)
        (segment,) = place.named(engine.stores)
    path = place.root / "data" / "segments" / segment
    whole = path.read_bytes()
    if how == "one byte":
        spoil(path, 9000)
    elif how == "cut off":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes(len(whole)))
    async with place.open() as engine:
        status = await scrubbed(engine)
        assert path.read_bytes() == whole
        status = await scrubbed(engine)
        assert (status["damaged"], status["suspects"]) == ([], 0)
        assert not flagged(engine.stores)
        assert engine.scrub.figures.repaired == 1
        assert place.packs("cold") == {segment}
        await place.require_all(engine)
    assert said(place) == {}


async def test_while_the_other_tier_is_away_a_damaged_pack_is_left_and_mended_later(place: Place) -> None:
    segment = await copied(place)
    path = place.root / "data" / "segments" / segment
    whole = path.read_bytes()
    spoil(path, 9000)
    (place.root / "cold").rename(place.root / "gone")
    async with place.open() as engine:
        status = await scrubbed(engine)
        assert status["damaged"]
        assert flagged(engine.stores)
        (place.root / "gone").rename(place.root / "cold")
        await scrubbed(engine)
        status = await scrubbed(engine)
        assert path.read_bytes() == whole
        assert (status["damaged"], status["suspects"], flagged(engine.stores)) == ([], 0, 0)
        await place.require_all(engine)


async def test_of_a_pack_that_is_damaged_everywhere_what_is_damaged_is_said(place: Place) -> None:
    segment = await copied(place)
    for path in (place.root / "data" / "segments" / segment, cold(place, bytes.fromhex(segment))):
        spoil(path, 9000)
    async with place.open() as engine:
        assert len((await scrubbed(engine))["damaged"]) == 1
        assert flagged(engine.stores) == 1


async def test_what_was_suspect_in_a_pack_that_went_elsewhere_is_not_any_more(place: Place) -> None:
    segment = await copied(place)
    path = place.root / "data" / "segments" / segment
    spoil(path, 9000)
    (place.root / "cold").rename(place.root / "gone")
    async with place.open() as engine:
        assert (await scrubbed(engine))["damaged"]
        (place.root / "gone").rename(place.root / "cold")
        engine.tiering.copying.drop(bytes.fromhex(segment), HOT)
        status = await scrubbed(engine)
        assert (status["damaged"], status["suspects"], flagged(engine.stores)) == ([], 0, 0)
        await place.require_all(engine)
