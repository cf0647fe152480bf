"""A drawn data set: garments on backgrounds, with a label table that has holes.

Every picture has its own random generators, seeded with ``(seed, index)``: one decides what is
true of it, another how it looks. A garment is drawn in garment units (shoulder to waist is 1; x
runs sideways, y downwards), and a canvas puts these on pixels, whatever the turn, size and bend.
"""

from __future__ import annotations

import colorsys
import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from polytag.errors import UserError

# How often each attribute is true. All but the last can be seen in the picture.
ATTRIBUTES = {
    "coloured": 0.88,  # the cloth has a hue; otherwise it is black, grey or white
    "pockets": 0.81,  # one pocket or two on the front
    "patterned": 0.53,  # stripes, checks, dots, flowers ... all over the cloth
    "belt": 0.08,  # a belt with a buckle around the waist
    "washable": 0.5,  # a coin
}
NA_SHARE = 0.1

Rng = np.random.Generator
Points = NDArray[np.float64]  # (n, 2), or (m, n, 2) for many shapes
Colour = tuple[int, ...]
Range = tuple[float, float]


class Cut(NamedTuple):
    """How a kind of garment is cut: the ranges its lengths and half widths are drawn from."""

    shares: Range  # of the pictures without a belt, of those with one
    length: Range
    waist: Range
    hem: Range
    shoulder: Range = (0, 0)  # 0: the garment begins at the waist
    sleeve: Range = (0, 0)  # share of the arm
    collar: bool = False
    legs: bool = False


CUTS = (
    Cut((0.17, 0), (1.25, 1.5), (0.4, 0.46), (0.4, 0.48), (0.44, 0.5), (0.25, 0.5)),  # t-shirt
    Cut((0.08, 0), (1.15, 1.45), (0.34, 0.42), (0.36, 0.5), (0.36, 0.42)),  # top
    Cut((0.13, 0), (1.25, 1.45), (0.4, 0.48), (0.38, 0.46), (0.46, 0.52), (0.85, 1)),  # jumper
    Cut((0.16, 0), (1.35, 1.6), (0.38, 0.44), (0.4, 0.48), (0.44, 0.5), (0.9, 1), True),  # shirt
    Cut((0.13, 0.3), (1.7, 2.3), (0.4, 0.46), (0.46, 0.62), (0.46, 0.52), (0.9, 1), True),  # coat
    Cut((0.14, 0.3), (1.7, 2.4), (0.28, 0.36), (0.42, 0.9), (0.36, 0.44), (0, 0.8)),  # dress
    Cut((0.1, 0.15), (0.8, 1.5), (0.28, 0.34), (0.42, 0.9)),  # skirt
    Cut((0.09, 0.25), (1, 2), (0.3, 0.36), (0.14, 0.22), legs=True),  # trousers
)
HUES = (0.0, 0.03, 0.07, 0.11, 0.15, 0.3, 0.4, 0.48, 0.55, 0.6, 0.65, 0.75, 0.85, 0.93)
PETALS = {"dots": (0, 0.0), "flowers": (5, 0.35), "stars": (5, 0.6), "leaves": (2, 0.6)}
BAG = [[-1, -1], [1, -1], [1, 0.8], [0.6, 1.2], [-0.6, 1.2], [-1, 0.8], [-1, -1]]
FLAP = [[-1.1, -1], [1.1, -1], [1.1, -0.4], [0, -0.1], [-1.1, -0.4], [-1.1, -1]]
SQUARE = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
BLOCKS = {"room": (3, 0.12, 0.45, 3), "street": (7, 0.3, 0.9, 7)}  # count, sizes, panes below


@dataclass(frozen=True)
class DrawnDataset:
    """Where a drawn data set lies and what is in it."""

    labels: Path  # the table: image, then one column an attribute; cells 1, 0 or NA
    images: Path  # the folder of pictures
    attributes: tuple[str, ...]  # in the table's order
    chance: tuple[str, ...]  # those of them that no picture shows
    missing: tuple[str, ...]  # images named in the table that have no file
    broken: tuple[str, ...]  # images whose file is truncated


