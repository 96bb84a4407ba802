"""A bar that is not held must not read as held, and every experiment must be there to be run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.bars import Figure, Settings

from benchmarks import bars, engine


@pytest.mark.parametrize(
    ("values", "at_most", "at_least", "holds"),
    [
        ([1.0, 2.0, 9.0], 2.0, None, True),
        ([1.0, 2.1, 9.0], 2.0, None, False),
        ([5.0, 9.0, 1.0], None, 5.0, True),
        ([4.9, 9.0, 1.0], None, 5.0, False),
        ([], 2.0, None, None),
        ([3.0], None, None, None),
    ],
)
def test_the_median_decides(
    values: list[float], at_most: float | None, at_least: float | None, holds: bool | None
) -> None:
    figure = Figure("x", "something", values, "ms", at_most, at_least)
    assert figure.holds is holds
    assert ("DOES NOT HOLD" in bars.text(figure)) == (holds is False)
    assert figure.to_json()["holds"] is holds


@pytest.mark.parametrize("name", engine.EXPERIMENTS)
def test_every_experiment_is_there(name: str) -> None:
    module = importlib.import_module(engine.EXPERIMENTS[name][0])
    assert callable(module.run)
    assert module.__doc__


def test_what_fails_is_said_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Good:
        @staticmethod
        def run(settings: Settings, _: bars.Say) -> list[Figure]:
            size = settings.size("things", 100, 7)
            return [Figure("good", "things", [float(size)], "", at_least=5, detail={"size": size})]

    class Bad:
        @staticmethod
        def run(*_: Any) -> list[Figure]:
            raise RuntimeError("no server")

    modules = {"good": Good, "bad": Bad}
    monkeypatch.setattr(engine, "EXPERIMENTS", {name: (name, name) for name in modules})
    monkeypatch.setattr(engine.importlib, "import_module", modules.__getitem__)
    out = tmp_path / "out.json"
    assert engine.main(["--quick", "--only", "bad,good", "--json", str(out)]) == 1
    run = json.loads(out.read_text())
    assert run["errors"] == {"bad": "RuntimeError: no server"}
    assert run["figures"][0]["median"] == 7
    assert "no server" in capsys.readouterr().out
    assert engine.main(["--only", "good", "--size", "things=4", "--json", str(out)]) == 1
    assert engine.main(["--only", "good", "--json", str(out)]) == 0
    assert engine.main(["--only", "other", "--json", str(out)]) == 2
