"""What the price of NMS is: ratios and facts read from the times, in tables and sentences."""

from collections.abc import Iterator
from typing import Any

from nmsfree_benchmarks.harness.engines import ran_in
from nmsfree_benchmarks.harness.records import Ratio, Record, Results
from nmsfree_benchmarks.harness.statistics import Interval, difference, milliseconds
from nmsfree_benchmarks.harness.table import Table

HEAD, UNFILTERED, REFERENCE = "NMS-free head", "NMS-free, filter taken out", "numpy"
BY_REFERENCE = "NMS implementation by the NumPy loop"
FREE_BY_NMS = "NMS-free call by the call with NMS"
TAIL = "NMS tail alone by the call with NMS"
FILTER = "NMS-free call by the same without its filter"
AXES = {"objects": "objects", "floor": "score floor", "iou": "IoU threshold", "batch": "batch"}
NAMES = {  # of the implementations: in sentences, in tables, in the picture
    "numpy": ("NumPy, greedy loop", "loop", "NumPy loop"),
    "onnx": ("ONNX NonMaxSuppression", "ONNX", "ONNX operator"),
    "plain": ("ONNX plain operators", "plain", "ONNX plain operators"),
    "opencv": ("OpenCV NMSBoxesBatched", "OpenCV", "OpenCV"),
    "torchvision": ("torchvision batched_nms", "torchvision", "torchvision"),
    "matrix": ("NumPy, matrix of overlaps", "matrix", "NumPy matrix"),
    HEAD: (HEAD, "NMS-free", "NMS-free head, all of\nits post-processing"),
}
# A terminal has no room for the last ones.
IN_TABLES = ("numpy", "onnx", "plain", "opencv", HEAD, "matrix", "torchvision")
NARROW = 12  # columns


def neighbour(results: Results, record: Record, what: str, *, floor: bool = False) -> Any:
    """Another record of the same scenes (and the same floor); None if there is none."""
    same = {key: record.parameters[key] for key in ("measured", "objects")}
    if floor:
        same["floor"] = record.parameters["floor"]
    return next(iter(results.where(what=what, **same)), None)


def _filtered(results: Results) -> Iterator[tuple[Record, Record]]:
    """NMS-free calls with their filter and without, on the same scenes."""
    for free in results.where(what="NMS-free"):
        bare = neighbour(results, free, UNFILTERED)
        if bare is not None:
            yield free, bare


def ratios(results: Results) -> Iterator[Ratio]:
    """Every implementation by the reference; NMS-free calls and the NMS tail by the whole call."""
    for record in results.where(measured="alone"):
        if record.parameters["implementation"] not in (REFERENCE, HEAD):
            same = {axis: record.parameters[axis] for axis in AXES}
            (reference,) = results.where(implementation=REFERENCE, **same)
            yield Ratio.between(record, reference, BY_REFERENCE, results.burst(record))
    for whole in results.where(what="with NMS"):
        for what, meaning in (("NMS-free", FREE_BY_NMS), ("NMS tail alone", TAIL)):
            other = neighbour(results, whole, what, floor=meaning == TAIL)
            if other is not None:
                yield Ratio.between(other, whole, meaning, results.burst(whole))
    for free, bare in _filtered(results):
        yield Ratio.between(free, bare, FILTER, results.burst(free))


def facts(results: Results) -> dict[str, Any]:
    """What NMS costs in each call, how much it had to do, and what was found.

    Keys end in objects and floor: `nms_share_of_call_500_0.001` is (graph with NMS − the same graph
    without) / the whole call, `nms_ms_…` its numerator; `nms_tail_share_of_call_…` is the NMS tail,
    timed alone, by the whole call.
    `filter_ms_500` and `filter_share_of_call_500` are the NMS-free call less the same without its
    filter, and that by the call. Each has a 95 % interval.
    """
    found: dict[str, Any] = {}
    for whole in results.where(what="with NMS"):
        found |= dict(_costs(results, whole))
        found[f"candidates_{key(whole)}"] = whole.figures["candidates"]
        found[f"kept_{key(whole)}"] = whole.figures["kept"]
    for record in results.where(measured="call", what="NMS-free"):
        found[f"found_nms_free_{record.parameters['objects']}"] = record.figures["found"]
    for free, bare in _filtered(results):
        cost, share = nms_cost(free, bare, results.burst(free))
        found[f"filter_ms_{free.parameters['objects']}"] = cost.to_json()
        found[f"filter_share_of_call_{free.parameters['objects']}"] = share.to_json()
    same = [r.figures.get("same_as_reference") for r in results.records]
    compared = [share for share in same if share is not None]
    return found | ({"implementations_agree": min(compared)} if compared else {})


