"""Names of pictures never lead out of the image folder."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytag.errors import UserError
from polytag.names import safe_join


@pytest.mark.parametrize(
    "name", ["a.jpg", "a b/ç.jpg", "./a.jpg", "a..b/..c.jpg", "12:30.jpg", "..."]
)
def test_names_inside_the_folder_are_joined(name, tmp_path):
    assert safe_join(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("a\0.jpg", "NUL"),
        ("https://example.org/a.jpg", "an address"),
        ("file:///etc/passwd", "an address"),
        ("/etc/passwd", "absolute"),
        ("//server/share/a.jpg", "absolute"),
        ("\\\\server\\share\\a.jpg", "absolute"),
        ("\\a.jpg", "absolute"),
        ("C:\\a.jpg", "absolute"),
        ("c:a.jpg", "absolute"),
        ("C:/a.jpg", "absolute"),
        ("..", "leads out"),
        ("../a.jpg", "leads out"),
        ("..\\a.jpg", "leads out"),
        ("a/../../b.jpg", "leads out"),
        ("a/../b.jpg", "leads out"),
        ("a\\..\\..\\b.jpg", "leads out"),
        ("./../a.jpg", "leads out"),
    ],
)
def test_names_that_leave_the_folder_are_refused(name, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        safe_join(tmp_path, name)
    assert "\0" not in str(caught.value)


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(["..", ".", "/", "\\", "a", "C:", "~", " ", "\0", "//"]), max_size=8)
)
def test_no_combination_of_separators_leaves_the_folder(parts):
    folder = Path("/pictures/of/mine")
    try:
        path = safe_join(folder, "".join(parts))
    except UserError:
        return
    assert Path(os.path.normpath(path)).is_relative_to(folder)


def test_links_may_stay_in_the_folder_and_not_leave_it(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "in.jpg").symlink_to(folder / "sub" / "real.jpg")
    (folder / "out.jpg").symlink_to(outside / "secret.jpg")
    (folder / "away").symlink_to(outside)
    (folder / "up").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    assert safe_join(folder, "in.jpg") == folder / "in.jpg"
    for name in ("out.jpg", "away/secret.jpg", "up/outside/secret.jpg"):
        with pytest.raises(UserError, match="through a link"):
            safe_join(folder, name)
    with pytest.raises(UserError, match="through a link"):
        safe_join(folder, "loop")
    (tmp_path / "alias").symlink_to(folder)
    assert safe_join(tmp_path / "alias", "in.jpg").name == "in.jpg"


def test_a_sibling_whose_name_begins_alike_is_outside(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images2").mkdir()
    (tmp_path / "images" / "x").symlink_to(tmp_path / "images2")
    with pytest.raises(UserError, match="through a link"):
        safe_join(tmp_path / "images", "x/a.jpg")
