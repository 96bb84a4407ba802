"""Danger: who is nobody, or not entitled, sees patients, acts for others, or is told what is not his."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from msgspec import structs

from hounsfield.archive.plugins import Change, Event
from hounsfield.ris_plugin import reporting
from hounsfield.ris_plugin.actors import PEOPLES_ROLES, SYSTEM
from hounsfield.ris_plugin.api import live as looking
from hounsfield.ris_plugin.api.identity import LOCAL_ROLES, Caller
from hounsfield.ris_plugin.api.live import Live
from hounsfield.ris_plugin.api.performing import perform
from hounsfield.ris_plugin.api.table import BY_NAME, ENDPOINTS
from hounsfield.ris_plugin.catalog import put_person
from hounsfield.ris_plugin.errors import ForbiddenError
from hounsfield.ris_plugin.records.catalog import Person
from hounsfield.ris_plugin.records.messages import MESSAGE, Message
from hounsfield.ris_plugin.records.reports import Section
from ris.conftest import ADMINISTRATOR, NOON_NS, RADIOLOGIST, Desk
from ris.counter import Counter


@pytest.fixture
def counter(desk: Desk) -> Counter:
    desk.now_ns = NOON_NS
    return Counter(desk)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.name)
async def test_nobody_is_answered_nothing(counter: Counter, endpoint: Any) -> None:
    path = endpoint.path
    for name in endpoint.parameters:
        path = path.replace(f"{{{name}}}", "0" * 32)
    for who in (None, "nobody", "meier"):
        answer = await counter.ask(who, endpoint.method, path, headers={"if-match": '"1"'})
        assert answer.status_code == 403, who
        assert "items" not in answer.text


async def test_where_no_token_is_needed_a_person_is_named_or_nobody_answered(counter: Counter) -> None:
    answer = await counter.get(None, "/me", 403)
    assert "http.bearer_token_file" in answer["detail"]
    settings = structs.replace(counter.desk.settings, without_token="clerk")
    counter.desk.settings = settings
    trusting = Counter(counter.desk)
    assert (await trusting.get(None, "/me"))["roles"] == ["clerk"]


async def test_who_has_left_is_nobody(counter: Counter) -> None:
    assert (await counter.get("clerk", "/me"))["person"] == "clerk"
    gone = Person(code="clerk", roles=("clerk",), active=False)
    counter.desk.do(put_person, ADMINISTRATOR, gone)
    await counter.get("clerk", "/me", 403)


async def test_a_referrer_sees_what_is_his(counter: Counter) -> None:
    desk = counter.desk
    desk.procedure()
    mine, other = desk.patient("P1"), desk.patient("P2", "ROE^RICHARD")
    own = await counter.post("referrer", "/orders", {"patient": mine, "procedure": "CTHEAD"}, 201)
    foreign = desk.order(other, requester_code="somebody")
    listed = await counter.get("referrer", "/orders")
    assert [one["id"] for one in listed["items"]] == [own["id"]]
    await counter.get("referrer", f"/orders/{own['id']}")
    await counter.get("referrer", f"/patients/{mine}")
    for path in (f"/orders/{foreign}", f"/patients/{other}", f"/patients/{other}/history"):
        await counter.get("referrer", path, 404)
    await counter.post("referrer", f"/orders/{foreign}/cancel", {"why": "mine now"}, 404)
    await counter.post("referrer", f"/orders/{foreign}/hold", {"why": "mine now"}, 404)
    await counter.get("referrer", "/orders", 404, patient=other)
    asked = await counter.get("referrer", "/orders", requester="somebody")
    assert asked["items"] == []
    # Nobody is found by guessing names.
    await counter.get("referrer", "/patients", 403, name="roe")
    found = await counter.get("referrer", "/patients", number="P2", birth_day="19700101")
    assert [one["name"] for one in found["items"]] == ["ROE^RICHARD"]
    assert found["items"][0]["address"] == ""
    for path in ("/worklist", "/appointments", "/reading-list", "/mismatches", "/people", "/waiting"):
        await counter.get("referrer", path, 403)


async def test_an_order_is_its_referrers_whatever_he_says(counter: Counter) -> None:
    counter.desk.procedure()
    body = {"patient": counter.desk.patient(), "procedure": "CTHEAD", "requester_code": "somebody"}
    placed = await counter.post("referrer", "/orders", body, 201)
    assert (placed["requester_code"], placed["source"]) == ("referrer", "referrer")
    by_desk = await counter.post("clerk", "/orders", body, 201)
    assert (by_desk["requester_code"], by_desk["source"]) == ("somebody", "clerk")


async def test_reports_are_seen_by_whom_they_are_for(counter: Counter) -> None:
    desk = counter.desk
    desk.procedure()
    body = {"patient": desk.patient(), "procedure": "CTHEAD"}
    order = await counter.post("referrer", "/orders", body, 201)
    report = desk.do(reporting.ready, SYSTEM, [order["id"]])
    path = f"/reports/{report}"
    await counter.get("administrator", path, 403)
    await counter.get("referrer", path, 404)
    (line,) = (await counter.get("administrator", "/reading-list"))["items"]
    assert line["draft"] == []
    taken = await counter.post("trainee", f"{path}/take", {})
    writing = {"sections": [{"name": "impression", "text": "no bleeding"}]}
    etag = {"headers": {"if-match": f'"{taken["version"]}"'}}
    written = await counter.post("trainee", f"{path}/draft", writing, method="PUT", **etag)
    assert written["draft"][0]["text"] == "no bleeding"
    stale = await counter.ask("trainee", "PUT", f"{path}/draft", writing, **etag)
    assert stale.status_code == 412
    await counter.get("referrer", path, 404)
    await counter.post("radiologist", f"{path}/draft", writing, 409, method="PUT",
                       headers={"if-match": f'"{written["version"]}"'})  # fmt: skip
    await counter.post("trainee", f"{path}/sign", {}, 403)
    await counter.post("clerk", f"{path}/sign", {}, 403)
    await counter.post("trainee", f"{path}/put-forward")
    seen = await counter.get("referrer", path)
    assert [one["kind"] for one in seen["versions"]] == ["preliminary"]
    assert seen["draft"] == []
    await counter.post("radiologist", f"{path}/take", {})
    signed = await counter.post("radiologist", f"{path}/sign", {})
    assert (signed["state"], signed["versions"][-1]["signer"]) == ("final", "radiologist")
    assert desk.look(reporting.get, report).versions[-1].author == "trainee"


async def test_opening_a_confidential_record_is_noted(counter: Counter) -> None:
    known = counter.desk.patient("P1")
    hidden = counter.desk.patient("P2", confidential=True)
    await counter.get("clerk", f"/patients/{known}")
    assert "ris.confidential-seen" not in [event.kind for event in counter.desk.said()]
    await counter.get("clerk", f"/patients/{hidden}")
    told = [event for event in counter.desk.said() if event.kind == "ris.confidential-seen"]
    assert [event.body for event in told] == [{"patient": hidden, "actor": "clerk"}]


CLINICAL = {
    "DraftReport": {"sections": []},
    "PutReportForward": None,
    "SignReport": {},
    "CorrectReport": {"sections": [], "reason": "x"},
    "AddendReport": {"sections": []},
}


@pytest.mark.parametrize("name", CLINICAL)
async def test_the_command_line_reads_and_signs_for_nobody(counter: Counter, name: str) -> None:
    desk = counter.desk
    desk.procedure()
    report = desk.do(reporting.ready, SYSTEM, [desk.order(desk.patient())])
    desk.do(reporting.assign, RADIOLOGIST, desk.settings, report)
    desk.do(reporting.draft, RADIOLOGIST, desk.settings, report, [Section(name="findings", text="none")])
    body = b"" if CLINICAL[name] is None else json.dumps(CLINICAL[name]).encode()
    with pytest.raises(ForbiddenError):
        await perform(
            counter.ris, BY_NAME[name], Caller(local_user="root"), path={"report": report}, body=body
        )


def test_the_command_line_has_the_roles_that_are_documented() -> None:
    assert {"administrator", "clerk"} == LOCAL_ROLES
    assert LOCAL_ROLES < PEOPLES_ROLES


# ---------------------------------------------------------------- live


class Socket:
    """A WebSocket, as Starlette has them."""

    def __init__(self, who: str | None, topics: str = "", origin: str = "") -> None:
        self.headers = {"host": "127.0.0.1:8042", **({"origin": origin} if origin else {})}
        self.scope = {} if who is None else {"identity": who}
        self.query_params = {"topics": topics} if topics else {}
        self.told: list[dict[str, Any]] = []
        self.closed: int | None = None
        self.some = trio.Event()

    async def accept(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_text(self, text: str) -> None:
        self.told.append(json.loads(text))
        self.some.set()
        self.some = trio.Event()
        await trio.lowlevel.checkpoint()

    async def receive_text(self) -> str:
        await trio.sleep_forever()
        raise AssertionError

    async def close(self, code: int) -> None:
        self.closed = code
        await trio.lowlevel.checkpoint()


async def opened(nursery: trio.Nursery, live: Live, socket: Socket) -> Socket:
    nursery.start_soon(live.serve, socket)
    while not socket.told and socket.closed is None:
        await trio.lowlevel.checkpoint()
    return socket


async def told(*sockets: Socket) -> list[list[str]]:
    for _ in range(50):
        await trio.lowlevel.checkpoint()
    return [[one["event"] for one in socket.told[1:]] for socket in sockets]


async def test_everybody_is_told_what_he_may_see(counter: Counter) -> None:
    desk = counter.desk
    desk.procedure()
    own = desk.order(desk.patient(), requester_code="referrer")
    foreign = desk.order(desk.patient("P2"), requester_code="other")
    live = Live(counter.ris)
    async with trio.open_nursery() as nursery:
        clerk = await opened(nursery, live, Socket("clerk"))
        reader = await opened(nursery, live, Socket("radiologist", "reports"))
        referrer = await opened(nursery, live, Socket("referrer"))
        assert [socket.told[0]["event"] for socket in (clerk, reader, referrer)] == ["hello"] * 3
        stranger = await opened(nursery, live, Socket("nobody"))
        unnamed = await opened(nursery, live, Socket(None))
        wrong = await opened(nursery, live, Socket("clerk", "secrets"))
        assert (stranger.closed, unnamed.closed, wrong.closed) == (1008, 1008, 1008)
        for kind, body in (
            ("ris.order-accepted", {"order": own, "patient": "p", "actor": "a", "text": "never told"}),
            ("ris.order-accepted", {"order": foreign, "patient": "p", "actor": "a"}),
            ("ris.report-signed", {"report": "r", "orders": [own], "actor": "a"}),
            ("ris.confidential-seen", {"patient": "p", "actor": "a"}),
            ("ris.catalog-changed", {"kind": "person", "record": "r", "actor": "a"}),
            ("study-stable", {"study": "1.2"}),
        ):
            live._tell(Event("", kind, 0, body))
        assert await told(clerk, reader, referrer) == [
            ["order-accepted", "order-accepted", "report-signed", "catalog-changed"],
            ["report-signed"],
            ["order-accepted", "report-signed"],
        ]
        assert "text" not in clerk.told[1]
        # Who loses his roles is told nothing more.
        desk.do(put_person, ADMINISTRATOR, Person(code="clerk", roles=(), active=False))
        live._tell(Event("", "ris.catalog-changed", 0, {"actor": "a"}))
        await told(clerk)
        assert clerk.closed == 1008
        nursery.cancel_scope.cancel()


async def test_a_foreign_page_is_told_nothing_where_no_token_is_needed(counter: Counter) -> None:
    counter.desk.settings = structs.replace(counter.desk.settings, without_token="clerk")
    live = Live(Counter(counter.desk).ris)
    async with trio.open_nursery() as nursery:
        foreign = await opened(nursery, live, Socket(None, origin="https://evil.example"))
        own = await opened(nursery, live, Socket(None, origin="http://127.0.0.1:8042"))
        assert (foreign.closed, foreign.told) == (1008, [])
        assert own.told[0]["event"] == "hello"
        nursery.cancel_scope.cancel()


async def test_who_runs_the_system_reads_no_reports_in_messages(counter: Counter) -> None:
    made: list[str] = []

    def put(change: Change) -> None:
        for number, kind in enumerate(("ORU^R01", "SIU^S12")):
            made.append(change.new_id())
            text = b"MSH|^~\\&|\rOBX|1|TX|||no bleeding\r"
            message = Message(destination="his", number=number, control_id=kind, kind=kind, body=text)
            change.put(MESSAGE, made[-1], message)

    counter.desk.commit(put)
    await counter.get("administrator", f"/messages/{made[0]}", 403)
    assert "SIU" not in (await counter.get("administrator", f"/messages/{made[1]}"))["text"]
    await counter.get("radiologist", f"/messages/{made[0]}", 403)


async def test_who_is_too_slow_is_closed_and_looks_again(counter: Counter) -> None:
    live = Live(counter.ris)
    async with trio.open_nursery() as nursery:
        slow = await opened(nursery, live, Socket("clerk"))
        for _ in range(looking.BEHIND_MAX + 2):  # the first one may be taken at once
            live._tell(Event("", "ris.patient-changed", 0, {"patient": "p"}))
        with trio.fail_after(60):
            while slow.closed is None:
                await trio.lowlevel.checkpoint()
        assert slow.closed == 1013
        nursery.cancel_scope.cancel()
