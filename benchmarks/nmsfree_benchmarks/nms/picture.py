"""The picture of `nmsfree bench nms`: NMS alone over each axis, and whole calls over objects."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from nmsfree_benchmarks.common.direct_labels import End, spread
from nmsfree_benchmarks.common.on_device import titled
from nmsfree_benchmarks.common.plot_style import FAINT, INK, SERIES, bare_axes, finish, new_figure
from nmsfree_benchmarks.nms.alone import HEAD
from nmsfree_benchmarks.nms.picture_shares import FLOORS, draw_shares, floors_of
from nmsfree_benchmarks.nms.price import of_kind
from nmsfree_benchmarks.record.records import Record, Results

AXES = {"objects": "objects", "floor": "score floor", "iou": "IoU threshold", "batch": "batch"}
NAMES = {
    "numpy": "NumPy loop",
    "onnx": "ONNX operator",
    "opencv": "OpenCV",
    "torchvision": "torchvision",
    "host": "NumPy matrix",
    HEAD: "NMS-free head, all of\nits post-processing",
}
COLOURS = dict(zip(NAMES, (*SERIES[1:], SERIES[0]), strict=True))


def draw(results: Results, path: Path) -> None:
    """Write the picture as PNG; without the upper row where NMS alone was not measured."""
    alone = bool(of_kind(results, measured="alone"))
    figure = new_figure(11, 8 if alone else 4.4)
    rows = figure.subfigures(1 + alone, 1, squeeze=False, height_ratios=(1, 1.05)[-1 - alone :])
    if alone:
        _all_alone(rows[0, 0], results)
    _all_calls(rows[-1, 0], results)
    finish(figure, results, titled("The price of NMS", results), path)


def _all_alone(figure: SubFigure, results: Results) -> None:
    """NMS alone, a panel for each axis."""
    base = results.settings["base"]
    panels = figure.subplots(1, 4, sharey=True, width_ratios=(1.9, 1, 1, 1))
    for panel, (axis, label) in zip(panels, AXES.items(), strict=True):
        _alone(panel, results, axis, label)
    panels[0].set_ylabel("ms a call, median")
    panels[0].set_title("NMS alone, one setting varied at a time", loc="left", fontsize=10)
    panels[1].set_title(
        f"else: {base['objects']} objects, floor {base['floor']:g}, IoU {base['iou']:g}, "
        f"batch {base['batch']}",
        loc="left",
        fontsize=9,
        color=FAINT,
    )


def _all_calls(figure: SubFigure, results: Results) -> None:
    """Whole calls, and beside them what NMS and the filter take, where that was told apart."""
    shared = any("_share_of_call_" in fact for fact in results.facts)
    panels = figure.subplots(1, 1 + shared, squeeze=False, width_ratios=(1.35, 1)[: 1 + shared])
    _calls(panels[0, 0], results)
    if shared:
        draw_shares(panels[0, 1], results)


def _alone(panel: Axes, results: Results, axis: str, label: str) -> None:
    """One line for each implementation over one axis; values are evenly spaced."""
    base = results.settings["base"]
    others = {name: value for name, value in base.items() if name != axis}
    records = of_kind(results, measured="alone", **others)
    values = sorted({r.parameters[axis] for r in records}, reverse=axis == "floor")
    ends: dict[str, float] = {}
    for name, colour in COLOURS.items():
        if name == HEAD:
            fixed = {k: v for k, v in others.items() if k in ("objects", "batch")}
            own = of_kind(results, implementation=HEAD, **fixed)
        else:
            own = [r for r in records if r.parameters["implementation"] == name]
        if own:
            ends[name] = _line(panel, own, axis, values, name, colour)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    panel.set_xlim(-0.3, len(values) - (0.7 if axis != "objects" else -1.9))
    panel.set_xlabel(label, fontsize=9)
    bare_axes(panel, "y")
    if axis == "objects":
        _dearest(panel, results)
        marks = [End(math.log10(value), NAMES[name], COLOURS[name]) for name, value in ends.items()]
        for place, (_, text, colour) in spread(marks, *_room(panel)):
            panel.text(len(values) - 0.85, 10**place, text, color=colour, fontsize=9, va="center")


def _dearest(panel: Axes, results: Results) -> None:
    """Mark the point that differs from the base in two settings: empty, at the lowest floor."""
    base = results.settings["base"]
    own = [
        r
        for r in of_kind(results, measured="alone", iou=base["iou"], batch=base["batch"])
        if r.parameters["objects"] != base["objects"] and r.parameters["floor"] != base["floor"]
    ]
    for record in own:
        colour = COLOURS[record.parameters["implementation"]]
        panel.plot(0, record.summary.p50, "D", color=colour, markersize=6, mfc="white", zorder=3)
    if own:
        text = f"◇ empty, floor {own[0].parameters['floor']:g}"
        panel.text(0.03, 0.97, text, transform=panel.transAxes, fontsize=9, color=INK, va="top")


def _room(panel: Axes) -> tuple[float, float]:
    """Return how far apart labels must be in a panel, and its top, in powers of ten."""
    low, high = (math.log10(value) for value in panel.get_ylim())
    return 0.1 * (high - low), high


def _line(
    panel: Axes, records: list[Record], axis: str, values: list[float], name: str, colour: str
) -> float:
    """Draw one line; returns its value at the right end."""
    if name == HEAD and axis in ("floor", "iou"):  # depends on neither: a level
        panel.axhline(records[0].summary.p50, color=colour, linewidth=1.6)
        return records[0].summary.p50
    own = sorted(records, key=lambda r: values.index(r.parameters[axis]))
    x = [values.index(r.parameters[axis]) for r in own]
    y = [r.summary.p50 for r in own]
    panel.plot(x, y, "o-", color=colour, linewidth=1.6, markersize=4)
    return y[-1]


def _calls(panel: Axes, results: Results) -> None:
    """Whole calls over the number of objects: one line for each floor, and the NMS-free one."""
    lines = [("NMS-free", f, SERIES[0], "NMS-free") for f in floors_of(results, "NMS-free")]
    lines += [
        ("with NMS", floor, colour, f"NMS, floor {floor:g}")
        for floor, colour in zip(floors_of(results, "with NMS"), FLOORS, strict=False)
    ]
    ends = []
    for what, floor, colour, label in lines:
        own = of_kind(results, measured="call", what=what, floor=floor)
        x = range(len(own))
        low, y, high = np.array([_quartiles(r) for r in own]).T
        panel.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        panel.plot(x, y, "o-", color=colour, linewidth=1.6, markersize=4)
        ends.append(End(float(y[-1]), label, colour))
    panel.set_ylim(0, 1.08 * panel.get_ylim()[1])
    top = panel.get_ylim()[1]
    last = len(own) - 1
    panel.set_xlim(-0.1, 1.32 * last)
    panel.set_xticks(x, [str(r.parameters["objects"]) for r in own])
    for place, (value, label, colour) in spread(ends, 0.055 * top, top):
        panel.annotate(label, (last, value), (last * 1.03, place), color=colour, fontsize=9,
                       va="center")  # fmt: skip
    panel.set_xlabel("objects in the scene", fontsize=9)
    panel.set_ylabel("ms a call, median; band: quartiles")
    panel.set_title("Whole call, Detector(image)", loc="left", fontsize=10)
    bare_axes(panel, "y")


def _quartiles(record: Record) -> list[float]:
    return [float(v) for v in np.percentile(record.times.sum(axis=1) / 1e6, (25, 50, 75))]
