"""Assignment: what must not change it, and optimal matching against brute force."""

import math
from dataclasses import dataclass, replace
from itertools import permutations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from nmsfree_training.config import STRIDES, Matching
from nmsfree_training.criterion import assignment as assign_module
from nmsfree_training.criterion.assignment import Assignment, Targets, assign, match, pad_targets
from nmsfree_training.model.boxes import anchor_points, decode, giou, iou, pairwise_iou
from nmsfree_training.model.detector import Prediction

CLASSES = 5
SHAPES = [(8, 12), (4, 6), (2, 3)]  # levels of a 64 × 96 input
POINTS, CELL_STRIDES = anchor_points(SHAPES, STRIDES)
QUALITY = (0.2, 0.8)
OPTIMAL = [Matching(1, hungarian=True), Matching(1, QUALITY, hungarian=True)]
GREEDY = [Matching(1), Matching(13), Matching(1, QUALITY), Matching(13, QUALITY)]
ALL = pytest.mark.parametrize("matching", [*GREEDY, *OPTIMAL], ids=str)
BOTH = pytest.mark.parametrize("matching", OPTIMAL, ids=str)

Objects = list[tuple[Tensor, Tensor]]


def predict(
    logits: Tensor, boxes: Tensor, points: Tensor = POINTS, strides: Tensor = CELL_STRIDES
) -> Prediction:
    return Prediction(logits, boxes, points, strides, [])


@dataclass(frozen=True)
class Case:
    """Random predictions for a batch, and the objects of every image."""

    logits: Tensor
    boxes: Tensor
    objects: Objects

    def assign(self, matching: Matching, targets: Targets | None = None) -> Assignment:
        targets = targets or pad_targets(*map(list, zip(*self.objects, strict=True)))
        return assign(predict(self.logits, self.boxes), targets, matching)

    def with_objects(self, *objects: tuple[Tensor, Tensor]) -> "Case":
        return replace(self, objects=list(objects))


def make_case(seed: int, *counts: int) -> Case:
    random = torch.Generator().manual_seed(seed)
    shape = len(counts), len(POINTS)
    logits = torch.randn(*shape, CLASSES, generator=random) - 1
    deltas = 0.6 * torch.randn(*shape, 4, generator=random)
    deltas[..., 2:] += 0.8
    objects = []
    for count in counts:
        corner = torch.rand(count, 2, generator=random) * torch.tensor([70.0, 40.0])
        size = 9 + 20 * torch.rand(count, 2, generator=random)
        labels = torch.randint(CLASSES, (count,), generator=random)
        objects.append((torch.cat([corner, corner + size], dim=1), labels))
    return Case(logits, decode(deltas, POINTS, CELL_STRIDES), objects)


def assert_equal(a: Assignment, b: Assignment) -> None:
    assert all(torch.equal(vars(a)[name], vars(b)[name]) for name in vars(a))


# Whatever the matching


@ALL
def test_batch_equals_each_image_alone(matching: Matching) -> None:
    case = make_case(7, 4, 0, 9, 1)
    together = case.assign(matching)
    for i in range(4):
        rows = slice(i, i + 1)
        alone = Case(case.logits[rows], case.boxes[rows], case.objects[rows]).assign(matching)
        assert_equal(Assignment(**{k: v[rows] for k, v in vars(together).items()}), alone)


@ALL
def test_more_padding_changes_nothing(matching: Matching) -> None:
    case = make_case(8, 3, 6)
    t = pad_targets(*map(list, zip(*case.objects, strict=True)))
    # What the empty rows hold must not matter: here the objects again, and the whole image.
    whole = torch.tensor([[[0.0, 0, 96, 64]]]).expand(2, -1, -1)
    padded = Targets(
        torch.cat([t.boxes, t.boxes + 1, whole], dim=1),
        torch.cat([t.labels, t.labels, t.labels[:, :1]], dim=1),
        torch.cat([t.valid, torch.zeros_like(t.valid), torch.zeros_like(t.valid[:, :1])], dim=1),
    )
    assert_equal(case.assign(matching), case.assign(matching, padded))


@ALL
def test_order_of_objects_does_not_matter(matching: Matching) -> None:
    case = make_case(9, 10)
    boxes, labels = case.objects[0]
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    shuffled = case.with_objects((boxes[order], labels[order]))
    assert_equal(case.assign(matching), shuffled.assign(matching))


