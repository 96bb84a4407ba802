"""Text burnt into a picture, when it is asked for (PS3.18 8.3.5.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hounsfield.archive.rendering.elements import Elements
from hounsfield.archive.rendering.lettering import BUILT_IN, Lettering, size_for
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


def annotated(
    picture: NDArray[Any], found: Elements, wanted: frozenset[str], lettering: Lettering = BUILT_IN
) -> NDArray[Any]:
    """The picture with the patient's lines top left, and the technique's bottom left."""
    image = PilImage.fromarray(np.ascontiguousarray(picture))
    size = size_for(*picture.shape[:2])
    pen = PilDraw.Draw(image)
    line = size * 5 // 4
    white, black = (255, 0) if image.mode == "L" else ((255,) * 3, (0,) * 3)
    blocks = []
    if "patient" in wanted:
        blocks.append((size // 2, lines_of(found, _PATIENT, lettering)))
    if "technique" in wanted:
        lines = lines_of(found, _TECHNIQUE, lettering)
        blocks.append((picture.shape[0] - size // 2 - line * len(lines), lines))
    for top, lines in blocks:
        for n, text in enumerate(lines):
            lettering.write(pen, (size // 2, top + n * line), text, size, white, black, max(1, size // 12))
    return np.asarray(image)


def lines_of(found: Elements, rows: tuple[tuple[int, str], ...], lettering: Lettering) -> list[str]:
    """The lines that have something to say."""
    lines = []
    for tag, label in rows:
        text = found.text(tag).replace("\\", " ")
        if tag == _PATIENT_NAME:
            text = name_of(text, lettering)
        if text:
            lines.append((label + text)[:LINE_CHARACTERS_MAX])
    return lines


def name_of(text: str, lettering: Lettering) -> str:
    """A person's name: in Latin letters and in the writing of its own that can be drawn (PS3.5 6.2.1.2).

    The third group says how the second is spoken; it is shown when it is the only one.
    """
    groups = [" ".join(group.replace("^", " ").split()) for group in text.split("=")[:3]]
    groups = [group for group in groups if group]
    shown = groups[:1] + [group for group in groups[1:2] if lettering.can_write(group)]
    return " = ".join(shown)
