"""What couples two heads in training: the o2m losses' weight, and an o2o head that starts late."""

from dataclasses import replace

import pytest
import torch

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree_training.config import HeadName, Preset
from nmsfree_training.data.loader import EpochLoader
from nmsfree_training.loop.distributed import World
from nmsfree_training.loop.state import load_state
from nmsfree_training.loop.step import Stepper, make_optimizer
from nmsfree_training.model.detector import fresh_network, place
from nmsfree_training.monitor.callbacks import EpochEvent

from .runs import Listener, Runs, State, records, tiny, weights

CPU = torch.device("cpu")


def make_stepper(chosen: Preset, heads: tuple[HeadName, ...] | None = None) -> Stepper:
    network = place(fresh_network(chosen, 0), CPU).train()
    optimizer = make_optimizer(network, chosen.train)
    heads = heads or chosen.model.heads
    return Stepper(network, optimizer, chosen.train, heads, "fp32", World())


@pytest.mark.slow
@pytest.mark.parametrize("end", [0.0, 0.25, 1.0])
def test_weight_of_the_o2m_losses_falls_linearly(end: float, runs: Runs) -> None:
    """The total that is shown is that which is trained: the weight can be read from it."""
    listener = Listener()
    runs.train(chosen=tiny(o2m_weight_end=end, epochs=3), callback=listener)
    found = []
    for event in listener.steps:
        o2m, o2o = (event.losses[f"{h}_cls"] + 2 * event.losses[f"{h}_box"] for h in ("o2m", "o2o"))
        found.append((event.losses["loss"] - o2o) / o2m)
    want = torch.linspace(1, end, 9).tolist()  # from the first to the last of 3 × 3 steps
    assert found == pytest.approx(want, abs=1e-4)


def test_weight_of_a_head_that_is_trained_alone_stays(train_set: DetectionDataset) -> None:
    chosen = tiny("fcos_rt_nano", o2m_weight_end=0.1)
    batch = next(iter(EpochLoader(train_set, chosen, 0, 0, 0)))
    step = make_stepper(chosen)
    step.schedule(1, 2)
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
    batch = next(iter(EpochLoader(train_set, chosen, 0, 0, 0)))
    norms = []
    for recipe in (chosen, tiny(name, o2o_gradient=1.0, **plain)):
        step = make_stepper(recipe, heads)
        step.schedule(1, 2)
        step([batch], 1)
        grads = [p.grad for p in step.network.fpn.parameters() if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in grads]).norm()) if grads else 0.0)
    assert norms[1] > 0
    assert norms[0] / norms[1] == pytest.approx(reaches, rel=1e-3)


def is_a_copy(state: State) -> bool:
    """Whether both heads are the same, bit for bit."""
    keys = [key for key in state if key.startswith("heads.o2m.")]
    return all(torch.equal(state[k], state[k.replace(".o2m.", ".o2o.")]) for k in keys)


class Recorder(Listener):
    """Keeps the latest and the deployed weights of every epoch."""

    def __init__(self, runs: Runs) -> None:
        super().__init__()
        self.runs, self.states, self.weights = runs, list[State](), list[State]()

    def on_epoch(self, event: EpochEvent) -> None:
        self.states.append(load_state(self.runs.folder / "run")[0].network)
        self.weights.append(weights(self.runs.file()))


@pytest.mark.slow
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_late_o2o_head_is_a_copy_until_it_starts(ema: float | None, runs: Runs) -> None:
    recorder, chosen = Recorder(runs), tiny(o2o_start=2 / 3, ema=ema, epochs=3)
    chosen = replace(chosen, model=replace(chosen.model, max_filter="logits"))
    trainer = runs.train(chosen=chosen, callback=recorder)
    for kept in (recorder.states, recorder.weights):
        assert [is_a_copy(state) for state in kept] == [True, True, False]
        key = "heads.o2m.cls_pred.weight"
        assert not torch.equal(kept[0][key], kept[1][key])  # a copy of what is trained meanwhile
        filters = [[v for k, v in state.items() if "_filter." in k] for state in kept]
        assert not any(v.any() for v in filters[0] + filters[1])
        assert any(v.any() for v in filters[2])
    assert list(recorder.steps[0].losses) == ["loss", "o2m_cls", "o2m_box"]
    assert list(recorder.steps[-1].losses)[-2:] == ["o2o_cls", "o2o_box"]
    assert ["o2o_cls" in line for line in records(trainer.run.out)] == [False, False, True]


def test_while_it_waits_the_rest_is_trained_as_if_there_were_no_o2o_head(runs: Runs) -> None:
    """With a share of its gradient let through and the filter on: none of it matters yet."""
    one = runs.trainer("one", tiny("fcos_rt_nano", clip_norm=None))
    two = runs.trainer("two", tiny(o2o_start=1.0, o2o_gradient=0.5, clip_norm=None))
    two.network.load_state_dict(one.network.state_dict(), strict=False)
    one.fit()
    two.fit()
    found = two.network.state_dict()
    assert all(torch.equal(found[k], v) for k, v in one.network.state_dict().items())
    assert is_a_copy(found)


def test_a_late_start_is_only_for_two_trained_heads(runs: Runs) -> None:
    trainer = runs.trainer(chosen=tiny("fcos_o2o_nano", o2o_start=0.5, epochs=1))
    bias = trainer.network.heads["o2o"].cls_pred.bias
    before = bias.clone()
    trainer.fit()
    assert not torch.equal(before, bias)


@pytest.mark.parametrize("kind", ["logits", "features"])
def test_all_ingredients_train_together(kind: str, runs: Runs) -> None:
    chosen = tiny(o2o_gradient=0.2, o2m_weight_end=0.5, o2o_start=0.5)
    o2o = replace(chosen.train.o2o, quality=(0.2, 0.8), hungarian=True)
    model = replace(chosen.model, max_filter=kind)
    chosen = replace(chosen, model=model, train=replace(chosen.train, o2o=o2o))
    runs.train(chosen=chosen, precision="bf16")
    state = weights(runs.file())
    assert all(v.isfinite().all() for v in state.values())
    assert all(v.any() for k, v in state.items() if "_filter." in k)
