"""A stream in a table and in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nmsfree_benchmarks.common.on_device import ran_in
from nmsfree_benchmarks.common.sheets import Sheet, number
from nmsfree_benchmarks.jitter.facts import FLAT, label, milliseconds
from nmsfree_benchmarks.machine.quiet import ENOUGH, tail
from nmsfree_benchmarks.record.intervals import AIM, FEWEST_ROUNDS, Interval
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.record.verdict import judge

AIM_RATIO = 1.10  # p99 / p50 of the NMS-free detector, from empty to 500 objects


def sheet(results: Results) -> Sheet:
    """One row for each detector and order."""
    header = (
        "order",
        "detector",
        "p50",
        "p99",
        "worst",
        "p99/p50",
        "quiet",
        "by frame",
        "ms / 100 objects (95 %)",
    )
    return Sheet(
        "A stream whose crowding changes, ms a frame",
        header,
        tuple(_row(results, record) for record in results.records),
        words=2,
    )


def _row(results: Results, record: Record) -> tuple[str, ...]:
    facts, summary = results.facts[record.name], record.summary
    doubt = "" if summary.trusted else "!"
    return (
        record.parameters["order"],
        label(record),
        f"{summary.p50:.1f}{doubt}",
        number(summary.p99),
        f"{milliseconds(record).max():.1f}",
        number(facts["p99_by_p50"], ".2f"),
        _tail(facts),
        number(facts.get("worst_frame_by_median"), ".2f"),
        signed(Interval.from_json(facts["ms_per_100_objects"])),
    )


def signed(interval: Interval) -> str:
    """A slope with its interval: "+0.12 (+0.05 – +0.20)"."""
    return interval.text(sign="+")


def conclusions(results: Results) -> list[str]:
    """Say it in sentences; whether content matters only where the run may be believed."""
    lines = [
        *_aim(results),
        *_scatter(results),
        *_machine(results),
        _stream(results),
        *ran_in(results),
        *_found(results),
    ]
    if not judge(results).ranks:
        return [*lines, "The machine was too noisy to rank: whose times depend on content is open."]
    return lines + [_dependence(results, record) for record in results.records]


def _scatter(results: Results) -> Iterator[str]:
    """p99 by p50 of every detector, and what the machine has to do with it."""
    for order in dict.fromkeys(r.parameters["order"] for r in results.records):
        own = [r for r in results.records if r.parameters["order"] == order]
        facts = {label(r): results.facts[r.name] for r in own}
        said = (
            f"{name} {number(f['p99_by_p50'], '.2f')} (slowest frame by the median one "
            f"{number(f.get('worst_frame_by_median'), '.2f')})"
            for name, f in facts.items()
        )
        yield f"p99 / p50, {order}: {', '.join(said)}."


def _machine(results: Results) -> Iterator[str]:
    """p99 by p50 of constant work, and of the calls that the machine left alone."""
    for order in dict.fromkeys(r.parameters["order"] for r in results.records):
        own = [r for r in results.records if r.parameters["order"] == order]
        facts = {label(r): results.facts[r.name] for r in own}
        if not all("quiet_calls" in f for f in facts.values()):
            continue
        machine = next(iter(facts.values()))["probe_p99_by_p50"]
        said = (
            f"{name} {_tail(f)} in {f['quiet_calls']} of {len(r.times)} calls (the product "
            f"{number(f['quiet_probe_p99_by_p50'], '.2f')})"
            for (name, f), r in zip(facts.items(), own, strict=True)
        )
        yield (
            f"The machine itself, {order}: p99 / p50 of a constant matrix product is "
            f"{number(machine, '.2f')}. Between two products of usual length: {', '.join(said)}."
        )


def _aim(results: Results) -> Iterator[str]:
    """Whether the NMS-free detector is as steady as it should be, where that can be told."""
    free = [r for r in results.records if label(r) == "NMS-free"]
    facts = [results.facts[r.name] for r in free]
    if not judge(results).ranks:
        yield (
            f"Whether p99 / p50 is at most {AIM_RATIO:.2f} is open: the machine was too noisy to "
            "judge."
        )
        return
    if not all("quiet_calls" in f for f in facts):
        burst = results.settings["burst"]
        yield _judged("all calls", [tail(milliseconds(record), burst) for record in free])
        return
    levels = len(set(free[0].figures["objects"]))
    if any(f["quiet_p99_by_p50"] is None or f["quiet_levels"] < levels for f in facts):
        yield (
            f"Whether p99 / p50 of the NMS-free detector is at most {AIM_RATIO:.2f} is open: the "
            f"machine left fewer than {ENOUGH} calls of an order alone, or none of some number of "
            "objects; run it for longer, or on a machine that does nothing else."
        )
        return
    found = [Interval.from_json(f["quiet_p99_by_p50"]) for f in facts]
    yield _judged("calls that the machine left alone", found)


def _judged(which: str, found: Sequence[Interval | None]) -> str:
    """The aim beside the intervals of all orders: one that misses it is enough."""
    tails = [interval for interval in found if interval is not None]
    if len(tails) < len(found):
        return f"Whether p99 / p50 is at most {AIM_RATIO:.2f} is open: under {ENOUGH} calls."
    held = {interval.within(AIM_RATIO) for interval in tails}
    verdict = AIM[False if False in held else None if None in held else True]
    worst = max(tails, key=lambda interval: interval.value)
    return f"NMS-free, {which}: p99 / p50 at most {worst.text()}; aim {AIM_RATIO:.2f}: {verdict}."


def _tail(facts: Mapping[str, Any]) -> str:
    found = facts.get("quiet_p99_by_p50")
    return number(None if found is None else found["value"], ".2f")


def _stream(results: Results) -> str:
    s = results.settings
    height, width = s["size"]
    return (
        f"{s['frames']} frames of {height} × {width} pixels{_seen_by(s)}, {s['passes']} passes in "
        "each order, "
        f"turns of {s['burst']} frames; NMS with IoU {s['iou']:g} within a class, {s['top_k']} "
        "rows of output; from the picture in memory to boxes in its pixels."
    )


def _seen_by(settings: Mapping[str, Any]) -> str:
    """The input of the networks, which older results do not tell: it was the frames' size."""
    if "input" not in settings:
        return ""
    height, width = settings["input"]
    return f", seen by networks of {height} × {width}"


def _found(results: Results) -> Iterator[str]:
    first = results.records[0].parameters["order"]
    for record in results.records:
        if record.parameters["order"] == first:
            objects = record.figures["objects"]
            yield (
                f"{label(record)} finds {record.figures['found_empty']:.0f} with a score above 0.3 "
                f"in frames of {min(objects)} objects, {record.figures['found_fullest']:.0f} in "
                f"frames of {max(objects)}."
            )


def _dependence(results: Results, record: Record) -> str:
    interval = Interval.from_json(results.facts[record.name]["ms_per_100_objects"])
    objects = record.figures["objects"]
    change = abs(interval.value) * (max(objects) - min(objects)) / 100
    if not interval.known:
        verdict = f"under {FEWEST_ROUNDS} rounds, whether it depends on content is open"
    elif interval.low <= 0 <= interval.high:
        verdict = "no dependence on content is seen"
    elif change <= FLAT * record.summary.p50:
        verdict = f"at most {FLAT:.0%} of a call depends on content"
    else:
        verdict = "depends on content"
    which = f"{record.parameters['order']}, {label(record)}"
    return f"{which}: {signed(interval)} ms per 100 objects: {verdict}."
