"""The tables of `nmsfree bench nms`."""

from collections.abc import Iterator

from nmsfree_benchmarks.common.sheets import Sheet
from nmsfree_benchmarks.nms.alone import HEAD
from nmsfree_benchmarks.nms.calls import ON_HOST
from nmsfree_benchmarks.nms.facts import percent
from nmsfree_benchmarks.nms.implementations import MAKERS, REFERENCE
from nmsfree_benchmarks.nms.price import NMS_FREE, find_ratio, neighbour, of_kind, price_of
from nmsfree_benchmarks.record.records import Record, Results

SHORT = {
    "numpy": "loop",
    "host": "matrix",
    "onnx": "ONNX",
    "opencv": "OpenCV",
    "torchvision": "torchvision",
}
ALONE = (
    "NMS alone: from candidates in memory to the rows kept, the floor included. NMS-free: from raw "
    "maps to detections, so choosing and decoding are in it and not in the others; its floor is "
    "the lowest."
)
# What a table of calls has of NMS itself, by its first column; "" where it is not told apart.
PRICES = {
    "tail": "Tail: the graph's NMS alone. NMS, % of call: (graph with − the same graph cut before "
    "its NMS) / the call.",
    "NMS on host": "NMS on host: behind the engine, by the runtime's own clock in these "
    "calls; its share is of the whole call.",
    "": "What NMS takes of a call with it in the graph is not told apart here.",
}


def sheets(results: Results) -> list[Sheet]:
    """NMS alone, whole calls, and the published architecture, of those what was measured."""
    made = [_alone(results)] if of_kind(results, measured="alone") else []
    made.append(_calls(results, "call", "whole calls"))
    if of_kind(results, measured="large"):
        made.append(_calls(results, "large", "whole calls of the published architecture"))
    return made


def notes(results: Results) -> list[str]:
    """What the numbers mean."""
    s = results.settings
    height, width = s["size"]
    alone = bool(of_kind(results, measured="alone"))
    batch = "any number of images" if alone else "one image"
    return [
        f"Scenes of {height} × {width} pixels, {s['scenes']} with each number of objects, files "
        f"for {batch}; the best {s['candidates_per_level']} (cell, class) pairs of a level "
        f"are candidates; {s['top_k']} rows of output; NMS within a class.",
        *([ALONE] if alone else []),
        "Whole calls: Detector(image), one image after another, IoU "
        f"{s['base']['iou']:g}. Cand.: candidates above the floor. {PRICES[_price(results)]}",
        "! The interquartile range is above 10 % of the median.",
    ]


def ms(record: Record) -> str:
    """Median milliseconds, marked where the record distrusts itself."""
    p50 = record.summary.p50
    doubt = "" if record.summary.trusted else "!"
    digits = "2g" if p50 < 1 else "3g" if p50 < 100 else "0f"
    return f"{p50:.{digits}}{doubt}"


def _alone(results: Results) -> Sheet:
    present = {r.parameters["implementation"] for r in of_kind(results, measured="alone")}
    names = [name for name in MAKERS if name in present]
    rows = tuple(
        _alone_row(results, record, names) for record in of_kind(results, implementation=REFERENCE)
    )
    columns = ("objects", "floor", "IoU", "batch", "cand.", "kept")
    header = ("varied", *columns, *(SHORT[name] for name in names), "NMS-free")
    return Sheet("NMS alone, median ms of a call; loop and matrix: in NumPy", header, rows)


def _alone_row(results: Results, record: Record, names: list[str]) -> tuple[str, ...]:
    p, base = record.parameters, results.settings["base"]
    point = {name: p[name] for name in ("objects", "floor", "iou", "batch")}
    varied = [name for name, value in point.items() if value != base[name]] or ["base"]
    own = [of_kind(results, implementation=name, **point)[0] for name in names]
    head = of_kind(results, implementation=HEAD, objects=p["objects"], batch=p["batch"])[0]
    return (
        " + ".join(varied).replace("iou", "IoU"),
        str(p["objects"]),
        f"{p['floor']:g}",
        f"{p['iou']:g}",
        str(p["batch"]),
        f"{record.figures['candidates']:.0f}",
        f"{record.figures['kept']:.0f}",
        *(ms(r) for r in own),
        ms(head),
    )


def _price(results: Results) -> str:
    """Which of `PRICES` was measured."""
    if of_kind(results, what="NMS tail alone"):
        return "tail"
    return "NMS on host" if any(ON_HOST in r.parts for r in results.records) else ""


def _calls(results: Results, measured: str, title: str) -> Sheet:
    price = _price(results)
    columns = (price, "NMS, % of call") if price else ()
    header = ("objects", "floor", "cand.", "kept", "with NMS", *columns)
    rows = tuple(_call_rows(results, measured))
    return Sheet(
        f"NMS in {title}, median ms", (*header, "NMS-free", "NMS-free / with"), rows, words=0
    )


def _call_rows(results: Results, measured: str) -> Iterator[tuple[str, ...]]:
    for whole in of_kind(results, measured=measured, what="with NMS"):
        free = neighbour(results, whole, "NMS-free", floor=False)
        ratio = find_ratio(results, NMS_FREE, whole)
        yield (
            "–" if whole.parameters["objects"] is None else str(whole.parameters["objects"]),
            f"{whole.parameters['floor']:g}",
            f"{whole.figures['candidates']:.0f}",
            f"{whole.figures['kept']:.0f}",
            ms(whole),
            *_price_cells(results, whole),
            "–" if free is None else ms(free),
            "–" if ratio is None else ratio.interval.text(dash="–"),
        )


def _price_cells(results: Results, whole: Record) -> tuple[str, ...]:
    """What NMS takes by itself, and its share of the call; none where that is not told apart."""
    price = price_of(results, whole)
    if price is None:
        return ()
    tail = neighbour(results, whole, "NMS tail alone", floor=True)
    cost = f"{price[0].value:.3g}" if tail is None else ms(tail)
    return cost, percent(price[1]).replace(" %", "").replace(" – ", "–")
