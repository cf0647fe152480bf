"""Size, shape and proportions of a model's input, and the spec that travels with the model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from polytag.errors import ImageError, UserError
from polytag.images import decode
from polytag.preprocess import (
    GAP,
    INTERPOLATIONS,
    MAX_SIZE,
    PreprocessSpec,
    decoded,
    picture,
    preprocess,
)

MODES = ("squash", "pad", "crop")


def smooth(height: int, width: int) -> np.ndarray:
    """A picture whose three channels run down, along and across."""
    y, x = np.mgrid[0:height, 0:width]
    ramps = (y / max(height - 1, 1), x / max(width - 1, 1), (x + y) / max(height + width - 2, 1))
    return np.stack([np.round(255 * ramp) for ramp in ramps], axis=2).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40),
    st.sampled_from(MODES),
    st.sampled_from(sorted(INTERPOLATIONS)),
)
def test_any_picture_becomes_a_square_of_the_size(height, width, size, resize, interpolation):
    image = smooth(height, width)
    before = image.copy()
    result = preprocess(image, PreprocessSpec(size, resize, interpolation))
    assert result.shape == (size, size, 3) and result.dtype == np.uint8
    assert result.flags.c_contiguous and result.flags.writeable
    assert np.array_equal(image, before)


@pytest.mark.parametrize("resize", MODES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_square_of_the_right_size_is_left_alone(resize, interpolation):
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    result = preprocess(image, PreprocessSpec(32, resize, interpolation))
    assert np.array_equal(result, image)
    result[:] = 0
    assert image.any()


def test_a_read_only_or_strided_picture_is_fine():
    image = smooth(40, 60)
    image.flags.writeable = False
    spec = PreprocessSpec(16, "squash", "bilinear")
    flipped = preprocess(image[:, ::-1], spec)
    assert np.array_equal(flipped, preprocess(np.ascontiguousarray(image[:, ::-1]), spec))


@pytest.mark.parametrize("resize", MODES)
def test_shrinking_averages_and_does_not_pick_single_pixels(resize):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    result = preprocess(stripes, PreprocessSpec(8, resize, "bilinear"))
    assert np.abs(result.astype(int) - 127).max() <= 12


def test_squash_shows_all_of_the_picture():
    result = preprocess(smooth(50, 100), PreprocessSpec(20, "squash", "bilinear")).astype(int)
    assert result[0, 0, 1] < 10 and result[0, -1, 1] > 245
    assert result[0, 0, 0] < 10 and result[-1, 0, 0] > 245


@pytest.mark.parametrize(("height", "width"), [(50, 100), (100, 50)])
def test_pad_keeps_the_proportions_and_fills_with_grey(height, width):
    white = np.full((height, width, 3), 255, np.uint8)
    result = preprocess(white, PreprocessSpec(20, "pad", "lanczos"))
    rows = result if height < width else result.swapaxes(0, 1)
    assert (rows[:5] == 127).all() and (rows[5:15] == 255).all() and (rows[15:] == 127).all()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("height", "width"), [(80, 120), (120, 80), (20, 30), (64, 64)])
def test_crop_equals_resizing_the_shorter_side_and_then_cropping(height, width, interpolation):
    size, image = 40, smooth(height, width)
    shorter = min(height, width)
    resized = Image.fromarray(image).resize(
        (width * size // shorter, height * size // shorter), INTERPOLATIONS[interpolation]
    )
    left, top = ((side - size) // 2 for side in resized.size)
    expected = np.asarray(resized.crop((left, top, left + size, top + size)))
    result = preprocess(image, PreprocessSpec(size, "crop", interpolation))
    assert np.abs(result.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (128, 128)])
def test_a_crop_fraction_takes_that_share_of_the_shorter_side(height, width):
    image = smooth(height, width)
    resized = Image.fromarray(image).resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    size = min(height, width) // 2 * 7 // 8
    left, top = ((side - size) // 2 for side in resized.size)
    expected = np.asarray(resized.crop((left, top, left + size, top + size)))
    result = preprocess(image, PreprocessSpec(size, "crop", "bicubic", crop_fraction=0.875))
    assert np.abs(result.astype(int) - expected).max() <= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.floats(1e-6, 1))
def test_any_crop_fraction_stays_inside_the_picture(height, width, share):
    image = np.full((height, width, 3), 9, np.uint8)
    result = preprocess(image, PreprocessSpec(8, "crop", "lanczos", crop_fraction=share))
    assert (result == 9).all()


@pytest.mark.parametrize("share", [0, -0.5, 1.1, float("nan"), float("inf"), True, "0.9", None])
def test_a_bad_crop_fraction_is_refused(share):
    with pytest.raises(UserError, match=r"bad crop_fraction; got .*, expected a number above 0"):
        PreprocessSpec(224, "crop", "bicubic", crop_fraction=share)


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1), (2, 60_001)])
@pytest.mark.parametrize("resize", MODES)
def test_extreme_shapes_need_little_memory(shape, resize):
    result = preprocess(np.full((*shape, 3), 200, np.uint8), PreprocessSpec(16, resize, "bicubic"))
    assert (result == 200).any()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_what_is_not_a_decoded_picture_is_refused(image):
    with pytest.raises(ImageError, match=r"expected uint8 \(H, W, 3\)"):
        preprocess(image, PreprocessSpec(4, "squash", "bilinear"))


@pytest.mark.parametrize("resize", MODES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_the_spec_survives_json(resize, interpolation):
    spec = PreprocessSpec(224, resize, interpolation, crop_fraction=0.875)
    assert PreprocessSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("size", [0, -1, MAX_SIZE + 1, 224.0, "224", True, None, float("nan")])
def test_a_bad_size_is_refused(size):
    with pytest.raises(UserError, match=f"bad size; got .*, expected a whole .* 1 to {MAX_SIZE}"):
        PreprocessSpec.from_dict(PreprocessSpec(224, "pad", "bicubic").to_dict() | {"size": size})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resize": "squish"}, "unknown resize; got 'squish'; did you mean 'squash'"),
        ({"resize": None}, "unknown resize; got None; known: crop, pad, squash"),
        ({"resize": []}, "unknown resize"),
        ({"interpolation": "nearest"}, "known: bicubic, bilinear, lanczos"),
        (
            {"mean": 0.5},
            "unknown key; got 'mean'; known: crop_fraction, interpolation, resize, size",
        ),
        ({"sizes": 3}, "unknown key; got 'sizes'; did you mean 'size'"),
    ],
)
def test_unknown_keys_and_bad_values_are_refused_with_the_known_ones(change, words):
    good = PreprocessSpec(224, "squash", "bicubic").to_dict()
    with pytest.raises(UserError, match=words):
        PreprocessSpec.from_dict(good | change)


@pytest.mark.parametrize("key", ["size", "resize", "interpolation", "crop_fraction"])
def test_a_missing_key_is_named(key):
    good = PreprocessSpec(224, "squash", "bicubic").to_dict()
    del good[key]
    with pytest.raises(UserError, match=f"missing key; expected {key}"):
        PreprocessSpec.from_dict(good)


# ------------------------------------------------------------------------------ from file to square


def jpeg(height: int, width: int, orientation: int = 1) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(smooth(height, width)).save(file, "JPEG", quality=95, exif=tags)
    return file.getvalue()


@pytest.mark.parametrize("resize", MODES)
@pytest.mark.parametrize("sides", [(127, 255), (128, 127), (40, 30), (127, 900)])
def test_a_picture_below_twice_the_needed_size_is_what_decoding_and_resizing_give(resize, sides):
    spec = PreprocessSpec(32, resize, "bicubic")
    for data in (jpeg(*sides), jpeg(*sides[::-1])):
        assert np.array_equal(picture(data, spec), preprocess(decode(data), spec))


@pytest.mark.parametrize("resize", MODES)
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("sides", [(256, 256), (259, 391), (515, 643), (1029, 1283)])
def test_a_large_picture_is_nearly_what_decoding_it_whole_gives(resize, orientation, sides):
    spec = PreprocessSpec(32, resize, "bicubic", crop_fraction=0.875)
    data = jpeg(*sides, orientation)
    assert np.prod(decoded(data, spec).image.size) < decode(data).size / 3 / 3  # reduced it is
    difference = picture(data, spec).astype(int) - preprocess(decode(data), spec)
    assert np.abs(difference).max() <= 3


def test_a_picture_keeps_the_needed_pixels_and_no_more_than_twice_as_many():
    for height, width in ((300, 400), (700, 500), (1100, 3000)):
        for spec in (PreprocessSpec(32, "squash"), PreprocessSpec(28, "crop", crop_fraction=0.5)):
            needed = GAP * spec.size / (spec.crop_fraction if spec.resize == "crop" else 1)
            shorter = min(decoded(jpeg(height, width), spec).image.size)
            assert needed <= shorter
            assert shorter < 2 * needed or shorter == -(-min(height, width) // 8)


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    spec = PreprocessSpec(16)
    with pytest.raises(ImageError, match=r"row 3: the file is empty"):
        picture(b"", spec, "row 3")
    with pytest.raises(ImageError, match=r"none\.jpg: the file does not exist"):
        picture(Path(tmp_path / "none.jpg"), spec)
