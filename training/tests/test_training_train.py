"""The training loop on a dozen pictures: it learns, repeats, goes on, and says what is wrong."""

import itertools
import json
import multiprocessing
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nmsfree.datasets.formats.coco import DetectionDataset, Sample, load_coco
from nmsfree.errors import CheckpointError, DataError, MissingExtraError, NmsfreeError
from nmsfree_benchmarks.harness.machine import use_threads
from nmsfree_training.config import Preset, preset
from nmsfree_training.criterion.losses import detector_losses
from nmsfree_training.data.examples import LoaderError, MicroBatches
from nmsfree_training.data.loader import epoch_loader
from nmsfree_training.loop import checkpoints
from nmsfree_training.loop.run_config import Interrupted, RunConfig
from nmsfree_training.loop.start import count_objects
from nmsfree_training.loop.state import load_state, save_state
from nmsfree_training.loop.step import DivergedError, LossReader
from nmsfree_training.loop.trainer import Trainer
from nmsfree_training.loop.validate import analyse_best
from nmsfree_training.model.detector import Fcos
from nmsfree_training.monitor.callbacks import Callback, EpochEvent, StepEvent
from nmsfree_training.weights.checkpoint import load_checkpoint, save_checkpoint

EPOCHS = 2
BATCH = 4


def tiny(name: str = "fcos_e2e_nano", **recipe: Any) -> Preset:
    chosen = preset(name, 10)
    values = {"epochs": EPOCHS, "batch_size": BATCH, "warmup_iterations": 2} | recipe
    return replace(chosen, train=replace(chosen.train, **values))


def train(
    out: Path,
    data: DetectionDataset,
    chosen: Preset | None = None,
    val: DetectionDataset | None = None,
    **run: Any,
) -> Trainer:
    config = RunConfig(out=out, workers=0, **run)
    trainer = Trainer(chosen or tiny(), data, val, config)
    trainer.fit()
    return trainer


def weights(path: Path) -> dict[str, Tensor]:
    return dict(load_checkpoint(path).state)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def val_set(digits: Path) -> DetectionDataset:
    return load_coco(digits, "val")


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, train_set: DetectionDataset, val_set: DetectionDataset
) -> Path:
    """A finished run of two epochs with evaluation."""
    out = tmp_path_factory.mktemp("run") / "new" / "folder"
    train(out, train_set, val=val_set, provenance={"command": "nmsfree train …", "seed": "0"})
    return out


def test_a_run_writes_checkpoints_and_metrics(finished: Path) -> None:
    names = sorted(p.name for p in finished.iterdir())
    states = ["last.state.pt", "previous.state.pt"]
    assert names == [
        "best.safetensors",
        "last.safetensors",
        *states[:1],
        "metrics.jsonl",
        states[1],
    ]
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == [1, 2]
    for record in records:
        parts = [record[f"{head}_{part}"] for head in ("o2m", "o2o") for part in ("cls", "box")]
        assert record["loss"] == pytest.approx(
            parts[0] + parts[2] + 2 * (parts[1] + parts[3]), 1e-3
        )
        assert 0 <= record["AP"] <= 1
        assert record["seconds"] > 0 and record["lr"] > 0
    last = load_checkpoint(finished / "last.safetensors")
    assert last.provenance["epoch"] == "2"
    assert last.provenance["command"] == "nmsfree train …"
    assert last.provenance["AP"] == f"{records[1]['AP']:.4f}"
    assert last.class_names == tuple("0123456789") and last.category_ids == tuple(range(1, 11))
    position = load_state(finished)[0].position
    assert (position["epoch"], position["step"], position["iteration"]) == (2, 0, 6)
    assert position["best"] == max(r["AP"] for r in records)


def test_training_changes_every_weight(finished: Path) -> None:
    torch.manual_seed(0)  # the run's seed, so the run's start
    start, end = Fcos(tiny().model).state_dict(), weights(finished / "last.safetensors")
    assert [k for k in start if torch.equal(start[k], end[k])] == []


def test_same_seed_same_weights(
    finished: Path, tmp_path: Path, train_set: DetectionDataset
) -> None:
    torch.rand(7)  # the state of the generator before does not matter
    train(tmp_path / "again", train_set)
    train(tmp_path / "other", train_set, seed=1)
    first = weights(finished / "last.safetensors")
    assert same(weights(tmp_path / "again" / "last.safetensors"), first)
    assert not same(weights(tmp_path / "other" / "last.safetensors"), first)


