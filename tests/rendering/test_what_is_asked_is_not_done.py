"""Parameters, viewports, annotations, files and their profiles."""

from __future__ import annotations

import contextlib
import io

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage
from PIL import ImageCms

from hounsfield.archive.engine.foreign_profiles import ProfileLimits, converted
from hounsfield.archive.rendering.annotation import annotated
from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.errors import BadParameterError, NotRenderableError, RenderingError
from hounsfield.archive.rendering.film import Film, Gif, Mp4
from hounsfield.archive.rendering.lettering import plain
from hounsfield.archive.rendering.output import encoded, in_profile, profile_of
from hounsfield.archive.rendering.request import JPEG, PNG, Rendering, Viewport, parse_rendering
from hounsfield.archive.rendering.viewport import cut, shown
from hounsfield.archive.rendering.voi import Function, Window
from support.archives import encode

GRADIENT = np.add.outer(np.arange(100) * 2, np.arange(60)).astype(np.uint8)


def asked(**parameters: str) -> Rendering:
    return parse_rendering(parameters.items(), JPEG)[0]


def test_what_is_asked_is_misread() -> None:
    rendering = asked(
        window="40,400,linear-exact", viewport="512,256,1,2.5,-30,-40", quality="75", iccprofile="srgb",
        annotation="patient,technique",
    )  # fmt: skip
    assert rendering.window == Window(40, 400, Function.LINEAR_EXACT)
    assert rendering.viewport == Viewport(512, 256, 1, 2.5, -30, -40)
    assert (rendering.quality, rendering.icc) == (75, "srgb")
    assert rendering.annotations == {"patient", "technique"}
    assert asked(viewport="512,512,,,100,").viewport == Viewport(512, 512, 0, 0, 100, None)
    assert asked(window="40,400").window == Window(40, 400)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("window", "40"), ("window", "40,0,linear"), ("window", "40,0.5,linear"), ("window", "40,400,cubic"),
        ("window", "a,b,linear"), ("window", "nan,400,linear"), ("window", "1e999,400,linear"),
        ("viewport", "0,5"), ("viewport", "5"), ("viewport", "9000,5"), ("viewport", "5,5,1,1"),
        ("viewport", "5,5,-1,0,3,3"), ("viewport", "5,5,0,0,0,3"), ("viewport", "1.5,5"), ("viewport", ",5"),
        ("quality", "0"), ("quality", "101"), ("quality", "x"), ("iccprofile", "cmyk"),
    ],
)  # fmt: skip
def test_nonsense_is_rendered(name: str, value: str) -> None:
    with pytest.raises(BadParameterError):
        asked(**{name: value})


@given(st.sampled_from(["window", "viewport", "quality", "iccprofile", "annotation"]), st.text(max_size=30))
def test_a_parameter_crashes(name: str, value: str) -> None:
    with contextlib.suppress(RenderingError):
        parse_rendering([(name, value)], JPEG)


def test_an_unknown_annotation_is_passed_over_in_silence() -> None:
    rendering, ignored = parse_rendering([("annotation", "patient,horoscope")], JPEG)
    assert rendering.annotations == {"patient"}
    assert len(ignored) == 1


def test_a_thumbnail_shows_who_it_is() -> None:
    rendering, _ = parse_rendering([("annotation", "patient"), ("window", "1,2")], JPEG, thumbnail=True)
    assert rendering.annotations == frozenset()
    assert not rendering.overlays
    assert rendering.window is None


def test_the_wrong_part_is_cut() -> None:
    assert np.array_equal(cut(GRADIENT, Viewport(None, None, 10, 20, 30, 40)), GRADIENT[20:60, 10:40])
    assert np.array_equal(cut(GRADIENT, Viewport(None, None, 0, 0, -60, -100)), GRADIENT[::-1, ::-1])
    assert np.array_equal(cut(GRADIENT, Viewport(None, None, 50, 90, 500, 500)), GRADIENT[90:, 50:])
    assert np.array_equal(
        cut(GRADIENT, Viewport(None, None, 50, 90, -500, -500)), GRADIENT[90:, 50:][::-1, ::-1]
    )
    for outside in (Viewport(10, 10, 60, 0), Viewport(10, 10, 0, 100), Viewport(10, 10, 1e9, 1e9, 5, 5)):
        with pytest.raises(BadParameterError):
            cut(GRADIENT, outside)


