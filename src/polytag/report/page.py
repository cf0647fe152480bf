"""The page itself: material to HTML, whole or not at all."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from polytag.errors import ImageError
from polytag.files import write_text
from polytag.images import decode
from polytag.report import charts
from polytag.report.material import Material
from polytag.report.shown import VERDICTS, shown_numbers, verdict_kind
from polytag.results import METRICS

_SIDE = 160  # pixels of a small picture
_QUALITY = 72

_HEADINGS = dict(
    zip(
        VERDICTS,
        (
            "It can tell: learnable",
            "It cannot tell: no evidence that the pictures show it",
            "Nobody can say yet: too few to tell",
            "Not tested for being learnable",
        ),
        strict=True,
    )
)
_METRIC_NAMES = {
    "ap": "average precision",
    "auc": "ROC-AUC",
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "log_loss": "log loss",
    "hamming": "Hamming accuracy",
    "exact_match": "exact match",
}
_OVERALL = ("hamming", "exact_match", "log_loss")
# What stands elsewhere on the page; all else in metrics.json says how the run was made.
_ELSEWHERE = {"attributes", "macro", *_OVERALL, "over", "note", "report"}


def write_report(path: Path, material: Material) -> None:
    """Write ``report.html``: one file that loads nothing, whole or not at all.

    Every number outside of pictures, quotations and names is one of ``material.metrics`` or of
    `shown_numbers`, rounded.

    Args:
        path: The file.
        material: What to show; a picture that cannot be decoded is said to be missing.

    Raises:
        UserError: The place cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(Path(folder, "report.html"), Material("loss", "<coats>", {}))
        ...     "&lt;coats&gt;" in Path(folder, "report.html").read_text(encoding="utf-8")
        True
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("polytag.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "short": _short,
        "metric": _metric_name,
        "plain": _plain,
    }
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    template = environment.get_template("page.html.j2")
    write_text(path, template.render(_content(material) | {"style": Markup(style)}))


def number(value: object) -> str:
    """Return a number of metrics.json as the page shows it; what is null or not there: a dash.

    Example:
        >>> number(0.73449), number(0.00021), number(12), number(None)
        ('0.734', '0.0002', '12', '–')
    """
    if value is None or isinstance(value, jinja2.Undefined):
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.0005 else f"{value:.1g}"


def _short(value: float) -> str:
    """Return a coefficient in [-1, 1] as narrow tables show it: .73, −.08, 1."""
    digits = f"{abs(value):.2f}"
    return ("−" if value < 0 else "") + (digits[1:] if digits[0] == "0" else "1")


def _content(material: Material) -> dict[str, Any]:
    metrics, shown = material.metrics, shown_numbers(material)
    attributes = metrics.get("attributes") or []
    cards = [_card(material, shown, i, each) for i, each in enumerate(attributes)]
    groups = [
        (kind, _HEADINGS[kind], sorted((c for c in cards if c["kind"] == kind), key=_rank))
        for kind in VERDICTS
    ]
    macro = metrics.get("macro") or {}
    overall = {
        f"macro {_metric_name(name)}": macro[name] for name in ("ap", "auc") if name in macro
    }
    for name in ("hamming", "exact_match", "log_loss"):
        overall |= {_metric_name(name): metrics[name]} if metrics.get(name) else {}
    curve = charts.loss_curve(material.history, material.title) if material.history else ""
    return {
        "material": material,
        "tested": any(each.get("p_holm") is not None for each in attributes),
        "judged": any(card["figures"] for card in cards),
        "metrics": metrics,
        "macro": macro,
        "shown": shown,
        "cards": cards,
        "groups": [group for group in groups if group[2]],
        "names": [name for name in METRICS if any(card["metrics"].get(name) for card in cards)],
        "overall": {k: v for k, v in overall.items() if v and v["value"] is not None},
        "missing": _missing(macro),
        "bars": [charts.known_bar(c["present"], c["absent"], c["na"]) for c in shown["cells"]],
        "scale": charts.scale(),
        "loss_curve": curve,
        "means": bool(material.history and len(material.history.losses) >= 2 * charts.BLOCKS),
        "validated": bool(material.history and any(e.validation for e in material.history.epochs)),
        "pictures": _pictures(material, shown),
        "facts": {
            key.replace("_", " "): value
            for key, value in metrics.items()
            if key not in _ELSEWHERE and value is not None
        },
    }


