"""The training loop on a dozen pictures: it learns, repeats, and says what is wrong."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nmsfree.datasets.formats.coco import DetectionDataset, Sample
from nmsfree.errors import DataError, NmsfreeError
from nmsfree_training.criterion.losses import head_losses
from nmsfree_training.data.loader import EpochLoader
from nmsfree_training.loop.start import count_objects
from nmsfree_training.loop.state import load_state
from nmsfree_training.loop.step import DivergedError, LossReader
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.checkpoint import load_checkpoint

from .runs import BATCH, Listener, Runs, records, same, tiny, weights, without_objects


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, train_set: DetectionDataset, val_set: DetectionDataset
) -> Path:
    """A finished run of two epochs with evaluation."""
    runs = Runs(tmp_path_factory.mktemp("run"), train_set)
    said = {"command": "nmsfree train …", "seed": "0"}
    return runs.train("new/folder", val=val_set, provenance=said).run.out


@pytest.mark.slow
def test_a_run_writes_checkpoints_and_metrics(finished: Path) -> None:
    files = {"best.safetensors", "last.safetensors", "last.state.pt", "previous.state.pt"}
    assert {p.name for p in finished.iterdir()} == files | {"metrics.jsonl", "recipe.json"}
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in lines] == [1, 2]
    for r in lines:
        cls, box = (sum(r[f"{head}_{part}"] for head in ("o2m", "o2o")) for part in ("cls", "box"))
        assert r["loss"] == pytest.approx(cls + 2 * box, 1e-3)
        assert 0 <= r["AP"] <= 1
        assert r["seconds"] > 0 and r["lr"] > 0
    last = load_checkpoint(finished / "last.safetensors")
    assert last.provenance["epoch"] == "2"
    assert last.provenance["command"] == "nmsfree train …"
    assert last.provenance["AP"] == f"{lines[1]['AP']:.4f}"
    assert last.class_names == tuple("0123456789") and last.category_ids == tuple(range(1, 11))
    position = load_state(finished)[0].position
    assert (position["epoch"], position["step"], position["iteration"]) == (2, 0, 6)
    assert position["best"] == max(r["AP"] for r in lines)


def test_training_changes_every_weight(finished: Path) -> None:
    torch.manual_seed(0)  # the run's seed, so the run's start
    start, end = Fcos(tiny().model).state_dict(), weights(finished / "last.safetensors")
    assert [k for k in start if torch.equal(start[k], end[k])] == []


@pytest.mark.slow
def test_same_seed_same_weights(finished: Path, runs: Runs) -> None:
    torch.rand(7)  # the state of the generator before does not matter
    runs.train("again")
    runs.train("other", seed=1)
    first = weights(finished / "last.safetensors")
    assert same(weights(runs.file(run="again")), first)
    assert not same(weights(runs.file(run="other")), first)
    best, last = (load_checkpoint(runs.file(f"{n}.safetensors", "again")) for n in ("best", "last"))
    assert best.provenance["epoch"] == last.provenance["epoch"] == "2"  # without evaluation
    assert same(dict(best.state), dict(last.state)) and "AP" not in last.provenance


def test_a_validation_set_is_checked_before_training(
    runs: Runs, tmp_path: Path, val_set: DetectionDataset
) -> None:
    empty = replace(val_set, samples=(without_objects(val_set.samples[0]),))
    with pytest.raises(DataError, match="no objects to find in split 'val'"):
        runs.train(val=empty)
    gone = replace(val_set.samples[0], path=tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"gone\.png: no such file \(1 of 4 images"):
        runs.train(val=replace(val_set, samples=(*val_set.samples, gone)))
    assert not runs.file("last.state.pt").exists()


def test_every_nth_checkpoint_is_kept(runs: Runs) -> None:
    out = runs.train(chosen=tiny("fcos_rt_nano", epochs=4), keep_every=2).run.out
    two, four = sorted(out.glob("epoch_*"))
    assert (two.name, four.name) == ("epoch_0002.safetensors", "epoch_0004.safetensors")
    last = weights(runs.file())
    assert same(weights(four), last) and not same(weights(two), last)


@pytest.mark.parametrize(("every", "measured"), [(0, [3]), (2, [2, 3]), (1, [1, 2, 3])])
def test_when_ap_is_measured(
    every: int, measured: list[int], runs: Runs, val_set: DetectionDataset
) -> None:
    chosen = tiny("fcos_rt_nano", epochs=3)
    out = runs.few.train(chosen=chosen, val=val_set, evaluate_every=every).run.out
    lines = records(out)
    assert [r["epoch"] for r in lines if "AP" in r] == measured
    best = load_checkpoint(out / "best.safetensors").provenance
    assert best["AP"] == f"{max(r.get('AP', 0) for r in lines):.4f}"
    assert int(best["epoch"]) in measured


@pytest.mark.slow
def test_steps_whose_losses_come_later_are_told_all_the_same(runs: Runs) -> None:
    """As on a GPU, whose losses are read two steps later."""
    listeners = {0: Listener(), 2: Listener()}
    for delay, listener in listeners.items():
        trainer = runs.trainer(str(delay), callback=listener)
        trainer.step._reader = LossReader(delay, trainer.world, skips=False)
        trainer.fit()
    assert records(runs.folder / "2") == records(runs.folder / "0")
    at_once, later = (listener.steps for listener in listeners.values())
    assert [(s.epoch, s.step, s.steps, s.iteration) for s in at_once] == [
        (epoch, step, 3, 3 * epoch + step) for epoch in range(2) for step in (1, 2, 3)
    ]
    assert list(at_once[0].losses) == ["loss", "o2m_cls", "o2m_box", "o2o_cls", "o2o_box"]
    assert at_once[0].learning_rate < at_once[2].learning_rate > at_once[-1].learning_rate
    assert all(s.images == BATCH and 0 < s.wait < s.seconds for s in at_once)
    assert all(s.grad_norm is not None and s.grad_norm > 0 for s in at_once)
    assert [e.record["epoch"] for e in listeners[0].epochs] == [1, 2]
    assert [s.iteration for s in later] == [s.iteration for s in at_once]
    assert [bool(s.losses) for s in later] == [False, False, True] * 2  # three steps an epoch
    assert [s.grad_norm is None for s in later] == [True, True, False] * 2
    assert later[2].losses == at_once[0].losses


@pytest.mark.parametrize("name", ["fcos_rt_nano", "fcos_o2o_nano", "fcos_e2e_nano"])
def test_one_batch_can_be_learnt(name: str, runs: Runs) -> None:
    chosen = tiny(name, color_jitter=0.0, crop=0.5, warmup_iterations=0)
    trainer = runs.trainer(chosen=chosen)
    batch = next(iter(EpochLoader(runs.data, chosen, 0, 0, 0)))
    trainer.network.train()
    losses = [trainer.step([batch], i)[0].values["loss"] for i in range(25)]
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] < losses[10] < losses[2]
    found = [
        head_losses(own, batch.targets, getattr(chosen.train, head), batch.padding).total.item()
        for head, own in trainer.network(batch.images).items()
    ]
    assert sum(found) < losses[0]


@pytest.mark.slow
def test_half_precision_trains(runs: Runs) -> None:
    trained = {p: runs.few.train(p, precision=p) for p in ("fp32", "bf16", "fp16")}
    for precision, trainer in trained.items():
        assert trainer.step.scaler.is_enabled() == (precision == "fp16")
        assert all(p.dtype == torch.float32 for p in trainer.network.parameters())
    full, *half = (trainer.network.state_dict() for trainer in trained.values())
    assert not any(same(state, full) for state in half)


PLAIN = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "warmup_iterations": 0}


@pytest.mark.parametrize("norm", [None, 1e-3])
def test_gradients_are_clipped(norm: float | None, runs: Runs) -> None:
    chosen = tiny("fcos_rt_nano", **PLAIN, learning_rate=16.0, epochs=1, clip_norm=norm)
    network = runs.few.train(chosen=chosen).network
    torch.manual_seed(0)
    start = dict(Fcos(chosen.model).named_parameters())
    change = [(p - start[name]).detach().norm() for name, p in network.named_parameters()]
    # One step of plain descent at a rate of 16 · 4/16 moves the weights by 4 × the gradient.
    moved = float(torch.stack(change).norm()) / 4
    assert moved == pytest.approx(norm, rel=1e-3) if norm else moved > 1e-2


@pytest.mark.parametrize("parts", [1, 2])
def test_a_batch_in_parts_descends_alike(parts: int, runs: Runs) -> None:
    """Group norm sees single images, so only the losses' normalisers differ between parts."""
    chosen = tiny("fcos_rt_nano", **PLAIN, clip_norm=None, learning_rate=0.1, epochs=1)
    chosen = replace(chosen, model=replace(chosen.model, head_norm="group", frozen_norm=True))
    whole = runs.few.train("whole", chosen).network
    cut = replace(chosen, train=replace(chosen.train, accumulate=parts))
    pieces = runs.few.train("pieces", cut).network
    torch.manual_seed(0)
    start = Fcos(chosen.model).state_dict()
    a, b = (
        torch.cat([(n.state_dict()[k] - v).flatten() for k, v in start.items()])
        for n in (whole, pieces)
    )
    assert torch.cosine_similarity(a, b, dim=0) > (0.9999 if parts == 1 else 0.9)
    assert float(a.norm() / b.norm()) == pytest.approx(1, abs=1e-6 if parts == 1 else 0.3)


