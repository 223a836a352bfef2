"""Optimizers, schedules and averaged weights."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from nmsfree_training.config import TrainConfig, preset
from nmsfree_training.loop.distributed import World
from nmsfree_training.loop.step import Ema, Stepper, make_optimizer, rate_factor
from nmsfree_training.model.detector import Fcos

STEP = preset("fcos_rt_r18_3x").train
COSINE = preset("fcos_rt_nano").train
PER_EPOCH = 1000


@pytest.mark.parametrize(
    ("iteration", "factor"),
    [
        (0, 0.00066667),
        (250, 0.00066667 + (1 - 0.00066667) / 2),
        (500, 1.0),
        (24 * PER_EPOCH - 1, 1.0),
        (24 * PER_EPOCH, 0.1),
        (33 * PER_EPOCH - 1, 0.1),
        (33 * PER_EPOCH, 0.01),
        (36 * PER_EPOCH, 0.01),
    ],
)
def test_published_schedule(iteration: int, factor: float) -> None:
    assert rate_factor(STEP, iteration, 36 * PER_EPOCH) == pytest.approx(factor, rel=1e-9)


def test_a_short_run_warms_up_for_a_quarter_of_it() -> None:
    short = replace(STEP, epochs=6, milestones=(4,))  # of 10 steps: 60 instead of 500
    factors = [rate_factor(short, i, total=60) for i in range(60)]
    assert factors[14] < 1 and factors[15] == 1 and factors[39] == 1
    assert factors[:16] == sorted(factors[:16])
    assert rate_factor(short, 0, total=1) == 1  # nothing to warm up


def test_cosine_schedule() -> None:
    def at(iteration: int) -> float:
        return rate_factor(COSINE, iteration, total)

    warm = COSINE.warmup_factor + (1 - COSINE.warmup_factor) / 2
    # Half-way through the warm-up and an eighth through the run, both factors count.
    half, total = COSINE.warmup_iterations // 2, 4 * COSINE.warmup_iterations
    both = rate_factor(COSINE, half, total)
    assert both == pytest.approx(warm * (1 + math.cos(math.pi / 8)) / 2)
    total = COSINE.epochs * PER_EPOCH
    assert at(0) == pytest.approx(COSINE.warmup_factor)
    assert at(total // 2) == pytest.approx(0.5)
    assert at(total) == pytest.approx(0, abs=1e-12)
    values = [at(i) for i in range(0, total, 500)]
    peak = values.index(max(values))
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert max(values) <= 1


@pytest.mark.parametrize(("batch", "rate"), [(16, 0.01), (8, 0.005), (64, 0.04)])
def test_sgd_scales_with_the_batch_and_skips_what_is_frozen(batch: int, rate: float) -> None:
    network = Fcos(preset("fcos_rt_r18_3x", 3).model)
    optimizer = make_optimizer(network, replace(STEP, batch_size=batch))
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (rate, 0.9, 1e-4)
    trained = {id(p) for p in group["params"]}
    for name, parameter in network.named_parameters():
        frozen = name.startswith(("backbone.conv1", "backbone.layer1"))
        assert (id(parameter) in trained) != frozen, name


def test_adamw_decays_weights_only() -> None:
    network = Fcos(preset("fcos_rt_nano", 3).model)
    optimizer = make_optimizer(network, COSINE)
    assert isinstance(optimizer, torch.optim.AdamW)
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert decayed["lr"] == plain["lr"] == COSINE.learning_rate
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(network.parameters()))


@pytest.mark.parametrize("config", [STEP, COSINE])
def test_a_backbone_has_a_rate_of_its_own_and_may_wait(config: TrainConfig) -> None:
    network = Fcos(preset("fcos_rt_nano", 3).model)
    config = replace(config, backbone_rate=0.1, backbone_start=0.5, warmup_iterations=0)
    optimizer = make_optimizer(network, config)
    stepper = Stepper(network, optimizer, config, ("o2m",), "fp32", World())
    backbone = {id(p) for p in network.backbone.parameters()}
    total = config.epochs * 10
    for iteration, share in ((0, 0.0), (total // 2 - 1, 0.0), (total // 2, 0.1)):
        shown = stepper.schedule(iteration, total)
        assert shown == optimizer.param_groups[0]["lr"] > 0
        for group in optimizer.param_groups:
            own = {id(p) for p in group["params"]}
            assert own <= backbone or not own & backbone
            assert group["lr"] == pytest.approx(shown * (share if own <= backbone else 1))
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(list(network.parameters()))


# Averaged weights against the formula


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def test_average_follows_the_formula() -> None:
    net = network()
    ema, want = Ema(net, decay=0.5), net[0].weight.detach().clone()  # type: ignore[index]
    for step in range(1, 8):
        with torch.no_grad():
            net[0].weight.fill_(float(step))  # type: ignore[index]
        ema.update(net, step)
        keep = min(0.5, (1 + step) / (10 + step))
        want = keep * want + (1 - keep) * step
    assert torch.allclose(ema.state["0.weight"], want)


def test_statistics_are_averaged_and_counters_copied() -> None:
    net = network()
    ema = Ema(net, decay=0.9)
    net(torch.randn(8, 2) + 5)
    ema.update(net, 1)
    assert ema.state["1.num_batches_tracked"] == 1
    mean = net.state_dict()["1.running_mean"]
    assert torch.allclose(ema.state["1.running_mean"], mean * (1 - 2 / 11))
