"""The recipes of the study, their commands, and which runs are done."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from nmsfree.errors import InputError
from nmsfree_training.cli import run as train_cli
from nmsfree_training.cli import study as study_cli
from nmsfree_training.cli.study import app
from nmsfree_training.cli.train import TrainOptions, apply, train
from nmsfree_training.config import Matching, Preset, preset
from nmsfree_training.study.job import Job, is_done
from nmsfree_training.study.rows import ROWS, Row, choose_rows

BY_NAME = {row.name: row for row in ROWS}
FOLDERS = {"data": Path("data/digits"), "runs": Path("runs/study"), "results": Path("docs/study")}


def job_of(row: Row, seed: int = 0, epochs: int = 16) -> Job:
    return Job(row, epochs, seed, **FOLDERS)


def settings(row: Row, monkeypatch: pytest.MonkeyPatch) -> tuple[TrainOptions, Preset]:
    """What the real command line makes of a row's command."""
    seen: list[TrainOptions] = []
    monkeypatch.setattr(train_cli, "run_training", lambda options: seen.append(options) or 0)
    command = typer.Typer()
    command.command()(train)
    words = job_of(row, seed=2).arguments
    assert words[0] == "train"
    result = CliRunner().invoke(command, list(words[1:]))
    assert result.exit_code == 0, result.output
    (options,) = seen
    assert options.model is not None
    return options, apply(options.recipe, preset(options.model, 10))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_a_valid_command(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    options, chosen = settings(row, monkeypatch)
    run = options.run
    assert chosen.train.epochs == 16 and run.seed == 2 and run.precision == "bf16"
    assert (options.threads, run.workers, run.evaluate_every) == (1, 0, 0)
    assert options.out == Path(f"runs/study/{row.name}_e16_s2") and run.no_tensorboard
    assert row.title and row.question and row.name.replace("_", "").isalnum()


def test_the_rows_set_what_their_names_say(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {row.name: settings(row, monkeypatch)[1] for row in ROWS}
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
    dedup = [name for name, found in chosen.items() if found.model.dedup_iou]
    assert dedup == ["dedup", "dedup_hungarian", "dedup_features"]
    assert chosen["o2m"].model.heads == ("o2m",) and chosen["o2o"].model.heads == ("o2o",)


def test_two_headed_rows_spell_all_options_out() -> None:
    for row in ROWS:
        if row.model == "fcos_e2e_nano":
            deployed = row.options.count("--deployed-dedup-iou")
            assert row.options.count("--") == 8 + deployed


def test_names_are_unique_and_chosen_in_order() -> None:
    assert len(BY_NAME) == len(ROWS)
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
