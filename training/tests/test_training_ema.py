"""Averaged weights against the formula."""

import torch
from torch import nn

from nmsfree_training.loop.step import Ema


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


def test_weights_that_stand_still_are_their_own_average() -> None:
    net = network()
    ema = Ema(net, decay=0.99)
    for step in range(1, 4):
        ema.update(net, step)
    assert all(torch.equal(ema.state[k], v) for k, v in net.state_dict().items())


def test_a_stored_average_goes_on() -> None:
    first, second = Ema(network(), 0.9), Ema(network(), 0.9)
    second.load(first.state)
    assert all(torch.equal(second.state[k], v) for k, v in first.state.items())
    assert second.state["0.weight"] is not first.state["0.weight"]
