"""What the price of NMS is: ratios and facts read from the times."""

from collections.abc import Iterator
from typing import Any

from nmsfree_benchmarks.crowd.stats import nms_cost, part_cost
from nmsfree_benchmarks.nms.alone import HEAD
from nmsfree_benchmarks.nms.calls import ON_HOST, UNFILTERED
from nmsfree_benchmarks.nms.implementations import REFERENCE
from nmsfree_benchmarks.record.intervals import Interval
from nmsfree_benchmarks.record.records import Ratio, Record, Results

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
    for free, bare in filtered(results):
        burst = bursts[free.parameters["measured"]]
        yield Ratio.between(free, bare, FILTER, burst)


def filtered(results: Results) -> Iterator[tuple[Record, Record]]:
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
    timed alone, by the whole call. Of a native engine, which has NMS behind it, `host_nms_ms_…` and
    `host_nms_share_of_call_…` are what the runtime's NMS took in the calls themselves.
    `filter_ms_500` and `filter_share_of_call_500` are the NMS-free call less the same without its
    filter, and that by the call. Each has a 95 % interval.
    """
    facts: dict[str, Any] = {}
    for whole in of_kind(results, what="with NMS"):
        facts |= dict(_costs(results, whole))
        facts[f"candidates_{key(whole)}"] = whole.figures["candidates"]
        facts[f"kept_{key(whole)}"] = whole.figures["kept"]
    for record in of_kind(results, measured="call", what="NMS-free"):
        facts[f"found_nms_free_{record.parameters['objects']}"] = record.figures["found"]
    for free, bare in filtered(results):
        cost, share = nms_cost(free, bare, results.settings["burst"][free.parameters["measured"]])
        facts[f"filter_ms_{free.parameters['objects']}"] = cost.to_json()
        facts[f"filter_share_of_call_{free.parameters['objects']}"] = share.to_json()
    same = [r.figures["same_as_reference"] for r in results.records if _compared(r)]
    return facts | ({"implementations_agree": min(same)} if same else {})


def _compared(record: Record) -> bool:
    return "same_as_reference" in record.figures


def _costs(results: Results, whole: Record) -> Iterator[tuple[str, Any]]:
    """What NMS takes of one call, in each of the ways in which that was measured."""
    burst, where = results.settings["burst"][whole.parameters["measured"]], key(whole)
    without = neighbour(results, whole, "without its NMS", floor=False)
    if without is not None:
        cost, share = nms_cost(whole, without, burst)
        yield f"nms_ms_{where}", cost.to_json()
        yield f"nms_share_of_call_{where}", share.to_json()
    tail = find_ratio(results, TAIL, whole)
    if tail is not None:
        yield f"nms_tail_share_of_call_{where}", tail.interval.to_json()
        yield f"nms_tail_ms_{where}", round(results.record(tail.of).summary.p50, 4)
    if ON_HOST in whole.parts:
        cost, share = part_cost(whole, ON_HOST, burst)
        yield f"host_nms_ms_{where}", cost.to_json()
        yield f"host_nms_share_of_call_{where}", share.to_json()


def key(record: Record) -> str:
    """The end of a fact's name: "500_0.001", or "large_0.001" for the published architecture."""
    objects, floor = record.parameters["objects"], record.parameters["floor"]
    return f"{'large' if objects is None else objects}_{floor:g}"


def price_of(results: Results, whole: Record) -> tuple[Interval, Interval] | None:
    """Return ms and share of the call that NMS takes in it; None where that was not told apart."""
    for measured in ("host_nms", "nms"):
        share = results.facts.get(f"{measured}_share_of_call_{key(whole)}")
        if share is not None:
            cost = results.facts[f"{measured}_ms_{key(whole)}"]
            return Interval.from_json(cost), Interval.from_json(share)
    return None
