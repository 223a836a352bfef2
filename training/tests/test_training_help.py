"""What helps a user to a run worth its time: presets, its length, the machine, and advice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.machine import processors
from nmsfree_training.cli.presets import asked_preset, recipe_text
from nmsfree_training.config import (
    PRESETS,
    HeadName,
    Matching,
    Preset,
    preset,
    with_enough_steps,
    with_epochs,
)
from nmsfree_training.loop.advice import Outcome, train_sample
from nmsfree_training.loop.distributed import CPU
from nmsfree_training.loop.probe import Wanted, expected, probe
from nmsfree_training.loop.start import Objects, ObjectSizes
from nmsfree_training.loop.step import StepLosses, Stepper
from nmsfree_training.model.detector import fresh_network
from nmsfree_training.monitor.callbacks import Callback, StepEvent
from nmsfree_training.weights.checkpoint import load_checkpoint

from .runs import Listener, Runs, assert_same_runs, records, run_train, same, tiny

# Presets


def test_the_list_shows_every_preset_and_its_cost() -> None:
    done = run_train("--list", columns=160)
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert PRESETS.keys() <= lines.keys()
    assert "256 × 256" in lines["fcos_e2e_nano"] and "0.49" in lines["fcos_e2e_nano"]
    assert "--imagenet resnet18" in lines["fcos_e2e_r18"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "fcos_e2e_nano"),
        (["train", "--model", "fcos_rt_r18_3x", "--help"], "fcos_rt_r18_3x"),
        (["train", "--model=fcos_rt_small"], "fcos_rt_small"),
        (["eval", "--model", "model.onnx"], "fcos_e2e_nano"),
        (["train", "--model"], "fcos_e2e_nano"),
    ],
)
def test_the_help_is_that_of_the_preset_asked_for(words: list[str], name: str) -> None:
    assert asked_preset(words).model.name == name


def test_the_help_shows_the_values_of_the_preset() -> None:
    shown = " ".join(run_train("--help", columns=200).stdout.split())
    assert "fcos_e2e_nano's" in shown and "Passes over the data. (40)" in shown
    assert "Largest gradient norm; 0 = off. (10)" in shown and "hungarian. (hungarian)" in shown


def test_a_recipe_is_what_differs_from_the_presets() -> None:
    usual = preset("fcos_e2e_nano")
    assert recipe_text(usual, usual) == "recipe: fcos_e2e_nano's"
    train = replace(usual.train, epochs=3, crop=None, o2o=Matching(1, (0.2, 0.8)))
    model = replace(usual.model, head_norm="group")
    assert recipe_text(Preset(model, train, (320, 320)), usual) == (
        "recipe: fcos_e2e_nano's, with size 320,320, head_norm group, epochs 3, crop off, "
        "o2o matching top 1 argmin quality 0.2,0.8"
    )


# Length


def test_a_small_set_gets_more_epochs() -> None:
    nano = preset("fcos_e2e_nano")
    assert with_enough_steps(nano, 64).train.epochs == 250  # 4 steps each
    assert with_enough_steps(nano, 5).train.epochs == 1000
    assert with_enough_steps(nano, 2000) == nano
    published = preset("fcos_rt_r18_3x")
    longer = with_enough_steps(published, 160)
    assert longer.train.epochs == 100 and longer.train.milestones == (67, 92)
    none = replace(nano, train=replace(nano.train, min_steps=0))
    assert with_enough_steps(none, 64) == none
    assert with_epochs(longer, 36).train == published.train


class Clock(Callback):
    """In place of the trainer's: a step takes two seconds, an evaluation one."""

    def __init__(self) -> None:
        self.now, self.step, self.start = 0.0, 2.0, 0.0  # start: what a first step takes longer
        self.rates: list[float] = []
        self.epochs: list[int] = []  # of each step

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def on_step(self, event: StepEvent) -> None:
        self.rates.append(event.learning_rate)
        self.epochs.append(event.epoch)

    def on_evaluate(self, done: int, total: int) -> None:
        self.now += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made, step = Clock(), Stepper.__call__

    def timed(self: Stepper, *arguments: Any) -> list[StepLosses]:
        made.now += made.step if made.rates else made.step + made.start
        return step(self, *arguments)

    monkeypatch.setattr(Stepper, "__call__", timed)
    monkeypatch.setattr("nmsfree_training.loop.trainer.time", made)
    return made


TIMED = {"minutes": 65 / 60, "evaluate_every": 1}


