"""The picture of a roofline: speed over FLOP for each byte, under the roofs of the device."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from nmsfree_benchmarks.common.plot_style import INK, SERIES, bare_axes, finish, new_figure
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.roofline.limits import reached
from nmsfree_benchmarks.roofline.records import models

ROOFS = ("fp32", "int8", "bf16", "fp16", "tf32")
LEFT, MARGIN = 0.5, 4.0  # FLOP for each byte at the left; room at the right, a factor


def roofs(results: Results) -> tuple[dict[str, float], dict[str, float]]:
    """Precision → best GFLOP/s, and name of the copy → GB/s."""
    products: dict[str, float] = {}
    copies: dict[str, float] = {}
    for record in results.records:
        if record.subject is None and "gflop_per_s" in record.figures:
            key = str(record.parameters["precision"])
            products[key] = max(record.figures["gflop_per_s"], products.get(key, 0.0))
        elif record.subject is None and "gb_per_s" in record.figures:
            copies[record.name] = record.figures["gb_per_s"]
    return products, copies


def layer_points(record: Record) -> Iterator[tuple[float, float]]:
    """(FLOP for each byte, GFLOP/s) of the heaviest layers that multiply and were profiled."""
    for layer in record.figures["layers"]:
        if layer["gflop_per_s"] and layer["gmac"]:
            yield layer["flop_per_byte"], layer["gflop_per_s"]


def draw(results: Results, path: Path) -> None:
    """Write the picture as PNG: large dots are models, small ones their heaviest layers."""
    figure = new_figure(10, 6)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    found = models(results.records)
    for i, record in enumerate(found):
        _model(axes, record, SERIES[i % len(SERIES)])
    left, right = _span(found)
    products, copies = roofs(results)
    _roofs(axes, products, copies, left, right)
    axes.set_xlim(left, right)
    bare_axes(axes)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.6)))
    axes.set_xlabel("FLOP for each byte read or written")
    axes.set_ylabel("GFLOP/s")
    axes.legend(fontsize=9, frameon=False, loc="lower right")
    finish(figure, results, "How far from the limit", path)


def _model(axes: Axes, record: Record, colour: str) -> None:
    f: Any = record.figures
    points = list(layer_points(record))
    if points:
        axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=4, alpha=0.5)
    reached_share = reached(f["share_of_limit"])
    share = "no limit" if reached_share is None else f"{reached_share:.0%} of its limit"
    axes.plot(
        f["flop_per_byte"],
        f["gflop_per_s"],
        "o",
        color=colour,
        markersize=10,
        markeredgecolor="white",
        label=f"{record.name.removesuffix(' bare')}: {share}",
    )


def _span(found: list[Record]) -> tuple[float, float]:
    xs = [record.figures["flop_per_byte"] for record in found]
    xs += [x for record in found for x, _ in layer_points(record)]
    return min(LEFT, *xs), max(xs) * MARGIN


def _roofs(
    axes: Axes, products: dict[str, float], copies: dict[str, float], left: float, right: float
) -> None:
    """Flat: matrix products. Slanting: copies, up to the highest flat one."""
    xs = np.geomspace(left, right, 100)
    top = max(products.values())
    for i, (name, rate) in enumerate(copies.items(), start=1):
        below = xs[xs * rate <= top]
        if len(below):
            axes.plot(below, below * rate, color=INK, linewidth=0.9, linestyle=":")
            x = below[len(below) * i // (len(copies) + 1)]  # staggered, so that none hides another
            axes.annotate(
                f"{name}: {rate:.0f} GB/s", (x, x * rate), fontsize=8, color=INK, va="center",
                xytext=(8, 0), textcoords="offset points", bbox={"color": "white", "pad": 1},
            )  # fmt: skip
    for precision in ROOFS:
        if precision in products:
            rate = products[precision]
            axes.axhline(rate, color=INK, linewidth=0.9)
            text = f"matrix product {precision}: {rate:.0f} GFLOP/s"
            axes.annotate(text, (right, rate), fontsize=8, ha="right", color=INK,
                          xytext=(-4, 3), textcoords="offset points")  # fmt: skip
