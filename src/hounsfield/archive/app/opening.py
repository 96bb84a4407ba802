"""The archive that a command works on: asked through its server when one runs, else opened here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hounsfield.archive.app.asking import Archive, ask, control_socket
from hounsfield.archive.config import Config
from hounsfield.archive.errors import NoServerError


@contextlib.contextmanager
def open_archive(config: Config) -> Iterator[Archive]:
    """The archive of ``config.archive.data``: by its server when one runs, else locked and opened here."""
    try:
        ask(control_socket(config), "status")
    except NoServerError:
        from hounsfield.archive.app.offline import open_here  # which costs half a second

        with open_here(config) as archive:
            yield archive
    else:
        yield Archive(config)
