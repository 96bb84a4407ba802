"""Danger: the RIS does not start, starts with settings that cannot be, or keeps others down."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hounsfield.archive.app.plugins import check_plugins, configured_plugins, settings_of
from hounsfield.archive.config.load import load_config
from hounsfield.archive.errors import ConfigError
from hounsfield.archive.plugins import Parts
from hounsfield.ris_plugin.plugin import check, listens, merged
from hounsfield.ris_plugin.settings import Hl7Destination, Hl7Listener, RisSettings
from support.server import archive_server


def test_a_server_with_the_ris_starts_with_four_workers(tmp_path: Path) -> None:
    with archive_server(tmp_path, "plugins.ris={}", workers=4) as server:
        assert len(server.worker_pids()) == 4
        assert server.client.get("/dicom-web/studies").status_code in (200, 204)
        assert server.terminate() == 0
        assert '"error"' not in server.log_text()


WITHOUT = """
import sys
sys.modules[sys.argv.pop(1)] = None
from hounsfield.archive.cli import main
sys.argv = ["hounsfield", *sys.argv[1:]]
main()
"""


def without(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, module, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("module", "package"), [("hl7", "hl7"), ("fpdf", "fpdf2"), ("uharfbuzz", "uharfbuzz")]
)
def test_without_the_extra_the_archive_works_and_says_what_is_missing(module: str, package: str) -> None:
    """Also what is imported at the first report only."""
    if module == "hl7":
        assert without(module, "config", "check").returncode == 0
    asked = without(module, "config", "check", "--set", "plugins.ris={}")
    assert asked.returncode != 0
    assert f"needs {package}" in asked.stderr
    assert 'pip install "hounsfield[ris]"' in asked.stderr


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"time_zone": "Europe/Atlantis"}, "time_zone"),
        ({"time_zone": "../etc/passwd"}, "time_zone"),
        ({"accession_format": "A{year}"}, "accession_format"),
        ({"accession_format": "{year}-{number:012}"}, "accession_format"),
        ({"accession_format": "{nummer}"}, "accession_format"),
        ({"accession_format": "{number.real.x}"}, "accession_format"),
        ({"uid_root": "1.2.03"}, "uid_root"),
        ({"uid_root": "hospital"}, "uid_root"),
        ({"worklist_character_set": "Klingon"}, "worklist_character_set"),
        ({"uid_root": "1.2.3456789012345678901234567890"}, "uid_root"),
        ({"hl7_listeners": (Hl7Listener(), Hl7Listener())}, "'hl7'"),
        ({"hl7_listeners": (Hl7Listener(mapping="/nowhere/map.toml"),)}, "/nowhere/map.toml"),
        ({"hl7_destinations": (Hl7Destination(name="", host="h", port=1),)}, "hl7_destinations"),
        ({"hl7_destinations": (Hl7Destination(name="A", host="h", port=1, tls_key="k"),)}, "together"),
        ({"report_fonts": ("/nowhere/font.ttf",)}, "/nowhere/font.ttf"),
        ({"report_fonts": (__file__,)}, "cannot be read as a font"),
        ({"report_logo": __file__}, "cannot be read as a picture"),
        ({"report_language": "German"}, "RFC 5646"),
        ({"report_words": {"de": {"page": "Seite {page}"}}}, "report_words.de"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check(RisSettings(**settings))


def test_settings_that_can_be_are_taken() -> None:
    assert check(RisSettings(time_zone="Europe/Vienna", accession_format="RX{year2}{number:08}")) == []
    assert check(RisSettings(uid_root="1.2.276.0.7230010.3")) == []
    (announced,) = check(RisSettings(without_token="meier"))
    assert "'meier'" in announced
    config = load_config(None, ["plugins.ris={}"])
    check_plugins(config)


def test_config_toml_says_the_defaults_of_every_key(root_directory: Path, tmp_path: Path) -> None:
    text = (root_directory / "config.toml").read_text(encoding="utf-8")
    block = text[text.index("#   [plugins.ris]") :]
    file = tmp_path / "config.toml"
    file.write_text(re.sub(r"^#   (?=\[|\w)", "", block, flags=re.MULTILINE).replace("\n[plugins]\n", "\n"))
    config = load_config(file, settings_of=settings_of)
    ((_, settings),) = configured_plugins(config)
    his = Hl7Destination(name="his", host="192.0.2.20", port=2575)
    assert settings == RisSettings(hl7_listeners=(Hl7Listener(),), hl7_destinations=(his,))
    table = tomllib.loads(file.read_text())["plugins"]["ris"]
    assert table.keys() == set(RisSettings.__struct_fields__)
    assert table["hl7_listeners"][0].keys() == set(Hl7Listener.__struct_fields__)
    assert table["hl7_destinations"][0].keys() == set(Hl7Destination.__struct_fields__)


def test_a_listener_is_what_its_settings_say() -> None:
    one = Hl7Listener(name="his", host="192.0.2.1", port=2576, plain=True, sources=("192.0.2.0/24",))
    (made,) = listens(RisSettings(hl7_listeners=(one,)))
    assert (made.name, made.host, made.port) == ("his", "192.0.2.1", 2576)
    assert (made.plain, made.sources) == (True, ("192.0.2.0/24",))


async def _nothing(*_: Any) -> None: ...


def test_parts_are_merged_and_none_is_lost() -> None:
    one = Parts(leading={"a": _nothing}, background=[_nothing], metrics=lambda: ["x"])  # type: ignore[list-item]
    other = Parts(leading={"b": _nothing}, operations={"o": _nothing}, metrics=lambda: ["y"])  # type: ignore[list-item]
    whole = merged([one, other])
    assert whole.leading.keys() == {"a", "b"}
    assert whole.operations.keys() == {"o"}
    assert list(whole.background) == [_nothing]
    assert list(whole.metrics()) == ["x", "y"]
    with pytest.raises(ValueError, match="leading"):
        merged([one, one])
