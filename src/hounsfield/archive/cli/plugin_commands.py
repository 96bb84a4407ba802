"""``hounsfield PLUGIN …``: commands of plugins, with the options, tables and errors that all others have."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from hounsfield.archive.app.plugins import installed, load_plugin
from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import (
    EXIT_FAILED,
    EXIT_USAGE,
    Failed,
    print_json,
    print_table,
    printable,
    remark,
)
from hounsfield.archive.config import Config
from hounsfield.archive.errors import ControlError


def plugin_command(name: str) -> click.Command | None:
    """The command of a plugin, imported; None when it has none. Raises ConfigError when it cannot be."""
    if name not in installed():
        return None
    plugin = load_plugin(name)
    return None if plugin.command is None else plugin.command(PluginCommandLine(name))


@dataclass(frozen=True, slots=True)
class Line:
    """What was said on one command line."""

    config_file: Path | None
    overrides: tuple[str, ...]
    data: str | None
    as_json: bool

    def config(self) -> Config:
        return effective_config(self.config_file, self.overrides, self.data)


class PluginCommandLine:
    """What a plugin's command may use: :class:`hounsfield.archive.plugins.CommandLine`."""

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin

    def options(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def gathered(
            *,
            config_file: Path | None,
            overrides: tuple[str, ...],
            data: str | None,
            as_json: bool,
            **more: Any,
        ) -> Any:
            return function(line=Line(config_file, overrides, data, as_json), **more)

        return config_options(json_option(gathered))

    def call(self, line: Any, operation: str, /, **args: Any) -> Any:
        from hounsfield.archive.app.opening import open_archive

        asked = f"{self._plugin}.{operation}"
        with open_archive(line.config()) as archive:
            try:
                return archive.call(asked, **args)
            except ControlError as error:
                if archive.running and str(error) == f"this server does not know {asked!r}":
                    raise ControlError(
                        f"the server does not run the plugin {self._plugin}, or another release of it: put "
                        f"[plugins.{self._plugin}] into its config.toml and restart it"
                    ) from error
                raise

    def show(
        self, line: Any, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], value: Any = None
    ) -> None:
        if line.as_json:
            print_json(list(rows) if value is None else value)
            return
        cells = [[_text(row.get(key)) for key in columns] for row in rows]
        right = [heading for key, heading in columns.items() if _are_numbers(rows, key)]
        print_table(list(columns.values()), cells, right=right)

    def say(self, text: str) -> None:
        remark(printable(text))

    def fail(self, text: str, *, usage: bool = False) -> Exception:
        return Failed(text, EXIT_USAGE if usage else EXIT_FAILED)


def _text(value: Any) -> str:
    return "" if value is None else printable(str(value))


def _are_numbers(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    values = [row.get(key) for row in rows if row.get(key) is not None]
    return bool(values) and all(type(value) in {int, float} for value in values)
