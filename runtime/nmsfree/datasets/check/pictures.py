"""The pictures of a check: a labelled batch of every split, and the faults that can be seen."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from nmsfree.datasets.check.report import EDGES, Check, SplitCheck, SplitStats, by_name
from nmsfree.datasets.faults import Fault, Level
from nmsfree.datasets.rows import ImageRow, relative_name
from nmsfree.drawing import Mark, Tile, color_of, make_sheet
from nmsfree.errors import InputError
from nmsfree.images import read_image, write_picture
from nmsfree.plotting import COLOURS, GRID, INK, bare_axes, new_figure, short, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


COLUMNS, BATCH, MOST_FAULTS = 4, 12, 24  # tiles
RED, PALE = (60, 60, 245), (190, 190, 190)
MOST_NAMES = 25  # boxes of an image that get their names, where there are several classes


def sheet_paths(check: Check, folder: Path) -> tuple[Path, dict[str, Path]]:
    """Return where the problems go, and the labelled batch of every split."""
    return folder / "problems.jpg", {n: folder / f"{n}_labels.jpg" for n in check.splits}


def write_sheets(check: Check, folder: Path) -> list[Path]:
    """Write a picture for every split, and one of the problems if there is anything to show."""
    written: list[Path] = []
    problems, labelled = sheet_paths(check, folder)
    for name, split in check.splits.items():
        tiles = [_labelled(check, split, image) for image in choose(check, split)]
        if tiles:
            write_picture(labelled[name], make_sheet(tiles, COLUMNS))
            written.append(labelled[name])
    faulty = [_faulty(check, *found) for found in choose_faults(check)]
    if faulty:
        write_picture(problems, make_sheet(faulty, COLUMNS))
        written.append(problems)
    elif folder.is_dir():
        problems.unlink(missing_ok=True)  # of an earlier check
    return written


def choose(check: Check, split: SplitCheck) -> list[ImageRow]:
    """Return the images of the labelled batch: readable, with objects, evenly over the split."""
    filled = {split.rows.objects[index].image_id for index in np.flatnonzero(split.boxes.good)}
    readable = [i for i in split.rows.images if check.facts[i.path].problem is None]
    images = [image for image in readable if image.id in filled]
    places = np.linspace(0, len(images) - 1, min(BATCH, len(images))).round().astype(int)
    return [images[place] for place in places]


def choose_faults(check: Check) -> list[tuple[str, list[Fault]]]:
    """Return what the sheet of problems shows: split and the faults of one image and kind.

    Every kind gets its turn before any gets a second one, errors first.
    """
    queues: list[list[tuple[str, list[Fault]]]] = []
    for finding in check.findings():
        if finding.kind.level is Level.INFO:
            continue  # no picture's worth
        by_image: dict[Path, list[Fault]] = {}
        for fault in finding.faults:
            if fault.image is not None:
                by_image.setdefault(fault.image, []).append(fault)
        queues.append([(finding.split, faults) for faults in by_image.values()])
    turns = zip_longest(*queues)
    return [each for turn in turns for each in turn if each is not None][:MOST_FAULTS]


def _labelled(check: Check, split: SplitCheck, image: ImageRow) -> Tile:
    own = _usable(split, {image.id})
    named = len(own) <= MOST_NAMES and len(split.rows.categories) > 1
    marks = _class_marks(split, own, named)
    picture = read_image(image.path)
    height, width = picture.shape[:2]
    note = f"{width} x {height}, {len(own)} object{'s' * (len(own) != 1)}"
    note += ", dashed: crowd regions" * any(mark.dashed for mark in marks)
    return Tile(picture, marks, relative_name(image.path, split.rows.root), note)


def _usable(split: SplitCheck, image_ids: set[int]) -> list[int]:
    """Return the rows of the usable boxes of some images."""
    objects = split.rows.objects
    good = np.flatnonzero(split.boxes.good).tolist()
    return [index for index in good if objects[index].image_id in image_ids]


def _class_marks(split: SplitCheck, indices: list[int], named: bool) -> list[Mark]:
    """Return the boxes of objects in the colours of their classes."""
    label_of = {c.id: (label, c.name) for label, c in enumerate(split.rows.categories)}
    marks = []
    for index in indices:
        row = split.rows.objects[index]
        label, name = label_of[row.category_id]
        x1, y1, x2, y2 = split.boxes.clipped[index].tolist()
        marks.append(
            Mark((x1, y1, x2, y2), name if named else "", color_of(label), bool(row.iscrowd))
        )
    return marks


def _faulty(check: Check, split: str, faults: list[Fault]) -> Tile:
    """Return the tile of one image and kind: what is wrong in red, the rest pale."""
    kind, path = faults[0].kind, faults[0].image
    assert path is not None  # chosen so
    red = [
        Mark((x, y, x + width, y + height), "", RED)
        for fault in faults
        for x, y, width, height in fault.boxes
        if all(map(math.isfinite, (x, y, width, height)))
    ]
    title = f"{kind.code.replace('-', ' ')}: {relative_name(path, check.layout.root)}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    note = faults[0].detail.replace("×", "x") + more  # OpenCV 4 writes ASCII only
    try:
        return Tile(read_image(path), (*red, *_others(check, split, path)), title, note)
    except InputError:
        why = "does not decode" if path.exists() else "no such file"
        return Tile(None, (), title, note, why)


def _others(check: Check, split: str, path: Path) -> list[Mark]:
    """Return the usable boxes of an image, to show the fault among them."""
    for found in [check.splits[split]] if split else check.splits.values():
        own = _usable(found, {image.id for image in found.rows.images if image.path == path})
        if own:
            marks = _class_marks(found, own, named=False)
            return [replace(mark, color=PALE, thin=True) for mark in marks]
    return []


FEWEST_BARS = 8  # places for bars, so that one class is no giant
MOST_FREQUENT, RAREST = 75, 25  # classes shown when there are more than both together
ROW, COLUMN, SIZES = 0.2, 2.7, 6.5  # inches: a class, a split, the box sizes
MISSING = "#C62828"
BANDS = (("small", 0, 32), ("medium", 32, 96), ("large", 96, np.inf))


def write_charts(check: Check, path: Path) -> None:
    """Write the page as PNG; needs matplotlib."""
    splits = check.splits
    counts = [by_name(split.rows, split.stats.by_class) for split in splits.values()]
    names = _order(counts)
    width = 1.6 + COLUMN * len(splits) + SIZES
    height = max(3.2 + ROW * len(names), 1.2 + 2.6 * len(splits), 5.0)
    figure = new_figure(width, height, dpi=100)
    figure.suptitle(
        f"{check.layout.root.resolve().name} · {check.layout.format}",
        x=0.01, ha="left", fontsize=14, weight="bold", color=INK,
    )  # fmt: skip
    ((left, right),) = figure.subfigures(1, 2, width_ratios=[width - SIZES, SIZES], squeeze=False)
    bars = min(1.2 + ROW * max(len(names), FEWEST_BARS), height)  # inches; below them is nothing
    if bars < height:
        left, _ = left.subfigures(2, 1, height_ratios=[bars, height - bars])
    columns = np.atleast_1d(left.subplots(1, len(splits), sharey=True))
    rows = np.atleast_1d(right.subplots(len(splits), 1, sharex=True))
    last = max(max(np.flatnonzero(split.stats.bins()), default=0) for split in splits.values())
    bins = max(int(last) + 1, 8)
    for index, (name, split) in enumerate(splits.items()):
        colour = COLOURS[index % len(COLOURS)]
        _draw_classes(columns[index], names, counts[index], colour)
        columns[index].set_title(f"{name}: {split.stats.objects:,} objects", fontsize=10, color=INK)
        _draw_sizes(rows[index], name, split.stats, bins, colour)
    rows[-1].set_xlabel("√ area of the box in pixels of the image", color=INK)
    write_figure(path, figure)


def _order(counts: Sequence[Counter[str]]) -> list[str | None]:
    """Return class names, most objects in the first split first; None stands for those cut."""
    found = dict.fromkeys(chain.from_iterable(counts))
    names = sorted(found, key=lambda name: [-each[name] for each in counts])
    if len(names) > MOST_FREQUENT + RAREST:
        return [*names[:MOST_FREQUENT], None, *names[-RAREST:]]
    return [*names]


def _draw_classes(
    axes: "Axes", names: Sequence[str | None], counts: Counter[str], colour: str
) -> None:
    values = [0 if name is None else counts[name] for name in names]
    most = max(values, default=0) or 1
    axes.barh(range(len(names)), values, color=colour, height=0.72)
    for position, (name, value) in enumerate(zip(names, values, strict=True)):
        if name is not None:
            axes.text(
                value + most * 0.015, position, f"{value:,}", va="center", fontsize=7.5,
                color=INK if value else MISSING,
            )  # fmt: skip
    axes.set_yticks(range(len(names)), ["…" if n is None else short(n) for n in names], fontsize=8)
    axes.set_ylim(max(len(names), FEWEST_BARS) - 0.4, -0.6)
    axes.set_xlim(0, most * 1.22)
    _plain(axes, "x")
    axes.tick_params(axis="y", length=0)


def _draw_sizes(axes: "Axes", title: str, stats: SplitStats, shown: int, colour: str) -> None:
    values = stats.bins()[:shown]
    most = max(values) or 1
    axes.bar(np.arange(shown) + 0.5, values, width=0.86, color=colour)
    for position, value in enumerate(values):
        if value:
            axes.text(position + 0.5, value + most * 0.02, f"{value:,}", ha="center", fontsize=7.5)
    shares = stats.by_area()
    for name, low, high in BANDS:
        start, stop = EDGES.index(low), min(EDGES.index(high), shown)
        if start < stop:
            axes.axvspan(start, stop, color=GRID if name == "medium" else "white", zorder=-2)
            share = f"{name} {shares[name] / max(stats.objects, 1):.0%}"
            axes.text((start + stop) / 2, most * 1.2, share, ha="center", fontsize=8.5, color=INK)
    ticks = [f"{edge:g}" if np.isfinite(edge) else "" for edge in EDGES[: shown + 1]]
    axes.set_xticks(range(shown + 1), ticks, fontsize=8)
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_xlim(0, shown)
    axes.set_ylim(0, most * 1.32)
    axes.set_title(
        f"{title}: {stats.below_8px:,} objects with a side below 8 pixels", fontsize=10, color=INK
    )
    _plain(axes, "y")


def _plain(axes: "Axes", grid: Literal["x", "y"]) -> None:
    """A light grid across the bars, no frame, no ticks."""
    bare_axes(axes, grid)
    axes.spines["bottom" if grid == "x" else "left"].set_visible(False)
    axes.tick_params(axis=grid, length=0, labelsize=8)
