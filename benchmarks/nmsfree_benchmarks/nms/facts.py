"""What the price of NMS is: ratios and facts read from the times, and sentences that say them."""

from collections.abc import Iterator
from typing import Any

from nmsfree_benchmarks.crowd.stats import nms_cost
from nmsfree_benchmarks.nms.alone import HEAD
from nmsfree_benchmarks.nms.calls import UNFILTERED
from nmsfree_benchmarks.nms.implementations import LABELS, REFERENCE
from nmsfree_benchmarks.record.intervals import Interval
from nmsfree_benchmarks.record.records import Ratio, Record, Results
from nmsfree_benchmarks.record.verdict import judge

BY_REFERENCE = "NMS implementation by the NumPy loop"
NMS_FREE = "NMS-free call by the call with NMS"
TAIL = "NMS tail alone by the call with NMS"
FILTER = "NMS-free call by the same without its filter"


def of_kind(results: Results, **parameters: Any) -> list[Record]:
    """Return the records with these parameters."""
    wanted = parameters.items()
    return [r for r in results.records if all(r.parameters.get(k) == v for k, v in wanted)]


def neighbour(results: Results, record: Record, what: str, *, floor: bool) -> Record | None:
    """Return another thing timed on the same scenes (at the same floor); None if there is none."""
    same = {key: record.parameters[key] for key in ("measured", "objects")}
    if floor:
        same["floor"] = record.parameters["floor"]
    return next(iter(of_kind(results, what=what, **same)), None)


def ratios_of(results: Results) -> Iterator[Ratio]:
    """Every implementation by the reference; NMS-free calls and the NMS tail by the whole call."""
    bursts = results.settings["burst"]
    references = {_point(r): r for r in of_kind(results, implementation=REFERENCE)}
    for record in of_kind(results, measured="alone"):
        if record.parameters["implementation"] not in (REFERENCE, HEAD):
            reference = references[_point(record)]
            yield Ratio.between(record, reference, BY_REFERENCE, bursts["alone"])
    for whole in of_kind(results, what="with NMS"):
        burst = bursts[whole.parameters["measured"]]
        free = neighbour(results, whole, "NMS-free", floor=False)
        if free is not None:
            yield Ratio.between(free, whole, NMS_FREE, burst)
        tail = neighbour(results, whole, "NMS tail alone", floor=True)
        if tail is not None:
            yield Ratio.between(tail, whole, TAIL, burst)
    for free, bare in _filtered(results):
        burst = bursts[free.parameters["measured"]]
        yield Ratio.between(free, bare, FILTER, burst)


def _filtered(results: Results) -> Iterator[tuple[Record, Record]]:
    """NMS-free calls with their filter and without, on the same scenes."""
    for free in of_kind(results, what="NMS-free"):
        bare = neighbour(results, free, UNFILTERED, floor=False)
        if bare is not None:
            yield free, bare


def find_ratio(results: Results, meaning: str, to: Record) -> Ratio | None:
    """Return the ratio of this meaning to a record; None if there is none."""
    return next((r for r in results.ratios if r.meaning == meaning and r.to == to.name), None)


def _point(record: Record) -> tuple[Any, ...]:
    return tuple(record.parameters[key] for key in ("objects", "floor", "iou", "batch"))


def facts_of(results: Results) -> dict[str, Any]:
    """Return what NMS costs in each call, how much it had to do, and what was found.

    Keys end in objects and floor: `nms_share_of_call_500_0.001` is (graph with NMS − the same graph
    without) / the whole call, `nms_ms_…` its numerator; `nms_tail_share_of_call_…` is the NMS tail,
    timed alone, by the whole call. `filter_ms_500` and `filter_share_of_call_500` are the NMS-free
    call less the same without its filter, and that by the call. Each has a 95 % interval.
    """
    facts: dict[str, Any] = {}
    for whole in of_kind(results, what="with NMS"):
        without = neighbour(results, whole, "without its NMS", floor=False)
        assert without is not None
        cost, share = nms_cost(
            whole, without, results.settings["burst"][whole.parameters["measured"]]
        )
        where = key(whole)
        facts[f"nms_ms_{where}"] = cost.to_json()
        facts[f"nms_share_of_call_{where}"] = share.to_json()
        tail = find_ratio(results, TAIL, whole)
        assert tail is not None
        facts[f"nms_tail_share_of_call_{where}"] = tail.interval.to_json()
        facts[f"nms_tail_ms_{where}"] = round(results.record(tail.of).summary.p50, 4)
        facts[f"candidates_{where}"] = whole.figures["candidates"]
        facts[f"kept_{where}"] = whole.figures["kept"]
    for record in of_kind(results, measured="call", what="NMS-free"):
        facts[f"found_nms_free_{record.parameters['objects']}"] = record.figures["found"]
    for free, bare in _filtered(results):
        cost, share = nms_cost(free, bare, results.settings["burst"][free.parameters["measured"]])
        facts[f"filter_ms_{free.parameters['objects']}"] = cost.to_json()
        facts[f"filter_share_of_call_{free.parameters['objects']}"] = share.to_json()
    same = [r.figures.get("same_as_reference", 1.0) for r in results.records]
    return facts | {"implementations_agree": min(same, default=1.0)}


def key(record: Record) -> str:
    """The end of a fact's name: "500_0.001", or "large_0.001" for the published architecture."""
    objects, floor = record.parameters["objects"], record.parameters["floor"]
    return f"{'large' if objects is None else objects}_{floor:g}"


