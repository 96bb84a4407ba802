"""Gets the peers: from Debian when we are root, else says what to type."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable

from benchmarks.peers.base import PYTHON, Peer

INSTALL_SECONDS_MAX = 900


def ensure(
    peers: Iterable[type[Peer]], say: Callable[[str], None], *, install: bool = True
) -> list[type[Peer]]:
    """The peers that can run, after installing what may be installed. The others are named, with their
    command.
    """
    wanted = list(peers)
    absent = [peer for peer in wanted if peer.missing()]
    if install and absent:
        packages = sorted({name for peer in absent for name in peer.packages})
        modules = sorted({name for peer in absent for name in peer.modules})
        if packages and os.geteuid() == 0 and shutil.which("apt-get"):
            say(f"installing {' '.join(packages)} with apt-get")
            _run(["apt-get", "update", "-qq"], say)
            # The Debian packages start their services where there is an init system; ours run beside, on
            # other ports.
            _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], say)
        if modules:
            say(f"installing {' '.join(modules)} with pip")
            _run([PYTHON, "-m", "pip", "install", "--quiet", *modules], say)
    usable = []
    for peer in wanted:
        command = peer.missing()
        if command is None:
            usable.append(peer)
        else:
            say(f"{peer.label} is left out: it is not installed. To get it: {command}")
    return usable


def _run(command: list[str], say: Callable[[str], None]) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"{' '.join(command)}: {error}")
        return
    if done.returncode:
        say(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-300:]}")
