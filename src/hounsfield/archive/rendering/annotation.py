"""Text burnt into a picture, when it is asked for (PS3.18 8.3.5.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.lettering import letters, plain, size_for
from hounsfield.codecs.deferred import deferred

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image as PilImage
    from PIL import ImageDraw as PilDraw
else:
    np, PilImage = deferred("numpy"), deferred("PIL.Image")
    PilDraw = deferred("PIL.ImageDraw")

LINE_CHARACTERS_MAX: Final = 64
_PATIENT_NAME: Final = 0x00100010
#: What identifies the patient and the study, a line each.
_PATIENT: Final = (
    (_PATIENT_NAME, ""), (0x00100020, ""), (0x00100030, "*"), (0x00100040, ""), (0x00080050, "Acc "),
    (0x00080020, ""), (0x00080080, ""),
)  # fmt: skip
#: How the image was made, a line each.
_TECHNIQUE: Final = (
    (0x00080060, ""), (0x00081030, ""), (0x0008103E, ""), (0x00200011, "Se "), (0x00200013, "Im "),
    (0x00180060, "kV "), (0x00181151, "mA "), (0x00180050, "mm "), (0x00180080, "TR "), (0x00180081, "TE "),
)  # fmt: skip


def annotated(picture: NDArray[Any], found: Elements, wanted: frozenset[str]) -> NDArray[Any]:
    """The picture with the patient's lines top left, and the technique's bottom left."""
    image = PilImage.fromarray(np.ascontiguousarray(picture))
    size = size_for(*picture.shape[:2])
    font, pen = letters(size), PilDraw.Draw(image)
    line = size * 5 // 4
    white, black = (255, 0) if image.mode == "L" else ((255,) * 3, (0,) * 3)
    blocks = []
    if "patient" in wanted:
        blocks.append((size // 2, lines_of(found, _PATIENT)))
    if "technique" in wanted:
        lines = lines_of(found, _TECHNIQUE)
        blocks.append((picture.shape[0] - size // 2 - line * len(lines), lines))
    for top, lines in blocks:
        for n, text in enumerate(lines):
            pen.text(
                (size // 2, top + n * line), text, fill=white, font=font,
                stroke_width=max(1, size // 12), stroke_fill=black,
            )  # fmt: skip
    return np.asarray(image)


def lines_of(found: Elements, rows: tuple[tuple[int, str], ...]) -> list[str]:
    """The lines that have something to say."""
    lines = []
    for tag, label in rows:
        text = found.text(tag).replace("\\", " ")
        if tag == _PATIENT_NAME:
            text = " ".join(text.split("=")[0].replace("^", " ").split())
        if text:
            lines.append((label + plain(text))[:LINE_CHARACTERS_MAX])
    return lines
