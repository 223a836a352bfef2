"""Assignment: a plain-loop oracle, and what must not change the result."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from nmsfree_training.config import STRIDES, Matching
from nmsfree_training.criterion.assignment import Assignment, Targets, assign, pad_targets
from nmsfree_training.model.boxes import anchor_points, decode, giou, iou, pairwise_iou

NUM_CLASSES = 5
SHAPES = [(8, 12), (4, 6), (2, 3)]  # levels of a 64 × 96 input
POINTS, CELL_STRIDES = anchor_points(SHAPES, STRIDES)
TOPK = pytest.mark.parametrize("topk", [1, 13])


@dataclass
class Case:
    """Random predictions for a batch and random objects in every image."""

    logits: Tensor
    boxes: Tensor
    objects: list[tuple[Tensor, Tensor]]

    def targets(self) -> Targets:
        return pad_targets([b for b, _ in self.objects], [c for _, c in self.objects])

    def assign(self, topk: int, targets: Targets | None = None) -> Assignment:
        chosen = self.targets() if targets is None else targets
        return assign(self.logits, self.boxes, POINTS, CELL_STRIDES, chosen, Matching(topk))

    def alone(self, image: int) -> "Case":
        return Case(
            self.logits[image : image + 1],
            self.boxes[image : image + 1],
            self.objects[image : image + 1],
        )


def make_case(seed: int, counts: tuple[int, ...]) -> Case:
    random = torch.Generator().manual_seed(seed)
    cells = len(POINTS)
    logits = torch.randn(len(counts), cells, NUM_CLASSES, generator=random) - 1
    deltas = 0.6 * torch.randn(len(counts), cells, 4, generator=random)
    deltas[..., 2:] += 0.8
    objects = []
    for count in counts:
        corner = torch.rand(count, 2, generator=random) * torch.tensor([70.0, 40.0])
        size = 9 + 25 * torch.rand(count, 2, generator=random)
        labels = torch.randint(NUM_CLASSES, (count,), generator=random)
        objects.append((torch.cat([corner, corner + size], dim=1), labels))
    return Case(logits, decode(deltas, POINTS, CELL_STRIDES), objects)


def assert_equal(a: Assignment, b: Assignment) -> None:
    assert torch.equal(a.labels, b.labels)
    assert torch.equal(a.boxes, b.boxes)
    assert torch.equal(a.metrics, b.metrics)


def overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def cost_of(logit: float, value: float, point: list[float], box: list[float], s: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    bce = -(value * math.log(p) + (1 - value) * math.log(1 - p))
    centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    distance = math.dist(point, centre) / s
    return bce * (value - p) ** 2 + 3 * -math.log(value + 1e-8) + 10 ** (distance - 3)


def oracle(case: Case, topk: int) -> tuple[list[int], list[float]]:
    """Labels and metrics of the only image, cell by cell, in double precision."""
    boxes, labels = case.objects[0][0].tolist(), case.objects[0][1].tolist()
    cells, logits = case.boxes[0].tolist(), case.logits[0].tolist()
    points, strides = POINTS.tolist(), CELL_STRIDES.tolist()
    inside = [any(b[0] < x < b[2] and b[1] < y < b[3] for b in boxes) for x, y in points]
    costs, values, claims = [], [], []
    for box, label in zip(boxes, labels, strict=True):
        value = [overlap(box, cell) for cell in cells]
        cost = [
            cost_of(logits[m][label], value[m], points[m], box, strides[m]) if inside[m] else 1e9
            for m in range(len(cells))
        ]
        k = max(1, int(sum(sorted(value)[-topk:])))
        claims.append(set(np.argsort(cost, kind="stable")[:k].tolist()))
        costs.append(cost)
        values.append(value)
    found = [NUM_CLASSES] * len(cells), [0.0] * len(cells)
    for m in range(len(cells)):
        owners = [g for g, claim in enumerate(claims) if m in claim]
        if len(owners) > 1:
            owners = [min(range(len(boxes)), key=lambda g: costs[g][m])]
        if owners:
            found[0][m], found[1][m] = labels[owners[0]], values[owners[0]][m]
    return found


@TOPK
@pytest.mark.parametrize("seed", range(6))
def test_plain_loops_agree(seed: int, topk: int) -> None:
    case = make_case(seed, (1 + 2 * seed,))
    found = case.assign(topk)
    labels, metrics = oracle(case, topk)
    assert found.labels[0].tolist() == labels
    assert found.metrics[0].tolist() == pytest.approx(metrics, abs=1e-5)
    assert any(label < NUM_CLASSES for label in labels)


@TOPK
def test_batch_equals_each_image_alone(topk: int) -> None:
    case = make_case(7, (4, 0, 9, 1))
    together = case.assign(topk)
    for image in range(4):
        alone = case.alone(image).assign(topk)
        rows = slice(image, image + 1)
        part = Assignment(together.labels[rows], together.boxes[rows], together.metrics[rows])
        assert_equal(part, alone)


@TOPK
def test_more_padding_changes_nothing(topk: int) -> None:
    case = make_case(8, (3, 6))
    t = case.targets()
    # What the empty rows hold must not matter: here the objects again, and the whole image.
    whole = torch.tensor([[[0.0, 0, 96, 64]]]).expand(2, -1, -1)
    padded = Targets(
        torch.cat([t.boxes, t.boxes + 1, whole], dim=1),
        torch.cat([t.labels, t.labels, t.labels[:, :1]], dim=1),
        torch.cat([t.valid, torch.zeros_like(t.valid), torch.zeros_like(t.valid[:, :1])], dim=1),
    )
    assert_equal(case.assign(topk), case.assign(topk, padded))


@TOPK
def test_order_of_objects_does_not_matter(topk: int) -> None:
    case = make_case(9, (10,))
    boxes, labels = case.objects[0]
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    shuffled = Case(case.logits, case.boxes, [(boxes[order], labels[order])])
    assert_equal(case.assign(topk), shuffled.assign(topk))


@TOPK
def test_images_without_objects_are_background(topk: int) -> None:
    found = make_case(10, (0, 0)).assign(topk)
    assert (found.labels == NUM_CLASSES).all()
    assert not found.metrics.any() and not found.boxes.any()


@TOPK
def test_small_objects_are_as_if_absent(topk: int) -> None:
    case = make_case(11, (5,))
    boxes, labels = case.objects[0]
    small = torch.tensor([[20.0, 20.0, 27.9, 60.0]])
    added = [(torch.cat([boxes, small]), torch.cat([labels, torch.tensor([0])]))]
    assert_equal(case.assign(topk), Case(case.logits, case.boxes, added).assign(topk))
    exactly = pad_targets([torch.tensor([[20.0, 20.0, 28.0, 28.0]])], [torch.tensor([0])])
    assert exactly.valid.all()  # 8 pixels are enough


def test_one_to_one_gives_every_apart_object_one_cell() -> None:
    case = make_case(12, (0,))
    boxes = torch.tensor([[2.0, 2, 22, 22], [40, 5, 60, 30], [70, 30, 94, 60]])
    apart = Case(case.logits, case.boxes, [(boxes, torch.tensor([0, 1, 2]))])
    labels = apart.assign(1).labels
    assert sorted(labels[labels < NUM_CLASSES].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("unused", [False, True])
def test_cells_outside_all_objects_come_last(unused: bool) -> None:
    """Perfect predictions from cells outside lose to a useless one from a cell inside."""
    box = torch.tensor([40.0, 24, 56, 40])
    inside = torch.cat([POINTS - box[:2], box[2:] - POINTS], dim=1).min(dim=1).values > 0
    logits = torch.where(inside[:, None], -5.0, 5.0).expand(-1, NUM_CLASSES)[None]
    far = torch.tensor([0.0, 0, 9, 9])
    boxes = torch.where(inside[:, None], far, box)[None]
    objects, labels, valid = [box], [2], [True]
    if unused:  # an object that is not to be assigned makes no cell an inner one
        objects, labels, valid = [*objects, torch.tensor([0.0, 0, 96, 64])], [2, 2], [True, False]
    targets = Targets(torch.stack(objects)[None], torch.tensor([labels]), torch.tensor([valid]))
    found = assign(logits, boxes, POINTS, CELL_STRIDES, targets, Matching(1))
    (cell,) = (found.labels[0] < NUM_CLASSES).nonzero()[:, 0].tolist()
    assert inside[cell]


def test_contested_cells_go_to_no_object_that_is_left_out() -> None:
    """Not even where it would be the cheapest, or the first of equals (outside all objects)."""
    logits = torch.full((1, len(POINTS), NUM_CLASSES), 3.0)
    logits[..., 0] = -6.0  # the class of what is left out costs least
    boxes = torch.tensor([200.0, 200, 220, 220]).expand(1, len(POINTS), 4)  # overlap nothing
    for place in ([1.0, 1, 12, 12], [300.0, 300, 330, 330]):  # the second one is off the picture
        objects = torch.tensor([[0.0, 0, 2, 2], place, place])
        found = assign(
            logits,
            boxes,
            POINTS,
            CELL_STRIDES,
            pad_targets([objects], [torch.tensor([0, 1, 2])]),
            Matching(topk=1),
        )
        labels = found.labels[found.labels < NUM_CLASSES]
        assert labels.tolist() == [1]  # both claim one cell; of equals, the first


def test_pad_targets_shapes() -> None:
    t = make_case(13, (2, 0, 5)).targets()
    assert t.boxes.shape == (3, 5, 4) and t.labels.shape == (3, 5)
    assert t.valid.sum(dim=1).tolist() == [2, 0, 5]
    assert pad_targets([], []).boxes.shape == (0, 1, 4)
    assert pad_targets([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]).valid.sum() == 0


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
