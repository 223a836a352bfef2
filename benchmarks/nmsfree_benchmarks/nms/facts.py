"""What the price of NMS is, in sentences."""

from collections.abc import Iterator

from nmsfree_benchmarks.common.on_device import ran_in
from nmsfree_benchmarks.nms.alone import HEAD
from nmsfree_benchmarks.nms.calls import UNFILTERED
from nmsfree_benchmarks.nms.implementations import LABELS
from nmsfree_benchmarks.nms.price import NMS_FREE, key, of_kind, price_of
from nmsfree_benchmarks.record.intervals import Interval, ratio_interval
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.record.verdict import judge


def conclusions(results: Results) -> list[str]:
    """Say it in sentences; which is faster only where the run may be believed."""
    ranks = judge(results).ranks
    lines = [
        *_headline(results),
        *_filter_price(results),
        *_checked(results),
        *_shares(results),
        *ran_in(results),
    ]
    if ranks:
        return lines + list(_ranking(results))
    return [
        *lines,
        "The machine was too noisy to rank: which one is faster is left open, and shares of a call "
        "are not those of a quiet machine.",
    ]


def _checked(results: Results) -> Iterator[str]:
    most = results.settings["base"]["objects"]
    if "implementations_agree" in results.facts:
        agree = results.facts["implementations_agree"]
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
        tail = results.facts.get(f"nms_tail_share_of_call_{key(whole)}")
        host = results.facts.get(f"host_nms_share_of_call_{key(whole)}")
        where = f"At {most} objects and floor {floor:g} NMS"
        if tail is not None:
            alone, share = (
                results.facts[f"nms_tail_ms_{key(whole)}"],
                percent(Interval.from_json(tail)),
            )
            yield f"{where}, timed by itself, takes {alone:.2f} ms, {share} of the whole call."
        if host is not None:
            alone = results.facts[f"host_nms_ms_{key(whole)}"]["value"]
            share = percent(Interval.from_json(host))
            yield (
                f"{where}, on the host ({LABELS['host']}), takes {alone:.2f} ms, "
                f"{share} of the whole call."
            )


def _filter_price(results: Results) -> Iterator[str]:
    """What the NMS-free detector pays in its place; older results do not say."""
    most = results.settings["base"]["objects"]
    if f"filter_ms_{most}" in results.facts:
        cost = Interval.from_json(results.facts[f"filter_ms_{most}"])
        share = Interval.from_json(results.facts[f"filter_share_of_call_{most}"])
        yield (
            "The filter that does its work in the NMS-free network takes "
            f"{cost.text(unit=' ms')} there, {percent(share)} of "
            "that call."
        )


def _shares(results: Results) -> Iterator[str]:
    """The cost in a call, at the base number of objects and for the published architecture."""
    most = results.settings["base"]["objects"]
    for whole in of_kind(results, what="with NMS"):
        objects, price = whole.parameters["objects"], price_of(results, whole)
        if objects not in (most, None) or price is None:
            continue
        cost, share = price
        where = f"{objects} objects" if objects is not None else _large(whole)
        yield (
            f"NMS in the call, {where}, floor {whole.parameters['floor']:g}, "
            f"{whole.figures['candidates']:.0f} candidates: {percent(share)} of it, "
            f"{cost.text(unit=' ms')}{_tail(results, whole)}."
        )


def _tail(results: Results, whole: Record) -> str:
    share = results.facts.get(f"nms_tail_share_of_call_{key(whole)}")
    if share is None:
        return ", on the host"
    alone = results.facts[f"nms_tail_ms_{key(whole)}"]
    return f"; the tail alone takes {alone:.2f} ms, {percent(Interval.from_json(share))}"


def _large(record: Record) -> str:
    assert record.subject is not None
    height, width = record.subject.size
    weights = "stand-in weights" if record.subject.training == "untrained" else "published weights"
    return f"{record.subject.model} at {height} × {width} ({weights})"


def percent(share: Interval) -> str:
    """A share with its interval: "12.0 % (11.1 – 13.0)"."""
    return share.times(100).text(1, " %")


def _ranking(results: Results) -> Iterator[str]:
    base = results.settings["base"]
    yield from _fastest(results)
    yield from _dearest(results)
    for ratio in results.ratios:
        free, whole = results.record(ratio.of), results.record(ratio.to)
        if ratio.meaning == NMS_FREE and whole.parameters["objects"] == base["objects"]:
            better = {True: "faster", False: "slower"}[ratio.interval.value < 1]
            yield (
                f"NMS-free by NMS at floor {whole.parameters['floor']:g}, {base['objects']} "
                f"objects: {ratio.interval} of the time{_graphs(free, whole)}, "
                + (f"surely {better}." if ratio.interval.decides else "the same or unsure.")
            )


def _graphs(one: Record, other: Record) -> str:
    if one.subject is None or other.subject is None:
        return ""
    return one.subject.graph_beside(other.subject)


def _fastest(results: Results) -> Iterator[str]:
    base = results.settings["base"]
    own = [
        r
        for r in of_kind(results, measured="alone", **base)
        if r.parameters["implementation"] != HEAD
    ]
    own.sort(key=lambda r: r.summary.p50)
    if len(own) > 1:
        best, second = own[:2]
        beside = ratio_interval(best.times, second.times, results.burst(best))
        unsure = "" if beside.decides else f", not told apart from {_named(second)}"
        yield (
            f"Fastest NMS with {base['objects']} objects, floor {base['floor']:g}, IoU "
            f"{base['iou']:g}, batch {base['batch']}: {_named(best)}{unsure}."
        )


def _named(record: Record) -> str:
    return f"{LABELS[record.parameters['implementation']]}, {record.summary.p50:.2f} ms"


def _dearest(results: Results) -> Iterator[str]:
    tails = of_kind(results, measured="call", what="NMS tail alone")
    if tails:
        dearest = max(tails, key=lambda r: r.summary.p50)
        yield (
            "By medians the NMS tail of the graph takes longest with "
            f"{dearest.parameters['objects']} objects at floor "
            f"{dearest.parameters['floor']:g}: {dearest.summary.p50:.2f} ms for "
            f"{dearest.figures['candidates']:.0f} candidates, of which it keeps "
            f"{dearest.figures['kept']:.0f}."
        )
