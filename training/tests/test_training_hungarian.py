"""Optimal matching: against brute force, against the whole cost matrix, and at its limits."""

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nmsfree_training.config import STRIDES, Matching
from nmsfree_training.criterion import assignment as assign_module
from nmsfree_training.criterion.assignment import Assignment, Targets, assign, match, pad_targets
from nmsfree_training.model.boxes import anchor_points, decode

CLASSES = 5
SHAPES = [(8, 12), (4, 6), (2, 3)]  # levels of a 64 × 96 input
POINTS, CELL_STRIDES = anchor_points(SHAPES, STRIDES)
HUNGARIAN = Matching(topk=1, hungarian=True)
BY_QUALITY = Matching(topk=1, quality=(0.2, 0.8), hungarian=True)
BOTH = pytest.mark.parametrize("matching", [HUNGARIAN, BY_QUALITY], ids=str)

Objects = list[tuple[Tensor, Tensor]]


def make_objects(counts: tuple[int, ...], random: torch.Generator) -> Objects:
    objects = []
    for count in counts:
        corner = torch.rand(count, 2, generator=random) * torch.tensor([70.0, 40.0])
        size = 9 + 15 * torch.rand(count, 2, generator=random)
        labels = torch.randint(CLASSES, (count,), generator=random)
        objects.append((torch.cat([corner, corner + size], dim=1), labels))
    return objects


def matched(objects: Objects, matching: Matching, seed: int = 0) -> Assignment:
    """Match to random predictions, the same ones for a number of images and a seed."""
    random = torch.Generator().manual_seed(seed)
    shape = len(objects), len(POINTS)
    logits = torch.randn(*shape, CLASSES, generator=random) - 1
    deltas = 0.6 * torch.randn(*shape, 4, generator=random)
    deltas[..., 2:] += 0.8
    targets = pad_targets([b for b, _ in objects], [c for _, c in objects])
    boxes = decode(deltas, POINTS, CELL_STRIDES)
    return assign(logits, boxes, POINTS, CELL_STRIDES, targets, matching)


