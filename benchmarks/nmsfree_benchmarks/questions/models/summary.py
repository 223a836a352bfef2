"""The rows of `nmsfree bench`: their names, ratios and facts, in tables and sentences."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nmsfree_benchmarks.harness.engines import DEPLOYED, ENGINES, REFERENCES, Engine
from nmsfree_benchmarks.harness.options import CPU
from nmsfree_benchmarks.harness.records import (
    EAGER_BY,
    FIRST_BY,
    FP32_BY,
    Ratio,
    Record,
    Results,
    grouped,
)
from nmsfree_benchmarks.harness.statistics import STAGES, Interval
from nmsfree_benchmarks.harness.subject import HASH_DIGITS
from nmsfree_benchmarks.harness.table import Table, number, percent

if TYPE_CHECKING:
    from nmsfree_export.options import Precision

BASELINE, COMPILED = "eager_timing", "compiled"
EAGER = {  # key: label, short
    BASELINE: ("PyTorch eager, published timing", "eager, timing"),
    "eager_evaluation": ("PyTorch eager, published evaluation", "eager, evaluation"),
    "eager_two_stage": ("PyTorch eager, two-stage top-k", "eager, two-stage"),
    COMPILED: ("PyTorch, torch.compile", "torch.compile"),
}
CPU_ENGINES = (*list(EAGER)[:3], DEPLOYED)
# Further engines of a device, with the precision of their files.
OTHERS: "dict[str, tuple[tuple[str, Precision], ...]]" = {
    CPU: (
        ("openvino", "fp32"),
        ("openvino_bf16", "fp32"),
        (DEPLOYED, "int8"),
        ("openvino", "int8"),
    ),
    "cuda": (
        ("onnxruntime_cuda", "fp32"),
        ("onnxruntime_cuda", "fp16"),
        ("tensorrt_rtx", "fp32"),
        ("tensorrt_rtx", "fp16"),
        ("tensorrt_rtx", "int8"),
    ),
}
WITH_NMS, DETECTOR_BY_BARE = "with NMS by without", "Detector by bare call"


def in_precision(engine: Engine, precision: str) -> Engine:
    """The engine as a row of its own: "openvino_int8"."""
    if precision == "fp32":
        return engine
    return replace(
        engine,
        key=f"{engine.key}_{precision}",
        label=f"{engine.label}, {precision.upper()}",
        short=f"{engine.short} {precision}",
    )


_ROWS = [in_precision(ENGINES[key], precision) for own in OTHERS.values() for key, precision in own]
NAMES = EAGER | {DEPLOYED: ("ONNX Runtime",) * 2} | {e.key: (e.label, e.short) for e in _ROWS}


def label(key: str) -> str:
    return NAMES[key][0] if key in NAMES else key


def detectors(results: Results) -> list[Record]:
    return [r for r in results.where(call="detector") if r.subject is not None]


def by_size(results: Results) -> dict[tuple[tuple[int, int], int], list[Record]]:
    """The detectors by input size (height, width) and classes: those that took turns."""
    return grouped(detectors(results), lambda r: (r.state.size, r.state.classes))


def reference_of(rows: Sequence[Record], model: str) -> Record | None:
    """The exported FP32 file of a model in ONNX Runtime."""
    own = {r.state.engine: r for r in rows if r.state.model == model}
    return next((own[engine] for engine in REFERENCES if engine in own), None)


def named(results: Results, name: str) -> Record | None:
    return next((record for record in results.records if record.name == name), None)


def first_file(results: Results) -> str:
    """What files of the user's own stand beside; empty where there are none."""
    return str(next(iter(results.settings.get("files", ())), ""))


