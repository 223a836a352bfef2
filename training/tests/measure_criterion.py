"""The criterion's share of a step, its speed against plain loops, and its memory.

Run by itself, not by pytest: python training/tests/measure_criterion.py [THREADS] [FILE.json].
Takes about ten minutes and 8 GB for batch 16 at 512 × 736.
"""

import json
import logging
import statistics
import sys
import time
from pathlib import Path

import torch
from loop_criterion import loop_losses
from torch import Tensor

from nmsfree_benchmarks.questions.criterion import (
    Predictions,
    criterion_memory,
    measure_step,
    random_predictions,
    random_targets,
    total_loss,
)
from nmsfree_training.config import preset
from nmsfree_training.criterion.assignment import Targets
from nmsfree_training.criterion.losses import PUBLISHED, padded_cells
from nmsfree_training.model.detector import Prediction

logger = logging.getLogger(__name__)

BATCH, SIZE, OBJECTS, CLASSES, ROUNDS = 16, (512, 736), 50, 80, 3


def loop_total(predictions: Predictions, targets: Targets, padding: Tensor) -> Tensor:
    """Return the total loss by the loops in `loop_criterion.py`."""
    objects = list(zip(targets.boxes, targets.labels, strict=True))
    totals = []
    for head, p in predictions.items():
        padded = padded_cells(padding, p.shapes)
        topk = PUBLISHED[head].topk  # type: ignore[index]
        found = loop_losses(p.logits, p.boxes, p.points, p.strides, objects, padded, topk)
        totals.append(found.cls + 2 * found.box)
    return torch.stack(totals).sum()


def against_loops() -> dict[str, float]:
    """Both on the same predictions, in turns; medians in seconds, their ratio and its range."""
    targets = random_targets(BATCH, OBJECTS, SIZE, CLASSES)
    made = random_predictions(preset("fcos_rt_r18_3x"), BATCH, SIZE)["o2m"]
    padding = torch.zeros(BATCH, *SIZE, dtype=torch.bool)
    fast, slow = [], []
    for _ in range(ROUNDS + 1):
        for criterion, seconds in ((total_loss, fast), (loop_total, slow)):
            logits, boxes = (t.clone().requires_grad_() for t in (made.logits, made.boxes))
            p = Prediction(logits, boxes, made.points, made.strides, made.shapes)
            start = time.perf_counter()
            loss = criterion({"o2m": p}, targets, padding)
            loss.backward()  # type: ignore[no-untyped-call]
            seconds.append(time.perf_counter() - start)
    ratios = [s / f for f, s in zip(fast[1:], slow[1:], strict=True)]  # the first warms up
    return {
        "fast_s": statistics.median(fast[1:]),
        "loops_s": statistics.median(slow[1:]),
        "times_faster": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
    }


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    report: dict[str, object] = {"threads": threads}
    for objects in (OBJECTS, 500):
        used = criterion_memory(preset("fcos_rt_r18_3x"), objects=objects) / 1e6
        report[f"peak_mb_{objects}_objects"] = round(used)
        logger.info("peak memory with %d objects an image: %.0f MB", objects, used)
    loops = report["against_loops"] = against_loops()
    logger.info("against loops: %(times_faster).1f × (%(low).1f–%(high).1f)", loops)
    for name in ("fcos_rt_r18_3x", "fcos_e2e_r18_3x"):
        cost = measure_step(preset(name), rounds=ROUNDS, threads=threads)
        report[name] = cost.to_json()
        logger.info(cost.summary())
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
