"""The frontier in tables: one for each model."""

from nmsfree_benchmarks.common.engines import ENGINES
from nmsfree_benchmarks.common.sheets import Sheet, number
from nmsfree_benchmarks.frontier.rules import (
    compared,
    detectors,
    gap_between,
    is_reference,
    pareto,
    points,
)
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.record.verdict import judge

HEADER = (
    *("file", "engine", "input", "p50 ms", "p99 ms", "bare ms", "× speed (95 %)"),
    *("AP", "ΔAP", "MB", "RAM"),
)


def sheets(results: Results) -> list[Sheet]:
    """A table of precision × engine × input size for each model."""
    records = detectors(results)
    models = list(dict.fromkeys(r.subject.model for r in records if r.subject is not None))
    return [_sheet(results, model) for model in models]


def _sheet(results: Results, model: str) -> Sheet:
    records = [r for r in detectors(results) if r.subject is not None and r.subject.model == model]
    subject = records[0].subject
    assert subject is not None
    head = "o2m + NMS" if subject.nms is not None else "o2o, no NMS"
    title = f"{model}, {head}: AP on {subject.ap_images} images; file and its engine's RAM in MB"
    front = pareto(records) if judge(results).ranks else []
    return Sheet(title, HEADER, tuple(_row(results, r, r in front) for r in records), words=3)


def _row(results: Results, record: Record, on_front: bool) -> tuple[str, ...]:
    subject, summary = record.subject, record.summary
    assert subject is not None and subject.ap is not None
    bare = results.record(f"{record.name} bare").summary.p50
    return (
        str(record.parameters["file"]) + ("*" if on_front else ""),
        ENGINES[subject.engine].short + ("" if summary.trusted else "!"),
        "×".join(map(str, subject.size)),
        f"{summary.p50:.2f}",
        number(summary.p99),
        f"{bare:.2f}",
        *_compared(results, record),
        f"{subject.file_bytes / 1e6:.1f}",
        f"{record.figures['engine_rss_mb']:.0f}",
    )


def _compared(results: Results, record: Record) -> tuple[str, str, str]:
    """Speed, AP and its difference, beside the model's reference."""
    assert record.subject is not None and record.subject.ap is not None
    ap = f"{100 * record.subject.ap:.1f}"
    if is_reference(record):
        return "1", ap, ""
    for other, reference, speed in compared(results):
        if other is record:
            return speed.text(dash="–"), ap, points(gap_between(record, reference).value)
    return "–", ap, "–"


def notes(results: Results) -> list[str]:
    """What the columns mean."""
    doubtful = sum(not r.summary.trusted for r in detectors(results))
    lines = [
        "Latency is of Detector(image) with the picture in memory, bare of the engine's call "
        "alone; × speed and ΔAP are beside FP32 in ONNX Runtime at the deployed size; AP is "
        "of the very file in that very engine; RAM is the peak of a process of its own, minus "
        "that of one which opens no model. * is on its "
        "model's frontier.",
    ]
    if doubtful:
        lines.append(
            f"! {doubtful} of {len(detectors(results))} rows distrust themselves: their "
            "interquartile range is above 10 % of the median."
        )
    return lines
