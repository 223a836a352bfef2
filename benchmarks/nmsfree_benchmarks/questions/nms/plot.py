"""The picture of `nmsfree bench nms`."""

from pathlib import Path

import numpy as np

from nmsfree_benchmarks.harness import plots
from nmsfree_benchmarks.harness.records import Results
from nmsfree_benchmarks.harness.statistics import Interval, milliseconds
from nmsfree_benchmarks.questions.nms.prices import AXES, HEAD, NAMES, fact, key, price_of


def draw(results: Results, path: Path) -> None:
    """NMS alone over each axis, whole calls over objects, and what NMS takes of these."""
    alone = bool(results.where(measured="alone"))
    figure = plots.new_figure(11, 8 if alone else 4.4)
    rows = figure.subfigures(1 + alone, 1, squeeze=False, height_ratios=(1, 1.05)[-1 - alone :])
    if alone:
        base = results.settings["base"]
        panels = rows[0, 0].subplots(1, 4, sharey=True, width_ratios=(1.9, 1, 1, 1))
        for panel, axis in zip(panels, AXES, strict=True):
            _alone_panel(panel, results, axis)
        panels[0].set_ylabel("ms a call, median")
        panels[0].set_title("NMS alone, one setting varied at a time", loc="left", fontsize=10)
        panels[1].set_title(
            f"else: {base['objects']} objects, floor {base['floor']:g}, IoU {base['iou']:g}, "
            f"batch {base['batch']}",
            loc="left",
            fontsize=9,
            color=plots.FAINT,
        )
    shared = any("_share_of_call_" in name for name in results.facts)
    ratios_ = (1.35, 1)[: 1 + shared]
    panels = rows[-1, 0].subplots(1, 1 + shared, squeeze=False, width_ratios=ratios_)[0]
    _calls_panel(panels[0], results)
    if shared:
        _shares_panel(panels[1], results)
    plots.finish(figure, results, "The price of NMS", path)


def _alone_panel(panel: "plots.Axes", results: Results, axis: str) -> None:
    """One line for each implementation over one axis; values are evenly spaced."""
    base = results.settings["base"]
    others = {name: value for name, value in base.items() if name != axis}
    records = results.where(measured="alone", **others)
    values = sorted({r.parameters[axis] for r in records}, reverse=axis == "floor")
    series = *plots.SERIES[1:3], plots.INK, *plots.SERIES[3:], plots.SERIES[0]
    colour = dict(zip(NAMES, series, strict=True))
    ends = []
    for name in NAMES:
        own = [r for r in records if r.parameters["implementation"] == name]
        if name == HEAD:
            fixed = {k: v for k, v in others.items() if k in ("objects", "batch")}
            own = results.where(implementation=HEAD, **fixed)
        if not own:
            continue
        y = {r.parameters[axis]: r.summary.p50 for r in own}
        if name == HEAD and axis in ("floor", "iou"):  # depends on neither: a level
            y = dict.fromkeys(values, own[0].summary.p50)
        style = "-" if name == HEAD and axis in ("floor", "iou") else "o-"
        x = [i for i, value in enumerate(values) if value in y]
        line = [y[values[i]] for i in x]
        panel.plot(x, line, style, color=colour[name], linewidth=1.6, markersize=4)
        ends.append((float(x[-1]), line[-1], NAMES[name][2], colour[name]))
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    panel.set_xlim(-0.3, len(values) - (0.7 if axis != "objects" else -1.9))
    panel.set_xlabel(AXES[axis], fontsize=9)
    plots.bare_axes(panel, "y")
    if axis == "objects":
        # The point that differs from the base in two settings: empty, at the lowest floor.
        for r in results.where(measured="alone", iou=base["iou"], batch=base["batch"]):
            p = r.parameters
            if p["objects"] != base["objects"] and p["floor"] != base["floor"]:
                mark = colour[p["implementation"]]
                panel.plot(0, r.summary.p50, "D", color=mark, markersize=6, mfc="white", zorder=3)
                text = f"◇ empty, floor {p['floor']:g}"
                place = panel.transAxes
                panel.text(0.03, 0.97, text, transform=place, fontsize=9, color=plots.INK, va="top")
        plots.label_points(panel, ends, right=True)


