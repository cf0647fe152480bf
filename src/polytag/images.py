"""Pictures from outside: safe decoding, one result for everybody.

Training, prediction, serving and batch jobs all decode here, so that a model never meets other
pixels than it was trained on. What comes from outside is not trusted: the format is told by the
first bytes and must be one of six, the size is checked before a pixel is decoded, and whatever a
decoder raises becomes an `ImageError` that names the file.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base as Tag
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from polytag.errors import ImageError, UserError, printable

MAX_PIXELS = 50_000_000
"""Largest picture, width times height: above any phone's usual shot, 200 MB once decoded."""

MAX_SIDE = 65_535
"""Longest side in pixels, JPEG's own limit. Resizing needs memory for target size x height, so a
picture one pixel wide and fifty million high would pass `MAX_PIXELS` and still be a bomb."""

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
)
"""How the name of a picture ends, in lower case: only for looking through folders."""

# The allow-list: what reads a format and how its files begin. The classes are called directly, not
# through Image.open: that one prints a warning (which no thread can safely catch) where we raise
# an error, and drops the reason when a header cannot be read. JpegImageFile reads the first
# picture of a phone's MPO file as it stands.
_FORMATS: dict[str, tuple[type[ImageFile.ImageFile], bytes]] = {
    "JPEG": (JpegImageFile, rb"\xff\xd8\xff"),
    "PNG": (PngImageFile, rb"\x89PNG\r\n\x1a\n"),
    "WebP": (WebPImageFile, rb"RIFF....WEBP"),
    "BMP": (BmpImageFile, rb"BM"),
    "GIF": (GifImageFile, rb"GIF8[79]a"),
    "TIFF": (TiffImageFile, rb"II[*+]\0|MM\0[*+]"),
}

# By the value of its EXIF orientation: what turns a picture upright, and which of its edges (0 to
# 3: left, upper, right, lower) are then left, upper, right and lower.
_Turn = tuple[Image.Transpose | None, tuple[int, int, int, int]]
_AS_IT_LIES: _Turn = (None, (0, 1, 2, 3))
_TURNS: dict[int, _Turn] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, (2, 1, 0, 3)),
    3: (Image.Transpose.ROTATE_180, (2, 3, 0, 1)),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, (0, 3, 2, 1)),
    5: (Image.Transpose.TRANSPOSE, (1, 0, 3, 2)),
    6: (Image.Transpose.ROTATE_270, (3, 0, 1, 2)),
    7: (Image.Transpose.TRANSVERSE, (3, 2, 1, 0)),
    8: (Image.Transpose.ROTATE_90, (1, 2, 3, 0)),
}


class Reduced(NamedTuple):
    """A picture decoded at its own scale or at 1/2, 1/4 or 1/8 of it.

    Attributes:
        image: RGB, upright. Pillow's, as a copy to an array and back takes as long as decoding.
        box: The picture's left, upper, right and lower edge in ``image``: where the scale does
            not divide its size, its pixels exceed it.
    """

    image: Image.Image
    box: tuple[float, float, float, float]


