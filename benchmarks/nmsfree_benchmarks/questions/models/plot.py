"""The picture of `nmsfree bench`, and those of the page."""

from pathlib import Path

from nmsfree_benchmarks.harness import plots
from nmsfree_benchmarks.harness.records import Record, Results
from nmsfree_benchmarks.questions.models.words import NAMES, by_size, stage_ms
from nmsfree_benchmarks.report.svg import Picture, bars_picture

COLOURS = {"preprocess": "#E69F00", "network": "#56B4E9", "postprocess": "#D55E00"}
LABELS = {
    "preprocess": "preprocessing",
    "network": "network",
    "postprocess": "post-processing + NMS",
}
GAP = 0.9  # between models in the picture, in bars


def draw(results: Results, path: Path) -> None:
    """Latency bars split by stage, one panel for each input size."""
    groups = by_size(results)
    heights = [len(rows) + GAP * len({r.state.model for r in rows}) for rows in groups.values()]
    figure = plots.new_figure(10, 1.7 + 0.3 * sum(heights))
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (((height, width), classes), rows) in zip(panels, groups.items(), strict=True):
        _panel(panel, rows)
        title = f"{height} × {width}, {classes} classes; ms, one image after another"
        panel.set_title(title, loc="left", fontsize=10, color=plots.INK)
    handles = plots.patches(COLOURS, LABELS)
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False)
    plots.finish(figure, results, "Latency of one image by stage, median", path)


def _panel(panel: "plots.Axes", rows: list[Record]) -> None:
    """Bars from top to bottom, a gap and a heading before each model."""
    longest, y, ticks, model = max(r.summary.p50 for r in rows), 0.0, [], ""
    for row in rows:
        state, summary = row.state, row.summary
        if state.model != model:
            model = state.model
            y += GAP
            untrained = " · untrained" if state.training == "untrained" else ""
            heading = f"{model} · {state.head_text}{untrained}"
            panel.text(
                0, y - 0.62, heading, fontsize=9, weight="bold", color=plots.INK, va="center"
            )
        text = f"{summary.p50:.1f} ms · {summary.fps_text} FPS {summary.doubt}"
        plots.stacked_bar(panel, y, stage_ms(row), COLOURS, text)
        ticks.append((y, NAMES[state.engine][1]))
        y += 1
    panel.set_yticks([t for t, _ in ticks], [said for _, said in ticks], fontsize=9)
    panel.set_ylim(y - 0.4, -0.25)
    panel.set_xlim(0, longest * 1.22)
    plots.bare_axes(panel, "x")
    panel.spines["left"].set_visible(False)
    panel.tick_params(axis="y", length=0)


def page_pictures(results: Results) -> list[Picture]:
    return [bars_picture(records, size) for (size, _), records in by_size(results).items()]
