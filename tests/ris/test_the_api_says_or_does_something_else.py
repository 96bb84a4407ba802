"""Danger: the API answers other than it describes, changes what it should not, or loses what two edit."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from hounsfield.ris_plugin.actors import SYSTEM
from hounsfield.ris_plugin.api.http import BODY_BYTES_MAX
from hounsfield.ris_plugin.api.openapi import document
from hounsfield.ris_plugin.api.performing import KEPT_NS
from hounsfield.ris_plugin.api.table import ENDPOINTS
from hounsfield.ris_plugin.catalog import put_person
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.records.base import NS
from hounsfield.ris_plugin.records.catalog import Person
from hounsfield.ris_plugin.records.patients import Visit
from hounsfield.ris_plugin.records.requests import DONE
from ris.conftest import ADMINISTRATOR, NOON_NS, Desk
from ris.counter import Counter


@pytest.fixture
def counter(desk: Desk) -> Counter:
    desk.now_ns = NOON_NS
    return Counter(desk)


def conforms(name: str, answer: Any) -> None:
    """That an answer is what the document says of the operation."""
    whole = document()
    operation = next(
        one for item in whole["paths"].values() for one in item.values() if one["operationId"] == name
    )
    (schema,) = (
        response["content"]["application/json"]["schema"]
        for status, response in operation["responses"].items()
        if status != "default"
    )
    Draft202012Validator({**schema, "components": whole["components"]}).validate(answer)


def test_the_document_is_valid_and_has_every_route(counter: Counter) -> None:
    whole = document()
    validate(whole)
    described = {
        (method.upper(), path.removeprefix("/ris"))
        for path, item in whole["paths"].items()
        for method in item
    }
    routes = {
        (method, route.path)
        for route in counter.parts.routes
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD"
    }
    assert described == routes - {("GET", "/api/openapi.json")}
    names = [one.name for one in ENDPOINTS]
    assert len(set(names)) == len(names)
    for item in whole["paths"].values():
        for operation in item.values():
            assert operation["summary"]
            assert operation["tags"][0] in {tag["name"] for tag in whole["tags"]}


async def test_an_order_goes_its_way(counter: Counter) -> None:
    counter.desk.procedure("CTHEAD", needs_protocol=True, questions=("pregnancy",))
    room = {"code": "CT1", "kind": "device", "modality": "CT", "ae_title": "CT1"}
    conforms("PutResource", await counter.post("administrator", "/resources", room, method="PUT"))
    made = await counter.post(
        "clerk",
        "/patients",
        {"identifiers": [{"value": "P1", "issuer": "HOSP"}], "name": "DOE^JANE", "birth_day": "19700101"},
        201,
    )
    conforms("RegisterPatient", made)
    conforms("SearchPatients", await counter.get("clerk", "/patients", name="jan do"))
    placed = await counter.ask(
        "referrer",
        "POST",
        "/orders",
        {"patient": made["id"], "procedure": "CTHEAD", "wanted": "2026-11-23T09:00:00"},
    )
    assert placed.status_code == 201
    order = placed.json()
    assert placed.headers["location"].endswith(f"/api/orders/{order['id']}")
    assert (order["state"], order["requester_code"], order["patient_name"]) == (
        "placed",
        "referrer",
        "DOE^JANE",
    )
    assert order["wanted"] == "2026-11-23T09:00:00Z"
    conforms("PlaceOrder", order)
    path = f"/orders/{order['id']}"
    await counter.post("trainee", f"{path}/accept", {}, 422)
    accepted = await counter.post("trainee", f"{path}/accept", {"text": "native, then contrast"})
    assert accepted["protocol"]["by"] == "trainee"
    begin = "2026-11-23T10:00:00+01:00"
    booking = {"orders": [order["id"]], "from": begin, "resources": []}
    refused = await counter.post("clerk", "/appointments", booking, 409)
    assert "pregnancy" in refused["detail"]
    answered = {"name": "pregnancy", "answer": "no"}
    conforms("AnswerQuestion", await counter.post("technologist", f"{path}/answers", answered))
    free = await counter.get("clerk", "/slots", orders=order["id"], since=begin, limit=2)
    conforms("FindFreeTimes", free)
    assert free["items"][0]["from"] == "2026-11-23T09:00:00Z"
    booked = await counter.post("clerk", "/appointments", booking, 201)
    conforms("BookAppointment", booked)
    conforms("GetOrder", await counter.get("referrer", path))
    listed = await counter.get("clerk", "/appointments", since="2026-11-23T00:00:00", resource="")
    conforms("ListAppointments", listed)
    assert [one["id"] for one in listed["items"]] == [booked["id"]]
    worklist = await counter.get("technologist", "/worklist", modality="CT", since="2026-11-23T00:00:00")
    conforms("GetWorklist", worklist)
    assert [one["accession"] for one in worklist["items"]] == [order["accession"]]
    conforms("PatientArrived", await counter.post("clerk", f"/appointments/{booked['id']}/arrive", {}))
    ready = await counter.post("technologist", f"/steps/{worklist['items'][0]['id']}/make-ready")
    conforms("MakeStepReady", ready)
    conforms("ListTracked", await counter.get("clerk", "/tracking"))
    conforms("GetPatientHistory", await counter.get("clerk", f"/patients/{made['id']}/history"))
    cancelled = await counter.post("referrer", f"{path}/cancel", {"why": "went home"})
    assert cancelled["state"] == "cancelled"


async def test_a_freed_time_is_offered_and_taken(counter: Counter) -> None:
    desk = counter.desk
    room = {"code": "CT1", "kind": "device", "modality": "CT", "ae_title": "CT1"}
    await counter.post("administrator", "/resources", room, method="PUT")
    desk.procedure("CTHEAD", resources=(("CT1",),))
    begin = "2026-11-23T10:00:00"
    first, second, third = (desk.order(desk.patient(number)) for number in ("P1", "P2", "P3"))
    booked = await counter.post("clerk", "/appointments", {"orders": [first], "from": begin}, 201)
    waits = await counter.post("clerk", "/waiting", {"orders": [second]}, 201)
    sheet = await counter.get("clerk", "/day-sheets", day="2026-11-23")
    conforms("GetDaySheets", sheet)
    (column,) = [one for one in sheet["items"][0]["columns"] if one["code"] == "CT1"]
    assert [one["appointment"] for one in column["entries"]] == [booked["id"]]
    conforms("GetDaySheets", await counter.get("clerk", "/day-sheets", day="2026-11-23", week="true"))
    await counter.post("clerk", f"/appointments/{booked['id']}/cancel", {"why": "ill"})
    offers = await counter.get("clerk", f"/appointments/{booked['id']}/offers")
    conforms("ListOffers", offers)
    assert [(one["appointment"], one["from"]) for one in offers["items"]] == [(waits["id"], f"{begin}Z")]
    path = f"/appointments/{waits['id']}/take-offer"
    taken = await counter.post("clerk", path, {"from": begin, "resources": offers["items"][0]["resources"]})
    conforms("TakeOffer", taken)
    assert (taken["state"], taken["holds"][0]["resource"]) == ("booked", "CT1")
    parts = [{"orders": [third], "from": "2026-11-24T10:00:00"}, {"orders": [first], "from": begin}]
    await counter.post("clerk", "/series", {"parts": parts}, 409)
    listed = await counter.get("clerk", "/appointments", since="2026-11-24T00:00:00")
    assert listed["items"] == []


async def test_the_reading_list_has_what_is_urgent_first(counter: Counter) -> None:
    desk = counter.desk
    desk.procedure()
    ward = desk.patient("P1", visit=Visit(number="V1", patient_class="I"))
    emergency = desk.patient("P2", visit=Visit(number="V2", patient_class="E"))
    home = desk.patient("P3")
    wanted = [("LOW", home), ("ROUTINE", home), ("ROUTINE", ward), ("STAT", home), ("ROUTINE", emergency)]
    made = {}
    for number, (priority, patient) in enumerate(wanted):
        order = desk.order(patient, priority=priority)
        made[desk.do(reporting.ready, SYSTEM, [order])] = number
    found: list[int] = []
    after = ""
    while after or not found:
        page = await counter.get("radiologist", "/reading-list", limit=2, after=after)
        found += [made[one["id"]] for one in page["items"]]
        after = page["next"]
    assert found == [3, 4, 2, 1, 0]
    few = await counter.get("radiologist", "/reading-list", assigned_to="me")
    assert few["items"] == []
    await counter.get("radiologist", "/reading-list", 422, after="x")


async def test_a_reader_has_his_own_subspecialty_first(counter: Counter) -> None:
    desk = counter.desk
    desk.procedure("KNEE", subspecialty="msk")
    desk.procedure("HEAD", subspecialty="neuro")
    knee = desk.do(reporting.ready, SYSTEM, [desk.order(desk.patient("P1"), "KNEE")])
    desk.now_ns += 60 * NS
    head = desk.do(reporting.ready, SYSTEM, [desk.order(desk.patient("P2"), "HEAD")])
    neuro = Person(code="neuro", name="N^N", roles=("radiologist",), subspecialties=("neuro",))
    desk.do(put_person, ADMINISTRATOR, neuro)
    for who, expected in (("radiologist", [knee, head]), ("neuro", [head, knee])):
        found = await counter.get(who, "/reading-list")
        assert [one["id"] for one in found["items"]] == expected


LISTS = [one for one in ENDPOINTS if one.is_read and not one.parameters]


@pytest.mark.parametrize("endpoint", LISTS, ids=lambda one: one.name)
async def test_lists_of_nothing_are_what_is_described(counter: Counter, endpoint: Any) -> None:
    needed = {
        "FindFreeTimes": {"procedure": "CTHEAD"},
        "SearchPatients": {"name": "nobody"},
        "FindReport": {"study": "1.2"},
    }
    if endpoint.name == "ListMessages":
        return  # of a destination that is configured: below
    counter.desk.procedure()
    if endpoint.name == "FindFreeSeries":
        needed[endpoint.name] = {"orders": counter.desk.order(counter.desk.patient())}
    who = "administrator" if "administrator" in endpoint.roles else "radiologist"
    conforms(endpoint.name, await counter.get(who, endpoint.path, **needed.get(endpoint.name, {})))


async def test_what_two_edit_is_changed_as_it_was_read(counter: Counter) -> None:
    patient = counter.desk.patient()
    path = f"/patients/{patient}"
    read = await counter.ask("clerk", "GET", path)
    etag = read.headers["etag"]
    blind = await counter.ask("clerk", "PATCH", path, {"sex": "O"})
    assert blind.status_code == 428
    first = await counter.ask("clerk", "PATCH", path, {"sex": "O"}, headers={"if-match": etag})
    assert (first.status_code, first.json()["sex"]) == (200, "O")
    assert first.headers["etag"] != etag
    late = await counter.ask("clerk", "PATCH", path, {"address": "elsewhere"}, headers={"if-match": etag})
    assert late.status_code == 412
    assert late.headers["content-type"] == "application/problem+json"
    assert (await counter.get("clerk", path))["address"] == ""
    wrong = await counter.ask("clerk", "PATCH", path, {"sex": "F"}, headers={"if-match": '"x"'})
    assert wrong.status_code == 422


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 422, "no JSON"),
        (b'{"patient": 1, "procedure": "X"}', 422, "$.patient"),
        (b'{"patient": "x"}', 422, "procedure"),
        (b'{"patient": "x", "procedure": "X", "accession_": "1"}', 422, "accession_"),
        (b'{"patient": "x", "procedure": "X"}', 404, "no such patient"),
        (b" " * (BODY_BYTES_MAX + 1), 413, "at most"),
    ],
)
async def test_bodies_that_cannot_be_are_refused(
    counter: Counter, body: bytes, status: int, words: str
) -> None:
    answer = await counter.ask(
        "clerk", "POST", "/orders", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert answer.json()["status"] == status
    form = await counter.ask(
        "clerk", "POST", "/orders", content=b"{}", headers={"content-type": "text/plain"}
    )
    assert form.status_code == 415


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"pregnancy": 1 << 64}, "pregnancy"),
        ({"pregnancy": -(1 << 70)}, "pregnancy"),
        ({"weight_kg": -3}, "weight_kg"),
        ({"weight_kg": 72000}, "weight_kg"),
        ({"size_m": 182}, "size_m"),
        ({"died": "9999-12-31T23:59:59-14:00"}, "died"),
        ({"died": "0001-01-01T00:00:00+14:00"}, "died"),
        ({"name": "DOE\x00^JANE"}, "name"),
        ({"address": "Main Street\x0b1"}, "address"),
        ({"contacts": [{"name": "x\x1b"}]}, "name"),
        ({"alerts": ["x"] * 1001}, "alerts"),
    ],
)
async def test_what_could_not_be_kept_or_said_is_refused(
    counter: Counter, given: dict[str, Any], field: str
) -> None:
    path = f"/patients/{counter.desk.patient()}"
    answer = await counter.ask("clerk", "PATCH", path, given, headers={"if-match": '"1"'})
    assert (answer.status_code, answer.json().get("field")) == (422, field)
    assert (await counter.get("clerk", path))["version"] == 1


async def test_days_that_no_calendar_has_are_refused(counter: Counter) -> None:
    for path, query in (
        ("/day-sheets", {"day": "9999-12-31"}), ("/day-sheets", {"day": "0001-01-01", "week": "true"}),
        ("/worklist", {"since": "0001-01-01T00:00:00+14:00"}), ("/slots", {"until": "9999-12-31T00:00:00"}),
        ("/appointments", {"since": "9999-12-31T23:59:59"}), ("/patients", {"name": "a\x00"}),
    ):  # fmt: skip
        assert "field" in await counter.get("clerk", path, 422, **query), path


async def test_a_change_whose_answer_was_lost_is_not_made_twice(counter: Counter) -> None:
    desk = counter.desk
    desk.procedure()
    body = {"patient": desk.patient(), "procedure": "CTHEAD"}
    key = {"headers": {"idempotency-key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}}
    first = await counter.ask("referrer", "POST", "/orders", body, **key)
    again = await counter.ask("referrer", "POST", "/orders", body, **key)
    assert (again.status_code, again.content) == (201, first.content)
    for header in ("etag", "location"):
        assert again.headers[header] == first.headers[header]
    assert len((await counter.get("referrer", "/orders"))["items"]) == 1
    assert [event.kind for event in desk.said()].count("ris.order-placed") == 1
    # Another request is not answered as this one was, and another's key is another key.
    other = await counter.ask("referrer", "POST", "/orders", {**body, "reason": "x"}, **key)
    assert (other.status_code, other.json()["field"]) == (422, "Idempotency-Key")
    await counter.post("clerk", "/orders", body, 201, **key)
    # What was refused may be tried again under its key; and what was done, in whatever state it is now.
    cancel = {"headers": {"idempotency-key": "2"}}
    path = f"/orders/{first.json()['id']}/cancel"
    await counter.post("referrer", path, {"why": ""}, 422, **cancel)
    done = await counter.post("referrer", path, {"why": "went home"}, **cancel)
    assert await counter.post("referrer", path, {"why": "went home"}, **cancel) == done
    await counter.post("referrer", path, {"why": "went home"}, 409)
    desk.do(put_person, ADMINISTRATOR, Person(code="referrer", roles=("referrer",), active=False))
    await counter.post("referrer", path, {"why": "went home"}, 403, **cancel)
    for wrong in ("x" * 256, "\u00fc"):
        await counter.post("clerk", "/orders", body, 422, headers={"idempotency-key": wrong.encode()})


async def test_keys_of_requests_are_forgotten(counter: Counter) -> None:
    desk = counter.desk
    desk.procedure()
    body = {"patient": desk.patient(), "procedure": "CTHEAD"}
    made = set()
    for number in range(4):
        answer = await counter.post(
            "clerk", "/orders", body, 201, headers={"idempotency-key": str(number % 2)}
        )
        made.add(answer["id"])
        desk.now_ns += KEPT_NS // 2 + 2 * NS
    with desk.view() as view:
        assert len(view.ids(DONE, "at", "")) == 2
    assert len(made) == 4


async def test_parameters_that_cannot_be_are_refused(counter: Counter) -> None:
    wrong = ("stat=placed", "limit=0", "limit=x", "state=lost", "limit=1&limit=2", "state=placed&after=z")
    for path in (*(f"/orders?{words}" for words in wrong), "/appointments?since=yesterday"):
        answer = await counter.ask("clerk", "GET", path)
        assert answer.status_code == 422, path
    assert (await counter.ask("clerk", "GET", "/orders/00")).status_code == 404
    assert (await counter.ask("clerk", "DELETE", "/orders")).status_code == 405


async def test_pages_have_everything_once(counter: Counter) -> None:
    counter.desk.procedure()
    patient = counter.desk.patient()
    made = []
    for number in range(7):
        if number % 3 == 0:
            counter.desk.now_ns += 10**9
        made.append(counter.desk.order(patient))
    found: list[str] = []
    after = ""
    while True:
        page = await counter.get("clerk", "/orders", state="accepted", limit=2, after=after)
        found += [one["id"] for one in page["items"]]
        after = page["next"]
        if not after:
            break
    assert sorted(found) == sorted(made)
    assert len(found) == 7
    few = await counter.get("clerk", "/orders", state="accepted", priority="STAT")
    assert (few["items"], few["next"]) == ([], "")
