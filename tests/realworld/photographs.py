"""Photographs of scikit-image, in 0..1."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from tests.realworld.packages import shipped

NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "page.png", "text.png")


@cache
def photograph(name: str, mode: str, size: tuple[int, int]) -> np.ndarray:
    """One of them as RGB or L, [H, W, channels]."""
    image = Image.open(shipped("scikit-image", f"skimage/data/{name}")).convert(mode).resize(size)
    pixels = np.asarray(image, np.float32) / 255
    return pixels if pixels.ndim == 3 else pixels[..., None]


def images(channels: int, size: tuple[int, int], levels: tuple[float, float] = (0, 1)) -> np.ndarray:
    """All of them with so many channels, [N, H, W, channels], from black to white: gray, color, or color and a fourth band that
    is no copy of another."""
    color = np.stack([photograph(name, "RGB", size) for name in NAMES])
    gray = np.stack([photograph(name, "L", size) for name in NAMES])
    found: np.ndarray = {1: gray, 3: color, 4: np.concatenate([color, gray[:, ::-1] ** 2], -1)}[channels]
    return found * np.float32(levels[1] - levels[0]) + np.float32(levels[0])
