"""What `make check` checks, as tests: the layers hold, links point where they should, all is pinned."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TOOLS = {
    "ruff": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "import-linter": ["lint-imports", "--no-cache"],
}


@pytest.mark.parametrize("name", TOOLS)
def test_the_tools_are_content(root_directory: Path, name: str) -> None:
    program, *arguments = TOOLS[name]
    found = shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)
    assert found, f"{program} is not installed: make setup"
    done = subprocess.run(
        [found, *arguments], cwd=root_directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["archive", "codecs", "ris_plugin", "storage_backends"])
def test_the_top_level_links_lead_into_the_package(root_directory: Path, name: str) -> None:
    assert (root_directory / name).is_symlink()
    assert (root_directory / name).readlink() == Path("src/hounsfield") / name


def test_every_dependency_is_pinned(root_directory: Path) -> None:
    project = tomllib.loads((root_directory / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    lines = (root_directory / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin) for pin in pins), (
        "a version, never a place"
    )
    pinned = {_normal(pin.partition("==")[0]) for pin in pins}
    assert {_normal(re.split(r"[\[><=;]", each)[0]) for each in wanted} <= pinned


def test_the_command_starts_quickly_because_it_loads_little(root_directory: Path) -> None:
    code = "import sys, hounsfield.archive.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root_directory
    )
    loaded = set(done.stdout.split())
    assert not loaded & {
        "numpy",
        "trio",
        "lmdb",
        "cryptography",
        "pydicom",
        "starlette",
        "msgspec",
        "structlog",
    }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
