"""The plugin that docs/plugins.md shows is installed as its reader would, and does what the page says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from hounsfield.archive import plugins
from support.plugins import install
from support.server import archive_server, samples, until


def test_the_shown_plugin_works(
    root_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (root_directory / "docs/plugins.md").read_text(encoding="utf-8")
    source = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert source is not None
    assert 'arrivals = "hounsfield_arrivals:plugin"' in page
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path / "site", source[1], name="arrivals")))
    (sample,) = samples(tmp_path / "samples", "CT_small.dcm")
    with archive_server(tmp_path / "a", "plugins.arrivals={}", workers=2) as server:
        assert server.run("send", server.dicom_target, str(sample.path), data=False).returncode == 0
        until(lambda: server.client.get("/arrivals/newest").json(), "the study is noted")
        (row,) = server.run_json("arrivals")
        assert row["study"] == sample.ids[0]
        assert sample.ids[0] in server.run("arrivals").stdout
        assert server.run("config", "check", "--set", "plugins.arrivals.shwon=1").returncode == 2
        assert server.terminate() == 0
        server.start()
        assert server.client.get("/arrivals/newest").json() == [row]


def test_everything_of_the_contract_is_on_the_page(root_directory: Path) -> None:
    page = (root_directory / "docs/plugins.md").read_text(encoding="utf-8")
    offered = {name for name in vars(plugins.Archive) if not name.startswith("_")}
    wanted = {field.name for kind in (plugins.Plugin, plugins.Parts) for field in dataclasses.fields(kind)}
    assert {"records", "send"} <= offered
    assert [name for name in sorted(offered | wanted) if not re.search(rf"\b{name}\b", page)] == []
