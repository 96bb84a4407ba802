"""A study is found from its first moment on, in its character set, before, during and after merging."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import PersonName
from structlog.testing import capture_logs

from hounsfield.archive.dicom.levels import Level
from hounsfield.archive.dicom.query import Query, parse_qido
from hounsfield.archive.engine import gram_merging
from hounsfield.archive.engine.engine import Engine, EngineOptions, open_engine
from hounsfield.archive.engine.gram_merging import GramMerging
from hounsfield.archive.engine.stores import Stores
from hounsfield.archive.index.merging import Merger
from hounsfield.archive.index.tables import FRESH, GRAM
from hounsfield.storage_backends.errors import StoreFullError
from support.archives import ct_slice, store, stores_in
from support.slow_matcher import satisfies

#: Specific Character Set, a name in it (mostly those of PS3.5 H to K), and parts of names to look for.
WRITTEN = (
    ("ISO_IR 100", "Buc^Jérôme", ("*jerome*", "Buc^J*", "buc^jérôme")),
    ("ISO_IR 101", "Wałęsa^Lech", ("*walesa*", "WAŁĘSA^*", "w?l*")),
    ("ISO_IR 144", "Люкceмбypг", ("*люк*", "ЛЮК*", "л*г")),
    ("ISO_IR 126", "Διονυσιος", ("*ονυ*", "ΔΙΟΝ*", "διονυσιος")),
    ("ISO_IR 127", "قباني^لنزار", ("*لنز*", "قبا*")),
    ("ISO_IR 138", "שרון^דבורה", ("*רון*", "שרון^*")),
    ("ISO_IR 166", "สมชาย^ใจดี", ("*ชาย*", "สม*")),
    ("ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ", ("*ヤマ*", "ﾔﾏ*", "ヤマダ^タロウ")),
    (
        "\\ISO 2022 IR 87", "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ("*山*", "山田^*", "*太郎*", "=山田^太郎", "*まだ*"),
    ),
    ("\\ISO 2022 IR 149", "Hong^Gildong=洪^吉洞=홍^길동", ("*洪*", "*길*", "==홍*", "hong^gil*")),
    ("\\ISO 2022 IR 58", "Zhang^XiaoDong=张^小东", ("*张*", "*小东*", "zhang*")),
    ("GB18030", "Wang^XiaoDong=王^小东", ("*王*", "=王^*", "*小东*")),
    ("GBK", "Wang^XiaoDong=王^小东", ("*小*",)),
    ("ISO_IR 192", "Wang^XiaoDong=王^小東=Øre^Åsa", ("*東*", "*ore^asa*", "==øre^åsa")),
    ("ISO_IR 100", "Äneas^Rüdiger", ("aneas*", "*RÜD*", "*rudiger*")),
    ("", "Adams^John Robert Quincy^^Rev.^B.A. M.Div.", ("*quincy*", "adams^john*", "*b.a.*")),
)  # fmt: skip
IN_CHINESE = b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab"  # PS3.5 K.2
NAME, STUDY_UID = 0x00100010, 0x0020000D


async def fill(engine: Engine) -> dict[str, str]:
    """Study UIDs, and the names as they were encoded."""
    names = {}
    for number, (character_set, name, _) in enumerate(WRITTEN):

        def change(data: Dataset, character_set: str = character_set, number: int = number) -> None:
            data.SpecificCharacterSet = character_set.split("\\") if "\\" in character_set else character_set
            if character_set == "\\ISO 2022 IR 58":  # which pydicom writes without its escape sequences
                data.PatientName = PersonName(IN_CHINESE, ["ascii", "iso_ir_58"])
            data.StudyDate = f"2025{1 + number % 12:02d}14"

        uid = f"2.25.{number + 1}"
        names[uid] = name
        data = ct_slice(patient_name=name, patient_id=f"P{number}", study_uid=uid, change=change)
        await store(engine, data, ExplicitVRLittleEndian)
    return names


async def uids(engine: Engine, *parameters: tuple[str, str]) -> set[str]:
    page = await engine.search(parse_qido(Level.STUDY, parameters))
    return {row.study[STUDY_UID] for row in page.rows}


async def check(engine: Engine, names: dict[str, str]) -> None:
    for uid, (_, _, keys) in zip(names, WRITTEN, strict=True):
        for key in keys:
            expected = {
                other for other, name in names.items() if satisfies({"PatientName": key}, {NAME: name})
            }
            assert uid in expected, key
            assert await uids(engine, ("PatientName", key)) == expected, key
        words = names[uid].replace("=", "^").split("^")
        for word in words:
            if word:
                found = await uids(engine, ("PatientName", word[:2]), ("fuzzymatching", "true"))
                assert uid in found, word


def no_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    async def rest(_: GramMerging) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(GramMerging, "run", rest)


def fresh(stores: Stores) -> int:
    with stores.store.snapshot() as snapshot:
        return len(list(snapshot.scan(FRESH)))


async def test_names_in_every_character_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_merging(monkeypatch)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            names = await fill(engine)
            assert fresh(stores) == len(names)
            await check(engine, names)  # everything is looked at, nothing is known of merged postings
            steps = stores.merger.round()
            next(steps)  # from here on fresh studies are told from merged ones
            await check(engine, names)
            for _ in steps:
                await check(engine, names)
            assert fresh(stores) == 0
            await check(engine, names)
            with stores.store.snapshot() as snapshot:
                assert next(iter(snapshot.scan(GRAM)))


async def test_a_study_is_found_between_its_commit_and_merging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New ones beside merged ones, and a merged one that changes."""
    no_merging(monkeypatch)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:

            def bare(data: Dataset) -> None:
                del data.StudyDescription, data.StudyDate

            await store(engine, ct_slice(study_uid="2.25.1", change=bare), ExplicitVRLittleEndian)
            stores.merger.merge_all()
            assert await uids(engine, ("StudyDescription", "*hor*")) == set()
            await store(engine, ct_slice(study_uid="2.25.1"), ExplicitVRLittleEndian)
            await store(engine, ct_slice(study_uid="2.25.2"), ExplicitVRLittleEndian)
            for _ in range(2):
                assert await uids(engine, ("StudyDescription", "*hor*")) == {"2.25.1", "2.25.2"}
                assert await uids(engine, ("PatientName", "M*"), ("StudyDate", "20250314")) == {
                    "2.25.1",
                    "2.25.2",
                }
                stores.merger.merge_all()


