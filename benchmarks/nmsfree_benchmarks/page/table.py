"""The kind "table" in words: models with NMS and without, in each engine."""

from collections.abc import Iterator

from nmsfree_benchmarks.common.engines import REFERENCES
from nmsfree_benchmarks.common.sheets import Sheet, number
from nmsfree_benchmarks.machine.measure import STAGES
from nmsfree_benchmarks.record.records import FP32_BY, Ratio, Record, Results, Subject
from nmsfree_benchmarks.record.verdict import judge
from nmsfree_benchmarks.table.rows import ENGINES
from nmsfree_benchmarks.table.tables import limit_cell, ram_cell

WITH_NMS = "with NMS by without"
EAGER = "eager by ONNX Runtime"


def detectors(results: Results) -> list[Record]:
    """Records that are whole detectors, from picture to boxes."""
    found = (r for r in results.records if r.parameters.get("call") == "detector")
    return [record for record in found if record.subject is not None]


def by_size(results: Results) -> dict[tuple[int, int], list[Record]]:
    """The detectors by input size (height, width): their times are of different magnitudes."""
    found: dict[tuple[int, int], list[Record]] = {}
    for record in detectors(results):
        if record.subject is not None:
            found.setdefault(record.subject.size, []).append(record)
    return found


def conclusions(results: Results) -> Iterator[str]:
    """What NMS costs in ONNX Runtime, what it wins in AP, and how ONNX Runtime compares."""
    ranks = judge(results).ranks
    pairs = [
        ratio
        for ratio in results.ratios
        if ratio.meaning == WITH_NMS and _subject(results, ratio.to).engine in REFERENCES
    ]
    # The first sentence is the section's headline: the detector that is most right.
    for ratio in sorted(pairs, key=lambda pair: -(_subject(results, pair.to).ap or 0)):
        yield _with_nms(results, ratio, ranks)
    eager = [r.interval.value for r in results.ratios if r.meaning == EAGER]
    if eager and ranks:
        yield (
            f"The same networks take {min(eager):.2f} to {max(eager):.2f} × as long in eager "
            "PyTorch, as published, as in ONNX Runtime."
        )
    yield from _beside_fp32(results)


def _beside_fp32(results: Results) -> Iterator[str]:
    """How much faster each precision and engine is than FP32 in ONNX Runtime, by input size."""
    if not judge(results).ranks:
        return
    found: dict[tuple[str, tuple[int, int]], list[Ratio]] = {}
    for ratio in results.ratios:
        if ratio.meaning.startswith(FP32_BY):
            subject = _subject(results, ratio.to)
            key = ENGINES.get(subject.engine, subject.engine), subject.size
            found.setdefault(key, []).append(ratio)
    for (engine, size), ratios in found.items():
        values = [ratio.interval.value for ratio in ratios]
        unsure = "" if all(r.interval.decides for r in ratios) else ", not all of it sure"
        yield (
            f"{engine} has {min(values):.2f} to {max(values):.2f} × the speed of {FP32_BY} at "
            f"{size[0]} × {size[1]}{unsure}."
        )


def _with_nms(results: Results, ratio: Ratio, ranks: bool) -> str:
    of, to = results.record(ratio.of), results.record(ratio.to)
    one, other = _subject(results, ratio.of), _subject(results, ratio.to)
    text = (
        f"{other.model} without NMS takes {to.summary.p50:.2f} ms, {one.model} with NMS "
        f"{of.summary.p50:.2f} ms: {ratio.interval.text(unit=' ×')}"
    )
    text += other.graph_beside(one)
    if not ranks:
        text += ", measured too noisily to rank them"
    elif not ratio.interval.decides:
        text += ", which does not tell which is faster"
    if one.ap is not None and other.ap is not None:
        text += f"; AP {100 * other.ap:.1f} without, {100 * one.ap:.1f} with NMS"
    return text + "."


def _subject(results: Results, name: str) -> Subject:
    subject = results.record(name).subject
    assert subject is not None
    return subject


def sheets(results: Results) -> list[Sheet]:
    """One table for each input size."""
    return [_sheet(size, records) for size, records in by_size(results).items()]


def _sheet(size: tuple[int, int], records: list[Record]) -> Sheet:
    header = (
        *("model", "head", "engine", "FPS", "p50 ms", "p90 ms", "p99 ms", "AP", "AP50"),
        *("pre / net / post %", "limit %", "RAM MB", "weights"),
    )
    rows = tuple(_row(record) for record in records)
    return Sheet(f"Input of {size[0]} × {size[1]} pixels", header, rows, words=3)


def _row(record: Record) -> tuple[str, ...]:
    s, summary = record.subject, record.summary
    assert s is not None
    stages = (record.figures.get(f"{stage}_share") for stage in STAGES)
    return (
        s.model,
        "o2m + NMS" if s.nms is not None else "o2o, no NMS",
        ENGINES.get(s.engine, s.engine) + ("" if summary.trusted else " !"),
        summary.fps_text,
        *(number(ms, ".2f" if summary.p50 < 10 else ".1f") for ms in summary.percentiles),
        "–" if s.ap is None else f"{100 * s.ap:.1f}",
        "–" if s.ap50 is None else f"{100 * s.ap50:.1f}",
        " / ".join("–" if share is None else f"{100 * share:.0f}" for share in stages),
        limit_cell(record.figures.get("share_of_limit")),
        ram_cell(record.figures),
        s.training,
    )
