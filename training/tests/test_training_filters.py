"""The filters of the o2o head: what they compare and change; nothing else notices them."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nmsfree_training.config import STRIDES, HeadNorm, preset
from nmsfree_training.model.boxes import anchor_points, decode, iou
from nmsfree_training.model.detector import Fcos, copy_head
from nmsfree_training.model.filters import (
    GAIN,
    DuplicateFilter,
    FeatureFilter,
    FoldedFilter,
    LogitFilter,
    neighbour_maxima,
)
from nmsfree_training.weights.checkpoint import load_checkpoint

from .runs import save_network

NEIGHBOURS = ("same", "finer", "coarser")
KINDS = pytest.mark.parametrize("kind", ["logits", "features", "duplicates"])
SIZES = pytest.mark.parametrize("size", [(12, 16), (7, 9), (1, 5), (2, 1)])
Maps = list[Tensor]


def nano(kind: str, norm: HeadNorm = "batch_per_level", **model: Any) -> Fcos:
    torch.manual_seed(1)
    chosen: dict[str, Any] = {"max_filter": kind, "dedup_iou": 0.0}
    if kind == "duplicates":
        chosen = {"max_filter": "none", "dedup_iou": 0.8}
    return Fcos(replace(preset("fcos_e2e_nano", 3).model, head_norm=norm, **chosen, **model))


def filter_weights(network: Fcos) -> dict[str, Tensor]:
    return {key: p for key, p in network.named_parameters() if "_filter." in key}


def fill_filter(network: Fcos, value: float) -> None:
    with torch.no_grad():
        for weight in filter_weights(network).values():
            weight.fill_(value)


def make_maps(size: tuple[int, int], channels: int = 3) -> Maps:
    """Three levels as a network makes them: every side is half of that before, rounded up."""
    sizes = [size]
    for _ in range(2):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return [torch.randn(2, channels, *s) for s in sizes]


def make_deltas(size: tuple[int, int]) -> Maps:
    """Boxes of about 96 pixels, so that most neighbours agree well."""
    deltas = [0.2 * own for own in make_maps(size, 4)]
    for stride, own in zip(STRIDES, deltas, strict=True):
        own[:, 2:] += math.log(96 / stride)
    return deltas


# A network with any of them


@KINDS
@pytest.mark.parametrize("norm", ["batch_per_level", "group"])
@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_a_new_filter_changes_nothing(size: tuple[int, int], norm: HeadNorm, kind: str) -> None:
    plain, filtered = nano("none", norm).eval(), nano(kind, norm).eval()
    new = set(filtered.state_dict()) - set(plain.state_dict())
    assert new == set(filter_weights(filtered))
    assert all(key.startswith("heads.o2o.") for key in new)
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        for head, want in plain(images).items():
            found = filtered(images)[head]
            assert torch.equal(found.logits, want.logits) and torch.equal(found.boxes, want.boxes)


@KINDS
def test_a_filter_acts_on_the_scores_of_the_o2o_head_only(kind: str) -> None:
    network, images = nano(kind).eval(), torch.randn(1, 3, 64, 96)
    for name, weight in network.heads["o2o"].named_parameters():
        if name.endswith("conv.weight") or name == "cls_pred.weight":
            torch.nn.init.kaiming_normal_(weight)  # a new head has nearly the same score everywhere
        if name == "reg_pred.bias":
            torch.nn.init.constant_(weight, 2.0)  # and boxes too small to agree
    with torch.inference_mode():
        before = network(images)
        fill_filter(network, 0.5)
        after = network(images)
    change = after["o2o"].logits - before["o2o"].logits
    assert bool((change < -1).any())
    assert kind == "features" or bool((change <= 0).all())
    assert torch.equal(before["o2o"].boxes, after["o2o"].boxes)
    assert torch.equal(before["o2m"].logits, after["o2m"].logits)


@KINDS
def test_weights_of_the_filter_are_trained_from_zero(kind: str) -> None:
    network = nano(kind)
    network(torch.randn(2, 3, 64, 96))["o2o"].logits.square().sum().backward()
    grads = [weight.grad for weight in filter_weights(network).values()]
    assert grads and all(grad is not None and bool(grad.any()) for grad in grads)


@KINDS
def test_copying_the_head_leaves_the_filter_alone(kind: str) -> None:
    network = nano(kind)
    fill_filter(network, 0.5)
    with torch.no_grad():
        for parameter in network.heads["o2m"].parameters():
            parameter.normal_()
    copy_head(network.state_dict())
    o2m, o2o = (network.heads[name].state_dict() for name in ("o2m", "o2o"))
    for key, value in o2o.items():
        assert (value == 0.5).all() if "_filter." in key else torch.equal(value, o2m[key]), key


# Maxima


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


@pytest.mark.parametrize("kind", [LogitFilter, FeatureFilter])
def test_half_precision(kind: type[LogitFilter] | type[FeatureFilter]) -> None:
    """Autocast keeps the type of what comes in, and a new filter the values."""
    maps = [x.bfloat16() for x in make_maps((13, 19))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        filtered = kind(3)(maps)
    for x, z in zip(maps, filtered, strict=True):
        assert z.dtype == torch.bfloat16 and torch.equal(x, z)


# Duplicates


def make_filter() -> DuplicateFilter:
    own = DuplicateFilter(3, 0.8)
    for weight in own.weights.values():
        torch.nn.init.uniform_(weight, 0.1, 0.4)
    return own


def neighbours(
    shapes: list[tuple[int, int]], level: int, y: int, x: int
) -> Iterator[tuple[str, int]]:
    """Kind and row, among all cells, of the cells that are compared with one."""
    places = {
        "same": (level, range(y - 1, y + 2), range(x - 1, x + 2)),
        "finer": (level - 1, range(2 * y - 1, 2 * y + 3), range(2 * x - 1, 2 * x + 3)),
        # the nearest two: its own, and the one it leans to
        "coarser": (level + 1, ((y - 1) // 2, (y + 1) // 2), ((x - 1) // 2, (x + 1) // 2)),
    }
    for kind, (other, rows, columns) in places.items():
        h, w = shapes[other] if 0 <= other < len(shapes) else (0, 0)
        start = sum(h * w for h, w in shapes[: max(0, other)])
        for i in rows:
            for j in columns:
                if 0 <= i < h and 0 <= j < w and (other, i, j) != (level, y, x):
                    yield kind, start + i * w + j


@SIZES
def test_every_cell_is_lowered_as_the_formula_says(size: tuple[int, int]) -> None:
    """Against plain loops over decoded boxes in pixels."""
    logits, deltas, own = make_maps(size), make_deltas(size), make_filter()
    with torch.inference_mode():
        filtered = own(logits, deltas)
    shapes = [(x.shape[2], x.shape[3]) for x in logits]
    flat = torch.cat([d.flatten(2).transpose(1, 2) for d in deltas], dim=1)
    boxes = decode(flat, *anchor_points(shapes, STRIDES))
    best = torch.cat([x.amax(1).flatten(1) for x in logits], 1)
    places = [(n, y, x) for n, (h, w) in enumerate(shapes) for y in range(h) for x in range(w)]
    lowered = 0
    for cell, (level, y, x) in enumerate(places):
        for image in range(2):
            rates = dict.fromkeys(NEIGHBOURS, 0.0)
            for kind, other in neighbours(shapes, level, y, x):
                better = max(0.0, float(best[image, other] - best[image, cell]))
                overlap = float(iou(boxes[image, other], boxes[image, cell]))
                rate = math.tanh(50 * better) / (1 + math.exp(-40 * (overlap - 0.8)))
                rates[kind] = max(rates[kind], rate)
            want = sum(GAIN * own.weights[k][level].item() * rate for k, rate in rates.items())
            found = logits[level][image, :, y, x] - filtered[level][image, :, y, x]
            assert torch.allclose(found, torch.tensor(want), atol=2e-4), (level, y, x)
            lowered += want > 0.1
    assert lowered > len(places) / 4 or len(places) < 10  # otherwise next to nothing was tested


@pytest.mark.parametrize(
    ("scores", "centres", "want"),
    [
        # Boxes 10 strides wide: 0.2 strides apart IoU is 0.96, three apart 0.54.
        ([2.0, 1.0], [5.0, 5.2], [2.0, -3.0]),
        ([2.0, 1.0], [5.0, 8.0], [2.0, 1.0]),
        # Three of one object: the best stays. The last is lowered by the middle one, though that
        # is lowered itself: all are compared at once.
        ([3.0, 2.0, 1.0], [5.0, 5.1, 5.2], [3.0, -2.0, -3.0]),
        ([2.0, -9.0, 1.0], [5.0, 50.0, 5.0], [2.0, -9.0, 1.0]),  # two cells away: no neighbour
        ([1.0, 1.0], [5.0, 5.0], [1.0, 1.0]),  # equals both stay
    ],
)
def test_duplicates_fall_and_neighbours_stay(
    scores: list[float], centres: list[float], want: list[float]
) -> None:
    """One level of one row: a score and a box's centre, in strides, for each cell."""
    shift = torch.tensor(centres) - torch.arange(len(centres))
    zero, size = torch.zeros(len(centres)), torch.full((len(centres),), math.log(10.0))
    deltas = torch.stack([shift, zero, size, size])[None, :, None]
    own = DuplicateFilter(1, 0.8)
    torch.nn.init.constant_(own.weights["same"], 4.0 / GAIN)
    with torch.inference_mode():
        (out,) = own([torch.tensor(scores).reshape(1, 1, 1, -1)], [deltas])
    assert out.flatten().tolist() == pytest.approx(want, abs=0.01)