@ALL
def test_small_objects_are_as_if_absent(matching: Matching) -> None:
    case = make_case(11, 5)
    boxes, labels = case.objects[0]
    small = torch.tensor([[20.0, 20.0, 27.9, 60.0]])
    added = case.with_objects((torch.cat([boxes, small]), torch.cat([labels, labels[:1]])))
    assert_equal(case.assign(matching), added.assign(matching))
    exactly = pad_targets([torch.tensor([[20.0, 20.0, 28.0, 28.0]])], [torch.tensor([0])])
    assert exactly.valid.all()  # 8 pixels are enough


@ALL
def test_images_without_objects_are_background(matching: Matching) -> None:
    found = make_case(10, 0, 0).assign(matching)
    assert (found.labels == CLASSES).all()
    assert not found.metrics.any() and not found.boxes.any()


# One cell for each object, by its own cost


@pytest.mark.parametrize("unused", [False, True])
def test_cells_outside_all_objects_come_last(unused: bool) -> None:
    """Perfect predictions from cells outside lose to a useless one from a cell inside."""
    box = torch.tensor([40.0, 24, 56, 40])
    inside = torch.cat([POINTS - box[:2], box[2:] - POINTS], dim=1).min(dim=1).values > 0
    logits = torch.where(inside[:, None], -5.0, 5.0).expand(-1, CLASSES)[None]
    boxes = torch.where(inside[:, None], torch.tensor([0.0, 0, 9, 9]), box)[None]
    objects, labels, valid = [box], [2], [True]
    if unused:  # an object that is not to be assigned makes no cell an inner one
        objects, labels, valid = [*objects, torch.tensor([0.0, 0, 96, 64])], [2, 2], [True, False]
    targets = Targets(torch.stack(objects)[None], torch.tensor([labels]), torch.tensor([valid]))
    found = assign(predict(logits, boxes), targets, Matching(1))
    (cell,) = (found.labels[0] < CLASSES).nonzero()[:, 0].tolist()
    assert inside[cell]


def test_contested_cells_go_to_no_object_that_is_left_out() -> None:
    """Not even where it would be the cheapest, or the first of equals (outside all objects)."""
    logits = torch.full((1, len(POINTS), CLASSES), 3.0)
    logits[..., 0] = -6.0  # the class of what is left out costs least
    boxes = torch.tensor([200.0, 200, 220, 220]).expand(1, len(POINTS), 4)  # overlap nothing
    for place in ([1.0, 1, 12, 12], [300.0, 300, 330, 330]):  # the second one is off the picture
        objects = torch.tensor([[0.0, 0, 2, 2], place, place])
        found = Case(logits, boxes, [(objects, torch.tensor([0, 1, 2]))]).assign(Matching(1))
        labels = found.labels[found.labels < CLASSES]
        assert labels.tolist() == [1]  # both claim one cell; of equals, the first


def test_quality_prefers_the_inside_of_the_own_object() -> None:
    """A perfect prediction from a cell that lies in another object only does not count."""
    points, strides = anchor_points([(4, 8)], (8,))
    objects = torch.tensor([[2.0, 2, 30, 30], [34, 2, 62, 30]])
    in_second = points[:, 0] > 34
    boxes = torch.where(in_second[:, None], objects[0], torch.tensor([0.0, 0, 9, 9]))
    logits = torch.where(in_second[:, None], 4.0, -4.0)
    targets = pad_targets([objects[:1], objects], [torch.tensor([0]), torch.tensor([0, 0])])
    both = predict(logits.expand(2, -1, -1), boxes.expand(2, -1, -1), points, strides)
    found = assign(both, targets, Matching(1, QUALITY))
    for image in range(2):
        own = (found.boxes[image] == objects[0]).all(dim=1)
        assert own.sum() == 1 and not in_second[own].any()


# Optimal matching


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
    rows = range(objects)
    least = min(cost[rows, chosen].sum().item() for chosen in permutations(range(cells), objects))
    assert total(cost, owner, owned) == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_as_many_of_the_cheapest_cells_as_objects_suffice(seed: int) -> None:
    """Against the whole matrix; objects that want the same cells are the hard case."""
    random = torch.Generator().manual_seed(seed)
    own, common = torch.rand(12, 300, generator=random), torch.rand(300, generator=random)
    for cost in (own, common + 0.01 * own, common.expand(12, -1).contiguous()):
        owner, owned = match(*cheapest(cost, 12), 300)
        want = cost[linear_sum_assignment(cost.double().numpy())].double().sum().item()
        assert owned.sum() == 12
        assert total(cost, owner, owned) == pytest.approx(want, abs=1e-5)


