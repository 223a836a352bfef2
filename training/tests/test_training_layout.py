"""Keys, shapes, sizes and costs of the published networks, and the nano networks' cost."""

import pytest
import torch

from nmsfree_training.config import preset
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.card import gmac
from nmsfree_training.weights.published import (
    from_published_keys,
    has_two_heads,
    looks_published,
    random_tensor,
    to_published_keys,
)

NAMES = ("fcos_rt_r18_3x", "fcos_o2o_r18_3x", "fcos_e2e_r18_3x")

Shapes = dict[str, dict[str, list[int]]]


def parameters(network: Fcos) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_published_keys_and_shapes(name: str, published_shapes: Shapes) -> None:
    network = Fcos(preset(name).model)
    state = to_published_keys(network.config.heads, network.state_dict())
    # The one-to-one file has the layout of the one-to-many one.
    layout = published_shapes[name.replace("o2o", "rt")]
    assert {key: list(t.shape) for key, t in state.items()} == layout
    assert looks_published(state)
    assert not looks_published(network.state_dict())
    assert has_two_heads(state) == (name == "fcos_e2e_r18_3x")


@pytest.mark.parametrize("name", NAMES)
def test_key_renaming_round_trip(name: str) -> None:
    network = Fcos(preset(name, 3).model)
    heads, own = network.config.heads, network.state_dict()
    back = from_published_keys(heads, to_published_keys(heads, own))
    assert list(back) == list(own)
    assert all(back[key] is own[key] for key in own)


def test_parameter_counts() -> None:
    assert round(parameters(Fcos(preset("fcos_e2e_r18_3x").model)) / 1e6, 1) == 23.0
    one_head = parameters(Fcos(preset("fcos_rt_r18_3x").model))
    assert one_head == parameters(Fcos(preset("fcos_o2o_r18_3x").model))
    assert round(one_head / 1e6, 1) == 18.1


def test_random_weights_depend_on_key_and_seed() -> None:
    shape = (4, 3, 3, 3)
    one = random_tensor("a.weight", shape, 0)
    assert torch.equal(one, random_tensor("a.weight", shape, 0))
    assert not torch.equal(one, random_tensor("b.weight", shape, 0))
    assert not torch.equal(one, random_tensor("a.weight", shape, 1))


@pytest.mark.parametrize("name", NAMES)
def test_published_cost(name: str) -> None:
    assert gmac(Fcos(preset(name).model), (512, 736)) == pytest.approx(56.5, abs=0.05)


@pytest.mark.parametrize("variant", ["rt", "o2o", "e2e"])
def test_nano_cost(variant: str) -> None:
    chosen = preset(f"fcos_{variant}_nano", 10)
    assert gmac(Fcos(chosen.model), chosen.input_size) == pytest.approx(0.44, abs=0.005)


def test_cost_of_a_stem_by_hand() -> None:
    network = Fcos(preset("fcos_rt_nano", 10).model)
    convolutions = 0
    # 64×64 pixels: the stem gives 32×32, layer1 16×16, then 8, 4 and 2; width 16.
    convolutions += 32 * 32 * 16 * 3 * 49
    convolutions += 4 * 16 * 16 * 16 * 16 * 9
    side, inputs = 16, 16
    for _ in range(3):
        side, outputs = side // 2, inputs * 2
        cells = side * side
        convolutions += cells * outputs * (inputs * 9 + inputs + 3 * outputs * 9)
        convolutions += cells * 64 * (outputs + 64 * 9)  # FPN: projection and smoothing
        convolutions += cells * 64 * 9 * (4 * 64 + 10 + 4)  # head: two branches of two, outputs
        inputs = outputs
    assert gmac(network, (64, 64)) == pytest.approx(convolutions / 1e9, rel=1e-12)


def test_cost_leaves_the_network_alone() -> None:
    network = Fcos(preset("fcos_e2e_nano", 10).model).train()
    before = {key: t.clone() for key, t in network.state_dict().items()}
    assert gmac(network, (64, 64), "o2m") == gmac(network, (64, 64), "o2o")
    assert network.training
    assert all(torch.equal(t, before[key]) for key, t in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