def cheapest(cost: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cells and prices of [G, M] costs, as `match` takes them: int64 and float [1, G, k]."""
    found = cost.topk(k, dim=1, largest=False)
    return found.indices[None], found.values[None]


def total(cost: Tensor, owner: Tensor, owned: Tensor) -> float:
    cells = owned[0].nonzero()[:, 0]
    return cost[owner[0, cells], cells].double().sum().item()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("objects", "cells"), [(1, 3), (3, 5), (4, 6), (5, 5)])
def test_brute_force_finds_nothing_cheaper(objects: int, cells: int, seed: int) -> None:
    cost = torch.randn(objects, cells, generator=torch.Generator().manual_seed(seed))
    owner, owned = match(*cheapest(cost, objects), cells)
    assert owner[owned].sort().values.tolist() == list(range(objects))
    sums = [
        sum(cost[g, m].item() for g, m in enumerate(chosen))
        for chosen in permutations(range(cells), objects)
    ]
    assert total(cost, owner, owned) == pytest.approx(min(sums), abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_as_many_of_the_cheapest_cells_as_objects_suffice(seed: int) -> None:
    """Against the whole matrix; objects that want the same cells are the hard case."""
    random = torch.Generator().manual_seed(seed)
    own, common = torch.rand(12, 300, generator=random), torch.rand(300, generator=random)
    for cost in (own, common + 0.01 * own, common.expand(12, -1).contiguous()):
        owner, owned = match(*cheapest(cost, 12), 300)
        rows, columns = linear_sum_assignment(cost.double().numpy())
        want = cost[rows, columns].double().sum().item()
        assert owned.sum() == 12
        assert total(cost, owner, owned) == pytest.approx(want, abs=1e-5)


@BOTH
def test_every_object_gets_a_cell_of_its_own(matching: Matching) -> None:
    objects = make_objects((7, 0, 12, 1), torch.Generator().manual_seed(3))
    found = matched(objects, matching)
    for i, (boxes, labels) in enumerate(objects):
        positive = found.labels[i] < CLASSES
        assert positive.sum() == len(boxes)
        cells = [(*b.tolist(), int(c)) for b, c in zip(boxes, labels, strict=True)]
        own = zip(found.boxes[i][positive], found.labels[i][positive], strict=True)
        assert sorted((*b.tolist(), int(c)) for b, c in own) == sorted(cells)


@BOTH
def test_objects_that_coincide_get_two_cells(matching: Matching) -> None:
    box = torch.tensor([20.0, 10, 60, 50])
    for labels in ([2, 2], [2, 3]):
        found = matched([(box.expand(2, -1), torch.tensor(labels))], matching)
        positive = found.labels[0] < CLASSES
        assert found.labels[0][positive].sort().values.tolist() == labels
        assert (found.boxes[0][positive] == box).all()


def test_a_batch_is_its_images() -> None:
    random = torch.Generator().manual_seed(1)
    cost = torch.rand(3, 4, 9, generator=random)
    cost[1, 2:] = float("inf")  # two objects that are not to be matched
    found = cost.topk(4, dim=2, largest=False)
    owner, owned = match(found.indices, found.values, 9)
    assert owned.sum(dim=1).tolist() == [4, 2, 4]
    for i in range(3):
        alone = match(found.indices[i : i + 1], found.values[i : i + 1], 9)
        assert torch.equal(owner[i], alone[0][0]) and torch.equal(owned[i], alone[1][0])
    assert owner[1][owned[1]].sort().values.tolist() == [0, 1]


@BOTH
def test_only_valid_objects_are_matched(matching: Matching) -> None:
    """What the padding holds must not matter, nor an object that is too small."""
    ((boxes, labels),) = make_objects((4,), torch.Generator().manual_seed(4))
    small = torch.tensor([[20.0, 20, 27.9, 60]])
    more = [(torch.cat([boxes, small]), torch.cat([labels, labels[:1]]))]
    plain, with_small = matched([(boxes, labels)], matching), matched(more, matching)
    assert torch.equal(plain.labels, with_small.labels)
    assert torch.equal(plain.boxes, with_small.boxes)
    nothing = matched([(boxes[:0], labels[:0])] * 2, matching)
    assert (nothing.labels == CLASSES).all() and not nothing.metrics.any()


def test_sum_of_costs_is_never_above_that_of_the_argmin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every object keeps its cheapest cell, that is the optimum; elsewhere argmin drops."""
    costs: list[Tensor] = []
    cost_of = assign_module._cost

    def noted(*arguments: object) -> Tensor:
        costs.append(cost_of(*arguments).clone())  # type: ignore[arg-type]
        return costs[-1].clone()

    monkeypatch.setattr(assign_module, "_cost", noted)
    compared = 0
    for seed in range(12):
        objects = make_objects((4,), torch.Generator().manual_seed(seed))
        sums = []
        for matching in (Matching(topk=1), HUNGARIAN):
            found = matched(objects, matching, seed)
            cells = (found.labels[0] < CLASSES).nonzero()[:, 0]
            owner = (found.boxes[0, cells, None] == objects[0][0]).all(dim=2).long().argmax(dim=1)
            sums.append((len(cells), costs[-1][0][owner, cells].sum().item()))
        assert sums[1][0] == 4 >= sums[0][0]
        if sums[0][0] == 4:
            assert sums[1][1] <= sums[0][1] + 1e-4
            compared += 1
    assert 0 < compared < 12


@BOTH
@pytest.mark.parametrize("blocks", [1, 5])
def test_more_objects_than_cells(
    matching: Matching, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every cell is used, the objects left over get none."""
    points, strides = anchor_points([(2, 2), (1, 1), (1, 1)], STRIDES)  # of a 16 × 16 input
    random = torch.Generator().manual_seed(0)
    boxes = torch.tensor([0.0, 0, 8, 8]) + 8 * torch.rand(20, 1, generator=random)
    logits = torch.randn(1, len(points), CLASSES, generator=random)
    decoded = decode(torch.randn(1, len(points), 4, generator=random), points, strides)
    monkeypatch.setattr(assign_module, "PAIRS_PER_BLOCK", len(points) * 20 // blocks)
    targets = Targets(
        boxes[None], torch.arange(20)[None] % CLASSES, torch.ones(1, 20, dtype=torch.bool)
    )
    found = assign(logits, decoded, points, strides, targets, matching)
    assert (found.labels < CLASSES).all()
    assert len(found.boxes[0].unique(dim=0)) == len(points)


def test_left_over_is_what_makes_the_sum_least() -> None:
    cost = torch.tensor([[5.0, 4.0], [1.0, 9.0], [9.0, 2.0]])
    owner, owned = match(*cheapest(cost, 2), 2)
    assert owned.all() and owner.tolist() == [[1, 2]]


def test_prices_beyond_all_bounds_do_not_crash() -> None:
    """A far cell's price overflows; that of a diverged network is not a number."""
    infinite, nothing = float("inf"), float("nan")
    cost = torch.tensor([[0.5, infinite, nothing], [0.1, infinite, nothing], [0.2, 3e38, 1e20]])
    owner, owned = match(*cheapest(cost, 3), 3)
    assert owned.all() and sorted(owner[0].tolist()) == [0, 1, 2]
    unknown = torch.full((2, 4), nothing)
    assert not match(*cheapest(unknown, 2), 4)[1].any()


def test_ties_are_decided_the_same_way_every_time() -> None:
    cells, prices = cheapest(torch.zeros(4, 9), 4)
    first = match(cells, prices, 9)
    for _ in range(3):
        again = match(cells, prices, 9)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert np.unique(first[0][first[1]]).tolist() == [0, 1, 2, 3]