@pytest.mark.parametrize("schedule", [{}, {"schedule": "step", "milestones": (24, 33)}])
def test_minutes_end_at_a_step_with_the_rate_at_its_end(
    schedule: dict[str, Any], runs: Runs, val_set: DetectionDataset, clock: Clock
) -> None:
    """Epochs of three steps; of 65 s two are left for the evaluations that come after."""
    two, chosen = replace(val_set, samples=val_set.samples[:2]), tiny(epochs=36, **schedule)
    trainer = runs.train("run", chosen, two, clock, **TIMED)
    assert 65 - 2 - 2 - 2 < clock.now <= 65 - 2
    position = trainer.position
    assert position.iteration == len(clock.rates) == trainer.total < 3 * position.epoch
    peak = chosen.train.learning_rate
    assert max(clock.rates) > 0.9 * peak and clock.rates[-1] < 0.05 * peak
    last = records(trainer.run.out)[-1]
    saved = load_checkpoint(trainer.run.out / "last.safetensors").provenance
    assert last["epoch"] == position.epoch == trainer.checkpoints.recipe["train.epochs"]
    assert last["AP"] == pytest.approx(float(saved["AP"]), abs=1e-4)
    again = runs.train("run", chosen, two, Clock(), resume=True, **TIMED)
    assert again.position == position
    longer = runs.train("run", chosen, two, clock, resume=True, **TIMED | {"minutes": 2})
    assert longer.position.spent == pytest.approx(120 - 2, abs=4)
    epochs = longer.position.epoch + 1  # and by those
    more = runs.train("run", tiny(epochs=epochs, **schedule), resume=True)
    assert more.position.epoch == epochs and more.position.iteration == more.total