def draw_dataset(folder: Path, *, count: int = 975, seed: int = 42) -> DrawnDataset:
    """Draw garment pictures and their label table; three files are missing, one is truncated.

    Args:
        folder: Does not exist yet, or is empty.
        count: Rows of the table, at least 5; fewer rows show the first of the same pictures.
        seed: Any integer from 0; the same one gives the same bytes.

    Raises:
        UserError: The folder holds something already; count or seed is too small.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     drawn = draw_dataset(Path(folder), count=6)
        ...     len(list(drawn.images.iterdir())), drawn.labels.read_text().splitlines()[0]
        (3, 'image,coloured,pockets,patterned,belt,washable')
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        fix = "name a folder that does not exist, or empty this one"
        raise UserError("something is already here", where=str(folder), fix=fix)
    if count < 5 or seed < 0:
        what = f"cannot draw {count} pictures from seed {seed}"
        raise UserError(what, expected="a count from 5 and a seed from 0")
    images, labels = folder / "images", folder / "labels.csv"
    images.mkdir(parents=True)
    names = [f"garment_{index:04d}.jpg" for index in range(count)]
    *missing, broken = (names[count * fifth // 5] for fifth in (1, 2, 3, 4))
    lines = [["image", *ATTRIBUTES], *([n, *table_cells(seed, k)] for k, n in enumerate(names))]
    for index, name in enumerate(names):
        if name not in missing:
            data = draw_picture(seed, index)
            (images / name).write_bytes(data[: len(data) // 2] if name == broken else data)
    labels.write_bytes("".join(",".join(line) + "\n" for line in lines).encode())
    return DrawnDataset(labels, images, tuple(ATTRIBUTES), ("washable",), tuple(missing), (broken,))


def truth(seed: int, index: int) -> dict[str, bool]:
    """What is true of a picture; drawing it starts from this."""
    coins = np.random.default_rng((seed, index, 0)).random(len(ATTRIBUTES))
    return {name: bool(coins[k] < share) for k, (name, share) in enumerate(ATTRIBUTES.items())}


def table_cells(seed: int, index: int) -> list[str]:
    """A picture's cells of the table: the truth, with holes punched at random."""
    holes = np.random.default_rng((seed, index, 1)).random(len(ATTRIBUTES)) < NA_SHARE
    return ["NA" if holes[k] else str(int(v)) for k, v in enumerate(truth(seed, index).values())]


class Canvas(NamedTuple):
    """An image, and the way from units to its pixels: a soft sideways bend, a matrix, a shift."""

    image: Image.Image
    matrix: Points
    origin: Points
    bend: float = 0.0
    phase: float = 0.0

    def mark(self, shapes: Points, fill: Colour | int, width: float = 0.0) -> None:
        """Fill one shape or many; if a width is given, stroke their lines instead."""
        sway = self.bend * np.sin(2.2 * shapes[..., 1:] + self.phase) * [1, 0]
        draw, pixels = ImageDraw.Draw(self.image), (shapes + sway) @ self.matrix.T + self.origin
        thick = max(1, round(width * float(np.hypot(*self.matrix[:, 1]))))
        for flat in pixels.reshape(-1, 2 * shapes.shape[-2]).tolist():
            draw.line(flat, fill, thick) if width else draw.polygon(flat, fill)


def motif(centres: Points, radius: float, petals: int = 0, depth: float = 0.0) -> Points:
    """Discs around centres, or flowers or stars of so many petals."""
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    reach = radius * (1 + depth * np.cos(petals * angle))
    return centres.reshape(-1, 1, 2) + np.stack([reach * np.sin(angle), -reach * np.cos(angle)], -1)


def rows(step: float, angle: float = 0.0, zigzag: float = 0.0) -> Points:
    """Parallel lines across the whole garment, their points one step apart."""
    x, y = np.meshgrid(*[np.arange(-1.7, 1.7, step)] * 2)
    y[:, ::2] += zigzag
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c * x - s * y, s * x + c * y + 1.1], -1)


