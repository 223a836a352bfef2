"""The 3-D max filter: what it sees, what it does, and that nothing else notices it."""

import json
import struct
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nmsfree_training.config import HeadNorm, MaxFilter, preset
from nmsfree_training.model.detector import Fcos
from nmsfree_training.model.filters import FeatureFilter, LogitFilter, neighbour_maxima
from nmsfree_training.weights.checkpoint import (
    HEADER_KEY,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)

KINDS = pytest.mark.parametrize("kind", ["logits", "features"])
NAMES = ("ant", "bee", "cat")
SIZES = pytest.mark.parametrize("size", [(16, 24), (13, 19), (7, 8), (1, 5), (2, 1)])


def make_maps(size: tuple[int, int], channels: int = 3) -> list[Tensor]:
    """Three levels as a network makes them: every side is half of that before, rounded up."""
    sizes = [size]
    for _ in range(2):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return [torch.randn(2, channels, *s) for s in sizes]


def nano(kind: MaxFilter, norm: HeadNorm = "batch_per_level") -> Fcos:
    torch.manual_seed(1)
    model = preset("fcos_e2e_nano", 3).model
    return Fcos(replace(model, max_filter=kind, head_norm=norm, dedup_iou=0.0))


def filter_keys(network: Fcos) -> list[str]:
    return [key for key in network.state_dict() if "_filter." in key]


def fill_filter(network: Fcos, value: float) -> None:
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "_filter." in key:
                parameter.fill_(value)


@SIZES
def test_neighbours_are_those_of_plain_loops(size: tuple[int, int]) -> None:
    maps = make_maps(size)
    for level, (x, around) in enumerate(zip(maps, neighbour_maxima(maps), strict=True)):
        kinds = ["same", *(["finer"] if level > 0 else []), *(["coarser"] if level < 2 else [])]
        assert sorted(around) == sorted(kinds)
        assert all(maximum.shape == x.shape for maximum in around.values())
        for i in range(x.shape[2]):
            for j in range(x.shape[3]):
                near = x[..., max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
                assert torch.equal(around["same"][..., i, j], near.amax(dim=(2, 3)))
                if level > 0:  # the 2 × 2 cells below this one and a ring of one around them
                    rows, columns = (slice(max(0, 2 * n - 1), 2 * n + 3) for n in (i, j))
                    finer = maps[level - 1][..., rows, columns].amax(dim=(2, 3))
                    assert torch.equal(around["finer"][..., i, j], finer)
                if level < 2:
                    above = maps[level + 1][..., i // 2, j // 2]
                    assert torch.equal(around["coarser"][..., i, j], above)


@pytest.mark.parametrize("norm", ["batch_per_level", "group"])
@KINDS
@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_a_new_filter_changes_nothing(
    size: tuple[int, int], kind: MaxFilter, norm: HeadNorm
) -> None:
    plain, filtered = nano("none", norm).eval(), nano(kind, norm).eval()
    assert set(filtered.state_dict()) - set(plain.state_dict()) == set(filter_keys(filtered))
    assert all(key.startswith("heads.o2o.") for key in filter_keys(filtered))
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        for head, want in plain(images).items():
            found = filtered(images)[head]
            assert torch.equal(found.logits, want.logits) and torch.equal(found.boxes, want.boxes)


@KINDS
def test_a_filter_acts_on_the_scores_of_the_o2o_head_only(kind: MaxFilter) -> None:
    network, images = nano(kind).eval(), torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        before = network(images)
        fill_filter(network, 0.1)
        after = network(images)
    assert not torch.allclose(before["o2o"].logits, after["o2o"].logits, atol=1e-3)
    assert torch.equal(before["o2o"].boxes, after["o2o"].boxes)
    assert torch.equal(before["o2m"].logits, after["o2m"].logits)


@SIZES
def test_maxima_stay_and_the_others_are_lowered(size: tuple[int, int]) -> None:
    maps, own = make_maps(size), LogitFilter(3)
    for weight in own.parameters():
        torch.nn.init.uniform_(weight, 0.1, 2.0)
    with torch.inference_mode():
        filtered = own(maps)
    stayed = 0
    for x, z, around in zip(maps, filtered, neighbour_maxima(maps), strict=True):
        is_best = torch.stack([x >= maximum for maximum in around.values()]).all(dim=0)
        assert torch.equal(z[is_best], x[is_best])
        assert bool((z[~is_best] < x[~is_best]).all())
        stayed += int(is_best.sum())
    assert stayed >= 2 * 3  # the maximum of every image and class


@KINDS
def test_weights_of_the_filter_are_trained_from_zero(kind: MaxFilter) -> None:
    network = nano(kind)
    network(torch.randn(2, 3, 64, 96))["o2o"].logits.square().sum().backward()
    for key, parameter in network.named_parameters():
        if "_filter." in key:
            assert parameter.grad is not None and bool(parameter.grad.any()), key


@pytest.mark.parametrize("kind", [LogitFilter, FeatureFilter])
def test_half_precision(kind: type[LogitFilter] | type[FeatureFilter]) -> None:
    """Autocast keeps the type of what comes in, and a new filter the values."""
    maps = [x.bfloat16() for x in make_maps((13, 19))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        filtered = kind(3)(maps)
    for x, z in zip(maps, filtered, strict=True):
        assert z.dtype == torch.bfloat16 and torch.equal(x, z)


@KINDS
def test_copying_the_head_leaves_the_filter_alone(kind: MaxFilter) -> None:
    network = nano(kind)
    fill_filter(network, 0.5)
    with torch.no_grad():
        for parameter in network.heads["o2m"].parameters():
            parameter.normal_()
    network.copy_head()
    o2m, o2o = (network.heads[name].state_dict() for name in ("o2m", "o2o"))
    for key, value in o2o.items():
        assert (value == 0.5).all() if "_filter." in key else torch.equal(value, o2m[key]), key


def saved(network: Fcos, path: Path) -> Checkpoint:
    made = Checkpoint(network.config, (64, 96), NAMES, (1, 2, 3), network.state_dict())
    save_checkpoint(made, path)
    return made


@KINDS
def test_checkpoint_round_trip(kind: MaxFilter, tmp_path: Path) -> None:
    network = nano(kind)
    fill_filter(network, 0.25)
    made = saved(network, tmp_path / "a.safetensors")
    loaded = load_checkpoint(tmp_path / "a.safetensors")
    assert loaded.model == made.model and loaded.model.max_filter == kind
    assert loaded.state.keys() == made.state.keys()
    assert all((loaded.state[key] == 0.25).all() for key in filter_keys(network))
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        want, found = network.eval()(images)["o2o"], loaded.build()(images)["o2o"]
    assert torch.equal(found.logits, want.logits)


def test_older_checkpoints_load(tmp_path: Path) -> None:
    """Before there were filters, the header said whether the gradient of the o2o head stops."""
    path, network = tmp_path / "old.safetensors", nano("none")
    saved(network, path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    described = json.loads(header["__metadata__"][HEADER_KEY])
    old = asdict(network.config) | {"detach_o2o": True}
    del old["max_filter"]
    header["__metadata__"][HEADER_KEY] = json.dumps(described | {"model": old})
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    loaded = load_checkpoint(path)
    assert loaded.model == network.config and loaded.model.max_filter == "none"
    assert all(torch.equal(loaded.state[k], v) for k, v in network.state_dict().items())
