"""A shell gives a process 1024 open files: the archive takes all it may have, and says when it needs more."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = """
import resource, sys
from hounsfield.archive.app.listeners import allow_descriptors
from hounsfield.archive.config import Config
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
print(repr(allow_descriptors(Config())), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (256, 4096, "'' 4096 4096"),
        (2048, 2048, "'' 2048 2048"),
        (256, 1000, "1000 open files are permitted (ulimit -Hn), 1456 may be needed"),
    ],
)
def test_as_many_as_there_may_be(soft: int, hard: int, expected: str) -> None:
    words = [sys.executable, "-c", CHILD, str(soft), str(hard)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert expected in done.stdout