class Stop(Exception):
    """Power cut."""


class CutAt(Callback):
    """Stops the run after a step."""

    def __init__(self, epoch: int, step: int) -> None:
        self.at = epoch, step

    def on_step(self, event: StepEvent) -> None:
        if (event.epoch, event.step) == self.at:
            raise Stop


def records(out: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timing = ("seconds", "images_per_second", "wait_share")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


@pytest.mark.parametrize("save_minutes", [0.0, 10.0], ids=["every step", "every epoch"])
@pytest.mark.parametrize("name", ["fcos_e2e_nano", "fcos_rt_nano"])
def test_resume_equals_an_uninterrupted_run(
    name: str, save_minutes: float, tmp_path: Path, train_set: DetectionDataset
) -> None:
    recipe = {"optimizer": "sgd", "learning_rate": 0.02} if name == "fcos_rt_nano" else {}
    chosen = tiny(name, epochs=3, ema=0.9, **recipe)
    train(tmp_path / "whole", train_set, chosen)
    config = RunConfig(out=tmp_path / "cut", workers=0, save_minutes=save_minutes)
    with pytest.raises(Stop):
        Trainer(chosen, train_set, None, config, callback=CutAt(1, 2)).fit()
    at = load_state(tmp_path / "cut")[0].position
    assert (at["epoch"], at["step"]) == (1, 1 if save_minutes == 0 else 0)
    train(tmp_path / "cut", train_set, chosen, resume=True)
    for file in ("last", "best"):
        whole = weights(tmp_path / "whole" / f"{file}.safetensors")
        assert same(weights(tmp_path / "cut" / f"{file}.safetensors"), whole)
    states = [load_state(tmp_path / run)[0] for run in ("whole", "cut")]
    assert states[0].position["iteration"] == states[1].position["iteration"] == 9
    assert same(states[0].network, states[1].network)
    assert records(tmp_path / "whole") == records(tmp_path / "cut")


def test_a_request_to_stop_saves_within_the_epoch(
    tmp_path: Path, train_set: DetectionDataset
) -> None:
    chosen = tiny(epochs=2)
    train(tmp_path / "whole", train_set, chosen)
    asked = iter([False, False, True])
    config = RunConfig(out=tmp_path / "cut", workers=0, stop=lambda: next(asked))
    with pytest.raises(Interrupted, match="stopped and saved at epoch 1, step 2"):
        Trainer(chosen, train_set, None, config).fit()
    train(tmp_path / "cut", train_set, chosen, resume=True)
    whole, cut = (weights(tmp_path / run / "last.safetensors") for run in ("whole", "cut"))
    assert same(whole, cut)
    assert records(tmp_path / "whole") == records(tmp_path / "cut")


class KillLoaders(Callback):
    """As the system does where memory runs out."""

    def on_step(self, event: StepEvent) -> None:
        if event.iteration == 2:
            for child in multiprocessing.active_children():
                child.kill()
                child.join()


def test_a_killed_loader_loses_no_work(tmp_path: Path, train_set: DetectionDataset) -> None:
    chosen = tiny("fcos_rt_nano", batch_size=1, epochs=1)
    few = replace(train_set, samples=train_set.samples[:8])
    train(tmp_path / "whole", few, chosen)
    config = RunConfig(out=tmp_path / "cut", workers=1)
    with pytest.raises(LoaderError, match=r"fewer --workers .* saved at epoch 1, step .* --resume"):
        Trainer(chosen, few, None, config, callback=KillLoaders()).fit()
    assert 2 <= load_state(tmp_path / "cut")[0].position["step"] < 8
    train(tmp_path / "cut", few, chosen, resume=True)
    whole, cut = (weights(tmp_path / run / "last.safetensors") for run in ("whole", "cut"))
    assert same(whole, cut)


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int, error: Exception) -> None:
    """Loading the batch of this number (from 1) fails."""
    asked, make = itertools.count(1), MicroBatches.__getitem__

    def faulty(self: MicroBatches, index: int) -> Any:
        if next(asked) == number:
            raise error
        return make(self, index)

    monkeypatch.setattr(MicroBatches, "__getitem__", faulty)


