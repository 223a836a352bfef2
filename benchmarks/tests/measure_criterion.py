"""The criterion's speed against plain loops. `nmsfree bench criterion` measures all the rest.

Run by itself, not by pytest: python benchmarks/tests/measure_criterion.py [THREADS]. Takes some
minutes and 8 GB.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from nmsfree_benchmarks.questions.criterion.step import (
    Predictions,
    random_predictions,
    random_targets,
    total_loss,
)
from nmsfree_training.config import preset
from nmsfree_training.criterion.assignment import Targets
from nmsfree_training.criterion.losses import PUBLISHED, padded_cells
from nmsfree_training.model.detector import Prediction

sys.path.insert(0, str(Path(__file__).parents[2] / "training/tests"))
from loop_criterion import loop_losses

BATCH, SIZE, OBJECTS, CLASSES, ROUNDS = 16, (512, 736), 50, 80, 3


def loop_total(predictions: Predictions, targets: Targets, padding: Tensor) -> Tensor:
    """Return the total loss by the loops in `loop_criterion.py`."""
    objects = list(zip(targets.boxes, targets.labels, strict=True))
    totals = []
    for head, p in predictions.items():
        padded = padded_cells(padding, p.shapes)
        topk = PUBLISHED[head].topk
        found = loop_losses(p.logits, p.boxes, p.points, p.strides, objects, padded, topk)
        totals.append(found.cls + 2 * found.box)
    return torch.stack(totals).sum()


def main() -> None:
    """Both on the same predictions, in turns; the first round warms up."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    torch.manual_seed(0)
    targets = random_targets(BATCH, OBJECTS, SIZE, CLASSES)
    made = random_predictions(preset("fcos_rt_r18_3x"), BATCH, SIZE)["o2m"]
    padding = torch.zeros(BATCH, *SIZE, dtype=torch.bool)
    fast, slow = [], []
    for _ in range(ROUNDS + 1):
        for criterion, seconds in ((total_loss, fast), (loop_total, slow)):
            logits, boxes = (t.clone().requires_grad_() for t in (made.logits, made.boxes))
            p = Prediction(logits, boxes, made.points, made.strides, made.shapes)
            start = time.perf_counter()
            criterion({"o2m": p}, targets, padding).backward()
            seconds.append(time.perf_counter() - start)
    ratios = [s / f for f, s in zip(fast[1:], slow[1:], strict=True)]
    text = f"{statistics.median(ratios):.1f} × faster ({min(ratios):.1f}–{max(ratios):.1f})\n"
    sys.stdout.write(f"{statistics.median(fast[1:]):.3f} s, {text}")


if __name__ == "__main__":
    main()
