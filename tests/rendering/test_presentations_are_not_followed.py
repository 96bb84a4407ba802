"""Presentation states: beside DCMTK's own renderer, and by what the standard says of each part."""

from __future__ import annotations

import io
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image as PilImage
from pydicom.dataset import Dataset, FileMetaDataset

from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.errors import NotRenderableError
from hounsfield.archive.rendering.image import Image
from hounsfield.archive.rendering.output import profile_of
from hounsfield.archive.rendering.pipeline import Cells, FilmDrawing, file_of, picture_of
from hounsfield.archive.rendering.presentation import AREA_PIXELS_MAX, ImagePresentation, PresentationState
from hounsfield.archive.rendering.request import GIF, PNG, Rendering, Viewport
from hounsfield.archive.rendering.viewport import shown as shown_in
from support.archives import encode
from support.rendering import cells_of, image_of
from support.states import presentation_state

UID = "1.2.840.10008.1.2.1"


def applied(state: Dataset, sop_uid: str = "1.2.3", number: int = 1) -> ImagePresentation:
    return PresentationState(Elements.of_header(encode(state, UID), UID)).of_image(sop_uid, number)


def state_of(**attributes: object) -> Dataset:
    state = presentation_state()
    for keyword, value in attributes.items():
        setattr(state, keyword, value)
    return state


def window(center: float, width: float, sop_uid: str | None = None) -> Dataset:
    item = Dataset()
    item.WindowCenter, item.WindowWidth = center, width
    if sop_uid is not None:
        image = Dataset()
        image.ReferencedSOPInstanceUID = sop_uid
        item.ReferencedImageSequence = [image]
    return item


@pytest.mark.peer("dcmp2pgm")
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
@pytest.mark.parametrize("shape", ["IDENTITY", "INVERSE"])
def test_the_grey_is_not_dcmtks(name: str, shape: str, tmp_path: Path) -> None:
    path, image = image_of(name)
    of = pydicom.dcmread(path)
    state = presentation_state(of)
    state.PresentationLUTShape = shape
    state.SoftcopyVOILUTSequence = [window(300, 800)]
    ours = picture_of(image, 1, cells_of(path, image), Rendering(), applied(state))
    theirs = _dcmtk(state, of, path, tmp_path)
    measured = np.ones(ours.shape, bool)
    if image.padding is not None:
        measured = ~image.padding.mask(cells_of(path, image).array[:, :, 0])
    assert np.abs(ours.astype(int) - theirs)[measured].max() <= 1


def _dcmtk(state: Dataset, of: Dataset, path: Path, tmp_path: Path) -> np.ndarray:
    """The picture that dcmp2pgm makes of an image with a state, which must be complete for it."""
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner = [1, 1]
    area.DisplayedAreaBottomRightHandCorner = [of.Columns, of.Rows]
    area.PresentationSizeMode, area.PresentationPixelAspectRatio = "SCALE TO FIT", [1, 1]
    state.DisplayedAreaSelectionSequence = [area]
    state.RescaleIntercept = of.get("RescaleIntercept", 0)
    state.RescaleSlope, state.RescaleType = of.get("RescaleSlope", 1), "US"
    state.SeriesNumber, state.InstanceNumber, state.ContentLabel = 1, 1, "TEST"
    state.StudyDate = state.StudyTime = state.PatientBirthDate = state.PatientSex = state.StudyID = ""
    state.PresentationCreationDate, state.PresentationCreationTime = "20260101", "101010"
    state.ReferringPhysicianName = state.AccessionNumber = state.ContentDescription = ""
    state.ContentCreatorName, state.Manufacturer, state.PatientName = "", "", of.PatientName
    state.file_meta = FileMetaDataset()
    state.file_meta.TransferSyntaxUID = UID
    state.save_as(tmp_path / "state.dcm", enforce_file_format=True)
    out = tmp_path / "picture.pgm"
    words = ["dcmp2pgm", "-p", str(tmp_path / "state.dcm"), str(path), str(out)]
    done = subprocess.run(words, capture_output=True, timeout=60, check=False)
    assert out.exists(), done.stderr
    picture = out.read_bytes()
    assert picture.startswith(b"P5")
    return np.frombuffer(picture, np.uint8)[-of.Rows * of.Columns :].reshape(of.Rows, of.Columns)


