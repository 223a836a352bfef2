"""A study's rows, commands, figures and pictures."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
from typer.testing import CliRunner

from nmsfree.errors import InputError
from nmsfree_training.cli import run as train_cli
from nmsfree_training.cli import study as study_cli
from nmsfree_training.cli.options import TrainOptions, apply
from nmsfree_training.cli.study import app
from nmsfree_training.config import Matching, Preset, preset
from nmsfree_training.study.job import Job, is_done
from nmsfree_training.study.report import cells, markdown, percent
from nmsfree_training.study.results import (
    NMS_GRID,
    Stat,
    grid_key,
    of_one_length,
    read_results,
    summarize,
)
from nmsfree_training.study.rows import ROWS, Row, choose_rows

from .runs import run_train

PRESET_ROWS = [row for row in ROWS if row.model]  # of the others the weights decide
BY_NAME = {row.name: row for row in ROWS}
FOLDERS = {"data": Path("data/digits"), "runs": Path("runs/study"), "results": Path("docs/study")}


def job_of(row: Row, seed: int = 0, epochs: int = 16) -> Job:
    return Job(row, epochs, seed, **FOLDERS)


@pytest.fixture(scope="module")
def chosen() -> dict[str, Preset]:
    """What the real command line makes of the command of every row."""
    seen, presets = list[TrainOptions](), dict[str, Preset]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_cli, "run_training", lambda options, data: seen.append(options) or 0)
        for row in PRESET_ROWS:
            words = job_of(row, seed=2).arguments
            assert words[0] == "train"
            result = run_train(*words[1:])
            assert result.exit_code == 0, result.output
    for row, options in zip(PRESET_ROWS, seen, strict=True):
        run = options.run
        assert (run.seed, run.evaluate_every, run.no_tensorboard) == (2, 0, True)
        assert (options.precision, options.threads, options.workers) == ("bf16", 1, 0)
        assert options.out == Path(f"runs/study/{row.name}_e16_s2")
        presets[row.name] = apply(options.recipe, preset(options.model, 10))
    return presets


def test_the_rows_set_what_their_names_say(chosen: dict[str, Preset]) -> None:
    assert all(found.train.epochs == 16 for found in chosen.values())
    published = chosen["e2e_published"]
    winner = preset("fcos_e2e_nano")
    plain = replace(winner.train, epochs=16, o2o=Matching(1), o2o_gradient=0.0)
    assert published.train == plain
    assert (published.model.max_filter, published.model.dedup_iou) == ("none", 0)
    assert chosen["dedup_hungarian"].train == replace(winner.train, epochs=16)
    assert chosen["dedup_hungarian"].model == preset("fcos_e2e_nano", 10).model
    # All others are compared with the last gradient: they differ by one ingredient.
    whole = replace(published.train, o2o_gradient=1.0)
    o2o, quality = Matching(1), (0.5, 6.0)
    expected = {
        "gradient_025": replace(whole, o2o_gradient=0.25),
        "gradient_05": replace(whole, o2o_gradient=0.5),
        "gradient_1": whole,
        "poto_05": replace(whole, o2o=replace(o2o, quality=(0.5, 0.5))),
        "poto_08": replace(whole, o2o=replace(o2o, quality=(0.2, 0.8))),
        "hungarian": replace(whole, o2o=replace(o2o, hungarian=True)),
        "filter_logits": whole,
        "filter_features": whole,
        "dedup": whole,
        "dedup_hungarian": replace(whole, o2o=replace(o2o, hungarian=True)),
        "dedup_features": replace(whole, o2o=replace(o2o, hungarian=True)),
        "one_metric": replace(whole, o2o=Matching(1, quality), o2m=Matching(13, quality)),
        "late_copy": replace(whole, o2o_start=0.5),
        "fade": replace(whole, o2m_weight_end=0.0),
        "all": replace(whole, o2o=Matching(1, (0.5, 0.5), hungarian=True)),
        "dedup_start": replace(chosen["dedup_hungarian"].train, dedup_start=5.0),
        "from_digits": chosen["dedup_hungarian"].train,
        "o2m_from_digits": chosen["o2m"].train,
    }
    for name, recipe in expected.items():
        assert chosen[name].train == recipe, name
    filters = {name: found.model.max_filter for name, found in chosen.items()}
    used = {name: kind for name, kind in filters.items() if kind != "none"}
    assert used == {
        "filter_logits": "logits",
        "filter_features": "features",
        "dedup_features": "features",
        "all": "logits",
    }
    late = replace(chosen["dedup_start"].train, o2o_start=0.5)
    for name in ("dedup_late", "late_from_digits"):
        assert chosen[name].train == late and chosen[name].model.dedup_iou == 0.6
    dedup = {name for name, found in chosen.items() if found.model.dedup_iou}
    ours = {"from_digits", "late_from_digits"}
    assert dedup == {*(name for name in chosen if name.startswith("dedup"))} | ours
    assert chosen["o2m"].model.heads == ("o2m",) and chosen["o2o"].model.heads == ("o2o",)


def test_rows_are_well_formed_and_chosen_in_order() -> None:
    assert len(BY_NAME) == len(ROWS)
    for row in ROWS:
        assert row.title and row.question and row.name.replace("_", "").isalnum()
        if row.model == "fcos_e2e_nano":  # all options are spelled out
            more = sum(map(row.options.count, ("--deployed-dedup-iou", "--init", "--dedup-start")))
            assert row.options.count("--") == 8 + more
    assert choose_rows() == ROWS
    assert [row.name for row in choose_rows(["o2o", "o2m"])] == ["o2m", "o2o"]
    with pytest.raises(InputError, match="row 'o3o' is unknown, expected one of: o2m, o2o"):
        choose_rows(["o3o"])


def test_a_plan_goes_seed_by_seed() -> None:
    jobs = study_cli.JobOptions(epochs=4).plan(ROWS[:2], (1, 0, 1))
    assert [job.name for job in jobs] == ["o2m_e4_s1", "o2o_e4_s1", "o2m_e4_s0", "o2o_e4_s0"]
    assert Job.from_text(jobs[1].to_text()) == jobs[1]


def test_the_command_is_what_a_user_types() -> None:
    shown = CliRunner().invoke(
        app, ["command", "o2o", "--seed", "1", "--epochs", "3", "--precision", "bf16"]
    )
    assert shown.exit_code == 0
    assert shown.stdout.strip() == (
        "nmsfree train --data data/digits --model fcos_o2o_nano --o2o-matching argmin "
        "--o2o-quality 0 0 --max-filter none --dedup-iou 0 --epochs 3 --seed 1 "
        "--precision bf16 --threads 1 --workers 0 --eval-every 0 --no-tensorboard "
        "--out runs/study/o2o_e3_s1"
    )
    assert shlex.split(shown.stdout)[1:] == list(job_of(BY_NAME["o2o"], 1, 3).arguments)


def test_a_retrofit_starts_from_the_reference_of_its_seed() -> None:
    more = "--size 320 320 --flip 0.5"
    job = replace(job_of(BY_NAME["retrofit"], 2, 3), more=more, splits=("val", "test"))
    weights = "runs/study/o2m_e3_s2/last.safetensors"
    assert f"--data data/digits --retrofit {weights} {more} --epochs 3 " in job.command
    words = ["command", "retrofit", "--seed", "2", "--epochs", "3", "--precision", "bf16"]
    shown = CliRunner().invoke(app, [*words, "--with", more, "--split", "val", "--split", "test"])
    assert shown.stdout.strip() == job.command
    assert Job.from_text(job.to_text()) == job


@pytest.mark.parametrize(("has", "precision"), [(True, "bf16"), (False, "fp32"), (None, "fp32")])
def test_precision_is_what_the_processor_computes_in(
    has: bool | None, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_cli, "computes_bf16", lambda: has)
    shown = CliRunner().invoke(app, ["command", "o2o"])
    assert f" --precision {precision} " in shown.stdout
    wrong = CliRunner().invoke(app, ["command", "o2o", "--precision", "half"])
    assert str(wrong.exception) == "--precision is 'half', expected fp32, bf16 or auto"


def test_a_study_on_a_gpu() -> None:
    shown = CliRunner().invoke(app, ["command", "o2o", "--device", "cuda"])
    assert " --precision bf16 --device cuda --workers 4 " in shown.stdout
    assert "--threads" not in shown.stdout
    wrong = CliRunner().invoke(app, ["command", "o2o", "--device", "tpu"])
    assert str(wrong.exception) == "--device is 'tpu', expected cpu or cuda"
    job = replace(job_of(BY_NAME["o2o"]), device="cuda")
    assert Job.from_text(job.to_text()) == job


def finished(job: Job) -> None:
    values = {"row": job.row.name, "title": job.row.title, "epochs": job.epochs, "seed": job.seed}
    more = {"command": job.command, "minutes": 1.0, "splits": {}}
    job.result_file.parent.mkdir(parents=True, exist_ok=True)
    job.result_file.write_text(json.dumps(values | more))


def test_a_changed_row_is_refused(tmp_path: Path) -> None:
    job = replace(job_of(BY_NAME["fade"]), results=tmp_path)
    assert not is_done(job)
    finished(job)
    assert is_done(job)
    assert is_done(replace(job, runs=Path("elsewhere")))  # the same run in another folder
    assert is_done(replace(job, precision="fp32"))  # and on a processor without bf16
    assert is_done(replace(job, device="cuda"))
    changed = replace(job, row=replace(job.row, options="--o2o-gradient 0.5"))
    with pytest.raises(InputError) as caught:
        is_done(changed)
    message = str(caught.value)
    assert f"found the command `{job.command}`, expected `{changed.command}`" in message
    assert "delete the file" in message and "rename the row" in message and "\n" not in message


def test_other_json_is_refused(tmp_path: Path) -> None:
    job = replace(job_of(BY_NAME["fade"]), results=tmp_path)
    finished(job)
    known = json.loads(job.result_file.read_text())
    head = dict.fromkeys(("AP", "F1", "F1_with_nms"), 0.5)
    head |= dict.fromkeys(("duplicates_per_image", "wrong_duplicates_per_image"), 0.0)
    wrong = (
        {"splits": {"val": {}}},
        {"splits": {"val": {"o2o": {"AP": 0.5}}}},
        {"splits": {"val": {"o2o": {**head, "nms": {"0.50": 0.5}}}}},
        {"splits": {"val": {"o2o": {**head, "AP": 50, "nms": {}}}}},
        {"epochs": 0},
        {"seed": "0"},
        {"minutes": None},
    )
    texts = ["[1, 2]", "{", '{"row": "o2m"}', "[" * 10**5]
    for text in [*texts, *(json.dumps(known | change) for change in wrong)]:
        job.result_file.write_text(text)
        with pytest.raises(InputError, match="expected what `nmsfree study run` writes"):
            is_done(job)
    job.result_file.write_text(json.dumps(known | {"command": "nmsfree 'train"}))
    with pytest.raises(InputError, match="found the command"):
        is_done(job)


def test_the_list_shows_what_is_done(tmp_path: Path) -> None:
    for seed in (1, 0):
        finished(replace(job_of(BY_NAME["o2m"], seed), results=tmp_path))
    finished(replace(job_of(BY_NAME["o2m"], 0, epochs=4), results=tmp_path))
    shown = CliRunner().invoke(app, ["list", "--results", str(tmp_path)], env={"COLUMNS": "160"})
    lines = {line.split()[0]: line for line in shown.stdout.splitlines() if line.strip()}
    assert "4 × 0; 16 × 0, 1" in lines["o2m"]
    assert lines["o2o"].rstrip().endswith("–") and BY_NAME["o2o"].question in lines["o2o"]
    assert {row.name for row in ROWS} <= lines.keys()


# Means, deviations and differences of made-up results, and how they are shown


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