def decode(
    source: Path | bytes, *, name: str = "", max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode one picture: JPEG, PNG, WebP, BMP, GIF or TIFF, whatever its name claims.

    The first frame; turned upright by its EXIF orientation; transparency over white; 16 bits
    reduced to the upper 8; CMYK, YCbCr, LAB, palettes and greys as RGB. Safe to call from many
    threads: no global setting of Pillow or of warnings is touched.

    Args:
        source: A file, or the bytes of one.
        name: What error messages call the picture; empty: the path.
        max_pixels: Largest width times height, checked in the header before decoding.

    Returns:
        uint8 (H, W, 3), RGB, C-contiguous, writable and the caller's own.

    Raises:
        ImageError: The file is missing, a folder, unreadable, empty, not one of the six formats,
            too large, truncated or broken, or has pixels of 32 bits. The message names the file.

    Example:
        >>> white_pixel = bytes.fromhex("474946383961010001008000000000"
        ...                             "00ffffff2c000000000100010000020244003b")
        >>> decode(white_pixel, name="dot.gif").shape
        (1, 1, 3)
        >>> decode(b"<!DOCTYPE html>", name="photo.jpg")
        Traceback (most recent call last):
        polytag.errors.ImageError: photo.jpg: not a picture; got a file that begins with
        b'<!DOCTYPE html>', expected JPEG, PNG, WebP, BMP, GIF or TIFF
    """
    return np.array(decode_reduced(source, MAX_SIDE, name=name, max_pixels=max_pixels).image)


def decode_reduced(
    source: Path | bytes, least: int, *, name: str = "", max_pixels: int = MAX_PIXELS
) -> Reduced:
    """Decode one picture as `decode` does, but a large JPEG no larger than needed.

    The smallest scale is taken that leaves the shorter side ``least`` (at least 1) pixels; a
    picture of less than twice that many, and every other format, is decoded as it is.

    Raises:
        ImageError: As for `decode`; ``max_pixels`` counts before reducing.

    Example:
        >>> Image.new("RGB", (100, 201)).save(file := io.BytesIO(), "JPEG")
        >>> decode_reduced(file.getvalue(), 30).box  # 101 rows of pixels
        (0.0, 0.0, 50.0, 100.5)
    """
    where = printable(name or (str(source) if isinstance(source, Path) else "<bytes>"))
    with _open(source, where) as file:
        kind, step = "file", "cannot read"
        try:
            kind, step = _kind(file.read(16), where), "cannot read the header of"
            file.seek(0)
            image = _FORMATS[kind][0](file)
            _check_size(image, where, max_pixels)
            step = "cannot decode"
            beyond = _reduce(image, least)
            return _upright(_rgb(image, where), _turn(image), beyond)
        except ImageError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError("the picture is too large", where=where, got=str(error)) from error
        except Exception as error:  # decoders raise nearly anything on broken input
            raise _broken(step, kind, where, error) from error


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits.

    Raises:
        ImageError: The file is missing, a folder, or cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "a.jpg")
        ...     _ = file.write_bytes(b"abc")
        ...     content_hash(file)[:16]
        'ba7816bf8f01cfea'
    """
    where = printable(str(path))
    with _open(path, where) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(where, error) from error


def find_images(inputs: Sequence[str]) -> list[Path]:
    """List the pictures meant by file names, folders and patterns.

    A named file is kept whatever its suffix, and even if it is missing: whoever decodes it says
    so. A folder stands for the pictures in it and below it, told by their suffix (`SUFFIXES`), in
    sorted order; hidden files and folders are left out, linked folders not followed. A pattern
    (``'*.png'``, ``'shots/**/*.jpg'``) stands for the pictures and folders that it matches.

    Returns:
        The files in the order of the inputs, each once.

    Raises:
        UserError: An input is empty, a folder or pattern holds no picture, or a folder cannot be
            read.

    Example:
        >>> [path.name for path in find_images(["b.jpg", "a.dat", "b.jpg"])]
        ['b.jpg', 'a.dat']
    """
    found: dict[str, Path] = {}
    for text in inputs:
        for path in _meant_by(text):
            found.setdefault(os.path.normpath(path.absolute()), path)
    return list(found.values())


def _meant_by(text: str) -> list[Path]:
    """Return the files that one input of `find_images` stands for."""
    path = Path(text)
    if not text:
        raise UserError("an input is empty", expected="a file, a folder or a pattern")
    if _is_folder(path):
        what, files = "no picture in this folder", _walk(path)
    elif os.path.lexists(path) or not glob.has_magic(text):
        return [path]
    else:
        what, files = "no picture matches this pattern", []
        matches = glob.glob(text, recursive=True)  # noqa: PTH207 (Path.glob: relative ones only)
        for match in map(Path, sorted(matches)):
            if _is_folder(match):
                files.extend(_walk(match))
            elif match.suffix.lower() in SUFFIXES:
                files.append(match)
    if not files:
        expected = "names that end in " + ", ".join(sorted(SUFFIXES))
        raise UserError(what, where=printable(text), expected=expected)
    return files


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # may not be looked at: whoever opens it says so
        return False


def _walk(folder: Path) -> list[Path]:
    """List the pictures in a folder and below it, sorted, without the hidden ones."""

    def refuse(error: OSError) -> None:
        where = printable(str(error.filename))
        raise UserError("the folder cannot be read", where=where, got=_reason(error)) from error

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = (Path(parent, name) for name in names if not name.startswith("."))
        found.extend(file for file in files if file.suffix.lower() in SUFFIXES)
    return sorted(found)


def _open(source: Path | bytes, where: str) -> io.BytesIO | io.BufferedReader:
    """Open a picture for reading; a file object, not a path, because Pillow maps paths into
    memory, where a file that shrinks meanwhile kills the process."""
    if not isinstance(source, Path):
        return io.BytesIO(source)
    try:
        mode = source.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError("this is a folder, not a picture", where=where)
        if not stat.S_ISREG(mode):  # opening a pipe could wait for ever
            raise ImageError("this is not a regular file", where=where)
        return source.open("rb")
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name no system can hold
        raise _unreadable(where, error) from error


def _unreadable(where: str, error: Exception) -> ImageError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ImageError("the file does not exist", where=where)
    if isinstance(error, PermissionError):
        return ImageError("no permission to read the file", where=where)
    return ImageError("the file cannot be read", where=where, got=_reason(error))


def _kind(head: bytes, where: str) -> str:
    """Tell the format by a file's first 16 bytes."""
    if not head:
        raise ImageError("the file is empty", where=where)
    for kind, (_, beginning) in _FORMATS.items():
        if re.match(beginning, head, re.DOTALL):
            return kind
    *kinds, last = _FORMATS
    got, expected = f"a file that begins with {head!r}", f"{', '.join(kinds)} or {last}"
    raise ImageError("not a picture", where=where, got=got, expected=expected)


def _check_size(image: ImageFile.ImageFile, where: str, max_pixels: int) -> None:
    """Refuse what is too large, by the header alone."""
    sizes = [image.size]
    if isinstance(image, TiffImageFile):  # one pixel may lie in a tile of gigabytes
        sizes.append((image.tag_v2.get(Tag.TileWidth, 0), image.tag_v2.get(Tag.TileLength, 0)))
    for width, height in sizes:
        if width * height > max_pixels:
            limit = f"at most {max_pixels / 1e6:g} megapixels"
        elif max(width, height) > MAX_SIDE:
            limit = f"sides of at most {MAX_SIDE} pixels"
        else:
            continue
        got = f"{width} x {height} = {width * height / 1e6:.4g} megapixels"
        raise ImageError("the picture is too large", where=where, got=got, expected=limit)


def _broken(step: str, kind: str, where: str, error: Exception) -> ImageError:
    """Say what a decoder's exception means; Pillow tells most cases by their wording alone."""
    reason = _reason(error)
    if isinstance(error, MemoryError):
        what = f"not enough memory to decode this {kind}"
    elif isinstance(error, EOFError) or "truncated" in reason.lower():
        what = f"this {kind} is truncated"
    elif "not identified" in reason:
        what, reason = f"this {kind} has no pixels", "a width or height of zero"
    else:
        what = f"{step} this {kind}: broken, cut short or of a rare sort"
    return ImageError(what, where=where, got=reason)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _reduce(image: ImageFile.ImageFile, least: int) -> tuple[float, float]:
    """Have a large JPEG decoded at a lower scale; say how far its pixels then exceed it."""
    large = min(image.size) >= 2 * least
    if not large or (reduced := image.draft(None, (least, least))) is None:  # not a JPEG
        return 0.0, 0.0
    return image.width - reduced[1][2], image.height - reduced[1][3]


def _rgb(image: ImageFile.ImageFile, where: str) -> Image.Image:
    """Decode an opened picture to RGB, not turned yet."""
    _mend_transparent_colour(image)
    image.load()
    flat: Image.Image = image
    if image.mode in ("I", "F"):
        sort = "floating-point" if image.mode == "F" else "32-bit or signed integer"
        raise ImageError(
            f"{sort} pixels do not say what is black and what is white",
            where=where,
            fix="convert the picture to 8 or 16 bits a channel",
        )
    if image.mode.startswith("I;16"):
        flat = Image.fromarray(_grey_from_16_bits(image))
    elif image.has_transparency_data:
        flat = _over_white(image)
    return flat if flat.mode == "RGB" else flat.convert("RGB")


def _mend_transparent_colour(image: ImageFile.ImageFile) -> None:
    """Bring a PNG's transparent colour from the file's bit depth to the 8 bits of the pixels.

    Pillow compares the two as they are, and so misses the colour at 2, 4 and 3 x 16 bits.
    """
    colour = image.info.get("transparency")
    if not isinstance(image, PngImageFile) or colour is None:
        return
    rawmode = image.tile[0].args
    if rawmode == "L;2":
        image.info["transparency"] = colour * 0x55
    elif rawmode == "L;4":
        image.info["transparency"] = colour * 0x11
    elif rawmode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _turn(image: ImageFile.ImageFile) -> _Turn:
    """Read how to turn a decoded picture. Pillow has turned TIFFs already and says so in EXIF."""
    try:
        return _TURNS.get(image.getexif().get(Tag.Orientation, 1), _AS_IT_LIES)
    except Exception:  # broken EXIF: keep the picture as it lies
        return _AS_IT_LIES


def _upright(flat: Image.Image, turn: _Turn, beyond: tuple[float, float]) -> Reduced:
    how, order = turn
    upright = flat if how is None else flat.transpose(how)
    margins = (0.0, 0.0, *beyond)
    left, upper, right, lower = (margins[edge] for edge in order)
    return Reduced(upright, (left, upper, upright.width - right, upright.height - lower))


def _grey_from_16_bits(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """Take the upper 8 of 16 (or 12) bits; Pillow's own conversion clips at 255 instead."""
    pixels: NDArray[np.uint16] = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    bits = tags.get(Tag.BitsPerSample, (16,))[0]
    grey: NDArray[np.uint8] = (pixels >> (bits - 8)).astype(np.uint8)
    if tags.get(Tag.PhotometricInterpretation) == 0:  # white is zero: Pillow inverts up to 8 bits
        grey = 255 - grey
    if "transparency" in image.info:
        grey[pixels == image.info["transparency"]] = 255
    return grey


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # to RGBA, Pillow would drop this alpha
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=rgba)
    return canvas