@pytest.mark.parametrize("number", [1, 3])
def test_a_fault_while_loading_saves_what_is_done(
    number: int, tmp_path: Path, train_set: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, number, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, train_set, tiny("fcos_rt_nano"))
    if number == 1:  # nothing is done, so nothing is in the way of another start
        assert not (tmp_path / "last.state.pt").exists()
    else:
        assert load_state(tmp_path)[0].position["step"] == 2


def test_a_job_that_is_ended_with_its_loaders_is_stopped_not_failed(
    tmp_path: Path, train_set: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler sends SIGTERM to every process of a job."""
    fail_at(monkeypatch, 2, LoaderError("ended"))
    asked = iter([False, True])
    config = RunConfig(out=tmp_path, workers=0, stop=lambda: next(asked))
    with pytest.raises(Interrupted, match="stopped and saved at epoch 1, step 1"):
        Trainer(tiny("fcos_rt_nano"), train_set, None, config).fit()


def test_an_error_of_any_kind_says_where_the_run_was_saved(
    tmp_path: Path, train_set: DetectionDataset
) -> None:
    trainer = Trainer(tiny(), train_set, None, RunConfig(out=tmp_path, workers=0))
    trainer.position.iteration = 1
    with pytest.raises(
        MissingExtraError, match=r"nmsfree\[pillow\].*; saved at epoch 1, step 0: go"
    ):
        trainer._give_up(MissingExtraError("reading pictures", "nmsfree[pillow]"))


def test_resuming_a_finished_run_changes_nothing(
    finished: Path, train_set: DetectionDataset
) -> None:
    before = {p.name: p.read_bytes() for p in finished.iterdir()}
    train(finished, train_set, provenance={"command": "another"}, resume=True)
    assert {p.name: p.read_bytes() for p in finished.iterdir()} == before


def test_resume_needs_a_whole_and_fitting_run(
    finished: Path, tmp_path: Path, train_set: DetectionDataset
) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        train(tmp_path / "nothing", train_set, resume=True)
    with pytest.raises(CheckpointError, match=r"name = fcos_e2e_nano, this run has fcos_o2o_nano"):
        train(finished, train_set, tiny("fcos_o2o_nano"), resume=True)
    with pytest.raises(CheckpointError, match="seed = 0, this run has 1: give the options"):
        train(finished, train_set, seed=1, resume=True)


def test_a_damaged_state_goes_on_from_the_one_before(
    tmp_path: Path, train_set: DetectionDataset
) -> None:
    chosen = tiny(epochs=2)
    train(tmp_path / "whole", train_set, chosen)
    train(tmp_path / "cut", train_set, chosen)
    (tmp_path / "cut" / "last.state.pt").write_bytes(b"damaged")
    told: list[str] = []

    class Listener(Callback):
        def log(self, text: str) -> None:
            told.append(text)

    config = RunConfig(out=tmp_path / "cut", workers=0, resume=True)
    Trainer(chosen, train_set, None, config, callback=Listener()).fit()
    assert "last.state.pt: damaged" in told[0] and "going on from previous.state.pt" in told[0]
    assert told[1] == "going on at epoch 2, step 3 of 2 epochs"
    whole, cut = (weights(tmp_path / run / "last.safetensors") for run in ("whole", "cut"))
    assert same(whole, cut)


def test_what_replaces_a_damaged_state_is_not_lost_to_it(
    tmp_path: Path, train_set: DetectionDataset
) -> None:
    """Resumed from the state before, and killed before anything is saved: still two good tries."""
    train(tmp_path, train_set, tiny(epochs=1))
    (tmp_path / "last.state.pt").write_bytes(b"damaged")
    config = RunConfig(out=tmp_path, workers=0, resume=True)
    trainer = Trainer(tiny(epochs=1), train_set, None, config)
    position, messages = trainer.checkpoints.load()
    assert len(messages) == 1
    trainer.checkpoints.save(position)
    (tmp_path / "last.state.pt").unlink()  # as between the two renames
    assert load_state(tmp_path)[0].position == vars(position)


class Killed(Exception):
    """SIGKILL at the worst moment."""


def test_killed_between_checkpoint_and_state(
    tmp_path: Path, train_set: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tiny(epochs=2)
    train(tmp_path / "whole", train_set, chosen)

    def write_and_die(*arguments: Any) -> None:
        save_checkpoint(*arguments)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints, "save_checkpoint", write_and_die)
        train(tmp_path / "cut", train_set, chosen)
    train(tmp_path / "cut", train_set, chosen, resume=True)
    for name in ("last", "best"):
        files = [tmp_path / run / f"{name}.safetensors" for run in ("whole", "cut")]
        assert same(weights(files[0]), weights(files[1]))
    assert records(tmp_path / "whole") == records(tmp_path / "cut")


def test_an_interrupt_at_the_very_end_leaves_the_state_alone(
    tmp_path: Path, train_set: DetectionDataset, val_set: DetectionDataset
) -> None:
    """The last analysis runs on the best weights; what is saved meanwhile are the last ones."""
    asked: list[bool] = []
    config = RunConfig(out=tmp_path, workers=0, stop=lambda: bool(asked), evaluate_every=1)
    trainer = Trainer(tiny(ema=0.9), train_set, val_set, config)
    trainer.fit()
    before = load_state(tmp_path)[0]
    asked.append(True)
    with pytest.raises(Interrupted):
        analyse_best(trainer.validator, trainer.run.out)
    after = load_state(tmp_path)[0]
    assert same(before.network, after.network) and before.position == after.position
    asked.clear()
    analysis = analyse_best(trainer.validator, trainer.run.out)
    best = load_checkpoint(tmp_path / "best.safetensors")
    assert analysis is not None and best.thresholds == analysis.thresholds
    assert f"{analysis.metrics.ap:.4f}" == best.provenance["AP"]
    assert {"confusion_matrix.png", "pr_curve.png"} <= {p.name for p in tmp_path.iterdir()}


def other_data(dataset: DetectionDataset, change: str) -> DetectionDataset:
    first, second, *others = dataset.samples
    match change:
        case "box":
            return replace(
                dataset, samples=(replace(first, boxes=first.boxes + 1), second, *others)
            )
        case "class":
            labels = (first.labels + 1) % len(dataset.class_names)
            return replace(dataset, samples=(replace(first, labels=labels), second, *others))
        case "gone":
            return replace(dataset, samples=(second, *others))
        case "new":
            new = replace(first, path=first.path.with_name("new.png"))
            return replace(dataset, samples=(*dataset.samples, new))
        case "order":
            return replace(dataset, samples=(second, first, *others))
    return replace(dataset, category_ids=tuple(i + 5 for i in dataset.category_ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("box", r"annotations are not .*, the objects of 1 image \({first}\) differ"),
        ("class", r"annotations are not .*, the objects of 1 image \({first}\) differ"),
        ("gone", r"images are not .*: 1 image \({first}\) gone: bring back"),
        ("new", r"images are not .*: 1 image \(new\.png\) new: bring back"),
        ("order", "images are not .*: in another order"),
        ("ids", r"was started with category_ids = \[1, 2"),
    ],
)
def test_resuming_on_other_data_says_what_differs(
    tmp_path: Path, train_set: DetectionDataset, change: str, message: str
) -> None:
    few = replace(train_set, samples=train_set.samples[:4])
    train(tmp_path, few, tiny("fcos_rt_nano", epochs=1))
    expected = message.format(first=few.samples[0].path.name)
    with pytest.raises(CheckpointError, match=expected) as caught:
        train(tmp_path, other_data(few, change), tiny("fcos_rt_nano", epochs=1), resume=True)
    assert not re.search("[0-9a-f]{8}", str(caught.value).removeprefix(str(tmp_path)))


def test_resuming_on_other_pictures_is_told(tmp_path: Path, train_set: DetectionDataset) -> None:
    """Also where the file has its old length; one that is missing or came back is no other."""
    few = replace(train_set, samples=train_set.samples[:4])
    copies = []
    for sample in few.samples:
        path = tmp_path / "set" / sample.path.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(sample.path.read_bytes())
        copies.append(replace(sample, path=path))
    few = replace(few, samples=tuple(copies))
    chosen, out = tiny("fcos_rt_nano", epochs=1), tmp_path / "out"
    config = RunConfig(out=out, workers=0, resume=True)
    train(out, few, chosen)
    assert Trainer(chosen, few, None, config).checkpoints.load()[1] == []
    path = copies[2].path
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (told,) = Trainer(chosen, few, None, config).checkpoints.load()[1]
    assert f"other pictures than the run was started with: 1 image ({path.name})" in told
    path.unlink()
    assert Trainer(chosen, few, None, config).checkpoints.load()[1] == []


def test_a_validation_set_is_checked_before_training(
    tmp_path: Path, train_set: DetectionDataset, val_set: DetectionDataset
) -> None:
    empty = val_set.samples[0]
    empty = replace(
        empty, boxes=empty.boxes[:0], labels=empty.labels[:0], iscrowd=empty.iscrowd[:0]
    )
    with pytest.raises(DataError, match="no objects to find in split 'val'"):
        train(tmp_path, train_set, val=replace(val_set, samples=(empty,)))
    gone = replace(val_set.samples[0], path=tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"gone\.png: no such file \(1 of 4 images"):
        train(tmp_path, train_set, val=replace(val_set, samples=(*val_set.samples, gone)))
    assert not (tmp_path / "last.state.pt").exists()


def test_more_epochs_can_be_added(tmp_path: Path, train_set: DetectionDataset) -> None:
    train(tmp_path, train_set, tiny(epochs=1))
    told: list[str] = []

    class Listener(Callback):
        def log(self, text: str) -> None:
            told.append(text)

    config = RunConfig(out=tmp_path, workers=0, resume=True)
    Trainer(tiny(epochs=2), train_set, None, config, callback=Listener()).fit()
    assert "was started for 1 epochs, now it is 2" in told[0]
    assert [r["epoch"] for r in records(tmp_path)] == [1, 2]


def test_other_threads_are_told_when_a_run_goes_on(
    tmp_path: Path, train_set: DetectionDataset
) -> None:
    few = replace(train_set, samples=train_set.samples[:4])
    chosen = tiny("fcos_rt_nano", epochs=1)
    config = RunConfig(out=tmp_path, workers=0, resume=True)
    with use_threads(1):
        train(tmp_path, few, chosen)
        assert Trainer(chosen, few, None, config).checkpoints.load()[1] == []
    with use_threads(2):
        (told,) = Trainer(chosen, few, None, config).checkpoints.load()[1]
    assert "threads = 1 is now 2" in told and "not be bit for bit" in told
    state = load_state(tmp_path)[0]
    older = {k: v for k, v in state.recipe.items() if not k.startswith("machine.")}
    save_state(replace(state, recipe=older), tmp_path)  # it does not know: nothing to say
    assert Trainer(chosen, few, None, config).checkpoints.load()[1] == []


def test_every_nth_checkpoint_is_kept(tmp_path: Path, train_set: DetectionDataset) -> None:
    train(tmp_path, train_set, tiny("fcos_rt_nano", epochs=4), keep_every=2)
    kept = sorted(p.name for p in tmp_path.glob("epoch_*"))
    assert kept == ["epoch_0002.safetensors", "epoch_0004.safetensors"]
    last = weights(tmp_path / "last.safetensors")
    assert same(weights(tmp_path / kept[1]), last) and not same(weights(tmp_path / kept[0]), last)


def test_without_validation_the_best_weights_are_the_last(
    tmp_path: Path, train_set: DetectionDataset
) -> None:
    train(tmp_path, train_set)
    best, last = (load_checkpoint(tmp_path / f"{n}.safetensors") for n in ("best", "last"))
    assert best.provenance["epoch"] == last.provenance["epoch"] == "2"
    assert same(dict(best.state), dict(last.state))
    assert "AP" not in last.provenance


@pytest.mark.parametrize(("every", "measured"), [(0, [3]), (2, [2, 3]), (1, [1, 2, 3])])
def test_when_ap_is_measured(
    every: int,
    measured: list[int],
    tmp_path: Path,
    train_set: DetectionDataset,
    val_set: DetectionDataset,
) -> None:
    few = replace(train_set, samples=train_set.samples[:4])
    train(tmp_path, few, tiny("fcos_rt_nano", epochs=3), val_set, evaluate_every=every)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["epoch"] for r in records if "AP" in r] == measured
    best = load_checkpoint(tmp_path / "best.safetensors").provenance
    assert best["AP"] == f"{max(r.get('AP', 0) for r in records):.4f}"
    assert int(best["epoch"]) in measured


def test_progress_is_told(tmp_path: Path, train_set: DetectionDataset) -> None:
    steps: list[StepEvent] = []
    epochs: list[EpochEvent] = []

    class Listener(Callback):
        def on_step(self, event: StepEvent) -> None:
            steps.append(event)

        def on_epoch(self, event: EpochEvent) -> None:
            epochs.append(event)

    config = RunConfig(out=tmp_path, workers=0)
    Trainer(tiny(), train_set, None, config, callback=Listener()).fit()
    assert [(s.epoch, s.step, s.steps, s.iteration) for s in steps] == [
        (epoch, step, 3, 3 * epoch + step) for epoch in range(2) for step in (1, 2, 3)
    ]
    assert list(steps[0].losses) == ["loss", "o2m_cls", "o2m_box", "o2o_cls", "o2o_box"]
    assert steps[0].learning_rate < steps[2].learning_rate > steps[-1].learning_rate
    assert all(s.images == BATCH and 0 < s.wait < s.seconds for s in steps)
    assert all(s.grad_norm is not None and s.grad_norm > 0 for s in steps)
    assert [e.record["epoch"] for e in epochs] == [1, 2]


def test_steps_whose_losses_come_later_are_told_all_the_same(
    tmp_path: Path, train_set: DetectionDataset
) -> None:
    """As on a GPU, whose losses are read two steps later."""
    steps: list[StepEvent] = []

    class Listener(Callback):
        def on_step(self, event: StepEvent) -> None:
            steps.append(event)

    records = {}
    for delay in (0, 2):
        config = RunConfig(out=tmp_path / str(delay), workers=0)
        trainer = Trainer(tiny(), train_set, None, config, callback=Listener())
        trainer.step._reader = LossReader(delay, trainer.world, skips=False)
        trainer.fit()
        lines = (config.out / "metrics.jsonl").read_text().splitlines()
        records[delay] = [json.loads(line)["loss"] for line in lines]
    assert records[2] == records[0]
    at_once, later = steps[:6], steps[6:]
    assert [s.iteration for s in later] == [s.iteration for s in at_once]
    assert [bool(s.losses) for s in later] == [False, False, True] * 2  # three steps an epoch
    assert [s.grad_norm is None for s in later] == [True, True, False] * 2
    assert later[2].losses == at_once[0].losses


@pytest.mark.parametrize("name", ["fcos_rt_nano", "fcos_o2o_nano", "fcos_e2e_nano"])
def test_one_batch_can_be_learnt(name: str, tmp_path: Path, train_set: DetectionDataset) -> None:
    chosen = tiny(name, color_jitter=0.0, crop=0.5, warmup_iterations=0)
    config = RunConfig(out=tmp_path, workers=0)
    trainer = Trainer(chosen, train_set, None, config)
    batch = next(iter(epoch_loader(train_set, chosen, 0, 0, 0)))
    trainer.network.train()
    losses = [trainer.step([batch], i)[0].values["loss"] for i in range(25)]
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] < losses[10] < losses[2]
    predictions = trainer.network(batch.images)
    found = detector_losses(predictions, batch.targets, batch.padding)
    assert sum(loss.total.item() for loss in found.values()) < losses[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(precision: str, tmp_path: Path, train_set: DetectionDataset) -> None:
    few = replace(train_set, samples=train_set.samples[:4])
    trainer = train(tmp_path, few, precision=precision)
    assert trainer.step.scaler.is_enabled() == (precision == "fp16")
    assert all(p.dtype == torch.float32 for p in trainer.network.parameters())
    full = train(tmp_path / "full", few)
    assert not same(trainer.network.state_dict(), full.network.state_dict())


@pytest.mark.parametrize("norm", [None, 1e-3])
def test_gradients_are_clipped(
    norm: float | None, tmp_path: Path, train_set: DetectionDataset
) -> None:
    few = replace(train_set, samples=train_set.samples[:4])
    plain = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "warmup_iterations": 0}
    chosen = tiny("fcos_rt_nano", **plain, learning_rate=16.0, epochs=1, clip_norm=norm)
    network = train(tmp_path, few, chosen).network
    torch.manual_seed(0)
    start = dict(Fcos(chosen.model).named_parameters())
    change = [(p - start[name]).detach().norm() for name, p in network.named_parameters()]
    # One step of plain descent at a rate of 16 · 4/16 moves the weights by 4 × the gradient.
    moved = float(torch.stack(change).norm()) / 4
    assert moved == pytest.approx(norm, rel=1e-3) if norm else moved > 1e-2


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, train_set: DetectionDataset
) -> None:
    with pytest.raises(NmsfreeError, match=r"is (nan|inf) at iteration \d") as caught:
        train(tmp_path, train_set, tiny(learning_rate=1e25, warmup_iterations=0, epochs=5))
    names = [s.path.name for s in train_set.samples if s.path.name in str(caught.value)]
    assert len(names) == BATCH  # exactly the images of the batch are named
    assert caught.value.exit_status == 1


def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, train_set: DetectionDataset
) -> None:
    """A finite loss with an infinite gradient: the step is refused, the state before is kept."""
    chosen = tiny(warmup_iterations=0, clip_norm=None)
    config = RunConfig(out=tmp_path, workers=0, save_minutes=0.0)
    trainer = Trainer(chosen, train_set, None, config)

    def explode(grad: Tensor) -> Tensor:
        return grad * float("inf") if trainer.position.iteration == 3 else grad

    trainer.network.backbone.conv1.weight.register_hook(explode)
    with pytest.raises(NmsfreeError, match=r"the gradient's norm is (nan|inf) at iteration 3"):
        trainer.fit()
    state = load_state(tmp_path)[0]
    assert state.position["iteration"] == 2
    assert all(v.isfinite().all() for v in state.network.values())
    with torch.no_grad():
        trainer.network.backbone.conv1.weight.fill_(float("nan"))
    with pytest.raises(NmsfreeError, match=r"backbone\.conv1\.weight holds values .* not finite"):
        trainer.checkpoints.save(trainer.position)
    assert load_state(tmp_path)[0].position["iteration"] == 2
    train(tmp_path, train_set, chosen, resume=True)


def test_gradients_that_no_loss_scale_makes_finite(
    tmp_path: Path, train_set: DetectionDataset
) -> None:
    """With fp16 such steps are skipped, and their losses look well."""
    few = replace(train_set, samples=train_set.samples[:4])
    chosen = tiny("fcos_rt_nano", batch_size=2, epochs=2)
    config = RunConfig(out=tmp_path, workers=0, precision="fp16")
    trainer = Trainer(chosen, few, None, config)
    scale = trainer.step.scaler.state_dict() | {"scale": 2.0**-8}  # as after many such steps
    trainer.step.scaler.load_state_dict(scale)
    explode_at = {1, 3, 4}
    trainer.network.backbone.conv1.weight.register_hook(
        lambda grad: grad * float("inf") if trainer.position.iteration in explode_at else grad
    )
    with pytest.raises(DivergedError, match="2 of 2 steps had no finite gradient"):
        trainer.fit()
    (record,) = records(tmp_path)
    assert record["epoch"] == 1 and record["skipped"] == 1
    position = load_state(tmp_path)[0].position
    assert (position["epoch"], position["skipped"]) == (1, 0)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_batch_in_parts_descends_alike(
    parts: int, tmp_path: Path, train_set: DetectionDataset
) -> None:
    """Group norm sees single images, so only the losses' normalisers differ between parts."""
    few = replace(train_set, samples=train_set.samples[:4])
    plain = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "clip_norm": None}
    chosen = tiny("fcos_rt_nano", **plain, learning_rate=0.1, warmup_iterations=0, epochs=1)
    model = replace(chosen.model, head_norm="group", frozen_norm=True)
    whole = train(tmp_path / "whole", few, replace(chosen, model=model)).network
    cut = replace(chosen, model=model, train=replace(chosen.train, accumulate=parts))
    pieces = train(tmp_path / "pieces", few, cut).network
    torch.manual_seed(0)
    start = Fcos(model).state_dict()
    a, b = (
        torch.cat([(n.state_dict()[k] - v).flatten() for k, v in start.items()])
        for n in (whole, pieces)
    )
    assert torch.cosine_similarity(a, b, dim=0) > (0.9999 if parts == 1 else 0.9)
    assert float(a.norm() / b.norm()) == pytest.approx(1, abs=1e-6 if parts == 1 else 0.3)


