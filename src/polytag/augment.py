"""How a training picture is varied: one picture at a time in threads, then a batch at a time.

`make_augment` builds what ``[augment]`` of a recipe asks for: a crop, which makes the square, then
steps on it, in the order of the recipe's fields. `mix` mixes the pictures of a batch. Nothing is
remembered between calls: picture and generator alone decide, in any thread. What a move uncovers
or a step hides turns into `polytag.preprocess.GREY`, the letterbox's colour.

A random crop keeps to the proportions in which pictures are judged. Its box is chosen in a
*frame*: with ``resize="crop"`` the picture itself, with ``"squash"`` the picture squashed to a
square, with ``"pad"`` the picture on its grey square. The box's centre lies on the picture, and
pixels are resampled once, from the picture to the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from PIL.Image import Resampling, Transform, Transpose

from polytag.config.training import AugmentConfig
from polytag.errors import ImageError
from polytag.preprocess import GREY, INTERPOLATIONS, PreprocessSpec, preprocess

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

Crop = Callable[[Pixels, PreprocessSpec, Generator], Image.Image]
"""A picture of any size (H, W, 3) becomes a square of side ``spec.size``."""

Step = Callable[[Image.Image, Generator], Image.Image]
"""A square becomes a square of the same size; the input is not changed."""


@dataclass(frozen=True)
class Augment:
    """A crop, then steps in this order. Safe to call from many threads, a generator each."""

    spec: PreprocessSpec
    crop: Crop
    steps: tuple[Step, ...]

    def __call__(self, image: Pixels, rng: Generator) -> Pixels:
        """Vary a decoded picture.

        Args:
            image: uint8 (H, W, 3), RGB, as `polytag.images.decode` gives it; not changed.
            rng: Where all randomness comes from.

        Returns:
            uint8 (S, S, 3), C-contiguous and writable.

        Raises:
            ImageError: The array is not uint8 (H, W, 3) with at least one pixel.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            got = f"{image.dtype} {image.shape}"
            raise ImageError("not a decoded picture", got=got, expected="uint8 (H, W, 3)")
        square = self.crop(image, self.spec, rng)
        for step in self.steps:
            square = step(square, rng)
        return np.array(square)


def make_augment(config: AugmentConfig, spec: PreprocessSpec) -> Augment:
    """Build what varies one picture, as a recipe describes it; for MixUp and CutMix see `mix`.

    Args:
        config: ``[augment]``; a step of strength 0 is left out.
        spec: How the model's pictures are judged.

    Returns:
        A callable; without crop and steps it equals `polytag.preprocess.preprocess`.

    Example:
        >>> augment = make_augment(AugmentConfig(flip=0.5, rotate=20), PreprocessSpec(8))
        >>> augment.steps
        (Flip(chance=0.5), Rotate(degrees=20.0))
        >>> augment(np.zeros((20, 30, 3), np.uint8), np.random.default_rng(0)).shape
        (8, 8, 3)
    """
    asked = {field: getattr(config, field) for field in STEPS}
    steps = tuple(STEPS[field](strength) for field, strength in asked.items() if strength > 0)
    return Augment(spec, CROPS[config.crop](config), steps)


@dataclass(frozen=True)
class JudgedCrop:
    """The square that is judged, nothing random."""

    def __call__(self, image: Pixels, spec: PreprocessSpec, rng: Generator) -> Image.Image:
        return Image.fromarray(preprocess(image, spec))


@dataclass(frozen=True)
class RandomCrop:
    """A square of ``spec.crop_fraction`` of the frame's shorter side, anywhere in the frame.

    With .875 and S = 224: the shorter side to 256 pixels, then 224 x 224 of them.
    """

    def __call__(self, image: Pixels, spec: PreprocessSpec, rng: Generator) -> Image.Image:
        return _cut(image, np.full(2, spec.crop_fraction), spec, rng)


