"""config.toml is the documentation of the configuration: the file, the structs and the errors agree."""

from __future__ import annotations

import contextlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hounsfield.archive.config import Config, RemoteAE, known_keys, load_config
from hounsfield.archive.errors import ConfigError


def _keys(tree: dict[str, Any], at: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in tree.items():
        if isinstance(value, dict) and at + key not in known_keys():  # what a rule names is no key
            found |= _keys(value, f"{at}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            found |= _keys(value[0], f"{at}{key}[].")
        else:
            found.add(at + key)
    return found


def _with_example(text: str) -> str:
    """The file with its commented examples of [[aes]] and the like brought to life."""
    return re.sub(r"^# (?=\[\[|\w+ = )", "", text, flags=re.MULTILINE)


def test_the_file_says_exactly_the_defaults(root_directory: Path) -> None:
    assert load_config(root_directory / "config.toml") == Config()


def test_the_file_holds_every_key(root_directory: Path) -> None:
    text = (root_directory / "config.toml").read_text(encoding="utf-8")
    assert _keys(tomllib.loads(_with_example(text))) == set(known_keys())


def test_every_key_is_explained(root_directory: Path) -> None:
    """A comment beside each key, or above its table; only limits that pair with the line above go without."""
    bare = [
        line
        for line in (root_directory / "config.toml").read_text(encoding="utf-8").splitlines()
        if re.match(r"^\w+ = ", line) and "#" not in line
    ]
    assert [line.split(" =")[0] for line in bare] == [
        "master_key",
        "associations_per_address_max",
        "host",
        "port",
        "host",
        "port",
    ]


def test_the_example_ae_is_valid(root_directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        _with_example((root_directory / "config.toml").read_text(encoding="utf-8")), encoding="utf-8"
    )
    assert load_config(file).aes == (
        RemoteAE(title="CT1", host="192.0.2.10", sources=("192.0.2.10",), comment="CT, ground floor"),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[archive]\nworkrs = 2\n", ":2: unknown key archive.workrs; the nearest is archive.workers"),
        ("[achive]\nworkers = 2\n", ":1: unknown key achive; the nearest is archive"),
        ("\n[dicom]\nae_title = 'X'\n", ":3: unknown key dicom.ae_title; there is archive.ae_title"),
        ("[[aes]]\ntitle = 'A'\nprt = 1\n", ":3: unknown key aes.prt; the nearest is aes.port"),
        ("[[dicom.listeners]]\nhots = ''\n", ":2: unknown key dicom.listeners.hots; the nearest is"),
        ("[archive]\nworkers = 'two'\n", ":2: archive.workers: expected `int`, got `str`"),
        ("[archive]\nworkers = -1\n", ":2: archive.workers: expected `int` >= 0"),
        ("[archive]\nae_title = 'SEVENTEEN LETTERS'\n", ":2: archive.ae_title: expected an AE title"),
        (
            "[[aes]]\ntitle = 'A'\n[[aes]]\ntitle = 'B'\nport = 70000\n",
            ":5: aes[1].port: expected `int` <= 65535",
        ),
        ("[[aes]]\nport = 104\n", ":1: aes[0]: object missing required field `title`"),
        ("[logs]\nlevel = 'loud'\n", ":2: logs.level: invalid enum value 'loud'"),
        ("[archive\n", "not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert expected in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("archive.workers=3", lambda c: c.archive.workers, 3),
        ("archive.drain_seconds=5", lambda c: c.archive.drain_seconds, 5.0),
        ("archive.data=/srv/with space", lambda c: c.archive.data, "/srv/with space"),
        ('archive.ae_title="PACS 1"', lambda c: c.archive.ae_title, "PACS 1"),
        ("keys.master_key=file:/etc/key", lambda c: c.keys.master_key, "file:/etc/key"),
        ('dicom.sources=["192.0.2.0/24"]', lambda c: c.dicom.sources, ("192.0.2.0/24",)),
        ("dicom.listeners=[{port=0}]", lambda c: c.dicom.listeners[0].port, 0),
        ("metrics.enabled=false", lambda c: c.metrics.enabled, False),
    ],
)
def test_set_takes_toml_and_plain_words(override: str, read: Any, value: Any) -> None:
    assert read(load_config(None, [override])) == value


def test_set_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[archive]\nworkers = 1\nae_title = 'A'\n", encoding="utf-8")
    config = load_config(file, ["archive.workers=2", "archive.workers=4"])
    assert (config.archive.workers, config.archive.ae_title) == (4, "A")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "archive.workrs=3",
            "--set archive.workrs: unknown key archive.workrs; the nearest is archive.workers",
        ),
        ("archive.workers=many", "--set archive.workers: archive.workers: expected `int`, got `str`"),
        ("archive.workers", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("dicom.listeners=[{prt=1}]", "the nearest is dicom.listeners.port"),
    ],
)
def test_a_mistake_in_set_is_named(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert expected in str(caught.value)


@given(st.text(), st.text())
def test_any_override_is_a_configuration_or_a_config_error(key: str, value: str) -> None:
    with contextlib.suppress(ConfigError):
        load_config(None, [f"{key}={value}"])
