"""The audit as one page that opens offline: findings, their evidence, and its pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment
from PIL import Image

from polytag.audit.finding import Finding, Row, one_line, shown
from polytag.audit.material import Material
from polytag.errors import UserError
from polytag.images import decode

_ROWS = 24  # of evidence a finding: JSON and the lists have them all
_PICTURED = 8  # of these with pictures
_SIDE = 112  # of a thumbnail, in pixels


def page(headline: str, findings: Sequence[Finding], material: Material) -> str:
    """Return the page as HTML; everything in it is escaped, and nothing is loaded.

    Args:
        headline: What was looked at and found.
        findings: In the order in which to show them.
        material: Where the pictures are.
    """
    thumbnails = _Thumbnails(dict(zip(material.names, material.rows.paths, strict=True)))
    shown_findings = [
        {
            "check": one.check,
            "severity": one.severity,
            "summary": one.summary,
            "advice": one.advice,
            "columns": list(dict.fromkeys(key for row in one.evidence[:_ROWS] for key in row)),
            "rows": [
                {"cells": {key: shown(value) for key, value in row.items()}, "pictures": pictures}
                for row, pictures in zip(
                    one.evidence[:_ROWS], _pictures(one, thumbnails), strict=True
                )
            ],
            "more": max(len(one.evidence) - _ROWS, 0),
        }
        for one in findings
    ]
    counts = zip(material.attributes, material.table.counts().tolist(), strict=True)
    attributes = [
        {"name": name, "counts": row, "verdict": judged.verdict}
        for (name, row), judged in zip(counts, material.verdicts, strict=True)
    ]
    text = resources.files("polytag.audit").joinpath("page.html").read_text("utf-8")
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_printable
    )
    template = environment.from_string(text)
    source = material.table.source or "a table in memory"
    return template.render(
        source=source, headline=headline, findings=shown_findings, attributes=attributes
    )


def _printable(value: object) -> object:
    """Keep what no page can hold, such as half a character of a file's name, from it."""
    return one_line(value) if isinstance(value, str) else value


def _pictures(one: Finding, thumbnails: _Thumbnails) -> list[list[dict[str, str]]]:
    """Return the pictures of each row of evidence that is shown; of the later rows none."""
    rows = one.evidence[:_ROWS]
    made = [
        [thumbnails.of(name, words) for name, words in _named(row)] if i < _PICTURED else []
        for i, row in enumerate(rows)
    ]
    return [[picture for picture in row if picture["address"]] for row in made]


def _named(row: Row) -> list[tuple[str, str]]:
    """Return the pictures a row of evidence names, each with what to write under it."""
    found = [(str(row["image"]), "")] if "image" in row else []
    found += [(str(name), "") for name in row.get("images", [])[:6]]
    words = ("absent", "present")
    near: list[dict[str, Any]] = row.get("neighbours", [])
    return found + [(str(one["image"]), words[one["given"]]) for one in near]


class _Thumbnails:
    """Small copies of pictures, each made once."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self.paths = paths
        self.made: dict[str, str] = {}

    def of(self, name: str, words: str) -> dict[str, str]:
        """Return a picture's name, what to write under it, and its address, "" if it has none."""
        if name not in self.made:
            self.made[name] = self._make(self.paths[name]) if name in self.paths else ""
        return {"name": name, "words": words, "address": self.made[name]}

    @staticmethod
    def _make(path: Path) -> str:
        try:
            image = Image.fromarray(decode(path))
        except UserError:  # gone since it was looked at
            return ""
        image.thumbnail((_SIDE, _SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=70)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
