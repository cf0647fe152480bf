"""The public surface: what ``polytag`` offers, that it costs nothing before use, and examples."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import polytag

ROOT = Path(__file__).parents[1]
DOCUMENTED = [
    name
    for name in polytag.__all__
    if inspect.isroutine(getattr(polytag, name)) or inspect.isclass(getattr(polytag, name))
]


def in_a_fresh_process(code: str) -> str:
    """Return what ``code`` prints in an interpreter of its own."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def example_section(doc: str) -> str:
    """Return what a Google-style docstring has under ``Example:``; empty if it has none."""
    found = re.search(r"^Example:\n((?:[ \t]+.*\n|\n)+)", f"{doc}\n", re.MULTILINE)
    return found[1] if found else ""


def test_all_is_what_a_star_import_and_dir_give():
    assert dir(polytag) == sorted(polytag.__all__)  # so no name stands twice, either
    namespace: dict[str, object] = {}
    exec("from polytag import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(polytag.__all__)


def test_all_the_lazy_names_and_the_names_for_type_checkers_are_the_same():
    lazy = set(polytag.__all__) - {"__version__"}
    assert set(polytag._ROOMS) == lazy
    tree = ast.parse(Path(polytag.__file__).read_text(encoding="utf-8"))
    declared = {
        alias.name: node.module
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == {name: f"polytag.{room}" for name, room in polytag._ROOMS.items()}


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'polytag' has no attribute 'fitt'"):
        _ = polytag.fitt  # type: ignore[attr-defined]


def test_importing_polytag_imports_no_room():
    code = "import sys, polytag; print([m for m in sys.modules if m.startswith('polytag.')])"
    assert in_a_fresh_process(code).strip() == "[]"


def test_public_names_mean_the_same_before_and_after_every_module_is_imported():
    # Importing polytag.x sets the attribute x of polytag: a room must not have a public name's.
    for module in pkgutil.walk_packages(polytag.__path__, "polytag."):
        importlib.import_module(module.name)
    for name, room in polytag._ROOMS.items():
        there = getattr(importlib.import_module(f"polytag.{room}"), name)
        assert getattr(polytag, name) is there, f"the module polytag.{name} hides the name"


def test_a_public_name_can_be_used_twice_in_a_fresh_process():
    code = """
import inspect, polytag
for name in polytag.__all__:
    first, second = getattr(polytag, name), getattr(polytag, name)
    if first is not second or inspect.ismodule(second):
        print(name)
"""
    assert in_a_fresh_process(code).split() == []


def test_the_package_has_the_version_that_its_metadata_says():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{polytag.__version__}"' in pyproject


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_public_function_or_class_has_an_example_that_runs_or_says_why_not(name):
    """The section ``Example:`` has lines that doctest runs, or the words ``Not run: reason``."""
    section = example_section(inspect.getdoc(getattr(polytag, name)) or "")
    examples = doctest.DocTestParser().get_examples(section)
    run = [example for example in examples if not example.options.get(doctest.SKIP)]
    reason = re.search(r"Not run: \w+", section)
    assert run or reason, f"polytag.{name}: no example that doctest runs, and no 'Not run: why'"


def test_doctest_is_asked_to_look_at_the_package():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"--doctest-modules"' in pyproject
    assert 'testpaths = ["tests", "src/polytag"]' in pyproject