def nms_cost(whole: Record, without: Record, burst: int) -> list[Interval]:
    """What NMS costs in the network's part of a call: milliseconds, and its share of the call.

    `without` is the same call without NMS, of the same rounds.
    """
    own, other = (record.times[:, 1] / 1e6 for record in (whole, without))
    return difference(own, other, milliseconds(whole.times), burst)


def _costs(results: Results, whole: Record) -> Iterator[tuple[str, Any]]:
    """What NMS takes of one call, in each of the ways in which that was measured."""
    burst, where = results.burst(whole), key(whole)
    without = neighbour(results, whole, "without its NMS")
    if without is not None:
        cost, share = nms_cost(whole, without, burst)
        yield f"nms_ms_{where}", cost.to_json()
        yield f"nms_share_of_call_{where}", share.to_json()
    tail = results.ratio_of(TAIL, to=whole)
    if tail is not None:
        yield f"nms_tail_share_of_call_{where}", tail.interval.to_json()
        yield f"nms_tail_ms_{where}", round(results.record(tail.of).summary.p50, 4)


def key(record: Record) -> str:
    """The end of a fact's name: "500_0.001", or "large_0.001" for the published architecture."""
    objects, floor = record.parameters["objects"], record.parameters["floor"]
    return f"{'large' if objects is None else objects}_{floor:g}"


def fact(results: Results, name: str) -> Interval | None:
    """A fact with its interval; None where it was not told apart, or older results lack it."""
    found = results.facts.get(name)
    return None if found is None else Interval.from_json(found)


def price_of(results: Results, whole: Record) -> tuple[Interval, Interval] | None:
    """Milliseconds and share of the call that NMS takes in it; None where not told apart."""
    cost = fact(results, f"nms_ms_{key(whole)}")
    share = fact(results, f"nms_share_of_call_{key(whole)}")
    return None if cost is None or share is None else (cost, share)


def percent(share: Interval) -> str:
    return share.times(100).text(1, " %")


def conclusions(results: Results) -> Iterator[str]:
    base = results.settings["base"]
    most, wholes = base["objects"], results.where(what="with NMS")
    lowest = min(float(r.parameters["floor"]) for r in wholes)
    yield from _headline(results, most, lowest)
    cost, share = fact(results, f"filter_ms_{most}"), fact(results, f"filter_share_of_call_{most}")
    if cost is not None and share is not None:
        yield (
            "The filter that does its work in the NMS-free network takes "
            f"{cost.text(unit=' ms')} there, {percent(share)} of that call."
        )
    if "implementations_agree" in results.facts:
        agree = results.facts["implementations_agree"]
        some = f"at least {agree:.2%} the same; an IoU within rounding of the threshold may differ"
        yield f"All implementations keep the same boxes ({'all' if agree == 1 else some})."
    found = [
        f"{r.state.model} {r.figures['found']:.0f}"
        for r in results.where(measured="call", objects=most, floor=lowest)
        if r.subject is not None and r.parameters["what"] != UNFILTERED
    ]
    yield f"Found in scenes of {most} objects, score above 0.3: {', '.join(found)}."
    yield from _prices(results, most)
    yield from ran_in(results)
    yield from _fastest(results, base)
    yield from _plain(results, base)
    yield from _slowest(results)
    for ratio in results.ratios:
        free, whole = results.record(ratio.of), results.record(ratio.to)
        if ratio.meaning == FREE_BY_NMS and whole.parameters["objects"] == most:
            side, how = results.told_apart(ratio)
            sure = {0: "the same or unsure", 1: f"surely slower{how}", -1: f"surely faster{how}"}
            yield (
                f"NMS-free by NMS at floor {whole.parameters['floor']:g}, {most} objects: "
                f"{ratio.interval} of the time{free.state.graph_beside(whole.state)}, {sure[side]}."
            )


