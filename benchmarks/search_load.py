"""A search index of N made-up studies, and what asking it costs: `python -m benchmarks.search_load`.

Rows and tokens are written as ingest writes them, without objects; then the same questions are asked of a
thousand studies and of all. Figures: time to load and to merge, bytes of index a study and an instance,
median and 99th percentile of each kind of question (and the processor's part of it), through the engine's
search (a page of 101 answers).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from benchmarks import archives
from benchmarks.people import GIVEN_NAMES, SURNAMES
from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import Query, parse_qido
from hounsfield.archive.engine.engine import EngineOptions
from hounsfield.archive.engine.gate import Gate
from hounsfield.archive.engine.search import Search
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.draft import StudyDraft
from hounsfield.archive.index.merging import MergeLimits, Merger
from hounsfield.archive.index.rows import InstanceRow, Location
from hounsfield.storage_backends.keyring import Keyring
from hounsfield.storage_backends.lmdb_store import LmdbStore
from hounsfield.storage_backends.master_key import create_master_key_file, load_master_key

STUDIES_PER_COMMIT = 1000
STUDIES_PER_MERGE = 20_000
SMALL = 1000  # the archive that the large one is compared with
STUDIES_PER_PATIENT = 2.5
LIMIT = "101"  # what OHIF asks for
FIRST_DAY, DAYS = date(2015, 1, 1), 3650
PAGE_BYTES = 4096
STUDY_TABLES = ("study", "series", "patient", "token", "gram", "grams", "fresh")
INSTANCE_TABLES = ("instance", "place")

# Family names of other scripts, and given names that go with them: about a sixth of the patients.
ACCENTED = (
    "Müller", "Núñez", "Çelik", "Dvořák", "Łukasik", "Ødegård", "Håkansson", "Lefèvre", "Șerban", "Groß",
)  # fmt: skip
JAPANESE = (
    ("Sato", "佐藤", "さとう"), ("Suzuki", "鈴木", "すずき"), ("Takahashi", "高橋", "たかはし"),
    ("Tanaka", "田中", "たなか"), ("Watanabe", "渡辺", "わたなべ"), ("Ito", "伊藤", "いとう"),
    ("Yamamoto", "山本", "やまもと"), ("Kobayashi", "小林", "こばやし"),
)  # fmt: skip
JAPANESE_GIVEN = (
    ("Haruto", "陽翔", "はると"), ("Yui", "結衣", "ゆい"), ("Taro", "太郎", "たろう"),
    ("Hanako", "花子", "はなこ"),
)  # fmt: skip
KOREAN = (("Kim", "金", "김"), ("Lee", "李", "이"), ("Park", "朴", "박"), ("Choi", "崔", "최"))
KOREAN_GIVEN = (("Minjun", "民俊", "민준"), ("Seoyeon", "書姸", "서연"), ("Jiho", "智浩", "지호"))
CYRILLIC = ("Иванов", "Смирнов", "Кузнецов", "Попов", "Соколов", "Шевченко", "Коваленко")
CYRILLIC_GIVEN = ("Иван", "Мария", "Пётр", "Ольга", "Дмитрий")
SYLLABLES = (
    "ba", "be", "bi", "bo", "da", "de", "di", "do", "fa", "ga", "ge", "go", "ha", "ka", "ke", "ki", "ko",
    "la", "le", "li", "lo", "ma", "me", "mi", "mo", "na", "ne", "ni", "no", "pa", "ra", "re", "ri", "ro",
    "sa", "se", "si", "so", "ta", "te", "ti", "to", "va", "ve", "vi", "wa", "za", "ber", "der", "gar", "hof",
    "kow", "land", "man", "mer", "nik", "sen", "ski", "son", "stein", "ter", "tov", "vic", "witz",
)  # fmt: skip
DESCRIPTIONS = (
    "CT THORAX", "CT ABDOMEN W CONTRAST", "CT HEAD WO", "MR BRAIN", "MR LUMBAR SPINE", "MR KNEE LEFT",
    "CHEST PA AND LATERAL", "US ABDOMEN COMPLETE", "MAMMOGRAPHY SCREENING", "PET CT WHOLE BODY",
    "XR HAND RIGHT", "CT ANGIO AORTA", "Schädel nativ", "胸部CT", "RX TORAX", "ECHO TTE",
)  # fmt: skip
MODALITIES = ("CT", "CT", "CT", "MR", "MR", "CR", "DX", "US", "US", "MG", "PT", "XA", "NM")


class People:
    """Made-up patients: few names are common, many are rare, as names are."""

    def __init__(self, seed: int) -> None:
        source = random.Random(seed)
        made = {"".join(source.choices(SYLLABLES, k=source.randrange(2, 5))) for _ in range(20_000)}
        self._families = (*SURNAMES, *ACCENTED, *(name.capitalize() for name in sorted(made)))
        weights = [1 / (rank + 3) for rank in range(len(self._families))]
        self._bounds: list[float] = []
        total = 0.0
        for weight in weights:
            total += weight
            self._bounds.append(total)
        self._seed = seed

    def patient(self, number: int) -> dict[int, str]:
        """Patient number ``number``, always the same."""
        source = random.Random(self._seed * 1_000_003 + number)
        born = date(1930, 1, 1) + timedelta(days=source.randrange(32_000))
        return {
            0x00100010: self._name(source),
            0x00100020: f"{10_000_000 + number * 7}",
            0x00100030: f"{born:%Y%m%d}",
            0x00100040: source.choice("FM"),
        }

    def _name(self, source: random.Random) -> str:
        kind = source.random()
        if kind < 0.05:
            family, given = source.choice(JAPANESE), source.choice(JAPANESE_GIVEN)
            return "=".join(f"{f}^{g}" for f, g in zip(family, given, strict=True))
        if kind < 0.09:
            family, given = source.choice(KOREAN), source.choice(KOREAN_GIVEN)
            return "=".join(f"{f}^{g}" for f, g in zip(family, given, strict=True))
        if kind < 0.14:
            return f"{source.choice(CYRILLIC)}^{source.choice(CYRILLIC_GIVEN)}"
        surname = self._families[bisect(self._bounds, source.random() * self._bounds[-1])]
        middle = source.choice(GIVEN_NAMES) if source.random() < 0.3 else ""
        return f"{surname}^{source.choice(GIVEN_NAMES)}^{middle}".rstrip("^")


def of_whom(number: int, total: int) -> int:
    """The patient of a study."""
    return number * 7919 % max(1, int(total / STUDIES_PER_PATIENT))


def study_uid(number: int) -> str:
    return f"1.2.826.0.1.3680043.10.511.3.{number}"


def load(
    stores: Stores, people: People, studies: range, total: int, instances: int, say: Callable[[str], None]
) -> dict[str, float]:
    """Write these studies of ``total``, oldest first as they would have come in, and merge them."""
    limits = MergeLimits(studies_per_round=STUDIES_PER_MERGE, changes_per_commit=4096)
    merger = Merger(stores.store, stores.sealer, stores.hashes, limits)
    loading = merging = 0.0
    began = time.perf_counter()
    for start in range(studies.start, studies.stop, STUDIES_PER_COMMIT):
        numbers = range(start, min(studies.stop, start + STUDIES_PER_COMMIT))
        stores.sealer.prepare(len(numbers) * (instances + 4))
        held: dict[bytes, bytes | None] = {}
        with stores.store.snapshot() as snapshot:
            batches = [_plan(stores, snapshot, held, number, people, total, instances) for number in numbers]
        for result in stores.store.commit_many(batches):
            if isinstance(result, Exception):
                raise result
        if numbers.stop % STUDIES_PER_MERGE == 0 or numbers.stop == studies.stop:
            loading += time.perf_counter() - began
            began = time.perf_counter()
            merger.merge_all()
            merging += time.perf_counter() - began
            began = time.perf_counter()
            say(f"{numbers.stop:,} studies")
    return {"load_s": loading, "merge_s": merging}


def _plan(
    stores: Stores, snapshot: Any, held: Any, number: int, people: People, total: int, instances: int
) -> Any:
    source = random.Random(number)
    uid = study_uid(number)
    day = FIRST_DAY + timedelta(days=number * DAYS // total)
    if source.random() < 0.03:  # brought from elsewhere
        day -= timedelta(days=source.randrange(3000))
    study = {
        **people.patient(of_whom(number, total)),
        0x0020000D: uid,
        0x00080020: f"{day:%Y%m%d}",
        0x00080030: f"{source.randrange(7, 20):02d}{source.randrange(60):02d}00",
        0x00080050: f"A{number:09d}",
        0x00080090: source.choice(SURNAMES) + "^" + source.choice(GIVEN_NAMES),
        0x00081030: source.choice(DESCRIPTIONS),
        0x00200010: str(number % 100_000),
    }
    series_uid = f"{uid}.1"
    series = {0x0020000E: series_uid, 0x00080060: source.choice(MODALITIES), 0x00200011: "1",
              0x0008103E: "Axial 1.0 B30f"}  # fmt: skip
    draft = StudyDraft(stores.catalog, snapshot, uid, held)
    for instance in range(1, instances + 1):
        sop_uid = f"{series_uid}.{instance}"
        location = Location(b"s" * 16, source.randbytes(16), number << 19, 400, 1800, 0, 1, 524_288)
        attributes = {0x00080018: sop_uid, 0x00080016: "1.2.840.10008.5.1.4.1.1.2", 0x00200013: str(instance),
                      0x00280010: "512", 0x00280011: "512", 0x00280100: "16"}  # fmt: skip
        row = InstanceRow(
            sop_uid, "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1", location, 1, attributes, number
        )
        draft.add(series_uid, row, study, series)
    return draft.finish(number)


# ---------------------------------------------------------------- questions


def questions(
    people: People, there: int, total: int, seed: int = 5
) -> dict[str, list[list[tuple[str, str]]]]:
    """Kinds of questions, and some of each, to the first ``there`` studies of ``total``."""
    source = random.Random(seed)

    def somebody() -> dict[int, str]:
        return people.patient(of_whom(source.randrange(there), total))

    def family() -> str:
        return somebody()[0x00100010].split("=")[0].split("^")[0]

    def infix(length: int) -> str:
        while True:
            name = somebody()[0x00100010].split("=")[0]
            if len(name) >= length:
                at = source.randrange(len(name) - length + 1)
                piece = name[at : at + length]
                if "^" not in piece:
                    return f"*{piece}*"

    def week() -> str:
        day = FIRST_DAY + timedelta(days=source.randrange(max(1, DAYS * there // total - 7)))
        return f"{day:%Y%m%d}-{day + timedelta(days=7):%Y%m%d}"

    def ideographs() -> str:
        return f"*{source.choice(JAPANESE)[1][: source.randrange(1, 3)]}*"

    many = range(200)
    apart = strangers(people, there, total)
    return {
        "exact id": [[("PatientID", somebody()[0x00100020])] for _ in many],
        "infix name": [[("PatientName", infix(5))] for _ in many],
        "infix, all answered": [[("PatientName", f"*{piece}*")] for piece in ("a", "er", "an", "o")] * 10,
        "date range": [[("StudyDate", week())] for _ in many],
        "family name": [[("PatientName", f"{family()}^*")] for _ in many],
        "two letters": [[("PatientName", infix(2))] for _ in many],
        "ideographs": [[("PatientName", ideographs())] for _ in many],
        "fuzzy": [[("PatientName", family()[:4]), ("fuzzymatching", "true")] for _ in many],
        "ohif": [
            [("PatientName", infix(3)), ("ModalitiesInStudy", "MG"), ("StudyDate", week())] for _ in many
        ],
        "accession end": [[("AccessionNumber", f"*{source.randrange(10_000):04d}")] for _ in many],
        "description": [[("StudyDescription", "*TTE*"), ("PatientID", f"*{n}*")] for n in range(100, 300)],
        "everything": [[] for _ in range(50)],
        "nobody, common grams": [[("PatientName", f"*{a}*{b}*")] for a, b in apart],
    }


def strangers(people: People, there: int, total: int) -> list[tuple[str, str]]:
    """Common trigrams of which no patient of a sample has two."""
    count: Counter[str] = Counter()
    together: set[tuple[str, str]] = set()
    source = random.Random(11)
    for _ in range(min(there, 50_000)):
        name = people.patient(of_whom(source.randrange(there), total))[0x00100010].lower()
        if name.isascii():
            held = sorted({name[i : i + 3] for i in range(len(name) - 2)})
            count.update(held)
            together.update((a, b) for a in held for b in held)
    common = [gram for gram, _ in count.most_common(120) if "^" not in gram]
    return [(a, b) for a in common for b in common if (a, b) not in together][:100]


def ask(search: Search, asked: list[list[tuple[str, str]]]) -> dict[str, float]:
    took: list[float] = []
    worked: list[float] = []
    answers: list[int] = []
    for parameters in asked:
        query: Query = parse_qido(Level.STUDY, [*parameters, ("limit", LIMIT)])
        if not took:
            search.search_blocking(query)  # the first of its kind also loads code
        began, worked_before = time.perf_counter(), time.thread_time()
        page = search.search_blocking(query)
        worked.append((time.thread_time() - worked_before) * 1000)
        took.append((time.perf_counter() - began) * 1000)
        answers.append(len(page.rows))
    took.sort()
    return {
        "p50_ms": round(statistics.median(took), 3),
        "p99_ms": round(took[min(len(took) - 1, int(len(took) * 0.99))], 3),
        "cpu_p50_ms": round(statistics.median(worked), 3),
        "answers": round(statistics.mean(answers), 1),
    }


def size(store: LmdbStore, studies: int, instances: int) -> dict[str, float]:
    """Bytes of the tables' pages. The journal is not loaded and not counted."""
    pages = {}
    with store._environment.begin() as transaction:
        for name, handle in store._handles.items():
            stat = transaction.stat(db=handle)
            pages[name] = (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]) * PAGE_BYTES
    found: dict[str, float] = {f"{name}_bytes": held for name, held in pages.items() if held > PAGE_BYTES}
    found["bytes_a_study"] = round(sum(pages[name] for name in STUDY_TABLES) / studies)
    found["bytes_an_instance"] = round(sum(pages[name] for name in INSTANCE_TABLES) / instances)
    return found


