"""What `nmsfree eval` prints and draws, at every number of classes."""

import dataclasses
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from runtime_helpers import Make

from nmsfree import ModelSpec, NmsSpec
from nmsfree.evaluation.analysis import Analysis, analyse
from nmsfree.evaluation.plots import (
    draw_calibration,
    draw_confusion,
    draw_f1,
    draw_precision_recall,
    write_plots,
)
from nmsfree.evaluation.report import (
    OVERALL,
    about_nms,
    markdown,
    print_report,
    sentences,
    worst_first,
)
from nmsfree.evaluation.scores import Result
from nmsfree.images import read_image
from nmsfree.plotting import short

PICTURES = ["confusion_matrix.png", "pr_curve.png", "f1_curve.png", "calibration.png"]


@pytest.fixture(scope="session")
def analysis_of(make_dataset: Make) -> Callable[..., Analysis]:
    """Return a function: so many classes, of each 3 objects, found with more or less luck."""

    @cache
    def make(count: int, **names: str) -> Analysis:
        classes = {names.get(f"n{i}", f"class {i}"): 10 + i for i in range(count)}
        rng = np.random.default_rng(count)
        annotations: list[dict[str, Any]] = []
        results: list[Result] = []
        for label, category in enumerate(classes.values()):
            for image in range(3):
                box = [*rng.uniform(0, 150, 2), *rng.uniform(20, 100, 2)]
                where = {"image_id": image, "category_id": category}
                annotations.append({"bbox": box} | where)
                if rng.random() > label / count:
                    results.append({"bbox": box, "score": rng.uniform(0.3, 1)} | where)
                results.append({"bbox": [0.0, 0.0, 9.0, 9.0], "score": 0.1 + label / 200} | where)
        dataset = make_dataset(*annotations, images=3, classes=classes)
        ids = tuple(classes.values())
        spec = ModelSpec("toy", "o2o", 64, 64, 1, tuple(classes), ids, top_k=1000)
        return analyse(dataset, results, spec)

    return make


def drawn(draw: Callable[[Analysis, Figure], None], analysis: Analysis) -> Figure:
    figure = Figure()
    draw(analysis, figure)
    return figure


def legend_of(figure: Figure) -> tuple[str, list[str]]:
    legend = figure.axes[0].get_legend()
    assert legend is not None
    return legend.get_title().get_text(), [text.get_text() for text in legend.get_texts()]


