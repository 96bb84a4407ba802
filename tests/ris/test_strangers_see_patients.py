"""Danger: who is nobody, or not entitled, sees patients, acts for others, or is told what is not his."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing
from msgspec import structs

from hounsfield.archive.plugins import Change, Event
from hounsfield.ris_plugin.actors import PEOPLES_ROLES, SYSTEM
from hounsfield.ris_plugin.api import live as looking
from hounsfield.ris_plugin.api.identity import LOCAL_ROLES, Caller
from hounsfield.ris_plugin.api.live import Live
from hounsfield.ris_plugin.api.performing import perform
from hounsfield.ris_plugin.api.table import BY_NAME, ENDPOINTS
from hounsfield.ris_plugin.catalog import put_person
from hounsfield.ris_plugin.errors import ForbiddenError
from hounsfield.ris_plugin.reading import reporting
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
    await counter.get("referrer", "/patients", number="P2", birth_day="19700102")
    searched = [one.body for one in desk.said() if one.kind == "ris.referrer-searched"]
    assert searched == [{"patient": other, "actor": "referrer"}, {"patient": "", "actor": "referrer"}]
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
    etag = {"headers": {"if-match": f'"{written["version"]}"'}}
    await counter.post("trainee", f"{path}/sign", {}, 403, **etag)
    await counter.post("clerk", f"{path}/sign", {}, 403, **etag)
    await counter.post("trainee", f"{path}/put-forward", **etag)
    seen = await counter.get("referrer", path)
    assert [one["kind"] for one in seen["versions"]] == ["preliminary"]
    assert seen["draft"] == []
    await counter.post("radiologist", f"{path}/sign", {}, 428)
    read = await counter.post("radiologist", f"{path}/take", {})
    await counter.post("radiologist", f"{path}/sign", {}, 412, **etag)  # read before that
    etag = {"headers": {"if-match": f'"{read["version"]}"'}}
    signed = await counter.post("radiologist", f"{path}/sign", {}, **etag)
    assert (signed["state"], signed["versions"][-1]["signer"]) == ("final", "radiologist")
    assert desk.look(reporting.get, report).versions[-1].author == "trainee"


async def test_nothing_says_what_there_is_of_others(counter: Counter) -> None:
    desk = counter.desk
    desk.procedure()
    mine, other = desk.patient("P1"), desk.patient("P2")
    own = desk.order(mine, requester_code="referrer", placer_number="1")
    foreign = [
        desk.order(other, requester_code="somebody", placer_number="1", accession=f"A{number}")
        for number in range(3)
    ]
    draft = [desk.do(reporting.ready, SYSTEM, [one]) for one in (own, foreign[0])]
    studies = [desk.look(reporting.get, one).study_uid for one in draft]
    # A list ends with what is his: no cursor names what was passed over on the way.
    asked = ({"requester": "somebody"}, {"placer": "1"}, {"state": "accepted"}, {"accession": "A1"}, {})
    for query in asked:
        page = await counter.get("referrer", "/orders", limit=1, **query)
        assert {one["id"] for one in page["items"]} <= {own}, query
        assert page["next"] == "", query
    # A report that is not there for him is as one that there is not; and so is one of another's study.
    for study in (*studies, "1.2.3"):
        page = await counter.get("referrer", "/reports", study=study)
        assert page == {"items": [], "next": ""}
    # That a version is another one is told to who sees it.
    for version in (1, 77):
        etag = {"if-match": f'"{version}"'}
        for path, body in (
            (f"/orders/{foreign[0]}/cancel", {"why": "x"}),
            (f"/orders/{'0' * 32}/cancel", {"why": "x"}),
        ):
            answer = await counter.ask("referrer", "POST", path, body, headers=etag)
            assert (answer.status_code, answer.json()["detail"]) == (404, "there is no such order")
    # Which numbers and studies there are is not his to try.
    for given in ({"accession": "A1"}, {"accession": "A99"}, {"study_uid": studies[1]}):
        body = {"patient": mine, "procedure": "CTHEAD", **given}
        await counter.post("referrer", "/orders", body, 403)


async def test_sight_goes_with_a_merge_and_comes_back(counter: Counter) -> None:
    desk = counter.desk
    desk.procedure()
    mine, other = desk.patient("P1"), desk.patient("P2", address="Elsewhere 1")
    own = desk.order(mine, requester_code="referrer")
    foreign = desk.order(other, requester_code="somebody")
    merged = await counter.post("clerk", "/merges", {"survivor": other, "merged": mine, "reason": "one"}, 201)
    for key in (mine, other):
        assert (await counter.get("referrer", f"/patients/{key}"))["id"] == other
        history = await counter.get("referrer", f"/patients/{key}/history")
        assert ([one["id"] for one in history["orders"]], history["merges"]) == ([own], [])
    await counter.get("referrer", f"/orders/{foreign}", 404)
    await counter.post("clerk", f"/merges/{merged['id']}/undo", {"reason": "two"}, 204)
    assert (await counter.get("referrer", f"/patients/{mine}"))["id"] == mine
    for path in (f"/patients/{other}", f"/patients/{other}/history"):
        await counter.get("referrer", path, 404)


async def test_a_long_list_of_others_does_not_hide_ones_own(counter: Counter) -> None:
    desk = counter.desk
    desk.procedure()
    patient = desk.patient()
    for number in range(12):
        who = "referrer" if number % 6 == 5 else "somebody"
        desk.order(patient, requester_code=who, copies_to=("referrer",) if number == 3 else ())
    found: list[str] = []
    after = ""
    while after or not found:
        page = await counter.get("referrer", "/orders", state="accepted", limit=2, after=after)
        found += [one["id"] for one in page["items"]]
        after = page["next"]
    assert len(set(found)) == len(found) == 3


async def test_who_was_sent_a_copy_reads_it(counter: Counter) -> None:
    desk = counter.desk
    desk.procedure()
    order = desk.order(desk.patient(), requester_code="somebody", copies_to=("referrer",))
    seen = await counter.get("referrer", f"/orders/{order}")
    assert seen["actions"] == []
    for action in ("hold", "cancel"):
        await counter.post("referrer", f"/orders/{order}/{action}", {"why": "mine now"}, 403)
    answered = {"name": "pregnancy", "answer": "no"}
    await counter.post("referrer", f"/orders/{order}/answers", answered, 403)
    etag = {"headers": {"if-match": f'"{seen["version"]}"'}}
    await counter.post("referrer", f"/orders/{order}", {"reason": "x"}, 403, method="PATCH", **etag)
    await counter.post(
        "referrer", f"/orders/{order}/replace", {"patient": seen["patient"], "procedure": "CTHEAD"}, 403
    )
    booked = await counter.post("clerk", "/waiting", {"orders": [order]}, 201)
    await counter.get("referrer", f"/appointments/{booked['id']}")
    await counter.post("referrer", f"/appointments/{booked['id']}/cancel", {"why": "mine now"}, 403)
    assert (await counter.get("clerk", f"/orders/{order}"))["state"] == "accepted"


async def test_nobody_answers_in_anothers_name(counter: Counter) -> None:
    counter.desk.procedure(questions=("pregnancy", "implants"))
    answers = [
        {
            "name": "pregnancy",
            "answer": "no",
            "answered_by": "radiologist",
            "answered": "2020-01-01T00:00:00Z",
        },
        {"name": "implants", "answer": " ", "answered_by": "radiologist"},
    ]
    body = {
        "patient": counter.desk.patient(), "procedure": "CTHEAD", "answers": answers,
        "placer_number": "7", "placer_issuer": "HIS",
    }  # fmt: skip
    placed = await counter.post("referrer", "/orders", body, 201)
    assert [(one["answer"], one["answered_by"]) for one in placed["questions"]] == [
        ("no", "referrer"),
        ("", ""),
    ]
    assert placed["questions"][0]["answered"].startswith("2026-11-22")
    # Nor under a number of another's system, which would speak of this order when it means its own.
    assert (placed["placer_number"], placed["placer_issuer"]) == ("7", "referrer")


async def test_an_id_is_written_in_one_way(counter: Counter) -> None:
    counter.desk.procedure()
    patient = counter.desk.patient()
    for other in (patient.upper(), f"{patient[:16]} {patient[16:]}"):
        if other != patient:
            await counter.get("clerk", f"/patients/{other}", 404)
            await counter.post("clerk", "/orders", {"patient": other, "procedure": "CTHEAD"}, 404)


async def test_opening_a_confidential_record_is_noted(counter: Counter) -> None:
    known = counter.desk.patient("P1")
    hidden = counter.desk.patient("P2", confidential=True)
    await counter.get("clerk", f"/patients/{known}")
    assert "ris.confidential-seen" not in [event.kind for event in counter.desk.said()]
    await counter.get("clerk", f"/patients/{hidden}")
    told = [event for event in counter.desk.said() if event.kind == "ris.confidential-seen"]
    assert [event.body for event in told] == [{"patient": hidden, "actor": "clerk"}]


async def test_a_confidential_record_is_opened_by_all_that_shows_it(counter: Counter) -> None:
    desk = counter.desk
    desk.procedure()
    hidden = desk.patient("P2", confidential=True)
    order = desk.order(hidden)
    report = desk.do(reporting.ready, SYSTEM, [order])
    waits = await counter.post("clerk", "/waiting", {"orders": [order]}, 201)
    study = desk.look(reporting.get, report).study_uid

    def noted() -> int:
        return sum(event.kind == "ris.confidential-seen" for event in desk.said())

    before = noted()
    for path, query in (
        (f"/patients/{hidden}", {}), (f"/patients/{hidden}/history", {}), (f"/orders/{order}", {}),
        ("/orders", {"patient": hidden}), (f"/appointments/{waits['id']}", {}), (f"/reports/{report}", {}),
        ("/reports", {"study": study}),
    ):  # fmt: skip
        await counter.get("radiologist", path, **query)
        assert noted() == before + 1, path
        before += 1
    await counter.post("radiologist", f"/reports/{report}/take", {})
    assert noted() == before + 1
    version = (await counter.get("clerk", f"/patients/{hidden}"))["version"]
    await counter.post("clerk", f"/patients/{hidden}", {"sex": "O"}, method="PATCH",
                       headers={"if-match": f'"{version}"'})  # fmt: skip
    assert noted() == before + 3


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

    async def receive(self) -> dict[str, Any]:
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
    await trio.testing.wait_all_tasks_blocked()
    return [[one["event"] for one in socket.told[1:]] for socket in sockets]


async def test_everybody_is_told_what_he_may_see(counter: Counter) -> None:
    desk = counter.desk
    desk.procedure()
    own = desk.order(desk.patient(), requester_code="referrer")
    foreign = desk.order(desk.patient("P2"), requester_code="other")
    second = desk.order(desk.patient("P3"), requester_code="referrer")
    put_forward, unread = (desk.do(reporting.ready, SYSTEM, [one]) for one in (own, second))
    desk.do(reporting.assign, RADIOLOGIST, desk.settings, put_forward)
    text = [Section(name="findings", text="none")]
    desk.do(reporting.draft, RADIOLOGIST, desk.settings, put_forward, text)
    desk.do(reporting.put_forward, RADIOLOGIST, put_forward)
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
            ("ris.report-signed", {"report": put_forward, "orders": [own, foreign], "actor": "a"}),
            ("ris.report-assigned", {"report": unread, "orders": [own], "to": "trainee", "actor": "a"}),
            ("ris.images-stored", {"study": "1.2", "order": own, "actor": "a"}),
            ("ris.step-ready", {"step": "s", "order": own, "actor": "a"}),
            ("ris.confidential-seen", {"patient": "p", "actor": "a"}),
            ("ris.catalog-changed", {"kind": "person", "record": "r", "actor": "a"}),
            ("study-stable", {"study": "1.2"}),
        ):
            live._tell(Event("", kind, 0, body))
        assert await told(clerk, reader, referrer) == [
            [
                "order-accepted",
                "order-accepted",
                "report-signed",
                "report-assigned",
                "images-stored",
                "step-ready",
                "catalog-changed",
            ],
            ["report-signed", "report-assigned"],
            ["order-accepted", "report-signed"],
        ]
        assert "text" not in clerk.told[1]
        # Who loses his roles is told nothing more.
        for who in ("clerk", "radiologist"):
            desk.do(put_person, ADMINISTRATOR, Person(code=who, roles=(), active=False))
        live._tell(Event("", "ris.catalog-changed", 0, {"actor": "a"}))
        live._tell(Event("", "ris.report-signed", 0, {"report": put_forward, "actor": "a"}))
        before = len(reader.told)
        await told(clerk, reader)
        assert (clerk.closed, reader.closed, len(reader.told)) == (1008, 1008, before)
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


FOREIGN = (
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"origin": "http://test.evil.example", "content-type": "application/json"},
)


@pytest.mark.parametrize("headers", FOREIGN)
async def test_a_foreign_page_changes_nothing_where_no_token_is_needed(
    counter: Counter, headers: dict[str, str]
) -> None:
    desk = counter.desk
    desk.procedure()
    order = desk.order(desk.patient())
    desk.settings = structs.replace(desk.settings, without_token="clerk")
    trusting = Counter(desk)
    body = b'{"why": "no need"}'
    for method, path in (("POST", f"/orders/{order}/cancel"), ("GET", f"/orders/{order}")):
        content = body if method == "POST" else b""
        foreign = await trusting.ask(None, method, path, content=content, headers=headers)
        assert foreign.status_code == 403
    # As a script sends bytes without saying what they are, which asks for no leave before.
    untyped = await trusting.ask(None, "POST", f"/orders/{order}/cancel", content=body)
    assert untyped.status_code == 415
    own = {"origin": "http://test", "content-type": "application/json", "sec-fetch-site": "same-origin"}
    done = await trusting.ask(None, "POST", f"/orders/{order}/cancel", content=body, headers=own)
    assert (done.status_code, done.json()["state"]) == (200, "cancelled")


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
