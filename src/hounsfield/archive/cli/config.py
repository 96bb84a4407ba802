"""``hounsfield config check|show``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hounsfield.archive.cli.options import config_options, effective_config, json_option
from hounsfield.archive.cli.output import out, print_json, remark


@click.group("config")
def command() -> None:
    """Check or show the configuration."""


@command.command(
    "check",
    epilog="""\b
Examples:
  hounsfield config check --config config.toml
  hounsfield config check --set dicom.listeners='[{host="0.0.0.0", port=104}]'""",
)
@config_options
@json_option
def check(*, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool) -> int:
    """Say whether `serve` would accept this configuration: keys, types, the safety rules between them, and
    the certificates and keys that it names.

    Exit code 0: it would. 2: it would not, and the line says why and what to do.
    """
    from hounsfield.archive.app.config_checks import check_whole, ending_certificates

    config = effective_config(config_file, overrides, data, plugins=True)
    announcements = [*check_whole(config), *ending_certificates(config)]
    announcements += [
        f"tiers {tier.name!r}: tls_ca: no such file: {tier.tls_ca}"
        for tier in config.tiers
        if tier.tls_ca and not Path(tier.tls_ca).is_file()
    ]
    if as_json:
        print_json({"ok": True, "announcements": announcements})
        return 0
    for announcement in announcements:
        remark(f"note: {announcement}")
    remark("the configuration is good")
    return 0


@command.command(
    "show",
    epilog="""\b
Examples:
  hounsfield config show
  hounsfield config show --config config.toml --json""",
)
@config_options
@json_option
def show(*, config_file: Path | None, overrides: tuple[str, ...], data: str | None, as_json: bool) -> int:
    """Show every key with the value in effect. Secrets are shown as where they are, never as what they are.

    A command that prints the master key is shown as `command:…`, since its words may hold a secret.
    """
    import msgspec

    from hounsfield.archive.app.plugins import configured_plugins
    from hounsfield.storage_backends.s3_credentials import names_a_source

    config = effective_config(config_file, overrides, data, plugins=True)
    tree: dict[str, Any] = msgspec.to_builtins(config)
    for plugin, settings in configured_plugins(config):  # with their defaults
        tree["plugins"][plugin.name] = msgspec.to_builtins(settings)
    if tree["keys"]["master_key"].startswith("command:"):
        tree["keys"]["master_key"] = "command:…"
    for tier in tree["tiers"]:
        if not names_a_source(tier["credentials"]):
            tier["credentials"] = "…"
    if as_json:
        print_json(tree)
        return 0
    for line in _toml(tree, ()):
        out().print(line, markup=False, soft_wrap=True)
    return 0


def _toml(tree: dict[str, Any], at: tuple[str, ...]) -> list[str]:
    """``tree`` as TOML: plain keys first, then tables."""
    import json
    import re

    lines: list[str] = []
    tables: list[str] = []
    for name, value in tree.items():
        # What a rule maps from may be any text.
        key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
        here = (*at, key)
        if isinstance(value, dict):
            tables += ["", f"[{'.'.join(here)}]", *_toml(value, here)]
        elif isinstance(value, list | tuple) and value and all(isinstance(item, dict) for item in value):
            for item in value:
                tables += ["", f"[[{'.'.join(here)}]]", *_toml(item, here)]
        else:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return lines + tables
