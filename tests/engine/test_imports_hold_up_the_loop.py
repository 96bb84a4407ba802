"""Danger: the first frame that is decoded holds up everybody while a large library is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hounsfield.codecs import deferred
from support import first_imports
from support.archives import write_master_key
from support.transcoded import file_named


@pytest.mark.parametrize(
    ("act", "name", "needs"),
    [
        ("decode", "MR_small.dcm", {"numpy"}),
        ("decode", "MR_small_jp2klossless.dcm", {"numpy"}),
        ("reorder", "MR_small_bigendian.dcm", {"numpy"}),
        ("encode", "MR_small.dcm", set()),
        ("draw", "MR_small.dcm", {"numpy", "imagecodecs"}),
        ("compare", "MR_small.dcm", {"numpy"}),
    ],
)
def test_the_loop_imports_no_large_library(tmp_path: Path, act: str, name: str, needs: set[str]) -> None:
    (tmp_path / "data").mkdir()
    key = write_master_key(tmp_path / "key")
    command = [
        sys.executable,
        first_imports.__file__,
        act,
        str(tmp_path / "data"),
        key,
        str(file_named(name)),
    ]
    source = Path(deferred.__file__).parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(source)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    importers = json.loads(done.stdout)
    assert needs <= set(importers), "nothing was imported: nothing was tried"
    assert "loop" not in importers.values(), importers


def test_half_imported_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a thread imports a module, it is in sys.modules already, and whoever wants it would wait."""
    (tmp_path / "slow_to_import.py").write_text(
        "import sys\nbegun, go_on = sys.events_of_test\nbegun.set()\ngo_on.wait(60)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    begun, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(sys, "events_of_test", (begun, go_on), raising=False)
    thread = threading.Thread(target=deferred.import_now, args=("slow_to_import",))
    thread.start()
    try:
        assert begun.wait(60)
        assert "slow_to_import" in sys.modules
        assert not deferred.is_imported("slow_to_import")
    finally:
        go_on.set()
        thread.join()
    assert deferred.is_imported("slow_to_import")
    del sys.modules["slow_to_import"]