def _headline(results: Results, most: int, floor: float) -> Iterator[str]:
    """The price where it is most asked for: the most objects, the lowest floor, by itself."""
    where = f"At {most} objects and floor {floor:g} NMS"
    for whole in results.where(what="with NMS", objects=most, floor=floor):
        tail = fact(results, f"nms_tail_share_of_call_{key(whole)}")
        if tail is not None:
            ms = results.facts[f"nms_tail_ms_{key(whole)}"]
            yield f"{where}, timed by itself, takes {ms:.2f} ms, {percent(tail)} of the whole call."


def _prices(results: Results, most: int) -> Iterator[str]:
    """The cost in a call, at the base number of objects and for the published architecture."""
    for whole in results.where(what="with NMS"):
        objects, price = whole.parameters["objects"], price_of(results, whole)
        if objects not in (most, None) or price is None:
            continue
        where = f"{objects} objects"
        if objects is None:
            height, width = whole.state.size
            weights = "random" if whole.state.training == "untrained" else "published"
            where = f"{whole.state.model} at {height} × {width} ({weights} weights)"
        tail, more = fact(results, f"nms_tail_share_of_call_{key(whole)}"), ""
        if tail is not None:
            ms = results.facts[f"nms_tail_ms_{key(whole)}"]
            more = f"; the tail alone takes {ms:.2f} ms, {percent(tail)}"
        yield (
            f"NMS in the call, {where}, floor {whole.parameters['floor']:g}, "
            f"{whole.figures['candidates']:.0f} candidates: {percent(price[1])} of it, "
            f"{price[0].text(unit=' ms')}{more}."
        )


def _fastest(results: Results, base: dict[str, Any]) -> Iterator[str]:
    alone = results.where(measured="alone", **base)
    own = [r for r in alone if r.parameters["implementation"] != HEAD]
    own.sort(key=lambda r: r.summary.p50)
    if len(own) > 1:
        ratio = Ratio.between(own[0], own[1], "", results.burst(own[0]))
        side, how = results.told_apart(ratio)
        best, second = (
            f"{NAMES[r.parameters['implementation']][0]}, {r.summary.p50:.2f} ms" for r in own[:2]
        )
        yield (
            f"Fastest NMS with {base['objects']} objects, floor {base['floor']:g}, IoU "
            f"{base['iou']:g}, batch {base['batch']}: {best}"
            + (f"{how}." if side else f", not told apart from {second}.")
        )


def _plain(results: Results, base: dict[str, Any]) -> Iterator[str]:
    """NMS in plain operators beside the operator, and how little it depends on the picture."""
    ours = results.where(implementation="plain", **base)
    theirs = results.where(implementation="onnx", **base)
    for plain, operator in zip(ours, theirs, strict=False):
        ratio = Ratio.between(plain, operator, "", results.burst(plain))
        fixed = {name: base[name] for name in ("floor", "iou", "batch")}
        medians = [r.summary.p50 for r in results.where(implementation="plain", **fixed)]
        yield (
            f"NMS in plain operators takes {plain.summary.p50:.2f} ms there, {ratio.interval} times"
            f" the operator's; {min(medians):.2f} to {max(medians):.2f} ms over all numbers of"
            " objects. It is for engines that lack the operator."
        )


def _slowest(results: Results) -> Iterator[str]:
    tails = results.where(measured="call", what="NMS tail alone")
    if tails:
        slowest = max(tails, key=lambda r: r.summary.p50)
        yield (
            "By medians the NMS tail of the graph takes longest with "
            f"{slowest.parameters['objects']} objects at floor {slowest.parameters['floor']:g}: "
            f"{slowest.summary.p50:.2f} ms for {slowest.figures['candidates']:.0f} candidates, of "
            f"which it keeps {slowest.figures['kept']:.0f}."
        )


