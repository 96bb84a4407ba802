"""Colours are converted by an image's own ICC profile in a process of its own, which may crash or hang.

One process for one picture: few objects have a profile, and few clients ask for its conversion.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hounsfield.archive.rendering.errors import NotRenderableError
from hounsfield.codecs.deferred import deferred
from hounsfield.codecs.profile_process import REQUEST

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = deferred("numpy")

_MODULE: Final = "hounsfield.codecs.profile_process"
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class ProfileLimits:
    """What converting one picture may cost: address space, and seconds (a start takes 0.3 of them).

    ``profile_bytes_max``: those of slide scanners have up to 12 MB.
    """

    memory_bytes_max: int = 2 << 30
    wall_s_max: float = 20.0
    profile_bytes_max: int = 16 << 20


def converted(
    picture: NDArray[Any], own: bytes, wanted: bytes, limits: ProfileLimits | None = None
) -> NDArray[Any]:
    """The RGB picture in the wanted profile's colours. Blocking; ``NotRenderableError``."""
    limits = limits or ProfileLimits()
    rows, columns, _ = picture.shape
    if len(own) > limits.profile_bytes_max:
        raise NotRenderableError("the image's ICC profile is too long to be used")
    request = REQUEST.pack(len(own), len(wanted), rows, columns)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-m", _MODULE, str(limits.memory_bytes_max)],
            input=b"".join((request, own, wanted, np.ascontiguousarray(picture).data)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            close_fds=True,
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,
            timeout=limits.wall_s_max,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotRenderableError("converting by the image's ICC profile took too long") from error
    if done.returncode or len(done.stdout) != picture.size:
        raise NotRenderableError("the image's ICC profile cannot be used; iccprofile=yes gives it as it is")
    return np.frombuffer(done.stdout, np.uint8).reshape(picture.shape)
