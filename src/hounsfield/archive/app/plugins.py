"""Which plugins are installed and configured, and whether what is said of them can be.

A plugin is found by its entry point, whose names are read without importing anything; only one that is asked
for is imported: by ``serve`` and ``config`` when its table stands in config.toml, and by its own command.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from hounsfield.archive.config import Config
from hounsfield.archive.config.safety import check_stream_listener
from hounsfield.archive.errors import ConfigError, is_ours, where

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from hounsfield.archive.plugins import Listen, Plugin

__all__ = [
    "ENTRY_POINTS",
    "Configured",
    "check_plugins",
    "configured_plugins",
    "installed",
    "listens_of",
    "load_plugin",
    "service_names",
    "settings_of",
]

ENTRY_POINTS: Final = "hounsfield.plugins"
OWN_SERVICES: Final = ("echo", "store", "find", "move", "get", "commit")
"""Those of the archive: :data:`hounsfield.archive.net.policy.SERVICES`, which costs a command its start."""
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)


class Configured(NamedTuple):
    """A plugin with the settings that config.toml has for it."""

    plugin: Plugin
    settings: Any


@cache
def installed() -> dict[str, EntryPoint]:
    """The plugins that are installed, by name; none is imported."""
    from importlib.metadata import entry_points  # a tenth of a second, of those who have plugins

    return {point.name: point for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda one: one.name)}


@cache
def load_plugin(name: str) -> Plugin:
    """The plugin of that name, imported. Raises ConfigError when there is none, or it is none."""
    from hounsfield.archive.plugins import Plugin

    point = installed().get(name)
    if point is None:
        known = ", ".join(installed()) or "none"
        raise ConfigError(f"no plugin {name!r} is installed; there are: {known}")
    try:
        plugin = point.load()
    except Exception as error:
        raise ConfigError(f"the plugin {name!r} cannot be imported: {_why(error)}{_remedy(point)}") from error
    if not isinstance(plugin, Plugin) or plugin.name != name or not _NAME.fullmatch(name):
        raise ConfigError(f"the plugin {name!r}: {point.value} is no Plugin of that name")
    return plugin


def _why(error: Exception) -> str:
    if isinstance(error, ImportError):
        return str(error)
    keys = where(error)
    return f"{keys['error_type']} at {keys.get('where', 'an unknown place')}"


def _remedy(point: EntryPoint) -> str:
    if point.dist is None or not point.extras:
        return ""
    return f'; pip install "{point.dist.name}[{",".join(point.extras)}]" brings what it needs'


def settings_of(name: str) -> type[msgspec.Struct]:
    """What the table of that plugin may hold. Raises ConfigError."""
    return load_plugin(name).settings


def configured_plugins(config: Config) -> Iterator[Configured]:
    """Every plugin of ``config`` with its settings, by name. Raises ConfigError."""
    for name, table in sorted(config.plugins.items()):
        plugin = load_plugin(name)
        try:
            yield Configured(plugin, msgspec.convert(table, plugin.settings))
        except msgspec.ValidationError as error:
            raise ConfigError(f"plugins.{name}: {error}") from error


def listens_of(config: Config) -> Iterator[tuple[str, Listen]]:
    """Where plugins listen, with the name of each listener: ``PLUGIN.LISTENER``."""
    for plugin, settings in configured_plugins(config):
        for listen in plugin.listens(settings):
            yield f"{plugin.name}.{listen.name}", listen


def service_names(config: Config) -> tuple[str, ...]:
    """The services that an AE may be allowed to use: those of the archive, and of its plugins."""
    own = OWN_SERVICES
    return (*own, *(name for plugin, _ in configured_plugins(config) for name in plugin.services))


def check_plugins(config: Config) -> list[str]:
    """What must be announced of plugins at a start. Raises ConfigError for what cannot be."""
    announcements: list[str] = []
    names: set[str] = set()
    for name, listen in listens_of(config):
        if name in names:
            raise ConfigError(f"plugins: there are two listeners {name}; give each a name of its own")
        names.add(name)
        announcements += check_stream_listener(config, listen, f"{name} ({listen.host}:{listen.port})")
    for plugin, settings in configured_plugins(config):
        try:
            announcements += plugin.check(settings)
        except ConfigError as error:
            raise ConfigError(f"plugins.{plugin.name}: {error}") from error
        except Exception as error:
            if is_ours(error):
                raise
            raise ConfigError(f"plugins.{plugin.name} cannot be checked: {_why(error)}") from error
    check_services(config, service_names(config))
    return announcements


def check_services(config: Config, known: Iterable[str]) -> None:
    """Raise ConfigError for an AE that may use what there is not."""
    known = tuple(known)
    for ae in config.aes:
        for service in ae.services:
            if service not in known:
                raise ConfigError(
                    f"aes {ae.title!r} services: there is no {service!r}; there are {', '.join(known)}"
                )