@pytest.mark.slow
def test_published_recipe_trains_at_small_size(runs: Runs) -> None:
    """SGD, multi-scale, frozen norms and stages: one step on two small pictures."""
    recipe = {"epochs": 1, "batch_size": 2, "warmup_iterations": 0}
    chosen = tiny("fcos_e2e_r18_3x", **recipe, short_sides=(64, 96), long_side=120)
    few = replace(runs.data, samples=runs.data.samples[:2])
    trainer = replace(runs, data=few).train(chosen=chosen)
    torch.manual_seed(0)
    fresh = Fcos(chosen.model).state_dict()
    for key, tensor in trainer.network.state_dict().items():
        frozen = key.startswith(("backbone.conv1", "backbone.layer1"))
        frozen |= ".bn" in key or "downsample.1" in key
        assert torch.equal(tensor, fresh[key]) == frozen, key


# What is not finite


def test_a_loss_that_is_not_finite_stops_the_run(runs: Runs) -> None:
    with pytest.raises(NmsfreeError, match=r"is (nan|inf) at iteration \d") as caught:
        runs.train(chosen=tiny(learning_rate=1e25, warmup_iterations=0, epochs=5))
    names = [s.path.name for s in runs.data.samples if s.path.name in str(caught.value)]
    assert len(names) == BATCH  # exactly the images of the batch are named
    assert caught.value.exit_status == 1


