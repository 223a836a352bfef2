"""What couples two heads in training: the o2m losses' weight, and an o2o head that starts late."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree_training.config import HeadName, Preset, preset
from nmsfree_training.data.loader import epoch_loader
from nmsfree_training.loop.distributed import World
from nmsfree_training.loop.run_config import RunConfig
from nmsfree_training.loop.state import load_state
from nmsfree_training.loop.step import Stepper, make_optimizer
from nmsfree_training.loop.trainer import Trainer
from nmsfree_training.model.detector import fresh_network, place
from nmsfree_training.monitor.callbacks import Callback, EpochEvent, StepEvent
from nmsfree_training.weights.checkpoint import load_checkpoint

CPU = torch.device("cpu")


def tiny(name: str = "fcos_e2e_nano", **recipe: Any) -> Preset:
    """Three epochs of three steps."""
    chosen = preset(name, 10)
    values = {"epochs": 3, "batch_size": 4, "warmup_iterations": 2} | recipe
    return replace(chosen, train=replace(chosen.train, **values))


def make_trainer(
    out: Path, data: DetectionDataset, chosen: Preset, callback: Callback | None = None, **run: Any
) -> Trainer:
    config = RunConfig(out=out, workers=0, **run)
    return Trainer(chosen, data, None, config, callback=callback)


def make_stepper(chosen: Preset, heads: tuple[HeadName, ...] | None = None) -> Stepper:
    network = place(fresh_network(chosen, 0), CPU).train()
    optimizer = make_optimizer(network, chosen.train)
    heads = heads or chosen.model.heads
    return Stepper(network, optimizer, chosen.train, heads, "fp32", World())


def is_a_copy(state: dict[str, Tensor]) -> bool:
    """Whether both heads are the same, bit for bit."""
    keys = [key for key in state if key.startswith("heads.o2m.")]
    return all(torch.equal(state[k], state[k.replace(".o2m.", ".o2o.")]) for k in keys)


class Listener(Callback):
    """Keeps what it is told, and the state file of every epoch; may cut the run."""

    def __init__(self, out: Path, cut_at: tuple[int, int] | None = None) -> None:
        self.out, self.cut_at = out, cut_at
        self.steps: list[StepEvent] = []
        self.states: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_step(self, event: StepEvent) -> None:
        self.steps.append(event)
        if (event.epoch, event.step) == self.cut_at:
            raise KeyboardInterrupt

    def on_epoch(self, event: EpochEvent) -> None:
        self.states.append(load_state(self.out)[0].network)
        self.weights.append(dict(load_checkpoint(self.out / "last.safetensors").state))


@pytest.mark.parametrize("end", [0.0, 0.25, 1.0])
def test_weight_of_the_o2m_losses_falls_linearly(
    end: float, tmp_path: Path, train_set: DetectionDataset
) -> None:
    """The total that is shown is that which is trained: the weight can be read from it."""
    listener = Listener(tmp_path)
    make_trainer(tmp_path, train_set, tiny(o2m_weight_end=end), listener).fit()
    weights = []
    for event in listener.steps:
        o2m, o2o = (event.losses[f"{h}_cls"] + 2 * event.losses[f"{h}_box"] for h in ("o2m", "o2o"))
        weights.append((event.losses["loss"] - o2o) / o2m)
    want = torch.linspace(1, end, 9).tolist()  # from the first to the last of 3 × 3 steps
    assert weights == pytest.approx(want, abs=1e-4)


def test_weight_of_a_head_that_is_trained_alone_stays(train_set: DetectionDataset) -> None:
    chosen = tiny("fcos_rt_nano", o2m_weight_end=0.1)
    batch = next(iter(epoch_loader(train_set, chosen, 0, 0, 0)))
    step = make_stepper(chosen)
    step.schedule(chosen.train.epochs - 1, 1)
    losses = step([batch], 1)[0].values
    assert losses["loss"] == pytest.approx(losses["o2m_cls"] + 2 * losses["o2m_box"], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "heads", "share", "reaches"),
    [
        ("fcos_e2e_nano", ("o2m", "o2o"), 0.0, 0.0),
        ("fcos_e2e_nano", ("o2m", "o2o"), 0.5, 0.5),
        ("fcos_e2e_nano", ("o2o",), 0.0, 1.0),  # a retrofit
        ("fcos_o2o_nano", ("o2o",), 0.0, 1.0),
    ],
)
def test_a_head_that_is_trained_alone_keeps_its_gradient(
    name: str,
    heads: tuple[HeadName, ...],
    share: float,
    reaches: float,
    train_set: DetectionDataset,
) -> None:
    """Of two heads the o2m one is given no weight, so what arrives is the o2o head's."""
    plain = {"o2m_weight_end": 0.0, "clip_norm": None}
    chosen = tiny(name, o2o_gradient=share, **plain)
    batch = next(iter(epoch_loader(train_set, chosen, 0, 0, 0)))
    norms = []
    for recipe in (chosen, tiny(name, o2o_gradient=1.0, **plain)):
        step = make_stepper(recipe, heads)
        step.schedule(recipe.train.epochs - 1, 1)
        step([batch], 1)
        grads = [p.grad for p in step.network.fpn.parameters() if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in grads]).norm()) if grads else 0.0)
    assert norms[1] > 0
    assert norms[0] / norms[1] == pytest.approx(reaches, rel=1e-3)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_late_o2o_head_is_a_copy_until_it_starts(
    ema: float | None, tmp_path: Path, train_set: DetectionDataset
) -> None:
    listener = Listener(tmp_path)
    chosen = tiny(o2o_start=2 / 3, ema=ema)
    chosen = replace(chosen, model=replace(chosen.model, max_filter="logits"))
    trainer = make_trainer(tmp_path, train_set, chosen, listener)
    trainer.fit()
    for kept in (listener.states, listener.weights):  # the latest and the deployed ones
        assert [is_a_copy(state) for state in kept] == [True, True, False]
        key = "heads.o2m.cls_pred.weight"
        assert not torch.equal(kept[0][key], kept[1][key])  # a copy of what is trained meanwhile
        filters = [[v for k, v in state.items() if "_filter." in k] for state in kept]
        assert not any(v.any() for v in filters[0] + filters[1])
        assert any(v.any() for v in filters[2])
    assert list(listener.steps[0].losses) == ["loss", "o2m_cls", "o2m_box"]
    assert list(listener.steps[-1].losses)[-2:] == ["o2o_cls", "o2o_box"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert ["o2o_cls" in line for line in lines] == [False, False, True]


def test_while_it_waits_the_rest_is_trained_as_if_there_were_no_o2o_head(
    tmp_path: Path, train_set: DetectionDataset
) -> None:
    """With a share of its gradient let through and the filter on: none of it matters yet."""
    recipe = {"epochs": 2, "clip_norm": None}
    one = make_trainer(tmp_path / "one", train_set, tiny("fcos_rt_nano", **recipe))
    late = tiny(o2o_start=1.0, o2o_gradient=0.5, **recipe)
    two = make_trainer(tmp_path / "two", train_set, late)
    two.network.load_state_dict(one.network.state_dict(), strict=False)
    one.fit()
    two.fit()
    found = two.network.state_dict()
    assert all(torch.equal(found[k], v) for k, v in one.network.state_dict().items())
    assert is_a_copy(found)


@pytest.mark.parametrize("cut_at", [(0, 2), (1, 1), (1, 3), (2, 2)])
def test_resume_equals_an_uninterrupted_run(
    cut_at: tuple[int, int], tmp_path: Path, train_set: DetectionDataset
) -> None:
    """Cut while the o2o head waits, around its start, and after it; saved at every step."""
    chosen = tiny(o2o_start=1 / 3, o2m_weight_end=0.2, o2o_gradient=0.3, ema=0.9)
    make_trainer(tmp_path / "whole", train_set, chosen).fit()
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        make_trainer(cut, train_set, chosen, Listener(cut, cut_at), save_minutes=0.0).fit()
    make_trainer(cut, train_set, chosen, resume=True).fit()
    states = [load_state(run)[0].network for run in (tmp_path / "whole", cut)]
    assert all(torch.equal(states[1][k], v) for k, v in states[0].items())
    files = [load_checkpoint(run / "last.safetensors").state for run in (tmp_path / "whole", cut)]
    assert all(torch.equal(files[1][k], v) for k, v in files[0].items())


def test_resume_after_the_last_step_of_an_epoch(
    tmp_path: Path, train_set: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the evaluation: no step is left, and the record names the heads all the same."""
    chosen = tiny(o2o_start=1 / 3)
    make_trainer(tmp_path / "whole", train_set, chosen).fit()
    cut = tmp_path / "cut"
    trainer = make_trainer(cut, train_set, chosen)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.checkpoints, "write_epoch", _interrupt)
        trainer.fit()
    make_trainer(cut, train_set, chosen, resume=True).fit()
    names = ['"o2m_cls"', '"o2o_cls"']
    for run in (tmp_path / "whole", cut):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        found = [[name in line for name in names] for line in lines]
        assert found == [[True, False], [True, True], [True, True]]
    states = [load_state(run)[0].network for run in (tmp_path / "whole", cut)]
    assert all(torch.equal(states[1][k], v) for k, v in states[0].items())


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_late_start_is_only_for_two_trained_heads(
    tmp_path: Path, train_set: DetectionDataset
) -> None:
    trainer = make_trainer(tmp_path, train_set, tiny("fcos_o2o_nano", o2o_start=0.5, epochs=1))
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.fit()
    after = trainer.network.state_dict()
    assert not torch.equal(before["heads.o2o.cls_pred.bias"], after["heads.o2o.cls_pred.bias"])


@pytest.mark.parametrize("kind", ["logits", "features"])
def test_all_ingredients_train_together(
    kind: str, tmp_path: Path, train_set: DetectionDataset
) -> None:
    recipe = tiny(o2o_gradient=0.2, o2m_weight_end=0.5, o2o_start=0.5, epochs=2)
    o2o = replace(recipe.train.o2o, quality=(0.2, 0.8), hungarian=True)
    chosen = replace(
        recipe,
        model=replace(recipe.model, max_filter=kind),  # type: ignore[arg-type]
        train=replace(recipe.train, o2o=o2o),
    )
    trainer = make_trainer(tmp_path, train_set, chosen, precision="bf16")
    trainer.fit()
    state = load_checkpoint(tmp_path / "last.safetensors").state
    assert all(v.isfinite().all() for v in state.values())
    assert all(v.any() for k, v in state.items() if "_filter." in k)
