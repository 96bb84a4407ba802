"""Whatever a sender says, at either door: bytes are kept, what is wrong is flagged, and it is told so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hounsfield.archive.dicom.problems import CUT_SHORT
from hounsfield.archive.engine.compressing import CompressionLimits
from hounsfield.archive.engine.engine import EngineOptions
from hounsfield.archive.engine.receiving import PROBLEM_SOP_MISMATCH
from hounsfield.archive.engine.types import Outcome
from support.archives import stores_in
from support.front_doors import FrontDoors, Sender, front_doors, part10
from support.nonsense import CASES, Nonsense, Parts, Uids, uids_of


def expected(case: Nonsense, door: str) -> dict[str, Any]:
    """What must become of a case, and what its sender hears (PS3.4 B.2.3, PS3.18 I.2).

    What a C-STORE command announces is part of the service; a file's meta information is often left behind
    when a data set is changed, so that to disagree with it is flagged but no warning.
    """
    cut = not CUT_SHORT.isdisjoint(case.problems)
    warned = cut or bool(case.quarantine) or (case.mismatch and door == "C-STORE")
    if door == "C-STORE":
        heard: Any = 0xB007 if warned else 0x0000
    else:
        heard = (202, 0xB007) if warned else (200, None)
    return {
        "where": case.quarantine or "filed",
        "heard": heard,
        "bytes": True,
        "flags": set(case.problems) | ({PROBLEM_SOP_MISMATCH} if case.mismatch else set()),
    }


def found(doors: FrontDoors, uids: Uids, data: bytes, known: set[bytes], wanted: set[str]) -> dict[str, Any]:
    """Where an object is now, its flags (of those wanted; more are no error), and whether it is whole."""
    fresh = [row for row in doors.quarantined() if row.location.record_id not in known]
    if fresh:
        (row,) = fresh
        known.add(row.location.record_id)
        flags, where, kept = set(row.problems), row.reason, doors.quarantined_bytes(row)
    else:
        filed = doors.instance(uids.study, uids.series, uids.sop)
        if filed is None:
            return {"where": "nowhere"}
        flags, where, kept = set(filed.flags), "filed", doors.bytes_of(filed)
    return {"where": where, "bytes": kept == data, "flags": flags & wanted if wanted else flags}


async def through(
    door: str, doors: FrontDoors, sender: Sender, client: Any, case: Nonsense, uids: Uids
) -> Any:
    data, sop = case.make(Parts(uids)), case.sop or uids.sop
    if door == "C-STORE":
        return int((await sender.store(case.sop_class, case.syntax, sop, data)).status)
    answer = await doors.stow(client, part10(case.syntax, case.sop_class, sop, data))
    (item,) = answer.json()["00081199"]["Value"]
    return answer.status_code, item.get("00081196", {"Value": [None]})["Value"][0]


@pytest.mark.parametrize("compression", ["", "zstd"])
async def test_every_kind_of_nonsense_through_both_doors(tmp_path: Path, compression: str) -> None:
    directory = tmp_path / "data"
    options = EngineOptions(compression=compression)
    contexts = tuple(dict.fromkeys((case.sop_class, case.syntax) for case in CASES))
    outcome: dict[tuple[str, str], dict[str, Any]] = {}
    wanted = {(case.name, door): expected(case, door) for case in CASES for door in ("C-STORE", "STOW")}
    known: set[bytes] = set()
    async with front_doors(directory, options) as doors:
        doors.engine.compressing.limits = CompressionLimits(frame_bytes_min=1, stored_share_max=9.0)
        async with doors.sender(*contexts) as sender, doors.client() as client:
            for case in CASES:
                for door in ("C-STORE", "STOW"):
                    uids = uids_of(case.name, door)
                    heard = await through(door, doors, sender, client, case, uids)
                    data = case.make(Parts(uids))
                    if case.meta and door == "STOW":
                        data = Parts(
                            uids
                        ).bytes()  # group 2 in front of a file's data set is its meta information
                    if case.series:
                        uids = Uids(uids.study, case.series, uids.sop)
                    flags = wanted[case.name, door]["flags"]
                    outcome[case.name, door] = {"heard": heard, **found(doors, uids, data, known, flags)}
        quarantined = len(doors.quarantined())
        assert (doors.engine.compressing.figures.objects > 20) is bool(compression)
    assert outcome == wanted
    # and the same after the index was made anew
    for path in (directory / "index").iterdir():
        path.unlink()
    with stores_in(directory) as stores:
        report = stores.reindex(lambda done, all_: None)
        assert report.outcomes[Outcome.QUARANTINED] == quarantined
        assert report.outcomes[Outcome.STORED] == 2 * len(CASES) - quarantined
        assert report.damaged == 0
        with stores.store.snapshot() as snapshot:
            again = {row.location.record_id: row.problems for row in stores.catalog.quarantined(snapshot)}
        assert set(again) == known
        assert any("bad-deflate" in problems for problems in again.values())


@pytest.mark.parametrize("policy", ["keep-first", "newest-current"])
async def test_conflicts_are_kept_flagged_and_said_at_both_doors(tmp_path: Path, policy: str) -> None:
    """Other content under known UIDs: B000, both kept; the policy says which is served, reindexed or not."""
    directory = tmp_path / "data"
    options = EngineOptions(duplicates=policy)
    first = CASES[0]
    sent: list[tuple[Uids, bytes, bytes]] = []
    async with front_doors(directory, options) as doors:
        async with doors.sender((first.sop_class, first.syntax)) as sender, doors.client() as client:
            for door in ("C-STORE", "STOW"):
                uids = uids_of(f"conflict {policy}", door)
                one = Parts(uids).bytes()
                other = Parts(uids).set(0x00100020, "LO", b"P-2 ").bytes()
                heard: list[Any] = []
                for data in (one, other, one, other):
                    case = Nonsense("conflict", lambda parts, data=data: data)
                    heard.append(await through(door, doors, sender, client, case, uids))
                plain, warned = (0x0000, 0xB000) if door == "C-STORE" else ((200, None), (202, 0xB000))
                assert heard == [plain, warned, plain, plain]
                sent.append((uids, one, other))
        check_conflicts(doors, sent, policy)
    for path in (directory / "index").iterdir():
        path.unlink()
    with stores_in(directory, options) as stores:
        assert stores.reindex(lambda done, all_: None).outcomes[Outcome.CONFLICT] == 2
    async with front_doors(directory, options) as doors:
        check_conflicts(doors, sent, policy)


def check_conflicts(doors: FrontDoors, sent: list[tuple[Uids, bytes, bytes]], policy: str) -> None:
    for uids, one, other in sent:
        row = doors.instance(uids.study, uids.series, uids.sop)
        assert row is not None
        (version,) = doors.versions(uids.study, uids.series, uids.sop)
        kept = [doors.bytes_of(row), doors.bytes_of(version)]
        assert kept == ([one, other] if policy == "keep-first" else [other, one])
        assert "conflicting-version-kept" in row.flags
        assert "conflicting-version-kept" in version.flags
