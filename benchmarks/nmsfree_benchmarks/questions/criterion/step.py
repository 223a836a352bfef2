"""What the criterion costs beside the network, in time and memory, on this processor."""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from nmsfree_benchmarks.harness.memory import repeated
from nmsfree_training.config import STRIDES, Matching, Preset
from nmsfree_training.criterion.assignment import Targets, pad_targets
from nmsfree_training.criterion.losses import head_losses
from nmsfree_training.loop.probe import use_threads
from nmsfree_training.model.boxes import anchor_points, decode
from nmsfree_training.model.detector import Fcos, Prediction, place

SAMPLING_S = 0.0005  # between two looks at the process's memory

Predictions = dict[str, Prediction]
Criterion = Callable[[Predictions, Targets, Tensor], Tensor]  # padding last → the total loss


class Shape(NamedTuple):
    batch: int
    objects: int  # in every image
    size: tuple[int, int]  # (height, width) in pixels


SMALLEST = Shape(1, 1, (64, 64))  # for what is set up once


def growth(run: Callable[[], object]) -> int:
    """The bytes by which this process grows at most while something runs."""
    process = psutil.Process()
    # Freed memory goes back to Linux first, or its second use would not be seen as growth.
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others keep less
        if trim is not None:
            trim(0)
    start, seen = process.memory_info().rss, [0]
    with repeated(lambda: seen.append(process.memory_info().rss - start), SAMPLING_S):
        run()
    return max(seen)


def cost_of(
    preset: Preset, shape: Shape, threads: int, times: Sequence[tuple[float, float]], peak: int
) -> dict[str, Any]:
    """What is said of a preset, ready for JSON.

    Args:
        times: seconds of the network's forward and backward, and of the criterion's forward with
            its backward to logits and boxes; of each step. The share is the latter by the former.
        peak: bytes of the criterion's memory beyond its inputs.
    """
    batch, objects, (height, width) = shape
    network, criterion = zip(*times, strict=True)
    return {
        "preset": preset.model.name,
        "batch": batch,
        "height": height,
        "width": width,
        "classes": preset.model.num_classes,
        "objects": objects,
        "threads": threads,
        "torch": torch.__version__,
        "network_s": _spread(network),
        "criterion_s": _spread(criterion),
        "share": _spread([c / n for n, c in times]),
        "criterion_peak_mb": round(peak / 1e6, 3),
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "all": list(values),
    }


def summary(cost: dict[str, Any]) -> str:
    """Three lines of text."""
    network, criterion, share = (cost[name] for name in ("network_s", "criterion_s", "share"))
    mb = cost["criterion_peak_mb"]
    peak = f"{1e3 * mb:.0f} kB" if mb < 1 else f"{mb:.{0 if mb >= 100 else 1}f} MB"
    return (
        f"{cost['preset']}, batch {cost['batch']}, {cost['height']} × {cost['width']}, "
        f"{cost['classes']} classes, {cost['objects']} objects an image, {cost['threads']} "
        f"threads\nnetwork forward + backward {_time(network)}, "
        f"criterion {_time(criterion)}: {_range(share, 100, 2, '%')}\n"
        f"peak memory of the criterion {peak}"
    )


def _time(spread: dict[str, Any]) -> str:
    median = spread["median"]
    if median >= 1:
        return _range(spread, 1, 1, "s")
    return _range(spread, 1e3, 0 if median >= 0.1 else 1 if median >= 0.01 else 2, "ms")


def _range(spread: dict[str, Any], scale: float, digits: int, unit: str) -> str:
    median, low, high = (f"{spread[k] * scale:.{digits}f}" for k in ("median", "low", "high"))
    return f"{median} {unit} ({low}–{high})"


def total_loss(predictions: Predictions, targets: Targets, padding: Tensor) -> Tensor:
    losses = [
        head_losses(own, targets, Matching(topk=13 if head == "o2m" else 1), padding)
        for head, own in predictions.items()
    ]
    return torch.stack([loss.total for loss in losses]).sum()


