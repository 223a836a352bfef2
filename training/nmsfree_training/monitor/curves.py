"""`metrics.jsonl`, and `results.png` drawn from it: a whole run at a glance."""

import logging
import math
import re
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from nmsfree.errors import InputError
from nmsfree.parsing import decode_json, read_bytes
from nmsfree.plotting import COLOURS, INK, bare_axes, new_figure, write_figure
from nmsfree_training.config import MAX_EPOCHS
from nmsfree_training.monitor.callbacks import is_loss

logger = logging.getLogger(__name__)

Record = dict[str, float]  # a line of `metrics.jsonl`


def read_metrics(path: Path) -> list[Record]:
    """Return one record for each epoch, in their order: the last one where an epoch was repeated.

    Lines cut short by a kill are left out, with a warning; so are values that are no numbers.

    Raises:
        InputError: the file cannot be read or has no finished epoch.
    """
    lines = read_bytes(path).splitlines()
    epochs: dict[float, Record] = {}
    for number, line in enumerate(lines, 1):
        record = parse_record(line)
        if record is not None:
            epochs[record["epoch"]] = record
        elif line.strip():
            logger.warning("%s: line %d is not a record of an epoch, left out", path, number)
    if not epochs:
        raise InputError(f"{path}: no finished epoch in it, expected one line for each")
    return [epochs[epoch] for epoch in sorted(epochs)]


def parse_record(line: bytes | str) -> Record | None:
    """Return the numbers of a line by name, or None if it is not the record of an epoch."""
    text = line.encode("utf-8", "replace") if isinstance(line, str) else line
    strict = re.sub(rb"-?\b(NaN|Infinity)\b", b"null", text)  # as Python writes what is no number
    try:
        values = decode_json(strict, dict[str, Any], "line", InputError)
    except InputError:
        return None
    record = {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return record if 1 <= record.get("epoch", 0.0) <= MAX_EPOCHS else None


BLUE, RED, GREEN, ORANGE = (COLOURS[i] for i in (0, 1, 2, 4))
NOTE = "#888888"
# A kind of loss has a colour, the deployed head an unbroken line: both show where they coincide.
PART_COLOURS = {"cls": ORANGE, "box": BLUE}
AP_COLOURS = {"AP": BLUE, "AP50": ORANGE, "AP75": GREEN}
SIZE, DPI = (11.0, 7.4), 130  # inches; 1430 × 962 pixels, text still readable at 1000 wide
DOTS = 30  # up to so many points are marked on their line
LOG_RATIO = 20.0  # a loss that falls by more gets a logarithmic axis


def write_curves(metrics_jsonl: Path, out: Path, title: str = "") -> None:
    """Draw losses, AP (×100), learning rate, and speed with waiting share over the epochs, as PNG.

    Raises:
        InputError: there is no finished epoch, or a file cannot be read or written.
    """
    records = read_metrics(metrics_jsonl)
    figure = new_figure(*SIZE, DPI)
    (loss, score), (rate, speed) = figure.subplots(2, 2)
    _losses(loss, records)
    _scores(score, records)
    _learning_rate(rate, records)
    _speed(speed, records)
    for panel in (loss, score, rate, speed):
        _finish(panel, records)
    figure.suptitle(_heading(title, records), x=0.01, ha="left", weight="bold", color=INK)
    write_figure(out, figure)


def draw_curves(folder: Path, title: str) -> None:
    """Draw a run's `results.png`; one that has no epoch yet has none."""
    metrics, picture = folder / "metrics.jsonl", folder / "results.png"
    try:
        if metrics.is_file():
            write_curves(metrics, picture, title)
    except InputError as error:
        logger.warning("%s: no picture (%s)", picture, error)


def _heading(title: str, records: list[Record]) -> str:
    last, hours = int(records[-1]["epoch"]), sum(r.get("seconds", 0.0) for r in records) / 3600
    took = f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
    epochs = f"{last} epoch{'s' * (last > 1)}"
    return " · ".join(filter(None, (title, epochs, took if hours > 0 else "")))


def _losses(panel: Axes, records: list[Record]) -> None:
    _title(panel, "loss (mean of the epoch)")
    names = [name for name in records[-1] if is_loss(name) and name != "loss"]
    curves = {name: _points(records, name) for name in ("loss", *names)}
    two_heads = any(name.startswith("o2o") for name in names)
    for name, points in curves.items():
        if not points:
            continue
        label = f"{'total' if name == 'loss' else name.replace('_', ' ')}  {points[-1][1]:.3g}"
        colour = PART_COLOURS.get(name.rpartition("_")[2], INK)
        dashed = two_heads and name.startswith("o2m")
        width = 2.2 if name == "loss" else 1.5
        _line(panel, points, label, colour, width, "--" if dashed else "-")
    values = [value for points in curves.values() for _, value in points]
    total = [value for _, value in curves["loss"]]
    if total and min(values) > 0 and max(total) > LOG_RATIO * min(total):
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(FuncFormatter(_short))
    elif values:
        panel.set_ylim(0, 1.05 * max(values) or 1.0)
    if values:
        panel.legend(framealpha=0.8, edgecolor="none", fontsize=9, loc="best")


def _scores(panel: Axes, records: list[Record]) -> None:
    _title(panel, "AP on the validation images")
    if not _points(records, "AP"):
        _note(panel, "not evaluated")
        return
    for name in reversed(AP_COLOURS):
        points = [(epoch, 100 * value) for epoch, value in _points(records, name)]
        _line(panel, points, name, AP_COLOURS[name], 2.2 if name == "AP" else 1.4)
    highest = max(value for name in AP_COLOURS for _, value in _points(records, name))
    panel.set_ylim(0, max(1.0, min(102.0, 112 * highest)))
    _mark_best(panel, _points(records, "AP"))
    handles, labels = panel.get_legend_handles_labels()
    # In the line of the title: within the panel it would hide a curve sooner or later.
    panel.legend(
        handles[::-1],
        labels[::-1],
        frameon=False,
        fontsize=9,
        ncols=3,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.99),
        borderaxespad=0.0,
    )


