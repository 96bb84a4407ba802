"""Videos to store: small ones of every codec and container that DICOM knows, each frame of its own grey."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import generate_uid

ROWS, COLUMNS, FRAMES_A_SECOND = 48, 64, 25
MPEG2, AVC, HEVC = (f"1.2.840.10008.1.2.4.{number}" for number in (100, 102, 107))
VIDEO_ENDOSCOPIC = "1.2.840.10008.5.1.4.1.1.77.1.1.1"


def grey_of(number: int) -> int:
    """The grey of the right half of frame ``number``; the left half has its inverse."""
    return 20 + 3 * number


def video(codec: str, container: str, frames: int) -> bytes:
    """A stream: ``codec`` as FFmpeg calls its encoder, ``container`` as it calls its muxer."""
    import av

    av.logging.set_level(None)
    out = io.BytesIO()
    with av.open(out, "w", format=container) as target:
        stream = target.add_stream(codec, rate=FRAMES_A_SECOND)
        stream.width, stream.height, stream.pix_fmt = COLUMNS, ROWS, "yuv420p"
        stream.bit_rate = 4_000_000
        # Key frames far apart and frames that are shown in another order than they are coded in.
        stream.options = {"g": "24", "bf": "2", "threads": "1", "x265-params": "log-level=none"}
        for number in range(1, frames + 1):
            picture = np.full((ROWS, COLUMNS, 3), grey_of(number), np.uint8)
            picture[:, : COLUMNS // 2] = 255 - grey_of(number)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number - 1, Fraction(1, FRAMES_A_SECOND)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return out.getvalue()


def video_object(stream: bytes, frames: int, *, fragments: int = 2) -> Dataset:
    """An object that holds it, in so many fragments (PS3.3 A.32.5)."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = VIDEO_ENDOSCOPIC, generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.Modality, data.PatientID = "ES", "1"
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_PARTIAL_420", 0
    data.Rows, data.Columns, data.NumberOfFrames = ROWS, COLUMNS, frames
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.CineRate, data.FrameTime = FRAMES_A_SECOND, 1000 / FRAMES_A_SECOND
    stream += bytes(len(stream) % 2)
    data.PixelData = encapsulate([stream], fragments_per_frame=fragments, has_bot=False)
    data["PixelData"].VR = "OB"
    return data


def uneven_video(times: list[int], *, cut: int = 0) -> bytes:
    """H.264 in MP4 whose frame ``n`` is shown at ``times[n - 1]``, in hundredths of a second.

    Its halves are grey as :func:`uneven_greys_of` says. ``cut``: so
    many of the first are in the file, and taken away by its edit list.
    """
    import av

    av.logging.set_level(None)
    out, start = io.BytesIO(), times[cut]
    with av.open(out, "w", format="mp4") as target:
        stream = target.add_stream("libx264", rate=100)
        stream.width, stream.height, stream.pix_fmt = COLUMNS, ROWS, "yuv420p"
        stream.options = {"crf": "5", "g": "12", "bf": "2", "threads": "1"}
        stream.codec_context.time_base = Fraction(1, 100)
        for number, time in enumerate(times, start=1):
            picture = np.zeros((ROWS, COLUMNS, 3), np.uint8)
            picture[:, : COLUMNS // 2], picture[:, COLUMNS // 2 :] = uneven_greys_of(number - cut)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time - start, Fraction(1, 100)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return out.getvalue()


def uneven_greys_of(number: int) -> tuple[int, int]:
    """The greys of both halves of a frame of :func:`uneven_video`; those of neighbours are four apart."""
    return 20 + 4 * (number % 50), 20 + 40 * (number // 50 + 1)
