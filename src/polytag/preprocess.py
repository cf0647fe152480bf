"""How a decoded picture becomes a model's input. Data that travels with the model.

One implementation for training's evaluation path, the predictor, the server and the feature
cache: what a model sees when it is used is what it saw when it was judged. Normalisation is not
here; it is the first layer of the model's graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polytag.errors import ImageError, UserError, did_you_mean
from polytag.images import Reduced, decode_reduced

MAX_SIZE = 4096
"""Largest side of a model's input: a damaged model file must not ask for all memory."""

GREY = (127, 127, 127)
"""What fills a letterbox: the value that the embedded weights' normalisation maps to zero."""

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


GAP = 2
"""How many times the pixels needed along a side a JPEG decoded at a lower scale keeps.

Measured in the worst case (the picture is just large enough for its scale; embedded backbone,
features in standard deviations over pictures, root mean squares), on enlarged photographs and on
montages, which have more detail: 1.5 moves features by 0.06 to 0.16, 2 by 0.04 to 0.10 and pixels
by 0.6 to 1.5 of 255; saving a photograph once more at quality 90 moves them by 0.10 and 1.3."""


@dataclass(frozen=True)
class PreprocessSpec:
    """Size, resize mode, interpolation and crop of a model's input.

    Attributes:
        size: Side S of the square input, in pixels, 1 to `MAX_SIZE`.
        resize: ``squash`` stretches the picture to the square; ``pad`` keeps its proportions and
            fills the rest with grey; ``crop`` keeps them too and takes the square in the centre.
        interpolation: ``bilinear``, ``bicubic`` or ``lanczos``; all of them average over the
            pixels that shrink into one (antialiasing).
        crop_fraction: With ``crop``, the share of the shorter side that the square takes, above
            0, at most 1; ImageNet networks are judged with 0.875.

    Raises:
        UserError: A value is not one of these.

    Example:
        >>> spec = PreprocessSpec(size=224, resize="squash", interpolation="bicubic")
        >>> PreprocessSpec.from_dict(spec.to_dict()) == spec
        True
    """

    size: int
    resize: str = "crop"
    interpolation: str = "bicubic"
    crop_fraction: float = 1.0

    def __post_init__(self) -> None:
        where = "preprocess"
        if type(self.size) is not int or not 1 <= self.size <= MAX_SIZE:
            expected = f"a whole number from 1 to {MAX_SIZE}"
            raise UserError("bad size", where=where, got=repr(self.size), expected=expected)
        share = self.crop_fraction
        if type(share) not in (int, float) or not 0 < share <= 1:  # no bool, no NaN
            expected = "a number above 0, at most 1"
            raise UserError("bad crop_fraction", where=where, got=repr(share), expected=expected)
        for key, known in (("resize", _RESIZES), ("interpolation", INTERPOLATIONS)):
            value = getattr(self, key)
            if not isinstance(value, str) or value not in known:
                fix = did_you_mean(str(value), known)
                raise UserError(f"unknown {key}", where=where, got=repr(value), fix=fix)

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as JSON holds it.

        Example:
            >>> PreprocessSpec(64, "pad", "bilinear").to_dict()
            {'size': 64, 'resize': 'pad', 'interpolation': 'bilinear', 'crop_fraction': 1.0}
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PreprocessSpec:
        """Build the spec from what `to_dict` gave.

        Raises:
            UserError: A key is missing or unknown, or a value is not allowed.

        Example:
            >>> PreprocessSpec.from_dict({"size": 64, "resize": "pad"})
            Traceback (most recent call last):
            polytag.errors.UserError: preprocess: missing key; expected interpolation
        """
        known = [field.name for field in fields(cls)]
        for key in data:
            if key not in known:
                fix = did_you_mean(str(key), known)
                raise UserError("unknown key", where="preprocess", got=repr(key), fix=fix)
        for key in known:
            if key not in data:
                raise UserError("missing key", where="preprocess", expected=key)
        return cls(**data)


