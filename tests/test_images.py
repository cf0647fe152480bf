"""Decoding, names and finding: every picture drawn here, every kind of damage done here."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from polytag import images
from polytag.errors import ImageError, UserError
from polytag.images import content_hash, decode, decode_reduced, find_images

WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)
as_root = hasattr(os, "geteuid") and os.geteuid() == 0
# Pillow warns about some damage that it survives; filterwarnings=error would make it fatal.
survives_warnings = pytest.mark.filterwarnings("ignore::UserWarning")


def noise(height: int = 24, width: int = 30, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def save(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG by hand: what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def tiff(data: bytes, *, big_endian: bool = False, **tags: int | tuple[int, ...]) -> bytes:
    """A TIFF of one strip by hand. Tags are called t256 and so on; every value is 16 or 32 bit."""
    order = ">" if big_endian else "<"
    entries = {int(tag[1:]): value for tag, value in tags.items()}
    entries.update({279: len(data), 277: 1, 278: 1 << 16} | entries)
    start = 8
    for _ in range(2):  # the second time knows where the pixels start
        entries[273] = start
        tail_at = 8 + 2 + 12 * len(entries) + 4
        ifd, tail = struct.pack(f"{order}H", len(entries)), b""
        for tag, value in sorted(entries.items()):
            values = value if isinstance(value, tuple) else (value,)
            sort, letter = (3, "H") if isinstance(value, tuple) or value < 65536 else (4, "I")
            packed = struct.pack(f"{order}{len(values)}{letter}", *values)
            if len(packed) > 4:
                where = struct.pack(f"{order}I", tail_at + len(tail))
                tail += packed
            else:
                where = packed.ljust(4, b"\0")
            ifd += struct.pack(f"{order}HHI", tag, sort, len(values)) + where
        start = tail_at + len(tail)
    magic = b"MM\0*\0\0\0\x08" if big_endian else b"II*\0\x08\0\0\0"
    return magic + ifd + b"\0\0\0\0" + tail + data


def colours(data: bytes) -> list[tuple[int, ...]]:
    return [tuple(pixel) for pixel in decode(data).reshape(-1, 3).tolist()]


# ---------------------------------------------------------------------------- formats and modes


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"big_tiff": True}),
    ],
)
def test_lossless_formats_give_back_every_pixel(kind, options):
    pixels = noise()
    assert np.array_equal(decode(save(pixels, kind, **options)), pixels)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
def test_lossy_formats_give_back_nearly_every_pixel(kind, options):
    ramp = np.zeros((32, 32, 3), np.uint8)
    ramp[:] = np.linspace(30, 220, 32, dtype=np.uint8)[:, None, None]
    difference = decode(save(ramp, kind, quality=95, **options)).astype(int) - ramp
    assert np.abs(difference).max() <= 8


def test_gif_gives_back_its_palette_colours():
    pixels = np.array([[RED, BLACK], [WHITE, (0, 0, 255)]], np.uint8)
    assert np.array_equal(decode(save(pixels, "GIF")), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_the_name_of_a_file_does_not_tell_its_format(kind, tmp_path):
    for suffix in (".jpg", ".png", ".txt", ""):
        file = tmp_path / f"{kind}{suffix}"
        file.write_bytes(save(noise(), kind))
        assert decode(file).shape == (24, 30, 3)


def test_the_result_is_contiguous_and_writable_and_belongs_to_the_caller():
    data = save(noise(), "PNG")
    first = decode(data)
    assert first.dtype == np.uint8 and first.flags.c_contiguous and first.flags.writeable
    first[:] = 0
    assert np.array_equal(decode(data), noise())


def test_grey_one_bit_and_palette_become_rgb():
    grey = noise(channels=1)[:, :, 0]
    assert np.array_equal(decode(save(grey, "PNG")), np.repeat(grey[:, :, None], 3, axis=2))
    assert colours(png(2, 1, 1, 0, b"\0\x40")) == [BLACK, WHITE]
    assert colours(png(2, 1, 8, 3, b"\0\1\0", PLTE=bytes(BLACK + RED))) == [RED, BLACK]


def test_transparency_is_seen_over_white():
    half, clear = (255, 127, 127), WHITE
    rgba = np.array([[(255, 0, 0, 255), (255, 0, 0, 128), (255, 0, 0, 0)]], np.uint8)
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert colours(save(rgba, kind, **options)) == [RED, half, clear]
    grey_alpha = np.array([[(0, 255), (0, 128), (0, 0)]], np.uint8)
    for kind in ("PNG", "TIFF"):
        data = save(Image.fromarray(grey_alpha, "LA"), kind)
        assert colours(data) == [BLACK, (127, 127, 127), WHITE]


def test_premultiplied_grey_alpha_is_seen_over_white():
    premultiplied = tiff(bytes([0, 255, 0, 0]), t256=2, t257=1, t258=(8, 8), t262=1, t277=2, t338=1)
    with Image.open(io.BytesIO(premultiplied)) as image:
        assert image.mode == "La"
    assert colours(premultiplied) == [BLACK, WHITE]


def test_transparent_palettes_are_seen_over_white():
    palette = bytes(RED + BLACK + (0, 0, 255))
    one = png(3, 1, 8, 3, b"\0\0\1\2", PLTE=palette, tRNS=b"\xff\0")
    assert colours(one) == [RED, WHITE, (0, 0, 255)]
    degrees = png(3, 1, 8, 3, b"\0\0\1\2", PLTE=palette, tRNS=b"\0\x80")
    assert colours(degrees) == [WHITE, (127, 127, 127), (0, 0, 255)]
    gif = Image.new("P", (2, 1))
    gif.putpalette(palette)
    gif.putpixel((1, 0), 1)
    assert colours(save(gif, "GIF", transparency=1)) == [RED, WHITE]
    assert colours(save(gif.convert("PA"), "TIFF")) == [RED, BLACK]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(2, 1, 1, 0, b"\0\x40", tRNS=b"\0\0"), [WHITE, WHITE]),
        (png(4, 1, 2, 0, b"\0\x1b", tRNS=b"\0\1"), [BLACK, WHITE, (170,) * 3, WHITE]),
        (png(2, 1, 4, 0, b"\0\x1f", tRNS=b"\0\1"), [WHITE, WHITE]),
        (png(2, 1, 8, 0, b"\0\7\x09", tRNS=b"\0\7"), [WHITE, (9, 9, 9)]),
        (png(2, 1, 16, 0, b"\0\x12\x34\x12\x35", tRNS=b"\x12\x34"), [WHITE, (18, 18, 18)]),
        (png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", tRNS=b"\0\1\0\2\0\3"), [WHITE, (4, 5, 6)]),
        (png(1, 1, 16, 2, b"\0\1\2\3\4\5\6", tRNS=b"\1\2\3\4\5\6"), [WHITE]),
    ],
    ids=["1 bit", "2 bits", "4 bits", "8 bits", "16 bits", "RGB", "RGB of 16 bits"],
)
def test_one_transparent_colour_is_seen_over_white_at_every_depth(data, expected):
    assert colours(data) == expected


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 600, dtype=np.uint16).reshape(20, 30)
    expected = np.repeat((ramp >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    assert np.array_equal(decode(save(ramp, "PNG")), expected)
    assert np.array_equal(decode(save(ramp, "TIFF")), expected)
    tags = {"t256": 30, "t257": 20, "t258": 16}
    big = tiff(ramp.astype(">u2").tobytes(), big_endian=True, t262=1, **tags)
    assert np.array_equal(decode(big), expected)
    white_is_zero = tiff((65535 - ramp).astype("<u2").tobytes(), t262=0, **tags)
    assert np.array_equal(decode(white_is_zero), expected)


def test_twelve_bit_grey_uses_all_twelve_bits():
    data = tiff(bytes([0x00, 0x0F, 0xFF]), t256=2, t257=1, t258=12, t262=1)
    assert colours(data) == [BLACK, WHITE]


def test_sixteen_bit_colour_and_alpha_keep_their_upper_bits():
    assert colours(png(1, 1, 16, 2, b"\0\xff\x00\x80\x00\x7f\xff")) == [(255, 128, 127)]
    alpha = png(2, 1, 16, 4, b"\0\x80\x02\xff\xff\x05\x06\0\0")
    assert colours(alpha) == [(128, 128, 128), WHITE]
    little = struct.pack("<3H", 0xFF00, 0x8000, 0x7FFF)
    rgb = tiff(little, t256=1, t257=1, t258=(16, 16, 16), t262=2, t277=3)
    assert colours(rgb) == [(255, 128, 127)]


def test_cmyk_ycbcr_and_lab_become_rgb():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    adobe = save(red, "JPEG", quality=95)  # Pillow writes it as Adobe does, inverted
    assert b"Adobe" in adobe
    assert np.abs(decode(adobe)[8, 8].astype(int) - RED).max() <= 4
    assert colours(save(red, "TIFF"))[0] == RED
    ycbcr = decode(save(Image.new("RGB", (8, 8), (200, 30, 60)).convert("YCbCr"), "TIFF"))
    assert np.abs(ycbcr[0, 0].astype(int) - (200, 30, 60)).max() <= 3
    lab = decode(save(Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF"))
    assert lab.min() >= 250


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused_with_what_to_do(mode):
    with pytest.raises(ImageError, match=r"^scan\.tif: .*convert the picture to 8 or 16 bits"):
        decode(save(Image.new(mode, (4, 4)), "TIFF"), name="scan.tif")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_of_several_frames_is_taken(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, WHITE, BLACK)]
    data = save(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(decode(data)[8, 8].astype(int) - RED).max() <= 2


# ------------------------------------------------------------------------------ EXIF orientation

UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}
KINDS = [
    ("JPEG", {}),
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
]


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_all_eight_orientations_turn_upright(kind, options, orientation):
    unturned = decode(save(noise(), kind, **options))
    turned = decode(save(noise(), kind, exif=exif(orientation), **options))
    assert np.array_equal(turned, UPRIGHT[orientation](unturned))
    assert turned.flags.c_contiguous


def test_grey_and_transparent_pictures_are_turned_too():
    ramp = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    assert decode(save(ramp, "PNG", exif=exif(6))).shape == (30, 20, 3)
    assert decode(save(noise(channels=4), "PNG", exif=exif(8))).shape == (30, 24, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_leaves_the_picture(orientation):
    assert np.array_equal(decode(save(noise(), "PNG", exif=exif(orientation))), noise())


@survives_warnings
@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.sampled_from([b"", b"MM\0*\0\0\0\x08", b"II*\0\x08\0\0\0"]))
def test_broken_exif_never_loses_the_picture(garbage, beginning):
    payload = b"Exif\0\0" + beginning + garbage
    for kind in ("JPEG", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        assert sorted(decode(save(noise(), kind, exif=payload, **options)).shape) == [3, 24, 30]


@survives_warnings
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0x8769, 0x8825]))
def test_a_tiff_with_a_broken_exif_pointer_is_kept(pointer, tag):
    tags = {"t256": 2, "t257": 1, "t258": 8, "t262": 1, "t274": 3, f"t{tag}": max(pointer, 65536)}
    assert colours(tiff(b"\x00\xff", **tags)) == [WHITE, BLACK]


# ---------------------------------------------------------------------------- decoded no larger


def photograph(height: int, width: int, orientation: int = 1, **options: object) -> bytes:
    """A JPEG whose red grows to the right and whose green grows downwards."""
    y, x = np.mgrid[0:height, 0:width]
    ramps = (255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), np.zeros_like(x))
    pixels = np.stack(ramps, axis=2).astype(np.uint8)
    return save(pixels, "JPEG", quality=95, exif=exif(orientation), **options)


def reduced(data: bytes, least: int) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    image, box = decode_reduced(data, least)
    assert image.mode == "RGB"
    return np.array(image), box


@pytest.mark.parametrize(
    ("sides", "least", "scale"),
    [
        ((400, 600), 200, 2),
        ((400, 600), 201, 1),
        ((401, 403), 200, 2),
        ((407, 999), 100, 4),
        ((799, 801), 100, 4),
        ((800, 801), 100, 8),
        ((1601, 3001), 100, 8),
        ((600, 16), 8, 2),
        ((1, 1), 1, 1),
    ],
)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}], ids=str)
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_leaves_enough(sides, least, scale, options):
    for height, width in (sides, sides[::-1]):
        data = photograph(height, width, **options)
        pixels, box = reduced(data, least)
        assert pixels.shape == (-(-height // scale), -(-width // scale), 3)
        assert min(pixels.shape[:2]) >= min(least, height, width)
        assert box == (0, 0, width / scale, height / scale)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200))
def test_below_twice_the_needed_size_every_pixel_is_as_before(height, width, least):
    data = photograph(height, width)
    pixels, box = reduced(data, least)
    if min(height, width) < 2 * least:
        assert np.array_equal(pixels, decode(data))
        assert box == (0, 0, width, height)
    assert min(pixels.shape[:2]) >= min(least, height, width)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("height", "width"), [(64, 96), (61, 93), (63, 90)])
def test_reduced_pictures_are_turned_with_their_edges(orientation, height, width):
    plain, box = reduced(photograph(height, width), 15)
    pixels, turned = reduced(photograph(height, width, orientation), 15)
    assert np.array_equal(pixels, UPRIGHT[orientation](plain))
    # What is picture, by a mask as large as the pixels: turning it turns the edges.
    inside = np.zeros((4 * plain.shape[0], 4 * plain.shape[1]), bool)
    inside[: round(4 * box[3]), : round(4 * box[2])] = True
    rows, columns = np.nonzero(UPRIGHT[orientation](inside))
    edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert turned == tuple(edge / 4 for edge in edges)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_are_reduced_to_the_same_colours(mode):
    data = save(Image.open(io.BytesIO(photograph(200, 300))).convert(mode), "JPEG", quality=95)
    pixels, _ = reduced(data, 50)
    assert pixels.shape == (50, 75, 3)
    averaged = decode(data).reshape(50, 4, 75, 4, 3).mean(axis=(1, 3))
    assert np.abs(pixels - averaged).max() < 6


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_other_formats_are_decoded_whole(kind):
    data = save(noise(200, 300), kind)
    pixels, box = reduced(data, 5)
    assert np.array_equal(pixels, decode(data)) and box == (0, 0, 300, 200)


@survives_warnings
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
def test_what_is_wrong_with_a_reduced_picture_is_said_in_the_same_words(options):
    data = photograph(160, 240, **options)
    for source in (data[: len(data) // 2], data[:30], b"", b"<html>", Path("none.jpg")):
        with pytest.raises(ImageError) as whole:
            decode(source, name="a.jpg")
        with pytest.raises(ImageError) as smaller:
            decode_reduced(source, 20, name="a.jpg")
        assert str(smaller.value) == str(whole.value)
    with pytest.raises(ImageError, match="too large; got 240 x 160"):
        decode_reduced(data, 20, max_pixels=100 * 100)  # 120 x 80 would pass


# --------------------------------------------------------------------------------- what is wrong


def complaint(source: Path | bytes, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        decode(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_reason_not_to_read_a_file_has_its_own_words(tmp_path):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    page = tmp_path / "page.jpg"
    page.write_text("<html><body>404")
    below = empty / "x.jpg"
    words = {
        tmp_path / "none.jpg": "the file does not exist",
        below: "the file does not exist",
        tmp_path: "this is a folder, not a picture",
        empty: "the file is empty",
        page: "not a picture; got a file that begins with b'<html><body>404', "
        "expected JPEG, PNG, WebP, BMP, GIF or TIFF",
        Path("a\0b.jpg"): "the file cannot be read; got ValueError: embedded null byte",
        Path("x" * 5000): "the file cannot be read; got OSError: ",
    }
    for path, text in words.items():
        got = complaint(path)
        name = str(path).replace("\0", "\\x00")
        assert got.startswith(f"{name}: {text}")


@pytest.mark.skipif(as_root, reason="root may read everything")
def test_a_file_without_read_permission_says_so(tmp_path):
    file = tmp_path / "secret.png"
    file.write_bytes(save(noise(), "PNG"))
    file.chmod(0)
    assert complaint(file).endswith("no permission to read the file")


def test_errors_of_the_file_system_name_the_file(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    file.write_bytes(save(noise(), "PNG"))

    class Worn(io.BytesIO):
        def read(self, *_):
            raise OSError(5, "Input/output error")

    def fail(error: Exception) -> None:
        raise error

    for opening, words in (
        (lambda: fail(PermissionError(13, "no")), "no permission to read the file"),
        (lambda: fail(OSError(24, "Too many open files")), "the file cannot be read; got OSError"),
        (Worn, "cannot read this file"),
    ):
        monkeypatch.setattr(Path, "open", lambda *_, opening=opening: opening())
        assert f"{file}: {words}" in complaint(file)
    monkeypatch.undo()
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: fail(OSError(5, "Input/output error")))
    with pytest.raises(ImageError, match=r"a\.png: the file cannot be read; got OSError"):
        content_hash(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert complaint(tmp_path / "pipe.jpg").endswith("this is not a regular file")


def test_the_given_name_stands_in_the_message_on_one_printable_line():
    assert complaint(b"", name="row 3: a.jpg") == "row 3: a.jpg: the file is empty"
    assert complaint(b"", name="a\nb\x1b[31m\udcff.jpg").startswith("a\\nb\\x1b[31m\\udcff.jpg: ")
    assert complaint(b"").startswith("<bytes>: ")


@pytest.mark.parametrize(
    "data",
    [
        png(0, 1, 8, 0, b"\0"),
        png(1, 0, 8, 0, b""),
        tiff(b"a", t256=0, t257=1, t258=8, t262=1),
        save(noise(), "BMP")[:18] + bytes(8) + save(noise(), "BMP")[26:],
    ],
)
def test_a_picture_of_no_pixels_is_refused(data):
    assert "has no pixels; got a width or height of zero" in complaint(data)


@pytest.mark.parametrize(
    ("beginning", "what"),
    [
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"),
        (b"P6 1 1 255\n\0\0\0", "PPM"),
        (b"8BPS\0\1" + bytes(40), "PSD"),
        (b"\0\0\1\0\1\0" + bytes(40), "ICO"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\0\0\0\x20ftypavif" + bytes(40), "AVIF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "WAV"),
        (b"PK\3\4" + bytes(40), "ZIP"),
        (b" " + save(noise(), "PNG"), "junk before a PNG"),
    ],
)
def test_formats_outside_the_allow_list_are_refused(beginning, what):
    assert "not a picture; got a file that begins with" in complaint(beginning, name=what)


def test_a_polyglot_is_only_its_pixels():
    archive = b"PK\3\4" + bytes(30) + b"PK\5\6" + bytes(18)
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        data = save(noise(), kind)
        for tail in (archive, b"<script>alert(1)</script>", b"%PDF-1.4", save(noise(9, 9), "PNG")):
            assert np.array_equal(decode(data + tail), decode(data))
    script = save(noise(), "GIF", comment=b"*/=1;alert(1)/*")
    assert np.array_equal(decode(script), decode(save(noise(), "GIF")))


@pytest.mark.parametrize("error", [
    struct.error("s"), SyntaxError("s"), ValueError("v"), EOFError(), OSError("o"), KeyError(1),
    RecursionError("r"), MemoryError(), ZeroDivisionError(), AssertionError(),
    UnicodeDecodeError("a", b"", 0, 1, "u"), TypeError("t"), IndexError(),
    OverflowError(), UserWarning("w"),
])  # fmt: skip
@pytest.mark.parametrize("step", ["__init__", "load"])
def test_whatever_a_decoder_raises_becomes_an_image_error(error, step, monkeypatch):
    def fail(*_):
        raise error

    data = save(noise(), "PNG")
    monkeypatch.setattr(images.PngImageFile, step, fail)
    assert complaint(data, name="a.png").startswith("a.png: ")


def test_ctrl_c_while_decoding_is_not_taken_for_a_broken_picture(monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(images.PngImageFile, "load", fail)
    with pytest.raises(KeyboardInterrupt):
        decode(save(noise(), "PNG"))


# --------------------------------------------------------------------------- bombs and damage


def test_a_bomb_is_refused_by_its_header_alone():
    huge = png(60000, 60000, 8, 2, b"")
    assert complaint(huge, name="bomb.png") == (
        "bomb.png: the picture is too large; got 60000 x 60000 = 3600 megapixels, "
        "expected at most 50 megapixels"
    )


@pytest.mark.parametrize(
    "data",
    [
        save(noise(), "GIF")[:6] + b"\xff\xff\xff\xff" + save(noise(), "GIF")[10:],
        tiff(b"a", t256=1, t257=1, t258=8, t262=1, t322=60000, t323=60000),
        tiff(b"a", t256=70000, t257=70000, t258=8, t262=1),
        save(noise(), "BMP")[:18] + struct.pack("<ii", 9999, 9999) + save(noise(), "BMP")[26:],
        png(1, 1_000_000, 1, 0, b""),
        b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xfe\x3f\0\xfe\x3f\0",
    ],
    ids=["GIF", "tile of a TIFF", "TIFF", "BMP", "one pixel wide", "WebP"],
)
def test_bombs_of_every_format_are_too_large(data):
    assert "the picture is too large" in complaint(data)


def test_the_pixel_cap_is_inclusive_and_can_be_set():
    data = save(noise(10, 10), "PNG")
    assert decode(data, max_pixels=100).shape == (10, 10, 3)
    assert "expected at most 9.9e-05 megapixels" in complaint(data, max_pixels=99)


def test_global_settings_of_pillow_stay_as_they_are():
    before = Image.MAX_IMAGE_PIXELS
    decode(save(noise(), "JPEG"))
    complaint(png(60000, 60000, 8, 2, b""))
    assert before == Image.MAX_IMAGE_PIXELS
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


CORPUS = {
    f"{kind} {mode} {number}": save(Image.fromarray(noise()).convert(mode), kind, **options)
    for number, (kind, options) in enumerate([*KINDS, ("BMP", {}), ("GIF", {}), ("WEBP", {})])
    for mode in ("RGB", "L", "P", "RGBA", "CMYK")
    if not (mode == "CMYK" and kind not in ("JPEG", "TIFF"))
    and not (mode == "P" and kind in ("JPEG", "WEBP"))
    and not (mode == "RGBA" and kind == "JPEG")
}


@survives_warnings
@pytest.mark.parametrize("name", CORPUS)
def test_a_file_cut_at_any_tenth_is_refused(name):
    data = CORPUS[name]
    decode(data)
    for tenth in range(1, 10):
        assert complaint(data[: len(data) * tenth // 10], name=name).startswith(f"{name}: ")


@survives_warnings
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(CORPUS)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
    st.booleans(),
)
def test_no_damage_raises_anything_but_an_image_error(name, flips, keep, in_header):
    data = bytearray(CORPUS[name])
    for place, value in flips:
        data[int(place * (min(len(data), 200) if in_header else len(data)))] = value
    try:
        result = decode(bytes(data[: int(len(data) * max(keep, 0.2)) or 1]), name=name)
    except ImageError as error:
        assert str(error).startswith(f"{name}: ")
    else:
        assert result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"BM", b"GIF89a", b"II*\0"]))
@survives_warnings
def test_random_bytes_raise_nothing_but_an_image_error(data, beginning):
    with pytest.raises(ImageError):
        decode(beginning + data)


def test_threads_decode_the_same_pixels():
    expected = {name: decode(data) for name, data in CORPUS.items()}
    names = sorted(CORPUS) * 20
    start = threading.Barrier(8)

    def work(part: int) -> bool:
        start.wait()
        return all(np.array_equal(decode(CORPUS[n]), expected[n]) for n in names[part::8])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_the_content_hash_is_the_sha256_of_the_bytes(tmp_path):
    data = save(noise(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    assert content_hash(tmp_path / "a.png") == hashlib.sha256(data).hexdigest()
    with pytest.raises(ImageError, match="does not exist"):
        content_hash(tmp_path / "b.png")
    with pytest.raises(ImageError, match="is a folder"):
        content_hash(tmp_path)


# ------------------------------------------------------------------------------------ finding


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.jpg", "sub/c.webp", "sub/deep/d.tif",
                 ".cache/e.jpg", "a[1].jpg", "bare/readme.md"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*inputs: str) -> list[str]:
    return [path.as_posix() for path in find_images(inputs)]


def test_a_folder_stands_for_the_pictures_in_and_below_it_sorted(shelf):
    assert found(".") == ["a.jpg", "a[1].jpg", "b.PNG", "sub/c.webp", "sub/deep/d.tif"]
    assert found("sub") == ["sub/c.webp", "sub/deep/d.tif"]
    assert found(str(shelf / "sub")) == [f"{shelf}/sub/c.webp", f"{shelf}/sub/deep/d.tif"]
    assert found(".cache") == [".cache/e.jpg"]


def test_named_files_are_kept_whatever_their_suffix_and_even_if_missing(shelf):
    names = ["notes.txt", "missing.jpg", ".hidden.jpg", "nowhere/x.png", "a\0.jpg"]
    assert found(*names) == names


def test_patterns_match_pictures_and_folders(shelf):
    assert found("*.jpg") == ["a.jpg", "a[1].jpg"]
    assert found("**/*.tif") == ["sub/deep/d.tif"]
    assert found("*") == ["a.jpg", "a[1].jpg", "b.PNG", "sub/c.webp", "sub/deep/d.tif"]
    assert found(f"{shelf}/s*/*.webp") == [f"{shelf}/sub/c.webp"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(shelf):
    assert found("a[1].jpg") == ["a[1].jpg"]


def test_nothing_comes_twice_and_the_order_of_the_inputs_stays(shelf):
    assert found("sub", "a.jpg", "./a.jpg", "sub/../a.jpg", str(shelf / "a.jpg"), "*.jpg", ".") == [
        "sub/c.webp", "sub/deep/d.tif", "a.jpg", "a[1].jpg", "b.PNG",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bare", "^bare: no picture in this folder; expected names that end in .bmp, .gif"),
        ("*.gif", r"^\*\.gif: no picture matches this pattern"),
        ("*.txt", "no picture matches this pattern"),
        ("", "an input is empty"),
    ],
)
def test_a_folder_or_pattern_without_pictures_is_an_error(shelf, text, words):
    with pytest.raises(UserError, match=words):
        find_images([text])


def test_linked_folders_are_not_followed_round_in_circles(shelf):
    (shelf / "sub" / "round").symlink_to(shelf)
    assert found("sub") == ["sub/c.webp", "sub/deep/d.tif"]


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(shelf, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied", "sub")

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(UserError, match=r"^sub: the folder cannot be read"):
        find_images(["sub"])


def test_a_name_that_may_not_be_looked_at_is_kept(shelf, monkeypatch):
    def fail(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", fail)
    assert found("locked/a.jpg") == ["locked/a.jpg"]


# ------------------------------------------------------------------------------ real photographs


def test_every_picture_of_a_real_folder_decodes():
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("POLYTAG_DATA", default)) / "dresses" / "images"
    if not folder.is_dir():
        pytest.skip("no measuring data here")
    shapes = [decode(path).shape for path in find_images([str(folder)])]
    assert len(shapes) == 972
    assert all(height >= 32 and width >= 32 for height, width, _ in shapes)
