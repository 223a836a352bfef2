"""The picture of `nmsfree bench jitter`: latency over the stream, and the crowding behind it."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from nmsfree_benchmarks.common.direct_labels import End, spread
from nmsfree_benchmarks.common.on_device import titled
from nmsfree_benchmarks.common.plot_style import FAINT, SERIES, bare_axes, finish, new_figure
from nmsfree_benchmarks.common.sheets import number
from nmsfree_benchmarks.jitter.facts import label, milliseconds
from nmsfree_benchmarks.record.records import Record, Results

TITLES = {"ramp": "empty → crowded → empty", "shuffled": "the same frames, shuffled"}
CROWD = "#e4e4e4"
SPACE = 1.34  # of the stream's length, for the labels at the right


def draw(results: Results, path: Path) -> None:
    """Write the picture as PNG: a panel for each order."""
    orders = list(dict.fromkeys(r.parameters["order"] for r in results.records))
    figure = new_figure(11, 1.2 + 3.1 * len(orders))
    panels = figure.subplots(len(orders), 1, squeeze=False)[:, 0]
    for panel, order in zip(panels, orders, strict=True):
        own = [r for r in results.records if r.parameters["order"] == order]
        _panel(panel, own, results)
        panel.set_title(TITLES.get(order, order), loc="left", fontsize=10)
    panels[-1].set_xlabel("frame of the stream", fontsize=9)
    title = titled("Latency over a stream whose crowding changes", results)
    finish(figure, results, title, path)


def _panel(panel: Axes, records: list[Record], results: Results) -> None:
    frames = results.settings["frames"]
    objects = records[0].figures["objects"][:frames]
    crowd = panel.twinx()
    crowd.bar(range(frames), objects, width=1, color=CROWD, linewidth=0)
    crowd.set_ylim(0, 1.05 * max(objects))
    crowd.set_ylabel("objects in the frame (grey)", fontsize=9, color=FAINT)
    crowd.tick_params(labelsize=9, colors=FAINT)
    crowd.spines[["top", "left", "bottom"]].set_visible(False)
    panel.set_zorder(crowd.get_zorder() + 1)  # lines before the grey area
    panel.patch.set_visible(False)
    ends = [
        End(_line(panel, record, frames, colour), _label(record, results), colour)
        for record, colour in zip(records, SERIES, strict=False)
    ]
    panel.margins(y=0.12)
    panel.set_xlim(-0.7, frames * SPACE)
    panel.set_xticks(range(0, frames, max(1, frames // 10)))
    low, high = panel.get_ylim()
    for place, (value, text, colour) in spread(ends, 0.17 * (high - low), high):
        panel.annotate(text, (frames - 1, value), (frames - 0.3, place), color=colour, fontsize=9,
                       va="center")  # fmt: skip
    bare_axes(panel, "y")
    panel.set_ylabel("ms, median of the passes\n(not from 0); band: quartiles", fontsize=9)


def _label(record: Record, results: Results) -> str:
    facts = results.facts[record.name]
    quiet = facts.get("quiet_p99_by_p50")
    if quiet is None:
        more = f"worst/p50 {facts['worst_by_p50']:.2f}"
    else:
        more = f"left alone {quiet['value']:.2f}"
    return f"{label(record)}\np99/p50 {number(facts['p99_by_p50'], '.2f')}, {more}"


def _line(panel: Axes, record: Record, frames: int, colour: str) -> float:
    """Draw the median of each frame over the passes; returns that of the last frame."""
    passes = milliseconds(record).reshape(-1, frames)
    low, middle, high = np.percentile(passes, (25, 50, 75), axis=0)
    panel.fill_between(range(frames), low, high, color=colour, alpha=0.18, linewidth=0)
    panel.plot(range(frames), middle, "o-", color=colour, linewidth=1.5, markersize=3.5)
    return float(middle[-1])