def test_a_split_without_images(tmp_path: Path, train_set: DetectionDataset) -> None:
    with pytest.raises(DataError, match="no images to train on"):
        train(tmp_path, replace(train_set, samples=()))


def without_objects(sample: Sample) -> Sample:
    return replace(
        sample, boxes=sample.boxes[:0], labels=sample.labels[:0], iscrowd=sample.iscrowd[:0]
    )


def test_a_batch_without_objects_trains(tmp_path: Path, train_set: DetectionDataset) -> None:
    empty = [without_objects(s) for s in train_set.samples[1:4]]
    data = replace(train_set, samples=(train_set.samples[0], *empty))
    trainer = Trainer(tiny(batch_size=1), data, None, RunConfig(out=tmp_path, workers=0))
    losses: list[dict[str, float]] = []

    class Listener(Callback):
        def on_step(self, event: StepEvent) -> None:
            losses.append(event.losses)

    trainer.callback = Listener()
    trainer.fit()
    boxes = [(step["o2m_box"], step["o2o_box"]) for step in losses[:4]]
    assert boxes.count((0.0, 0.0)) == 3 and all(step["loss"] > 0 for step in losses)


def scaled(sample: Sample, factor: float) -> Sample:
    """Boxes shrunk towards their upper left."""
    corner = sample.boxes[:, :2]
    return replace(
        sample, boxes=np.hstack([corner, corner + factor * (sample.boxes[:, 2:] - corner)])
    )


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (without_objects, "found 0 boxes, 0 of them under 8 px .* and 0 crowd regions"),
        (
            lambda s: replace(s, iscrowd=np.ones(len(s.labels), bool)),
            r"found 0 boxes, 0 of them .* and \d+ crowd regions",
        ),
        (lambda s: scaled(s, 0.01), r"found (\d+) boxes, \1 of them under 8 px once resized"),
        (  # of a picture that cannot be read, and whose size is not known
            lambda s: replace(s, width=1, height=1, boxes=s.boxes + 50),
            r"found (\d+) boxes, \1 of them under 8 px",
        ),
    ],
    ids=["none", "crowd", "tiny", "unreadable"],
)
def test_a_split_without_an_object_to_train_on_is_refused(
    change: Callable[[Sample], Sample], found: str, tmp_path: Path, train_set: DetectionDataset
) -> None:
    data = replace(train_set, samples=tuple(change(s) for s in train_set.samples))
    with pytest.raises(DataError, match=f"no object to train on in the 12 images .* {found}"):
        train(tmp_path, data)
    assert list(tmp_path.iterdir()) == []
    one = replace(data, samples=(train_set.samples[0], *data.samples[1:]))
    Trainer(tiny(), one, None, RunConfig(out=tmp_path, workers=0))