@dataclass(frozen=True)
class ResizedCrop:
    """A box anywhere in the frame, stretched to the square ("Inception crop").

    Its area is uniform from ``area`` to 1 times the frame's largest square (of the whole picture
    in Szegedy et al. 2015, arXiv 1409.4842), width over height log-uniform from 3/4 to 4/3.
    """

    area: float

    def __call__(self, image: Pixels, spec: PreprocessSpec, rng: Generator) -> Image.Image:
        return _cut(image, _rectangle(rng.uniform(self.area, 1), 3 / 4, 4 / 3, rng), spec, rng)


@dataclass(frozen=True)
class _Sometimes:
    """With this chance the picture is varied, else it is returned as it is."""

    chance: float

    def __call__(self, image: Image.Image, rng: Generator) -> Image.Image:
        return self._vary(image, rng) if rng.random() < self.chance else image

    def _vary(self, image: Image.Image, rng: Generator) -> Image.Image:
        raise NotImplementedError


class Flip(_Sometimes):
    """Left becomes right, with this chance."""

    def _vary(self, image: Image.Image, rng: Generator) -> Image.Image:
        return image.transpose(Transpose.FLIP_LEFT_RIGHT)


class FlipVertical(_Sometimes):
    """Top becomes bottom, with this chance."""

    def _vary(self, image: Image.Image, rng: Generator) -> Image.Image:
        return image.transpose(Transpose.FLIP_TOP_BOTTOM)


@dataclass(frozen=True)
class Rotate:
    """A turn about the centre of up to so many degrees either way."""

    degrees: float

    def __call__(self, image: Image.Image, rng: Generator) -> Image.Image:
        return _move(image, degrees=rng.uniform(-self.degrees, self.degrees))


@dataclass(frozen=True)
class Translate:
    """A move along both axes by up to this share of the side, in whole pixels: nothing blurs."""

    share: float

    def __call__(self, image: Image.Image, rng: Generator) -> Image.Image:
        right, down = np.rint(rng.uniform(-self.share, self.share, 2) * image.width)
        return _move(image, right, down)


class ShiftScaleRotate(_Sometimes):
    """With this chance one move (6 %), zoom (10 %) and turn (15 degrees), resampled once."""

    def _vary(self, image: Image.Image, rng: Generator) -> Image.Image:
        right, down = rng.uniform(-0.06, 0.06, 2) * image.width
        return _move(image, right, down, zoom=rng.uniform(0.9, 1.1), degrees=rng.uniform(-15, 15))


@dataclass(frozen=True)
class _Jitter:
    """Distances from some plain picture times a factor from 1 - jitter to 1 + jitter."""

    jitter: float
    _enhancer: ClassVar[type[ImageEnhance.Brightness | ImageEnhance.Contrast | ImageEnhance.Color]]

    def __call__(self, image: Image.Image, rng: Generator) -> Image.Image:
        factor = rng.uniform(1 - self.jitter, 1 + self.jitter)
        return self._enhancer(image).enhance(factor)


class Brightness(_Jitter):
    """Distances from black times a factor from 1 - b to 1 + b."""

    _enhancer = ImageEnhance.Brightness


class Contrast(_Jitter):
    """Distances from the picture's mean grey times a factor from 1 - c to 1 + c."""

    _enhancer = ImageEnhance.Contrast


class Saturation(_Jitter):
    """Distances from each pixel's own grey times a factor from 1 - s to 1 + s."""

    _enhancer = ImageEnhance.Color


@dataclass(frozen=True)
class Hue:
    """The colour wheel turned by up to this share either way; greys stay."""

    turn: float

    def __call__(self, image: Image.Image, rng: Generator) -> Image.Image:
        turn = round(rng.uniform(-self.turn, self.turn) * 255)
        hue, saturation, value = image.convert("HSV").split()
        hue = hue.point([(level + turn) % 256 for level in range(256)])
        return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


class Blur(_Sometimes):
    """With this chance a Gaussian blur of a standard deviation of .1 to 2 pixels."""

    def _vary(self, image: Image.Image, rng: Generator) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2)))


