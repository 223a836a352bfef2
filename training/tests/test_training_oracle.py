"""The vectorised criterion against plain loops over images and objects."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nmsfree_training import assign as assign_module
from nmsfree_training.assign import Assignment, Targets, assign, pad_targets
from nmsfree_training.boxes import anchor_points, decode
from nmsfree_training.config import STRIDES, HeadName
from nmsfree_training.detector import Prediction
from nmsfree_training.losses import TOPK, Losses, detector_losses, head_losses, padded_cells

from .loop_criterion import LoopResult, loop_losses

HEADS = pytest.mark.parametrize("head", ["o2m", "o2o"])


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
        return Prediction(logits, boxes, p.points, p.strides, p.shapes)

    def assign(self, head: HeadName) -> Assignment:
        p = self.prediction
        return assign(p.logits, p.boxes, p.points, p.strides, self.targets, TOPK[head])

    def loops(self, head: HeadName, p: Prediction | None = None) -> LoopResult:
        p = p or self.prediction
        padded = None if self.padding is None else padded_cells(self.padding, p.shapes)
        return loop_losses(p.logits, p.boxes, p.points, p.strides, self.objects, padded, TOPK[head])


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


def check_assignment(found: Assignment, batch: Batch, loops: LoopResult) -> None:
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
def test_assignments_are_those_of_the_loops(name: str, head: HeadName) -> None:
    batch = CASES[name]()
    check_assignment(batch.assign(head), batch, batch.loops(head))


@HEADS
@BATCHES
def test_losses_and_gradients_are_those_of_the_loops(name: str, head: HeadName) -> None:
    batch = CASES[name]()
    fast, slow = batch.fresh(), batch.fresh()
    found = head_losses(head, fast, batch.targets, batch.padding)
    loops = batch.loops(head, slow)
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
        owners = batch.loops(head).owners[0]  # type: ignore[arg-type]
        used = owners[owners >= 0].unique()
        assert 0 < len(used) < len(batch.objects[0][0])
    usual = CASES["usual"]()
    assert (usual.assign("o2m").labels < 80).sum() > (usual.assign("o2o").labels < 80).sum() > 5


@HEADS
@pytest.mark.parametrize("block", [1, 7, 25])
def test_blocks_of_objects_change_nothing(
    block: int, head: HeadName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many pairs for the memory budget: objects in blocks, some of them only padding."""
    for name in ("sixty of one class", "duplicates", "no objects"):
        batch = CASES[name]()
        whole = batch.assign(head)
        images, cells = whole.labels.shape
        with monkeypatch.context() as patch:
            patch.setattr(assign_module, "PAIRS_PER_BLOCK", block * images * cells)
            parts = batch.assign(head)
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


def step(prediction: Prediction, targets: Targets, padding: Tensor) -> dict[HeadName, Losses]:
    losses = detector_losses({"o2m": prediction, "o2o": prediction}, targets, padding)
    torch.stack([loss.total for loss in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
    return losses


@pytest.mark.parametrize("blocks", [1, 6])
def test_no_value_is_looked_at(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values go through: no step of it waits for a GPU to know one."""
    prediction, targets, padding = on("meta", CASES["padded"]())
    pairs = targets.valid.numel() * len(prediction.points)
    monkeypatch.setattr(assign_module, "PAIRS_PER_BLOCK", -(-pairs // blocks))
    losses = step(prediction, targets, padding)
    assert losses["o2o"].total.shape == ()
    assert prediction.logits.grad is not None
    assert prediction.logits.grad.shape == prediction.logits.shape
    with pytest.raises((RuntimeError, NotImplementedError)):
        losses["o2o"].total.item()  # what this test would not let through


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_wait_for_the_gpu() -> None:
    batch = CASES["padded"]()
    arguments = on("cuda", batch)
    step(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = step(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for head in TOPK:
        want = head_losses(head, batch.prediction, batch.targets, batch.padding).total
        torch.testing.assert_close(losses[head].total.cpu(), want, rtol=1e-4, atol=1e-5)