@pytest.mark.slow
def test_weights_that_are_not_finite_are_never_saved(runs: Runs) -> None:
    """A finite loss with an infinite gradient: the step is refused, the state before is kept."""
    chosen = tiny(warmup_iterations=0, clip_norm=None)
    trainer = runs.trainer(chosen=chosen, save_minutes=0.0)

    def explode(grad: Tensor) -> Tensor:
        return grad * float("inf") if trainer.position.iteration == 3 else grad

    trainer.network.backbone.conv1.weight.register_hook(explode)
    with pytest.raises(NmsfreeError, match=r"the gradient's norm is (nan|inf) at iteration 3"):
        trainer.fit()
    state = load_state(trainer.run.out)[0]
    assert state.position["iteration"] == 2
    assert all(v.isfinite().all() for v in state.network.values())
    with torch.no_grad():
        trainer.network.backbone.conv1.weight.fill_(float("nan"))
    with pytest.raises(NmsfreeError, match=r"backbone\.conv1\.weight holds values .* not finite"):
        trainer.checkpoints.save(trainer.position)
    assert load_state(trainer.run.out)[0].position["iteration"] == 2
    runs.train(chosen=chosen, resume=True)


def test_gradients_that_no_loss_scale_makes_finite(runs: Runs) -> None:
    """With fp16 such steps are skipped, and their losses look well."""
    chosen = tiny("fcos_rt_nano", batch_size=2, epochs=2)
    trainer = runs.few.trainer(chosen=chosen, precision="fp16")
    scale = trainer.step.scaler.state_dict() | {"scale": 2.0**-8}  # as after many such steps
    trainer.step.scaler.load_state_dict(scale)
    explode_at = {1, 3, 4}
    trainer.network.backbone.conv1.weight.register_hook(
        lambda grad: grad * float("inf") if trainer.position.iteration in explode_at else grad
    )
    with pytest.raises(DivergedError, match="2 of 2 steps had no finite gradient"):
        trainer.fit()
    (record,) = records(trainer.run.out)
    assert record["epoch"] == 1 and record["skipped"] == 1
    position = load_state(trainer.run.out)[0].position
    assert (position["epoch"], position["skipped"]) == (1, 0)


