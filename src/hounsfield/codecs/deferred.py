"""Modules that are imported at their first use, because a start does not need them and pays for them.

numpy costs every process 0.1 s of CPU time at its start, and a server that hands out what it received never
calls it. Write, so that type checkers see the real module::

    if TYPE_CHECKING:
        import numpy as np
    else:
        np = deferred("numpy")

An event loop must not wait for an import: it asks :func:`is_imported`, and has a thread call
:func:`import_now` where it is not.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

NUMPY: Final = "numpy"
_imported: set[str] = set()


class Deferred:
    """Stands for a module until an attribute of it is read. Safe from several threads at once."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # the import system asks every module in sys.modules for some
            raise AttributeError(attribute)
        # import_module waits while another thread imports it; importlib.util.LazyLoader of 3.11 does not.
        value = getattr(importlib.import_module(self._name), attribute)
        self.__dict__[attribute] = value  # the next time this method is not called
        return value


def deferred(name: str) -> Any:
    """The module called ``name``, imported when it is first used."""
    return Deferred(name)


def import_now(name: str) -> None:
    """Import the module called ``name``, or wait until whoever is at it has done so."""
    importlib.import_module(name)
    _imported.add(name)


def is_imported(name: str) -> bool:
    """Whether :func:`import_now` returned for ``name``. (``sys.modules`` has what is half imported, too.)"""
    return name in _imported