def printed(analysis: Analysis, width: int, all_classes: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    print_report(analysis, "toy.onnx on val: 3 images", console, all_classes)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("count", [1, 2, 80])
def test_everything_fits_the_terminal(
    analysis_of: Callable[..., Analysis], count: int, width: int
) -> None:
    analysis = analysis_of(count, n0="a name that is much longer than any column can be wide")
    lines = printed(analysis, width, all_classes=True)
    assert max(map(len, lines)) <= width
    assert lines[0] == "toy.onnx on val: 3 images"
    header = next(line for line in lines if "AR100" in line)
    assert header.split() == list(OVERALL)
    rows = [line for line in lines if line.startswith((" class ", " a name"))]
    assert len(rows) == 1 + count, "no cell is broken into two lines"


def test_many_classes_are_cut_to_the_worst(analysis_of: Callable[..., Analysis]) -> None:
    analysis = analysis_of(30)
    few, every = printed(analysis, 80), printed(analysis, 80, all_classes=True)
    rows = [line.split()[1] for line in few if line.startswith(" class ")][1:]
    assert rows == [r.name.removeprefix("class ") for r in worst_first(analysis)[:20]]
    assert any("10 better classes are not shown: --all-classes" in line for line in few)
    assert sum(line.startswith(" class ") for line in every) == 31
    assert not any("not shown" in line for line in every)
    aps = [r.ap for r in worst_first(analysis)]
    assert aps == sorted(aps, key=lambda ap: ap or 0)


def test_names_are_not_markup(analysis_of: Callable[..., Analysis]) -> None:
    analysis = analysis_of(2, n0="[red]cat", n1="a|b")
    assert any(line.startswith(" [red]cat ") for line in printed(analysis, 80))
    assert "| a\\|b | 3 |" in markdown(analysis, "toy", [])


@pytest.mark.parametrize(
    ("ap", "f1", "expected"),
    [
        ((0.7, 0.7), (0.8, 0.8), "neither the AP nor the best F1: it is not needed"),
        ((0.7, 0.6969), (0.8, 0.7), "AP by −0.3 (70.0 → 69.7)"),
        ((0.7, 0.6969), (0.8, 0.7), "F1 by −10.0 (80.0 → 70.0): it would not help"),
        ((0.7, 0.701), (0.8, 0.8), "AP by +0.1 (70.0 → 70.1)"),
        ((0.77051, 0.76749), (0.8, 0.8), "AP by −0.4 (77.1 → 76.7)"),  # 0.302 apart
        ((0.70049, 0.69951), (0.8, 0.8), "neither the AP nor the best F1: it is not needed"),
        ((0.7, 0.69), (0.80049, 0.79951), "F1 by +0.0 (80.0 → 80.0): it would not help"),
        ((0.7, 0.701), (0.8, 0.8), ": it would hardly help"),
        ((0.7, 0.71), (0.8, 0.81), ": it would help"),
        ((0.7, 0.69), (0.8, 0.81), ": it would help at a threshold only"),
    ],
)
def test_the_answer_about_nms(
    analysis_of: Callable[..., Analysis],
    ap: tuple[float, float],
    f1: tuple[float, float],
    expected: str,
) -> None:
    analysis = analysis_of(1)
    recall = f1[0] / (2 - f1[0])  # at precision 1
    changed = dataclasses.replace(
        analysis,
        metrics=dataclasses.replace(analysis.metrics, ap=ap[0]),
        ap_with_nms=ap[1],
        best=dataclasses.replace(analysis.best, precision=1.0, recall=recall),
        best_f1_with_nms=f1[1],
    )
    assert about_nms(changed).startswith("NMS on top")
    assert expected in about_nms(changed)
    assert about_nms(changed).endswith(expected) or not expected.startswith(":")
    baseline = dataclasses.replace(changed, spec=dataclasses.replace(changed.spec, nms=NmsSpec()))
    assert about_nms(baseline).startswith("a second NMS on top")
    filtered = dataclasses.replace(changed.spec, provenance={"deployed_dedup_iou": "0.76"})
    told = "--dedup-iou" in about_nms(dataclasses.replace(changed, spec=filtered))
    assert told == (expected in (": it would help", ": it would help at a threshold only"))


def test_sentences_say_the_figures(analysis_of: Callable[..., Analysis]) -> None:
    analysis = dataclasses.replace(
        analysis_of(4),
        duplicates_per_image=1.25,
        wrong_duplicates_per_image=0.75,
        duplicates_above_half=2.5,
        nested_pairs=0.5,
        duplicates_at_floor=9.5,
        cap_hits=2,
        truncated=1,
    )
    said = dict(sentences(analysis))
    line = said["Duplicates"]
    assert line.startswith("1.25 per image at the threshold (IoU above 0.7), 0.75 of them wrong")
    assert "2.50 with an IoU above 0.5, 0.50 pairs of a box in a much larger one" in line
    assert "9.50 (IoU above 0.7) above the floor of 0.05" in line
    assert f"{analysis.best.threshold:.3f} gives the best F1 of this split" in said["Threshold"]
    assert f"; the file's own {analysis.spec.threshold:.3f} gives " in said["Threshold"]
    above = analysis.overall.point(analysis.best.threshold)
    assert above.f1 == pytest.approx(analysis.best.f1) and analysis.overall.point(2.0).f1 == 0
    measured = dataclasses.replace(analysis.spec, thresholds=analysis.thresholds)
    own = dict(sentences(dataclasses.replace(analysis, spec=measured, own=analysis.best)))
    assert f" (from {analysis.thresholds.measured_on}) gives " in own["Threshold"]
    assert f"{100 * (analysis.calibration.error or 0):.1f} points" in said["Calibration"]
    assert "1000 rows of the output: 2 of 3, 1 at the threshold; no image" in said["Rows"]
    assert "top-k" not in said["Rows"], "the rows are full of what is none"
    crowded = dict(sentences(dataclasses.replace(analysis, most_objects=1000)))
    assert "an image holds 1000 objects: export with a larger --top-k" in crowded["Rows"]
    foreign = dataclasses.replace(analysis.spec, provenance={"adopted": "YOLO26"})
    crowded = dict(sentences(dataclasses.replace(analysis, most_objects=1000, spec=foreign)))
    assert "objects: adopt it with a larger --top-k" in crowded["Rows"]
    none = dataclasses.replace(analysis.thresholds, at_precision=None, recall_at_precision=None)
    unreached = dict(sentences(dataclasses.replace(analysis, thresholds=none, cap_hits=0)))
    assert unreached["Threshold"].endswith("none reaches precision 90")
    assert unreached["Rows"].endswith("0 of 3")


def test_nothing_found_is_said_plainly_and_drawn(make_dataset: Make, tmp_path: Path) -> None:
    spec = ModelSpec("toy", "o2o", 64, 64, 1, ("cat", "dog"), (7, 40))
    nothing_found = analyse(make_dataset({"bbox": [1, 1, 50, 50]}), [], spec)
    said = dict(sentences(nothing_found))
    assert "no object was found" in said["Threshold"]
    assert said["Calibration"] == "nothing was detected"
    assert any(line.startswith(" dog ") for line in printed(nothing_found, 80))
    assert len(write_plots(nothing_found, tmp_path)) == len(PICTURES)
    title, texts = legend_of(drawn(draw_f1, nothing_found))
    assert title == "no object was found at IoU 0.5"
    assert texts[:3] == ["precision", "recall", "F1"]
    assert texts[-1] == "below 0.05: not in the output"


def test_markdown_holds_all_classes_and_pictures(analysis_of: Callable[..., Analysis]) -> None:
    page = markdown(analysis_of(30), "toy on val", PICTURES)
    assert page.startswith("# toy on val\n")
    assert sum(line.startswith("| class ") for line in page.splitlines()) == 31
    assert all(f"![{name}]({name})" in page for name in PICTURES)


@pytest.mark.slow
def test_pictures_are_written(analysis_of: Callable[..., Analysis], tmp_path: Path) -> None:
    paths = write_plots(analysis_of(30, n0="costs $5 or \\frac{$"), tmp_path / "new")
    assert [path.name for path in paths] == PICTURES
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(PICTURES)
    for path in paths:
        picture = read_image(path)
        height, width = picture.shape[:2]
        assert 500 <= height <= 2000 and 600 <= width <= 2200
        assert picture.std() > 10


def test_confusion_picture_shows_shares_of_the_row(analysis_of: Callable[..., Analysis]) -> None:
    counts = np.array([[6, 1, 1], [0, 2, 6], [3, 1, 0]])
    figure = drawn(draw_confusion, dataclasses.replace(analysis_of(2), confusion=counts))
    axes = figure.axes[0]
    shown = {tuple(map(int, text.get_position()[::-1])): text.get_text() for text in axes.texts}
    assert [shown[cell] for cell in ((0, 0), (1, 2), (2, 0))] == [f"75.0 %\n{n}" for n in (6, 6, 3)]
    assert (1, 0) not in shown, "nothing is written where nothing is"
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["class 0", "class 1", "missed"]
    assert axes.get_yticklabels()[2].get_text() == "no object  (4)"


def test_curves_of_many_classes_name_the_worst(analysis_of: Callable[..., Analysis]) -> None:
    for count, named in ((2, 2), (10, 10), (80, 5)):
        analysis = analysis_of(count)
        figure = drawn(draw_precision_recall, analysis)
        lines, (_, texts) = figure.axes[0].lines, legend_of(figure)
        assert len(lines) == count + 1
        assert texts[0] == f"{100 * analysis.metrics.ap50:.1f}  mean of the classes"
        assert len(texts) == 1 + named + (count > named)
        mean = np.asarray(lines[-1].get_ydata(), float).mean()
        assert mean == pytest.approx(analysis.metrics.ap50)


def test_f1_picture_peaks_at_the_recommended_threshold(
    analysis_of: Callable[..., Analysis],
) -> None:
    analysis = analysis_of(5)
    figure = drawn(draw_f1, analysis)
    lines = figure.axes[0].lines
    f1 = next(line for line in lines if line.get_linewidth() == 2.8)
    values = np.asarray(f1.get_ydata(), float)
    assert np.nanmax(values) == pytest.approx(analysis.best.f1, abs=0.02)
    mark = next(line for line in lines if len(np.asarray(line.get_xdata())) == 2)
    assert np.asarray(mark.get_xdata(), float)[0] == analysis.best.threshold


def test_calibration_picture_shows_the_filled_bins(analysis_of: Callable[..., Analysis]) -> None:
    analysis = analysis_of(5)
    figure = drawn(draw_calibration, analysis)
    filled = [b for b in analysis.calibration.bins if b.count]
    upper, lower = figure.axes
    assert [bar.get_height() for bar in upper.patches] == [b.precision for b in filled]
    assert [bar.get_height() for bar in lower.patches] == [b.count for b in filled]


def test_both_thresholds_of_every_class_are_shown(analysis_of: Callable[..., Analysis]) -> None:
    analysis = analysis_of(3)
    advice = analysis.thresholds
    page = markdown(analysis, "toy", [])
    for width in (80, 120):
        rows = [line for line in printed(analysis, width) if line.startswith(" class ")]
        assert "best F1" in rows[0] and rows[0].count("recall") == 1 + (width == 120)
        cells = {line.split()[1]: line.split() for line in rows[1:]}
        for label in range(3):
            best, precise = (
                "–" if t is None else f"{t:.3f}"
                for t in (advice.best_f1_per_class[label], advice.at_precision_per_class[label])
            )
            assert cells[str(label)][5] == best
            assert cells[str(label)][8] == precise
            assert f"| {best} |" in page and f"| {precise} |" in page


def test_names_are_cut_in_the_middle() -> None:
    one, other = short("a name with much text 1"), short("a name with much text 2")
    assert one != other and len(one) == 18
    assert one.startswith("a name ") and one.endswith("text 1") and one.count("…") == 1
    assert short("eighteen letters..") == "eighteen letters.."


def test_classes_that_play_no_part_are_left_out(analysis_of: Callable[..., Analysis]) -> None:
    counts = np.zeros((5, 5), np.int64)
    counts[0, 4] = counts[4, 2] = 3  # class 0 is there, class 2 is predicted
    figure = drawn(draw_confusion, dataclasses.replace(analysis_of(4), confusion=counts))
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["class 0  (3)", "class 2  (0)", "no object  (3)"]
    assert "left out: 2 classes" in axes.get_title(loc="left")