def _mark_best(panel: Axes, points: list[tuple[float, float]]) -> None:
    """A star on the first epoch of the highest AP, its value beside it."""
    epoch, value = max(points, key=lambda point: point[1])
    panel.plot([epoch], [100 * value], "*", color=RED, markersize=13, zorder=5, clip_on=False)
    # Most room is below the curve: AP rises early and seldom falls far.
    is_high = 100 * value > 0.45 * panel.get_ylim()[1]
    right_half = epoch > (points[0][0] + points[-1][0]) / 2
    panel.annotate(
        f"best AP {100 * value:.1f}, epoch {int(epoch)}",
        (epoch, 100 * value),
        xytext=(-4 if right_half else 4, -70 if is_high else 40),
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "color": NOTE, "linewidth": 0.8},
        ha="right" if right_half else "left",
        fontsize=10,
        weight="bold",
        color=INK,
        bbox={"boxstyle": "square,pad=0.2", "facecolor": "white", "edgecolor": "none"},
    )


def _learning_rate(panel: Axes, records: list[Record]) -> None:
    _title(panel, "learning rate (end of the epoch)")
    points = _points(records, "lr")
    if not points:
        _note(panel, "not recorded")
        return
    _line(panel, points, "lr", BLUE, 2.0)
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter(FuncFormatter(_short))


def _speed(panel: Axes, records: list[Record]) -> None:
    points = _points(records, "images_per_second")
    if not points:  # a file written before the speed was recorded
        _title(panel, "seconds per epoch")
        _line(panel, _points(records, "seconds"), "seconds", BLUE, 2.0)
        panel.set_ylim(bottom=0)
        return
    _title(panel, "images per second", BLUE)
    _line(panel, points, "images per second", BLUE, 2.0)
    panel.set_ylim(0, max(1e-3, 1.1 * max(value for _, value in points)))
    waits = _points(records, "wait_share")
    if waits:
        share = panel.twinx()
        share.set_title("time spent waiting for data", loc="right", fontsize=11, color=RED)
        _line(share, waits, "waiting", RED, 1.4)
        share.set_ylim(0, 1)
        share.yaxis.set_major_formatter(PercentFormatter(1.0))
        share.spines[:].set_visible(False)
        share.tick_params(colors=RED, labelsize=9, length=0)


def _title(panel: Axes, text: str, colour: str = INK) -> None:
    panel.set_title(text, loc="left", fontsize=11, color=colour)


def _points(records: list[Record], name: str) -> list[tuple[float, float]]:
    """(epoch, value) wherever the value was recorded and is finite."""
    pairs = [(record["epoch"], record.get(name, math.nan)) for record in records]
    return [(epoch, value) for epoch, value in pairs if math.isfinite(value)]


def _line(
    panel: Axes,
    points: list[tuple[float, float]],
    label: str,
    colour: str,
    width: float,
    style: str = "-",
) -> None:
    if points:
        x, y = zip(*points, strict=True)
        (line,) = panel.plot(x, y, style, color=colour, linewidth=width, label=label)
        if len(points) <= DOTS:
            line.set(marker="o", markersize=3.5)


def _short(value: float, _: object) -> str:
    """A tick without trailing zeros."""
    return f"{value:g}"


def _note(panel: Axes, text: str) -> None:
    panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", color=NOTE, fontsize=11)
    panel.set_yticks([])


def _finish(panel: Axes, records: list[Record]) -> None:
    first, last = records[0]["epoch"], records[-1]["epoch"]
    margin = max(0.5, 0.02 * (last - first))
    panel.set_xlim(first - margin, last + margin)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.set_xlabel("epoch", fontsize=9, color=INK)
    panel.tick_params(labelsize=9, colors=INK)
    bare_axes(panel)
