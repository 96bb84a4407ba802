"""Danger: a start gets slow, because somebody imports a library that a start does not need."""

from __future__ import annotations

import subprocess
import sys


def test_neither_start_nor_tables_import_the_libraries() -> None:
    """Half of a worker's start was theirs."""
    program = (
        "import sys, hounsfield.archive.app.build;"
        "from hounsfield.archive.dicom.dictionary import private_vr_of;"
        "assert private_vr_of('GEMS_IDEN_01', 0x00091001) == 'LO';"
        "print(*{'numpy', 'pydicom', 'imagecodecs', 'PIL', 'requests', 'wsproto'}.intersection(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_asks_a_server_imports_little() -> None:
    """`hounsfield ls` and `status` beside a running server: an engine of their own is of no use to them."""
    program = (
        "import sys, hounsfield.archive.app.opening\n"
        "import hounsfield.archive.cli.ls, hounsfield.archive.cli.status\n"
        "print(*{'trio', 'rich', 'structlog', 'hounsfield.archive.engine'}.intersection(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
