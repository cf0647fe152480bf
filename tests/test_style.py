"""Budgets and habits of the code, measured on its syntax trees. There is no list of exceptions.

What these tests cannot see: whether a name is right, and whether a docstring is true.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "polytag"
FILES = sorted(SRC.rglob("*.py"))

MODULE_LINES = 400
FUNCTION_LINES = 60
PARAMETERS = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef
Finding = tuple[int, str]


def functions(tree: ast.AST) -> Iterator[Function]:
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def code_lines(node: Function) -> int:
    """Return how many lines a function has, its docstring not counted."""
    doc = node.body[0] if ast.get_docstring(node) else None
    lines = doc.end_lineno - doc.lineno + 1 if doc else 0
    return node.end_lineno - node.lineno + 1 - lines


def parameters(node: Function | ast.Lambda) -> list[ast.arg]:
    """Return the parameters a caller can give, *args and **kwargs too; not self and cls."""
    a = node.args
    named = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    return [arg for arg in named if arg.arg not in ("self", "cls")]


def is_a_click_callback(node: Function) -> bool:
    """Return whether a decorator makes a command of it: ``@cli.command()`` or ``@cli.group()``."""
    names = [ast.unparse(decorator).partition("(")[0] for decorator in node.decorator_list]
    return any(name.rpartition(".")[2] in ("command", "group") for name in names)


def is_a_second_accessor(node: Function | ast.ClassDef) -> bool:
    """Return whether a property's docstring, which stands at its getter, speaks for this too."""
    return any(
        isinstance(decorator, ast.Attribute) and decorator.attr in ("setter", "deleter")
        for decorator in node.decorator_list
    )


def too_long_modules(tree: ast.AST, source: str) -> Iterator[Finding]:
    count = len(source.splitlines())
    if count > MODULE_LINES:
        yield count, f"{count} lines, {MODULE_LINES} at most"


def too_long_functions(tree: ast.AST, source: str) -> Iterator[Finding]:
    for node in functions(tree):
        count = code_lines(node)
        if count > FUNCTION_LINES:
            yield node.lineno, f"{node.name} has {count} lines of code, {FUNCTION_LINES} at most"


def too_many_parameters(tree: ast.AST, source: str) -> Iterator[Finding]:
    for node in functions(tree):
        count = len(parameters(node))
        if count > PARAMETERS and not is_a_click_callback(node):
            yield node.lineno, f"{node.name} has {count} parameters, {PARAMETERS} at most"


def asserts(tree: ast.AST, source: str) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert is gone under python -O: raise an error"


def prints(tree: ast.AST, source: str) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "pprint"):
            yield node.lineno, "print: results go through click.echo, the rest is logged"


def bare_excepts(tree: ast.AST, source: str) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            if caught in ("", "BaseException"):
                yield node.lineno, "a bare except takes Ctrl-C too: name what is expected"


def mutable_defaults(tree: ast.AST, source: str) -> Iterator[Finding]:
    fresh = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    makers = ("list", "dict", "set", "defaultdict", "Counter", "deque", "bytearray")
    for node in ast.walk(tree):
        if not isinstance(node, Function | ast.Lambda):
            continue
        for default in filter(None, (*node.args.defaults, *node.args.kw_defaults)):
            made = isinstance(default, ast.Call) and ast.unparse(default.func) in makers
            if made or isinstance(default, fresh):
                yield default.lineno, f"a default that all calls share: {ast.unparse(default)}"


def passed_through_kwargs(tree: ast.AST, source: str) -> Iterator[Finding]:
    for node in functions(tree):
        name = node.args.kwarg.arg if node.args.kwarg else None
        for call in ast.walk(node) if name else ():
            if isinstance(call, ast.Call) and any(
                keyword.arg is None and ast.unparse(keyword.value) == name
                for keyword in call.keywords
            ):
                yield call.lineno, f"{node.name} passes **{name} through: name the parameters"


def missing_docstrings(tree: ast.AST, source: str) -> Iterator[Finding]:
    def public(body: list[ast.stmt], prefix: str) -> Iterator[Finding]:
        for node in body:
            if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node) and not is_a_second_accessor(node):
                yield node.lineno, f"{prefix}{node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{node.name}.")

    if not ast.get_docstring(tree):
        yield 1, "the module has no docstring"
    yield from public(tree.body, "")


RULES: dict[str, Callable[[ast.AST, str], Iterator[Finding]]] = {
    "modules are at most 400 lines long": too_long_modules,
    "functions have at most 60 lines of code": too_long_functions,
    "functions have at most 8 parameters": too_many_parameters,
    "nothing is asserted": asserts,
    "nothing is printed": prints,
    "no except is bare": bare_excepts,
    "no default is mutable": mutable_defaults,
    "no **kwargs are passed through": passed_through_kwargs,
    "what is public has a docstring": missing_docstrings,
}

# One piece of code for each rule that breaks it once, so that no rule passes by seeing nothing.
BREAKS = {
    "modules are at most 400 lines long": "x = 1\n" * 401,
    "functions have at most 60 lines of code": "def f():\n    '''Doc.'''\n" + "    x = 1\n" * 60,
    "functions have at most 8 parameters": "def f(a, b, c, d, /, e, *f, g, h, **i): ...",
    "nothing is asserted": "def f():\n    assert True",
    "nothing is printed": "print('x')",
    "no except is bare": "try:\n    f()\nexcept:\n    pass",
    "no default is mutable": "f = lambda x, *, y={}: x",
    "no **kwargs are passed through": "def f(**options):\n    g(1, **options)",
    "what is public has a docstring": "'''Doc.'''\nclass A:\n    '''Doc.'''\n    def f(self): ...",
}


@pytest.mark.parametrize("rule", RULES)
def test_in_every_module(rule):
    found = []
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        found += [
            f"{path.relative_to(ROOT)}:{line}: {what}"
            for line, what in RULES[rule](ast.parse(source), source)
        ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_finds_what_breaks_it(rule):
    assert len(list(RULES[rule](ast.parse(BREAKS[rule]), BREAKS[rule]))) == 1


def test_click_callbacks_may_take_as_many_parameters_as_their_command_has_options():
    source = "@cli.command()\n@json_option\ndef f(a, b, c, d, e, f, g, h, i): ..."
    assert not list(too_many_parameters(ast.parse(source), source))