def _floors(results: Results, what: str) -> list[float]:
    """The score floors at which whole calls were timed, lowest first."""
    found = results.where(measured="call", what=what)
    return sorted({float(r.parameters["floor"]) for r in found})


def _calls_panel(panel: "plots.Axes", results: Results) -> None:
    """Whole calls over the number of objects: one line for each floor, and the NMS-free one."""
    lines = [("NMS-free", f, plots.SERIES[0], "NMS-free") for f in _floors(results, "NMS-free")]
    lines += [
        ("with NMS", floor, plots.SERIES[i], f"NMS, floor {floor:g}")
        for floor, i in zip(_floors(results, "with NMS"), (1, 4, 3), strict=False)
    ]
    ends, own = [], []
    for what, floor, colour, label in lines:
        own = results.where(measured="call", what=what, floor=floor)
        quartiles = [np.percentile(milliseconds(r.times), (25, 50, 75)) for r in own]
        low, y, high = np.array(quartiles).T
        panel.fill_between(range(len(own)), low, high, color=colour, alpha=0.13, linewidth=0)
        panel.plot(range(len(own)), y, "o-", color=colour, linewidth=1.6, markersize=4)
        ends.append((float(len(own) - 1), float(y[-1]), label, colour))
    panel.set_ylim(0, 1.08 * panel.get_ylim()[1])
    panel.set_xlim(-0.1, 1.32 * (len(own) - 1) + 0.1)
    panel.set_xticks(range(len(own)), [str(r.parameters["objects"]) for r in own])
    panel.set_xlabel("objects in the scene", fontsize=9)
    panel.set_ylabel("ms a call, median; band: quartiles")
    panel.set_title("Whole call, Detector(image)", loc="left", fontsize=10)
    plots.bare_axes(panel, "y")
    plots.label_points(panel, ends, right=True)


def _shares_panel(panel: "plots.Axes", results: Results) -> None:
    """Shares of the call with their intervals, over objects and floors."""

    def mark(x: float, share: Interval, marker: str, colour: str) -> None:
        if share.known:
            panel.plot([x, x], [100 * share.low, 100 * share.high], color=colour, linewidth=1.4)
        panel.plot(x, 100 * share.value, marker, color=colour, markersize=5)

    wholes, floors = results.where(measured="call", what="with NMS"), _floors(results, "with NMS")
    objects = sorted({r.parameters["objects"] for r in wholes})
    told_apart = False
    for record in wholes:
        i = floors.index(record.parameters["floor"])
        x = objects.index(record.parameters["objects"]) + 0.16 * (i - (len(floors) - 1) / 2)
        colour, price = plots.SERIES[(1, 4, 3)[i % 3]], price_of(results, record)
        if price is not None:
            told_apart = True
            mark(x, price[1], "o", colour)
        tail = fact(results, f"nms_tail_share_of_call_{key(record)}")
        if tail is not None:
            at = 100 * tail.value
            panel.plot(x + 0.06, at, "D", color=colour, markersize=4, mfc="white")
    for place, count in enumerate(objects):
        share = fact(results, f"filter_share_of_call_{count}")
        if share is not None:
            mark(place + 0.34 * told_apart, share, "s", plots.SERIES[0])  # right of those of NMS
    panel.axhline(0, color=plots.INK, linewidth=0.8)
    panel.set_xticks(range(len(objects)), [str(n) for n in objects])
    panel.set_xlabel("objects in the scene", fontsize=9)
    panel.set_ylabel("% of the call, 95 % interval")
    title = "NMS: ● with − without, ◇ alone; ■ the filter in its place"
    if not told_apart:
        title = "What the filter takes of the NMS-free call"
    panel.set_title(title, loc="left", fontsize=10)
    plots.bare_axes(panel, "y")
