"""Danger: a request that the API's own description allows, or nearly does, is answered with 500.

Schemathesis makes requests from the OpenAPI document: of every operation, with the UIDs of real objects.
``make strange-requests`` makes many more.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from hounsfield.archive.web import openapi

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


@pytest.mark.peer("schemathesis")
async def test_no_request_from_the_description_fails_the_server(archive, sample, tmp_path: Path):
    results = [await archive.put(sample[name]) for name in OBJECTS]
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps(described(results)))
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    phases = "coverage,fuzzing" if EXAMPLES > 10 else "fuzzing"
    how = ("--checks", "not_a_server_error", "--phases", phases, "--max-examples", str(EXAMPLES))
    # Bodies are made of what their media type says, and it does not know DICOM's; streams never end.
    how += (
        "--exclude-method",
        "POST",
        "--exclude-path",
        "/changes",
        "--generation-deterministic",
        "--no-color",
    )
    command = (sys.executable, "-m", "schemathesis.cli", "run", str(document), "--url", archive.origin, *how)
    environment = {**os.environ, "PYTHONPATH": "", "COLUMNS": "200"}
    done = await trio.run_process(
        command, check=False, capture_stdout=True, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path
    )
    report = (done.stdout or b"").decode(errors="replace")
    assert done.returncode == 0, report[-6000:]
    assert re.search(r"Tested: +[3-9]\d", report), report[-2000:]
