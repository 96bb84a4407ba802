"""structlog, imported without rich and asyncio: ``from …lean_structlog import structlog`` in this package.

structlog imports rich for tracebacks that show every local variable, which these logs must never do
(:mod:`.logs`), and asyncio for loggers that nothing here uses: together 0.08 s of CPU time of every process.
It does without rich where that is not installed. The other packages, which this one imports later, import it
as usual and get this one.
"""

from __future__ import annotations

import importlib
import sys

from hounsfield.codecs.deferred import deferred


def _import() -> None:
    if "structlog" in sys.modules:
        return
    hidden = {"rich": None, "asyncio": sys.modules.get("asyncio") or deferred("asyncio")}
    before = {name: sys.modules.pop(name) for name in hidden if name in sys.modules}
    sys.modules.update(hidden)  # type: ignore[arg-type]  # None: "not installed", as the import system has it
    try:
        importlib.import_module("structlog")
    finally:
        for name in hidden:
            del sys.modules[name]
        sys.modules.update(before)


_import()

import structlog  # noqa: E402 - after the above

__all__ = ["structlog"]
