"""What can be said of an application entity on the command line: one option for each key of [[aes]]."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_SERVICES = ("echo", "store", "find", "move", "get", "commit")


def entity_options(function: Command) -> Command:
    """Every option's value is None, or an empty tuple, when it was not given."""
    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    for option in (
        click.option("--comment", help="What it is."),
        click.option(
            "--commitment-to", metavar="TITLE", help="Tell this AE the results of its storage commitment."
        ),
        click.option("--user", "users", multiple=True, metavar="NAME", help="Only these users. Repeatable."),
        click.option(
            "--identity-required/--no-identity-required",
            default=None,
            help="Its associations must name a user, and prove it.",
        ),
        click.option(
            "--certificate",
            "certificates",
            multiple=True,
            metavar="BINDING",
            help="The certificate it shows, calling or called: sha256:HEX, or a name in it. Repeatable.",
        ),
        click.option("--tls-key", type=file, help="The key of that certificate (PEM)."),
        click.option("--tls-certificate", type=file, help="What we show when we call it (PEM)."),
        click.option("--tls-crl", type=file, help="What that authority revoked (PEM)."),
        click.option("--tls-ca", type=file, help="Whom we trust when we call it (PEM)."),
        click.option("--tls/--no-tls", default=None, help="It listens with TLS."),
        click.option("--calling-title", metavar="TITLE", help="Call ourselves this when we call it."),
        click.option("--called-title", metavar="TITLE", help="Call it this when we call it."),
        click.option(
            "--prefer-transfer-syntax",
            "preferred_transfer_syntaxes",
            multiple=True,
            metavar="UID",
            help="Take this one when it offers it. Repeatable, the first one first.",
        ),
        click.option(
            "--refuse-transfer-syntax",
            "refused_transfer_syntaxes",
            multiple=True,
            metavar="UID",
            help="Never take this one from it. Repeatable.",
        ),
        click.option(
            "--refuse-sop-class",
            "refused_sop_classes",
            multiple=True,
            metavar="UID",
            help="Take no such objects from it. Repeatable.",
        ),
        click.option(
            "--associations-max",
            type=click.IntRange(min=0, max=1_000_000),
            help="From it at once, over all workers; 0: no limit of its own.",
        ),
        click.option(
            "--move-associations",
            type=click.IntRange(min=0, max=16),
            help="That one C-MOVE may open to it at once; 0: as dicom.move_associations.",
        ),
        click.option(
            "--service",
            "services",
            multiple=True,
            metavar=f"[{'|'.join(_SERVICES)}|NAME]",
            help="It may use this one, and no others that are not named; plugins have more. Repeatable.  "
            "[default: all]",
        ),
        click.option(
            "--source", "sources", multiple=True, metavar="CIDR", help="It may call from here. Repeatable."
        ),
    ):
        function = option(function)
    return function
