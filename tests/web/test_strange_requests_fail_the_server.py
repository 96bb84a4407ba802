"""Danger: a request that the API's own description allows, or nearly does, is answered with 500.

Schemathesis makes requests from the OpenAPI document: of every operation, with the UIDs of real objects.
``make strange-requests`` makes many more.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from hounsfield.archive.web import create_app, openapi
from hounsfield.archive.web.http import HttpServer
from hounsfield.ris_plugin import api as ris_api
from hounsfield.ris_plugin.actors import PEOPLES_ROLES, SYSTEM
from hounsfield.ris_plugin.api import openapi as ris_openapi
from hounsfield.ris_plugin.api import table as ris_table
from hounsfield.ris_plugin.catalog import put_person, put_procedure, put_resource
from hounsfield.ris_plugin.orders import NewOrder, place
from hounsfield.ris_plugin.patients import register
from hounsfield.ris_plugin.reading import reporting
from hounsfield.ris_plugin.reading.templates import put_template
from hounsfield.ris_plugin.records.base import Code
from hounsfield.ris_plugin.records.catalog import Person, Procedure, Resource
from hounsfield.ris_plugin.records.patients import Identifier, Patient
from hounsfield.ris_plugin.records.reports import Template, TemplateSection
from hounsfield.ris_plugin.schedule.scheduling import propose
from hounsfield.ris_plugin.settings import RisSettings
from ris.conftest import ADMINISTRATOR, CLERK, RADIOLOGIST
from ris.following import Department, department

EXAMPLES = int(os.environ.get("STRANGE_REQUESTS", "4"))
"""Of each operation. With more than ten, what lies at the borders of every parameter is tried besides."""
CONFIGURATION = """
[phases.coverage]
# TRACE is 501, as a method is that a server does not implement (RFC 9110 9.1).
unexpected-methods = ["PUT", "PATCH", "OPTIONS"]
"""
OBJECTS = ("CT_small.dcm", "SC_rgb_rle_2frame.dcm", "test-SR.dcm")


def described(results) -> dict:
    """The document, with UIDs that lead somewhere (and, being of different objects, often nowhere)."""
    document = json.loads(json.dumps(openapi.document()))
    for name, attribute in (
        ("study", "study_uid"),
        ("series", "series_uid"),
        ("instance", "sop_instance_uid"),
    ):
        uids = [getattr(result, attribute) for result in results]
        document["components"]["parameters"][name]["schema"] = {"type": "string", "enum": uids}
    return document


async def asked(document: dict, origin: str, tmp_path: Path, *more: str, examples: int = EXAMPLES) -> str:
    """What Schemathesis says of a server that it asked all that a document describes."""
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document))
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    phases = "coverage,fuzzing" if examples > 10 else "fuzzing"
    how = ("--checks", "not_a_server_error", "--phases", phases, "--max-examples", str(examples))
    how += ("--generation-deterministic", "--no-color", *more)
    command = (sys.executable, "-m", "schemathesis.cli", "run", str(path), "--url", origin, *how)
    environment = {**os.environ, "PYTHONPATH": "", "COLUMNS": "200"}
    done = await trio.run_process(
        command, check=False, capture_stdout=True, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path
    )
    report = (done.stdout or b"").decode(errors="replace")
    assert done.returncode == 0, report[-6000:]
    return report


@pytest.mark.peer("schemathesis")
async def test_no_request_from_the_description_fails_the_server(archive, sample, tmp_path: Path):
    results = [await archive.put(sample[name]) for name in OBJECTS]
    # Bodies are made of what their media type says, and it does not know DICOM's; streams never end.
    left_out = ("--exclude-method", "POST", "--exclude-path", "/changes")
    report = await asked(described(results), archive.origin, tmp_path, *left_out)
    assert re.search(r"Tested: +[3-9]\d", report), report[-2000:]


@pytest.mark.peer("schemathesis")
async def test_no_request_of_the_ris_fails_the_server(tmp_path: Path):
    """As somebody who has all roles, about records that there are."""
    async with department(tmp_path, settings=RisSettings(without_token="all")) as ris:
        named = await records_of(ris)
        document = json.loads(json.dumps(ris_openapi.document()))
        name_records(document, named)
        app = create_app(ris.engine, plugins={"ris": list(ris_api.parts(ris.ris).routes)})
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
            async with trio.open_nursery() as nursery:
                await nursery.start(HttpServer(app).serve, [listening])
                origin = f"http://127.0.0.1:{listening.getsockname()[1]}"
                report = await asked(document, origin, tmp_path, examples=max(1, EXAMPLES // 4))
                nursery.cancel_scope.cancel()
    assert re.search(rf"Tested: +{len(ris_table.ENDPOINTS)}\b", report), report[-2000:]


async def records_of(ris: Department) -> dict[str, list[str]]:
    """Some of each kind, by what they are called in paths and bodies."""
    for person in (
        Person(code="all", roles=tuple(PEOPLES_ROLES)),
        Person(code="reader", roles=("radiologist",)),
    ):
        await ris.do(put_person, ADMINISTRATOR, person)
    room = Resource(code="CT1", kind="device", modality="CT", ae_title="CT1")
    await ris.do(put_resource, ADMINISTRATOR, room)
    code = Code(value="CTHEAD", scheme="99H")
    needs = Procedure(
        code=code, modality="CT", questions=("implants",), needs_protocol=False, resources=(("CT1",),)
    )
    await ris.do(put_procedure, ADMINISTRATOR, needs)
    one, other = [
        await ris.do(register, CLERK, Patient(identifiers=(Identifier(value=number),), name="DOE^JANE"))
        for number in ("P1", "P2")
    ]
    orders = [
        await ris.do(place, CLERK, ris.ris.settings, NewOrder(patient=one, procedure="CTHEAD"))
        for _ in range(3)
    ]
    report = await ris.do(reporting.ready, SYSTEM, orders[:1])
    template = Template(name="t", sections=(TemplateSection(name="findings"),))
    return {
        "patient": [one, other], "survivor": [one], "merged": [other], "order": orders, "orders": orders,
        "report": [report], "study": [ris.look(reporting.get, report).study_uid], "procedure": ["CTHEAD"],
        "appointment": [await ris.do(propose, CLERK, orders=orders[1:2])], "to": ["", "reader"],
        "template": [await ris.do(put_template, RADIOLOGIST, template)], "resources": ["CT1"],
        "name": ["implants", "findings", "DOE"], "code": ["CT1", "reader"],
    }  # fmt: skip


def name_records(schema: Any, named: dict[str, list[str]]) -> None:
    """Put the names of records into every place where a document speaks of one."""
    if isinstance(schema, list):
        for one in schema:
            name_records(one, named)
    elif isinstance(schema, dict):
        for name, one in schema.get("properties", {}).items():
            if name in named and isinstance(one, dict):
                of = one.get("items", one)
                if of.get("type") == "string":
                    of["enum"] = named[name]
                    one.pop("default", None)
        if schema.get("in") in ("path", "query") and schema.get("name") in named:
            schema["schema"] = {"type": "string", "enum": named[schema["name"]]}
        for one in schema.values():
            name_records(one, named)
