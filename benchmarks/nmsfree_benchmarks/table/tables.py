"""The tables: on the terminal, and as Markdown."""

from collections.abc import Iterator, Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nmsfree_benchmarks.machine.measure import STAGES, WIDE_SPREAD
from nmsfree_benchmarks.table import device_engines
from nmsfree_benchmarks.table.rows import (
    DEPLOYED,
    EAGER,
    ENGINES,
    Report,
    Row,
    ap_gaps,
    limit_shares,
    overheads,
    postprocess_ms,
    speedups,
)

SHORT_ENGINES = {
    "eager_timing": "eager, timing",
    "eager_evaluation": "eager, evaluation",
    "eager_two_stage": "eager, two-stage",
    "onnxruntime": "ONNX Runtime",
    "compiled": "torch.compile",
    **{engine.key: engine.short for engine in device_engines.ALL.values()},
}
BUSY = 0.5  # cores kept busy by other work at the start from which a warning is due


def show(report: Report, console: Console) -> None:
    """Print the environment, one table for each size, and what to know about them."""
    for line in environment_lines(report):
        console.print(line, highlight=False)
    for rows in report.groups():
        console.print(_table(rows))
    for line in notes(report):
        console.print(f"• {line}", highlight=False)


def _table(rows: list[Row]) -> Table:
    spec = rows[0].spec
    title = f"{spec.height} × {spec.width}, {len(spec.class_names)} classes, batch 1, "
    title += f"{spec.precision}, {len(rows[0].times)} timed calls; times in ms, stages in %"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("engine", no_wrap=True)
    for name in ("FPS", "p50", "p90", "p99", "pre/net/post", "AP", "AP50"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("file", no_wrap=True)
    for i, row in enumerate(rows):
        before = [r for r in rows[:i] if r.spec.name == row.spec.name]
        last = i + 1 == len(rows) or rows[i + 1].spec.name != row.spec.name
        table.add_row(_model_cell(row, len(before)), *_terminal_cells(row), end_section=last)
    return table


def _model_cell(row: Row, line: int) -> str:
    """Name the model on its first line, its head on the second, its weights on the third."""
    return [row.spec.name, head_label(row), row.training, ""][min(line, 3)]


def head_label(row: Row) -> str:
    return "o2m + NMS" if row.spec.nms is not None else "o2o, no NMS"


def _terminal_cells(row: Row) -> list[str]:
    stages = "/".join(f"{row.shares[stage] * 100:.0f}" for stage in STAGES)
    return [
        SHORT_ENGINES[row.engine] + ("" if row.summary.trusted else "!"),
        row.summary.fps_text,
        *(f"{ms:.1f}" if ms < 100 else f"{ms:.0f}" for ms in row.summary.percentiles),
        stages,
        *_ap_cells(row),
        row.file_hash,
    ]


def _ap_cells(row: Row) -> list[str]:
    if row.metrics is None:
        return ["–", "–"]
    return [f"{row.metrics.ap * 100:.1f}", f"{row.metrics.ap50 * 100:.1f}"]


HEADER = (
    *("model", "head", "weights", "size", "engine", "precision", "FPS", "p50 ms", "p90 ms"),
    *("p99 ms", "preprocess", "network", "post-processing + NMS", "AP", "AP50", "file"),
)


def markdown(report: Report, picture: str | None = None) -> str:
    """Return the whole report as Markdown; `picture` is a file beside it."""
    lines = ["# Benchmark", "", *(f"- {line}" for line in environment_lines(report)), ""]
    if picture is not None:
        lines += [f"![Latency by stage]({picture})", ""]
    lines += ["| " + " | ".join(HEADER) + " |"]
    lines += ["|---|---|---|---|---|---|" + "---:|" * 9 + "---|"]
    lines += ["| " + " | ".join(markdown_cells(row)) + " |" for row in report.rows]
    return "\n".join([*lines, "", *(f"- {line}" for line in notes(report)), ""])


def markdown_cells(row: Row) -> list[str]:
    """Return one row in the order of `HEADER`."""
    spec = row.spec
    return [
        spec.name,
        head_label(row),
        row.training,
        f"{spec.height}×{spec.width}",
        ENGINES[row.engine] + ("" if row.summary.trusted else "!"),
        spec.precision,
        row.summary.fps_text,
        *(f"{ms:.1f}" for ms in row.summary.percentiles),
        *(f"{row.shares[stage] * 100:.1f} %" for stage in STAGES),
        *_ap_cells(row),
        f"`{row.file_hash}`",
    ]


def environment_lines(report: Report) -> list[str]:
    """Device, threads and versions, what a time includes, and whether rows may be ranked."""
    e = report.environment
    versions = ", ".join(f"{name} {number}" for name, number in e["versions"].items())
    return [
        f"{e['processor']} ({e['device']}), threads per engine: {e['threads']}, cores: "
        f"{e['cores']}, {e['system']}, Python {e['python']}",
        versions,
        f"{report.stamp}{', quick' if report.quick else ''}: one image after another, all rows of "
        "a size in turn; from the decoded image to boxes in its pixels, top-k and NMS included; "
        "clocks as the system sets them",
        f"Verdict: {report.verdict}.",
    ]


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
    yield from _facts(report)
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
            "Least time this processor needs (peaks measured between rounds), of the bare call's",
            {name: 100 * share for name, share in limit_shares(ranked).items()},
            "{:.0f} %",
        ),
        (
            "AP without NMS minus AP of one-to-many + NMS",
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