def conclusions(results: Results) -> list[str]:
    """Say it in sentences; which is faster only where the run may be believed."""
    ranks = judge(results).ranks
    lines = [
        *_headline(results),
        *_filter_price(results),
        *_checked(results),
        *_shares(results),
    ]
    if ranks:
        return lines + list(_ranking(results))
    return [
        *lines,
        "The machine was too noisy to rank: which one is faster is left open, and shares of a call "
        "are not those of a quiet machine.",
    ]


def _checked(results: Results) -> Iterator[str]:
    agree, most = results.facts["implementations_agree"], results.settings["base"]["objects"]
    some = f"at least {agree:.2%} the same; an IoU within rounding of the threshold may differ"
    yield f"All implementations keep the same boxes ({'all' if agree == 1 else some})."
    found = [
        f"{r.subject.model} {r.figures['found']:.0f}"
        for r in of_kind(results, measured="call", objects=most)
        if r.subject is not None
        and r.parameters["floor"] == _lowest(results)
        and r.parameters["what"] != UNFILTERED
    ]
    yield f"Found in scenes of {most} objects, score above 0.3: {', '.join(found)}."


def _lowest(results: Results) -> float:
    return min(float(r.parameters["floor"]) for r in of_kind(results, what="with NMS"))


def _headline(results: Results) -> Iterator[str]:
    """The price where it is most asked for: the most objects, the lowest floor, by itself."""
    most, floor = results.settings["base"]["objects"], _lowest(results)
    for whole in of_kind(results, what="with NMS", objects=most, floor=floor):
        share = Interval(**results.facts[f"nms_tail_share_of_call_{key(whole)}"])
        alone = results.facts[f"nms_tail_ms_{key(whole)}"]
        yield (
            f"At {most} objects and floor {floor:g} NMS, timed by itself, takes {alone:.2f} ms, "
            f"{percent(share)} of the whole call."
        )


def _filter_price(results: Results) -> Iterator[str]:
    """What the NMS-free detector pays in its place; older results do not say."""
    most = results.settings["base"]["objects"]
    if f"filter_ms_{most}" in results.facts:
        cost = Interval(**results.facts[f"filter_ms_{most}"])
        share = Interval(**results.facts[f"filter_share_of_call_{most}"])
        yield (
            "The filter that does its work in the NMS-free network takes "
            f"{cost.value:.2f} ms ({cost.low:.2f} – {cost.high:.2f}) there, {percent(share)} of "
            "that call."
        )


def _shares(results: Results) -> Iterator[str]:
    """The cost in a call, at the base number of objects and for the published architecture."""
    most = results.settings["base"]["objects"]
    for whole in of_kind(results, what="with NMS"):
        objects, floor = whole.parameters["objects"], whole.parameters["floor"]
        if objects not in (most, None):
            continue
        where = f"{objects} objects" if objects is not None else _large(whole)
        share = Interval(**results.facts[f"nms_share_of_call_{key(whole)}"])
        cost = Interval(**results.facts[f"nms_ms_{key(whole)}"])
        tail = Interval(**results.facts[f"nms_tail_share_of_call_{key(whole)}"])
        alone = results.facts[f"nms_tail_ms_{key(whole)}"]
        yield (
            f"NMS in the call, {where}, floor {floor:g}, {whole.figures['candidates']:.0f} "
            f"candidates: {percent(share)} of it, {cost.value:.2f} ms "
            f"({cost.low:.2f} – {cost.high:.2f}); the tail alone takes "
            f"{alone:.2f} ms, {percent(tail)}."
        )


def _large(record: Record) -> str:
    assert record.subject is not None
    height, width = record.subject.size
    weights = "stand-in weights" if record.subject.training == "untrained" else "published weights"
    return f"{record.subject.model} at {height} × {width} ({weights})"


def percent(share: Interval) -> str:
    """A share with its interval: "12.0 % (11.1 – 13.0)"."""
    value, low, high = (100 * v for v in (share.value, share.low, share.high))
    return f"{value:.1f} % ({low:.1f} – {high:.1f})"


def _ranking(results: Results) -> Iterator[str]:
    base = results.settings["base"]
    own = [
        r
        for r in of_kind(results, measured="alone", **base)
        if r.parameters["implementation"] != HEAD
    ]
    best = min(own, key=lambda r: r.summary.p50)
    yield (
        f"Fastest NMS with {base['objects']} objects, floor {base['floor']:g}, IoU "
        f"{base['iou']:g}, batch {base['batch']}: {LABELS[best.parameters['implementation']]}, "
        f"{best.summary.p50:.2f} ms."
    )
    tails = of_kind(results, measured="call", what="NMS tail alone")
    dearest = max(tails, key=lambda r: r.summary.p50)
    yield (
        f"The NMS tail of the graph takes longest with {dearest.parameters['objects']} objects at "
        f"floor {dearest.parameters['floor']:g}: {dearest.summary.p50:.2f} ms for "
        f"{dearest.figures['candidates']:.0f} candidates, of which it keeps "
        f"{dearest.figures['kept']:.0f}."
    )
    for ratio in results.ratios:
        whole = results.record(ratio.to)
        if ratio.meaning == NMS_FREE and whole.parameters["objects"] == base["objects"]:
            better = {True: "faster", False: "slower"}[ratio.interval.value < 1]
            yield (
                f"NMS-free by NMS at floor {whole.parameters['floor']:g}, {base['objects']} "
                f"objects: {ratio.interval} of the time, "
                + (f"surely {better}." if ratio.interval.decides else "the same or unsure.")
            )