def picture(source: Path | bytes, spec: PreprocessSpec, name: str = "") -> NDArray[np.uint8]:
    """Decode a picture, as far as its size is needed, and bring it to a model's input size.

    Args:
        source: A file, or the bytes of one.
        spec: Size, resize mode, interpolation and crop.
        name: What error messages call the picture; empty: the path.

    Returns:
        uint8 (S, S, 3), RGB.

    Raises:
        ImageError: The picture cannot be decoded; see `polytag.images.decode`.

    Example:
        >>> white_pixel = bytes.fromhex("474946383961010001008000000000"
        ...                             "00ffffff2c000000000100010000020244003b")
        >>> picture(white_pixel, PreprocessSpec(4)).shape
        (4, 4, 3)
    """
    return resized(decoded(source, spec, name), spec)


def decoded(source: Path | bytes, spec: PreprocessSpec, name: str = "") -> Reduced:
    """Decode a picture no larger than `resized` needs it: the first half of `picture`.

    Raises:
        ImageError: The picture cannot be decoded.

    Example:
        Not run: it needs a file.

        >>> decoded(Path("photo.jpg"), PreprocessSpec(224)).image.size       # doctest: +SKIP
        (768, 512)
    """
    share = spec.crop_fraction if spec.resize == "crop" else 1
    return decode_reduced(source, ceil(GAP * spec.size / share), name=name)


def resized(image: Reduced, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Bring a picture from `decoded` to a model's input size: the second half of `picture`.

    Example:
        >>> grey = Reduced(Image.new("RGB", (4, 6), "grey"), (0, 0, 4, 5.5))
        >>> resized(grey, PreprocessSpec(2)).shape
        (2, 2, 3)
    """
    return np.array(_RESIZES[spec.resize](image.image, image.box, spec))


def preprocess(image: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Bring a decoded picture to a model's input size.

    Args:
        image: uint8 (H, W, 3), RGB, as `polytag.images.decode` gives it.
        spec: Size, resize mode, interpolation and crop.

    Returns:
        uint8 (S, S, 3), RGB, C-contiguous and writable; the input is not changed.

    Raises:
        ImageError: The array is not uint8 (H, W, 3) with at least one pixel.

    Example:
        >>> wide = np.full((20, 40, 3), 200, np.uint8)
        >>> letterbox = preprocess(wide, PreprocessSpec(4, "pad", "bilinear"))
        >>> letterbox[:, 0, 0].tolist()
        [127, 200, 200, 127]
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        got = f"{image.dtype} {image.shape}"
        raise ImageError("not a decoded picture", got=got, expected="uint8 (H, W, 3)")
    height, width, _ = image.shape
    return resized(Reduced(Image.fromarray(image), (0, 0, width, height)), spec)


_Box = tuple[float, float, float, float]


def _squash(image: Image.Image, box: _Box, spec: PreprocessSpec) -> Image.Image:
    return image.resize((spec.size, spec.size), INTERPOLATIONS[spec.interpolation], box=box)


def _pad(image: Image.Image, box: _Box, spec: PreprocessSpec) -> Image.Image:
    size, sides = spec.size, _sides(box)
    scale = size / max(sides)
    width, height = (max(1, round(side * scale)) for side in sides)
    canvas = Image.new("RGB", (size, size), GREY)
    small = image.resize((width, height), INTERPOLATIONS[spec.interpolation], box=box)
    canvas.paste(small, ((size - width) // 2, (size - height) // 2))
    return canvas


def _crop(image: Image.Image, box: _Box, spec: PreprocessSpec) -> Image.Image:
    # Same pixels as resizing the shorter side and cropping then (`box` says what to keep, the
    # filter still looks beyond it), but a picture of 2 x 60000 does not grow on the way.
    sides = _sides(box)
    side = min(sides) * spec.crop_fraction
    left, top = (edge + (length - side) / 2 for edge, length in zip(box, sides, strict=False))
    return _squash(image, (left, top, left + side, top + side), spec)


def _sides(box: _Box) -> tuple[float, float]:
    left, top, right, bottom = box
    return right - left, bottom - top


_RESIZES = {"squash": _squash, "pad": _pad, "crop": _crop}
