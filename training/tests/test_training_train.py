"""The training loop on a dozen pictures: it learns, repeats, goes on, and says what is wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nmsfree.data.coco import DetectionDataset, load_coco
from nmsfree.errors import CheckpointError, DataError, NmsfreeError
from nmsfree_training.checkpoint import load_checkpoint
from nmsfree_training.config import Preset, preset
from nmsfree_training.detector import Fcos
from nmsfree_training.loader import epoch_loader
from nmsfree_training.losses import detector_losses
from nmsfree_training.train import Progress, RunConfig, Trainer
from nmsfree_training.train_state import load_state

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
    config = RunConfig(out=out, device=torch.device("cpu"), **run)
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
    assert names == ["best.safetensors", "last.safetensors", "last.state.pt", "metrics.jsonl"]
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
    state = load_state(finished / "last.state.pt")
    assert (state.epoch, state.iteration) == (2, 6)
    assert state.best == max(r["AP"] for r in records)


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


@pytest.mark.parametrize("name", ["fcos_e2e_nano", "fcos_rt_nano"])
def test_resume_equals_an_uninterrupted_run(
    name: str, tmp_path: Path, train_set: DetectionDataset
) -> None:
    recipe = {"optimizer": "sgd", "learning_rate": 0.02} if name == "fcos_rt_nano" else {}
    chosen = tiny(name, epochs=3, **recipe)
    train(tmp_path / "whole", train_set, chosen)

    def cut(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (1, 2):
            raise Stop

    config = RunConfig(out=tmp_path / "cut", device=torch.device("cpu"))
    with pytest.raises(Stop):
        Trainer(chosen, train_set, None, config, on_step=cut).fit()
    train(tmp_path / "cut", train_set, chosen, resume=True)
    for file in ("last", "best"):
        whole = weights(tmp_path / "whole" / f"{file}.safetensors")
        assert same(weights(tmp_path / "cut" / f"{file}.safetensors"), whole)
    states = [load_state(tmp_path / run / "last.state.pt") for run in ("whole", "cut")]
    assert states[0].iteration == states[1].iteration == 9
    lines = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "cut")]
    records = [[json.loads(line) for line in text.splitlines()] for text in lines]
    for one, other in zip(*records, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}


def test_resuming_a_finished_run_changes_nothing(
    finished: Path, train_set: DetectionDataset
) -> None:
    before = {p.name: p.read_bytes() for p in finished.iterdir()}
    train(finished, train_set, resume=True)
    assert {p.name: p.read_bytes() for p in finished.iterdir()} == before


def test_resume_needs_a_whole_and_fitting_run(
    finished: Path, tmp_path: Path, train_set: DetectionDataset
) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        train(tmp_path / "nothing", train_set, resume=True)
    with pytest.raises(CheckpointError, match="other settings than this run"):
        train(finished, train_set, tiny("fcos_o2o_nano"), resume=True)
    out = tmp_path / "mixed"
    train(out, train_set, tiny(epochs=1))
    (out / "last.state.pt").write_bytes((finished / "last.state.pt").read_bytes())
    with pytest.raises(
        CheckpointError, match="after epoch 1 beside a training state after epoch 2"
    ):
        train(out, train_set, resume=True)
    (out / "last.state.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="truncated or another format"):
        train(out, train_set, resume=True)
    torch.save({"epoch": 1}, out / "last.state.pt")
    with pytest.raises(CheckpointError, match="not a training state"):
        train(out, train_set, resume=True)


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
    steps: list[Progress] = []
    epochs: list[dict[str, float]] = []
    config = RunConfig(out=tmp_path, device=torch.device("cpu"))
    Trainer(tiny(), train_set, None, config, steps.append, epochs.append).fit()
    assert [(s.epoch, s.step, s.steps) for s in steps] == [
        (epoch, step, 3) for epoch in range(2) for step in (1, 2, 3)
    ]
    assert list(steps[0].losses) == ["loss", "o2m_cls", "o2m_box", "o2o_cls", "o2o_box"]
    assert steps[0].learning_rate < steps[2].learning_rate > steps[-1].learning_rate
    assert [e["epoch"] for e in epochs] == [1, 2]


@pytest.mark.parametrize("name", ["fcos_rt_nano", "fcos_o2o_nano", "fcos_e2e_nano"])
def test_one_batch_can_be_learnt(name: str, tmp_path: Path, train_set: DetectionDataset) -> None:
    chosen = tiny(name, color_jitter=0.0, crop=0.5, warmup_iterations=0)
    config = RunConfig(out=tmp_path, device=torch.device("cpu"))
    trainer = Trainer(chosen, train_set, None, config)
    batch = next(iter(epoch_loader(train_set, chosen, 0, 0, 0)))
    trainer.network.train()
    losses = [trainer._step(batch)["loss"] for _ in range(25)]  # type: ignore[arg-type]
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] < losses[10] < losses[2]
    predictions = trainer.network(batch.images)  # type: ignore[attr-defined]
    found = detector_losses(predictions, batch.targets, batch.padding)  # type: ignore[attr-defined]
    assert sum(loss.total.item() for loss in found.values()) < losses[0]


def test_bfloat16_trains(tmp_path: Path, train_set: DetectionDataset) -> None:
    few = replace(train_set, samples=train_set.samples[:4])
    trainer = train(tmp_path, few, precision="bf16")
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
    with pytest.raises(NmsfreeError, match=r"the loss is (nan|inf) at iteration \d"):
        train(tmp_path, train_set, tiny(learning_rate=1e25, warmup_iterations=0, epochs=5))


def test_a_split_without_images(tmp_path: Path, train_set: DetectionDataset) -> None:
    with pytest.raises(DataError, match="no images to train on"):
        train(tmp_path, replace(train_set, samples=()))


def test_images_without_objects_train(tmp_path: Path, train_set: DetectionDataset) -> None:
    nothing = train_set.samples[0].boxes[:0], train_set.samples[0].labels[:0]
    samples = tuple(
        replace(s, boxes=nothing[0], labels=nothing[1], iscrowd=s.iscrowd[:0])
        for s in train_set.samples[:4]
    )
    train(tmp_path, replace(train_set, samples=samples), tiny(epochs=1))
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert record["o2m_box"] == record["o2o_box"] == 0 < record["loss"]


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
