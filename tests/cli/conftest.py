"""The command line, called in this process as a shell would call it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from hounsfield.archive.cli import options
from hounsfield.archive.cli.main import hounsfield
from hounsfield.archive.cli.output import run


@dataclass
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Run ``hounsfield`` with arguments: no configuration of this machine, keys below ``tmp_path``."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(options, "DEFAULT_CONFIG", tmp_path / "no-such.toml")
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        code = run(hounsfield, [str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    before = structlog.get_config()
    libraries, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield call
    structlog.configure(**before)  # commands have the engine, and libraries, log to standard error
    logging.basicConfig(level=level, handlers=libraries, force=True)


@pytest.fixture
def archive(cli: Cli, tmp_path: Path) -> Path:
    """An empty archive."""
    assert cli("init", "--data", tmp_path / "archive").code == 0
    return tmp_path / "archive"
