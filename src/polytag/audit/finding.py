"""What a check says: one finding, and how serious each kind of finding is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from polytag.errors import printable

Severity = Literal["serious", "warning", "note"]
Row = dict[str, Any]

SEVERITIES: tuple[Severity, ...] = ("serious", "warning", "note")

# How serious each kind of finding is: as a rule, and when it is bad. *Serious*: what is measured
# or learnt from the data as it is may be wrong. *Warning*: somebody should look. *Note*: to know.
KINDS: dict[str, tuple[Severity, Severity]] = {
    "missing": ("warning", "serious"),  # bad: more than 1 % of the rows
    "unreadable": ("warning", "serious"),  # bad: more than 1 % of the rows
    "suspicious": ("note", "note"),
    "identical": ("note", "note"),
    "conflicting": ("serious", "serious"),
    "similar": ("note", "warning"),  # bad: some of them with conflicting labels
    "leak": ("serious", "serious"),
    "constant": ("serious", "serious"),
    "rare": ("note", "warning"),  # bad: fewer of a class than can be judged
    "same": ("warning", "warning"),
    "implied": ("note", "note"),
    "unlabelled": ("note", "note"),
    "holes together": ("note", "note"),
    "holes by source": ("warning", "warning"),
    "holes by picture": ("note", "note"),
    "learnability": ("warning", "serious"),  # bad: none is learnable, and not for want of cells
    "label errors": ("warning", "warning"),
    "cleanlab": ("note", "note"),
    "shortcut": ("warning", "serious"),  # bad: at least half of what the pictures give
    "annotate next": ("note", "note"),
    "wide interval": ("note", "note"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        check: Its kind, one of `KINDS`.
        severity: ``serious``, ``warning`` or ``note``.
        summary: One sentence.
        evidence: Rows that JSON can hold, most telling first.
        advice: What to do about it.
    """

    check: str
    severity: Severity
    summary: str
    evidence: Sequence[Row]
    advice: str


def finding(
    check: str, summary: str, evidence: Sequence[Row], advice: str, *, bad: bool = False
) -> Finding:
    """Return a finding, as serious as `KINDS` says.

    Example:
        >>> finding("missing", "1 of 500 pictures is missing.", [], "Find it.").severity
        'warning'
    """
    return Finding(check, KINDS[check][bad], summary, evidence, advice)


def in_words(row: Row) -> str:
    """Return a row of evidence as one line.

    Example:
        >>> in_words({"images": ["a.jpg", "b.jpg"], "auc": 0.6123})
        'images a.jpg, b.jpg; auc 0.612'
    """
    return "; ".join(f"{key} {shown(value)}" for key, value in row.items() if value not in ("", []))


def shown(value: Any) -> str:
    """Return one value of evidence as text.

    Example:
        >>> shown(None), shown({"image": "a.jpg", "given": 1}), shown(0.00004)
        ('-', 'a.jpg=1', '4e-05')
    """
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    if isinstance(value, dict):
        return "=".join(map(shown, value.values()))
    if isinstance(value, float):
        return f"{value:.3g}"
    return "-" if value is None else one_line(str(value))


def one_line(text: str) -> str:
    r"""Keep a text to one line that every terminal can print, and all else in it as it is.

    Example:
        >>> one_line("größer \u2192 a\nb")
        'größer → a\\nb'
    """
    return "".join(map(printable, text))


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return some names and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