@BOTH
def test_every_object_gets_a_cell_of_its_own(matching: Matching) -> None:
    case = make_case(3, 7, 0, 12, 1)
    found = case.assign(matching)
    for i, (boxes, labels) in enumerate(case.objects):
        positive = found.labels[i] < CLASSES
        got = torch.cat([found.boxes[i], found.labels[i][:, None]], dim=1)[positive]
        assert sorted(got.tolist()) == sorted(torch.cat([boxes, labels[:, None]], dim=1).tolist())


@BOTH
def test_objects_that_coincide_get_two_cells(matching: Matching) -> None:
    box = torch.tensor([20.0, 10, 60, 50])
    for labels in ([2, 2], [2, 3]):
        twice = box.expand(2, -1), torch.tensor(labels)
        found = make_case(0, 0).with_objects(twice).assign(matching)
        positive = found.labels[0] < CLASSES
        assert found.labels[0][positive].sort().values.tolist() == labels
        assert (found.boxes[0][positive] == box).all()


def test_sum_of_costs_is_never_above_that_of_the_argmin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every object keeps its cheapest cell, that is the optimum; elsewhere argmin drops."""
    costs: list[Tensor] = []
    cost_of = assign_module._cost

    def noted(*arguments: object) -> Tensor:
        costs.append(cost_of(*arguments).clone())
        return costs[-1].clone()

    monkeypatch.setattr(assign_module, "_cost", noted)
    compared = 0
    for seed in range(12):
        case, sums = make_case(seed, 4), []
        for matching in (Matching(1), OPTIMAL[0]):
            found = case.assign(matching)
            cells = (found.labels[0] < CLASSES).nonzero()[:, 0]
            same = found.boxes[0, cells, None] == case.objects[0][0]
            owner = same.all(dim=2).long().argmax(dim=1)
            sums.append((len(cells), costs[-1][0][owner, cells].sum().item()))
        (kept, greedy), (all_of_them, optimal) = sums
        assert all_of_them == 4 >= kept
        if kept == 4:
            assert optimal <= greedy + 1e-4
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
    targets = pad_targets([boxes], [torch.arange(20) % CLASSES])
    found = assign(predict(logits, decoded, points, strides), targets, matching)
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
    tied = cheapest(torch.zeros(4, 9), 4)
    (owner, owned), *again = (match(*tied, 9) for _ in range(4))
    assert all(torch.equal(owner, o) and torch.equal(owned, w) for o, w in again)
    assert owner[owned].unique().tolist() == [0, 1, 2, 3]


# Boxes


def test_pad_targets_shapes() -> None:
    counts = [2, 0, 5]
    t = pad_targets(
        [torch.tensor([0.0, 0, 9, 9]).expand(n, 4) for n in counts],
        [torch.arange(n) for n in counts],
    )
    assert t.boxes.shape == (3, 5, 4) and t.labels.shape == (3, 5)
    assert t.valid.sum(dim=1).tolist() == counts
    assert pad_targets([], []).boxes.shape == (0, 1, 4)


def test_points_and_decoding() -> None:
    points, strides = anchor_points([(2, 3)], (8,))
    assert points.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    assert strides.tolist() == [8] * 6
    deltas = torch.tensor([0.5, -0.25, math.log(2), math.log(4)]).expand(6, 4)
    boxes = decode(deltas, points, strides)
    # centre (4 + 4, 4 − 2), size (16, 32)
    torch.testing.assert_close(boxes[0], torch.tensor([0.0, -14, 16, 18]))


def test_overlaps() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4], [4, 4, 8, 8], [0, 0, 4, 4]])
    table = iou(boxes[:, None], boxes)
    torch.testing.assert_close(table, table.T)
    torch.testing.assert_close(table.diagonal(), torch.ones(4))
    assert table[0, 1] == pytest.approx(8 / 24)
    assert table[0, 2] == 0
    assert torch.equal(pairwise_iou(boxes[None], boxes[None])[0], table)
    generalised = giou(boxes[:, None], boxes)
    assert generalised[0, 3] == pytest.approx(1)
    assert generalised[0, 2] == pytest.approx(-(64 - 32) / 64)
    assert (generalised <= table + 1e-6).all()