def notes(results: Results) -> Iterator[str]:
    s, alone = results.settings, bool(results.where(measured="alone"))
    height, width = s["size"]
    yield (
        f"Scenes of {height} × {width} pixels, {s['scenes']} with each number of objects, files "
        f"for {'any number of images' if alone else 'one image'}; the best "
        f"{s['candidates_per_level']} (cell, class) pairs of a level are candidates; {s['top_k']} "
        "rows of output; NMS within a class."
    )
    if alone:
        yield (
            "NMS alone: from candidates in memory to the rows kept, the floor included. NMS-free: "
            "from raw maps to detections, so choosing and decoding are in it and not in the "
            "others; its floor is the lowest."
        )
    if results.where(implementation="plain"):
        yield (
            f"Plain: NMS in {s['plain']['steps']} steps of plain operators, of the best"
            f" {s['plain']['candidates']} candidates, as `nmsfree export --nms plain` writes it;"
            " the others take all that are above the floor."
        )
    price = "What NMS takes of a call with it in the graph is not told apart here."
    if results.where(what="NMS tail alone"):
        price = (
            "Tail: the graph's NMS alone. NMS, % of call: (graph with − the same graph cut before "
            "its NMS) / the call."
        )
    yield (
        f"Whole calls: Detector(image), one image after another, IoU {s['base']['iou']:g}. Cand.: "
        f"candidates above the floor. {price}"
    )


def tables(results: Results) -> list[Table]:
    """NMS alone, whole calls, and the published architecture, of those what was measured."""
    made = [_alone_table(results)] if results.where(measured="alone") else []
    for measured, title in (("call", ""), ("large", " of the published architecture")):
        if results.where(measured=measured):
            tail = bool(results.where(what="NMS tail alone"))
            columns = ("tail", "NMS, % of call") if tail else ()
            header = ("objects", "floor", "cand.", "kept", "with NMS", *columns, "NMS-free")
            rows = tuple(_call_rows(results, measured))
            title = f"NMS in whole calls{title}, median ms"
            made.append(Table(title, (*header, "NMS-free / with"), rows, words=0))
    return made


def ms(record: Record | None) -> str:
    """Median milliseconds, marked where the record distrusts itself."""
    if record is None:
        return "–"
    p50 = record.summary.p50
    return f"{p50:.{'2g' if p50 < 1 else '3g' if p50 < 100 else '0f'}}{record.summary.doubt}"


def _alone_table(results: Results) -> Table:
    present = {r.parameters["implementation"] for r in results.where(measured="alone")}
    names = [name for name in IN_TABLES if name in present]
    columns = ("objects", "floor", "IoU", "batch", "cand.", "kept")
    header = ("varied", *columns, *(NAMES[name][1] for name in names))
    base, rows = results.settings["base"], []
    for record in results.where(implementation=REFERENCE):
        point = {axis: record.parameters[axis] for axis in AXES}
        varied = [name for name, value in point.items() if value != base[name]] or ["base"]
        same = {axis: point[axis] for axis in ("objects", "batch")}
        own = [
            results.where(implementation=name, **(same if name == HEAD else point))[0]
            for name in names
        ]
        rows.append(
            (
                " + ".join(varied).replace("iou", "IoU"),
                *(f"{value:g}" for value in point.values()),
                *(f"{record.figures[name]:.0f}" for name in ("candidates", "kept")),
                *map(ms, own),
            )
        )
    title = "NMS alone, median ms of a call; loop and matrix: in NumPy"
    return Table(title, header, tuple(rows), narrow=NARROW)


def _call_rows(results: Results, measured: str) -> Iterator[tuple[str, ...]]:
    for whole in results.where(measured=measured, what="with NMS"):
        ratio, price = results.ratio_of(FREE_BY_NMS, to=whole), price_of(results, whole)
        cells: tuple[str, ...] = ()
        if price is not None:
            tail = neighbour(results, whole, "NMS tail alone", floor=True)
            cells = (ms(tail), percent(price[1]).replace(" %", "").replace(" – ", "–"))
        yield (
            "–" if whole.parameters["objects"] is None else str(whole.parameters["objects"]),
            f"{whole.parameters['floor']:g}",
            *(f"{whole.figures[name]:.0f}" for name in ("candidates", "kept")),
            ms(whole),
            *cells,
            ms(neighbour(results, whole, "NMS-free")),
            "–" if ratio is None else ratio.interval.text(dash="–"),
        )