def test_the_window_of_another_image_is_taken() -> None:
    state = state_of(
        SoftcopyVOILUTSequence=[window(10, 20, "1.2.9"), window(30, 40, "1.2.3")],
        PresentationLUTShape="INVERSE",
    )
    assert applied(state).voi.center == 30
    assert applied(state, "1.2.9").voi.center == 10
    assert applied(state, "1.2.4").voi is None


BLANK = np.full((20, 30), 200, np.uint8)


@pytest.mark.parametrize(
    ("attributes", "open_"),
    [
        (
            {"ShutterShape": "RECTANGULAR", "ShutterLeftVerticalEdge": 3, "ShutterRightVerticalEdge": 10,
             "ShutterUpperHorizontalEdge": 5, "ShutterLowerHorizontalEdge": 20},
            lambda row, column: (column >= 3) & (column <= 10) & (row >= 5),
        ),
        (
            {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [10, 15], "RadiusOfCircularShutter": 6},
            lambda row, column: (row - 10) ** 2 + (column - 15) ** 2 <= 36,
        ),
        (
            {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [2, 4, 2, 12, 9, 12, 9, 4]},
            lambda row, column: (row >= 2) & (row <= 9) & (column >= 4) & (column <= 12),
        ),
    ],
    ids=["rectangular", "circular", "polygonal"],
)  # fmt: skip
def test_a_shutter_covers_what_it_should_not(attributes: dict[str, object], open_) -> None:
    state = applied(state_of(ShutterPresentationValue=0x6400, **attributes))
    row, column = np.mgrid[1:21, 1:31]
    assert np.array_equal(state.applied(BLANK), np.where(open_(row, column), 200, 0x64))


def test_the_shutter_of_the_image_itself_is_left_open() -> None:
    path, _ = image_of("CT_small.dcm")
    of = pydicom.dcmread(path)
    of.ShutterShape, of.CenterOfCircularShutter, of.RadiusOfCircularShutter = "CIRCULAR", [64, 64], 50
    image = Image(Elements.of_header(encode(of, UID), UID))
    cells = cells_of(path, image)
    alone = picture_of(image, 1, cells, Rendering())
    with_state = picture_of(image, 1, cells, Rendering(), applied(state_of()))
    row, column = np.mgrid[1:129, 1:129]
    outside = (row - 64) ** 2 + (column - 64) ** 2 > 2500
    assert not alone[outside].any()
    assert np.array_equal(alone[~outside], with_state[~outside])
    assert with_state[outside].any()


