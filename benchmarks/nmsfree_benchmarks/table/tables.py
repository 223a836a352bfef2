"""The tables: on the terminal, and as Markdown."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nmsfree.text import in_markdown, shown
from nmsfree_benchmarks.common.sheets import number
from nmsfree_benchmarks.machine.environment import hardware
from nmsfree_benchmarks.machine.measure import STAGES
from nmsfree_benchmarks.roofline.limits import reached
from nmsfree_benchmarks.table.notes import notes
from nmsfree_benchmarks.table.results import Report
from nmsfree_benchmarks.table.rows import ENGINES, SHORT_ENGINES, Row


def show(report: Report, console: Console) -> None:
    """Print the environment, one table for each size, and what to know about them."""
    for line in environment_lines(report):
        console.print(line, highlight=False, markup=False)
    for rows in report.groups():
        console.print(_table(rows))
    for line in notes(report):
        console.print(f"• {line}", highlight=False, markup=False)


def _table(rows: list[Row]) -> Table:
    spec = rows[0].spec
    title = f"{spec.height} × {spec.width}, {len(spec.class_names)} classes, batch 1, "
    title += f"{len(rows[0].times)} timed calls; ms, MB; pre/net/post and limit in %"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", no_wrap=True)
    table.add_column("engine", no_wrap=True)
    for name in ("FPS", "p50", "p90", "p99", "stages", "limit", "AP", "AP50", "RAM"):
        table.add_column(name, justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        before = [r for r in rows[:i] if r.spec.name == row.spec.name]
        last = i + 1 == len(rows) or rows[i + 1].spec.name != row.spec.name
        table.add_row(
            Text(shown(_model_cell(row, len(before)))), *_terminal_cells(row), end_section=last
        )
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
        *(number(ms, ".1f" if row.summary.p50 < 100 else ".0f") for ms in row.summary.percentiles),
        stages,
        limit_cell(row.share_of_limit),
        *_ap_cells(row),
        ram_cell(row.memory),
    ]


def limit_cell(share: float | None) -> str:
    """A share of the limit in percent: how much of what the device could do is reached."""
    share = reached(share)
    return number(None if share is None else 100 * share, ".0f")


def ram_cell(figures: Mapping[str, float]) -> str:
    """MB that an engine takes with a file, "–" where that was not measured."""
    return number(figures.get("engine_rss_mb"), ".0f")


def _ap_cells(row: Row) -> list[str]:
    if row.metrics is None:
        return ["–", "–"]
    return [f"{row.metrics.ap * 100:.1f}", f"{row.metrics.ap50 * 100:.1f}"]


HEADER = (
    *("model", "head", "weights", "size", "engine", "precision", "FPS", "p50 ms", "p90 ms"),
    *(
        "p99 ms",
        "preprocess",
        "network",
        "post-processing + NMS",
        "limit %",
        "AP",
        "AP50",
        "RAM MB",
    ),
    *("file MB", "file"),
)


def markdown(report: Report, picture: str | None = None) -> str:
    """Return the whole report as Markdown; `picture` is a file beside it."""
    lines = [
        "# Benchmark",
        "",
        *(f"- {in_markdown(line, 1000)}" for line in environment_lines(report)),
        "",
    ]
    if picture is not None:
        lines += [f"![Latency by stage]({picture})", ""]
    lines += ["| " + " | ".join(HEADER) + " |"]
    lines += ["|---|---|---|---|---|---|" + "---:|" * 12 + "---|"]
    lines += ["| " + " | ".join(markdown_cells(row)) + " |" for row in report.rows]
    return "\n".join([*lines, "", *(f"- {in_markdown(line, 1000)}" for line in notes(report)), ""])


def markdown_cells(row: Row) -> list[str]:
    """Return one row in the order of `HEADER`."""
    spec = row.spec
    return [
        in_markdown(spec.name),
        head_label(row),
        in_markdown(row.training),
        f"{spec.height}×{spec.width}",
        ENGINES[row.engine] + ("" if row.summary.trusted else "!"),
        spec.precision,
        row.summary.fps_text,
        *(number(ms) for ms in row.summary.percentiles),
        *(f"{row.shares[stage] * 100:.1f} %" for stage in STAGES),
        limit_cell(row.share_of_limit),
        *_ap_cells(row),
        ram_cell(row.memory),
        f"{row.file_bytes / 1e6:.1f}",
        f"`{row.file_hash}`",
    ]


def environment_lines(report: Report) -> list[str]:
    """Device, threads and versions, what a time includes, and whether rows may be ranked."""
    e = report.environment
    versions = ", ".join(f"{name} {number}" for name, number in e["versions"].items())
    return [
        f"{hardware(e)}, threads per engine: {e['threads']}, cores: "
        f"{e['cores']}, {e['system']}, Python {e['python']}",
        versions,
        f"{report.stamp}{', quick' if report.quick else ''}: one image after another, all rows of "
        "a size in turn; from the decoded image to boxes in its pixels, top-k and NMS included; "
        "clocks as the system sets them",
        f"Verdict: {report.verdict}.",
    ]