def measure_step(
    preset: Preset,
    shape: Shape,
    rounds: int,
    threads: int | None = None,
    criterion: Criterion = total_loss,
) -> dict[str, Any]:
    """Time training steps on random images and objects, split into network and criterion.

    A round is one step as the trainer takes it, on a processor in float32: the network's forward,
    the criterion's forward and its backward to the predictions, the network's backward from
    there. Both are timed inside the same step, so what else the machine does falls on both. The
    optimizer is left out.
    """
    used = threads or torch.get_num_threads()
    with use_threads(used):
        peak = criterion_memory(preset, shape, criterion)
        network = place(Fcos(preset.model), torch.device("cpu")).train()
        share = preset.train.o2o_gradient if len(preset.model.heads) == 2 else 1.0
        _step(network, share, criterion, SMALLEST)
        times = [_step(network, share, criterion, shape) for _ in range(rounds)]
    return cost_of(preset, shape, used, times, peak)


def criterion_memory(preset: Preset, shape: Shape, criterion: Criterion = total_loss) -> int:
    """Return the bytes by which this process grows at most while the criterion runs.

    The highest of three runs: memory is looked at every half millisecond, and what the process
    holds already may serve a run unseen. Predictions are random; they and the targets are not
    counted, the gradients are.
    """
    first = random_predictions(preset, 1, SMALLEST.size)
    _criterion_step(criterion, first, *_batch(SMALLEST, 1))
    predictions = random_predictions(preset, shape.batch, shape.size)
    made = _batch(shape, preset.model.num_classes)
    return max(growth(lambda: _criterion_step(criterion, predictions, *made)) for _ in range(3))


def random_predictions(preset: Preset, batch: int, size: tuple[int, int]) -> Predictions:
    """Return predictions of every head: low scores, boxes around the points of some cells."""
    shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]
    points, strides = anchor_points(shapes, STRIDES)
    made: Predictions = {}
    for head in preset.model.heads:
        logits = torch.randn(batch, len(points), preset.model.num_classes).sub_(4.6)
        deltas = torch.randn(batch, len(points), 4).mul_(0.5)
        deltas[..., 2:] += 1
        made[head] = Prediction(logits, decode(deltas, points, strides), points, strides, shapes)
    return made


def random_targets(batch: int, objects: int, size: tuple[int, int], classes: int) -> Targets:
    """Return objects of 10 px up to half of the image, in the same number in every image."""
    height, width = size
    boxes = []
    for _ in range(batch):
        sides = 10 * (torch.tensor([width, height]) / 20) ** torch.rand(objects, 2)
        corner = torch.rand(objects, 2) * (torch.tensor([width, height]) - sides)
        boxes.append(torch.cat([corner, corner + sides], dim=1))
    return pad_targets(boxes, [torch.randint(classes, (objects,)) for _ in range(batch)])


def _batch(shape: Shape, classes: int) -> tuple[Targets, Tensor]:
    batch, objects, size = shape
    padding = torch.zeros(batch, *size, dtype=torch.bool)
    padding[:, :, size[1] - size[1] // 8 :] = True
    return random_targets(batch, objects, size, classes), padding


def _step(
    network: Fcos, o2o_gradient: float, criterion: Criterion, shape: Shape
) -> tuple[float, float]:
    targets, padding = _batch(shape, network.config.num_classes)
    images = torch.randn(shape.batch, 3, *shape.size)
    images = images.contiguous(memory_format=torch.channels_last)
    network.zero_grad(set_to_none=True)
    start = time.perf_counter()
    predictions: Predictions = network(images, o2o_gradient=o2o_gradient)
    forward = time.perf_counter()
    gradients = _criterion_step(criterion, predictions, targets, padding)
    middle = time.perf_counter()
    outputs = [t for p in predictions.values() for t in (p.logits, p.boxes)]
    torch.autograd.backward(outputs, gradients)
    return time.perf_counter() - middle + forward - start, middle - forward


def _criterion_step(
    criterion: Criterion, predictions: Predictions, targets: Targets, padding: Tensor
) -> list[Tensor]:
    """Gradients by the logits and boxes of every head."""
    leaves = {
        head: replace(
            p,
            logits=p.logits.detach().requires_grad_(),
            boxes=p.boxes.detach().requires_grad_(),
        )
        for head, p in predictions.items()
    }
    inputs = [t for p in leaves.values() for t in (p.logits, p.boxes)]
    return list(torch.autograd.grad(criterion(leaves, targets, padding), inputs))