def ratios(results: Results) -> Iterator[Ratio]:
    """Eager and FP32 by each engine, Detector by bare call, and with NMS by without."""
    for rows in by_size(results).values():
        for row in rows:
            engine, model, burst = row.state.engine, row.state.model, results.burst(row)
            eager, plain = named(results, f"{model} {BASELINE}"), reference_of(rows, model)
            if engine not in EAGER and eager is not None:
                yield Ratio.between(eager, row, f"{EAGER_BY} {label(engine)}", burst)
            if plain is not None and plain.state.precision != "fp32":  # a file of the user's
                plain = None
            if engine not in EAGER and plain is not None and plain is not row:
                yield Ratio.between(plain, row, f"{FP32_BY} by {label(engine)}", burst)
            bare = named(results, f"{row.name} bare")
            if bare is not None:
                yield Ratio.between(row, bare, DETECTOR_BY_BARE, burst)
            for other in rows:
                if other.state.engine == engine and other.state.nms and not row.state.nms:
                    yield Ratio.between(other, row, WITH_NMS, burst)
    for row in detectors(results):
        first = named(results, f"{first_file(results)} {row.state.engine}")
        if first is not None and first is not row:
            meaning = f"{FIRST_BY} another in {label(row.state.engine)}"
            yield Ratio.between(first, row, meaning, results.burst(row))


def facts(results: Results) -> dict[str, Any]:
    """Each engine beside another, the models' APs, and how near to their limits they are."""
    names = (
        *("onnxruntime_speedup", "detector_overhead", "onnxruntime_postprocess_ms", "ap_gap"),
        *("share_of_limit", "speed_beside_fp32"),
    )
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for r in results.ratios:
        of, to, value = results.record(r.of), results.record(r.to), round(r.interval.value, 3)
        if r.meaning.startswith(EAGER_BY) and to.state.engine in REFERENCES:
            found["onnxruntime_speedup"][to.state.model] = value
        elif r.meaning == DETECTOR_BY_BARE and of.state.engine in REFERENCES:
            found["detector_overhead"][of.state.model] = value
        elif r.meaning.startswith(FP32_BY):
            found["speed_beside_fp32"][to.name] = value
    for rows in by_size(results).values():
        for row in rows:
            state, share = row.state, row.figures.get("share_of_limit")
            if share is not None:
                found["share_of_limit"][row.name] = round(share, 3)
            if named(results, f"{row.name} in graph") is not None:
                ms = stage_ms(row)["postprocess"]
                found["onnxruntime_postprocess_ms"][state.model] = round(ms, 3)
            states = [r.state for r in rows if r.state.nms and r.state.engine == state.engine]
            with_nms = states[-1].ap if states and state.engine in REFERENCES else None
            if state.nms is None and state.ap is not None and with_nms is not None:
                found["ap_gap"][state.model] = round(state.ap - with_nms, 5)
    return found


def stage_ms(row: Record) -> dict[str, float]:
    """Milliseconds of each stage; the stages sum to the median."""
    found = (float(row.figures.get(f"{stage}_share", 0)) for stage in STAGES)
    return {stage: share * row.summary.p50 for stage, share in zip(STAGES, found, strict=True)}


def conclusions(results: Results) -> Iterator[str]:
    """What NMS costs in ONNX Runtime, what it wins in AP, and how the engines compare."""
    pairs = [
        r
        for r in results.ratios
        if r.meaning == WITH_NMS and results.record(r.to).state.engine in REFERENCES
    ]
    # The first sentence is the headline of the page: the detector that is most right.
    for pair in sorted(pairs, key=lambda r: -(results.record(r.to).state.ap or 0)):
        yield _with_nms(results, pair)
    for r in results.ratios:
        if r.meaning.startswith(FIRST_BY):
            yield _beside_first(results, r)
    eager = [
        r for r in results.ratios if r.meaning == f"{EAGER_BY} ONNX Runtime" and r.interval.decides
    ]
    if eager:
        values = [r.interval.value for r in eager]
        yield (
            f"The same networks take {min(values):.2f} to {max(values):.2f} × as long in eager "
            "PyTorch, as published, as in ONNX Runtime."
        )
    speeds: dict[tuple[str, tuple[int, int]], list[Interval]] = {}
    for r in results.ratios:
        if r.meaning.startswith(FP32_BY):
            state = results.record(r.to).state
            speeds.setdefault((label(state.engine), state.size), []).append(r.interval)
    for (engine, size), found in speeds.items():
        values = [interval.value for interval in found if interval.decides]
        unsure = len(found) - len(values)
        said = (
            [f"{min(values):.2f} to {max(values):.2f} × the speed of {FP32_BY}"] if values else []
        )
        if unsure:
            whom = "it" if values else FP32_BY
            said.append(f"not told apart from {whom} in {unsure} of {len(found)}")
        yield f"{engine} at {size[0]} × {size[1]}: {', '.join(said)}."


