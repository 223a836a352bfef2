"""The vectorised criterion against plain loops and against the authors' implementation."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nmsfree_training.config import STRIDES, HeadName, Matching
from nmsfree_training.criterion import assignment as assign_module
from nmsfree_training.criterion.assignment import Assignment, Targets, assign, pad_targets
from nmsfree_training.criterion.losses import Losses, QualityFocalLoss, head_losses, padded_cells
from nmsfree_training.model.boxes import anchor_points, decode, giou
from nmsfree_training.model.detector import Prediction

from .loop_criterion import LoopResult, loop_losses

PUBLISHED: dict[HeadName, Matching] = {"o2m": Matching(topk=13), "o2o": Matching(topk=1)}
HEADS = pytest.mark.parametrize("head", ["o2m", "o2o"])
QUALITIES = [Matching(1, (0.2, 0.8)), Matching(13, (0.2, 0.8)), Matching(13, (0.5, 2.0))]
MATCHINGS = pytest.mark.parametrize("matching", [*PUBLISHED.values(), *QUALITIES], ids=str)
SETTINGS: dict[HeadName, Matching] = {
    "o2m": Matching(13, (0.2, 0.8)),
    "o2o": Matching(1, (0.2, 0.8)),
}


@dataclass(frozen=True)
class Batch:
    """Random predictions and objects."""

    prediction: Prediction
    objects: list[tuple[Tensor, Tensor]]
    padding: Tensor | None

    @property
    def targets(self) -> Targets:
        return pad_targets([b for b, _ in self.objects], [c for _, c in self.objects])

    def fresh(self) -> Prediction:
        """The prediction with leaves of its own, to take gradients by."""
        p = self.prediction
        logits, boxes = (t.clone().requires_grad_() for t in (p.logits, p.boxes))
        return replace(p, logits=logits, boxes=boxes)

    def match(self, matching: Matching) -> Assignment:
        return assign(self.prediction, self.targets, matching)

    def loops(self, matching: Matching, p: Prediction | None = None) -> LoopResult:
        p = p or self.prediction
        padded = None if self.padding is None else padded_cells(self.padding, p.shapes)
        tensors = p.logits, p.boxes, p.points, p.strides
        return loop_losses(*tensors, self.objects, padded, matching.topk, matching.quality)


def make_batch(
    seed: int,
    counts: tuple[int, ...],
    size: tuple[int, int] = (96, 128),
    classes: int = 80,
    padding: bool = False,
    spread: float = 0.5,
) -> Batch:
    """Objects of 4 to 60 pixels, the small ones to be left out."""
    random = torch.Generator().manual_seed(seed)
    shapes = [(-(-size[0] // s), -(-size[1] // s)) for s in STRIDES]
    points, strides = anchor_points(shapes, STRIDES)
    shape = len(counts), len(points)
    logits = torch.randn(*shape, classes, generator=random) - 2
    deltas = spread * torch.randn(*shape, 4, generator=random)
    deltas[..., 2:] += 1
    prediction = Prediction(logits, decode(deltas, points, strides), points, strides, shapes)
    objects = []
    for count in counts:
        corner = torch.rand(count, 2, generator=random) * torch.tensor([size[1], size[0]]) - 8
        sides = 4 + 56 * torch.rand(count, 2, generator=random)
        labels = torch.randint(classes, (count,), generator=random)
        objects.append((torch.cat([corner, corner + sides], dim=1), labels))
    mask = None
    if padding:
        mask = torch.zeros(len(counts), *size, dtype=torch.bool)
        for i in range(len(counts)):  # another size of picture in every image
            mask[i, size[0] - 16 * i :] = True
            mask[i, :, size[1] - 24 * (i + 1) :] = True
    return Batch(prediction, objects, mask)


def with_duplicates() -> Batch:
    """Every object twice, the second time with another label in one of the images."""
    batch = make_batch(20, (4, 6))
    first, second = batch.objects
    other = torch.cat([first[0], first[0]]), torch.cat([first[1], (first[1] + 1) % 80])
    same = torch.cat([second[0], second[0]]), torch.cat([second[1], second[1]])
    return Batch(batch.prediction, [other, same], None)


CASES: dict[str, Callable[[], Batch]] = {
    "usual": lambda: make_batch(0, (5, 9, 1)),
    "padded": lambda: make_batch(1, (6, 3, 8), padding=True),
    "no objects": lambda: make_batch(2, (0, 0)),
    "some without objects": lambda: make_batch(3, (0, 7, 0), padding=True),
    "sixty objects": lambda: make_batch(4, (60, 2)),
    "one class": lambda: make_batch(5, (8, 4), classes=1),
    "sixty of one class": lambda: make_batch(6, (60, 33), classes=1, padding=True),
    "more objects than cells": lambda: make_batch(7, (30, 3), size=(32, 32)),
    "one cell a level": lambda: make_batch(8, (2, 1), size=(8, 8)),
    "good predictions": lambda: make_batch(9, (6, 6), spread=0.1),
    "duplicates": with_duplicates,
}
BATCHES = pytest.mark.parametrize("name", CASES)


@MATCHINGS
@BATCHES
def test_assignments_are_those_of_the_loops(name: str, matching: Matching) -> None:
    batch = CASES[name]()
    found, loops = batch.match(matching), batch.loops(matching)
    classes = batch.prediction.logits.shape[2]
    for i, (truth, labels) in enumerate(batch.objects):
        owner = loops.owners[i]
        positive = owner >= 0
        assert torch.equal(found.labels[i] < classes, positive)
        assert torch.equal(found.labels[i][positive], labels[owner[positive]])
        assert torch.equal(found.boxes[i][positive], truth[owner[positive]])
        assert not found.boxes[i][~positive].any()
        torch.testing.assert_close(found.metrics[i], loops.metrics[i], rtol=1e-6, atol=1e-7)


@HEADS
@BATCHES
def test_losses_and_gradients_are_those_of_the_loops(name: str, head: HeadName) -> None:
    batch = CASES[name]()
    fast, slow = batch.fresh(), batch.fresh()
    found = head_losses(fast, batch.targets, PUBLISHED[head], batch.padding)
    loops = batch.loops(PUBLISHED[head], slow)
    torch.testing.assert_close(found.cls, loops.cls, rtol=2e-6, atol=0)
    torch.testing.assert_close(found.box, loops.box, rtol=2e-6, atol=1e-7)
    found.total.backward()
    (loops.cls + 2 * loops.box).backward()
    assert fast.logits.grad is not None and slow.logits.grad is not None
    torch.testing.assert_close(fast.logits.grad, slow.logits.grad, rtol=1e-4, atol=1e-7)
    if slow.boxes.grad is None:  # no loop met a positive cell
        assert fast.boxes.grad is not None and not fast.boxes.grad.any()
    else:
        torch.testing.assert_close(fast.boxes.grad, slow.boxes.grad, rtol=1e-4, atol=1e-7)


def test_the_cases_are_worth_comparing() -> None:
    """Contested cells, several cells of an object, and objects with none all occur."""
    for name, head in (("sixty objects", "o2m"), ("more objects than cells", "o2o")):
        batch = CASES[name]()
        owners = batch.loops(PUBLISHED[head]).owners[0]
        used = owners[owners >= 0].unique()
        assert 0 < len(used) < len(batch.objects[0][0])
    usual = CASES["usual"]()
    o2m, o2o = ((usual.match(PUBLISHED[head]).labels < 80).sum() for head in ("o2m", "o2o"))
    assert o2m > o2o > 5


@pytest.mark.parametrize(
    "matching", [*PUBLISHED.values(), *QUALITIES[:2], Matching(1, hungarian=True)], ids=str
)
@pytest.mark.parametrize("block", [1, 7, 25])
def test_blocks_of_objects_change_nothing(
    block: int, matching: Matching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many pairs for the memory budget: objects in blocks, some of them only padding."""
    for name in ("sixty of one class", "duplicates", "no objects"):
        batch = CASES[name]()
        whole = batch.match(matching)
        images, cells = whole.labels.shape
        with monkeypatch.context() as patch:
            patch.setattr(assign_module, "PAIRS_PER_BLOCK", block * images * cells)
            parts = batch.match(matching)
        assert torch.equal(parts.labels, whole.labels)
        assert torch.equal(parts.boxes, whole.boxes)
        assert torch.equal(parts.metrics, whole.metrics)


