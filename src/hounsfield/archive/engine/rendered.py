"""Rendered frames: what is described, decoded and drawn is kept for a while, and made once for all who ask.

Drawing takes a few milliseconds of a processor: it is done on threads, few at a time, and an answer that was
given stays in memory until others need the room. What decides how a picture looks is its key: the stored
record, the corrections in force, the presentation state, and everything the request says.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar, TypeVarTuple, Unpack

import trio

from hounsfield.archive.engine.budget import ByteBudget
from hounsfield.archive.engine.decoding import DecodedFrame, frames_there
from hounsfield.archive.engine.errors import NotFoundError
from hounsfield.archive.engine.foreign_profiles import converted
from hounsfield.archive.engine.shared_work import SharedWork
from hounsfield.archive.engine.types import Header, Instance, Overlay
from hounsfield.archive.engine.video import VideoLimits, Videos
from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.errors import (
    BadParameterError,
    NoImageError,
    NotRenderableError,
    RenderingError,
)
from hounsfield.archive.rendering.image import Image
from hounsfield.archive.rendering.lettering import BUILT_IN, Lettering
from hounsfield.archive.rendering.pipeline import Cells, FilmDrawing, file_of, floating_cells
from hounsfield.archive.rendering.presentation import (
    SOP_CLASSES,
    ImagePresentation,
    PresentationState,
    Reference,
)
from hounsfield.archive.rendering.request import FILMS, Rendering
from hounsfield.codecs.errors import CodecError
from hounsfield.codecs.registry import lookup
from hounsfield.storage_backends.api import Buffer

VIDEO_FRAME_MAX: Final = 250
"""The latest frame that stands for a video: all before it have to be decoded, and ten seconds show enough."""
_FILM_TOO_LONG: Final = "too many frames for one film: ask for fewer, or for each as a picture"
_TOO_MANY_FILMS: Final = (
    "other films are being made and take the memory there is for them: ask again later, for a smaller"
    " viewport, or raise rendered.films_bytes_max"
)
_Ts = TypeVarTuple("_Ts")
_Result = TypeVar("_Result")


@dataclass(slots=True)
class DrawingFigures:
    """Files that were drawn: their bytes, and the CPU time it took without decoding; requests refused.

    Refused is what has no pixels, or pixels that are not shown, or a wish that the object cannot follow.
    """

    bytes_drawn: int = 0
    work_us: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class RenderedLimits:
    """What rendering may hold and take, for each worker.

    ``cache_bytes_max``: answers that were given; 64 MiB are a thousand 512² JPEGs.
    ``descriptions_bytes_max``: headers of objects that were rendered; an enhanced object's may have 20 MB.
    ``animation_frames_max``, ``animation_bytes_max``: of one film, decoded: what it may take to make it.
    ``at_once_max``: pictures that are drawn at the same time; each holds a frame a few times over.
    ``video_bytes_max``: of a stored video that is read to draw a frame of it, or to make it MP4; held twice.
    ``video_seconds_max``: for that; what is longer takes minutes to get to its last frame.
    ``films_bytes_max``: what all films hold together: while one is made, two bytes for each pixel of its
    pictures (noise takes one and a half in the file) and the frame that is being drawn; then its file, until
    it is sent and out of the cache. Twice ``animation_bytes_max``, so that the longest film can be drawn as
    large as it is.
    ``films_wait_s_max``: how long one waits for others to be done before its client is told to come back:
    a long film takes ten seconds or so, and a few may be before it.
    """

    cache_bytes_max: int = 64 << 20
    descriptions_bytes_max: int = 48 << 20
    animation_frames_max: int = 1024
    animation_bytes_max: int = 256 << 20
    at_once_max: int = 2
    video_bytes_max: int = 256 << 20
    video_seconds_max: float = 60.0
    films_bytes_max: int = 512 << 20
    films_wait_s_max: float = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """An image object that is to be shown, which of its frames, and as which presentation state wants it.

    ``chosen``: the frames that are asked for were named, so that no other may stand for one.
    """

    instance: Instance
    image: Image
    frames: Sequence[int]
    state: PresentationState | None = None
    state_key: object = None
    chosen: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """Differs whenever what is stored and decides how it looks does."""
        return (*_key_of(self.instance), self.state_key)


_Key = tuple[object, ...]
_Described = tuple[Elements, Image | None]


class Rendered:
    """Renders frames. Any number of tasks at once."""

    def __init__(
        self,
        *,
        find: Callable[[str, str, str], Awaitable[list[Instance]]],
        read: Callable[[Callable[[], _Described]], Awaitable[_Described]],
        header: Callable[[Instance], Header],
        header_nowait: Callable[[Instance], Header | None],
        decoded: Callable[[Instance, int], Awaitable[DecodedFrame]],
        frame: Callable[[Instance, int], Awaitable[Buffer]],
        video: Videos,
        limits: RenderedLimits | None = None,
        lettering: Lettering = BUILT_IN,
    ) -> None:
        self.limits = limits or RenderedLimits()
        self._find, self._read, self._header, self._decoded = find, read, header, decoded
        self._header_nowait = header_nowait
        self._frame = frame
        self.video = video
        self._lettering = lettering
        self._video_limits = VideoLimits(
            stream_bytes_max=self.limits.video_bytes_max, wall_s_max=self.limits.video_seconds_max
        )
        self._threads: trio.CapacityLimiter | None = None
        self.films = ByteBudget(self.limits.films_bytes_max, self.limits.films_wait_s_max, _TOO_MANY_FILMS)
        self._files: SharedWork[_Key, Buffer] = SharedWork(self.limits.cache_bytes_max, len)
        self._described: SharedWork[_Key, _Described] = SharedWork(
            self.limits.descriptions_bytes_max, lambda one: one[0].bytes_held
        )
        self.figures = self._files.figures
        self.drawing = DrawingFigures()

    # ------------------------------------------------------------ what is shown

    async def subjects(self, instance: Instance) -> list[Subject]:
        """What is shown of an object: itself, or the images of a presentation state.

        ``NoImageError`` or ``NotRenderableError`` when that is nothing, ``NotFoundError`` when the images are
        not here.
        """
        try:
            return await self._subjects(instance)
        except (RenderingError, CodecError):
            self.drawing.refused += 1
            raise

    async def _subjects(self, instance: Instance) -> list[Subject]:
        if instance.row.sop_class_uid not in SOP_CLASSES:
            image = await self._image(instance)
            return [Subject(instance, image, _frames_of(instance, image))]
        state = await self._state(instance)
        found: list[Subject] = []
        for one in state.references:
            try:
                (target,) = await self._find(instance.study_uid, one.series_uid, one.sop_uid)
            except NotFoundError:
                continue
            found.append(await self._shown_by(state, _key_of(instance), one, target))
        if not found:
            raise NotFoundError("the images that this presentation state is for are not in this archive")
        return found

    async def subject_under(self, instance: Instance, presentation: Instance) -> Subject:
        """An image as a presentation state wants it. ``BadParameterError`` when it is not for this image."""
        try:
            if presentation.row.sop_class_uid not in SOP_CLASSES:
                raise BadParameterError("that is no presentation state that is followed here")
            state = await self._state(presentation)
            for one in state.references:
                if one.sop_uid == instance.row.sop_uid:
                    return await self._shown_by(state, _key_of(presentation), one, instance)
            raise BadParameterError("that presentation state is not for this image")
        except (RenderingError, CodecError):
            self.drawing.refused += 1
            raise

    async def _state(self, presentation: Instance) -> PresentationState:
        elements, _ = await self._describe(presentation, with_image=False)
        return PresentationState(elements)

    async def _shown_by(
        self, state: PresentationState, key: object, reference: Reference, target: Instance
    ) -> Subject:
        image = await self._image(target)
        frames = tuple(n for n in reference.frames if 1 <= n <= image.frames)
        return Subject(target, image, frames or _frames_of(target, image), state, key)

    async def _image(self, instance: Instance) -> Image:
        _, image = await self._describe(instance, with_image=True)
        if image is None:
            raise NoImageError("this instance has no pixels to show")
        return image

    async def _describe(self, instance: Instance, *, with_image: bool) -> _Described:
        def described(header: Header) -> _Described:
            elements = Elements.of_header(header.head, header.transfer_syntax_uid)
            if not with_image:
                return elements, None
            # Of a video nobody knows how many there are but who plays it.
            video = lookup(instance.row.transfer_syntax_uid).is_video
            return elements, Image(elements, None if video else frames_there(instance, header))

        async def made() -> _Described:
            # What is deflated may be far longer than it looks.
            if not lookup(instance.row.transfer_syntax_uid).deflated:
                header = self._header_nowait(instance)
                if header is not None:
                    return described(header)
            return await self._read(lambda: described(self._header(instance)))

        return await self._described.get((*_key_of(instance), with_image), made)

    # ------------------------------------------------------------ pictures

    async def file(self, subject: Subject, numbers: Sequence[int], asked: Rendering) -> Buffer:
        """The file that is asked for, of these frames: one, or several as a film.

        A film counts against ``films_bytes_max`` as long as anybody holds what is given here.
        Raises rendering's errors, codecs' errors, ``NotFoundError`` for a frame that there is not.
        """
        if asked.media_type in FILMS and len(numbers) > self.limits.animation_frames_max:
            raise NotRenderableError(_FILM_TOO_LONG)
        if not all(1 <= number <= subject.image.frames for number in numbers):
            raise NotFoundError(
                f"this instance has {subject.image.frames} frames; there is none of that number"
            )
        video = lookup(subject.instance.row.transfer_syntax_uid).is_video
        key = (subject.key, tuple(numbers), asked, subject.chosen and video)
        draw = self._draw_of_video if video and not subject.chosen else self._draw
        try:
            return await self._files.get(key, lambda: draw(subject, numbers, asked))
        except (RenderingError, CodecError):
            self.drawing.refused += 1
            raise

    async def _draw_of_video(self, subject: Subject, numbers: Sequence[int], asked: Rendering) -> Buffer:
        """The frame that stands for a video, else its first: nobody has counted them."""
        try:
            return await self._draw(subject, numbers, asked)
        except NotRenderableError:
            if tuple(numbers) == (1,):
                raise
            return await self._draw(subject, (1,), asked)

    async def _draw(self, subject: Subject, numbers: Sequence[int], asked: Rendering) -> Buffer:
        data: Buffer
        if asked.media_type in FILMS:
            data = await self._film(subject, numbers, asked)
        else:
            (number,) = numbers
            cells = await self._cells(subject, number)

            def draw() -> bytes:
                state = _state_of(subject, number)
                return file_of(subject.image, number, cells, asked, state, converted, self._lettering)

            data = await self._on_thread(draw)
        self.drawing.bytes_drawn += len(data)
        return data

    async def _film(self, subject: Subject, numbers: Sequence[int], asked: Rendering) -> Buffer:
        """Frame by frame: one stored frame is held at a time, and what is in the film already."""
        image, limits = subject.image, self.limits
        frame_bytes = image.format.rows * image.format.columns * image.format.samples
        frame_bytes *= max(image.format.bits_allocated // 8, 1)
        count = len(numbers)
        if count > 1 and count * frame_bytes > limits.animation_bytes_max:
            raise NotRenderableError(_FILM_TOO_LONG)
        film = await self._on_thread(
            lambda: FilmDrawing(image, asked, _state_of(subject, numbers[0]), self._lettering)
        )
        drawn_bytes = film.bytes_max(count)
        if count > 1 and drawn_bytes > limits.films_bytes_max:
            raise NotRenderableError(_FILM_TOO_LONG)

        async def made() -> bytes:
            try:
                for number in await self._on_thread(lambda: list(filter(film.is_measured, numbers))):
                    await self._on_thread(film.measure, number, await self._cells(subject, number))
                for number in numbers:
                    await self._on_thread(film.draw, number, await self._cells(subject, number))
                return await self._on_thread(film.finish)
            finally:
                film.close()

        return await self._within_budget(drawn_bytes + frame_bytes, made)

    async def _within_budget(self, bytes_max: int, make: Callable[[], Awaitable[bytes]]) -> Buffer:
        """What ``make`` gives, when there is room; that is given back when nobody holds it any more."""
        held = min(bytes_max, self.limits.films_bytes_max)
        while not self.films.take_nowait(held):
            # Films that are only kept for who may ask again make room.
            if not self._files.forget_oldest(lambda value: isinstance(value, memoryview)):
                await self.films.take(held)
                break
        try:
            data = await make()
        except BaseException:
            self.films.give_back(held)
            raise
        counted = min(held, len(data))
        self.films.give_back(held - counted)
        return _watched(data, partial(self.films.give_back, counted))

    async def _on_thread(self, work: Callable[[Unpack[_Ts]], _Result], *args: *_Ts) -> _Result:
        """Done on a thread, when there is one, and its time counted."""

        def timed() -> tuple[_Result, float]:
            began = time.thread_time()
            return work(*args), time.thread_time() - began

        done, seconds = await trio.to_thread.run_sync(timed, limiter=self._limiter())
        self.drawing.work_us += round(seconds * 1e6)
        return done

    async def film_of_video(self, subject: Subject) -> Buffer:
        """A stored video as MP4, made anew. ``RenderingError`` when it cannot be, or would be too long."""
        limits, rate = self.limits, 1 / subject.image.frame_seconds

        async def as_mp4() -> bytes:
            frames_max = limits.animation_frames_max
            return await self.video.as_mp4(subject.instance, frames_max, rate, self._video_limits)

        async def made() -> Buffer:
            length = (await self.video.stream(subject.instance)).length
            data = await self._within_budget(2 * length, as_mp4)  # the stream, and about as much again
            self.drawing.bytes_drawn += len(data)
            return data

        try:
            return await self._files.get((subject.key, "video"), made)
        except RenderingError:
            self.drawing.refused += 1
            raise

    async def _cells(self, subject: Subject, number: int) -> Cells:
        syntax = lookup(subject.instance.row.transfer_syntax_uid)
        if subject.image.floating and not syntax.encapsulated:
            frame = await self._frame(subject.instance, number)
            return floating_cells(subject.image, frame, little_endian=syntax.little_endian)
        if syntax.is_video:
            picture = await self.video.frame(subject.instance, number, self._video_limits)
            return Cells(picture, "RGB", as_stored=False)
        decoded = await self._decoded(subject.instance, number)
        return Cells(decoded.pixels, decoded.photometric, as_stored=True)

    def _limiter(self) -> trio.CapacityLimiter:
        if self._threads is None:
            self._threads = trio.CapacityLimiter(self.limits.at_once_max)
        return self._threads


def _watched(data: bytes, done: Callable[[], None]) -> memoryview:
    """The same bytes; when nobody holds them any more, on whatever thread, ``done`` is called on this one."""
    watched = memoryview(data)
    token, loop = trio.lowlevel.current_trio_token(), threading.get_ident()

    def gone() -> None:
        if threading.get_ident() == loop:
            done()
            return
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(done)

    weakref.finalize(watched, gone).atexit = False
    return watched


def _state_of(subject: Subject, number: int) -> ImagePresentation | None:
    if subject.state is None:
        return None
    return subject.state.of_image(subject.instance.row.sop_uid, number)


def _frames_of(instance: Instance, image: Image) -> Sequence[int]:
    """Those that are shown when none is named: all, but of a video one."""
    if lookup(instance.row.transfer_syntax_uid).is_video:
        return (min(image.representative_frame, VIDEO_FRAME_MAX),)
    return range(1, image.frames + 1)


def _key_of(instance: Instance) -> _Key:
    overlay = instance.overlay
    stamp = overlay.stamp if isinstance(overlay, Overlay) else overlay
    return instance.row.location.record_id, stamp