def test_gradient_reaches_strengths_and_logits_but_no_comparison() -> None:
    own, logits, deltas = make_filter(), make_maps((13, 19)), make_deltas((13, 19))
    for x in (*logits, *deltas):
        x.requires_grad_(True)
    torch.cat([x.flatten() for x in own(logits, deltas)]).sum().backward()
    assert all(d.grad is None for d in deltas)
    for x in logits:  # the derivative of a sum by what is passed on
        assert x.grad is not None and torch.equal(x.grad, torch.ones_like(x))
    for kind, weight in own.weights.items():
        assert weight.grad is not None
        # The first level has no finer one, the last no coarser one.
        exists = [kind != "finer", True, kind != "coarser"]
        assert (weight.grad < 0).tolist() == exists, kind


def test_duplicates_of_half_precision_are_compared_in_float32() -> None:
    halves = [[x.bfloat16() for x in make((13, 19))] for make in (make_maps, make_deltas)]
    own = make_filter()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        found = own(*halves)
    with torch.inference_mode():
        want = own(*([x.float() for x in maps] for maps in halves))
    for x, z in zip(found, want, strict=True):
        assert x.dtype == torch.float32 and torch.allclose(x, z, atol=1e-6)


def test_the_folded_filter_says_the_same() -> None:
    own, maps = make_filter().eval(), (make_maps((16, 24)), make_deltas((16, 24)))
    folded = FoldedFilter(own, [x.shape[2:] for x in maps[0]])
    with torch.inference_mode():
        for x, z in zip(own(*maps), folded(*maps), strict=True):
            assert torch.equal(x, z)


def test_the_deployed_agreement_counts_after_training(tmp_path: Path) -> None:
    """Training does not know of it; weights and gradients are the same with any."""
    image = torch.randn(1, 3, 64, 96)
    logits: dict[tuple[float, bool], Tensor] = {}
    for deployed in (0.0, 0.8, 0.2):
        network = nano("duplicates", deployed_dedup_iou=deployed)
        fill_filter(network, 0.5)
        with torch.no_grad():
            for training in (True, False):
                logits[deployed, training] = network.train(training)(image)["o2o"].logits
            path = save_network(network, tmp_path / "a.safetensors", "abc")
            again = load_checkpoint(path).build()(image)
        assert torch.equal(again["o2o"].logits, logits[deployed, False])
    assert torch.equal(logits[0.2, True], logits[0.8, True])
    assert torch.equal(logits[0.0, False], logits[0.8, False])
    assert (logits[0.2, False] <= logits[0.8, False]).all()  # more cells give way
    assert (logits[0.2, False] < logits[0.8, False]).any()