def _card(
    material: Material, shown: dict[str, Any], index: int, attribute: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the page says of one attribute."""
    name = attribute["name"]
    confusion = [each for each in shown["confusion"] if each["name"] == name]
    drawn = {
        key: charts.interval(attribute[key], _metric_name(key))
        for key in ("ap", "auc")
        if (attribute.get(key) or {}).get("value") is not None
    }
    figures = _figures(material, attribute)
    return {
        "number": index + 1,
        "metrics": attribute,
        "kind": verdict_kind(attribute),
        "intervals": drawn,
        "figures": figures,
        "confusion": confusion[0] if confusion and figures else None,
        "reason": _reason(attribute),
        "detail": _detail(attribute),
    }


def _rank(card: Mapping[str, Any]) -> tuple[float, int]:
    """Order attributes by how well they are told, best first; those without a number last."""
    auc = (card["metrics"].get("auc") or {}).get("value")
    return (1.0 if auc is None else -auc, card["number"])


def _figures(material: Material, attribute: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """Return the pictures of an attribute with their titles; none where nothing was judged."""
    judged = material.judged()
    if judged is None or attribute["name"] not in material.attributes:
        return []
    k = list(material.attributes).index(attribute["name"])
    rows = np.flatnonzero(judged.cells[:, k])
    if not len(rows):
        return []
    truth, p = judged.present[rows, k].astype(np.float64), judged.p[rows, k]
    raw = None if material.raw is None else material.raw[rows, k]
    found = []
    if 0 < truth.sum() < len(truth):
        found += [
            ("Precision and recall", charts.precision_recall(truth, p)),
            ("ROC", charts.roc(truth, p)),
        ]
    found.append(("Reliability", charts.reliability(truth, p, raw)))
    if truth.any():
        found.append(("Threshold", charts.threshold_curves(truth, p, attribute)))
    return found


def _reason(attribute: Mapping[str, Any]) -> str:
    """Return why an attribute has no average precision, or no area under its ROC curve."""
    reasons = [(attribute.get(key) or {}).get("reason") for key in ("ap", "auc")]
    return next((reason for reason in reasons if reason), "")


def _detail(attribute: Mapping[str, Any]) -> str:
    """Return what an attribute's verdict says beyond the heading it stands under."""
    verdict = attribute.get("verdict") or ""
    return "" if any(_HEADINGS[kind].endswith(verdict) for kind in VERDICTS) else verdict


def _missing(macro: Mapping[str, Any]) -> dict[str, str]:
    """Return the attributes that some macro mean lacks, and why."""
    found: dict[str, str] = {}
    for mean in macro.values():
        found = {**(mean.get("missing") or {}), **found}
    return found


def _pictures(material: Material, shown: Mapping[str, Any]) -> dict[int, str]:
    """Return the small pictures by their row, as data URIs; empty: it cannot be shown."""
    cells = [*shown["hardest"], *shown["doubtful"], *shown["suspects"]["first"]]
    rows = {cell["row"] for cell in cells}
    return {row: _small(material.paths[row]) if material.paths else "" for row in rows}


def _small(path: Path) -> str:
    try:
        image = Image.fromarray(decode(path))
    except ImageError:
        return ""
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _metric_name(name: str) -> str:
    return _METRIC_NAMES.get(name, name.replace("_", " "))


def _plain(value: Any) -> str:
    """Return a fact of metrics.json in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else "–" if value is None else str(value)
