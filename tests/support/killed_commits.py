"""A process that is killed at one of its commits to the index, as far as the index can tell."""

from __future__ import annotations

from typing import Any

import pytest

from hounsfield.archive.engine.stores import Stores


class KilledError(BaseException):
    """The process ends here; no handler of ordinary errors sees it."""


def kill_after(stores: Stores, patch: pytest.MonkeyPatch, commits: int) -> None:
    """Let so many commits through; each one after that is the end."""
    left = commits

    def kill(original: Any) -> Any:
        def commit(*arguments: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError
            return original(*arguments, **more)

        return commit

    for name in ("commit", "commit_many", "commit_planned"):
        patch.setattr(stores.store, name, kill(getattr(stores.store, name)))