def test_a_region_that_reaches_beyond_the_image_is_distorted() -> None:
    """What is inside is shown, scaled to fit as a region of that size would be."""
    beyond, inside = (Viewport(80, 80, 40, 60, *size) for size in ((500, 90), (20, 40)))
    assert np.array_equal(shown(GRADIENT, beyond), shown(GRADIENT, inside))
    assert shown(GRADIENT, beyond).shape == (80, 40)


@pytest.mark.parametrize(
    ("viewport", "aspect", "shape"),
    [
        (Viewport(30, 30), 1.0, (30, 18)), (Viewport(120, 1000), 1.0, (200, 120)),
        (Viewport(None, 50), 1.0, (50, 30)), (Viewport(30, None), 1.0, (50, 30)),
        (Viewport(100, 100), 2.0, (100, 30)), (Viewport(1, 1), 1.0, (1, 1)),
        (Viewport(8, 8, 0, 0, 60, 1), 1.0, (1, 8)), (Viewport(60, 100), 1.0, (100, 60)),
    ],
)  # fmt: skip
def test_the_size_is_wrong(viewport: Viewport, aspect: float, shape: tuple[int, int]) -> None:
    picture = shown(GRADIENT, viewport, aspect)
    assert picture.shape == shape
    assert abs(float(picture.mean()) - float(cut(GRADIENT, viewport).mean())) < 3


def test_a_sliver_grows_without_bound() -> None:
    with pytest.raises(BadParameterError):
        shown(GRADIENT, Viewport(8000, None, 0, 0, 1, 100))


