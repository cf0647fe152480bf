"""Checks of the files: pictures that are missing, unreadable or odd."""

from __future__ import annotations

from pathlib import PurePosixPath

from polytag.audit.finding import Finding, Row, finding
from polytag.audit.material import FileFacts, Material
from polytag.pictures import Skipped
from polytag.readers.raw import plural

# The share of rows without a usable picture from which it is no longer a slip of somebody's hand.
MOST_UNUSABLE = 0.01
# A picture this small is enlarged several times before a network of some 224 pixels sees it, and
# one this long loses most of itself to the square. Flat: less than what JPEG does to one colour.
SMALL, LONG, FLAT = 64, 4.0, 2.0
_ENDINGS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "PNG": {".png"},
    "WEBP": {".webp"},
    "BMP": {".bmp"},
    "GIF": {".gif"},
    "TIFF": {".tif", ".tiff"},
}


def missing(material: Material) -> list[Finding]:
    """Find rows whose picture is not there."""
    gone = [row for row in material.rows.skipped if row.reason.startswith("no such file")]
    return _unusable("missing", gone, material, "not there", "Find them, or take the rows out.")


def unreadable(material: Material) -> list[Finding]:
    """Find pictures that are there and cannot be decoded."""
    bad = [row for row in material.rows.skipped if not row.reason.startswith("no such file")]
    advice = "Export them anew from where they came from, or take the rows out."
    return _unusable("unreadable", bad, material, "unreadable", advice)


def _unusable(
    check: str, rows: list[Skipped], material: Material, word: str, advice: str
) -> list[Finding]:
    if not rows:
        return []
    total = len(material.table)
    return [
        finding(
            check,
            f"{plural(len(rows), 'picture')} of {total} {word} ({len(rows) / total:.1%}).",
            [{"image": row.image, "where": row.where, "reason": row.reason} for row in rows],
            advice,
            bad=len(rows) > MOST_UNUSABLE * total,
        )
    ]


def suspicious(material: Material) -> list[Finding]:
    """Find pictures that can be decoded but are odd: tiny, very long, flat, under a wrong name."""
    rows: list[Row] = []
    for name, facts in zip(material.names, material.facts, strict=True):
        if odd := oddities(name, facts):
            rows.append({"image": name, "why": odd})
    if not rows:
        return []
    summary = f"{plural(len(rows), 'file')} of {len(material.names)} odd, though readable."
    return [finding("suspicious", summary, rows, "Look at a few of them.")]


def oddities(name: str, facts: FileFacts) -> list[str]:
    """Return what is odd about one file, in words.

    Example:
        >>> oddities("a.jpg", FileFacts(900, 40, 300, "PNG", (0.0, 0.0, 0.0), 30.0))
        ['a PNG named .jpg', '40 x 300 pixels', 'very long']
    """
    short, long = sorted((facts.width, facts.height))
    ending = PurePosixPath(name).suffix.lower()
    known = {end for ends in _ENDINGS.values() for end in ends}
    odd = {
        f"a {facts.format} named {ending}": ending in known
        and ending not in _ENDINGS.get(facts.format, known),
        f"{facts.width} x {facts.height} pixels": short < SMALL,
        "very long": long > LONG * short,
        "one flat colour": facts.spread < FLAT,
    }
    return [words for words, so in odd.items() if so]
