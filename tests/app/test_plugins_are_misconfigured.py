"""What config.toml says of plugins: mistakes are named with their place, and nothing is opened by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from hounsfield.archive.app import plugins as found
from hounsfield.archive.app.plugins import check_plugins, configured_plugins, service_names, settings_of
from hounsfield.archive.config import Config, load_config
from hounsfield.archive.errors import ConfigError, UnsafeConfigError
from hounsfield.archive.plugins import Listen, Parts, Plugin, Settings


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: int = 2575
    sources: tuple[str, ...] = ()
    plain: bool = False
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    name: str = "line"


class Mine(Settings):
    size: Annotated[int, msgspec.Meta(ge=1)] = 3
    places: tuple[Place, ...] = ()


def _listens(settings: Mine) -> list[Listen]:
    return [Listen(**msgspec.structs.asdict(place)) for place in settings.places]


async def _start(archive: Any, settings: Any) -> Parts:
    return Parts()


def _check(settings: Mine) -> list[str]:
    if settings.size == 13:
        raise ConfigError("13 is no size")
    return ["it is there"]


PLUGIN = Plugin("mine", "A plugin", _start, Mine, ("lists",), _listens, _check)


@pytest.fixture(autouse=True)
def is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Plugin:
        if name != "mine":
            raise ConfigError(f"no plugin {name!r} is installed; there are: mine")
        return PLUGIN

    monkeypatch.setattr(found, "load_plugin", load)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n[plugins.mine]\nsiz = 1\n", ":3: unknown key plugins.mine.siz; the nearest is plugins.mine.size"),
        ("[plugins.mine]\nsize = 'big'\n", ":2: plugins.mine.size: expected `int`, got `str`"),
        ("[plugins.mine]\nsize = 0\n", ":2: plugins.mine.size: expected `int` >= 1"),
        (
            "[[plugins.mine.places]]\n[[plugins.mine.places]]\nhots = ''\n",
            ":3: unknown key plugins.mine.places.hots; the nearest is plugins.mine.places.host",
        ),
        ("\n[plugins.mien]\n", ":2: no plugin 'mien' is installed; there are: mine"),
        ("[plugins]\nmine = 1\n", ":2: plugins.mine is no table; write [plugins.mine]"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, settings_of=settings_of)
    assert f"{file}{expected}" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("plugins.mine.siz=1", "--set plugins.mine.siz: unknown key"),
        ("plugins.mine.size=big", "--set plugins.mine.size: plugins.mine.size: expected `int`"),
        ("plugins.mien={}", "--set plugins.mien: no plugin 'mien'"),
    ],
)
def test_a_mistake_in_set_is_named(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override], settings_of)
    assert expected in str(caught.value)


def test_commands_that_need_no_plugin_import_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "load_plugin", lambda name: pytest.fail("imported"))
    assert load_config(None, ["plugins.other.key=1"]).plugins == {"other": {"key": 1}}
    assert load_config(None).plugins == {}


def test_an_empty_table_is_a_plugin_with_its_defaults() -> None:
    config = load_config(None, ["plugins.mine={}"], settings_of)
    assert [(each.plugin, each.settings) for each in configured_plugins(config)] == [(PLUGIN, Mine())]
    assert check_plugins(config) == ["it is there"]
    assert service_names(config)[-1] == "lists"


def test_rules_between_keys_are_the_plugins() -> None:
    with pytest.raises(ConfigError, match=r"plugins\.mine: 13 is no size"):
        check_plugins(load_config(None, ["plugins.mine.size=13"]))


def test_an_ae_may_only_use_what_there_is() -> None:
    ae = 'aes=[{title="CT1", services=["store", "lists"]}]'
    check_plugins(load_config(None, [ae, "plugins.mine={}"]))
    with pytest.raises(ConfigError, match="'CT1' services: there is no 'lists'; there are echo, store"):
        check_plugins(load_config(None, [ae]))
    with pytest.raises(ConfigError, match="expected names of services"):
        load_config(None, ['aes=[{title="CT1", services=["Store it"]}]'])


Given = Callable[..., Config]


@pytest.fixture
def given(tmp_path: Path) -> Given:
    def config(**place: Any) -> Config:
        for name in ("tls_certificate", "tls_key", "tls_client_ca"):
            if place.get(name) == "there":
                file = tmp_path / name
                file.touch()
                place[name] = str(file)
        plugins = {"mine": {"places": [place]}}
        return msgspec.convert({"plugins": plugins, "keys": {"master_key": "env:KEY"}}, Config)

    return config


FAR = {"host": "192.0.2.9"}
INSIDE = {"sources": ["192.0.2.0/24"]}
TLS = {"tls_certificate": "there", "tls_key": "there"}


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (FAR, "mine.line (192.0.2.9:2575) can be reached from other machines, which needs a source"),
        ({**FAR, "sources": ["0.0.0.0/0"], "plain": True}, "the source 0.0.0.0/0 lets every address in"),
        ({**FAR, **INSIDE}, "would carry names unencrypted over a network"),
        ({**FAR, **TLS}, "needs a source-address allow-list"),
        ({"tls_key": "there"}, "tls_certificate and tls_key go together: set tls_certificate too"),
        ({"tls_client_ca": "there"}, "tls_client_ca needs tls_certificate and tls_key"),
        ({"tls_certificate": "/none", "tls_key": "there"}, "no such file: /none"),
        ({"sources": ["somewhere"]}, "'somewhere' is not an address or network"),
    ],
)
def test_what_is_not_safe_is_refused(given: Given, place: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_plugins(given(**place))
    assert expected in str(caught.value)


def test_what_is_open_is_announced(given: Given) -> None:
    plain = "mine.line (192.0.2.9:2575) has no TLS: everything on it can be read by the network it is on"
    assert check_plugins(given(**FAR, **INSIDE, plain=True)) == [plain, "it is there"]
    assert check_plugins(given(**FAR, **INSIDE, **TLS)) == ["it is there"]
    assert check_plugins(given()) == ["it is there"]


def test_a_development_key_stays_on_loopback(given: Given) -> None:
    config = msgspec.structs.replace(given(**FAR, **INSIDE, plain=True), keys=Config().keys)
    with pytest.raises(UnsafeConfigError, match="a development key"):
        check_plugins(config)


def test_two_listeners_of_one_name_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"two listeners mine\.line"):
        check_plugins(load_config(None, ["plugins.mine.places=[{}, {}]"]))
