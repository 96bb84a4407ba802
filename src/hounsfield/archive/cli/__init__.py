"""The command line: one module per command, loaded when it is asked for, so that ``--help`` is quick."""

from __future__ import annotations

import sys

from hounsfield.archive.cli.main import hounsfield
from hounsfield.archive.cli.output import run


def main() -> None:
    """The ``hounsfield`` command."""
    sys.exit(run(hounsfield))


__all__ = ["main"]
