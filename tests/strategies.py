"""Hypothesis strategies: label values with holes, and whole label tables."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from polytag.table import LabelTable

NA = float("nan")

HOLES = ("none", "some", "column", "row", "everything", "one class")

# What may stand in a name: spaces, quotes, delimiters, a comment's sign and other alphabets; no
# control characters, and no "/" or "." (paths and endings are put in deliberately).
NAME_TEXT = st.text(
    st.sampled_from("abcXYZ019 _-,;#'\"()äß漢字🙂") | st.characters(categories=["L", "Nd"]),
    min_size=1,
    max_size=12,
)


@st.composite
def holed_values(
    draw: st.DrawFn, images: int, attributes: int, holes: str | None = None
) -> NDArray[np.float32]:
    """float32 (images, attributes) of 1, 0 and NaN, with one of the HOLES (drawn if None)."""
    kind = holes or draw(st.sampled_from(HOLES))
    cells = [0.0, 1.0, NA] if kind == "some" else [0.0, 1.0]
    shape = (images, attributes)
    values = draw(hnp.arrays(np.float32, shape, elements=st.sampled_from(cells)))
    if kind == "column":
        values[:, draw(st.integers(0, attributes - 1))] = NA
    elif kind == "row":
        values[draw(st.integers(0, images - 1))] = NA
    elif kind == "everything":
        values[:] = NA
    elif kind == "one class":
        values[:, draw(st.integers(0, attributes - 1))] = draw(st.sampled_from([0.0, 1.0]))
    return values


@st.composite
def image_names(draw: st.DrawFn) -> str:
    """A safe, already clean image name, in a folder or not, with an ending or not."""
    parts = draw(st.lists(NAME_TEXT.map(str.strip).filter(bool), min_size=1, max_size=2))
    ending = draw(st.sampled_from([".jpg", ".JPEG", ".png", ".tar", ""]))
    return "/".join(parts) + ending


@st.composite
def attribute_names(draw: st.DrawFn, count: int) -> tuple[str, ...]:
    """Different names that no reader takes for the image column's."""
    usable = NAME_TEXT.map(str.strip).filter(lambda name: name and name.casefold() != "image")
    return tuple(draw(st.lists(usable, min_size=count, max_size=count, unique=True)))


@st.composite
def label_tables(
    draw: st.DrawFn, max_images: int = 12, max_attributes: int = 5, extra: bool = False
) -> LabelTable:
    """A table in memory; with ``extra`` it has a column beside the labels."""
    names = draw(st.lists(image_names(), min_size=1, max_size=max_images, unique=True))
    attributes = draw(attribute_names(draw(st.integers(1, max_attributes))))
    values = draw(holed_values(len(names), len(attributes)))
    column = st.lists(
        NAME_TEXT.map(lambda text: f"site {text}".strip()),
        min_size=len(names),
        max_size=len(names),
    )
    texts = {"site of it": tuple(draw(column))} if extra else {}
    return LabelTable.from_rows(names, attributes, values, texts)
