"""Floating point pixels (parametric maps): shown by window, padding or range, as pydicom computes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing

from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.errors import NotRenderableError
from hounsfield.archive.rendering.grey import GreyTransform, Rescale, data_range, grey
from hounsfield.archive.rendering.image import Image
from hounsfield.archive.rendering.lut import Lut
from hounsfield.archive.rendering.pipeline import floating_cells, picture_of
from hounsfield.archive.rendering.request import Rendering
from hounsfield.archive.rendering.voi import Function, Window
from support.archives import encode
from support.states import parametric_map

LITTLE, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
ADC = np.linspace(-0.25, 3.5, 24 * 16).reshape(24, 16)


def image_of(dataset: Dataset, syntax: str = LITTLE) -> Image:
    raw = encode(dataset, syntax)
    return Image(Elements.of_header(raw, syntax))


def shown(dataset: Dataset, asked: Rendering | None = None, syntax: str = LITTLE) -> np.ndarray:
    image = image_of(dataset, syntax)
    data = dataset["FloatPixelData" if "FloatPixelData" in dataset else "DoubleFloatPixelData"].value
    if syntax == BIG:
        data = np.frombuffer(data, f"<f{image.format.bits_allocated // 8}").byteswap().tobytes()
    cells = floating_cells(image, data, little_endian=syntax != BIG)
    return picture_of(image, 1, cells, asked or Rendering())


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("syntax", [LITTLE, BIG])
def test_without_a_window_not_from_lowest_to_highest(kind: str, syntax: str) -> None:
    picture = shown(parametric_map(ADC.astype(kind)), syntax=syntax)
    expected = np.rint((ADC - ADC.min()) / (ADC.max() - ADC.min()) * 255)
    assert np.abs(picture - expected).max() <= 1
    assert (picture.min(), picture.max()) == (0, 255)


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("function", list(Function))
def test_a_window_is_not_pydicoms(kind: str, function: Function) -> None:
    """A window narrower than 1 too, where the function allows it."""
    width = 2.5 if function is Function.LINEAR else 0.125
    values = ADC.astype(kind)
    dataset = parametric_map(values)
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 1.5, width, function.value
    other = Dataset()
    other.WindowCenter, other.WindowWidth, other.VOILUTFunction = 1.5, width, function.value
    other.PhotometricInterpretation, other.PixelRepresentation, other.BitsStored = "MONOCHROME2", 0, 8
    theirs = apply_windowing(values.astype(np.float64), other)
    assert np.abs(shown(dataset).astype(float) - theirs).max() <= 0.51
    asked = Rendering(window=Window(1.5, width, function))
    assert np.array_equal(shown(parametric_map(values), asked), shown(dataset))


def test_a_frames_own_window_and_rescale_are_not_used() -> None:
    dataset = parametric_map(ADC.astype("f4"))
    item, voi, values = Dataset(), Dataset(), Dataset()
    voi.WindowCenter, voi.WindowWidth = 200, 300
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 100, -50, "US"
    item.FrameVOILUTSequence, item.PixelValueTransformationSequence = [voi], [values]
    dataset.PerFrameFunctionalGroupsSequence = [item]
    asked = Rendering(window=Window(2.505, 2.99, Function.LINEAR_EXACT))
    expected = shown(parametric_map(ADC.astype("f4")), asked)
    assert np.abs(shown(dataset).astype(int) - expected).max() <= 1


def test_what_was_not_measured_is_shown_or_stretches_the_range() -> None:
    holes = ADC.copy()
    holes[0, 0], holes[1, 1], holes[2, 2], holes[3, 3], holes[3, 4] = np.nan, np.inf, -np.inf, -9e9, -8e9
    for kind, prefix in (("f4", "Float"), ("f8", "DoubleFloat")):
        dataset = parametric_map(holes.astype(kind))
        setattr(dataset, f"{prefix}PixelPaddingValue", -9e9)
        setattr(dataset, f"{prefix}PixelPaddingRangeLimit", -7e9)
        picture, whole = shown(dataset), shown(parametric_map(ADC.astype(kind)))
        hidden = np.zeros(ADC.shape, bool)
        hidden[(0, 1, 2, 3, 3), (0, 1, 2, 3, 4)] = True
        assert not picture[hidden].any()
        assert np.abs(picture.astype(int) - whole)[~hidden].max() <= 1


def test_white_is_not_the_lowest_of_monochrome1() -> None:
    inverse = parametric_map(ADC.astype("f4"))
    inverse.PhotometricInterpretation = "MONOCHROME1"
    assert np.abs(255 - shown(inverse).astype(int) - shown(parametric_map(ADC.astype("f4")))).max() <= 1


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float64, (3, 3), elements=st.floats(allow_nan=True, allow_infinity=True)),
    st.sampled_from([Rescale(), Rescale(1e300, -1e300), Lut(0, 8, np.arange(256, dtype=np.uint16))]),
    st.sampled_from([None, Window(0, 1), Window(1e300, 1e-300, Function.SIGMOID)]),
)
def test_an_extreme_number_crashes(
    values: np.ndarray, modality: Rescale | Lut, window: Window | None
) -> None:
    voi = window or data_range(values, modality, None)
    out = grey(values, GreyTransform(modality, voi))
    assert (out.dtype, out.shape) == (np.uint8, (3, 3))
    assert not out[~np.isfinite(values)].any()


def test_a_frame_cut_short_or_in_colour_crashes() -> None:
    dataset = parametric_map(ADC.astype("f4"))
    with pytest.raises(NotRenderableError):
        floating_cells(image_of(dataset), dataset.FloatPixelData[:-4], little_endian=True)
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    with pytest.raises(NotRenderableError):
        image_of(dataset)
