"""Means, deviations and differences of made-up results, and how they are shown."""

import json
from pathlib import Path
from typing import Any

import cv2
import pytest
from typer.testing import CliRunner

from nmsfree.errors import InputError
from nmsfree_training.cli.study import app
from nmsfree_training.study.report import cells, markdown, percent
from nmsfree_training.study.results import (
    NMS_GRID,
    Stat,
    grid_key,
    of_one_length,
    read_results,
    summarize,
)

FIGURES = {
    "AP50": 0.9, "AP75": 0.8, "F1": 0.8, "F1_with_nms": 0.85, "threshold": 0.4,
    "duplicates_per_image": 0.5, "wrong_duplicates_per_image": 0.25,
    "duplicates_per_image_at_floor": 5.0,
}  # fmt: skip
SPLITS = ("val", "overlap")


def head(ap: float, **nms: float) -> dict[str, Any]:
    """Figures of a head; `nms` by threshold, at70=0.5; the AP at all others."""
    grid = {grid_key(iou): ap for iou in NMS_GRID}
    return {**FIGURES, "AP": ap, "nms": grid | {f"0.{k[2:]}": v for k, v in nms.items()}}


def write(folder: Path, row: str, seed: int, epochs: int = 4, **heads: dict[str, Any]) -> None:
    values = {"row": row, "title": f"title of {row}", "epochs": epochs, "seed": seed}
    more = {"command": "nmsfree train", "minutes": 2.0 + seed}
    splits = {name: {"images": 3, "objects": 9, **heads} for name in SPLITS}
    folder.mkdir(exist_ok=True)
    path = folder / f"{row}_e{epochs}_s{seed}.json"
    path.write_text(json.dumps(values | more | {"splits": splits}))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Reference with seeds 0, 1, 2, a two-headed row with seeds 0, 1, and one of one head."""
    folder = tmp_path / "results"
    for seed, (published, best) in enumerate(((0.70, 0.74), (0.72, 0.75), (0.74, 0.79))):
        # At 0.55 seed 1 is better than at 0.80: the mean decides, not the best seed.
        write(folder, "o2m", seed, o2m=head(published, at80=best, at55=0.73))
    for seed, (ap, gain, o2m) in enumerate(((0.71, 0.01, 0.70), (0.75, 0.02, 0.73))):
        top = head(ap, at60=ap - 0.01, at90=ap + gain)
        write(folder, "gradient_1", seed, o2m=head(o2m), o2o=top)
    write(folder, "o2o", 2, o2o=head(0.6))
    return folder


def test_means_deviations_and_paired_differences(results: Path) -> None:
    o2m, o2o, two = summarize(read_results(results))
    assert [row.row for row in (o2m, o2o, two)] == ["o2m", "o2o", "gradient_1"]  # as in the study
    assert o2m.seeds == (0, 1, 2) and o2m.minutes == Stat(3.0, pytest.approx(1.0), 3)
    reference = o2m.splits["val"]
    assert reference.ap == Stat(pytest.approx(0.72), pytest.approx(0.02), 3)
    assert reference.o2m == reference.ap
    assert reference.o2m_best is not None and reference.o2m_best.iou == "0.80"
    assert reference.o2m_best.stat.mean == pytest.approx(0.76)
    assert reference.against is None and reference.nms_gain is None
    found = two.splits["overlap"]
    assert found.ap == Stat(pytest.approx(0.73), pytest.approx(0.04 / 2**0.5), 2)
    assert found.nms_gain == Stat(pytest.approx(-0.01), pytest.approx(0.0, abs=1e-9), 2)
    assert found.nms_gain_best is not None and found.nms_gain_best.iou == "0.90"
    assert found.nms_gain_best.stat.mean == pytest.approx(0.015)
    # Seed by seed against 0.74 and 0.75; the reference's third seed has no partner.
    assert found.against == Stat(pytest.approx(-0.015), pytest.approx(0.03 / 2**0.5), 2)
    assert o2o.splits["val"].against == Stat(pytest.approx(-0.19), None, 1)
    assert o2o.splits["val"].o2m is None and o2o.splits["val"].o2m_best is None


def test_without_the_reference_there_is_no_difference(results: Path) -> None:
    rows = summarize([r for r in read_results(results) if r.row != "o2m"])
    assert [row.splits["val"].against for row in rows] == [None, None]


def test_how_figures_read(results: Path) -> None:
    assert percent(Stat(0.7712, 0.0031, 3)) == "77.1 ± 0.3"
    assert percent(Stat(-0.0041, None, 1), signed=True) == "−0.4"
    assert percent(Stat(-0.0001, None, 1), signed=True) == "+0.0"
    assert percent(None) == "–"
    o2m, _, two = summarize(read_results(results))
    shown = cells(two, "val")
    assert shown["AP"] == "73.0 ± 2.8" and shown["− o2m best"] == "−1.5 ± 2.1"
    assert shown["on top, best"] == "+1.5 ± 0.7 @0.90" and shown["minutes"] == "2.5 ± 0.7"
    assert shown["duplicates"] == "0.50 ± 0.00" and shown["wrong ones"] == "0.25"
    assert shown["F1"] == "80.0 ± 0.0" and shown["with NMS"] == "85.0"
    assert cells(o2m, "val")["o2m + best NMS"] == "76.0 ± 2.6 @0.80"


def test_the_command_prints_and_writes_all(results: Path, tmp_path: Path) -> None:
    page, figures = tmp_path / "study.md", tmp_path / "study.json"
    files = ("--markdown", str(page), "--json", str(figures))
    shown = CliRunner().invoke(app, ["table", "--results", str(results), *files])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("gradient_1") == 4  # two tables for each split
    text = page.read_text(encoding="utf-8")
    assert text == markdown(summarize(read_results(results)))
    assert "**val, 4 epochs**" in text and "- `gradient_1`: title of gradient_1" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {14}
    values = {row["row"]: row for row in json.loads(figures.read_text())}
    assert values["gradient_1"]["splits"]["val"]["ap"]["mean"] == pytest.approx(0.73)


def test_runs_of_one_length_are_compared(results: Path, tmp_path: Path) -> None:
    write(results, "o2o", 0, epochs=8, o2o=head(0.65))
    found = read_results(results)
    with pytest.raises(InputError, match="results of 4, 8 epochs, expected one: choose --epochs"):
        of_one_length(found, None, results)
    assert [r.seed for r in of_one_length(found, 8, results)] == [0]
    with pytest.raises(InputError, match=r"no results of 5 epochs \(found: 4, 8\)"):
        of_one_length(found, 5, results)
    with pytest.raises(InputError, match="no results: `nmsfree study run` makes them"):
        of_one_length(read_results(tmp_path / "none"), None, tmp_path / "none")


def test_several_folders_are_one_table(results: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    write(older, "hungarian", 0, o2m=head(0.7), o2o=head(0.7))
    line = ["table", "--results", str(results), "--results", str(older)]
    shown = CliRunner().invoke(app, line)
    assert shown.exit_code == 0, shown.output
    assert "hungarian" in shown.stdout and "gradient_1" in shown.stdout
    write(older, "o2o", 2, o2o=head(0.5))
    refused = CliRunner().invoke(app, line).exception
    assert isinstance(refused, InputError)
    assert str(refused) == (
        "o2o, 4 epochs, seed 2 is there 2 times, expected once: leave one of the folders out"
    )


@pytest.mark.parametrize("rows", [("o2m", "gradient_1", "o2o"), ("o2o",)])
def test_the_picture_is_drawn(results: Path, tmp_path: Path, rows: tuple[str, ...]) -> None:
    for path in results.glob("*.json"):
        if not path.name.startswith(rows):
            path.unlink()
    out = tmp_path / "pictures" / "study.png"
    drawn = CliRunner().invoke(app, ["plot", "--results", str(results), "--out", str(out)])
    assert drawn.exit_code == 0, drawn.output
    picture = cv2.imread(str(out))
    assert picture is not None and picture.shape[1] == 1495 and picture.std() > 5