async def test_the_leader_merges_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram_merging, "PAUSE_S", 0.0)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            names = await fill(engine)
            with trio.fail_after(30):
                while await engine.read(fresh, stores):
                    pass
            await check(engine, names)


async def test_a_full_index_is_said_once_and_merging_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram_merging, "PAUSE_S", 0.0)
    tries = 0
    going_on = Merger.round

    def full(self: Merger) -> Iterator[int]:
        nonlocal tries
        tries += 1
        if tries < 5:
            raise StoreFullError("no room")
        yield from going_on(self)

    monkeypatch.setattr(Merger, "round", full)
    with capture_logs() as logged, stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            await store(engine, ct_slice(), ExplicitVRLittleEndian)
            with trio.fail_after(30):
                while tries < 5 or await engine.read(fresh, stores):
                    await engine.read(fresh, stores)
            assert len(await uids(engine, ("PatientName", "*uste*"))) == 1
    assert sum("not merged" in entry["event"] for entry in logged) == 1


async def test_an_older_tokenizers_studies_are_found_and_brought_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hounsfield.archive.index import tokens

    no_merging(monkeypatch)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            names = await fill(engine)
            stores.merger.merge_all()
            version = tokens.TOKENIZER + 1

            def other_grams(hashes, attributes):  # type: ignore[no-untyped-def]
                turned = {tag: text[::-1] for tag, text in attributes.items()}
                return tokens._merged_tokens_2(hashes, turned)

            monkeypatch.setattr(tokens, "TOKENIZER", version)
            monkeypatch.setitem(tokens._MERGED_BY, version, tokens._merged_tokens_2)
            monkeypatch.setitem(tokens._MERGED_BY, version - 1, other_grams)  # as if written differently
            await check(engine, names)
            stores.merger.merge_all()
            await check(engine, names)
            with stores.store.snapshot() as snapshot:
                row = stores.catalog.study(snapshot, "2.25.1")
            assert row is not None
            assert row.tokenizer == version


async def test_pages_put_together_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_merging(monkeypatch)
    source = random.Random(3)
    with stores_in(tmp_path / "data") as stores:
        async with open_engine(stores, EngineOptions(), owner="test") as engine:
            for number in range(40):

                def dated(data: Dataset) -> None:
                    data.StudyDate = f"202501{source.randrange(1, 5):02d}"

                await store(
                    engine, ct_slice(study_uid=f"2.25.{number + 1}", change=dated), ExplicitVRLittleEndian
                )
                if number == 20:
                    Merger(stores.store, stores.sealer, stores.hashes).merge_all()
            keys = parse_qido(Level.STUDY, [("PatientName", "*uste*")]).matches
            whole = (await engine.search(Query(Level.STUDY, keys))).rows
            assert len(whole) == 40
            for size in (1, 7, 39, 40):
                pages = []
                for offset in range(0, 40, size):
                    page = await engine.search(Query(Level.STUDY, keys, limit=size, offset=offset))
                    assert page.more == (offset + size < 40)
                    pages += page.rows
                assert pages == list(whole)
