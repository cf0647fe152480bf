"""Looks: copies of a picture stay near it, however they were saved, and others stay away."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from polytag.drawing import draw_picture
from polytag.images import decode
from polytag.looks import codes, differences, look, mirrored

COUNT = 16


def saved(image: Image.Image, quality: int = 85) -> Image.Image:
    """The picture after a journey through a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue()))


COPIES = {
    "saved again": lambda image: saved(image, 40),
    "halved": lambda image: saved(image.reduce(2)),
    "a third": lambda image: saved(image.reduce(3), 60),
    "enlarged": lambda image: saved(image.resize((image.width * 2, image.height * 2))),
    "stretched": lambda image: saved(image.resize((image.width, image.height * 9 // 10))),
    "darker": lambda image: saved(ImageEnhance.Brightness(image).enhance(0.9)),
    "mirrored": lambda image: saved(ImageOps.mirror(image)),
}


def of(image: Image.Image) -> np.ndarray:
    return look(np.asarray(image.convert("RGB")))


def bits(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.bitwise_count(codes(one) ^ codes(other))


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    return [Image.open(io.BytesIO(draw_picture(11, index))) for index in range(COUNT)]


@pytest.fixture(scope="module")
def looks(drawn) -> np.ndarray:
    return np.stack([of(image) for image in drawn])


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_stays_near(drawn, looks, copy):
    copies = np.stack([of(COPIES[copy](image)) for image in drawn])
    if copy == "mirrored":
        copies = mirrored(copies)
    assert bits(looks, copies).max() <= 5
    assert differences(looks, copies).max() <= 3


def test_different_pictures_stay_away(looks):
    one, other = np.triu_indices(COUNT, 1)
    for changed in (looks, mirrored(looks)):
        assert bits(looks[one], changed[other]).min() > 10
        assert differences(looks[one], changed[other]).min() > 12


def test_a_look_is_the_decoded_pictures_and_the_codes_know_no_brightness(drawn, looks):
    data = draw_picture(11, 3)
    assert np.array_equal(look(decode(data)), looks[3])
    assert looks.dtype == np.uint8 and looks.shape == (COUNT, 8, 8, 3)
    shifted = (looks // 2 + 40).astype(np.uint8)
    halves = (looks // 2).astype(np.uint8)
    assert bits(halves, shifted).max() == 0


def test_the_codes_are_the_signs_of_the_cosine_transform(looks):
    at = np.arange(8)
    for picture, code in zip(looks[:3], codes(looks[:3]), strict=True):
        grey = 0.299 * picture[..., 0] + 0.587 * picture[..., 1] + 0.114 * picture[..., 2]
        for u in range(8):
            for v in range(8):
                wave = np.outer(
                    np.cos(np.pi * u * (2 * at + 1) / 16), np.cos(np.pi * v * (2 * at + 1) / 16)
                )
                expected = (u, v) != (0, 0) and (grey * wave).sum() > 1e-6
                assert bool(int(code) >> (8 * u + v) & 1) == expected


def test_plain_pictures_have_no_waves_and_differ_by_colour():
    plain = np.stack(
        [np.full((8, 8, 3), colour, np.uint8) for colour in ((200, 30, 30), (40,) * 3)]
    )
    assert codes(plain).tolist() == [0, 0]
    assert differences(plain[:1], plain[1:])[0] > 50
    assert differences(np.zeros_like(plain), np.zeros_like(plain)).tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5000, 3), (3, 2, 3)])
def test_pictures_of_any_size_have_a_look(shape):
    assert look(np.full(shape, 9, np.uint8)).tolist() == np.full((8, 8, 3), 9).tolist()