def test_objects_that_are_too_small_are_counted(
    tmp_path: Path, train_set: DetectionDataset
) -> None:
    """At the size of the input, and at the largest that the recipe draws."""
    sample = train_set.samples[0]
    height, width = preset("fcos_e2e_nano").input_size
    boxes = np.array([[9, 9, 9 + side, 90] for side in (3, 5, 8, 40)], np.float32)
    four = replace(
        sample,
        width=width,
        height=height,
        boxes=boxes,
        labels=np.arange(4),
        iscrowd=boxes[:, 0] < 0,
    )
    data = replace(train_set, samples=(four,))
    objects = count_objects(data, tiny(scale=(0.5, 2.0)))
    assert (objects.images, objects.count, objects.small, objects.never) == (1, 4, 2, 1)
    assert objects.absent == tuple("0456789")
    assert "4 objects; 2 objects (50.0%) are under 8 px" in str(objects)
    assert "1 at no size of the recipe" in str(objects)
    assert count_objects(data, tiny()).never == 2
    double = replace(four, width=2 * width, height=2 * height)
    assert count_objects(replace(data, samples=(double,)), tiny()).small == 3
    config = RunConfig(out=tmp_path, workers=0)
    said = Trainer(tiny(), data, None, config).checkpoints.checkpoint({}).provenance
    assert said["objects"] == str(count_objects(data, tiny()))


def test_published_recipe_trains_at_small_size(tmp_path: Path, train_set: DetectionDataset) -> None:
    """SGD, multi-scale, frozen norms and stages: one step on two small pictures."""
    few = replace(train_set, samples=train_set.samples[:2])
    recipe = {"epochs": 1, "batch_size": 2, "warmup_iterations": 0}
    chosen = tiny("fcos_e2e_r18_3x", **recipe, short_sides=(64, 96), long_side=120)
    trainer = train(tmp_path, few, chosen)
    torch.manual_seed(0)
    fresh = Fcos(preset("fcos_e2e_r18_3x", 10).model).state_dict()
    for key, tensor in trainer.network.state_dict().items():
        frozen = key.startswith(("backbone.conv1", "backbone.layer1"))
        frozen |= ".bn" in key or "downsample.1" in key
        assert torch.equal(tensor, fresh[key]) == frozen, key
