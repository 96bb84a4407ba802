"""Pixels that compress as patients do: smooth anatomy, sharp edges, and a detector's noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]


def picture(kind: str, variant: int) -> bytes:
    """Pixel data of one instance of `kind` (see `studies.Kind`), little endian; the same for the same
    arguments.
    """
    generator = np.random.default_rng([ord(letter) for letter in kind] + [variant])
    match kind:
        case "ct":
            return _section(generator, 512, 512, air=24, tissue=1064, bone=1900, noise=11.0, variant=variant)
        case "mr":
            return _section(generator, 256, 256, air=12, tissue=420, bone=160, noise=7.0, variant=variant)
        case "small":
            return _section(generator, 128, 128, air=12, tissue=420, bone=160, noise=7.0, variant=variant)
        case "cr":
            return _section(
                generator, 2500, 2048, air=3300, tissue=1500, bone=620, noise=14.0, variant=variant
            )
        case "us":
            return _ultrasound(generator, frames=10, rows=480, columns=640)
        case _:
            raise ValueError(f"no picture of kind {kind!r}: one of ct, mr, cr, us, small")


def _grid(rows: int, columns: int) -> tuple[Plane, Plane]:
    y = np.linspace(-1, 1, rows)[:, None]
    x = np.linspace(-1, 1, columns)[None, :]
    return np.broadcast_to(y, (rows, columns)), np.broadcast_to(x, (rows, columns))


def _ellipse(y: Plane, x: Plane, cy: float, cx: float, ry: float, rx: float) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
    return inside


def _section(
    generator: np.random.Generator,
    rows: int,
    columns: int,
    *,
    air: float,
    tissue: float,
    bone: float,
    noise: float,
    variant: int,
) -> bytes:
    """A body in cross-section: skin line, two lungs, a spine, ribs, vessels; 12 of 16 bits used."""
    y, x = _grid(rows, columns)
    plane = np.full((rows, columns), float(air))
    shift = 0.01 * variant
    body = _ellipse(y, x, 0.02, 0, 0.72, 0.86 - shift)
    plane[body] = tissue
    plane += np.where(body, 0.03 * tissue * np.cos(3 * x + variant) * np.sin(4 * y), 0)
    for side in (-1, 1):
        lung = _ellipse(y, x, -0.05, 0.38 * side, 0.48 + shift, 0.27)
        plane[lung] = air + (tissue - air) * 0.2
    plane[_ellipse(y, x, 0.42, 0, 0.16, 0.13)] = bone
    plane[_ellipse(y, x, 0.42, 0, 0.07, 0.06)] = tissue * 0.97
    for number in range(14):
        angle = 2 * np.pi * (number + 0.3 * variant) / 14
        plane[_ellipse(y, x, 0.02 + 0.6 * np.sin(angle), 0.74 * np.cos(angle), 0.04, 0.05)] = bone * 0.92
    for _ in range(24):
        cy, cx = generator.uniform(-0.4, 0.4, 2)
        radius = generator.uniform(0.01, 0.035)
        plane[_ellipse(y, x, cy, cx, radius, radius)] = tissue * generator.uniform(1.0, 1.15)
    grain = generator.normal(0, noise, (rows, columns))
    grain = 0.6 * grain + 0.2 * (np.roll(grain, 1, 0) + np.roll(grain, 1, 1))
    plane += np.where(body, grain, 0.3 * grain)
    pixels: bytes = np.clip(np.rint(plane), 0, 4095).astype("<u2").tobytes()
    return pixels


def _ultrasound(generator: np.random.Generator, *, frames: int, rows: int, columns: int) -> bytes:
    """A speckled sector on black, slightly moving, RGB with a coloured flow box."""
    y, x = _grid(rows, columns)
    depth = (y + 1) / 2
    sector = (np.abs(x) <= 0.15 + 0.75 * depth) & (depth <= 0.95)
    speckle = generator.gamma(2.0, 28.0, (rows, columns))
    out = np.zeros((frames, rows, columns, 3), np.uint8)
    for frame in range(frames):
        grey = np.roll(speckle, frame * 3, 0) * (1.1 - 0.7 * depth)
        grey = np.where(_ellipse(y, x, 0.1, 0.05 * np.sin(frame / 2), 0.3, 0.22), grey * 0.15, grey)
        grey = np.where(sector, np.clip(grey, 0, 255), 0)
        out[frame] = grey[..., None].astype(np.uint8)
        flow = _ellipse(y, x, 0.1, 0.05, 0.12, 0.1)
        out[frame, ..., 0][flow] = 30 + 15 * frame
        out[frame, ..., 2][flow] = 180
    return out.tobytes()