def _with_nms(results: Results, pair: Ratio) -> str:
    of, to = results.record(pair.of), results.record(pair.to)
    text = (
        f"{to.state.model} without NMS takes {to.summary.p50:.2f} ms, {of.state.model} with NMS "
        f"{of.summary.p50:.2f} ms{to.state.graph_beside(of.state)}; "
    )
    side, how = results.told_apart(pair)
    if side * (of.summary.p50 - to.summary.p50) > 0:
        told = pair.interval.text(unit=" ×")
        text += f"time with by time without, in pairs of calls side by side: {told}{how}"
    else:
        text += "pairs of calls side by side do not tell which is faster"
    if of.state.ap is not None and to.state.ap is not None:
        text += f"; AP {100 * to.state.ap:.1f} without, {100 * of.state.ap:.1f} with NMS"
    return text + "."


def _beside_first(results: Results, pair: Ratio) -> str:
    of, to = results.record(pair.of).state, results.record(pair.to).state
    side, how = results.told_apart(pair)
    speed = (
        f"has {pair.interval.text(unit=' ×')} the speed of" if side else "is not told apart from"
    )
    text = f"{to.model} {speed} {of.model} in {label(to.engine)}{how if side else ''}"
    if of.ap is not None and to.ap is not None:
        text += f"; AP {100 * to.ap:.1f} and {100 * of.ap:.1f}"
    return text + "."


def notes(results: Results) -> Iterator[str]:
    """What the numbers mean, what they say of each other, and what weakens them."""
    yield (
        "One image after another, all rows of a size in turn; from the decoded image to boxes in "
        "its pixels, top-k and NMS included; clocks as the system sets them."
    )
    found = detectors(results)
    split = [DEPLOYED] if results.where(call="in graph") else []
    if any(r.state.engine in EAGER for r in found):
        yield (
            "eager = PyTorch. Published timing settings: floor 0.3, top-k 100 a level, NMS 0.45; "
            "published evaluation settings: floor 0.05, top-k 1000 (o2m) or 100 (o2o), NMS 0.6; "
            "both sort all scores of a level. Two-stage: evaluation settings with this project's "
            "top-k."
        )
    if split:
        yield (
            "ONNX Runtime: post-processing + NMS is the part of the graph behind its last "
            "convolutions, run by itself in the same rounds; the network is the rest of the "
            "graph's median."
        )
    whole = [label(r.state.engine) for r in found if r.state.engine not in (*EAGER, *split)]
    if whole:
        names = ", ".join(dict.fromkeys(whole))
        yield f"{names}: timed as a whole, so that top-k and NMS are in the network's share."
    yield (
        "limit: the least time that this device needs for the network's arithmetic and bytes, of "
        "the bare call's; in PyTorch of the whole call's. Peaks are those of matrix products in "
        "ONNX Runtime, in the same rounds (on a GPU in cuBLAS, before and after them); empty where "
        "an engine was faster than that, which then is no limit. p90 of 20 calls or more, p99 of "
        "100, an interval of 10 rounds. RAM: peak of a process with this file and engine alone, "
        "minus one that opens no model."
    )
    yield from _listed(results, found)
    for record in found:
        yield from _device_stages(record)
    yield from _loads(found)
    if any(r.state.training == "untrained" for r in found):
        yield (
            "Untrained: random weights. Times are those of the architecture with the NMS load "
            "stated above; AP would mean nothing."
        )
    for count in sorted({r.state.ap_images for r in found if r.state.ap is not None}):
        data = "val" if first_file(results) else "digits val"
        yield f"AP on {count} images of {data}, of the very file and engine that is timed."


