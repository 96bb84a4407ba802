"""Tiers are asked whether they are there, each on a thread of its own: one that hangs holds nobody up.

A store may say nothing for as long as its own patience lasts, and a hard mount of NFS for ever. Whoever wants
to know waits for so long as that is worth to it, and is told then that there was no answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from hounsfield.storage_backends.errors import StorageError

__all__ = ["Probes"]


class _Probe:
    """One question on its way."""

    def __init__(self, name: str, ask: Callable[[], str]) -> None:
        self.began = time.monotonic()
        self.done = threading.Event()
        self.said = ""
        self._ask = ask
        threading.Thread(target=self._run, name=f"tier-{name}", daemon=True).start()

    def _run(self) -> None:
        try:
            self.said = self._ask()
        except (StorageError, OSError, RuntimeError) as error:  # the last: it was closed meanwhile
            self.said = str(error) or type(error).__name__
        finally:
            self.done.set()


class Probes:
    """One thread for each tier at most. Any number of threads may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[str, _Probe] = {}

    def ask(self, questions: Mapping[str, Callable[[], str]], wait_s: float) -> dict[str, str]:
        """What each tier says is wrong with it, "" for nothing.

        Of one that says nothing within ``wait_s``, all of them together, that it does not answer. A question
        that is under way is not asked again.
        """
        probes = {name: self._probe(name, ask) for name, ask in questions.items()}
        until = time.monotonic() + wait_s
        found = {}
        for name, probe in probes.items():
            if probe.done.wait(max(0.0, until - time.monotonic())):
                found[name] = probe.said
            else:
                found[name] = f"it has not answered for {time.monotonic() - probe.began:.0f} seconds"
        return found

    def _probe(self, name: str, ask: Callable[[], str]) -> _Probe:
        with self._lock:
            probe = self._under_way.get(name)
            if probe is None or probe.done.is_set():
                probe = self._under_way[name] = _Probe(name, ask)
            return probe