def ribbon(path: Points, *widths: float) -> Points:
    """The area along a path, so many half widths wide at its points: sleeves, legs, limbs."""
    way = np.gradient(path, axis=0)
    half = np.array(widths) / np.linalg.norm(way, axis=1)
    side = np.stack([-way[:, 1], way[:, 0]], -1) * half[:, None]
    return np.concatenate([path + side, (path - side)[::-1]])


def rounded(outline: Points, softness: int = 5) -> Points:
    """The closed outline with its corners rounded: even points, averaged along their run."""
    closed = np.concatenate([outline, outline[:1]])
    run = np.cumsum(np.linalg.norm(np.diff(closed, axis=0, prepend=closed[:1]), axis=1))
    at = np.linspace(0, run[-1], 120, endpoint=False)
    even = np.stack([np.interp(at, run, closed[:, k]) for k in range(2)], -1)
    soft = np.mean([np.roll(even, k - softness // 2, axis=0) for k in range(softness)], axis=0)
    return np.concatenate([soft, soft[:1]])


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """A colour between two: 0 is the one, 1 the other."""
    return tuple(round(p + (q - p) * share) for p, q in zip(one, other, strict=True))


def paint(rng: Rng, depth: Range = (0, 0.5), value: Range = (0.25, 1), hue: float = -1) -> Colour:
    """A colour: of any hue, unless one is given; the deep ones are not the brightest."""
    hue = (rng.choice(HUES) if hue < 0 else hue) + rng.normal(0, 0.015)
    saturation = rng.uniform(*depth)
    shade = rng.uniform(*value) * (1 - 0.25 * saturation)
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, shade))


class Shape(NamedTuple):
    """A garment's parts, sleeves first, body last, and the measures that others go by."""

    cut: Cut
    upper: bool  # it hangs from the shoulders
    parts: list[Points]
    arms: list[Points]
    level: float  # of the waist
    waist: float
    length: float
    hem: float


def tailor(cut: Cut, rng: Rng) -> Shape:
    """Cut one garment."""
    length, waist, hem, shoulder, sleeve = (rng.uniform(*limits) for limits in cut[1:6])
    level = rng.uniform(0.92, 1.02) if shoulder else 0.06
    arms, parts = [], []
    for side in (-1, 1):
        down = rng.uniform(0.5, 1.45) + np.array([0, rng.uniform(-0.4, 0.4)])
        steps = 0.55 * np.stack([np.cos(down), np.sin(down)], -1)
        arm = np.cumsum([[(shoulder or 0.44) - 0.04, 0.26], *steps], axis=0)
        arms.append(arm * [side, 1])
        if sleeve > 0.2:
            cloth = ribbon(arm[0] + (arm - arm[0]) * sleeve, 0.19, 0.17 - 0.02 * sleeve, 0.14)
            cloth[0], cloth[-1] = (0.42, 0.48), (shoulder - 0.02, 0.09)  # armpit, shoulder
            parts.append(rounded(cloth, 3) * [side, 1])
        if cut.legs:
            leg = np.array([[0.52 * waist, 0.3], [rng.uniform(0.6, 1.1) * waist, length]])
            parts.append(ribbon(leg * [side, 1], 0.52 * waist, hem))
    if cut.legs:
        half = np.array([[0, 0], [waist, 0], [waist * 1.05, 0.62], [0, 0.66]])
    elif not shoulder:
        half = np.array([[0, 0], [waist, 0], [waist * 1.25, 0.35], [hem, length], [0, length]])
    else:
        neck, hip = rng.uniform([0.13, 0.08], [0.2, 0.3]), [0.5 * (waist + hem), level + 0.2]
        top = [[0, neck[1]], [neck[0], 0], [shoulder, 0.1], [0.42, 0.48]]
        half = np.array([*top, [waist, level], hip, [hem, length], [0, length]])
    body = rounded(np.concatenate([half, half[-2:0:-1] * [-1, 1]]))
    body[:, 1] += 0.03 * np.sin(rng.uniform(6, 16) * body[:, 0]) * (body[:, 1] / length) ** 8
    return Shape(cut, bool(shoulder), [*parts, body], arms, level, waist, length, hem)


def sew_pattern(canvas: Canvas, rng: Rng, colours: list[Colour]) -> None:
    """Cover the cloth with one pattern in two colours."""
    kind, step = str(rng.choice([*PETALS, "stripes", "checks", "zigzag"])), rng.uniform(0.1, 0.28)
    turn, width = rng.choice([0, np.pi / 2, rng.uniform(0, 3)]), step * rng.uniform(0.2, 0.4)
    for k, colour in enumerate(colours):
        if kind == "checks":
            canvas.mark(rows(step, turn + k * np.pi / 2), colour, width)
        elif kind in PETALS:
            canvas.mark(motif(rows(step, turn, step / 2)[k::2], width, *PETALS[kind]), colour)
        else:
            canvas.mark(rows(step, turn, step / 2 * (kind == "zigzag"))[k::2], colour, width)


def sew_pockets(canvas: Canvas, shape: Shape, rng: Rng, inside: Colour, line: Colour) -> None:
    """One pocket or two, with or without a flap."""
    place = [0.55 * shape.waist, shape.level + 0.28]
    if shape.upper and shape.length < 1.65:
        place = [0.5 * shape.waist, rng.choice([0.55, shape.length - 0.28])]
    size, pieces = rng.uniform(0.09, 0.14), [BAG, FLAP][: rng.integers(1, 3)]
    for side in (-1, 1) if rng.random() < 0.8 else (1,):
        for piece in pieces:
            outline = (np.array(piece) * size + place) * [side, 1]
            canvas.mark(outline, inside)
            canvas.mark(outline, line, 0.018)


def sew_trim(canvas: Canvas, shape: Shape, rng: Rng, line: Colour, accent: Colour) -> None:
    """What a garment has whatever its attributes: often an ornament, a collar, buttons."""
    (waist, level), (hem, length) = (shape.waist, shape.level), (shape.hem, shape.length)
    ornament = rng.choice(["none", "border", "emblem", "pleats"])
    if ornament == "border":
        canvas.mark(np.array([[-1.2, length - 0.06], [1.2, length - 0.06]]), accent, 0.1)
    elif ornament == "emblem":
        canvas.mark(motif(np.array([0.2, level * 0.6 + 0.1]), 0.08, 5, 0.3), accent)
    elif ornament == "pleats":
        ends = np.linspace([-waist, level, -hem, length], [waist, level, hem, length], 9)
        canvas.mark(ends.reshape(-1, 2, 2), mix(accent, line, 0.9), 0.01)
    if shape.cut.collar:
        worn_open, middle = rng.random() < 0.25, np.linspace([0, 0.15], [0, length], 9)
        canvas.mark(middle, accent if worn_open else line, 0.3 if worn_open else 0.015)
        if not worn_open:
            canvas.mark(motif(middle, 0.03) + np.array([0.04, 0]), mix(accent, line, 0.5))
        flap = np.array([[0.02, 0.24], [0.17, 0], [0.25, 0.1], [0.15, 0.34]])
        canvas.mark(np.stack([flap, flap * [-1, 1]]), mix(accent, line, 0.6))


def sew(pose: Canvas, shape: Shape, true: dict[str, bool], rng: Rng) -> list[Image.Image]:
    """The cloth with all that is on it, and its mask."""
    depth = (0.08, 0.85) if true["coloured"] else (0, 0.06)
    base, other, accent = (paint(rng, depth) for _ in range(3))
    line = mix(base, (0, 0, 0), 0.5) if sum(base) > 170 else mix(base, (255, 255, 255), 0.3)
    cloth = pose._replace(image=Image.new("RGB", pose.image.size, base))
    mask = pose._replace(image=Image.new("L", pose.image.size))
    if true["patterned"]:
        share = rng.uniform(0.05, 0.8)  # some patterns are hardly seen, as in real cloth
        sew_pattern(cloth, rng, [mix(base, other, share), mix(base, accent, share)])
    for part in shape.parts:
        mask.mark(part, 255)
        cloth.mark(part, line, 0.014)
    sew_trim(cloth, shape, rng, line, accent)
    if true["pockets"]:
        inside = mix(base, accent if rng.random() < 0.3 else line, rng.uniform(0.1, 0.7))
        sew_pockets(cloth, shape, rng, inside, line)
    if true["belt"]:
        width, y = rng.uniform(0.07, 0.12), shape.level + 0.02
        around = np.array([[-0.1 - shape.waist, y], [0.1 + shape.waist, y]])
        cloth.mark(around, paint(rng, (0, 0.7), (0.1, 0.8), 0.07), width)
        buckle = (SQUARE - 0.5) * 1.3 * width + [rng.uniform(-0.06, 0.06), y]
        cloth.mark(buckle, paint(rng, (0, 0.5), (0.8, 1), 0.13), 0.025)
    return [cloth.image, mask.image]


def folds(pose: Canvas, shape: Shape, rng: Rng) -> Image.Image:
    """How bright the cloth is: darker at its edges, soft folds. A quarter of its size."""
    small = Image.new("L", (pose.image.width // 8, pose.image.height // 8), 240)
    canvas = pose._replace(image=small, matrix=pose.matrix / 8, origin=pose.origin / 8)
    for part in shape.parts:
        canvas.mark(part, 195, 0.12)
    for _ in range(rng.integers(3, 9)):
        x, y = rng.uniform(-0.4, 0.4), rng.uniform(0.1, 0.8) * shape.length
        fold = np.array([[x, y], [x * 1.2, y + 0.2], [x * 1.5 + rng.normal(0, 0.1), y + 0.5]])
        canvas.mark(fold, int(rng.choice([165, 200, 255])), rng.uniform(0.03, 0.09))
    return small.filter(ImageFilter.GaussianBlur(1.5)).convert("RGB")


def furnish(canvas: Canvas, rng: Rng) -> None:
    """A background, in picture heights: a wall, plain or with planks, or a room, or a street."""
    wall, other, glow, floor = paint(rng), paint(rng), rng.random() ** 2, rng.uniform(0.7, 0.9)
    ends = np.array([[wall], [mix(wall, other, glow)]], np.uint8)
    column = Image.fromarray(ends).resize((1, canvas.image.height))
    canvas.image.paste(column.resize(canvas.image.size, Image.Resampling.NEAREST))
    kind = rng.choice(["wall", "planks", *BLOCKS])
    if kind == "planks":
        lines = rows(rng.uniform(0.1, 0.25), rng.choice([0, np.pi / 2, rng.uniform(0, 3)]))
        canvas.mark(lines, mix(wall, other, 0.3), rng.uniform(0.005, 0.04))
    elif kind in BLOCKS:
        canvas.mark(SQUARE * [2, 1] + [-0.1, floor], mix(other, (120, 115, 110), 0.5))
        count, low, high, panes = BLOCKS[kind]
        for _ in range(count):
            block, size, grid = paint(rng), rng.uniform(low, high, 2), rng.integers(1, panes, 2)
            place = [rng.uniform(-0.1, 1.2), floor + 0.03 - size[1] * rng.choice([1, 1, 1.8])]
            canvas.mark(SQUARE * size + place, block)
            pane = SQUARE * 0.7 + 0.15 + np.argwhere(np.ones(grid))[:, None]
            canvas.mark(pane / grid * size + place, mix(block, wall, 0.5))


def stand(canvas: Canvas, shape: Shape, rng: Rng) -> None:
    """Who wears it, in the units of a garment with shoulders."""
    skin, hair = paint(rng, (0.2, 0.6), (0.35, 1), 0.06), paint(rng, (0.1, 0.7), (0.1, 0.8), 0.08)
    clothes, bare = paint(rng), rng.random() < 0.3 or not shape.upper
    leg = ribbon(np.array([[0.17, 1], [0.19, 1.9], [0.2, 2.75]]), 0.17, 0.11, 0.07)
    canvas.mark(np.stack([leg, leg * [-1, 1]]), skin if bare else clothes)
    canvas.mark(motif(np.array([[0.23, 2.8], [-0.23, 2.8]]), 0.1), (50, 40, 40))
    for arm in shape.arms:
        canvas.mark(ribbon(arm, 0.08, 0.09, 0.06), skin)
        canvas.mark(motif(arm[-1:], 0.08), skin)
    canvas.mark(motif(np.array([0, -0.33]), 0.23, 2, -0.1), hair)
    canvas.mark(ribbon(np.array([[0, -0.2], [0, 0.35]]), 0.09, 0.16), skin)
    canvas.mark(motif(np.array([0, -0.27]), 0.18, 2, 0.1), skin)
    if not shape.upper:
        canvas.mark(ribbon(np.array([[0, 0.05], [0, 1.1]]), 0.44, 0.34), clothes)


def draw_picture(seed: int, index: int) -> bytes:
    """Draw one picture, at twice its size so that edges come out smooth; return its JPEG file."""
    rng, true = np.random.default_rng((seed, index, 2)), truth(seed, index)
    shares = [cut.shares[true["belt"]] for cut in CUTS]
    shape = tailor(CUTS[rng.choice(len(CUTS), p=shares)], rng)
    short, ratio = 2 * rng.integers(200, 301), rng.uniform(1, 1.5)
    sides = int(short) // 8 * 8, int(short * ratio) // 8 * 8
    size = sides if rng.random() < 0.75 else sides[::-1]
    fit = min(size[1] / (shape.length + 0.3), size[0] / (1.9 if shape.upper else 1.4))
    turn, skew = rng.normal(0, 0.12), rng.normal(0, 0.05)
    matrix = np.array([[np.cos(turn), skew - np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix *= fit * rng.uniform(0.65, 0.95)
    origin = np.array(size) * rng.uniform(0.43, 0.57, 2) - matrix @ [0, shape.length / 2]
    scene = Image.new("RGB", size)
    pose = Canvas(scene, matrix, origin, rng.normal(0, 0.04), rng.uniform(0, 6))
    furnish(Canvas(scene, np.eye(2) * size[1], np.zeros(2)), rng)
    if rng.random() < 0.55:
        stand(pose._replace(origin=origin - matrix @ [0, 0.97 - shape.level]), shape, rng)
    elif shape.upper:
        hook = [[-0.4, 0.14], [0, -0.08], [0, -0.2], [0.06, -0.26], [0, -0.08], [0.4, 0.14]]
        pose.mark(np.array(hook), (90, 80, 70), 0.025)
    scene, cloth, mask = (image.reduce(2) for image in (scene, *sew(pose, shape, true, rng)))
    shadow = mask.filter(ImageFilter.BoxBlur(5)).point(lambda v: v * 0.4)
    scene.paste((20, 20, 30), (4, 6), shadow)
    scene.paste(ImageChops.multiply(cloth, folds(pose, shape, rng).resize(mask.size)), mask=mask)
    return photograph(scene, rng)


def photograph(scene: Image.Image, rng: Rng) -> bytes:
    """Give a scene light, a colour cast, grain and perhaps blur; return a JPEG file."""
    if (blur := rng.uniform(-2, 1)) > 0:
        scene = scene.filter(ImageFilter.GaussianBlur(blur))
    x, y = (np.linspace(-1, 1, side, dtype=np.float32) for side in scene.size)
    light = rng.normal(1.1, 0.1) + rng.normal(0, 0.08) * x + rng.normal(0, 0.08) * y[:, None]
    grain = rng.uniform(1, 7) * rng.standard_normal(light.shape, dtype=np.float32)
    bands = [np.asarray(band) * (light * rng.normal(1, 0.03)) + grain for band in scene.split()]
    lit = [Image.fromarray(np.clip(band, 0, 255).astype(np.uint8)) for band in bands]
    file = io.BytesIO()
    Image.merge("RGB", lit).save(file, "JPEG", quality=int(rng.integers(55, 96)))
    return file.getvalue()
