"""Options that several commands take, so that they are the same everywhere."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hounsfield.archive.config import Config, load_config

if TYPE_CHECKING:
    from msgspec import Struct

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_CONFIG = Path("/etc/hounsfield/config.toml")


def config_options(function: Command) -> Command:
    """``--config FILE --set key=value --data DIR``."""
    function = click.option(
        "--set",
        "overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help="Set one key of the configuration for this run, e.g. archive.workers=2. Repeatable.",
    )(function)
    function = click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"The configuration file.  [default: {DEFAULT_CONFIG}, if there is one]",
    )(function)
    return click.option("--data", metavar="DIR", help="The data directory (archive.data).")(function)


def json_option(function: Command) -> Command:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Write JSON instead of a table.")(function)


def effective_config(
    config_file: Path | None,
    overrides: tuple[str, ...],
    data: str | None,
    extra: tuple[str, ...] = (),
    *,
    plugins: bool = False,
) -> Config:
    """The configuration that these options mean. Raises ConfigError.

    ``plugins``: with what their tables say checked, for which they are imported.
    """
    if config_file is None and DEFAULT_CONFIG.is_file() and os.access(DEFAULT_CONFIG, os.R_OK):
        config_file = DEFAULT_CONFIG
    settings = list(overrides)
    if data is not None:
        settings.append(f"archive.data={_toml_string(data)}")
    return load_config(config_file, [*settings, *extra], _settings_of if plugins else None)


def _settings_of(name: str) -> type[Struct]:
    from hounsfield.archive.app.plugins import settings_of

    return settings_of(name)


def _toml_string(text: str) -> str:
    import json

    return json.dumps(text)  # a JSON string is a TOML basic string


class Seconds(click.FloatRange):
    """A number of seconds: not NaN either, which is in every range."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As :class:`click.FloatRange`."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is no number.", param, ctx)
        return seconds


def split_address(text: str, what: str = "address") -> tuple[str, int]:
    """``HOST:PORT``, ``[IPV6]:PORT``, ``:PORT`` or ``PORT`` as (host, port); no host means loopback."""
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = ("", text)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise click.BadParameter(f"{what} {text!r}: write HOST:PORT, for example 127.0.0.1:11112")
    return host.strip("[]") or "127.0.0.1", int(port)
