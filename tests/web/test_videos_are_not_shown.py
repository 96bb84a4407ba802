"""Stored videos as rendered resources: given as they are, made MP4, and single frames of them drawn."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest
import trio
from PIL import Image

from hounsfield.archive.engine.rendered import RenderedLimits
from hounsfield.archive.engine.video import VideoLimits
from hounsfield.codecs import video_process
from hounsfield.codecs.video_process import PICTURE, demuxer_of
from support.archives import encode, store
from support.states import presentation_state
from support.videos import (
    AVC,
    COLUMNS,
    HEVC,
    MPEG2,
    ROWS,
    grey_of,
    uneven_greys_of,
    uneven_video,
    video,
    video_object,
)

pytestmark = pytest.mark.peer("av")

FRAMES = 75
PNG = {"accept": "image/png"}
PLAYLIST = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
#: Encoder and muxer of FFmpeg, transfer syntax, its demuxer.
KINDS = [
    ("libx264", "mp4", AVC, "mov"),
    ("libx264", "mpegts", AVC, "mpegts"),
    ("libx264", "h264", AVC, "h264"),
    ("libx265", "mp4", HEVC, "mov"),
    ("libx265", "hevc", HEVC, "hevc"),
    ("mpeg2video", "vob", MPEG2, "mpeg"),
    ("mpeg2video", "mpeg2video", MPEG2, "mpegvideo"),
]


@cache
def stream_of(codec: str, container: str) -> bytes:
    return video(codec, container, FRAMES)


async def put(archive, stream: bytes, syntax: str, **how: int) -> str:
    result = await store(archive.engine, encode(video_object(stream, FRAMES, **how), syntax), syntax)
    url = f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
    return f"{url}/instances/{result.sop_instance_uid}"


def grey(answer) -> float:
    """The mean of the right half of a picture."""
    assert answer.status_code == 200, answer.text
    picture = np.asarray(Image.open(io.BytesIO(answer.content)).convert("L"))
    return float(picture[:, picture.shape[1] // 2 + 4 :].mean())


def film(data: bytes) -> list[float]:
    """The same of every frame of a video file."""
    import av

    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    return [float(frame[:, frame.shape[1] // 2 + 4 :].mean()) for frame in frames]


@pytest.mark.parametrize(("codec", "container", "syntax", "demuxer"), KINDS)
async def test_another_frame_is_drawn(archive, codec: str, container: str, syntax: str, demuxer: str) -> None:
    """One that is coded out of turn, one behind many key frames, the last; none past it."""
    stream = stream_of(codec, container)
    assert demuxer_of(stream[:400], "video/mp4" if syntax == AVC else {
        HEVC: "video/H265", MPEG2: "video/mpeg"}[syntax]) == demuxer  # fmt: skip
    url = await put(archive, stream, syntax)
    async with archive.client() as client:
        for number in (2, 71, FRAMES):
            drawn = grey(await client.get(f"{url}/frames/{number}/rendered", headers=PNG))
            assert abs(drawn - grey_of(number)) <= 1, number
        answer = await client.get(f"{url}/frames/{FRAMES + 1}/rendered", headers=PNG)
        assert answer.status_code == 404
        whole = await client.get(f"{url}/rendered", headers={"accept": "image/jpeg"})
        assert abs(grey(whole) - grey_of((FRAMES + 1) // 2)) <= 1
        small = await client.get(f"{url.partition('/instances')[0]}/thumbnail?viewport=32,32")
        assert Image.open(io.BytesIO(small.content)).size == (32, 32 * ROWS // COLUMNS)


@pytest.mark.parametrize(
    ("times", "cut"),
    [
        ([4 * k for k in range(160)], 0),
        ([2 * k if k < 80 else 160 + 4 * (k - 80) for k in range(160)], 0),
        ([4 * k + (40 if k >= 80 else 0) for k in range(160)], 0),
        ([k + k * k // 20 for k in range(160)], 0),
        ([4 * k for k in range(160)], 7),
    ],
    ids=["even", "slower", "gap", "ever slower", "beginning cut away"],
)
def test_a_rate_gives_another_frame(times: list[int], cut: int) -> None:
    """A frame's number is its place in the order in which they are shown, whatever time that is at."""
    import av

    stream = uneven_video(times, cut=cut)
    last = len(times) - cut
    for number in (1, 2, 50, 64, 65, 79, 80, 81, 82, 90, 96, 120, last):
        data = video_process.frame(av, stream, "mov", number)
        picture = np.frombuffer(data, np.uint8, offset=PICTURE.size).reshape(ROWS, COLUMNS, 3)
        halves = picture[:, 4 : COLUMNS // 2 - 4].mean(), picture[:, COLUMNS // 2 + 4 :].mean()
        assert np.abs(np.subtract(halves, uneven_greys_of(number))).max() < 1.9, number
    with pytest.raises(LookupError):
        video_process.frame(av, stream, "mov", last + 1)


def test_a_late_frame_decodes_all_before_it(monkeypatch) -> None:
    import av

    stream = uneven_video([k + k * k // 20 for k in range(160)])
    shown = []
    found = video_process._shown_at

    class Counting:
        def __init__(self, container) -> None:
            self.seek, self._decode = container.seek, container.decode

        def decode(self, stream):
            for one in self._decode(stream):
                shown.append(one.pts)
                yield one

    monkeypatch.setattr(video_process, "_shown_at", lambda one, *rest: found(Counting(one), *rest))
    video_process.frame(av, stream, "mov", 150)
    assert 1 <= len(shown) <= 12 + 4


@pytest.mark.parametrize(("codec", "container", "syntax", "demuxer"), KINDS)
async def test_it_plays_otherwise(archive, codec: str, container: str, syntax: str, demuxer: str) -> None:
    """As MP4 every frame is there; what is in MP4 is given byte for byte."""
    stream = stream_of(codec, container)
    url = await put(archive, stream, syntax)
    async with archive.client() as client:
        played = await client.get(f"{url}/rendered", headers={"accept": "video/mp4"})
        again = await client.get(
            f"{url}/rendered", headers={"accept": "video/mp4", "if-none-match": played.headers["etag"]}
        )
    assert (played.status_code, played.headers["content-type"]) == (200, "video/mp4")
    assert (again.status_code, again.content) == (304, b"")
    if demuxer == "mov":
        assert played.content[: len(stream)] == stream
    found = film(played.content)
    assert len(found) == FRAMES
    assert max(abs(level - grey_of(n)) for n, level in enumerate(found, start=1)) <= 1.5


@pytest.mark.parametrize("fragments", [1, 3])
async def test_what_is_stored_is_not_given(archive, fragments: int) -> None:
    """Whole, in part, by a range and as a study's only object; the type that browsers' Accept means."""
    stream = stream_of("libx264", "mp4")
    stream += bytes(len(stream) % 2)
    url = await put(archive, stream, AVC, fragments=fragments)
    study = url.partition("/series")[0]
    async with archive.client() as client:
        browser = "text/html,application/xhtml+xml,image/avif,image/webp,*/*;q=0.8"
        for accepted in ("*/*", "video/*", browser):
            answer = await client.get(f"{url}/rendered", headers={"accept": accepted})
            assert (answer.headers["content-type"], answer.content) == ("video/mp4", stream)
        part = await client.get(f"{url}/rendered?accept=video/mp4", headers={"range": "bytes=1000-1999"})
        assert (part.status_code, part.content) == (206, stream[1000:2000])
        only = await client.get(f"{study}/rendered", headers={"accept": "video/mp4"})
        assert only.content == stream
        several = await client.get(
            f"{url}/rendered", headers={"accept": 'multipart/related; type="video/mp4"'}
        )
        assert several.headers["content-type"].startswith('multipart/related; type="video/mp4"')
        assert stream in several.content
        assert int(several.headers["content-length"]) == len(several.content)


async def test_a_type_that_is_not_its_own_is_given(archive) -> None:
    old = await put(archive, stream_of("mpeg2video", "vob"), MPEG2)
    new = await put(archive, stream_of("libx265", "hevc"), HEVC)
    async with archive.client() as client:
        mpeg = await client.get(f"{old}/rendered", headers={"accept": "video/mpeg, video/mp4;q=0.5"})
        assert mpeg.content.rstrip(b"\0") == stream_of("mpeg2video", "vob").rstrip(b"\0")
        hevc = await client.get(f"{new}/rendered", headers={"accept": "video/H265"})
        assert hevc.headers["content-type"] == "video/H265"
        assert hevc.content.startswith(stream_of("libx265", "hevc"))
        preferred = await client.get(f"{old}/rendered", headers={"accept": "image/png, video/mpeg;q=0.5"})
        assert preferred.headers["content-type"] == "image/png"
        for url, kind in ((old, "image/gif"), (old, "video/H265"), (new, "video/mpeg"), (new, "text/html")):
            answer = await client.get(f"{url}/rendered", headers={"accept": kind})
            assert answer.status_code == 406
            assert "video/mp4" in answer.json()["detail"]
        study, series, sop = old.split("/")[3::2]
        by_uri = {"requestType": "WADO", "studyUID": study, "seriesUID": series, "objectUID": sop}
        answer = await client.get("/wado", params=by_uri | {"contentType": "video/mpeg"})
        assert answer.content == mpeg.content


@pytest.mark.parametrize("media_type", ["video/mpeg", "video/mp4", "video/H265"])
def test_what_is_no_video_is_tried_by_a_demuxer(media_type: str) -> None:
    """A playlist names other files; whatever is not known is not opened."""
    for head in (PLAYLIST, b"concat:/etc/passwd", b"", b"\0", b"RIFF\0\0\0\0AVI LIST", b"\x47" * 3):
        assert demuxer_of(head, media_type) == ""


@pytest.mark.parametrize("kind", ["cut", "noise", "unknown", "size"])
async def test_damage_fails_the_server(archive, kind: str) -> None:
    stream = stream_of("libx264", "mpegts")
    if kind == "cut":
        stream = stream[: 188 * 5]
    elif kind == "noise":
        noise = np.random.default_rng(1).integers(0, 256, 20_000, np.uint8).tobytes()
        stream = stream[:4000] + noise
    elif kind == "unknown":
        stream = PLAYLIST * 20
    data = video_object(stream, FRAMES)
    if kind == "size":
        data.Rows, data.Columns = ROWS // 2, COLUMNS * 2
    result = await store(archive.engine, encode(data, AVC), AVC)
    url = f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
    url = f"{url}/instances/{result.sop_instance_uid}"
    async with archive.client() as client:
        late = await client.get(f"{url}/frames/{FRAMES}/rendered", headers=PNG)
        assert (late.status_code, "video" in late.json()["detail"]) == (406, True)
        played = await client.get(f"{url}/rendered", headers={"accept": "video/mp4"})
        assert played.status_code in (200, 406)
        assert kind != "unknown" or played.status_code == 406
        assert (await client.get("/healthz")).status_code == 200


async def test_a_long_video_takes_all_memory_or_time(archive, monkeypatch) -> None:
    rendered = archive.engine.rendered
    url = await put(archive, stream_of("mpeg2video", "vob"), MPEG2)
    async with archive.client() as client:
        for limits, said in (
            (VideoLimits(stream_bytes_max=1000), "too long"),
            (VideoLimits(wall_s_max=0.05), "video"),
            (VideoLimits(memory_bytes_max=1 << 20), "video"),
        ):
            monkeypatch.setattr(rendered, "_video_limits", limits)
            answer = await client.get(f"{url}/frames/1/rendered", headers=PNG)
            assert (answer.status_code, said in answer.json()["detail"]) == (406, True)
        monkeypatch.setattr(rendered, "_video_limits", VideoLimits())
        monkeypatch.setattr(rendered, "limits", RenderedLimits(animation_frames_max=FRAMES - 1))
        answer = await client.get(f"{url}/rendered", headers={"accept": "video/mp4"})
        assert (answer.status_code, "too long" in answer.json()["detail"]) == (406, True)
        as_stored = await client.get(f"{url}/rendered", headers={"accept": "video/mpeg"})
        assert as_stored.status_code == 200


async def test_without_pyav_nothing_is_given(archive, monkeypatch) -> None:
    for module in ("hounsfield.archive.web.video", "hounsfield.archive.engine.video"):
        monkeypatch.setattr(f"{module}.are_decoded", lambda: False)
    url = await put(archive, stream_of("libx264", "mp4"), AVC)
    async with archive.client() as client:
        assert (await client.get(f"{url}/rendered")).headers["content-type"] == "video/mp4"
        refused = await client.get(f"{url}/rendered", headers=PNG)
        assert (refused.status_code, "video/mp4" in refused.json()["detail"]) == (406, True)
        refused = await client.get(f"{url}/frames/1/rendered", headers=PNG)
        assert (refused.status_code, "extra 'video'" in refused.json()["detail"]) == (406, True)


async def test_a_client_that_goes_away_leaves_a_process(archive, monkeypatch) -> None:
    """Nobody waits for the answer any more: the process is ended, and the next one has its turn."""
    (one,) = await archive.engine.instances(
        *(await put(archive, stream_of("libx264", "mp4"), AVC)).split("/")[3::2]
    )
    videos = archive.engine.rendered.video
    started = trio.Event()
    run = trio.run_process

    async def slow(command, **how):
        started.set()
        await run(["sleep", "60"], **{key: how[key] for key in ("stdin", "capture_stdout", "check")})

    monkeypatch.setattr(trio, "run_process", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(videos.frame, one, 1, VideoLimits())
        await started.wait()
        nursery.cancel_scope.cancel()
    monkeypatch.undo()
    assert (await videos.frame(one, 1, VideoLimits())).shape == (ROWS, COLUMNS, 3)


async def test_a_presentation_state_draws_every_frame_of_a_video(archive) -> None:
    """It shows one, turned, like any other picture of the video."""
    of = video_object(stream_of("libx264", "mp4"), FRAMES)
    await store(archive.engine, encode(of, AVC), AVC)
    state = presentation_state(of)
    state.SOPClassUID, state.ImageRotation = "1.2.840.10008.5.1.4.1.1.11.2", 90
    await store(archive.engine, encode(state), "1.2.840.10008.1.2.1")
    url = f"/dicom-web/studies/{of.StudyInstanceUID}/series/{state.SeriesInstanceUID}"
    accepted = {"accept": 'multipart/related; type="image/png"'}
    async with archive.client() as client:
        answer = await client.get(f"{url}/instances/{state.SOPInstanceUID}/rendered", headers=accepted)
    assert answer.status_code == 200
    assert answer.content.count(b"\x89PNG") == 1
    start = answer.content.index(b"\x89PNG")
    with Image.open(io.BytesIO(answer.content[start:])) as opened:
        assert opened.size == (ROWS, COLUMNS)


@pytest.mark.parametrize("said", [10_000, 2_000_000_000])
async def test_a_video_that_counts_its_frames_wrong_has_no_picture(archive, said: int) -> None:
    """What stands for it is its first frame then; a frame that is named is that one or none."""
    stream = video("libx264", "mp4", 10)
    result = await store(archive.engine, encode(video_object(stream, said), AVC), AVC)
    url = f"/dicom-web/studies/{result.study_uid}/series/{result.series_uid}"
    url += f"/instances/{result.sop_instance_uid}"
    async with archive.client() as client:
        shown = await client.get(f"{url}/rendered", headers=PNG)
        thumbnail = await client.get(f"{url}/thumbnail", headers=PNG)
        first = await client.get(f"{url}/frames/1/rendered", headers=PNG)
        there_is_not = await client.get(f"{url}/frames/250/rendered", headers=PNG)
        again = await client.get(f"{url}/frames/11/thumbnail", headers=PNG)
    assert (shown.status_code, thumbnail.status_code) == (200, 200)
    assert shown.content == first.content
    assert (there_is_not.status_code, again.status_code) == (406, 406)
