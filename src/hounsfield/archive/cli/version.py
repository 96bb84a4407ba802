"""``hounsfield version``."""

from __future__ import annotations

import platform

import click

from hounsfield import __version__
from hounsfield.archive.cli.options import json_option
from hounsfield.archive.cli.output import print_json


@click.command("version")
@json_option
def command(*, as_json: bool) -> int:
    """Print the version of Hounsfield and of what it runs on."""
    found = {"hounsfield": __version__, "python": platform.python_version(), "system": platform.platform()}
    if as_json:
        print_json(found)
    else:
        click.echo(f"hounsfield {found['hounsfield']} (Python {found['python']}, {found['system']})")
    return 0
