"""Danger: what is done on the command line is not done, or otherwise than over the API of the same server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request, TextMessage

from hounsfield.ris_plugin.plugin import plugin
from support.server import ArchiveServer, archive_server, until

TOKENS = {"anna": "0123456789abcdef-of-anna", "stranger": "0123456789abcdef-of-nobody"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArchiveServer]:
    folder = tmp_path_factory.mktemp("ris")
    tokens = folder / "tokens"
    tokens.write_text("".join(f"{name}:{token}\n" for name, token in TOKENS.items()))
    tokens.chmod(0o600)
    settings = (f"http.bearer_token_file={tokens}", "plugins.ris.time_zone=Europe/Vienna")
    with archive_server(folder / "archive", *settings, workers=2) as running:
        yield running


def ris(server: ArchiveServer, *words: str) -> Any:
    return server.run_json("ris", *words)


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {TOKENS[name]}"}


def test_the_front_desk_and_a_radiologist_work_together(server: ArchiveServer) -> None:
    def ask(name: str, method: str, path: str, **more: Any) -> Any:
        return server.client.request(method, f"/ris/api{path}", headers=bearer(name), **more)

    assert ask("anna", "GET", "/me").status_code == 403
    ris(server, "people", "put", "anna", "--name", "MEIER^ANNA", "--role", "radiologist")
    ris(server, "people", "put", "anna", "--subspecialty", "neuro")
    me = ask("anna", "GET", "/me").json()
    assert (me["roles"], me["name"], me["subspecialties"]) == (["radiologist"], "MEIER^ANNA", ["neuro"])
    assert ask("stranger", "GET", "/me").status_code == 403
    assert server.client.get("/ris/api/me").status_code == 401
    assert ask("anna", "GET", "/openapi.json").json()["openapi"] == "3.1.0"

    registered = ("patients", "register", "--name", "DOE^JANE", "--number", "4711", "--issuer", "HOSP")
    patient = ris(server, *registered)
    refused = server.run("ris", *registered)
    assert refused.returncode == 1
    assert "registered already" in refused.stderr
    assert "DOE" not in refused.stderr
    found = ask("anna", "GET", "/patients", params={"name": "doe"}).json()["items"]
    assert [one["id"] for one in found] == [patient["id"]]
    assert ris(server, "patients", "search", "doe")["items"][0]["id"] == patient["id"]
    assert ris(server, "patients", "show", "4711@HOSP")["name"] == "DOE^JANE"
    made = ask("anna", "PUT", "/procedures", json={"code": {"value": "CTHEAD"}, "modality": "CT"})
    assert made.status_code == 403
    unknown = server.run("ris", "orders", "place", "4711", "CTHEAD")
    assert (unknown.returncode, "no active procedure" in unknown.stderr) == (1, True)
    assert "4712" not in server.run("ris", "orders", "place", "4712", "CTHEAD").stdout
    assert "DOE" not in server.log_text()


def test_a_department_is_imported_and_tried(server: ArchiveServer, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "docs" / "ris-example.yaml"
    dry = server.run_json("ris", "import", str(example), "--dry-run")
    assert (dry["problems"], dry["done"]) == ([], 0)
    assert server.run_json("ris", "import", str(example))["done"] > 0
    assert server.run("ris", "export").stdout.count("code:") > 3
    assert [one["name"] for one in ris(server, "templates", "list")["items"]] == ["CT head"]
    shown = server.run("ris", "templates", "show", "CT head").stdout
    assert "ventricles: of normal width | enlarged" in shown
    assert server.run("ris", "templates", "show", "CT").returncode == 1
    assert ris(server, "templates", "macros") == {"clear": "No acute intracranial abnormality."}
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("people:\n- {code: x, roles: [king]}\n")
    refused = server.run("ris", "import", str(wrong))
    assert refused.returncode == 1
    assert "roles" in refused.stdout
    assert ris(server, "catalog", "procedures")["items"]
    assert ris(server, "catalog", "resources")["items"]
    free = ris(
        server, "schedule", "free", "--procedure", ris(server, "catalog", "procedures")["items"][0]["value"]
    )
    assert free["items"]
    registered = ris(server, "patients", "register", "--name", "POE^E")
    order = ris(server, "orders", "place", registered["identifiers"][0]["value"], "CTHEAD")
    at = ("--at", "2026-11-24 10:30")
    booked = ris(server, "schedule", "book", order["accession"], *at)
    assert booked["from"] == "2026-11-24T10:30:00+01:00"
    again = server.run("ris", "schedule", "book", order["accession"], *at)
    assert again.returncode == 1, again.stdout
    assert "has an appointment already" in again.stderr
    never = server.run("ris", "schedule", "book", order["accession"], "--at", "noon")
    assert (never.returncode, "a time is" in never.stderr) == (2, True)
    assert [one["id"] for one in ris(server, "schedule", "day", "--on", "2026-11-24")["items"]] == [
        booked["id"]
    ]
    (step,) = ris(server, "worklist", "--on", "2026-11-24")["items"]
    assert (step["accession"], step["ae_titles"]) == (order["accession"], ["CT1"])
    assert ris(server, "schedule", "arrive", booked["number"])["state"] == "arrived"
    assert ris(server, "orders", "show", order["accession"])["state"] == "scheduled"
    assert ris(server, "orders", "cancel", order["accession"], "--why", "went home")["state"] == "cancelled"
    assert ris(server, "orders", "list")["items"] == []
    assert ris(server, "hl7", "letters") == []
    metrics = server.client.get("/metrics", headers=bearer("anna")).text
    for name in ("orders{", "reports_unread", "reports_oldest_seconds", "mismatches", "alerts"):
        assert f"hounsfield_ris_{name}" in metrics, name


def test_a_front_desk_offers_and_books_what_belongs_together(server: ArchiveServer, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "docs" / "ris-example.yaml"
    plain = tmp_path / "procedures.csv"
    plain.write_text("code,scheme,needs_protocol\nUSABD,99DEPT,no\n")
    ris(server, "import", str(example))
    ris(server, "import", str(plain))

    def order(patient: str) -> str:
        made: str = ris(server, "orders", "place", patient, "USABD")["accession"]
        return made

    one, two = (
        ris(server, "patients", "register", "--name", name)["identifiers"][0]["value"]
        for name in ("ANT^A", "BEE^B")
    )
    full = ris(server, "schedule", "book", order(one), "--at", "2094-01-11 08:00")
    late = ris(server, "schedule", "book", order(two), "--at", "2094-01-13 08:00")
    assert ris(server, "schedule", "earlier", late["number"])["waiting_since"]
    follows = ("--wanted", "2094-01-12", "--until", "2094-01-20", "--follows", late["number"])
    waits = ris(server, "schedule", "wait", order(two), *follows)
    assert (waits["wanted_from"][:10], waits["wanted_to"][:10]) == ("2094-01-13", "2094-01-20")
    ris(server, "schedule", "cancel", full["number"], "--why", "ill")
    (offer,) = ris(server, "schedule", "offers", full["number"])["items"]
    assert (offer["number"], offer["patient_name"]) == (late["number"], "BEE^B")
    assert offer["now"][:10] == "2094-01-13"
    assert "2094-01-11 08:00" in server.run("ris", "schedule", "offers", full["number"]).stdout
    taken = ris(server, "schedule", "take", late["number"], "--at", offer["from"])
    assert taken["from"][:16] == "2094-01-11T08:00"
    again = server.run("ris", "schedule", "take", late["number"], "--at", offer["from"])
    assert (again.returncode, "waits for no other time" in again.stderr) == (1, True)

    (sheet,) = ris(server, "schedule", "sheet", "--on", "2094-01-11", "--resource", "US1")["items"]
    assert [entry["number"] for entry in sheet["columns"][0]["entries"]] == [late["number"]]
    week = server.run("ris", "schedule", "sheet", "--on", "2094-01-13", "--week", "--resource", "US1").stdout
    assert "08:00-08:20" in week
    assert week.count("open") == 4  # Monday, Tuesday, Wednesday, Friday

    first, second = order(one), order(one)
    both = ("--order", first, "--order", second, "--gap", "24h..72h", "--since", "2094-01-18")
    (times, *_) = ris(server, "schedule", "series", *both)["items"]
    parts = [
        word
        for name, time in zip((first, second), times["times"], strict=True)
        for word in ("--part", name, time["from"])
    ]
    made = ris(server, "schedule", "series", *parts, "--gap", "24h..72h")["items"]
    assert [part["gap_minutes_min"] for part in made] == [0, 24 * 60]
    far = ("schedule", "move", made[1]["number"], "--at", "2094-01-29 08:00")
    refused = server.run("ris", *far)
    assert (refused.returncode, "in its series" in refused.stderr) == (1, True)
    assert ris(server, *far, "--apart")["series"] == ""
    for wrong in (("--order", first, "--gap", "soon"), (), ("--part", first, "noon")):
        assert server.run("ris", "schedule", "series", *wrong).returncode == 2, wrong

    past = server.run("ris", "schedule", "book", order(two), "--at", "2026-01-12 08:00")
    assert "that time is over already" in past.stderr
    backwards = ("--since", "2094-01-18", "--until", "2094-01-17")
    for words in (("free", "--procedure", "USABD"), ("series", "--order", second)):
        never = server.run("ris", "schedule", *words, *backwards)
        assert (never.returncode, "ends after it begins" in never.stderr) == (1, True)

    closed = tmp_path / "closed.yaml"
    closed.write_text("closures:\n- 2094-01-29 flood\n")
    ris(server, "import", str(closed))
    (moved,) = ris(server, "schedule", "displaced", "--since", "2094-01-01")["items"]
    assert (moved["number"], moved["resources"]) == (made[1]["number"], ["US1"])
    assert "flood" in server.run("ris", "schedule", "sheet", "--on", "2094-01-29").stdout


def test_whoever_looks_is_told_from_every_worker(server: ArchiveServer) -> None:
    import socket

    ris(server, "people", "put", "anna", "--role", "radiologist")
    with socket.create_connection(server.address("http"), timeout=30) as sock:
        connection = WSConnection(ConnectionType.CLIENT)
        headers = [(b"authorization", bearer("anna")["authorization"].encode())]
        sock.sendall(
            connection.send(
                Request(host="127.0.0.1", target="/ris/api/live?topics=patients", extra_headers=headers)
            )
        )
        told: list[dict[str, Any]] = []

        def receive() -> bool:
            connection.receive_data(sock.recv(4096))
            for event in connection.events():
                assert isinstance(event, (AcceptConnection, TextMessage)), event
                if isinstance(event, TextMessage):
                    told.append(json.loads(event.data))
            return bool(told)

        until(receive, "the first words")
        assert told.pop()["event"] == "hello"
        patient = ris(server, "patients", "register", "--name", "ROE^R")
        until(receive, "what happened")
        assert told == [
            {
                "event": "patient-changed",
                "topic": "patients",
                "patient": patient["id"],
                "actor": told[0]["actor"],
            }
        ]
        assert re.fullmatch(r"local:\w+", told[0]["actor"])


class Line:
    """What a command is made with, to look at its help."""

    def options(self, function: Any) -> Any:
        return function


def commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    for name, one in group.commands.items():
        if isinstance(one, click.Group):
            yield from ((f"{name} {more}", each) for more, each in commands(one))
        yield name, one


def test_every_command_says_what_it_does_with_an_example() -> None:
    assert plugin.command is not None
    whole = plugin.command(Line())  # type: ignore[arg-type]
    assert isinstance(whole, click.Group)
    for name, one in commands(whole):
        assert one.help, name
        if not isinstance(one, click.Group):
            assert one.epilog, name
            assert f"hounsfield ris {name}" in one.epilog, name
