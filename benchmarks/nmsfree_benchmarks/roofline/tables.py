"""A roofline run in words: tables and conclusions."""

from collections.abc import Iterator
from typing import Any

from nmsfree_benchmarks.common.sheets import Sheet, number
from nmsfree_benchmarks.record.intervals import Interval
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.roofline.limits import EXCEEDED, reached
from nmsfree_benchmarks.roofline.records import models

LAYERS = 5  # of each model in the table


def sheets(results: Results) -> list[Sheet]:
    """Peaks, models, their heaviest layers, and the device on paper."""
    made = [_peaks(results), _models(results), _layers(results), _paper(results)]
    return [sheet for sheet in made if sheet.rows]


def _peaks(results: Results) -> Sheet:
    rows = [
        (r.name, number(r.figures.get("gflop_per_s")), number(r.figures.get("gb_per_s")))
        for r in results.records
        if r.subject is None
    ]
    return Sheet("Peaks, fastest call", ("what", "GFLOP/s", "GB/s"), tuple(rows))


def _models(results: Results) -> Sheet:
    header = ("model", "GMAC", "weights MB", "act. MB", "limit ms", "bare ms", "of the limit")
    rows = [_model(record) for record in models(results.records)]
    return Sheet("Models: limit and bare session.run, median", header, tuple(rows))


def _model(record: Record) -> tuple[str, ...]:
    f = record.figures
    return (
        record.name.removesuffix(" bare"),
        f"{f['gmac']:.2f}",
        f"{f['weights_mb']:.1f}",
        f"{f['activations_mb']:.1f}",
        f"{f['limit_ms']:.2f}",
        f"{record.summary.p50:.2f}" + ("" if record.summary.trusted else "!"),
        share_text(f),
    )


def share_text(figures: Any) -> str:
    """ "71 % (69 – 73)": share of the limit, with its interval; "–" where that is none."""
    share = reached(figures["share_of_limit"])
    if share is None:
        return "–"
    bounds = {"value": share, "low": figures["share_low"], "high": figures["share_high"]}
    return Interval.from_json(bounds).times(100).text(0, " %")


def _layers(results: Results) -> Sheet:
    header = ("model", "layer", "kind", "GMAC", "MB", "FLOP/byte", "limit ms", "ms", "GFLOP/s")
    rows = []
    for record in models(results.records):
        for layer in record.figures["layers"][:LAYERS]:
            ms, rate = layer["profiled_ms"], layer["gflop_per_s"]
            rows.append((
                record.subject.model if record.subject else "",
                layer["name"],
                layer["kind"],
                f"{layer['gmac']:.3f}",
                f"{layer['mb']:.2f}",
                f"{layer['flop_per_byte']:.0f}",
                f"{layer['limit_ms']:.3f}",
                "–" if ms is None else f"{ms:.3f}",
                "–" if not rate else f"{rate:.0f}",
            ))  # fmt: skip
    return Sheet("Heaviest layers, as the profiler times them", header, tuple(rows), words=3)


def _paper(results: Results) -> Sheet:
    header = ("model", "device", "GFLOP", "peak TFLOP/s", "ms", "FPS at most", "published", "of it")
    rows = []
    for record in models(results.records):
        paper = record.figures["paper"]
        if paper is not None and record.subject is not None:
            rows.append((
                record.subject.model,
                paper["device"],
                f"{paper['gflop']:.0f}",
                f"{paper['peak_tflop_per_s']:.1f}",
                f"{paper['arithmetic_ms']:.1f}",
                f"{paper['fps_at_most']:.0f}",
                f"{paper['published_fps']:.0f} FPS",
                f"{100 * paper['published_share']:.0f} %",
            ))  # fmt: skip
    title = "On paper: computed from the counted multiply-adds, not measured"
    return Sheet(title, header, tuple(rows), words=2)


def conclusions(results: Results) -> Iterator[str]:
    """What the figures say, one line each."""
    for record in sorted(models(results.records), key=lambda r: -r.figures["limit_ms"]):
        yield from _of_model(record)
    yield (
        "Limit: every layer takes as long as its arithmetic at the peak or its bytes at the "
        "rate of a copy as large, whichever is longer; a copy counts bytes read and written. "
        "Empty where an engine was faster: it keeps values in caches between layers, multiplies "
        "less (Winograd), or the peaks were measured in a slower moment."
    )
    for record in models(results.records):
        if record.figures["paper"] is not None:
            yield from _of_paper(record.figures["paper"])
            return


def _of_model(record: Record) -> Iterator[str]:
    f, p50 = record.figures, record.summary.p50
    name = record.name.removesuffix(" bare")
    if reached(f["share_of_limit"]) is None:
        yield f"{name}: {p50:.2f} ms, and {f['limit_ms']:.2f} ms counted: {EXCEEDED}."
    else:
        yield (
            f"{name}: {p50:.2f} ms, at least {f['limit_ms']:.2f} ms: {share_text(f)} of the limit, "
            f"which is arithmetic for {100 * f['limit_by_arithmetic_share']:.0f} %."
        )
    if f["beyond_limit_ms"]:
        lost = ", ".join(f"{kind} {ms:.2f} ms" for kind, ms in f["beyond_limit_ms"].items())
        yield f"{name}, time beyond the limit by kind of layer, profiled: {lost}."


def _of_paper(paper: Any) -> Iterator[str]:
    yield (
        f"Computed, not measured: {paper['gflop']:.0f} GFLOP at {paper['peak_tflop_per_s']:.1f} "
        f"TFLOP/s ({paper['device']}, FP32) take {paper['arithmetic_ms']:.1f} ms, so "
        f"{paper['fps_at_most']:.0f} FPS at most; the published {paper['published_fps']:.0f} FPS "
        f"({paper['published_how']}) are {100 * paper['published_share']:.0f} % of it. "
        f"With its memory ({paper['memory_gb_per_s']:.0f} GB/s) the limit is "
        f"{paper['limit_ms']:.1f} ms. Figures of the device: {paper['source']}."
    )
