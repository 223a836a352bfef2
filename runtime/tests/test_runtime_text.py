"""Text from outside is shown on one line and cannot steer a terminal."""

import os
import warnings

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from nmsfree.detections import Detections
from nmsfree.drawing import Mark, Tile, draw, make_sheet
from nmsfree.plotting import short, to_png
from nmsfree.text import in_markdown, shown

ODD_NAMES = [
    os.fsdecode(b"caf\xe9"),
    "\ud800",
    "a\x1b[31mb\nc\0",
    "$x$ and $\\frac$",
    "猫 and \U0010ffff",
    "[/b]",
    "",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("straße 猫 🙂", "straße 猫 🙂"),
        ("a\x1b[31mb\nc", "a\\x1b[31mb\\x0ac"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9" if os.name != "nt" else os.fsdecode(b"caf\xe9")),
        ("\ud800", "\\ud800"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (3, "3"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: object, expected: str) -> None:
    assert shown(text) == expected


def test_long_text_is_cut_in_its_middle() -> None:
    cut = shown("a" * 5000 + "b", limit=100)
    assert len(cut) <= 100
    assert cut.endswith("b")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_is_drawn_on_pictures(name: str) -> None:
    """OpenCV ends the process where a name is not UTF-8."""
    picture = np.zeros((80, 120, 3), np.uint8)
    found = Detections(
        np.array([[10, 30, 60, 70]], np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.int32),
        (name,),
    )
    assert draw(picture, found).any()
    marks = (Mark((10, 30, 60, 70), name, (0, 0, 255)),)
    assert make_sheet([Tile(picture, marks, name, name), Tile(None, (), name, name, name)], 2).any()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_is_plotted_as_it_is(name: str, caplog: pytest.LogCaptureFixture) -> None:
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.set_title(name)
    axes.set_yticks([0, 1], [short(name), "b"])
    axes.plot([0, 1], label=short(name) or "none")
    axes.legend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = to_png(figure)
    assert cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR) is not None
    legend = axes.get_legend()
    assert legend is not None
    for text in (axes.title, axes.get_yticklabels()[0], legend.get_texts()[0]):
        assert not text.get_text() or not text.get_parse_math()
    assert len(caplog.records) <= 1


def test_characters_without_a_font_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        figure = Figure()
        figure.suptitle("a\U000e0123\U000e0124")  # in no script
        to_png(figure)
    (record,) = caplog.records
    assert "no installed font has 2 of the characters" in record.getMessage()


def test_logarithmic_axes_keep_their_powers() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 1000], [1, 1000])
    axes.set_yscale("log")
    to_png(figure)
    powers = [label for label in axes.get_yticklabels() if "mathdefault" in label.get_text()]
    assert powers and all(label.get_parse_math() for label in powers)


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("a|b", r"a\|b"),
        ("`x`\n# y", r"\`x\`\\x0a\# y"),
        ("<script>", r"\<script\>"),
        ("![a](b)", r"!\[a\](b)"),
    ],
)
def test_names_stay_text_in_markdown(name: str, page: str) -> None:
    assert in_markdown(name) == page
