"""What the diagrams share: colours, figures, axes, legends, texts in any script."""

import io
import logging
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from nmsfree.errors import import_extra
from nmsfree.files import write_atomic
from nmsfree.text import shorten, shown

logger = logging.getLogger(__name__)
_told: set[str] = set()  # characters without a font that were spoken of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text


# Okabe and Ito's palette, then four more: told apart with any colour vision.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00",
    "#56B4E9", "#7A4FA3", "#8C510A", "#7F7F7F", "#B8A900",
)  # fmt: skip
DASHES = (0, (4, 3))
INK, FAINT, GRID = "#222222", "#BBBBBB", "#E4E4E4"
LAST_RESORT = (".LastResort", "Last Resort", "LastResort")  # a box for every character there is
LONGEST = 18  # characters of a class name that are shown


class Entry(NamedTuple):
    """A line of a legend."""

    colour: str
    width: float
    text: str
    dashed: bool = False


def import_figure(feature: str = "drawing curves") -> "type[Figure]":
    """Return matplotlib's Figure, which draws without a screen, or raise MissingExtraError."""
    module = import_extra("matplotlib.figure", feature, "nmsfree[eval]")
    figure: type[Figure] = module.Figure
    return figure


def new_figure(width: float, height: float, dpi: int = 120) -> "Figure":
    """Return a figure of so many inches; MissingExtraError without matplotlib."""
    return import_figure()(figsize=(width, height), dpi=dpi, layout="constrained")


def write_figure(path: Path, figure: "Figure") -> None:
    """Write a figure as PNG, its texts shown as in `to_png`; InputError if it cannot be written."""
    write_atomic(path, to_png(figure))


def to_png(figure: "Figure") -> bytes:
    """Return a figure as PNG whose texts are shown as they are.

    `$` begins no formula; characters that its font lacks come from any installed font that has
    them, and one warning tells of those that none has.
    """
    from matplotlib.text import Text

    lacking: set[str] = set()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        words = text.get_text()
        if not words or "\\mathdefault" in words:  # of an axis: matplotlib writes powers so
            continue
        text.set_parse_math(False)
        text.set_text("\n".join(shown(line, 1000) for line in words.split("\n")))
        if not words.isascii():
            fonts, missing = _fonts_for(text)
            text.set_fontfamily([*text.get_fontfamily(), *fonts])
            lacking |= missing
    if lacking - _told:
        _told.update(lacking)
        logger.warning(
            "no installed font has %d of the characters in names (%s): pictures show boxes in "
            "their place, until one is installed, for example Noto Sans",
            len(lacking),
            shown("".join(sorted(lacking)), 20),
        )
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _fonts_for(text: "Text") -> tuple[list[str], frozenset[str]]:
    """Return the font families that a text needs beside its own, and the characters none has."""
    from matplotlib.font_manager import findfont, fontManager

    lacking = _lacking(findfont(text.get_fontproperties()), frozenset(text.get_text()) - {"\n"})
    families: list[str] = []
    for font in fontManager.ttflist if lacking else []:
        rest = lacking if font.name.startswith(LAST_RESORT) else _lacking(font.fname, lacking)
        if rest != lacking:
            families.append(font.name)
            lacking = rest
    return families, lacking


@lru_cache(maxsize=4096)
def _lacking(file: str, characters: frozenset[str]) -> frozenset[str]:
    """Return the characters that a font file lacks."""
    from matplotlib.font_manager import get_font

    try:
        font = get_font(file)
    except (OSError, RuntimeError):  # listed, but gone or unreadable
        return characters
    return frozenset(c for c in characters if not font.get_char_index(ord(c)))


def short(name: str) -> str:
    """Return a class name, cut in its middle where it is too long for a picture."""
    return shorten(name, LONGEST)


def bare_axes(axes: "Axes", grid: Literal["x", "y", "both"] = "both") -> None:
    """A light grid, no frame above and on the right."""
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def unit_axes(axes: "Axes", x: str, y: str) -> None:
    """Both axes from 0 to 1, a light grid, no frame."""
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    ticks = [i / 10 for i in range(11)]
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    bare_axes(axes)


def legend(axes: "Axes", entries: Sequence[Entry], title: str) -> None:
    """Write a legend right of the axes."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=e.colour, linewidth=e.width, linestyle=DASHES if e.dashed else "-")
        for e in entries
    ]
    axes.legend(
        handles, [e.text for e in entries], title=title, loc="upper left",
        bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, title_fontsize=9, alignment="left",
    )  # fmt: skip