def _listed(results: Results, found: Sequence[Record]) -> Iterator[str]:
    """Facts, one line for each kind; and each precision and engine beside FP32, by model."""
    f = results.facts
    joules = {
        r.name: r.figures["joules_per_image"] for r in found if "joules_per_image" in r.figures
    }
    gaps = {name: 100 * gap for name, gap in f.get("ap_gap", {}).items()}
    for what, values, form in (
        ("Speed of ONNX Runtime by that of eager, timing", f.get("onnxruntime_speedup"), ".2f} ×"),
        ("Detector(image) by the bare ONNX Runtime call", f.get("detector_overhead"), ".3f} ×"),
        ("Post-processing + NMS in ONNX Runtime", f.get("onnxruntime_postprocess_ms"), ".2f} ms"),
        ("AP without NMS minus AP of one-to-many + NMS, one training of each, no test split",
         gaps, "+.1f}"),
        ("Energy of the GPU's board for one image", joules, ".3g} J"),
    ):  # fmt: skip
        if values:
            said = (f"{name} {('{:' + form).format(value)}" for name, value in values.items())
            yield f"{what}: {', '.join(said)}."
    speeds: dict[str, list[str]] = {}
    for r in results.ratios:
        if r.meaning.startswith(FP32_BY):
            state = results.record(r.to).state
            speeds.setdefault(state.model, []).append(f"{label(state.engine)} {r.interval}")
    for model, lines in speeds.items():
        yield f"{model}, times the speed of {FP32_BY} (95 %): {', '.join(lines)}."


def _device_stages(record: Record) -> Iterator[str]:
    """Where the time of a native engine goes, by its GPU's clock."""
    names = {"h2d_ms": "copy in", "network_ms": "network", "d2h_ms": "copy out"}
    parts = [f"{said} {record.figures[key]:.3f}" for key, said in names.items()
             if record.figures.get(key)]  # fmt: skip
    if parts:
        yield f"{record.state.model}, {label(record.state.engine)}: {', '.join(parts)} ms."


def _loads(found: Sequence[Record]) -> Iterator[str]:
    """How many candidates NMS had to look at: its cost depends on them."""
    loads = {}
    for r in found:
        if r.state.nms is not None and "nms_candidates" in r.figures:
            most = r.state.nms["candidates_per_level"]
            loads[r.state.model, r.state.score_floor, most] = r.figures["nms_candidates"]
    for (name, floor, most), count in loads.items():
        yield (
            f"Candidates that enter the NMS of {name}, floor {floor:g}, at most {most} a level: "
            f"{count:.0f}."
        )


def tables(results: Results) -> list[Table]:
    """One table for each input size; a terminal has no room for the last columns."""
    header = (
        *("model", "engine", "FPS", "p50", "p90", "p99", "stages", "limit", "AP", "AP50", "RAM"),
        *("head", "precision", "post ms", "weights", "file MB", "file"),
    )
    made = []
    for ((height, width), classes), rows in by_size(results).items():
        title = (
            f"{height} × {width}, {classes} classes, batch 1, {len(rows[0].times)} timed calls; "
            "ms, MB; pre/net/post and limit in %"
        )
        cells = tuple(map(_row, rows))
        made.append(Table(title, header, cells, words=2, narrow=11))
    return made


def _row(record: Record) -> tuple[str, ...]:
    state, summary = record.state, record.summary
    digits = ".0f" if summary.p50 >= 100 else ".1f" if summary.p50 >= 10 else ".2f"
    split = (record.figures.get(f"{stage}_share") for stage in STAGES)
    return (
        state.model,
        (NAMES[state.engine][1] if state.engine in NAMES else state.engine) + summary.doubt,
        summary.fps_text,
        *(number(ms, digits) for ms in summary.percentiles),
        "/".join(map(percent, split)),
        percent(record.figures.get("share_of_limit")),
        percent(state.ap, ".1f"),
        percent(state.ap50, ".1f"),
        number(record.figures.get("engine_rss_mb"), ".0f"),
        state.head_text,
        state.precision,
        number(stage_ms(record)["postprocess"], digits),
        state.training,
        f"{state.file_bytes / 1e6:.1f}",
        state.sha256[:HASH_DIGITS],
    )
