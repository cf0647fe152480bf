"""What an audit leaves: its findings as text, as JSON, as lists, and as a page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polytag.audit.finding import SEVERITIES, Finding, Row, in_words, one_line, shown
from polytag.audit.material import Material
from polytag.audit.page import page
from polytag.files import write_text
from polytag.readers.raw import plural
from polytag.runs import write_rows

_EXAMPLES = 3  # rows of evidence shown as text; JSON and the lists have them all

_ERRORS = ("image", "attribute", "given", "suggested", "probability", "suspected", "neighbours")
_QUERIES = ("image", "attribute", "probability", "score", "why")
# Each list: its file, the kinds of findings it holds, and its columns.
LISTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "label_errors.csv": (("label errors",), _ERRORS),
    "duplicates.csv": (("identical", "similar", "leak"), ("images", "conflicts", "parts")),
    "annotate_next.csv": (("annotate next",), _QUERIES),
    "skipped.csv": (("missing", "unreadable"), ("image", "where", "reason")),
}


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found.

    Attributes:
        material: What was looked at.
        findings: The most serious first.
    """

    material: Material
    findings: Sequence[Finding]

    @property
    def serious(self) -> bool:
        """Whether something serious was found."""
        return any(one.severity == "serious" for one in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        material = self.material
        counts = zip(
            material.attributes, material.table.counts().tolist(), material.verdicts, strict=True
        )
        return {
            "table": material.table.source,
            "rows": len(material.table),
            "usable": len(material.names),
            "attributes": [
                {"name": name, "present": p, "absent": a, "na": n, "verdict": judged.verdict}
                for name, (p, a, n), judged in counts
            ],
            "serious": self.serious,
            "counts": self.to_counts(),
            "findings": [asdict(one) | {"count": len(one.evidence)} for one in self.findings],
        }

    def to_text(self) -> str:
        """Return what a person wants to know, in at most 80 columns."""
        table = self.material.table
        lines = textwrap.wrap(f"{one_line(table.source)}: {self.headline()}", 79)
        for one in self.findings:
            lines += ["", *_wrapped(f"{one.severity.upper()}  {one_line(one.summary)}", "")]
            for row in one.evidence[:_EXAMPLES]:
                lines += _wrapped(in_words(row), "    ", most=2)
            if len(one.evidence) > _EXAMPLES:
                lines.append(f"    and {len(one.evidence) - _EXAMPLES} more")
            lines += _wrapped(f"→ {one_line(one.advice)}", "  ")
        return "\n".join(lines)

    def headline(self) -> str:
        """Return what was looked at and how much was found, in one sentence.

        Example:
            Not run: it needs pictures; see `audit`.

            >>> found.headline()  # doctest: +SKIP
            '972 pictures, 4 attributes; 1 serious finding, 2 warnings, 5 notes'
        """
        counts = self.to_counts()
        looked = f"{plural(len(self.material.names), 'picture')}, "
        looked += plural(len(self.material.attributes), "attribute")
        serious, warning, note = (counts[severity] for severity in SEVERITIES)
        found = [f"{serious} serious", plural(warning, "warning"), plural(note, "note")]
        return f"{looked}; {', '.join(found)}"

    def to_counts(self) -> dict[str, int]:
        """Return how many findings there are of each severity."""
        return {
            severity: sum(one.severity == severity for one in self.findings)
            for severity in SEVERITIES
        }

    def write(self, folder: Path) -> list[Path]:
        """Write ``audit.html`` and the lists; of a list without a row only its header.

        Returns:
            The files.

        Raises:
            UserError: The folder cannot be written to.
        """
        for name, (checks, columns) in LISTS.items():
            rows = [
                [*([one.check] if len(checks) > 1 else []), *(_cell(row, key) for key in columns)]
                for one in self.findings
                for row in one.evidence
                if one.check in checks
            ]
            header = [*(["finding"] if len(checks) > 1 else []), *columns]
            write_rows(folder / name, header, rows)
        write_text(folder / "audit.html", page(self.headline(), self.findings, self.material))
        return [folder / name for name in ("audit.html", *LISTS)]


def _cell(row: Row, key: str) -> object:
    """Return a value of evidence as a cell: several in one cell are divided by "; "."""
    value = row.get(key, "")
    if isinstance(value, list):
        return "; ".join(shown(one) if isinstance(one, dict) else str(one) for one in value)
    return value


def _wrapped(text: str, indent: str, most: int | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        79,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        max_lines=most,
        placeholder=" ...",
    )
