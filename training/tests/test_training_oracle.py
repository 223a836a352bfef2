"""The vectorised criterion against plain loops over images and objects."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from nmsfree_training.config import STRIDES, HeadName, Matching
from nmsfree_training.criterion import assignment as assign_module
from nmsfree_training.criterion.assignment import Assignment, Targets, assign, pad_targets
from nmsfree_training.criterion.losses import (
    PUBLISHED,
    Losses,
    detector_losses,
    head_losses,
    padded_cells,
)
from nmsfree_training.model.boxes import anchor_points, decode
from nmsfree_training.model.detector import Prediction

from .loop_criterion import LoopResult, loop_losses

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
        p = self.prediction
        return assign(p.logits, p.boxes, p.points, p.strides, self.targets, matching)

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
    found = head_losses(head, fast, batch.targets, batch.padding)
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
    "matching",
    [*PUBLISHED.values(), *QUALITIES[:2], Matching(1, hungarian=True)],
    ids=str,
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
    predictions = {"o2m": prediction, "o2o": prediction}
    losses = detector_losses(predictions, targets, padding, matching=matching)
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
        want = head_losses(head, p, targets, batch.padding, matching=own).total
        torch.testing.assert_close(losses[head].total.cpu(), want, rtol=1e-4, atol=1e-5)
