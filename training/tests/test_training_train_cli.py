"""`nmsfree train` as a user runs it, and what its options do to a preset."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nmsfree.datasets.formats.coco import load_coco
from nmsfree.errors import CheckpointError, DataError, InputError, NmsfreeError
from nmsfree.files import RUN_LOCK, locked
from nmsfree_training.cli import run as cli
from nmsfree_training.cli.options import RecipeOptions, apply, whole_numbers
from nmsfree_training.config import Matching, at_size, preset
from nmsfree_training.loop.trainer import Trainer
from nmsfree_training.weights.checkpoint import load_checkpoint

from .runs import WEIGHTS
from .runs import run_train as run

SHORT = ("--epochs", 1, "--batch-size", 6, "--workers", 0, "--val", "", "--no-tensorboard")
SHORT = (*SHORT, "--no-probe")


def complaint(kind: type[NmsfreeError], *arguments: object) -> str:
    error = run(*arguments).exception
    assert isinstance(error, kind), error
    assert "\n" not in str(error)
    return str(error)


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    small = (*SHORT[:6], "--no-probe", "--seed", 4)
    result = run("--data", digits, "--model", "fcos_o2o_nano", "--out", out, *small)
    assert result.exit_code == 0, result.output
    assert "fcos_o2o_nano: 12 images, 10 classes, 1 epochs of batch 6 on cpu, fp32" in result.stderr
    assert "best.safetensors" in result.stderr and result.stdout == ""
    return out


def test_a_run_leaves_a_checkpoint_that_says_how_it_was_made(finished: Path) -> None:
    loaded = load_checkpoint(finished / "best.safetensors")
    assert loaded.model.name == "fcos_o2o_nano"
    assert loaded.provenance["seed"] == "4"
    assert loaded.provenance["command"].startswith("nmsfree")
    assert {"machine", "torch", "epoch", "AP"} <= loaded.provenance.keys()
    assert len((finished / "metrics.jsonl").read_text().splitlines()) == 1


def test_an_occupied_folder_is_left_alone(finished: Path, digits: Path) -> None:
    before = (finished / "last.safetensors").read_bytes()
    message = complaint(InputError, "--data", digits, "--out", finished)
    assert "go on with --resume, or choose --out" in message
    assert (finished / "last.safetensors").read_bytes() == before


def test_a_run_does_not_replace_what_it_reads(finished: Path, digits: Path, tmp_path: Path) -> None:
    best = tmp_path / "best.safetensors"
    shutil.copy(finished / "best.safetensors", best)
    small = ("--data", digits, "--model", "fcos_o2o_nano", "--init", best)
    assert "is an input" in complaint(InputError, *small, "--out", tmp_path)
    assert "is an input" in complaint(InputError, *small, "--preview", best)
    picture = load_coco(digits, "train").samples[0].path
    assert "is an input" in complaint(InputError, *small, "--preview", picture)
    assert best.read_bytes() == (finished / "best.safetensors").read_bytes()


def test_a_folder_belongs_to_one_training_at_a_time(
    finished: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "probe", None)  # it is told before that
    shutil.copytree(finished, tmp_path / "begun")
    for out, more in ((tmp_path / "new", ()), (tmp_path / "begun", ("--resume",))):
        with locked(out / RUN_LOCK):
            before = sorted(out.iterdir())
            message = complaint(InputError, "--data", digits, "--out", out, *more)
        assert "held by another process" in message
        assert sorted(out.iterdir()) == before


def test_resume_adds_epochs(
    finished: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    options = ("--data", digits, "--out", out, *SHORT, "--seed", 4)
    more = run(*options, "--model", "fcos_o2o_nano", "--epochs", 2, "--resume")
    assert more.exit_code == 0, more.output
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert " epochs of batch" in more.stderr
    data = shutil.copytree(digits, tmp_path / "digits")
    file = data / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"].pop()
    file.write_text(json.dumps(content))
    again = ("--data", data, *options[2:], "--model", "fcos_o2o_nano", "--epochs", 2, "--resume")
    assert "the objects of 1 image (" in complaint(CheckpointError, *again)
    monkeypatch.setattr(cli, "probe", None)  # another recipe is refused before that
    assert "model.name = fcos_o2o_nano, this run has fcos_e2e_nano" in complaint(
        CheckpointError, "--data", digits, "--out", out, "--resume"
    )


def test_one_size_is_that_of_all(digits: Path, tmp_path: Path) -> None:
    """Of a run, its checkpoint, and what goes on from there."""
    first, second = tmp_path / "first", tmp_path / "second"
    common = ("--data", digits, "--model", "fcos_rt_nano", *SHORT)
    result = run(*common, "--out", first, "--size", 96, 128, "--short-sides", "256")
    assert "trained at short sides of 256 to 256 px, but evaluated at 96 × 128" in result.stderr
    assert "objects are small: give --size 256 256" in result.stderr
    weights = first / "best.safetensors"
    assert load_checkpoint(weights).input_size == (96, 128)
    assert run(*common, "--out", second, "--init", weights).exit_code == 0
    assert load_checkpoint(second / "best.safetensors").input_size == (96, 128)
    retrofit = ("--data", digits, "--out", tmp_path / "third", "--retrofit", weights, *SHORT)
    assert run(*retrofit, "--size", 160, 128).exit_code == 0
    assert load_checkpoint(tmp_path / "third" / "best.safetensors").input_size == (160, 128)


def test_what_is_not_trained_on_is_said_at_the_start(digits: Path, tmp_path: Path) -> None:
    data = shutil.copytree(digits, tmp_path / "digits")
    file = data / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    tiny, crowd, *_ = content["annotations"]
    tiny["bbox"][2:], crowd["iscrowd"] = [2, 2], 1
    content["categories"].append({"id": 77, "name": "no\x1b[31mne", "supercategory": ""})
    file.write_text(json.dumps(content))
    result = run("--data", data, "--out", tmp_path / "run", *SHORT, "--batch-size", 5)
    assert result.exit_code == 0, result.output
    count = len(content["annotations"]) - 1
    assert f"{count} objects, and 1 crowd regions that are not trained on" in result.stderr
    assert f"at 256 × 256 1 ({1 / count:.0%}) of {count} objects are under 8 px" in result.stderr
    assert "1 of 11 classes have no object to train on" in result.stderr
    assert r"no\x1b[31mne" in result.stderr and "\x1b" not in result.stderr
    assert "2 of 12 images do not fill a batch" in result.stderr
    result = run("--data", data, "--out", tmp_path / "few", *SHORT, "--batch-size", 50)
    assert "a batch of 50 is more than there is: all 12 images are one" in result.stderr
    content["annotations"] = []
    file.write_text(json.dumps(content))
    message = complaint(DataError, "--data", data, "--out", tmp_path / "none", *SHORT)
    assert "found 0 boxes" in message and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "yolo", "'yolo' is unknown, expected one of: fcos_rt_r18_3x"),
        ("--model", "fcos_e2e_nan", "fcos_e2e_lite0; did you mean fcos_e2e_nano?"),
        ("--model", "", "'' is unknown"),
        ("--from", "fcos_e2e_nan", "fcos_rt_nano; did you mean fcos_e2e_nano?"),
        ("--precision", "fp8", "precision is 'fp8', expected fp32, bf16, fp16"),
        ("--head-norm", "layer", "expected group, batch, batch_per_level"),
        ("--device", "tpu", "runs on one of: cpu, cuda"),
        ("--learning-rate", 0, "expected a number above 0"),
        ("--learning-rate", "nan", "expected a finite number"),
    ],
)
def test_wrong_options(
    option: str, value: object, message: str, digits: Path, tmp_path: Path
) -> None:
    said = complaint(InputError, "--data", digits, "--out", tmp_path / "run", option, value)
    assert message in said and "go on" not in said
    assert not (tmp_path / "run").exists()


def test_usage_errors(digits: Path) -> None:
    assert run("--data", digits, "--epochs", 0).exit_code == 2
    without = run("--model", "fcos_rt_nano")
    assert without.exit_code == 2 and "--data: missing" in without.stderr


def test_memory_of_the_gpu_that_does_not_suffice(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(trainer: Trainer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore advice")

    monkeypatch.setattr(Trainer, "fit", full)
    options = ("--data", digits, "--out", tmp_path / "run", "--batch-size", 12, "--accumulate", 2)
    assert complaint(InputError, *options, "--workers", 0) == (
        "the GPU's memory does not suffice for 6 images at once: give --accumulate 4 or more, "
        "which computes the same batch in parts, or a smaller --batch-size "
        "(CUDA out of memory. Tried to allocate 2 GiB.)"
    )


def test_missing_files(digits: Path, tmp_path: Path) -> None:
    assert "is not a folder" in complaint(DataError, "--data", tmp_path / "none")
    message = complaint(DataError, "--data", digits, "--split", "test")
    assert "splits found" in message and "overlap, train, val" in message
    assert "instances_other.json is missing" in complaint(
        DataError, "--data", digits, "--val", "other"
    )
    out = ("--out", tmp_path / "run")
    imagenet = ("--imagenet", tmp_path / "resnet18.pth")
    message = complaint(CheckpointError, "--data", digits, *out, *imagenet)
    assert "no such file" in message
    assert "no such file" in complaint(CheckpointError, "--data", digits, *out, "--resume")
    assert not (tmp_path / "run").exists()


def test_overrides_reach_the_run(digits: Path, tmp_path: Path) -> None:
    changes = ("--head-norm", "batch", "--learning-rate", 1e-4, "--precision", "bf16")
    changes = (*SHORT, "--batch-size", 12, *changes)
    result = run("--data", digits, "--out", tmp_path / "run", *changes)
    assert result.exit_code == 0, result.output
    loaded = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert loaded.model.head_norm == "batch"
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert record["lr"] == pytest.approx(1e-4)  # one step: too short for a warm-up
    assert "AP" not in record


def test_what_a_retrofit_decides_cannot_be_given(digits: Path) -> None:
    weights = WEIGHTS / "fcos_rt_nano.safetensors"
    retrofit = ("--data", digits, "--retrofit", weights)
    decided = ("--head-norm", "group"), ("--model", "fcos_rt_nano"), ("--max-filter", "logits")
    for option in decided:
        message = complaint(InputError, *retrofit, *option)
        assert f"{option[0]} is given with --retrofit" in message
    message = complaint(InputError, *retrofit, "--init", weights)
    assert "--init and --retrofit are given" in message
    assert "--unfreeze is given without" in complaint(InputError, "--data", digits, "--unfreeze")


def test_a_retrofit_changes_nothing_but_the_new_head(digits: Path, tmp_path: Path) -> None:
    weights = WEIGHTS / "fcos_rt_nano.safetensors"
    result = run("--data", digits, "--retrofit", weights, "--out", tmp_path / "run", *SHORT)
    assert result.exit_code == 0, result.output
    assert "weights are trained" in result.stderr
    before, after = load_checkpoint(weights), load_checkpoint(tmp_path / "run/last.safetensors")
    assert after.model.name == "fcos_e2e_nano" and after.model.heads == ("o2m", "o2o")
    assert all((after.state[key] == value).all() for key, value in before.state.items())
    copied = [k.replace(".o2m.", ".o2o.") for k in before.state if ".o2m." in k]
    assert any((after.state[k] != before.state[k.replace(".o2o.", ".o2m.")]).any() for k in copied)


def test_an_untrained_retrofit_stays_the_best_where_training_hurts(
    digits: Path, tmp_path: Path
) -> None:
    weights, out = WEIGHTS / "fcos_rt_nano.safetensors", tmp_path / "run"
    words = ("--data", digits, "--retrofit", weights, "--out", out, *SHORT)
    result = run(*words, "--val", "val", "--learning-rate", 1, "--warmup", 0, "--dedup-start", 5)
    assert result.exit_code == 0, result.output
    assert "before the new head is trained" in result.stderr
    before, best = load_checkpoint(weights), load_checkpoint(out / "best.safetensors")
    assert best.provenance["epoch"] == "0" and float(best.provenance["AP"]) > 0.5
    copied = [key for key in before.state if ".o2m." in key]
    assert all((best.state[k.replace("o2m", "o2o")] == before.state[k]).all() for k in copied)


def test_pictures_that_cannot_be_read_are_named_and_the_rest_is_done(
    digits: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(digits, tmp_path / "digits")
    bad = load_coco(data, "train").samples[3].path
    bad.write_bytes(b"not a picture")
    options = (*SHORT, "--epochs", 2)
    result = run("--data", data, "--out", tmp_path / "run", *options)
    assert result.exit_code == 1
    assert result.stderr.count(bad.name) == 2  # when it happens, and at the end
    assert result.stderr.count("; 1 images left out") >= 1  # after the line of an epoch
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").provenance["epoch"] == "2"
    again = run("--data", data, "--out", tmp_path / "run", *options, "--resume")
    assert again.exit_code == 1 and "all 2 epochs are done" in again.stderr
    assert bad.name in again.stderr  # not forgotten


def test_a_picture_of_the_validation_set_can_be_mended(digits: Path, tmp_path: Path) -> None:
    data = shutil.copytree(digits, tmp_path / "digits")
    bad = load_coco(data, "val").samples[0].path
    content = bad.read_bytes()
    bad.write_bytes(b"not a picture")
    options = ("--data", data, "--out", tmp_path / "run", *SHORT, "--val", "val")
    message = complaint(NmsfreeError, *options)
    assert bad.name in message and "the epoch is saved: fix it, and go on with --resume" in message
    bad.write_bytes(content)
    assert run(*options, "--resume").exit_code == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_batch_that_cannot_be_cut(digits: Path, tmp_path: Path) -> None:
    options = ("--data", digits, "--out", tmp_path / "run", "--batch-size", 3, "--accumulate", 5)
    assert "cannot be cut into 5 (--accumulate) × 1" in complaint(InputError, *options)
    assert not (tmp_path / "run").exists()


def test_fine_tuning_tells_its_learning_rate(digits: Path, tmp_path: Path) -> None:
    weights = WEIGHTS / "fcos_e2e_nano.safetensors"
    options = ("--data", digits, "--init", weights, *SHORT)
    plain = run(*options, "--out", tmp_path / "plain")
    told = " ".join(plain.stderr.split())
    assert "271 of 271 tensors loaded" in told and "give --learning-rate 0.0002" in told
    given = run(*options, "--out", tmp_path / "given", "--learning-rate", 1e-4)
    assert plain.exit_code == given.exit_code == 0
    assert "as from scratch" not in " ".join(given.stderr.split())


# Options on the command line replace a preset's values, and say what is wrong with them


NANO = preset("fcos_e2e_nano", 10)


def test_values_replace_those_of_the_preset() -> None:
    assert apply(RecipeOptions(), NANO) == NANO
    options = RecipeOptions(epochs=7, mosaic=0.5, frozen_stages=3, head_norm="group", ema=0.99)
    changed = apply(options, NANO)
    assert (changed.train.epochs, changed.train.mosaic, changed.train.ema) == (7, 0.5, 0.99)
    assert (changed.model.frozen_stages, changed.model.head_norm) == (3, "group")
    assert changed.train.learning_rate == NANO.train.learning_rate


def test_options_of_the_heads_reach_the_preset() -> None:
    changed = apply(
        RecipeOptions(
            o2o_gradient=0.25,
            o2o_matching="hungarian",
            o2o_quality=(0.2, 0.8),
            o2m_quality=(0.5, 2.0),
            o2m_weight_end=0.1,
            o2o_start=0.5,
            max_filter="logits",
        ),
        NANO,
    )
    assert changed.train.o2o == Matching(topk=1, quality=(0.2, 0.8), hungarian=True)
    assert changed.train.o2m == Matching(topk=13, quality=(0.5, 2.0))
    assert changed.model.max_filter == "logits"
    recipe = changed.train
    assert (recipe.o2o_gradient, recipe.o2m_weight_end, recipe.o2o_start) == (0.25, 0.1, 0.5)
    back = RecipeOptions(
        o2o_gradient=0.0,
        o2o_matching="argmin",
        o2o_quality=(0.0, 0.0),
        o2m_quality=(0.0, 0.0),
        o2m_weight_end=1.0,
        o2o_start=0.0,
        max_filter="none",
    )
    plain = {"o2o": Matching(topk=1), "o2m": Matching(topk=13), "o2o_gradient": 0.0}
    plain |= {"o2m_weight_end": 1.0, "o2o_start": 0.0}
    assert apply(back, changed) == replace(
        NANO, model=replace(NANO.model, max_filter="none"), train=replace(NANO.train, **plain)
    )


@pytest.mark.parametrize(
    ("options", "name", "complaint"),
    [
        ({"o2o_gradient": 0.5}, "fcos_o2o_nano", "--o2o-gradient is given, but fcos_o2o_nano has"),
        ({"o2m_weight_end": 0.5}, "fcos_rt_nano", "--o2m-weight-end is given, but fcos_rt_nano"),
        ({"o2o_start": 0.5}, "fcos_rt_nano", "has one head: choose a two-headed model"),
        ({"o2o_matching": "argmin"}, "fcos_rt_nano", "fcos_rt_nano has no o2o head"),
        ({"o2o_quality": (0.2, 0.8)}, "fcos_rt_nano", "--o2o-quality is given, but fcos_rt_nano"),
        ({"o2m_quality": (0.2, 0.8)}, "fcos_o2o_nano", "fcos_o2o_nano has no o2m head"),
        (
            {"max_filter": "logits"},
            "fcos_rt_nano",
            "--max-filter is given, but fcos_rt_nano has no",
        ),
    ],
)
def test_options_for_heads_that_are_not_there(
    options: dict[str, Any], name: str, complaint: str
) -> None:
    with pytest.raises(InputError) as caught:
        apply(RecipeOptions(**options), preset(name, 10))
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_zero_switches_off() -> None:
    changed = apply(RecipeOptions(clip_norm=0.0, crop=0.0, ema=0.0), NANO)
    assert (changed.train.clip_norm, changed.train.crop, changed.train.ema) == (None,) * 3


def test_what_goes_together_is_filled_in() -> None:
    step = apply(RecipeOptions(schedule="step", epochs=36), NANO)
    assert step.train.milestones == (24, 33)
    sides = apply(RecipeOptions(short_sides="256,320"), NANO)
    assert sides.train.long_side == 640
    published = preset("fcos_rt_r18_3x")
    assert apply(RecipeOptions(short_sides="256,320"), published).train.long_side == 900
    half = at_size(published, (256, 384))
    assert half.input_size == (256, 384) and half.train.long_side == 450
    assert half.train.short_sides == tuple(range(128, 305, 16))
    with pytest.raises(InputError, match="size is 100 128, expected height and width, multiples"):
        at_size(published, (100, 128))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"optimizer": "adam"}, "optimizer is 'adam', expected sgd, adamw"),
        ({"o2o_matching": "greedy"}, "o2o matching is 'greedy', expected argmin, hungarian"),
        ({"max_filter": "boxes"}, "max_filter is 'boxes', expected none, logits, features"),
        ({"learning_rate": 0.0}, "learning rate is 0.0, expected a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan, expected a finite number"),
        ({"weight_decay": float("inf")}, "weight_decay is inf, expected 0 to inf"),
        ({"mosaic": 1.5}, "mosaic is 1.5, expected 0 to 1"),
        ({"dedup_iou": -0.1}, "dedup_iou is -0.1, expected 0 to 1"),
        ({"ema": 1.0}, "ema is 1, expected 0 (off) … below 1"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0, expected 0 to inf"),
        ({"scale": (2.0, 1.0)}, "expected LOW ≤ HIGH"),
        ({"scale": (1e-320, 1.0)}, "expected 0.05 to 8"),
        ({"short_sides": f"64,{10**8}"}, "short_sides is 100000000, expected 32 to 16384"),
        ({"crop": 1e-320}, "crop is 1e-320, expected 0 (off), or 0.05 … 4"),
        ({"crop": 4.1}, "crop is 4.1, expected 0 to 4"),
        ({"o2o_quality": (-1.0, 1.0)}, "quality is -1.0 1.0, expected two powers of 0 … 20"),
        ({"o2m_quality": (0.5, float("nan"))}, "quality is 0.5 nan, expected two"),
    ],
)
def test_values_that_make_no_sense(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        apply(RecipeOptions(**options), NANO)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_lists_of_numbers() -> None:
    assert whole_numbers("milestones", "24,33") == (24, 33)
    for text in ("a,b", "", "1,", "²", "٣", "1_0", "-1", "9" * 5000):
        with pytest.raises(InputError, match=r"milestones is .*, expected whole numbers"):
            whole_numbers("milestones", text)
