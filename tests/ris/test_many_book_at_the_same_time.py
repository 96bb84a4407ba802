"""Many book the same rooms at the same time: threads of one process, and workers beside one another."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from hounsfield.archive.index.records import Planned
from hounsfield.ris_plugin.catalog import put_resource
from hounsfield.ris_plugin.errors import NotNowError
from hounsfield.ris_plugin.records.catalog import Resource
from hounsfield.ris_plugin.records.orders import ORDER
from hounsfield.ris_plugin.records.schedule import APPOINTMENT, HOLDING, STEP
from hounsfield.ris_plugin.schedule.scheduling import book
from ris.booking_child import DAY_NS, STARTS, STEP_NS, UTC, push
from ris.conftest import ADMINISTRATOR, CLERK, NOON_NS, Desk
from support.archives import open_stores, write_master_key

CHILD = Path(__file__).parent / "booking_child.py"
FIRST_NS = NOON_NS + DAY_NS


@pytest.fixture
def there(tmp_path: Path) -> Iterator[tuple[Desk, Path, str]]:
    key = write_master_key(tmp_path / "master.key")
    stores = open_stores(tmp_path / "data", key)
    desk = Desk(stores)
    desk.do(put_resource, ADMINISTRATOR, Resource(code="CT1", kind="device", ae_title="CT1", buffer_min=5))
    for code in ("ANNE", "BOB"):
        desk.do(put_resource, ADMINISTRATOR, Resource(code=code, kind="person"))
    # Half an hour on a grid of ten minutes: times that are apart, and times that overlap.
    desk.procedure(duration_min=20, cleaning_min=5, resources=(("CT1",), ("#person:",)))
    desk.procedure("TALK", "OT", duration_min=20, preparation_min=5, resources=(("#person:",),))
    try:
        yield desk, tmp_path / "data", key
    finally:
        stores.close()


def orders(desk: Desk, count: int) -> list[str]:
    patients = [desk.patient(f"P{index}") for index in range(4)]
    return [desk.order(patients[index % 4], ("CTHEAD", "TALK")[index % 2]) for index in range(count)]


def check_nothing_overlaps(desk: Desk) -> int:
    """Over all records: nothing is held twice, orders and steps are as appointments say. How many hold."""
    held: dict[str, list[tuple[int, int]]] = defaultdict(list)
    booked: Counter[str] = Counter()
    with desk.view() as view:
        holding = [(key, one) for key, one in view.every(APPOINTMENT) if one.state in HOLDING]
        for key, one in holding:
            booked.update(one.orders)
            for each in one.holds:
                held[each.resource].append((each.from_ns, each.to_ns))
            (step,) = [step for _, step in view.find(STEP, "appointment", key) if step.state != "withdrawn"]
            assert (step.from_ns, step.order) == (one.from_ns, one.orders[0])
        for order_id, order in view.every(ORDER):
            assert booked[order_id] == (order.state == "scheduled")
        assert len(view.ids(STEP, "worklist", "")) == len(holding)
        numbers = [one.number for _, one in view.every(APPOINTMENT)]
        assert len(set(numbers)) == len(numbers)
    for stretches in held.values():
        stretches.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(stretches))
    return len(holding)


def test_of_sixteen_who_want_one_time_one_gets_it(there: tuple[Desk, Path, str]) -> None:
    desk, _, _ = there
    times = [FIRST_NS + index * 3 * STEP_NS for index in range(4)]
    patients = [desk.patient(f"P{who}") for who in range(16)]
    wanted = [[desk.order(patient) for _ in times] for patient in patients]
    together = threading.Barrier(16)
    outcomes: list[tuple[int, str]] = []

    def want(who: int) -> None:
        for start, order in zip(times, wanted[who], strict=True):
            together.wait()
            try:
                desk.do(book, CLERK, UTC, orders=[order], from_ns=start)
                outcomes.append((start, "booked"))
            except NotNowError:
                outcomes.append((start, "refused"))

    run(want)
    assert Counter(outcomes) == Counter(
        {(start, what): count for start in times for what, count in (("booked", 1), ("refused", 15))}
    )
    assert check_nothing_overlaps(desk) == 4


def test_of_those_who_are_committed_together_one_gets_it(there: tuple[Desk, Path, str]) -> None:
    """Transactions that wait are committed with one sync: each sees those before it."""
    desk, _, _ = there

    def booking(order: str) -> Planned[str]:
        return Planned("ris", lambda change: book(change, CLERK, UTC, orders=[order], from_ns=FIRST_NS))

    wanted = [desk.order(desk.patient(f"P{who}")) for who in range(8)]
    results = desk.stores.plugin_records.commit([booking(order) for order in wanted], NOON_NS)
    assert [isinstance(one, NotNowError) for one in results] == [False, *[True] * 7]
    assert check_nothing_overlaps(desk) == 1


def test_sixteen_who_book_move_and_cancel_never_share_a_room(there: tuple[Desk, Path, str]) -> None:
    desk, _, _ = there
    mine = orders(desk, 48)
    told: list[tuple[int, int]] = []

    def work(who: int) -> None:
        told.append(push(desk, mine[who::16], random.Random(who)))

    run(work)
    assert len(told) == 16
    assert sum(could for could, _ in told) > 10
    assert sum(refused for _, refused in told) > 10  # else nobody was in anybody's way
    assert 2 <= check_nothing_overlaps(desk) <= 2 * STARTS


def test_four_workers_never_share_a_room(there: tuple[Desk, Path, str]) -> None:
    desk, directory, key = there
    mine = orders(desk, 40)
    children = [
        subprocess.Popen(
            [sys.executable, str(CHILD), str(directory), key, str(who), *mine[who::4]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for who in range(4)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        told = [child.communicate("go\n", timeout=120)[0].split() for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert [child.returncode for child in children] == [0] * 4
    assert sum(int(could) for could, _ in told) > 10
    assert sum(int(refused) for _, refused in told) > 10
    assert 2 <= check_nothing_overlaps(desk) <= 2 * STARTS


def run(work: Callable[[int], None]) -> None:
    """As sixteen at once; raises what one of them raised."""
    failed: list[BaseException] = []

    def guarded(who: int) -> None:
        try:
            work(who)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=guarded, args=(who,)) for who in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert failed == []
