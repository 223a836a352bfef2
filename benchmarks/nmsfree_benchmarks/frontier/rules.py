"""What the frontier's figures say: who is on it, and plain advice, by rule."""

from collections.abc import Iterator, Sequence
from typing import Any

from nmsfree_benchmarks.common.engines import DEPLOYED, ENGINES
from nmsfree_benchmarks.frontier.accuracy import gap_interval
from nmsfree_benchmarks.record.intervals import FEWEST_ROUNDS, Interval
from nmsfree_benchmarks.record.records import FP32_BY, Record, Results
from nmsfree_benchmarks.record.verdict import judge

WORTH = 1.10  # times the speed from which another file or engine is worth the change
TOLERATED = 0.005  # AP, 0-1, whose loss does not speak against one
SPEED = f"{FP32_BY} at the deployed size by it"  # of a ratio: how many times the speed


def detectors(results: Results) -> list[Record]:
    """The records of whole calls, whose subjects have an AP."""
    return [r for r in results.records if r.parameters["call"] == "detector"]


def is_reference(record: Record) -> bool:
    """Whether a model's other records are held against this one."""
    assert record.subject is not None
    parameters = record.parameters
    plain = parameters["file"] == "fp32" and record.subject.engine == DEPLOYED
    return plain and bool(parameters["deployed_size"])


def gap_between(of: Record, to: Record) -> Interval:
    """AP of one record minus that of another."""
    a, b = ap_of(of), ap_of(to)
    return gap_interval(a, b, of.figures["ap_without_tenths"], to.figures["ap_without_tenths"])


def ap_of(record: Record) -> float:
    """AP, 0-1."""
    assert record.subject is not None and record.subject.ap is not None
    return record.subject.ap


def pareto(records: Sequence[Record]) -> list[Record]:
    """Those than which no other is both faster (median) and better (AP); fastest first."""
    best, front = -1.0, []
    for record in sorted(records, key=lambda r: (r.summary.p50, -ap_of(r))):
        if ap_of(record) > best:
            best = ap_of(record)
            front.append(record)
    return front


def what(record: Record) -> str:
    """Name a record by what tells it from its model's reference: "INT8 in OpenVINO"."""
    assert record.subject is not None
    engine, height, width = record.subject.engine, *record.subject.size
    if not record.parameters["deployed_size"]:
        return f"{height} × {width} input"
    if engine == "openvino_bf16" and record.parameters["file"] == "fp32":
        return "bf16 in OpenVINO"
    return f"{record.parameters['file'].upper()} in {ENGINES[engine].label}"


def advise(name: str, speed: Interval, gap: Interval) -> str:
    """Say whether a change is worth it.

    Args:
        name: of the change.
        speed: how many times the speed it gives.
        gap: the AP it gives.
    """
    figures = f"{speed.value:.2f} × the speed, {points(gap.value)} AP"
    if speed.low > WORTH and gap.low >= -TOLERATED:
        return f"{name}: {figures}: take it"
    if speed.low > WORTH and gap.high < 0:
        return f"{name}: {figures}: take it only if the AP can be spared"
    if speed.low > WORTH:
        bounds = f"{points(gap.low)} … {points(gap.high)}" if gap.known else "–"
        return f"{name}: {figures} ({bounds}): too close to say, measure AP on more images"
    if speed.value < 1 and gap.low > 0:
        return f"{name}: {figures}: take it if the time can be spared"
    if speed.high <= WORTH:
        return f"{name} is not worth it here: {figures}"
    if not speed.known:
        return f"{name}: {figures}: undecided, under {FEWEST_ROUNDS} rounds were timed"
    return f"{name}: {figures}: too close to say, the speed is {speed.low:.2f} … {speed.high:.2f} ×"


def points(ap: float) -> str:
    """A difference of APs in points of 100, with its sign: "−0.3"."""
    shown = f"{100 * ap:+.1f}".replace("-", "−")
    return "±0.0" if shown in ("+0.0", "−0.0") else shown


def advice(results: Results) -> dict[str, list[str]]:
    """Model → what to do, one line for each alternative; nothing where the run does not rank."""
    if not judge(results).ranks:
        return {}
    lines: dict[str, list[str]] = {}
    for record, reference, speed in compared(results):
        assert record.subject is not None
        line = advise(what(record), speed, gap_between(record, reference))
        lines.setdefault(record.subject.model, []).append(line)
    return lines


def compared(results: Results) -> Iterator[tuple[Record, Record, Interval]]:
    """Every record that has a reference, that, and how many times its speed it has."""
    for ratio in results.ratios:
        if ratio.meaning == SPEED:
            yield results.record(ratio.to), results.record(ratio.of), ratio.interval


def facts_of(results: Results) -> dict[str, Any]:
    """What is written beside the records."""
    ranks = judge(results).ranks
    gaps = {a.name: gap_between(a, b).to_json() for a, b, _ in compared(results)}
    front = pareto(detectors(results)) if ranks else []
    return {"advice": advice(results), "pareto": [r.name for r in front], "ap_gap": gaps}


def conclusions(results: Results) -> list[str]:
    """The same in words."""
    if not judge(results).ranks:
        return ["No advice and no frontier: this run cannot tell its rows apart."]
    lines = [f"{model}: {line}." for model, found in advice(results).items() for line in found]
    front = ", ".join(r.name for r in pareto(detectors(results)))
    return [
        *lines,
        f"On the frontier by medians and AP as measured, fastest first: {front}. Neighbours whose "
        "intervals overlap may change places.",
    ]