@pytest.mark.parametrize("picture", [GRADIENT, np.stack([GRADIENT, GRADIENT // 2, 255 - GRADIENT], axis=-1)])
def test_files_are_not_read_by_others(picture: np.ndarray) -> None:
    png = encoded(picture, PNG, 90)
    assert np.array_equal(np.asarray(PilImage.open(io.BytesIO(png))), picture)
    jpeg = encoded(picture, JPEG, 95)
    read = np.asarray(PilImage.open(io.BytesIO(jpeg))).astype(int)
    assert np.abs(read - picture).max() <= 12
    assert len(encoded(picture, JPEG, 10)) < len(jpeg)


@pytest.mark.parametrize("media_type", [JPEG, PNG])
@pytest.mark.parametrize("icc", ["yes", "srgb", "adobergb", "rommrgb"])
def test_a_profile_is_not_in_the_file(media_type: str, icc: str) -> None:
    picture = np.full((8, 8, 3), (200, 50, 30), np.uint8)
    here, profile = in_profile(picture, icc, b"")
    image = PilImage.open(io.BytesIO(encoded(here, media_type, 100, profile)))
    assert image.info["icc_profile"] == profile
    # Back in sRGB it is the same colour.
    back = ImageCms.profileToProfile(
        PilImage.fromarray(here),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
    )
    assert np.abs(np.asarray(back).astype(int) - picture).max() <= 4
    if icc in ("adobergb", "rommrgb"):
        assert not np.array_equal(here, picture)


def test_a_profile_of_its_own_is_replaced() -> None:
    own = profile_of("adobergb")
    picture = np.full((4, 4, 3), (200, 50, 30), np.uint8)
    same, profile = in_profile(picture, "yes", own)
    assert (profile, same.tolist()) == (own, picture.tolist())
    here, profile = in_profile(picture, "srgb", own, converted)
    assert profile == profile_of("srgb")
    assert not np.array_equal(here, picture)
    in_file, srgb = ImageCms.ImageCmsProfile(io.BytesIO(own)), ImageCms.createProfile("sRGB")
    theirs = ImageCms.profileToProfile(PilImage.fromarray(picture), in_file, srgb)
    assert np.abs(here.astype(int) - np.asarray(theirs)).max() <= 1
    assert in_profile(picture, "no", own)[1] == b""


def test_a_strange_profile_is_read_in_this_process() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(NotRenderableError):
        in_profile(picture, "srgb", b"no profile")
    for own in (b"no profile", profile_of("adobergb")[:300], bytes(17 << 20)):
        with pytest.raises(NotRenderableError):
            converted(picture, own, profile_of("srgb"))
    with pytest.raises(NotRenderableError):
        converted(picture, profile_of("adobergb"), profile_of("srgb"), ProfileLimits(wall_s_max=0.01))


def test_a_long_profile_is_cut() -> None:
    profile = profile_of("srgb") + bytes(150_000)
    data = encoded(GRADIENT, JPEG, 90, profile)
    assert PilImage.open(io.BytesIO(data)).info["icc_profile"] == profile
    assert np.array_equal(
        imagecodecs.jpeg8_decode(data), imagecodecs.jpeg8_decode(encoded(GRADIENT, JPEG, 90))
    )


def made(film: Film, pictures: list[np.ndarray]) -> bytes:
    for picture in pictures:
        film.add(picture)
    data = film.finish()
    film.close()
    return data


def test_a_film_loses_frames_or_time() -> None:
    frames = [np.full((20, 30), value, np.uint8) for value in (0, 100, 200)]
    film = PilImage.open(io.BytesIO(made(Gif(0.25), frames)))
    assert (film.n_frames, film.info["duration"], film.info["loop"]) == (3, 250, 0)
    for n, value in enumerate((0, 100, 200)):
        film.seek(n)
        assert np.abs(np.asarray(film.convert("L")).astype(int) - value).max() <= 1


@pytest.mark.peer("av")
@pytest.mark.parametrize("depth", [(), (3,)])
def test_an_mp4_is_not_played(depth: tuple[int, ...]) -> None:
    import av

    frames = [np.full((21, 33, *depth), value, np.uint8) for value in (10, 120, 230)]
    frames[1][:10] = 60
    data = made(Mp4(0.04, 100), frames)
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(io.BytesIO(data)) as film:
        (stream,) = film.streams
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 34, 22)
        assert stream.average_rate == 25
        read = [frame.to_ndarray(format="gray")[:21, :33] for frame in film.decode(stream)]
    assert len(read) == 3
    for one, frame in zip(read, frames, strict=True):
        shown = frame if frame.ndim == 2 else frame[..., 0]
        assert np.abs(one.astype(int) - shown)[2:8].mean() < 4
        assert np.abs(one.astype(int) - shown)[13:].mean() < 4
    assert len(made(Mp4(0.04, 1), frames)) < len(data)


def test_a_name_is_burnt_in_unasked_or_not_when_asked() -> None:
    dataset = pydicom.Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Müster^Ürika=山田^太郎", "1", "CT"
    uid = "1.2.840.10008.1.2.1"
    found = Elements.of_header(encode(dataset, uid), uid)
    black = np.zeros((300, 300), np.uint8)
    top = annotated(black, found, frozenset({"patient"}))
    assert (top[:150] > 0).any()
    assert not (top[150:] > 0).any()
    bottom = annotated(black, found, frozenset({"technique"}))
    assert (bottom[150:] > 0).any()
    assert not (bottom[:150] > 0).any()
    colour = annotated(np.zeros((300, 300, 3), np.uint8), found, frozenset({"patient", "technique"}))
    assert colour.shape == (300, 300, 3)
    assert (colour.max(axis=-1) > 0).any()


def test_a_name_is_spelt_with_boxes() -> None:
    assert plain("Łukasz Šťastný-Müller, Weiß") == "Lukasz Stastny-Muller, Weiss"
    assert plain("山田\t太郎") == "????"