# Objects


def test_a_batch_without_objects_trains(runs: Runs) -> None:
    first, *others = runs.few.data.samples
    data = replace(runs.data, samples=(first, *map(without_objects, others)))
    listener = Listener()
    replace(runs, data=data).train(chosen=tiny(batch_size=1), callback=listener)
    losses = [step.losses for step in listener.steps[:4]]
    boxes = [(step["o2m_box"], step["o2o_box"]) for step in losses]
    assert boxes.count((0.0, 0.0)) == 3 and all(step["loss"] > 0 for step in losses)


def shrunk(sample: Sample) -> Sample:
    """Boxes shrunk a hundredfold towards their upper left."""
    corner = sample.boxes[:, :2]
    boxes = np.hstack([corner, corner + 0.01 * (sample.boxes[:, 2:] - corner)])
    return replace(sample, boxes=boxes)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (without_objects, "found 0 boxes, 0 of them under 8 px .* and 0 crowd regions"),
        (
            lambda s: replace(s, iscrowd=np.ones(len(s.labels), bool)),
            r"found 0 boxes, 0 of them .* and \d+ crowd regions",
        ),
        (shrunk, r"found (\d+) boxes, \1 of them under 8 px once resized"),
        (  # of a picture that cannot be read, and whose size is not known
            lambda s: replace(s, width=1, height=1, boxes=s.boxes + 50),
            r"found (\d+) boxes, \1 of them under 8 px",
        ),
        (None, "no images to train on"),
    ],
    ids=["none", "crowd", "tiny", "unreadable", "no images"],
)
def test_a_split_without_an_object_to_train_on_is_refused(
    change: Callable[[Sample], Sample] | None, found: str, runs: Runs
) -> None:
    samples = tuple(map(change, runs.data.samples)) if change else ()
    if change:
        found = f"no object to train on in the 12 images .* {found}"
    with pytest.raises(DataError, match=found):
        replace(runs, data=replace(runs.data, samples=samples)).train()
    assert list(runs.folder.iterdir()) == []
    one = replace(runs.data, samples=(runs.data.samples[0], *samples[1:]))
    replace(runs, data=one).trainer()


def test_objects_that_are_too_small_are_counted(runs: Runs) -> None:
    """At the size of the input, and at the largest that the recipe draws."""
    height, width = tiny().input_size
    boxes = np.array([[9, 9, 9 + side, 90] for side in (3, 5, 8, 40)], np.float32)
    values: dict[str, Any] = {"boxes": boxes, "labels": np.arange(4), "iscrowd": boxes[:, 0] < 0}
    four = replace(runs.data.samples[0], width=width, height=height, **values)
    data = replace(runs.data, samples=(four,))
    objects = count_objects(data, tiny(scale=(0.5, 2.0)))
    assert (objects.images, objects.count, objects.sizes.tiny, objects.never) == (1, 4, 2, 1)
    assert objects.absent == tuple("0456789")
    assert "at 128 × 128 2 (50%) of 4 objects are under 8 px, 3 (75%) under 16 px" in str(objects)
    assert "not trained on at that size, 1 at none" in str(objects)
    assert objects.advice() is None  # the picture is no larger than the input
    assert count_objects(data, tiny()).never == 2
    double = replace(four, width=2 * width, height=2 * height)
    larger = count_objects(replace(data, samples=(double,)), tiny())
    assert larger.sizes.tiny == 3
    advice = larger.advice()
    assert advice is not None and "give --size 256 256; at 256 × 256 2 (50%) of 4" in advice
    said = replace(runs, data=data).trainer().checkpoints.checkpoint({}).provenance
    assert said["objects"] == str(count_objects(data, tiny()))
