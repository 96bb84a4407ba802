"""Texts in pictures: in the letters of the fonts that are configured, and never an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from hounsfield.archive.config import Config, check_safety
from hounsfield.archive.config.sections import Rendered
from hounsfield.archive.engine.engine import EngineOptions, open_engine
from hounsfield.archive.errors import ConfigError
from hounsfield.archive.rendering.annotation import annotated, name_of
from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.errors import NotRenderableError
from hounsfield.archive.rendering.graphics import Drawing, drawn
from hounsfield.archive.rendering.lettering import BUILT_IN, Lettering
from hounsfield.archive.rendering.request import PNG, Rendering
from support.archives import ct_slice, encode, store, stores_in

LITTLE = "1.2.840.10008.1.2.1"
KANJI = "Yamada^Tarou=山田^太郎=やまだ^たろう"


def fonts() -> tuple[str, str, str]:
    """Those that matplotlib carries: Latin, Cyrillic and Greek; fewer of them; a box for anything."""
    import matplotlib as mpl

    directory = Path(mpl.get_data_path()) / "fonts" / "ttf"
    names = ("DejaVuSans.ttf", "DejaVuSansMono.ttf", "LastResortHE-Regular.ttf")
    return tuple(str(directory / name) for name in names)  # type: ignore[return-value]


SANS, MONO, ANYTHING = fonts()


def written(text: str, lettering: Lettering) -> np.ndarray:
    image = Image.new("L", (600, 60))
    lettering.write(ImageDraw.Draw(image), (5, 5), text, 24, 255, 0, 0)
    return np.asarray(image)


def by_pillow(*pieces: tuple[str, str]) -> np.ndarray:
    """The same with each piece in its font, on one line, as Pillow writes it."""
    image = Image.new("L", (600, 60))
    pen, x = ImageDraw.Draw(image), 5.0
    baseline = 5 + ImageFont.load_default(24).getmetrics()[0]
    for path, text in pieces:
        font = ImageFont.truetype(path, 24) if path else ImageFont.load_default(24)
        pen.text((x, baseline), text, fill=255, font=font, anchor="ls")
        x += font.getlength(text)
    return np.asarray(image)


@pytest.mark.parametrize(
    ("text", "files", "pieces"),
    [
        ("Šťastný, Иванов Ωμέγα", (SANS,), [(SANS, "Šťastný, Иванов Ωμέγα")]),
        ("Sˇ", (SANS,), [(SANS, "Sˇ")]),
        ("S\u030ct", (SANS,), [(SANS, "Št")]),  # an accent apart is put on its letter
        ("ѠѪ abc", (MONO, SANS), [(SANS, "ѠѪ"), (MONO, " abc")]),
        ("abc 山", (SANS,), [(SANS, "abc "), ("", "?")]),
        ("Łódź", (), [("", "Lodz")]),
        ("a\tb\x07c", (SANS,), [(SANS, "a bc")]),
    ],
)
def test_other_letters_are_drawn(text: str, files: tuple[str, ...], pieces: list[tuple[str, str]]) -> None:
    ours = written(text, Lettering(files))
    assert np.array_equal(ours, by_pillow(*pieces))
    assert ours.any()


def test_the_top_of_a_line_moves_with_its_font() -> None:
    """Without fonts a line stands where Pillow puts it by its upper left corner."""
    image = Image.new("L", (600, 60))
    ImageDraw.Draw(image).text((5, 5), "Doe Jane", fill=255, font=ImageFont.load_default(24))
    assert np.array_equal(written("Doe Jane", BUILT_IN), np.asarray(image))


@pytest.mark.parametrize(
    ("said", "files", "shown"),
    [
        (KANJI, (), "Yamada Tarou"),
        (KANJI, (SANS,), "Yamada Tarou"),
        (KANJI, (SANS, ANYTHING), "Yamada Tarou = 山田 太郎"),
        ("=山田^太郎", (), "山田 太郎"),
        ("Müller^Ürika^^Dr.", (), "Müller Ürika Dr."),
        ("Иванов^Иван=Ivanov^Ivan", (SANS,), "Иванов Иван = Ivanov Ivan"),
        ("==", (), ""),
    ],
)
def test_a_name_is_shown_in_letters_nobody_reads(said: str, files: tuple[str, ...], shown: str) -> None:
    assert name_of(said, Lettering(files)) == shown


def test_a_presentation_states_text_is_in_other_letters() -> None:
    black = np.zeros((400, 400), np.uint8)
    text = Drawing("TEXT", ((20.0, 30.0),), pixels=True, text="Läsion\r\nочаг")
    ascii_only = drawn(black, [text], lambda x, y: (x, y))
    readable = drawn(black, [text], lambda x, y: (x, y), Lettering((SANS,)))
    assert ascii_only.any()
    assert not np.array_equal(ascii_only, readable)
    assert readable[30:46].any()
    assert readable[46:60].any()  # the second line


def test_a_font_is_believed_to_have_what_it_lacks() -> None:
    """What Pillow draws says of each letter what the font's own table says."""
    from fontTools.ttLib import TTFont

    wanted = [chr(code) for code in (*range(0x21, 0x600), *range(0x1E00, 0x2100), *range(0x4E00, 0x4E20))]
    for path in (SANS, MONO):
        table = TTFont(path).getBestCmap()
        lettering = Lettering((path,))
        wrong = [one for one in wanted if one.isprintable() and lettering.has(one) != (ord(one) in table)]
        assert not wrong


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.sampled_from([(), (SANS,), (MONO, ANYTHING)]),
)
def test_strange_letters_crash(text: str, files: tuple[str, ...]) -> None:
    dataset = pydicom.Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.StudyDescription = text.replace("\\", ""), text
    found = Elements.of_header(encode(dataset, LITTLE), LITTLE)
    black = np.zeros((64, 64), np.uint8)
    assert annotated(black, found, frozenset({"patient", "technique"}), Lettering(files)).shape == (64, 64)


def test_a_font_that_is_none_stops_the_server_or_goes_unnoticed(tmp_path: Path) -> None:
    missing, noise = tmp_path / "none.ttf", tmp_path / "noise.ttf"
    noise.write_bytes(b"no font at all")
    with pytest.raises(ConfigError, match=r"rendered\.fonts: no such file"):
        check_safety(Config(rendered=Rendered(fonts=(str(missing),))))
    check_safety(Config(rendered=Rendered(fonts=(SANS,))))
    with pytest.raises(NotRenderableError, match=r"rendered\.fonts"):
        written("Doe", Lettering((str(noise),)))


async def test_the_configured_fonts_are_not_used(tmp_path: Path) -> None:
    asked = Rendering(PNG, annotations=frozenset({"patient"}))
    pictures = []
    for number, files in enumerate(((), (SANS,), ())):
        with stores_in(tmp_path / str(number)) as stores:
            options = EngineOptions(fonts=files)
            async with open_engine(stores, options, owner="test") as engine:
                result = await store(engine, ct_slice(change=_cyrillic), LITTLE)
                uids = (result.study_uid, result.series_uid, result.sop_instance_uid)
                (one,) = await engine.instances(*uids)
                (subject,) = await engine.rendered.subjects(one)
                pictures.append(await engine.rendered.file(subject, [1], asked))
    assert pictures[0] == pictures[2] != pictures[1]


def _cyrillic(data: pydicom.Dataset) -> None:
    data.SpecificCharacterSet, data.PatientName = "ISO_IR 192", "Иванов^Иван"
    data.Rows = data.Columns = 128
    data.PixelData = bytes(128 * 128 * 2)
    data.PatientID = data.AccessionNumber = "1"