@contextmanager
def archive(folder: Path) -> Iterator[Stores]:
    key = folder / "master.key"
    create_master_key_file(key)
    data = folder / "data"
    keyring = Keyring.create(data / "keys", load_master_key(f"file:{key}"))
    stores = Stores.open(data, keyring, EngineOptions())
    try:
        yield stores
    finally:
        stores.close()


def measure(total: int, instances: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    people = People(1)
    run: dict[str, Any] = {"studies": total, "instances_a_study": instances, "questions": {}}
    with archive(folder) as stores:
        search = Search(stores.planner, Gate())
        for part in (range(min(SMALL, total)), range(min(SMALL, total), total)):
            if not part:
                continue
            took = load(stores, people, part, total, instances, say)
            for name, asked in questions(people, part.stop, total).items():
                run["questions"].setdefault(name, {})[str(part.stop)] = ask(search, asked)
        run |= {
            "load_studies_a_second": round(len(part) / took["load_s"]) if took["load_s"] else None,
            "merge_studies_a_second": round(len(part) / took["merge_s"]) if took["merge_s"] else None,
            **size(cast(LmdbStore, stores.store), total, total * instances),
        }
    return run


def measure_filled(place: Path, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The questions to an archive that ``benchmarks.index_load --folder`` kept, and to a thousand studies."""
    total, instances = map(int, (place / "filled").read_text().split())
    people = People(1)
    run: dict[str, Any] = {"studies": total, "instances_a_study": instances, "questions": {}}
    with archive(folder) as small:
        load(small, people, range(SMALL), total, instances, say)
        with archives.stores_in(place) as large:
            for there, stores in ((SMALL, small), (total, large)):
                search = Search(stores.planner, Gate())
                for name, asked in questions(people, there, total).items():
                    run["questions"].setdefault(name, {})[str(there)] = ask(search, asked)
            run |= size(cast(LmdbStore, large.store), total, total * instances)
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--instances", type=int, default=1, help="of each study")
    parser.add_argument("--folder", type=Path, help="where to build the index; left there")
    parser.add_argument("--filled", type=Path, help="an archive kept by index_load --folder: ask that one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    console = Console(stderr=True)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="search-load-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    try:
        if options.filled is None:
            run = measure(options.studies, options.instances, folder, console.print)
        else:
            run = measure_filled(options.filled, folder, console.print)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps(run, indent=1))
        return 0
    for name, figure in run.items():
        if name == "questions":
            for question, sizes in figure.items():
                for number, asked in sizes.items():
                    took = f"p50 {asked['p50_ms']:8.2f} ms  p99 {asked['p99_ms']:8.2f} ms"
                    print(
                        f"{question:22}{int(number):>10,}: {took}  cpu {asked['cpu_p50_ms']:6.2f} ms"
                        f"  {asked['answers']:6} answers"
                    )
        else:
            print(f"{name:24} {figure:,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
