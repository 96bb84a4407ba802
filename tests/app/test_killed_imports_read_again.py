"""An import that is killed (kill -9) in the middle of any source goes on, and reads little of it twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.test_imported_files_get_lost import orthanc_path
from app.test_imports_from_faulty_servers import TheirAe, Theirs, serving, web
from hounsfield.archive.app.importing.work import Source
from support.imports import Archive, dicomdir, write_study

AFTER = 8
"""Objects that are told of before the kill, which comes before the last of them is noted."""
COUNT = 12
CHILD = Path(__file__).parents[1] / "support" / "killed_import.py"


@dataclass
class Place:
    """A source, as the child is told of it and as this process asks it, with an archive of its own."""

    kind: str
    where: str
    source: Path | Source
    archive: Archive
    uids: list[str]

    @property
    def words(self) -> tuple[list[str], str, str]:
        config = self.archive.config
        settings = [f'archive.data="{config.archive.data}"', f'keys.master_key="{config.keys.master_key}"']
        return settings, self.kind, self.where


@pytest.fixture(scope="module")
def theirs() -> Iterator[Theirs]:
    """Two studies of two series of three slices."""
    with serving(Theirs()) as server:
        for _ in range(2):
            server.add(series=2)
        yield server


@pytest.fixture(scope="module")
def ae() -> Iterator[TheirAe]:
    """Four studies of three slices."""
    one = TheirAe()
    for _ in range(4):
        one.add()
    one.start()
    yield one
    one.server.shutdown()


@pytest.fixture(scope="module")
def killed(
    tmp_path_factory: pytest.TempPathFactory, theirs: Theirs, ae: TheirAe
) -> Iterator[dict[str, Place]]:
    """Imports of every sort of source, each killed after some objects; all at once, which takes less time."""
    root = tmp_path_factory.mktemp("sources")
    places: dict[str, Place] = {}

    def add(name: str, kind: str, source: Path | Source, uids: list[str], where: str = "") -> None:
        archive = Archive.make(root / f"archive-{name}")
        places[name] = Place(kind, where or str(source), source, archive, uids)

    add("folder", "folder", root / "folder", write_study(root / "folder", COUNT))
    uids = write_study(root / "unpacked", COUNT)
    with zipfile.ZipFile(root / "disc.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((root / "unpacked").iterdir()):
            archive.write(file, file.name)
    add("ZIP", "folder", root / "disc.zip", uids)
    uids = write_study(root / "disc", COUNT, name="IM{}")
    (root / "disc" / "DICOMDIR").write_bytes(dicomdir([b"IM%d" % number for number in range(COUNT)]))
    add("DICOMDIR", "folder", root / "disc" / "DICOMDIR", uids)
    uids = write_study(root / "plain", COUNT)
    for file in (root / "plain").iterdir():
        orthanc_path(root / "orthanc").write_bytes(file.read_bytes())
    add("Orthanc", "folder", root / "orthanc", uids)
    add("DICOMweb", "web", web(theirs), theirs.uids, theirs.url)
    add("AE", "ae", ae.source(), ae.uids, str(ae.port))
    words = json.dumps([place.words for place in places.values()])
    done = subprocess.run(
        [sys.executable, CHILD, str(AFTER), words], capture_output=True, text=True, timeout=60, check=False
    )
    assert json.loads(done.stdout) == [signal.SIGKILL] * len(places), done.stderr
    yield places


@pytest.mark.parametrize("name", ["folder", "ZIP", "DICOMDIR", "Orthanc"])
def test_of_files_only_the_last_is_read_again(killed: dict[str, Place], name: str) -> None:
    place = killed[name]
    counts = place.archive.bring(place.source, jobs=1)
    counts.pop("not DICOM", None)  # a DICOMDIR itself
    assert counts == {"before": AFTER - 1, "already there": 1, "imported": COUNT - AFTER}
    assert place.archive.stored() == place.uids
    again = place.archive.bring(place.source, jobs=1)
    assert again.pop("before") in {COUNT, 1}  # a ZIP archive is one thing when it is done with
    again.pop("not DICOM", None)
    assert again == {}


def test_of_a_server_only_the_last_series_is_asked_for_again(
    killed: dict[str, Place], theirs: Theirs
) -> None:
    place = killed["DICOMweb"]
    before = dict(theirs.asked)
    counts = place.archive.bring(place.source, jobs=1)
    assert counts == {"before": 1, "already there": 3, "imported": 3}  # a study; and a series that all came
    asked = {path for path, number in theirs.asked.items() if number > before.get(path, 0)}
    done, _ = theirs.studies
    assert not any(done in path for path in asked)
    assert place.archive.stored() == place.uids
    assert place.archive.bring(place.source, jobs=1) == {"before": 2}


def test_of_an_ae_only_the_last_study_is_asked_for_again(killed: dict[str, Place], ae: TheirAe) -> None:
    place = killed["AE"]
    gets = ae.gets
    assert gets == 3
    counts = place.archive.bring(place.source, jobs=1)
    assert counts == {"before": 2, "already there": 2, "imported": 4}
    assert ae.gets - gets == 2
    assert place.archive.stored() == place.uids
    assert place.archive.bring(place.source, jobs=1) == {"before": 4}
