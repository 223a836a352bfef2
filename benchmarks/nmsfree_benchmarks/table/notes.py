"""Below the table: what its numbers mean, what they say of each other, and what weakens them."""

from collections.abc import Iterator, Mapping

from nmsfree_benchmarks.common.engines import DEPLOYED
from nmsfree_benchmarks.machine.measure import WIDE_SPREAD
from nmsfree_benchmarks.record.records import FP32_BY
from nmsfree_benchmarks.table.facts import (
    ap_gaps,
    overheads,
    postprocess_ms,
    speedups,
)
from nmsfree_benchmarks.table.results import Report
from nmsfree_benchmarks.table.rows import EAGER, ENGINES, SHORT_ENGINES

BUSY = 0.5  # cores kept busy by other work at the start from which a warning is due


def notes(report: Report) -> Iterator[str]:
    """What the numbers mean, and what weakens them."""
    yield (
        "eager = PyTorch. Published timing settings: floor 0.3, top-k 100 a level, NMS 0.45; "
        "published evaluation settings: floor 0.05, top-k 1000 (o2m) or 100 (o2o), NMS 0.6; both "
        "sort all scores of a level. Two-stage: evaluation settings with this project's top-k."
    )
    yield (
        "ONNX Runtime: post-processing + NMS is the part of the graph behind its last "
        "convolutions, run by itself in the same rounds; the network is the rest of the graph's "
        "median."
    )
    whole = [SHORT_ENGINES[r.engine] for r in report.rows if r.engine not in (*EAGER, DEPLOYED)]
    if whole:
        names = ", ".join(dict.fromkeys(whole))
        yield f"{names}: timed as a whole, so that top-k and NMS are in the network's share."
    yield (
        "limit: the least time that this device needs for the network's arithmetic and bytes, of "
        "the bare call's; in PyTorch of the whole call's. Peaks are those of matrix products in "
        "ONNX Runtime (on a GPU in cuBLAS), measured before and after the rounds; empty where an "
        "engine was faster than that, which then is no limit. p90 of 20 calls or more, p99 of 100, "
        "an interval of 10 rounds. RAM: peak of a process with this file and engine alone, minus "
        "one that opens no model."
    )
    yield from _facts(report)
    yield from _speeds(report)
    yield from _device_stages(report)
    yield from _loads(report)
    yield from _doubts(report)


def _facts(report: Report) -> Iterator[str]:
    rows = report.rows
    # On a machine that is too noisy to rank nothing is said of one time by another.
    ranked = rows if report.verdict.ranks else ()
    facts = (
        ("Speed of ONNX Runtime by that of eager, timing", speedups(ranked), "{:.2f} ×"),
        ("Detector(image) by the bare ONNX Runtime call", overheads(ranked), "{:.3f} ×"),
        ("Post-processing + NMS in ONNX Runtime", postprocess_ms(rows), "{:.2f} ms"),
        (
            "AP without NMS minus AP of one-to-many + NMS, one training of each, no test split",
            {name: 100 * gap for name, gap in ap_gaps(rows).items()},
            "{:+.1f}",
        ),
        (
            "Energy of the GPU's board for one image",
            {row.name: row.joules for row in rows if row.joules is not None},
            "{:.3g} J",
        ),
    )
    for what, values, form in facts:
        if values:
            yield f"{what}: {_listed(values, form)}."


def _speeds(report: Report) -> Iterator[str]:
    """Each precision and engine beside FP32 in ONNX Runtime, a line for each model."""
    if not report.verdict.ranks:
        return
    speeds: dict[str, list[str]] = {}
    for ratio in report.results().ratios:
        if ratio.meaning.startswith(FP32_BY):
            model, engine = ratio.to.split(" ", 1)
            speeds.setdefault(model, []).append(f"{ENGINES[engine]} {ratio.interval}")
    for model, found in speeds.items():
        yield f"{model}, times the speed of {FP32_BY} (95 %): {', '.join(found)}."


def _device_stages(report: Report) -> Iterator[str]:
    """Where the time of a native engine goes: copies and network by its GPU, NMS by the host."""
    names = {"h2d_ms": "copy in", "network_ms": "network", "d2h_ms": "copy out", "nms_ms": "NMS"}
    for row in report.rows:
        if row.device_ms:
            parts = (f"{names[key]} {ms:.3f}" for key, ms in row.device_ms.items() if ms)
            yield f"{row.spec.name}, {ENGINES[row.engine]}: {', '.join(parts)} ms."


def _listed(values: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{name} {form.format(value)}" for name, value in values.items())


def _loads(report: Report) -> Iterator[str]:
    """How many candidates NMS had to look at: its cost depends on them."""
    for rows in report.groups():
        loads = {}
        for row in rows:
            if row.spec.nms is not None and row.nms_candidates is not None:
                key = (row.spec.name, row.spec.score_floor, row.spec.nms.candidates_per_level)
                loads[key] = row.nms_candidates
        for (name, floor, most), count in loads.items():
            yield (
                f"Candidates that enter the NMS of {name}, floor {floor:g}, "
                f"at most {most} a level: {count:.0f}."
            )
    for row in report.rows:
        if row.training == "untrained":
            yield (
                f"{row.spec.height} × {row.spec.width}, untrained: stand-in weights. Times are "
                "those of the architecture with the NMS load stated above; AP would mean nothing."
            )
            return


def _doubts(report: Report) -> Iterator[str]:
    for count in sorted({row.ap_images for row in report.rows if row.metrics is not None}):
        yield f"AP on {count} images of digits val, of the very file and engine that is timed."
    for name, reason in report.skipped.items():
        yield f"Skipped {name}: {reason}."
    busy = report.environment["busy_cores_before"]
    if busy is not None and busy > BUSY:
        yield f"Other work kept {busy:.1f} cores busy before the start: measure again when idle."
    doubtful = sum(not row.summary.trusted for row in report.rows)
    if doubtful:
        yield (
            f"! {doubtful} of {len(report.rows)} rows distrust themselves: their interquartile "
            f"range is above {WIDE_SPREAD:.0%} of the median."
        )
