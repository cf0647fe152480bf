"""The documentation says what the program does.

Of README.md, every ```python block and every line of a ```console block that begins with
``$ polytag`` is run, in order, in one namespace and in one folder that holds drawn pictures
(labels.txt and labels.csv with the attributes black, red, striped and necktie; images/image_0.png
to image_39.png, more/, photo.jpg and logo.png). All other fences and lines are not run.

    python tests/test_docs.py       writes docs/cli.md anew from the program's own help
"""

from __future__ import annotations

import re
import shlex
import subprocess
import textwrap
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

from polytag.cli import cli

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "cli.md"
REGENERATE = "python tests/test_docs.py"

PICTURES = 40
ATTRIBUTES = ("black", "red", "striped", "necktie")

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```[ \t]*$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"[\w-]+\.(?:onnx|safetensors|toml|csv|json|parquet|png|html|md)")
# A home, or a checkout at a machine's root, of which no reader has the like.
SOMEBODYS_PATH = re.compile(r"(?<![\w.~-])/(?:home|Users|root|work)/[\w.-]+|\b[A-Z]:\\+Users\\")


def commands(group: click.Group, names: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    """Yield the program, its verbs and the verbs of a verb, each with its whole name."""
    yield " ".join(names), group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*names, name))
        else:
            yield " ".join((*names, name)), command


COMMANDS = dict(commands(cli, ("polytag",)))


def cli_reference() -> str:
    """Return docs/cli.md: the help of the program and of each verb, 80 columns wide."""
    pages = []
    for title, command in COMMANDS.items():
        settings = {"info_name": title, "terminal_width": 80, **cli.context_settings}
        pages.append((title, command.get_help(click.Context(command, **settings))))
    written = f"Written by `{REGENERATE}` from the program's own help; a test compares the two."
    parts = ["# The command line", written]
    parts += [f"## {title}\n\n```text\n{text}\n```" for title, text in pages]
    return "\n\n".join(parts) + "\n"


def readme() -> str:
    path = ROOT / "README.md"
    assert path.is_file(), "there is no README.md"
    return path.read_text(encoding="utf-8")


# ----------------------------------------------------------------------------- the command line


def test_the_command_line_reference_is_what_the_program_says():
    there = REFERENCE.read_text(encoding="utf-8") if REFERENCE.is_file() else ""
    assert there == cli_reference(), f"docs/cli.md is out of date; write it anew: {REGENERATE}"


@pytest.mark.parametrize("title", COMMANDS)
def test_every_verb_and_every_option_has_help(title):
    command = COMMANDS[title]
    assert command.help
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert not [option.name for option in options if not option.help]


def test_no_number_is_still_to_be_filled_in():
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        assert "@@" not in path.read_text(encoding="utf-8"), path.name


@pytest.mark.parametrize("verb", cli.commands)
def test_every_verb_is_mentioned_in_the_readme(verb):
    found = re.search(rf"\bpolytag {verb}\b", readme())
    assert found, f"README.md nowhere says `polytag {verb}`"


# --------------------------------------------------------------------------- blocks of README.md


def runnable(text: str) -> Iterator[tuple[str, int, str]]:
    """Yield what is run: kind (``python``, ``console``), line number, and code or command."""
    for fence in FENCE.finditer(text):
        kind, body = fence[2], textwrap.dedent(fence[3])
        line = text.count("\n", 0, fence.start(3)) + 1
        if kind == "python":
            yield kind, line, body
        elif kind == "console":
            for command in re.sub(r"\\\n\s*(?:> )?", " ", body).splitlines():
                if command.startswith("$ polytag"):
                    yield kind, line, command.removeprefix("$ ")


def run_command(command: str) -> None:
    """Run ``polytag ...`` in this process; ``> FILE`` at its end is understood, no other shell."""
    words = shlex.split(command, comments=True)
    out = words[-1] if words[-2:-1] == [">"] else ""
    result = CliRunner().invoke(cli, words[1:-2] if out else words[1:], prog_name="polytag")
    if result.exit_code != 0:
        error = "".join(traceback.format_exception(result.exception)[-2:])
        raise RuntimeError(f"exit code {result.exit_code}\n{result.output}\n{error}")
    if out:
        Path(out).write_text(result.stdout, encoding="utf-8")


def draw(rng: np.random.Generator, truth: dict[str, bool]) -> Image.Image:
    """Draw a shirt of 64 x 64 pixels or so that has the attributes, and some noise."""
    side = int(rng.integers(56, 72))
    image = Image.fromarray(rng.integers(150, 220, (side, side, 3), np.uint8))
    pen = ImageDraw.Draw(image)
    dark = (20, 20, 20) if truth["black"] else (90, 120, 190)
    pen.rectangle((12, 10, side - 12, side - 4), fill=(200, 30, 30) if truth["red"] else dark)
    if truth["black"]:
        pen.rectangle((12, side // 2, side - 12, side - 4), fill=dark)
    for y in range(14, side - 4, 8) if truth["striped"] else ():
        pen.line((12, y, side - 12, y), fill="white", width=2)
    if truth["necktie"]:
        middle = side // 2
        pen.polygon([(middle, 10), (middle + 5, 36), (middle, 42), (middle - 5, 36)], fill="gold")
    return image


def draw_data(folder: Path) -> None:
    """Draw what the README's commands speak of."""
    rng = np.random.default_rng(7)
    rows = [["image", *ATTRIBUTES]]
    for name in ("images", "more"):
        (folder / name).mkdir()
    for index in range(PICTURES):
        truth = dict(zip(ATTRIBUTES, (rng.random(len(ATTRIBUTES)) < 0.5).tolist(), strict=True))
        draw(rng, truth).save(folder / "images" / f"image_{index}.png")
        cells = ["NA" if rng.random() < 0.1 else str(int(value)) for value in truth.values()]
        rows.append([f"image_{index}.png", *cells])
    (folder / "labels.txt").write_text("".join(" ".join(row) + "\n" for row in rows))
    (folder / "labels.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    for name in ("photo.jpg", "logo.png", "more/image_40.jpg", "more/image_41.png"):
        draw(rng, dict.fromkeys(ATTRIBUTES, True)).save(folder / name)


@dataclass(frozen=True)
class Ran:
    """Where the README's blocks were run, and what went wrong first, if anything did."""

    folder: Path
    failure: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory, cache) -> Iterator[Ran]:
    """Run the README's blocks, once for all tests of this module, until one fails.

    The default recipe's backbone is exported once, into the session's cache.
    """
    folder = tmp_path_factory.mktemp("readme")
    draw_data(folder)
    failure, namespace = "", {"__name__": "__readme__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, line, code in runnable(readme()):
            try:
                if kind == "python":
                    exec(compile(code, f"README.md (block at line {line})", "exec"), namespace)
                else:
                    run_command(code)
            except Exception as error:
                found = "".join(traceback.format_exception_only(error))
                failure = f"README.md, block at line {line}:\n{code}\n{found}"
                break
        yield Ran(folder, failure)


def test_the_readme_has_blocks_that_are_run():
    kinds = [kind for kind, _, _ in runnable(readme())]
    assert {"python", "console"} <= set(kinds)
    assert any("polytag train " in code for _, _, code in runnable(readme()))


def test_every_runnable_block_of_the_readme_runs(ran):
    if ran.failure:
        pytest.fail(ran.failure, pytrace=False)


def listed_files(text: str) -> set[str]:
    """Return the files that the README's table of a run folder names in its first column.

    It is the table in the section that names ``oof.parquet`` and ``skipped.csv``.
    """
    sections = re.split(r"^#+ ", text, flags=re.MULTILINE)
    about = [each for each in sections if "oof.parquet" in each and "skipped.csv" in each]
    assert about, "README.md has no section about the run folder (oof.parquet, skipped.csv ...)"
    rows = [line.split("|")[1] for line in about[0].splitlines() if line.startswith("|")]
    return {name for row in rows for name in FILE.findall(row)}


def test_the_readme_lists_exactly_the_files_that_a_run_leaves(ran):
    if ran.failure:
        pytest.fail("the blocks of README.md did not run to their end", pytrace=False)
    left = {path.name for path in (ran.folder / "runs" / "latest").iterdir()}
    assert listed_files(readme()) == left


# The way blocks are found and run is tested too: a README of nothing would pass otherwise.
SPEC = """
```console
$ pip install polytag
$ polytag recipes \\
    probe > my.toml
