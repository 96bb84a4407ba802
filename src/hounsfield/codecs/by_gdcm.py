"""Coders of python-gdcm: an image in memory is given another transfer syntax.

GDCM's Python binding keeps the GIL, and reads a codestream of another precision than the attributes say by
the attributes: second choice, where the first refuses a frame.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from hounsfield.codecs.deferred import deferred
from hounsfield.codecs.errors import CorruptFrameError, UnsupportedPixelsError
from hounsfield.codecs.pixels import Buffer, PixelFormat, Pixels
from hounsfield.codecs.to_code import plain_words

if TYPE_CHECKING:
    import numpy as np
else:
    np = deferred("numpy")

NAME: Final = "gdcm"
_ROOT: Final = "1.2.840.10008.1.2"
_RLE: Final = f"{_ROOT}.5"
#: SOI of JPEG and JPEG-LS, SOC of JPEG 2000, JP2's box, and one to fifteen segments of RLE.
_BEGINNINGS: Final = (
    b"\xff\xd8\xff", b"\xff\x4f\xff\x51", bytes((0, 0, 0, 12)), *(bytes((n, 0, 0, 0)) for n in range(1, 16)),
)  # fmt: skip


@cache
def gdcm() -> ModuleType:
    """The library, loaded once (0.1 s)."""
    import gdcm as library

    module: ModuleType = library
    # It writes what it thinks of a frame to standard error, which is no place for it.
    module.Trace.WarningOff()
    module.Trace.ErrorOff()
    return module


def _image(  # noqa: PLR0917
    image: Any, pixels: PixelFormat, bits_stored: int, syntax: str, value: Any, photometric: str
) -> None:
    library = gdcm()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((pixels.columns, pixels.rows, 1))
    kind = library.PhotometricInterpretation.GetPIType(photometric)
    if kind == library.PhotometricInterpretation.PI_END:
        raise UnsupportedPixelsError("a photometric interpretation that GDCM does not know")
    image.SetPhotometricInterpretation(library.PhotometricInterpretation(kind))
    if pixels.samples > 1:
        image.SetPlanarConfiguration(0)
    image.SetTransferSyntax(library.TransferSyntax(library.TransferSyntax.GetTSType(syntax)))
    image.SetPixelFormat(
        library.PixelFormat(
            pixels.samples, pixels.bits_allocated, bits_stored, bits_stored - 1, int(pixels.signed)
        )
    )
    image.SetDataElement(value)


def decode(frame: Buffer, pixels: PixelFormat, transfer_syntax_uid: str) -> Pixels:
    """One frame of an encapsulated syntax. Its words are as wide as the attributes say, or it is refused."""
    pixels.check()
    if pixels.bits_allocated > 16 or not pixels.at_the_bottom:
        raise UnsupportedPixelsError("samples of more than 16 bits, or not in the lowest")
    if pixels.bits_stored < 8:
        raise UnsupportedPixelsError("samples of fewer than 8 bits, at which GDCM ends its process")
    if transfer_syntax_uid == _RLE and pixels.samples > 1 and pixels.bits_allocated > 8:
        raise UnsupportedPixelsError("colour of more than 8 bits in RLE, which GDCM gets wrong")
    if not bytes(frame[:4]).startswith(_BEGINNINGS):
        raise CorruptFrameError("no beginning of a codestream")  # at nonsense GDCM divides by zero
    library = gdcm()
    fragment = library.Fragment()
    fragment.SetByteStringValue(bytes(frame))
    fragments = library.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = library.DataElement(library.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = library.Image()
    photometric = "MONOCHROME2" if pixels.samples == 1 else pixels.photometric or "RGB"
    # Of RLE it wants the whole word to be the sample, and ends the process where that is not so.
    bits = pixels.bits_allocated if transfer_syntax_uid == _RLE else pixels.bits_stored
    _image(image, pixels, bits, transfer_syntax_uid, element, photometric)
    try:
        plain = image.GetBuffer().encode("utf-8", "surrogateescape")
    except Exception as error:  # a SWIG wrapper raises what it likes
        raise CorruptFrameError(f"GDCM failed ({type(error).__name__})") from error
    if len(plain) != pixels.frame_bytes:
        raise CorruptFrameError(f"{len(plain)} bytes where the shape has {pixels.frame_bytes}")
    words = np.frombuffer(plain, pixels.dtype.newbyteorder("<")).astype(pixels.dtype)
    if transfer_syntax_uid == _RLE and image.GetPlanarConfiguration() and pixels.samples > 1:
        return words.reshape(pixels.samples, pixels.rows, pixels.columns).transpose(1, 2, 0)
    return words.reshape(pixels.shape)


def encode(array: Pixels, pixels: PixelFormat, transfer_syntax_uid: str) -> bytes:
    """One frame in a lossless encapsulated syntax."""
    words = plain_words(array, pixels)
    if words.array.dtype.itemsize * 8 != pixels.bits_allocated or words.bits < 8:
        raise UnsupportedPixelsError("samples that do not fill the highest byte of their words")
    library = gdcm()
    writer = library.ImageWriter()
    image = writer.GetImage()
    element = library.DataElement(library.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(words.array.astype(words.array.dtype.newbyteorder("<")).tobytes())
    photometric = pixels.photometric or ("MONOCHROME2" if pixels.samples == 1 else "RGB")
    if photometric == "PALETTE COLOR":
        photometric = "MONOCHROME2"  # indices are coded as any numbers are
    _image(image, pixels, words.bits, _ROOT, element, photometric)
    change = library.ImageChangeTransferSyntax()
    change.SetTransferSyntax(library.TransferSyntax(library.TransferSyntax.GetTSType(transfer_syntax_uid)))
    change.SetInput(image)
    try:
        done = change.Change()
        fragments = change.GetOutput().GetDataElement().GetSequenceOfFragments() if done else None
        if fragments is None or fragments.GetNumberOfFragments() != 1:
            raise CorruptFrameError("GDCM did not encode the frame")
        coded: bytes = fragments.GetFragment(0).GetByteValue().GetBuffer().encode("utf-8", "surrogateescape")
    except CorruptFrameError:
        raise
    except Exception as error:
        raise CorruptFrameError(f"GDCM failed ({type(error).__name__})") from error
    return coded
