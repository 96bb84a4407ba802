"""No log line names a patient: unknown keys are withheld, identifiers hashed, libraries muted."""

from __future__ import annotations

import ast
import errno
import io
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from hounsfield.archive.app.logs import HASHED, SAFE, WITHHELD, Redactor, describe, is_refusal, set_up_logs
from hounsfield.archive.engine.errors import StorageFailedError
from hounsfield.archive.errors import ConfigError

STUDY = "1.2.826.0.1.3680043.8.498.4711"
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set logging up as a worker does; calling the fixture gives what was written."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    set_up_logs(level="debug", form="json", salt=b"salt of this run")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    logging.basicConfig(handlers=[], force=True)


@pytest.mark.parametrize(
    "key",
    ["patient_name", "PatientName", "patient_id", "name", "accession_number", "birth_date", "value", "data"],
)
def test_keys_that_may_name_a_patient_are_withheld(lines: Any, key: str) -> None:
    structlog.get_logger().info("stored", **{key: "Doe^Jane", "objects": 3})
    (line,) = lines()
    assert line[key] == WITHHELD
    assert line["objects"] == 3
    assert "Doe" not in json.dumps(line)


def test_uids_are_hashed_wherever_they_turn_up(lines: Any) -> None:
    log = structlog.get_logger()
    log.info("stored", study_uid=STUDY, sop_class=CT_STORAGE)
    log.error("failed", error=f"no study {STUDY}.", reason=[STUDY])
    first, second = lines()
    assert STUDY not in json.dumps([first, second])
    assert first["sop_class"] == CT_STORAGE, "the standard's own UIDs identify no one"
    assert second["error"] == f"no study {first['study_uid']}."
    assert second["reason"] == [first["study_uid"]]


def test_hashes_mean_nothing_in_another_run() -> None:
    assert Redactor(b"one").hash(STUDY) != Redactor(b"two").hash(STUDY)


def test_addresses_and_versions_are_not_uids(lines: Any) -> None:
    structlog.get_logger().info("called", address="192.0.2.17", version="1.2.3")
    (line,) = lines()
    assert (line["address"], line["version"]) == ("192.0.2.17", "1.2.3")


def test_what_a_library_says_is_not_passed_on(lines: Any) -> None:
    logging.getLogger("pydicom").warning("Invalid value for VR PN: %r", "Doe^Jane")
    (line,) = lines()
    assert line["logger"] == "pydicom"
    assert "Doe" not in json.dumps(line)


def test_a_fault_is_described_by_type_and_place_alone() -> None:
    try:
        raise ValueError("bad name Doe^Jane")
    except ValueError as error:
        keys = describe(ExceptionGroup("", [error]))
    assert keys["error_type"] == "ValueError"
    assert keys["where"].startswith("test_logs.py:")
    assert "error" not in keys
    assert describe(ConfigError("say this"))["error"] == "say this"


def test_a_full_disk_under_the_log_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
    lines: Any,
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stderr", Full())
    set_up_logs(level="debug", form="json", salt=b"salt")
    structlog.get_logger().info("ready")


def test_every_key_that_the_code_logs_is_a_known_one(root_directory: Path) -> None:
    """So that nothing useful is withheld by forgetting; what may name a patient belongs in neither list."""
    unknown = {}
    level = re.compile(r"\.(debug|info|warning|error|critical)\b")
    for file in (root_directory / "src").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if level.search(text) else ():
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            is_level = level.fullmatch(f".{node.func.attr}")
            if is_level and "log" in ast.unparse(node.func.value):
                for keyword in node.keywords:
                    if keyword.arg and keyword.arg not in SAFE | HASHED | {"exc_info"}:
                        unknown[keyword.arg] = f"{file.name}:{node.lineno}"
    assert unknown == {}


def test_what_is_refused_is_no_fault_of_the_server() -> None:
    class RuleError(Exception):
        """As plugins have them."""

        retry = False

    assert [is_refusal(one) for one in (ConfigError("x"), RuleError("x"))] == [True, True]
    assert not any(is_refusal(one) for one in (StorageFailedError("x"), ValueError("x"), OSError("x")))