def on(device: str, batch: Batch) -> tuple[Prediction, Targets, Tensor]:
    p, t = batch.fresh(), batch.targets
    tensors = (x.detach().to(device) for x in (p.logits, p.boxes, p.points, p.strides))
    logits, boxes, points, strides = tensors
    assert batch.padding is not None
    moved = Targets(t.boxes.to(device), t.labels.to(device), t.valid.to(device))
    leaves = logits.requires_grad_(), boxes.requires_grad_()
    return Prediction(*leaves, points, strides, p.shapes), moved, batch.padding.to(device)


def step(
    prediction: Prediction,
    targets: Targets,
    padding: Tensor,
    matching: dict[HeadName, Matching] = PUBLISHED,
) -> dict[HeadName, Losses]:
    losses = {
        head: head_losses(prediction, targets, own, padding) for head, own in matching.items()
    }
    torch.stack([loss.total for loss in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
    return losses


@pytest.mark.parametrize("matching", [PUBLISHED, SETTINGS], ids=["published", "quality"])
@pytest.mark.parametrize("blocks", [1, 6])
def test_no_value_is_looked_at(
    blocks: int, matching: dict[HeadName, Matching], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without values go through: no step of it waits for a GPU to know one."""
    prediction, targets, padding = on("meta", CASES["padded"]())
    pairs = targets.valid.numel() * len(prediction.points)
    monkeypatch.setattr(assign_module, "PAIRS_PER_BLOCK", -(-pairs // blocks))
    losses = step(prediction, targets, padding, matching)
    assert losses["o2o"].total.shape == ()
    assert prediction.logits.grad is not None
    assert prediction.logits.grad.shape == prediction.logits.shape
    with pytest.raises((RuntimeError, NotImplementedError)):
        losses["o2o"].total.item()  # what this test would not let through


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("matching", [PUBLISHED, SETTINGS], ids=["published", "quality"])
def test_no_wait_for_the_gpu(matching: dict[HeadName, Matching]) -> None:
    batch = CASES["padded"]()
    arguments = on("cuda", batch)
    step(*arguments, matching)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = step(*arguments, matching)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for head, own in matching.items():
        p, targets = batch.prediction, batch.targets
        want = head_losses(p, targets, own, batch.padding).total
        torch.testing.assert_close(losses[head].total.cpu(), want, rtol=1e-4, atol=1e-5)


# Assignment, losses and gradients against the authors' implementation


IMAGES = 3
NUM_CLASSES = 80

Arrays = dict[str, NDArray[np.generic]]


@pytest.fixture
def numbers(reference: Callable[[str], Arrays]) -> Arrays:
    return reference("criterion")


def prediction(numbers: Arrays, head: str) -> Prediction:
    height, width = int(numbers["height"]), int(numbers["width"])
    shapes = [(height // stride, width // stride) for stride in STRIDES]
    points, strides = anchor_points(shapes, STRIDES)
    logits = torch.tensor(numbers[f"{head}/logits"], requires_grad=True)
    boxes = torch.tensor(numbers[f"{head}/boxes"], requires_grad=True)
    return Prediction(logits, boxes, points, strides, shapes)


def targets(numbers: Arrays) -> Targets:
    return pad_targets(
        [torch.tensor(numbers[f"gt{i}/boxes"]) for i in range(IMAGES)],
        [torch.tensor(numbers[f"gt{i}/labels"]) for i in range(IMAGES)],
    )


def losses(numbers: Arrays, p: Prediction, head: HeadName) -> Losses:
    return head_losses(p, targets(numbers), PUBLISHED[head], torch.tensor(numbers["mask"]))


def relative(value: Tensor, want: NDArray[np.generic]) -> float:
    return abs(value.item() / float(want) - 1)


@HEADS
def test_assignment_is_exact(numbers: Arrays, head: HeadName) -> None:
    p = prediction(numbers, head)
    found = assign(p, targets(numbers), PUBLISHED[head])
    for i in range(IMAGES):
        labels = numbers[f"{head}/{i}/assigned_labels"]
        np.testing.assert_array_equal(found.labels[i], labels)
        positive = labels < NUM_CLASSES
        boxes = numbers[f"{head}/{i}/assigned_boxes"]
        np.testing.assert_array_equal(found.boxes[i][positive], boxes[positive])
        metrics = numbers[f"{head}/{i}/assign_metrics"]
        np.testing.assert_allclose(found.metrics[i], metrics, rtol=0, atol=1e-6)
    counts = [(numbers[f"{head}/{i}/assigned_labels"] < NUM_CLASSES).sum() for i in range(IMAGES)]
    assert counts[1] == 0 and counts[0] > 0 and counts[2] > 0  # the fixture is worth comparing


@HEADS
def test_losses_and_gradient_norms(numbers: Arrays, head: HeadName) -> None:
    p = prediction(numbers, head)
    found = losses(numbers, p, head)
    assert relative(found.cls, numbers[f"{head}/loss_cls"]) < 1e-4
    assert relative(found.box, numbers[f"{head}/loss_reg"]) < 1e-4
    assert relative(found.total, numbers[f"{head}/loss"]) < 1e-4
    found.total.backward()
    assert p.logits.grad is not None and p.boxes.grad is not None
    assert relative(p.logits.grad.norm(), numbers[f"{head}/grad_logits_norm"]) < 1e-4
    assert relative(p.boxes.grad.norm(), numbers[f"{head}/grad_boxes_norm"]) < 1e-4


@HEADS
def test_half_precision_inputs_are_computed_in_float32(numbers: Arrays, head: HeadName) -> None:
    p = prediction(numbers, head)
    low = Prediction(p.logits.bfloat16(), p.boxes, p.points, p.strides, p.shapes)
    rounded = Prediction(low.logits.float(), p.boxes, p.points, p.strides, p.shapes)
    assert losses(numbers, low, head).total.dtype == torch.float32
    assert torch.equal(losses(numbers, low, head).total, losses(numbers, rounded, head).total)


# The losses' derivative, normaliser and extremes


SHAPES = [(8, 8), (4, 4), (2, 2)]  # levels of a 64 × 64 input
CLASSES = 4


def test_gradient_is_that_of_automatic_differentiation() -> None:
    random = torch.Generator().manual_seed(4)
    values = 5 * torch.randn(2, 40, 7, generator=random)
    labels = torch.randint(8, (2, 40), generator=random)
    metrics = torch.rand(2, 40, generator=random) * (labels < 7)
    fast, slow = values.clone().requires_grad_(), values.clone().requires_grad_()
    found = QualityFocalLoss.apply(fast, labels, metrics)
    target = F.one_hot(labels, 8)[..., :7] * metrics[..., None]
    bce = F.binary_cross_entropy_with_logits(slow, target, reduction="none")
    want = (bce * (target - slow.sigmoid()) ** 2).sum(dim=2)
    torch.testing.assert_close(found, want, rtol=2e-5, atol=1e-6)
    weights = torch.rand(2, 40, generator=random)
    for _ in range(2):  # the graph can be kept and used again
        (found * weights).sum().backward(retain_graph=True)
    (2 * want * weights).sum().backward()
    assert fast.grad is not None and slow.grad is not None
    torch.testing.assert_close(fast.grad, slow.grad, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("others", [0.0, 3.5, -1e6])
def test_normaliser_is_averaged_over_processes_then_limited(others: float) -> None:
    """As if a second process had metrics of `others` in sum; the last is below 1 in the mean."""
    batch = make_batch(0, (5, 9))
    prediction, targets = batch.prediction, batch.targets
    seen: list[Tensor] = []

    def average(metrics: Tensor) -> Tensor:
        seen.append(metrics)
        return (metrics + others) / 2

    alone = head_losses(prediction, targets, PUBLISHED["o2m"])
    together = head_losses(prediction, targets, PUBLISHED["o2m"], reduce=average)
    (metrics,) = seen
    assert metrics.shape == () and not metrics.requires_grad
    found = assign(prediction, targets, PUBLISHED["o2m"])
    assert metrics.item() == pytest.approx(found.metrics.sum().item(), rel=1e-6)
    assert metrics.item() > 2
    ratio = metrics.item() / max(1.0, (metrics.item() + others) / 2)
    for a, b in ((alone.cls, together.cls), (alone.box, together.box)):
        assert b.item() == pytest.approx(a.item() * ratio, rel=1e-5)


def test_padded_cells_follow_the_nearest_pixel() -> None:
    padding = torch.zeros(1, 64, 64, dtype=torch.bool)
    padding[0, :, 40:] = True
    cells = padded_cells(padding, SHAPES)
    assert cells.shape == (1, 84)
    levels = [
        c.reshape(shape) for c, shape in zip(cells[0].split([64, 16, 4]), SHAPES, strict=True)
    ]
    for level, stride in zip(levels, STRIDES, strict=True):
        # Nearest takes the upper left pixel of a cell.
        want = torch.arange(0, 64, stride) >= 40
        assert torch.equal(level, want.expand(level.shape))


def test_extreme_logits_stay_finite() -> None:
    batch = make_batch(0, (5, 9))
    p, targets = batch.prediction, batch.targets
    for scale in (1e3, -1e3):
        logits = (p.logits * scale).requires_grad_()
        loss = head_losses(replace(p, logits=logits), targets, PUBLISHED["o2o"])
        loss.total.backward()
        assert math.isfinite(loss.total.item())
        assert logits.grad is not None and bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("size", [20.0, 45.0, 60.0])
def test_boxes_of_any_size_in_the_background_change_nothing(size: float) -> None:
    """exp(45) strides squared is beyond float32, and infinity − infinity is not a number."""
    points, strides = anchor_points(SHAPES, STRIDES)
    first = torch.tensor([[4.0, 4, 30, 28], [20, 30, 60, 62]]), torch.tensor([1, 3])
    second = torch.tensor([[10.0, 12, 50, 40]]), torch.tensor([0])
    targets = pad_targets([first[0], second[0]], [first[1], second[1]])
    random = torch.Generator().manual_seed(0)
    deltas = torch.randn(2, len(points), 4, generator=random) * 0.5 + 0.5
    logits = torch.randn(2, len(points), CLASSES, generator=random)
    background = 7  # at the upper right, outside both objects of the first image
    assert points[background].tolist() == [60, 4]
    deltas[0, background] = torch.tensor([0.0, 0.0, -3.0, -3.0])
    huge = deltas.clone()
    huge[0, background, 2:] = size
    made = []
    for values in (deltas, huge):
        values.requires_grad_()
        boxes = decode(values, points, strides)
        p = Prediction(logits, boxes, points, strides, SHAPES)
        loss = head_losses(p, targets, PUBLISHED["o2m"])
        loss.total.backward()
        assert values.grad is not None and bool(values.grad.isfinite().all())
        assert not values.grad[0, background].any()
        made.append((loss.total.item(), values.grad))
    assert math.isfinite(made[1][0])
    assert made[0][0] == made[1][0] and made[0][1].equal(made[1][1])


def test_two_boxes_without_area_have_a_finite_slope() -> None:
    """What stands in for the background's boxes, against background."""
    for where in (0.0, 5.0):
        boxes = torch.full((1, 4), where, requires_grad=True)
        value = giou(boxes, torch.full((1, 4), where)).sum()
        value.backward()
        assert math.isfinite(value.item())
        assert boxes.grad is not None and bool(boxes.grad.isfinite().all())