class Noise(_Sometimes):
    """With this chance Gaussian noise of a standard deviation of up to 12 levels, in each value."""

    def _vary(self, image: Image.Image, rng: Generator) -> Image.Image:
        values = np.asarray(image, dtype=np.float32)
        noise = np.float32(rng.uniform(0, 12)) * rng.standard_normal(values.shape, np.float32)
        return Image.fromarray(np.rint(values + noise).clip(0, 255).astype(np.uint8))


class CoarseDropout(_Sometimes):
    """With this chance 1 to 8 squares of up to an eighth of the side turn grey."""

    def _vary(self, image: Image.Image, rng: Generator) -> Image.Image:
        for _ in range(rng.integers(1, 8, endpoint=True)):
            side = rng.integers(1, max(1, image.width // 8), endpoint=True)
            image = _hide(image, np.array([side, side]), rng)
        return image


class Erase(_Sometimes):
    """With this chance a rectangle of 2 to 33 % of the area turns grey (arXiv 1708.04896)."""

    def _vary(self, image: Image.Image, rng: Generator) -> Image.Image:
        sides = _rectangle(rng.uniform(0.02, 0.33) * image.width**2, 0.3, 3.3, rng)
        return _hide(image, np.rint(sides).clip(1, image.width).astype(int), rng)


CROPS: dict[str, Callable[[AugmentConfig], Crop]] = {
    "none": lambda config: JudgedCrop(),
    "random": lambda config: RandomCrop(),
    "resized": lambda config: ResizedCrop(config.crop_area),
}

STEPS: dict[str, Callable[[float], Step]] = {
    "flip": Flip,
    "flip_vertical": FlipVertical,
    "rotate": Rotate,
    "translate": Translate,
    "shift_scale_rotate": ShiftScaleRotate,
    "brightness": Brightness,
    "contrast": Contrast,
    "saturation": Saturation,
    "hue": Hue,
    "blur": Blur,
    "noise": Noise,
    "coarse_dropout": CoarseDropout,
    "erase": Erase,
}


def mix(
    images: Pixels, targets: Floats, known: Bools, config: AugmentConfig, rng: Generator
) -> tuple[Pixels | Floats, Floats, Bools]:
    """Mix each picture of a batch with another one of it, and their targets alike.

    With l ~ Beta(alpha, alpha), drawn once a batch, and y' of the other picture, targets become
    l y + (1 - l) y'. A cell is known where both pictures' are: half a label is none.

    - MixUp (Zhang et al. 2018, arXiv 1710.09412, section 2): pictures become l x + (1 - l) x'.
    - CutMix (Yun et al. 2019, arXiv 1905.04899, equations 1 and 2): a rectangle of share 1 - l
      comes from x', its centre anywhere, cut at the border; l is then the share that stayed.

    The others are a permutation of the batch; a picture that meets itself stays as it was.

    Args:
        images: uint8 (B, S, S, 3).
        targets: float32 (B, K) in [0, 1]; anything where ``known`` is False.
        known: bool (B, K), False = not known.
        config: ``mixup`` and ``cutmix`` are the alphas; with both above 0 a fair coin decides.
        rng: Where all randomness comes from.

    Returns:
        The three in new arrays, targets 0 where not known, pictures float32 in [0, 255] after
        MixUp; with both alphas 0 the input itself.

    Example:
        >>> images, known = np.zeros((2, 4, 4, 3), np.uint8), np.array([[True], [False]])
        >>> config, rng = AugmentConfig(mixup=0.2), np.random.default_rng(5)
        >>> _, targets, known = mix(images, np.float32([[1], [np.nan]]), known, config, rng)
        >>> targets.tolist(), known.tolist()  # each met the other
        ([[0.0], [0.0]], [[False], [False]])
    """
    if not (config.mixup or config.cutmix):
        return images, targets, known
    takes_cutmix = config.cutmix > 0 and (config.mixup == 0 or rng.random() < 0.5)
    alpha = config.cutmix if takes_cutmix else config.mixup
    others, share = rng.permutation(len(images)), rng.beta(alpha, alpha)
    mixed: Pixels | Floats
    if takes_cutmix:
        mixed, share = _paste(images, images[others], share, rng)
    else:
        mixed = _blend(images.astype(np.float32), images[others].astype(np.float32), share)
    targets = np.where(known, targets, np.float32(0))  # before the arithmetic: holes may be NaN
    known = known & known[others]
    return mixed, np.where(known, _blend(targets, targets[others], share), np.float32(0)), known


def _blend(mine: Floats, other: Floats, share: float) -> Floats:
    # Not l x + (1 - l) x', which may differ from x by a rounding where x' is x.
    return other + np.float32(share) * (mine - other)


def _paste(mine: Pixels, other: Pixels, share: float, rng: Generator) -> tuple[Pixels, float]:
    """Return the pictures with one rectangle from others, and the share of pixels that stayed."""
    height, width = mine.shape[1:3]
    half = math.sqrt(1 - share) / 2
    (top, bottom), (left, right) = (
        np.rint(length * (centre + np.array([-half, half]))).clip(0, length).astype(int)
        for length, centre in ((height, rng.random()), (width, rng.random()))
    )
    mixed = mine.copy()
    mixed[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _cut(
    image: Pixels, sides: NDArray[np.float64], spec: PreprocessSpec, rng: Generator
) -> Image.Image:
    """Return a box of the frame as a square; ``sides`` are in units of the frame's shorter one."""
    picture = Image.fromarray(image)
    size = np.array(picture.size, dtype=float)
    frame, margin, stretch = size, np.zeros(2), np.ones(2)
    if spec.resize == "squash":
        frame = np.full(2, size.min())
        stretch = size / frame
    elif spec.resize == "pad":
        frame = np.full(2, size.max())
        margin = (frame - size) / 2
    sides = (sides * frame.min()).clip(1, frame)
    # A centre beyond the margin would show nothing but grey of a long picture.
    lowest = np.maximum(sides / 2, margin)
    centre = rng.uniform(lowest, frame - lowest)
    start, stop = ((centre + sign * sides / 2 - margin) * stretch for sign in (-1, 1))
    first, last = start.clip(0, size), stop.clip(0, size)  # only with "pad" is it less
    scale = spec.size / (stop - start)
    corner = np.rint((first - start) * scale).astype(int)
    extent = (np.rint((last - start) * scale).astype(int) - corner).clip(1)
    box = (*first.tolist(), *last.tolist())
    part = picture.resize(tuple(extent.tolist()), INTERPOLATIONS[spec.interpolation], box=box)
    square = Image.new("RGB", (spec.size, spec.size), GREY)
    square.paste(part, tuple(corner.tolist()))
    return square


def _rectangle(area: float, least: float, most: float, rng: Generator) -> NDArray[np.float64]:
    """Return width and height of this area, width over height log-uniform in [least, most]."""
    ratio = math.exp(rng.uniform(math.log(least), math.log(most)))
    return np.sqrt([area * ratio, area / ratio])


def _move(
    image: Image.Image, right: float = 0, down: float = 0, *, zoom: float = 1, degrees: float = 0
) -> Image.Image:
    """Turn a square counter-clockwise and zoom it about its centre, then move it, in pixels."""
    cos, sin = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
    half = image.width / 2
    # Pillow asks where a point of the result comes from: the way back.
    x, y = half + right, half + down
    back = (cos, -sin, half - cos * x + sin * y, sin, cos, half - sin * x - cos * y)
    return image.transform(image.size, Transform.AFFINE, back, Resampling.BILINEAR, fillcolor=GREY)


def _hide(image: Image.Image, sides: NDArray[np.int_], rng: Generator) -> Image.Image:
    """Return the square with a grey rectangle of these sides (width, height) anywhere in it."""
    left, top = rng.integers(0, image.width - sides, endpoint=True)
    image = image.copy()
    image.paste(GREY, (left, top, left + sides[0], top + sides[1]))
    return image
