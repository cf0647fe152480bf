"""Every step against torchvision or numpy, chances, seeds and boxes, and mixing with holes."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from tests.strategies import HOLES, holed_values

from polytag import augment as module
from polytag.augment import CROPS, STEPS, Augment, make_augment, mix
from polytag.backbone import import_timm
from polytag.config.training import AugmentConfig
from polytag.errors import ImageError
from polytag.preprocess import PreprocessSpec, preprocess

import_timm()
from torchvision.transforms.v2 import InterpolationMode  # noqa: E402
from torchvision.transforms.v2 import functional as reference  # noqa: E402

GREY = [127, 127, 127]
CHANCES = (
    *("flip", "flip_vertical", "shift_scale_rotate"),
    *("blur", "noise", "coarse_dropout", "erase"),
)
EVERYTHING = {
    **dict.fromkeys(CHANCES, 0.5),
    **{"crop": "resized", "rotate": 20, "translate": 0.1},
    **{"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1},
}


class Fraction:
    """A generator whose chances always come true and whose other draws lie at one place.

    0 is the lower end of every range, 1 its upper end: what comes out does not depend on the order
    of the draws.
    """

    def __init__(self, place: float) -> None:
        self.place = place

    def random(self):
        return 0.0

    def uniform(self, low, high, size=None):
        shape = np.shape(low) if size is None else size
        drawn = low + self.place * (np.asarray(high) - low)
        return np.broadcast_to(drawn, shape) if shape else float(drawn)

    def integers(self, low, high, endpoint=False):
        last = np.asarray(high) - (not endpoint)
        return np.minimum(low + np.floor(self.place * (last - low + 1)), last).astype(int)[()]

    def standard_normal(self, shape, dtype):
        return np.linspace(-2, 2, np.prod(shape), dtype=dtype).reshape(shape)


def picture(height: int = 48, width: int = 48, seed: int = 0) -> np.ndarray:
    """Coloured blobs, smooth enough to be moved by parts of a pixel."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def ramp(height: int, width: int) -> np.ndarray:
    """Red says how far right a pixel lies, green how far down; both sides at most 256."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8)


def box_of(square: np.ndarray) -> list[float]:
    """Read left, top, right, bottom of what a square shows of a `ramp`, from its inner pixels."""
    size = len(square)
    inner = np.arange(size // 4, size - size // 4)
    lines = [
        np.polyfit(inner + 0.5, square[inner[0] : inner[-1] + 1, :, 0].mean(0)[inner] + 0.5, 1),
        np.polyfit(inner + 0.5, square[:, inner[0] : inner[-1] + 1, 1].mean(1)[inner] + 0.5, 1),
    ]
    return [line[1] for line in lines] + [line[1] + size * line[0] for line in lines]


def built(size: int = 48, resize: str = "crop", fraction: float = 0.875, **fields) -> Augment:
    return make_augment(AugmentConfig(**fields), PreprocessSpec(size, resize, "bicubic", fraction))


def step(**fields):
    (only,) = built(**fields).steps
    return only


def difference(a, b) -> np.ndarray:
    return np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float))


# What is built


def test_steps_stand_in_the_order_of_the_recipe():
    others = {"crop", "crop_area", "mixup", "cutmix"}
    assert [field for field in AugmentConfig.model_fields if field not in others] == list(STEPS)


@pytest.mark.parametrize("field", STEPS)
def test_a_field_builds_its_step_and_nothing_else(field):
    (only,) = built(**{field: 0.25}).steps
    assert type(only) is STEPS[field] and only == STEPS[field](0.25)
    assert type(only).__name__.lower() == field.replace("_", "")


def test_strength_zero_leaves_a_step_out_and_mixing_is_no_step():
    assert built().steps == built(**dict.fromkeys(STEPS, 0)).steps == ()
    assert built(mixup=1, cutmix=1).steps == ()
    steps = built(**EVERYTHING, crop_area=0.3)
    assert len(steps.steps) == len(STEPS) and steps.crop == module.ResizedCrop(0.3)
    without = built(**{**EVERYTHING, "hue": 0}).steps
    assert set(steps.steps) - set(without) == {module.Hue(0.1)}


def test_every_crop_of_the_recipe_can_be_built():
    assert set(AugmentConfig.model_fields["crop"].annotation.__args__) == set(CROPS)
    assert built().crop == module.JudgedCrop() and built(crop="random").crop == module.RandomCrop()


def test_torch_is_not_imported():
    code = "import sys, polytag.augment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Crops


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_without_a_crop_the_square_is_the_judged_one(resize):
    image, spec = picture(90, 60), PreprocessSpec(32, resize, "bicubic", 0.875)
    square = make_augment(AugmentConfig(), spec)(image, np.random.default_rng(0))
    assert np.array_equal(square, preprocess(image, spec))


@pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("height", "width"), [(240, 160), (160, 240)])
def test_a_random_crop_is_a_square_of_the_fraction_anywhere_in_the_picture(place, height, width):
    square = built(64, crop="random")(ramp(height, width), Fraction(place))
    side = 0.875 * 160
    left, top = place * (width - side), place * (height - side)
    assert np.allclose(box_of(square), [left, top, left + side, top + side], atol=0.6)


def test_a_random_crop_equals_resizing_the_shorter_side_then_cropping():
    image = picture(300, 200, seed=1)
    # The longer side of 1.5 * 256 is whole too, so that both do the same.
    resized = reference.resize(Image.fromarray(image), [256], InterpolationMode.BICUBIC)
    assert resized.size == (256, 384)
    expected = reference.crop(resized, 384 - 224, 256 - 224, 224, 224)
    away = difference(built(224, crop="random")(image, Fraction(1)), expected)
    assert away.max() <= 2 and away.mean() < 0.05


def test_with_all_of_the_shorter_side_a_random_crop_moves_along_the_longer_one_only():
    boxes = [
        box_of(built(64, fraction=1.0, crop="random")(ramp(240, 160), np.random.default_rng(seed)))
        for seed in range(20)
    ]
    assert np.allclose([box[0] for box in boxes], 0, atol=0.6)
    assert np.ptp([box[1] for box in boxes]) > 40


def test_random_places_are_uniform_over_the_picture():
    crop = built(32, fraction=0.5, crop="random")
    tops = [box_of(crop(ramp(240, 160), np.random.default_rng(seed)))[1] for seed in range(400)]
    quarters = np.histogram(tops, bins=4, range=(-1, 161))[0]
    assert min(tops) < 5 and max(tops) > 155 and (np.abs(quarters - 100) < 35).all()


def resized_boxes(resize: str, height: int, width: int, area: float) -> np.ndarray:
    crop = built(64, resize, crop="resized", crop_area=area)
    image = ramp(height, width)
    return np.array([box_of(crop(image, np.random.default_rng(seed))) for seed in range(300)])


@pytest.mark.parametrize(("height", "width"), [(240, 160), (160, 240), (200, 200)])
def test_a_resized_crop_has_an_area_of_the_largest_square_and_bounded_proportions(height, width):
    left, top, right, bottom = resized_boxes("crop", height, width, 0.25).T
    assert min(left.min(), top.min()) > -1 and right.max() < width + 1 and bottom.max() < height + 1
    areas = (right - left) * (bottom - top) / min(height, width) ** 2
    ratios = np.log((right - left) / (bottom - top))
    assert 0.24 < areas.min() < 0.3 and 0.9 < areas.max() < 1.02
    # Boxes of more than 3/4 may have to be cut to the picture: the mean is a little lower.
    assert abs(areas.mean() - 0.625) < 0.04
    assert -np.log(4 / 3) - 0.03 < ratios.min() < -0.25 and 0.25 < ratios.max() < 0.32
    assert abs(ratios.mean()) < 0.05


def test_squashed_the_box_scales_with_both_sides():
    left, top, right, bottom = resized_boxes("squash", 240, 120, 0.25).T
    wide, high = (right - left) / 120, (bottom - top) / 240
    assert wide.max() < 1.02 and high.max() < 1.02 and (wide * high).min() > 0.24
    assert np.abs(np.log(wide / high)).max() < np.log(4 / 3) + 0.03
    assert abs(np.log(wide / high).mean()) < 0.05
    assert left.min() < 3 and right.max() > 117 and top.min() < 6 and bottom.max() > 234


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("height", "width"), [(200, 120), (120, 200)])
def test_padded_the_box_is_one_of_the_grey_square(place, height, width):
    image = picture(height, width, seed=2)
    canvas = np.full((200, 200, 3), 127, np.uint8)
    top, left = (200 - height) // 2, (200 - width) // 2
    canvas[top : top + height, left : left + width] = image
    start, side = place * (200 - 160), 160
    box = (start, start, start + side, start + side)
    expected = Image.fromarray(canvas).resize((80, 80), Image.Resampling.BICUBIC, box)
    square = built(80, "pad", fraction=0.8, crop="random")(image, Fraction(place))
    away = difference(square, expected).max(axis=2)
    # The grey's border is sharp here; where padding comes first the filter smears it.
    assert np.quantile(away, 0.9) <= 1 and (away > 1).mean() < 0.1
    assert (square == GREY).all(axis=2).mean() > 0.1


def test_padded_and_whole_the_square_is_the_judged_one():
    image = picture(200, 120)
    square = built(80, "pad", fraction=1.0, crop="random")(image, np.random.default_rng(0))
    assert np.array_equal(square, preprocess(image, PreprocessSpec(80, "pad", "bicubic")))


@pytest.mark.parametrize("shape", [(1000, 3), (2, 700), (300, 100)])
def test_a_padded_crop_always_shows_some_of_the_picture(shape):
    white = np.full((*shape, 3), 255, np.uint8)
    crop = built(16, "pad", crop="resized", crop_area=0.05)
    for seed in range(200):
        assert (crop(white, np.random.default_rng(seed)) == 255).any()


# Steps


@pytest.mark.parametrize("place", [0.0, 0.2, 0.9, 1.0])
@pytest.mark.parametrize(
    ("fields", "expected", "tolerance"),
    [
        ({"flip": 1}, lambda image, at: image[:, ::-1], 0),
        ({"flip_vertical": 1}, lambda image, at: image[::-1], 0),
        ({"brightness": 0.4}, lambda image, at: np.clip(image * (0.6 + 0.8 * at), 0, 255), 1),
    ],
)
def test_a_step_equals_its_formula(place, fields, expected, tolerance):
    image = picture()
    result = step(**fields)(Image.fromarray(image), Fraction(place))
    assert difference(result, expected(image.astype(float), place)).max() <= tolerance


@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"flip": 1}, lambda i, at: reference.horizontal_flip(i)),
        ({"flip_vertical": 1}, lambda i, at: reference.vertical_flip(i)),
        (
            {"rotate": 50},
            lambda i, at: reference.rotate(i, 100 * at - 50, InterpolationMode.BILINEAR, fill=GREY),
        ),
        (
            {"translate": 0.25},
            lambda i, at: reference.affine(
                i, 0, [round(24 * at - 12)] * 2, 1, [0, 0], InterpolationMode.BILINEAR, fill=GREY
            ),
        ),
        (
            {"shift_scale_rotate": 1},
            lambda i, at: reference.affine(
                i,
                15 - 30 * at,  # clockwise there
                [(0.12 * at - 0.06) * 48] * 2,
                0.9 + 0.2 * at,
                [0, 0],
                InterpolationMode.BILINEAR,
                fill=GREY,
            ),
        ),
        ({"brightness": 0.4}, lambda i, at: reference.adjust_brightness(i, 0.6 + 0.8 * at)),
        ({"contrast": 0.4}, lambda i, at: reference.adjust_contrast(i, 0.6 + 0.8 * at)),
        ({"saturation": 1}, lambda i, at: reference.adjust_saturation(i, 2 * at)),
        ({"blur": 1}, lambda i, at: i.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * at))),
    ],
)
def test_a_step_equals_torchvisions(place, fields, expected):
    image = Image.fromarray(picture(seed=3))
    away = difference(step(**fields)(image, Fraction(place)), expected(image, place)).max(axis=2)
    # A rounding apart; a pixel on the border may fall to either side of it.
    assert (away > 1).sum() <= 2


@pytest.mark.parametrize("place", [0.0, 0.25, 0.5, 0.7, 1.0])
def test_hue_is_near_torchvisions(place):
    image = Image.fromarray(picture(seed=4))
    expected = reference.adjust_hue(image, 0.8 * place - 0.4)
    # It cuts the turn to a 255th of the wheel, here it is rounded: six levels at most.
    away = difference(step(hue=0.4)(image, Fraction(place)), expected)
    assert away.max() <= 7 and (place == 0.7 or away.max() == 0)


def test_a_third_of_the_colour_wheel_makes_green_of_red_and_greys_stay():
    image = np.array([[[255, 0, 0], [90, 90, 90], [255, 255, 255]]], np.uint8)
    turned = np.asarray(step(hue=1 / 3)(Image.fromarray(image), Fraction(1)))
    assert difference(turned[0], [[0, 255, 0], [90, 90, 90], [255, 255, 255]]).max() <= 3


def test_blur_is_near_a_true_gaussian():
    image = picture(seed=5)
    expected = reference.gaussian_blur(Image.fromarray(image), [17, 17], [2.0, 2.0])
    inner = slice(8, -8)
    away = difference(step(blur=1)(Image.fromarray(image), Fraction(1)), expected)
    assert away[inner, inner].max() <= 4
    assert difference(image, expected)[inner, inner].max() > 8


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_noise_is_added_rounded_and_clipped(place):
    image = picture(seed=6)
    noise = 12 * place * np.linspace(-2, 2, image.size).reshape(image.shape)
    expected = np.clip(np.round(image + noise), 0, 255)
    result = difference(step(noise=1)(Image.fromarray(image), Fraction(place)), expected)
    assert result.max() <= 1 and (result > 0).mean() < 0.001


def test_noise_has_up_to_twelve_levels_and_no_drift():
    grey = Image.fromarray(np.full((32, 32, 3), 100, np.uint8))
    added = [
        np.asarray(step(noise=1)(grey, np.random.default_rng(seed))) - 100.0 for seed in range(300)
    ]
    spreads = np.std(added, axis=(1, 2, 3))
    assert spreads.min() < 1 and 11 < spreads.max() < 12.6 and abs(spreads.mean() - 6) < 0.7
    assert abs(np.mean(added)) < 0.05


def test_erase_hides_one_rectangle_of_the_right_size():
    white, areas, ratios = Image.new("RGB", (64, 64), "white"), [], []
    for seed in range(400):
        result = np.asarray(step(erase=1)(white, np.random.default_rng(seed)))
        grey = (result == GREY).all(axis=2)
        high, wide = grey.any(axis=1).sum(), grey.any(axis=0).sum()
        assert grey.sum() == high * wide and (result[~grey] == 255).all()
        areas.append(grey.mean())
        ratios.append(wide / high)
    assert 0.015 < min(areas) < 0.04 and 0.3 < max(areas) < 0.345
    assert 0.27 < min(ratios) < 0.4 and 2.5 < max(ratios) < 3.7
    assert abs(np.mean(areas) - 0.175) < 0.015 and abs(np.log(ratios).mean()) < 0.1
    # Every corner can be hidden.
    for place, corner in ((0.0, (0, 0)), (1.0, (-1, -1))):
        assert np.asarray(step(erase=1)(white, Fraction(place)))[corner].tolist() == GREY


def test_coarse_dropout_hides_one_to_eight_small_squares():
    white = Image.new("RGB", (64, 64), "white")
    one = np.asarray(step(coarse_dropout=1)(white, Fraction(0)))
    assert np.argwhere((one == GREY).all(axis=2)).tolist() == [[0, 0]]
    largest = (np.asarray(step(coarse_dropout=1)(white, Fraction(1))) == GREY).all(axis=2)
    assert largest[-8:, -8:].all() and largest.sum() == 64
    hidden = np.zeros((64, 64))
    for seed in range(300):
        result = np.asarray(step(coarse_dropout=1)(white, np.random.default_rng(seed)))
        grey = (result == GREY).all(axis=2)
        assert 1 <= grey.sum() <= 8 * 64
        hidden += grey
    assert hidden.max() < 0.1 * 300 and (hidden == 0).mean() < 0.03
    # 4.5 squares of (1 + 4 + ... + 64) / 8 = 25.5 pixels each; few overlap.
    assert abs(hidden.sum() / 300 - 4.5 * 25.5) < 12


@pytest.mark.parametrize("fields", [{"rotate": 30}, {"translate": 0.3}, {"shift_scale_rotate": 1}])
def test_a_move_uncovers_grey_and_nothing_else(fields):
    white = Image.new("RGB", (40, 40), "white")
    result = np.asarray(step(**fields)(white, Fraction(0)))
    grey, kept = (result == GREY).all(axis=2), (result == 255).all(axis=2)
    assert (grey | kept).all() and grey.any() and kept.any()


def test_a_translation_moves_whole_pixels_up_to_the_share():
    image = picture()
    for place, shift in ((0.0, -12), (1.0, 12)):
        result = np.asarray(step(translate=0.25)(Image.fromarray(image), Fraction(place)))
        expected = np.full_like(image, 127)
        mine, its = (slice(12, None), slice(None, -12))[:: np.sign(shift)]
        expected[mine, mine] = image[its, its]
        assert np.array_equal(result, expected)


@pytest.mark.parametrize("field", CHANCES)
@pytest.mark.parametrize("chance", [0.3, 1.0])
def test_a_step_happens_as_often_as_its_chance(field, chance):
    image, rng = Image.fromarray(picture(16, 16)), np.random.default_rng(7)
    vary = step(**{field: chance})
    times = sum(vary(image, rng) is not image for _ in range(2000))
    assert abs(times - 2000 * chance) <= (0 if chance == 1 else 4 * np.sqrt(2000 * 0.3 * 0.7))


@pytest.mark.parametrize("field", STEPS)
def test_a_step_leaves_its_input_alone(field):
    image = Image.fromarray(picture())
    before = image.tobytes()
    for seed in range(5):
        step(**{field: 0.5})(image, np.random.default_rng(seed))
    assert image.tobytes() == before


# The whole


def test_the_same_seed_gives_the_same_pixels_in_any_thread_and_another_seed_others():
    vary, image = built(32, **EVERYTHING), picture(70, 50)

    def varied(seed: int) -> bytes:
        return vary(image, np.random.default_rng([3, 1, seed])).tobytes()

    alone = [varied(seed) for seed in range(64)]
    assert len(set(alone)) == 64
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(varied, range(64))) == alone


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (300, 1), (2, 20000), (20000, 3), (8, 8)])
@pytest.mark.parametrize("colour", [0, 255])
def test_the_strangest_pictures_become_squares(crop, resize, shape, colour):
    image = np.full((*shape, 3), colour, np.uint8)
    image.flags.writeable = False
    vary = built(8, resize, **{**EVERYTHING, "crop": crop, "crop_area": 0.01})
    for seed in range(5):
        square = vary(image, np.random.default_rng(seed))
        assert square.shape == (8, 8, 3) and square.dtype == np.uint8
        assert square.flags.c_contiguous and square.flags.writeable


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(1, 24),
    st.sampled_from(["crop", "squash", "pad"]),
    st.sampled_from(["random", "resized"]),
    st.floats(1e-6, 1),
    st.integers(0, 2**32),
)
def test_a_plain_picture_stays_plain_whatever_is_cut(shape, size, resize, crop, area, seed):
    image = np.full((*shape, 3), 40, np.uint8)
    cut = built(size, resize, fraction=area, crop=crop, crop_area=area)
    square = cut(image, np.random.default_rng(seed))
    allowed = {40, 127} if resize == "pad" else {40}
    assert square.shape == (size, size, 3) and 40 in square and set(square.flat) <= allowed


@pytest.mark.parametrize("crop", ["random", "resized"])
@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_a_box_is_never_smaller_than_a_pixel(crop, resize):
    cut = built(8, resize, fraction=1e-300, crop=crop, crop_area=1e-300)
    assert cut(picture(30, 40), np.random.default_rng(0)).shape == (8, 8, 3)


@pytest.mark.parametrize("size", [1, 4])
def test_squares_of_few_pixels_are_varied_too(size):
    vary = built(size, **{**EVERYTHING, **dict.fromkeys(CHANCES, 1)})
    for seed in range(10):
        assert vary(picture(), np.random.default_rng(seed)).shape == (size, size, 3)


def test_a_flipped_view_of_an_array_will_do():
    image = picture(30, 40)
    for crop in CROPS:
        squares = [
            built(16, crop=crop)(view, np.random.default_rng(0))
            for view in (image[:, ::-1], np.ascontiguousarray(image[:, ::-1]))
        ]
        assert np.array_equal(*squares)


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
    ids=["grey", "float", "empty"],
)
def test_what_is_no_decoded_picture_is_refused(crop, image):
    with pytest.raises(ImageError, match="not a decoded picture"):
        built(8, crop=crop)(image, np.random.default_rng(0))


# Mixing

MIXES = {"mixup": {"mixup": 0.4}, "cutmix": {"cutmix": 1.0}}


def plain_batch(count: int = 6, size: int = 12):
    """Pictures of one colour each, 40 apart, and targets that say which picture it is."""
    images = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None] * 40, (count, size, size, 3)
    )
    return images, np.eye(count, dtype=np.float32), np.ones((count, count), dtype=bool)


def who_met_whom(config: AugmentConfig, seed: int, count: int = 6) -> tuple[list[int], float]:
    """Return the permutation and the share that a seed draws, read off results for `plain_batch`.

    The share is that of pictures that met another one, 1 if there is none.
    """
    images, targets, known = plain_batch(count)
    _, _, still = mix(images, targets, targets == 0, config, np.random.default_rng(seed))
    holes = [set(np.flatnonzero(~row).tolist()) - {at} for at, row in enumerate(still)]
    others = [hole.pop() if hole else at for at, hole in enumerate(holes)]
    assert sorted(others) == list(range(count)) and not any(holes)
    _, targets, _ = mix(images, targets, known, config, np.random.default_rng(seed))
    shares = [targets[at, at] for at, other in enumerate(others) if at != other] or [1.0]
    assert np.ptp(shares) < 1e-6
    expected = np.eye(count) * shares[0] + np.eye(count)[others] * (1 - shares[0])
    assert np.allclose(targets, expected, atol=1e-6)
    return others, float(shares[0])


@pytest.mark.parametrize("kind", MIXES)
def test_pictures_and_targets_are_mixed_in_the_same_share(kind):
    config = AugmentConfig(**MIXES[kind])
    images, targets, known = plain_batch()
    seen = 0
    for seed in range(50):
        others, share = who_met_whom(config, seed)
        mixed, soft, still = mix(images, targets, known, config, np.random.default_rng(seed))
        assert mixed.shape == images.shape and soft.dtype == np.float32 and still.all()
        seen += 0 < share < 1
        if kind == "mixup":
            expected = share * images.astype(float) + (1 - share) * images[others]
            assert mixed.dtype == np.float32 and np.allclose(mixed, expected, atol=1e-3)
            assert mixed.min() >= 0 and mixed.max() <= 255
            continue
        assert mixed.dtype == np.uint8
        for row, other in enumerate(others):
            foreign = (mixed[row] != images[row]).any(axis=2)
            assert (mixed[row][foreign] == images[other][foreign]).all()
            high, wide = foreign.any(axis=1).sum(), foreign.any(axis=0).sum()
            assert foreign.sum() == high * wide
            if other != row:
                assert np.isclose(foreign.mean(), 1 - share, atol=1e-6)
    assert seen > 25


@pytest.mark.parametrize("kind", MIXES)
def test_a_picture_that_meets_itself_stays_as_it_was(kind):
    config, count = AugmentConfig(**MIXES[kind]), 4
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 12, 12, 3), np.uint8)
    soft = rng.random((count, 5), dtype=np.float32)
    known, fixed = rng.random((count, 5)) < 0.7, 0
    for seed in range(40):
        others, _ = who_met_whom(config, seed, count)
        mixed, targets, still = mix(images, soft, known, config, np.random.default_rng(seed))
        for row in (row for row, other in enumerate(others) if row == other):
            fixed += 1
            assert np.array_equal(mixed[row], images[row])
            assert np.array_equal(targets[row], np.where(known[row], soft[row], 0))
            assert np.array_equal(still[row], known[row])
    assert fixed > 20


def test_mixup_shares_are_beta_distributed():
    config = AugmentConfig(mixup=0.4)
    shares = []
    for seed in range(1500):
        _, targets, _ = mix(*plain_batch(3, 1), config, np.random.default_rng(seed))
        shares += [targets[0, 0]] if targets[0, 0] < 1 else []
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert abs(np.mean(shares) - 0.5) < 0.04 and abs(np.var(shares) - 1 / (4 * 1.8)) < 0.015


@pytest.mark.parametrize(
    ("centre", "rows", "share"),
    [(0.5, slice(4, 12), 0.75), (0.0, slice(0, 4), 15 / 16), (0.875, slice(10, 16), 55 / 64)],
)
def test_a_cutmix_rectangle_has_the_drawn_share_until_it_is_cut_at_the_border(centre, rows, share):
    class Draws:
        def permutation(self, count):
            return np.arange(count)[::-1]

        def beta(self, one, other):
            return 0.75

        def random(self):
            return centre

    images, targets, known = plain_batch(2, 16)
    mixed, soft, _ = mix(images, targets, known, AugmentConfig(cutmix=1), Draws())
    expected = images.copy()
    expected[:, rows, rows] = images[::-1, rows, rows]
    assert np.array_equal(mixed, expected)
    assert np.allclose(soft, [[share, 1 - share], [1 - share, share]])


def test_a_cutmix_rectangle_is_the_same_in_all_pictures_and_reaches_every_corner():
    config, size = AugmentConfig(cutmix=1.0), 16
    images, targets, known = plain_batch(2, size)
    counts = np.zeros((size, size))
    for seed in range(400):
        mixed, _, _ = mix(images, targets, known, config, np.random.default_rng(seed))
        foreign = (mixed != images).any(axis=3)
        assert np.array_equal(foreign[0], foreign[1])
        counts += foreign[0]
    assert (counts > 0).all() and np.allclose(counts, counts.T, atol=40)
    # Half of the 400 batches meet others; the middle is covered most.
    assert counts[8, 8] > 1.5 * counts[0, 0]


def test_with_both_alphas_a_fair_coin_decides_for_the_batch():
    config = AugmentConfig(mixup=0.2, cutmix=1.0)
    kinds = [
        mix(*plain_batch(2, 4), config, np.random.default_rng(seed))[0].dtype
        for seed in range(1000)
    ]
    assert set(kinds) == {np.dtype(np.uint8), np.dtype(np.float32)}
    assert abs(kinds.count(np.dtype(np.uint8)) - 500) < 65


def test_with_neither_alpha_the_input_itself_comes_back():
    batch = plain_batch()
    result = mix(*batch, AugmentConfig(), np.random.default_rng(0))
    assert all(mine is its for mine, its in zip(result, batch, strict=True))


@pytest.mark.parametrize("alpha", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("kind", MIXES)
def test_strange_alphas_and_small_batches_give_finite_numbers(kind, alpha):
    config = AugmentConfig(**{kind: alpha})
    for count, size in ((1, 8), (2, 1), (5, 8)):
        for seed in range(20):
            images, targets, known = mix(
                *plain_batch(count, size), config, np.random.default_rng(seed)
            )
            assert np.isfinite(images).all() and targets.min() >= 0 and targets.max() <= 1
            assert known.all()


@pytest.mark.parametrize("holes", HOLES)
@pytest.mark.parametrize("kind", MIXES)
def test_a_mixed_cell_is_known_where_both_were_and_what_stands_under_holes_is_nothing(holes, kind):
    config = AugmentConfig(**MIXES[kind])

    @settings(max_examples=40, deadline=None)
    @given(
        holed_values(6, 4, holes),
        st.sampled_from([np.nan, np.inf, -np.inf, 1.0, -3e38]),
        st.integers(0, 1000),
    )
    def check(values, under, seed):
        images, _, _ = plain_batch()
        known = ~np.isnan(values)
        targets = np.where(known, values, np.float32(0))
        poisoned = np.where(known, values, np.float32(under))
        for array in (targets, poisoned, known):
            array.flags.writeable = False
        mixed, soft, still = mix(images, targets, known, config, np.random.default_rng(seed))
        again = mix(images, poisoned, known, config, np.random.default_rng(seed))
        for mine, its in zip((mixed, soft, still), again, strict=True):
            assert mine.dtype == its.dtype and mine.tobytes() == its.tobytes()
        others, share = who_met_whom(config, seed)
        assert np.array_equal(still, known & known[others])
        expected = share * targets + (1 - share) * targets[others]
        assert np.allclose(soft, np.where(still, expected, 0), atol=1e-6)
        assert (soft[~still] == 0).all()

    check()