def test_minutes_may_end_within_the_first_epoch(
    runs: Runs, val_set: DetectionDataset, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is killed in its evaluation goes on with that."""
    two, chosen = replace(val_set, samples=val_set.samples[:2]), tiny(batch_size=1)
    short = TIMED | {"minutes": 0.5}  # 30 s, of which three evaluations are guessed to take 12
    whole = runs.train("whole", chosen, two, clock, **short)
    assert 9 <= whole.position.iteration < 14 and clock.now <= 30 - 2
    assert len(records(whole.run.out)) == whole.position.epoch
    trainer = runs.trainer("run", chosen, two, clock, **short)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "_evaluate", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        trainer.fit()
    runs.train("run", chosen, two, clock, resume=True, **short)
    assert_same_runs(runs.folder / "whole", runs.folder / "run")


@pytest.mark.parametrize("heads", [None, ("o2o",)])
def test_minutes_follow_neither_a_slow_first_step_nor_a_retrofits_first_evaluation(
    heads: tuple[HeadName, ...] | None, runs: Runs, val_set: DetectionDataset, clock: Clock
) -> None:
    """A step takes 0.2 s, the first one five more, an evaluation one; two of those are left."""
    clock.step, clock.start = 0.2, 5.0
    two, chosen = replace(val_set, samples=val_set.samples[:2]), tiny(batch_size=1)
    trainer = runs.trainer("run", chosen, two, clock, heads, **TIMED | {"minutes": 0.5})
    trainer.fit()
    assert 30 - 2 - 1 < clock.now <= 30 - 2
    assert clock.epochs.count(0) == 12 and trainer.position.iteration == len(clock.epochs)


def test_minutes_cut_no_epoch_before_steps_are_timed(
    runs: Runs, val_set: DetectionDataset, clock: Clock
) -> None:
    """Unless they are up."""
    two, chosen = replace(val_set, samples=val_set.samples[:2]), tiny(batch_size=1)
    for folder, minutes, steps in (("timed", 0.2, 5), ("up", 0.1, 3)):
        clock.epochs.clear()
        runs.train(folder, chosen, two, clock, **TIMED | {"minutes": minutes})
        assert len(clock.epochs) == steps


def test_patience_ends_a_run_that_has_flattened(runs: Runs, val_set: DetectionDataset) -> None:
    listener, few = Listener(), replace(val_set, samples=val_set.samples[:1])
    chosen = tiny(epochs=5, learning_rate=1e-12)
    trainer = runs.few.train(chosen=chosen, val=few, callback=listener, patience=2)
    assert (trainer.position.epoch, trainer.position.best_epoch) == (3, 1)
    assert "stopped: AP has not risen for 2 epochs (--patience)" in listener.told


# The machine


def test_the_best_choice_is_computed_from_what_was_timed() -> None:
    assert expected(step=0.1, loading=0.02, threads=2, workers=0, cores=2) == pytest.approx(0.12)
    assert expected(0.1, 0.02, threads=1, workers=1, cores=2) == 0.1  # loading is hidden
    assert expected(0.1, 0.02, threads=2, workers=1, cores=2) == pytest.approx(0.11)  # or shared
    assert expected(0.1, 0.4, threads=1, workers=2, cores=8) == 0.2  # loading is the limit
    assert expected(0.1, 0.4, threads=1, workers=2, cores=None) == 0.2


def test_probing_changes_nothing_but_knows_the_machine(train_set: DetectionDataset) -> None:
    chosen = tiny()
    network = fresh_network(chosen, 0)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    threads = torch.get_num_threads()
    found = probe(network, chosen, ("o2m", "o2o"), train_set, CPU, Wanted())
    assert same(before, network.state_dict()) and torch.get_num_threads() == threads
    assert (1, "fp32") in found.steps and (threads, "fp32") in found.steps
    assert 1 <= found.best.threads <= threads
    assert 0 <= found.best.workers <= processors() and found.seconds < 30
    step = found.steps[found.best.threads, found.best.precision]
    assert found.images_per_second <= 1 / step
    wanted = Wanted(threads=1, workers=3)
    told = probe(network, chosen, ("o2o",), train_set, CPU, wanted).best
    assert (told.threads, told.workers) == (1, 3)
    assert str(told).startswith("--threads 1 --workers 3 --precision ")


def test_a_disturbance_does_not_decide(
    monkeypatch: pytest.MonkeyPatch, train_set: DetectionDataset, clock: Clock
) -> None:
    """bf16 is the fastest, and its first timed step takes ten times as long."""
    steps: list[str] = []

    def step(self: Stepper, *_: Any) -> list[StepLosses]:
        kind = "fp32" if self._dtype is None else "bf16"
        steps.append(kind)
        disturbed = kind == "bf16" and steps.count(kind) == 2
        clock.now += {"fp32": 0.2, "bf16": 0.1}[kind] * (10 if disturbed else 1)
        return []

    monkeypatch.setattr(Stepper, "__call__", step)
    monkeypatch.setattr("nmsfree_training.loop.probe.time", clock)
    monkeypatch.setattr("nmsfree_training.loop.probe.has_bf16", lambda _: True)
    monkeypatch.setattr("nmsfree_training.loop.probe._time_loading", lambda *_: 1e-3)
    network = fresh_network(tiny(), 0)
    wanted = Wanted(threads=1, workers=0)
    assert probe(network, tiny(), ("o2o",), train_set, CPU, wanted).best.precision == "bf16"


# Advice

ENOUGH = ObjectSizes((256, 256), 100, 0, 5)
TINY = ObjectSizes((256, 256), 100, 40, 60)


def objects(sizes: ObjectSizes, proposed: ObjectSizes | None = None) -> Objects:
    return Objects(64, 100, 0, sizes, 0, (), proposed)


FLAT = tuple((epoch, 0.5) for epoch in range(1, 41))
RISING = tuple((epoch, epoch / 100) for epoch in range(1, 41))
GOOD: dict[str, Any] = {
    "steps": 5000,
    "per_epoch": 125,
    "ap": 0.5,
    "train_ap": 0.6,
    "history": FLAT,
    "objects": objects(ENOUGH),
    "silent": (),
    "from_scratch": True,
}


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({}, []),
        ({"train_ap": None}, []),
        (
            {"steps": 160, "per_epoch": 12},
            ["only 160 steps: networks need 1,000 or more; give --epochs 84,"],
        ),
        ({"train_ap": 0.9}, ["by heart: more pictures", "--imagenet"]),
        ({"train_ap": 0.9, "from_scratch": False}, ["by heart: more pictures"]),
        ({"history": RISING}, ["AP was still rising: give --epochs 80"]),
        ({"history": RISING, "steps": 4810}, ["AP was still rising: give --epochs 77"]),
        ({"history": RISING, "steps": 300}, ["only 300 steps"]),
        ({"objects": objects(TINY)}, ["40 (40%) of 100 objects", "cut the pictures into tiles"]),
        (
            {"objects": objects(TINY, ObjectSizes((512, 512), 100, 1, 3))},
            ["give --size 512 512; at 512 × 512 1 (1%)"],
        ),
        ({"silent": ("ant", "bee")}, ["nothing is found of ant, bee"]),
    ],
)
def test_advice_follows_from_the_figures(change: dict[str, Any], advice: list[str]) -> None:
    lines = list(Outcome(**(GOOD | change)).advice())
    assert len(lines) == min(1, len(advice))
    assert all(part in lines[0] for part in advice)
    if not change.get("from_scratch", True):
        assert "--imagenet" not in lines[0]


def test_a_sample_of_the_training_pictures(train_set: DetectionDataset, tmp_path: Path) -> None:
    assert len(train_sample(train_set, 3)) == 3 and len(train_sample(train_set, 300)) == 12
    gone = replace(train_set.samples[0], path=tmp_path / "gone.png")
    data = replace(train_set, samples=(gone, *train_set.samples[1:]))
    assert len(train_sample(data, 300)) == 11


@pytest.mark.slow
def test_a_run_concludes(digits: Path, tmp_path: Path) -> None:
    """It tells what it computes with, AP on both kinds of pictures, and advice; files have it."""
    out = tmp_path / "run"
    words = ["--data", digits, "--out", out, "--epochs", 1, "--batch-size", 6, "--no-tensorboard"]
    done = run_train(*words)
    assert done.exit_code == 0, done.output
    for line in (
        "fastest here: --threads",
        "recipe: fcos_e2e_nano's, with epochs 1,",
        "training images",
    ):
        assert line in done.stderr
    assert "advice: only 2 steps" in done.stderr
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["train.epochs"] == 1 and recipe["input_size"] == [256, 256]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 2 and 0 <= summary["AP_train"] <= 1
    assert summary["advice"][0].startswith("only 2 steps")
    assert "data" not in recipe
