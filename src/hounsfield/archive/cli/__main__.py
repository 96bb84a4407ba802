"""``python -m hounsfield.archive.cli`` is the ``hounsfield`` command."""

from __future__ import annotations

from hounsfield.archive.cli import main

main()
