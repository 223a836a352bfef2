"""The picture: latency bars split by stage, one panel for each input size."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nmsfree.files import write_atomic
from nmsfree.plotting import to_png
from nmsfree_benchmarks.machine.environment import hardware
from nmsfree_benchmarks.machine.measure import STAGES
from nmsfree_benchmarks.table.results import Report
from nmsfree_benchmarks.table.rows import SHORT_ENGINES, Row
from nmsfree_benchmarks.table.tables import head_label

# Okabe and Ito's palette: told apart with any colour vision, and by lightness in grey.
COLOURS = {"preprocess": "#E69F00", "network": "#56B4E9", "postprocess": "#D55E00"}
LABELS = {
    "preprocess": "preprocessing",
    "network": "network",
    "postprocess": "post-processing + NMS",
}
GAP = 0.9  # between models, in bars
INK, FAINT, DOUBT = "#222222", "#888888", "#D55E00"


def draw(report: Report, path: Path) -> None:
    """Write the picture as PNG."""
    groups = report.groups()
    heights = [len(rows) + GAP * _models(rows) for rows in groups]
    figure = Figure(figsize=(10, 1.7 + 0.3 * sum(heights)), dpi=130, layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, rows in zip(panels, groups, strict=True):
        _panel(panel, rows)
    figure.suptitle("Latency of one image by stage, median", x=0.01, ha="left", weight="bold")
    handles = [Patch(color=COLOURS[stage], label=LABELS[stage]) for stage in STAGES]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(STAGES), frameon=False)
    e = report.environment
    about = f"milliseconds, one image after another · {hardware(e)}, threads: {e['threads']}"
    ranks = report.verdict.ranks
    figure.supxlabel(
        about if ranks else f"{about} · too noisy to rank: read no winner from it",
        fontsize=9,
        color=INK if ranks else DOUBT,
    )
    write_atomic(path, to_png(figure))


def _models(rows: list[Row]) -> int:
    return len({row.spec.name for row in rows})


def _panel(panel: Axes, rows: list[Row]) -> None:
    """Bars from top to bottom, a gap and a heading before each model."""
    longest = max(row.summary.p50 for row in rows)
    y, ticks, model = 0.0, [], ""
    for row in rows:
        if row.spec.name != model:
            model = row.spec.name
            y += GAP
            heading = f"{model} · {head_label(row)}"
            if row.training == "untrained":
                heading += " · untrained"
            panel.text(0, y - 0.62, heading, fontsize=9, weight="bold", color=INK, va="center")
        _bar(panel, row, y, longest)
        ticks.append((y, SHORT_ENGINES[row.engine]))
        y += 1
    panel.set_yticks([t for t, _ in ticks], [label for _, label in ticks], fontsize=9)
    panel.set_ylim(y - 0.4, -0.25)
    panel.set_xlim(0, longest * 1.22)
    spec = rows[0].spec
    size = f"{spec.height} × {spec.width}, {len(spec.class_names)} classes"
    panel.set_title(size, loc="left", fontsize=10, color=INK)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)


def _bar(panel: Axes, row: Row, y: float, longest: float) -> None:
    start = 0.0
    for stage in STAGES:
        width = row.stage_ms(stage)
        panel.barh(y, width, left=start, height=0.72, color=COLOURS[stage], linewidth=0)
        start += width
    doubt = "" if row.summary.trusted else " !"
    text = f"{start:.1f} ms · {row.summary.fps_text} FPS{doubt}"
    panel.text(start + longest * 0.01, y, text, fontsize=9, color=INK, va="center")
