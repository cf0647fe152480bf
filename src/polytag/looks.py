"""What a picture looks like at 8 x 8 pixels: enough to find its copies, however they were saved."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 8
_PLAIN = 6  # levels that a look without anything on it may vary by: noise, rounding
_GAIN = 1.25  # how much brighter a copy may be: a drawn one made 12 % brighter is found

# Cosines of the discrete transform of 8 points, a frequency a row; the scale does not matter here.
_WAVES = np.cos(np.pi / SIDE * np.outer(np.arange(SIDE), np.arange(SIDE) + 0.5))
_BITS = np.uint64(1) << np.arange(SIDE * SIDE, dtype=np.uint64)


def look(image: NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
    """Shrink a decoded picture to 8 x 8 pixels, whatever its proportions.

    Args:
        image: uint8 (H, W, 3), RGB, as `polytag.images.decode` gives it; or Pillow's.

    Returns:
        uint8 (8, 8, 3); each pixel is an average over its part of the picture.

    Example:
        >>> look(np.full((50, 30, 3), 200, np.uint8)).shape
        (8, 8, 3)
    """
    whole = image if isinstance(image, Image.Image) else Image.fromarray(image)
    small = whole.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.array(small)


def mirrored(looks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the looks of the mirrored pictures.

    Example:
        >>> looks = np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)
        >>> mirrored(looks)[0, 0, 0].tolist()
        [21, 22, 23]
    """
    return looks[:, :, ::-1]


def plain(looks: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which looks show one colour only, as of an empty page: they tell no pictures apart.

    Args:
        looks: uint8 (N, 8, 8, 3).

    Returns:
        bool (N,).

    Example:
        >>> looks = np.full((2, 8, 8, 3), 250, np.uint8)
        >>> looks[1, 3, 3] = 0
        >>> plain(looks).tolist()
        [True, False]
    """
    levels: NDArray[np.uint8] = np.ptp(looks, axis=(1, 2)).max(axis=1)
    return levels <= _PLAIN


def codes(looks: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return perceptual hashes: 63 signs of the brightness's cosine transform, and a 0.

    Copies differ in few bits, pictures that have nothing in common in about 31.

    Args:
        looks: uint8 (N, 8, 8, 3).

    Returns:
        uint64 (N,).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> looks = rng.integers(0, 200, (2, 8, 8, 3), dtype=np.uint8)
        >>> int(np.bitwise_count(codes(looks[:1]) ^ codes(looks[:1] + 20))[0])
        0
        >>> int(np.bitwise_count(codes(looks[:1]) ^ codes(looks[1:]))[0]) > 20
        True
    """
    brightness = looks @ np.array([0.299, 0.587, 0.114])
    waves = _WAVES @ brightness @ _WAVES.T
    # Rounding makes tiny waves of a plain picture: they are none.
    signs = (waves > 1e-6).reshape(len(looks), SIDE * SIDE)
    signs[:, 0] = False  # the mean
    numbers: NDArray[np.uint64] = np.where(signs, _BITS, np.uint64(0)).sum(axis=1)
    return numbers


def differences(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return how far pictures are from each other, pair by pair, but for their brightness.

    Args:
        one: Looks uint8 (P, 8, 8, 3).
        other: The same; each is made up to 25 % brighter or darker to be nearest to ``one``.

    Returns:
        float32 (P,), root mean square in grey levels of 0 to 255.

    Example:
        >>> grey = np.full((1, 8, 8, 3), 100, np.uint8)
        >>> differences(grey, grey + 10).tolist(), differences(grey, grey * 2).tolist()
        ([0.0], [60.0])
    """
    a, b = (looks.reshape(len(looks), -1).astype(np.float32) for looks in (one, other))
    power = np.maximum((b * b).sum(axis=1), np.float32(1))
    gain = np.clip((a * b).sum(axis=1) / power, 1 / _GAIN, _GAIN)
    away: NDArray[np.float32] = np.sqrt(((a - gain[:, None] * b) ** 2).mean(axis=1))
    return away
