"""The process that converts colours by an ICC profile that came with an image: ``python -I -m …``.

A profile is a small program that somebody else wrote, read by a C library. This process has what it is given
on its standard input and nothing else, is limited before it looks at the profile, and converts one picture.

Input: :data:`REQUEST`, the picture's own profile, the wanted one, the picture as RGB of 8 bits. Output: the
converted picture; nothing, and another exit code than 0, when that failed.
"""

from __future__ import annotations

import struct
import sys
from typing import Final

from hounsfield.codecs.decoding_process import confine

#: Lengths of the two profiles, rows, columns.
REQUEST: Final = struct.Struct("<IIII")


def main() -> None:
    confine(int(sys.argv[1]))
    import imagecodecs
    import numpy as np

    data = sys.stdin.buffer.read()
    own_bytes, wanted_bytes, rows, columns = REQUEST.unpack_from(data)
    at = REQUEST.size
    own, wanted = data[at : at + own_bytes], data[at + own_bytes : at + own_bytes + wanted_bytes]
    picture = np.frombuffer(data, np.uint8, rows * columns * 3, at + own_bytes + wanted_bytes)
    converted = imagecodecs.cms_transform(
        picture.reshape(rows, columns, 3), own, wanted, colorspace="rgb", outcolorspace="rgb"
    )
    sys.stdout.buffer.write(np.ascontiguousarray(converted, np.uint8).tobytes())


if __name__ == "__main__":
    main()