method = "probe"
```

* In a list:

  ```python
  found = 1
  ```

```sh
polytag train
```
"""


def test_only_python_blocks_and_commands_of_console_blocks_are_run():
    assert [(kind, " ".join(code.split())) for kind, _, code in runnable(SPEC)] == [
        ("console", "polytag recipes probe > my.toml"),
        ("python", "found = 1"),
    ]


def test_a_command_of_the_readme_can_write_to_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_command("polytag recipes probe > my.toml  # to change it")
    assert "[probe]" in Path("my.toml").read_text(encoding="utf-8")


def test_a_command_of_the_readme_that_fails_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="unknown recipe"):
        run_command("polytag recipes prob")


# ------------------------------------------------------------------------------------ all files


def test_architecture_names_only_files_that_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.(?:py|txt))`", text)) - {"readers/KIND.py"}
    places = (ROOT, ROOT / "src" / "polytag")
    missing = [name for name in named if not any((place / name).is_file() for place in places)]
    assert named and not missing


def test_no_tracked_file_names_a_path_of_somebodys_machine():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    found = []
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        text = path.read_bytes().decode("utf-8", "ignore") if path.is_file() else ""
        found += [f"{name}: {match[0]}" for match in SOMEBODYS_PATH.finditer(text)]
    assert not found


if __name__ == "__main__":
    REFERENCE.parent.mkdir(exist_ok=True)
    REFERENCE.write_text(cli_reference(), encoding="utf-8", newline="\n")
    print(f"written: {REFERENCE.relative_to(ROOT)}")