def area(top_left: list[int], bottom_right: list[int], **more: object) -> Dataset:
    item = Dataset()
    item.DisplayedAreaTopLeftHandCorner, item.DisplayedAreaBottomRightHandCorner = top_left, bottom_right
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return item


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", ["Y", "N"])
def test_the_image_is_turned_the_wrong_way_round(rotation: int, flip: str) -> None:
    picture = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30).astype(np.uint8)
    dot = Dataset()
    dot.GraphicAnnotationUnits, dot.GraphicType, dot.GraphicData = "PIXEL", "POINT", [24.5, 3.5]
    graphics = Dataset()
    graphics.GraphicObjectSequence = [dot]
    state = state_of(ImageRotation=rotation, ImageHorizontalFlip=flip)
    expected = np.rot90(picture, -(rotation // 90))
    if flip == "Y":
        expected = np.fliplr(expected)
    assert np.array_equal(applied(state).applied(picture), expected)
    state.GraphicAnnotationSequence = [graphics]
    marked = np.zeros_like(picture)
    marked[3, 24] = 1
    where = np.rot90(marked, -(rotation // 90))
    where = np.fliplr(where) if flip == "Y" else where
    drawn = applied(state).applied(np.zeros_like(picture))
    rows, columns = np.nonzero(drawn)
    centre = np.argwhere(where)[0]
    assert (abs(rows.mean() - centre[0]) < 0.5, abs(columns.mean() - centre[1]) < 0.5) == (True, True)


def test_the_displayed_area_is_not_the_one_that_was_chosen() -> None:
    picture = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30).astype(np.uint8)
    inside = applied(state_of(DisplayedAreaSelectionSequence=[area([5, 3], [14, 9])]))
    assert np.array_equal(inside.applied(picture), picture[2:9, 4:14])
    beyond = applied(state_of(DisplayedAreaSelectionSequence=[area([-1, 0], [30, 21])])).applied(picture)
    assert beyond.shape == (22, 32)
    assert np.array_equal(beyond[1:21, 2:], picture)
    assert not beyond[0].any()
    nowhere = applied(state_of(DisplayedAreaSelectionSequence=[area([500, 500], [900, 900])]))
    assert np.array_equal(nowhere.applied(picture), picture)
    absurd = applied(state_of(DisplayedAreaSelectionSequence=[area([-99999, -99999], [99999, 99999])]))
    assert np.array_equal(absurd.applied(picture), picture)


def test_an_overlay_is_shown_that_nobody_put_into_a_layer() -> None:
    path, image = image_of("MR-SIEMENS-DICOM-WithOverlays.dcm")
    cells = cells_of(path, image)
    groups = [overlay.group for overlay in image.overlays]
    assert groups
    silent = applied(state_of(SoftcopyVOILUTSequence=[window(100, 200)]))
    assert silent.overlays(image.overlays) == ()
    loud = state_of(SoftcopyVOILUTSequence=[window(100, 200)])
    loud.add_new(groups[0] << 16 | 0x1001, "CS", "LAYER1")
    assert [one.group for one in applied(loud).overlays(image.overlays)] == groups[:1]
    shown = [picture_of(image, 1, cells, Rendering(), applied(state)) for state in (loud, state_of())]
    assert not np.array_equal(*shown)


def test_a_presentation_lut_is_left_out() -> None:
    _, image = image_of("CT_small.dcm")
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 8], bytes(255 - n for n in range(256))
    state = state_of(SoftcopyVOILUTSequence=[window(0, 100)], PresentationLUTSequence=[table])
    del state.PresentationLUTShape
    array = np.linspace(900, 1100, 400).astype(np.int16).reshape(20, 20, 1)
    cells = Cells(array, "MONOCHROME2", as_stored=True)
    plain = picture_of(
        image, 1, cells, Rendering(), applied(state_of(SoftcopyVOILUTSequence=[window(0, 100)]))
    )
    inverted = picture_of(image, 1, cells, Rendering(), applied(state))
    assert np.abs(inverted.astype(int) - (255 - plain.astype(int))).max() <= 1


def pseudo_color_state(entries: int, first: int = 0) -> Dataset:
    """Grey in colours: red upwards, green downwards, blue in the second half."""
    state = state_of(SOPClassUID="1.2.840.10008.5.1.4.1.1.11.3")
    state.SoftcopyVOILUTSequence = [window(300, 800)]
    del state.PresentationLUTShape
    ramp = np.linspace(0, 0xFFFF, entries).round().astype("<u2")
    for name, table in (("Red", ramp), ("Green", ramp[::-1]), ("Blue", np.where(ramp > 0x7FFF, ramp, 0))):
        setattr(state, f"{name}PaletteColorLookupTableDescriptor", [entries, first, 16])
        setattr(state, f"{name}PaletteColorLookupTableData", table.astype("<u2").tobytes())
    return state


@pytest.mark.parametrize(("entries", "first"), [(256, 0), (256, 100), (64, 0), (4096, 0)])
def test_a_palette_is_not_put_over_grey(entries: int, first: int) -> None:
    path, image = image_of("CT_small.dcm")
    cells = cells_of(path, image)
    grey_state = state_of(SoftcopyVOILUTSequence=[window(300, 800)])
    grey = picture_of(image, 1, cells, Rendering(), applied(grey_state)).astype(float)
    ours = picture_of(image, 1, cells, Rendering(), applied(pseudo_color_state(entries, first)))
    steps = np.rint(grey / 255 * (entries - 1)) * 255 / (entries - 1)
    assert ours.shape == (*grey.shape, 3)
    assert np.abs(ours[..., 0] - steps).max() <= 1
    assert np.abs(ours[..., 1] - (255 - steps)).max() <= 1
    assert not ours[..., 2][steps < 127].any()
    assert np.abs(ours[..., 2] - steps)[steps > 129].max() <= 1


def test_the_profile_of_a_palette_is_that_of_the_image() -> None:
    """Whoever asks for the profile gets the one that the state has for its colours."""
    path, image = image_of("CT_small.dcm")
    state = pseudo_color_state(256)
    state.ICCProfile = profile_of("adobergb")
    asked = Rendering(PNG, icc="yes")
    data = file_of(image, 1, cells_of(path, image), asked, applied(state))
    with PilImage.open(io.BytesIO(data)) as opened:
        assert opened.info["icc_profile"].rstrip(b"\0") == profile_of("adobergb").rstrip(b"\0")


AREAS = [
    None, ([5, 3], [24, 15]), ([-5, -3], [24, 15]), ([10, 8], [44, 31]), ([-20, -10], [45, 33]),
    ([28, 2], [90, 9]),
]  # fmt: skip
VIEWPORTS = [
    Viewport(None, None, 2, 1, 5, -4), Viewport(None, None, 0, 0, -6, 7), Viewport(12, 9), Viewport(90, 64),
    Viewport(40, 40, 3, 2, -9, 6), Viewport(8, 8, 0.2, 0.1, 0.5, 0.5, fractions=True),
]  # fmt: skip


@pytest.mark.parametrize("viewport", VIEWPORTS, ids=str)
@pytest.mark.parametrize("corners", AREAS, ids=str)
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_viewport_of_an_area_shows_another_part(corners, rotation: int, viewport: Viewport) -> None:
    """In one step the same comes out as when the whole area is made first, and cut and scaled then."""
    picture = np.random.default_rng(1).integers(40, 60, (20, 30)).astype(np.uint8)
    for flip in ("Y", "N"):
        more = {} if corners is None else {"DisplayedAreaSelectionSequence": [area(*corners)]}
        state = applied(state_of(ImageRotation=rotation, ImageHorizontalFlip=flip, **more))
        whole = state.applied(picture)
        expected = shown_in(whole, viewport, state.pixel_aspect(1.0))
        found = state.applied(picture, viewport=viewport)
        assert found.shape == expected.shape == state.size_of(*picture.shape, viewport)
        difference = np.abs(found.astype(int) - expected)
        if viewport.width is None or corners in AREAS[:2]:
            assert not difference.any()
        else:  # the border of the image lies between two pixels: half of one is more or less
            assert (difference > 12).mean() < 0.35
            # What is seen does not move: as much of it is as bright.
            assert abs(float(found.mean()) - float(expected.mean())) < 6


@pytest.mark.parametrize("colours", [False, True])
def test_what_lies_beside_the_image_takes_all_memory(colours: bool) -> None:
    """The largest area of an image, asked for small, takes what the image takes; else it is refused."""
    side = 2000
    around = round(side * 1.5) - 1
    _, image = image_of("CT_small.dcm")
    head = state_of(
        SoftcopyVOILUTSequence=[window(128, 256)], ImageRotation=90,
        DisplayedAreaSelectionSequence=[area([-around, -around], [side + around, side + around])],
    )  # fmt: skip
    if colours:
        for place in range(3):
            head.add_new(0x00281101 + place, "US", [256, 0, 16])
            head.add_new(0x00281201 + place, "OW", (np.arange(256).astype("<u2") * 257).tobytes())
        head.ShutterShape, head.CenterOfCircularShutter = "CIRCULAR", [side // 2, side // 2]
        head.RadiusOfCircularShutter = side
    state = applied(head)
    cells = Cells(np.zeros((side, side, 1), np.int16), "MONOCHROME2", as_stored=True)
    assert (4 * side - 10) ** 2 > AREA_PIXELS_MAX
    with pytest.raises(NotRenderableError, match="ask for a viewport"):
        picture_of(image, 1, cells, Rendering(), state)
    with pytest.raises(NotRenderableError, match="ask for a viewport"):
        FilmDrawing(image_with(side), Rendering(GIF), state).pixels()
    asked = Rendering(viewport=Viewport(100, 100))
    picture_of(image, 1, cells, asked, state)  # with what is kept between pictures
    tracemalloc.start()
    try:
        small = picture_of(image, 1, cells, asked, state)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert small.shape[:2] == (100, 100)
    assert (
        FilmDrawing(image_with(side), Rendering(GIF, viewport=Viewport(100, 100)), state).pixels() == 10_000
    )
    # The picture, its colours, the shutter, one copy: not sixteen times as many.
    assert peak < (10 if colours else 6) * side * side + (30 << 20) * colours


def image_with(side: int) -> Image:
    path, _ = image_of("CT_small.dcm")
    of = pydicom.dcmread(path)
    of.Rows = of.Columns = side
    return Image(Elements.of_header(encode(of, UID), UID))
