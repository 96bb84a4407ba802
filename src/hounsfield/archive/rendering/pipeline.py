"""One frame from stored cells to a picture of bytes: the pixel transformation sequence (PS3.4 N.2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hounsfield.archive.rendering.annotation import annotated
from hounsfield.archive.rendering.bands import in_bands
from hounsfield.archive.rendering.color import Palette, to_rgb
from hounsfield.archive.rendering.errors import NotRenderableError
from hounsfield.archive.rendering.film import Film, film_bytes_max, film_of
from hounsfield.archive.rendering.grey import WHOLE, GreyTransform, Word, data_range, grey
from hounsfield.archive.rendering.image import Image
from hounsfield.archive.rendering.lettering import BUILT_IN, Lettering
from hounsfield.archive.rendering.output import Convert, encoded, in_profile
from hounsfield.archive.rendering.overlays import Overlay
from hounsfield.archive.rendering.presentation import ImagePresentation
from hounsfield.archive.rendering.request import Rendering
from hounsfield.archive.rendering.shutter import shuttered
from hounsfield.archive.rendering.viewport import shown, size_of
from hounsfield.archive.rendering.voi import Range, Voi
from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = deferred("numpy")


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """One decoded frame: ``(rows, columns, samples)``, and what the decoder says its samples are.

    ``as_stored``: the words are those that the attributes speak of, compressed or not, with whatever stands
    above the High Bit and below the sample. Else they are the values.
    """

    array: NDArray[Any]
    photometric: str
    as_stored: bool


def floating_cells(image: Image, frame: bytes | bytearray | memoryview, *, little_endian: bool) -> Cells:
    """A frame of Float or Double Float Pixel Data (PS3.5 8.4). ``NotRenderableError``: of another length."""
    size = image.format.bits_allocated // 8
    if not image.floating or len(frame) != image.format.frame_bytes:
        raise NotRenderableError("a frame of another length than its rows and columns have")
    numbers = np.frombuffer(frame, f"{'<' if little_endian else '>'}f{size}").reshape(image.format.shape)
    return Cells(numbers.astype(f"f{size}", copy=False), image.photometric, as_stored=True)


def file_of(  # noqa: PLR0917
    image: Image,
    number: int,
    cells: Cells,
    asked: Rendering,
    state: ImagePresentation | None = None,
    foreign: Convert | None = None,
    lettering: Lettering = BUILT_IN,
) -> bytes:
    """The file that is asked for, of one frame. ``RenderingError``."""
    picture = picture_of(image, number, cells, asked, state, lettering=lettering)
    own = image.icc_profile if state is None or state.palette is None else state.icc_profile
    picture, profile = in_profile(picture, asked.icc, own, foreign)
    return encoded(picture, asked.media_type, asked.quality, profile)


class FilmDrawing:
    """Frames as a film, drawn one after the other, so that none is held longer than it is drawn.

    First :meth:`measure` those of which :meth:`is_measured` says so, then :meth:`draw` all, then
    :meth:`finish`; :meth:`close` in any case. ``RenderingError``.
    """

    def __init__(
        self,
        image: Image,
        asked: Rendering,
        state: ImagePresentation | None = None,
        lettering: Lettering = BUILT_IN,
    ) -> None:
        self._image, self._asked, self._state, self._lettering = image, asked, state, lettering
        self._range: Range | None = None
        self._film: Film | None = None

    def bytes_max(self, count: int) -> int:
        """What a film of so many pictures may hold while it is made, its file included."""
        return film_bytes_max(self._asked.media_type, count, self.pixels())

    def pixels(self) -> int:
        """Of one picture."""
        image, asked, state = self._image, self._asked, self._state
        size, aspect = (image.format.rows, image.format.columns), image.pixel_aspect
        if state is not None:
            size = state.size_of(*size, asked.viewport, aspect)
        elif asked.viewport is not None:
            size = size_of(*size, asked.viewport, aspect)
        return size[0] * size[1]

    def is_measured(self, number: int) -> bool:
        """Whether nothing says what to show of a frame: then it is the range of all of those together.

        A range for each would flicker.
        """
        image, state = self._image, self._state
        if not image.is_grey or self._asked.window is not None:
            return False
        return (image.voi(number) if state is None else state.voi) is None

    def measure(self, number: int, cells: Cells) -> None:
        image, state = self._image, self._state
        stored = _grey_values(image, _word(image, cells), cells.array[:, :, 0], state)
        modality = (state.modality if state is not None else None) or image.modality(number)
        one, all_ = data_range(stored, modality, image.padding), self._range
        self._range = one if all_ is None else Range(min(one.low, all_.low), max(one.high, all_.high))

    def draw(self, number: int, cells: Cells) -> None:
        """The next frame."""
        picture = picture_of(
            self._image, number, cells, self._asked, self._state, self._range, self._lettering
        )
        if self._film is None:
            self._film = film_of(self._asked.media_type, self._image.frame_seconds, self._asked.quality)
        self._film.add(picture)

    def finish(self) -> bytes:
        """The file."""
        if self._film is None:
            raise NotRenderableError("a film of no frames")
        return self._film.finish()

    def close(self) -> None:
        if self._film is not None:
            self._film.close()


def picture_of(  # noqa: PLR0917
    image: Image,
    number: int,
    cells: Cells,
    asked: Rendering,
    state: ImagePresentation | None = None,
    limits: Range | None = None,
    lettering: Lettering = BUILT_IN,
) -> NDArray[Any]:
    """Frame ``number`` (from 1) as bytes: grey of two dimensions or RGB of three.

    ``limits`` are shown when nothing else says what to show, instead of the frame's own range.
    """
    if image.is_grey:
        picture = _grey(image, number, cells, asked, state, limits)
        if state is not None and state.palette is not None:
            picture = state.palette.over(picture)
        elif state is None and image.supplemental is not None:
            picture = _coloured(picture, _word(image, cells).values(cells.array[:, :, 0]), image.supplemental)
    elif image.format.samples == 1:
        word, palette = _word(image, cells), image.palette
        picture = in_bands(lambda part: palette(word.values(part)), cells.array[:, :, 0])
    else:
        word, bits = _word(image, cells), min(image.format.bits_stored, 8 * cells.array.dtype.itemsize)
        picture = in_bands(lambda part: to_rgb(word.values(part), cells.photometric, bits), cells.array)
    if asked.overlays:
        picture = _overlaid(picture, _overlays(image, state), number, image, cells)
    if state is not None:
        picture = state.applied(picture, lettering, asked.viewport, image.pixel_aspect)
    else:
        picture = shuttered(picture, image.elements)
        if asked.viewport is not None:
            picture = shown(picture, asked.viewport, image.pixel_aspect)
    if asked.annotations:
        picture = annotated(picture, image.elements, asked.annotations, lettering)
    return picture


def _grey(  # noqa: PLR0917
    image: Image,
    number: int,
    cells: Cells,
    asked: Rendering,
    state: ImagePresentation | None,
    limits: Range | None,
) -> NDArray[Any]:
    stored = cells.array[:, :, 0]
    modality = image.modality(number)
    inverse, presentation = image.inverse, None
    if state is not None:
        modality = state.modality or modality
        inverse, presentation = state.inverse, state.presentation_lut
    voi: Voi | None = asked.window or (image.voi(number) if state is None else state.voi)
    word = _word(image, cells)
    if voi is None:
        voi = limits or data_range(_grey_values(image, word, stored, state), modality, image.padding)
    return grey(stored, GreyTransform(modality, voi, inverse, image.padding, presentation), word)


def _grey_values(
    image: Image, word: Word, stored: NDArray[Any], state: ImagePresentation | None
) -> NDArray[Any]:
    """The values that are shown grey: those that have a colour of their own measure nothing."""
    values = word.values(stored)
    palette = image.supplemental if state is None else None
    return values if palette is None else values[values < palette.first]


def _coloured(picture: NDArray[Any], values: NDArray[Any], palette: Palette) -> NDArray[Any]:
    """RGB: grey, and in colour the values from the palette's first on."""
    out = np.repeat(picture[:, :, np.newaxis], 3, axis=2)
    coloured = values >= palette.first
    out[coloured] = palette(values[coloured])
    return out


def _word(image: Image, cells: Cells) -> Word:
    """Where the values stand in words that are as stored."""
    return image.word if cells.as_stored else WHOLE


def _overlays(image: Image, state: ImagePresentation | None) -> tuple[Overlay, ...]:
    return image.overlays if state is None else state.overlays(image.overlays)


def _overlaid(
    picture: NDArray[Any], overlays: Iterable[Overlay], number: int, image: Image, cells: Cells
) -> NDArray[Any]:
    for overlay in overlays:
        mask = overlay.mask(number, picture.shape, _with_overlays(image, cells) if overlay.embedded else None)
        if mask is not None and mask.any():
            picture = picture.copy() if not picture.flags.writeable else picture
            picture[mask] = 255
    return picture


def _with_overlays(image: Image, cells: Cells) -> NDArray[Any] | None:
    """The words, where their unused bits can be overlays: not where all of those repeat the sign."""
    words = cells.array[:, :, 0]
    if not cells.as_stored or words.dtype.kind == "f":
        return None
    word = image.word
    if words.dtype.kind == "i" and word.spare > word.shift:
        kept = np.left_shift(words, word.spare - word.shift)
        if np.array_equal(np.right_shift(kept, word.spare - word.shift, out=kept), words):
            return None
    return words
