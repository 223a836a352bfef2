"""How fast images are loaded, stage by stage.

A loader process decodes, resizes, augments and packs; the training process normalises what
arrives. Both are timed on one thread, on files that the operating system has in its cache: a slow
disk comes on top.
"""

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree_training.config import Preset
from nmsfree_training.data.augment import Example
from nmsfree_training.data.batch import pack, unpack
from nmsfree_training.data.examples import TrainingSet
from nmsfree_training.data.loader import epoch_loader, epoch_order


@contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """Use this many threads, None = as many as now; gives their number, restores it at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield count or before
    finally:
        torch.set_num_threads(before)


IMAGES = 256  # distinct ones, at most; the others would be read from the disk
STAGES = {
    "decode": "read and decode",
    "resize": "resize and crop",
    "mix": "mosaic and mixup",
    "augment": "flip and colour",
    "pack": "pack the batch",
    "normalize": "normalise (in the training process)",
}


@dataclass(frozen=True)
class LoadingSpeed:
    """What one core loads.

    Attributes:
        images: examples timed.
        stages: milliseconds per example of each of `STAGES`, means over all batches.
        images_per_second: of one core that does everything, the median over batches.
        quartiles: the same, lower and upper quartile; a wide span distrusts the median.
    """

    images: int
    stages: dict[str, float]
    images_per_second: float
    quartiles: tuple[float, float]

    @property
    def images_per_second_per_process(self) -> float:
        """Of one loader process: everything but normalising."""
        whole = sum(self.stages.values())
        return self.images_per_second * whole / (whole - self.stages["normalize"])

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        return values | {
            "images_per_second_per_core": values.pop("images_per_second"),
            "images_per_second_per_process": self.images_per_second_per_process,
        }

    def summary(self) -> str:
        """A few lines of text."""
        low, high = self.quartiles
        whole = sum(self.stages.values())
        lines = [
            f"loading, one core: {self.images_per_second:.0f} images/s "
            f"(median of batches, quartiles {low:.0f} … {high:.0f}; {self.images} images, files in "
            "the cache)"
        ]
        lines += [
            f"  {STAGES[name]:<36} {ms:7.3f} ms  {ms / whole * 100:3.0f} %"
            for name, ms in self.stages.items()
            if ms > 0
        ]
        return "\n".join(lines)


def measure_loading(
    dataset: DetectionDataset, preset: Preset, *, seconds: float = 5.0, seed: int = 0
) -> LoadingSpeed:
    """Time every stage of loading in this process, on one thread.

    At least two batches are loaded; the first is not timed.

    Raises:
        DataError: there are no images, or they cannot be used.
    """
    chosen = epoch_order(len(dataset), seed, 0)[:IMAGES].tolist()
    few = replace(dataset, samples=tuple(dataset.samples[i] for i in chosen))
    whole = replace(preset, train=replace(preset.train, accumulate=1))
    with _one_thread():
        rows = _time_batches(few, whole, seconds, seed)
    size, times = rows[0][0], np.array([row[1] for row in rows]) / rows[0][0]
    totals = 1e3 / times.sum(axis=1)
    low, middle, high = statistics.quantiles(totals, n=4) if len(rows) > 1 else (totals[0],) * 3
    stages = dict(zip(STAGES, times.mean(axis=0).tolist(), strict=True))
    return LoadingSpeed(size * len(rows), stages, float(middle), (float(low), float(high)))


def _time_batches(
    dataset: DetectionDataset, preset: Preset, seconds: float, seed: int
) -> list[tuple[int, list[float]]]:
    """Return (images, milliseconds of each stage) of batch after batch."""
    clock = Clock()
    rows: list[tuple[int, list[float]]] = []
    end, epoch = math.inf, 0
    while True:
        loader = epoch_loader(dataset, preset, seed, epoch, workers=0)
        examples = _TimedSet(dataset, preset, seed, epoch, clock)
        for indices in loader.batches.parts:
            clock.reset()
            items = [examples[index] for index in indices]
            with clock.stage("pack"):
                packed = pack(items)
            with clock.stage("normalize"):
                unpack(packed)
            rows.append((len(indices), [clock.milliseconds[name] for name in STAGES]))
            if len(rows) == 1:  # it filled caches
                end = time.perf_counter() + seconds
            elif time.perf_counter() >= end:
                return rows[1:]
        epoch += 1


class Clock:
    """Adds up the time of stages; one inside another stops the outer."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0
        self.reset()

    def reset(self) -> None:
        """Start from zero."""
        self.milliseconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._lap()
        self._running.append(name)
        try:
            yield
        finally:
            self._lap()
            self._running.pop()

    def _lap(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.milliseconds[self._running[-1]] += (now - self._since) * 1e3
        self._since = now


class _TimedSet(TrainingSet):
    """A training set whose stages are timed."""

    def __init__(
        self, dataset: DetectionDataset, preset: Preset, seed: int, epoch: int, clock: Clock
    ) -> None:
        super().__init__(dataset, preset, seed, epoch)
        self.clock = clock

    def load(self, index: int, rng: np.random.Generator) -> Example:
        with self.clock.stage("decode"):
            return super().load(index, rng)

    def mosaic(self, index: int, rng: np.random.Generator) -> Example:
        with self.clock.stage("mix"):
            return super().mosaic(index, rng)

    def place(self, example: Example, rng: np.random.Generator) -> Example:
        with self.clock.stage("resize"):
            return super().place(example, rng)

    def mixup(self, first: Example, second: Example, rng: np.random.Generator) -> Example:
        with self.clock.stage("mix"):
            return super().mixup(first, second, rng)

    def finish(self, example: Example, rng: np.random.Generator) -> Example:
        with self.clock.stage("augment"):
            return super().finish(example, rng)


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenCV and PyTorch on one thread each."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        with torch_threads(1):
            yield
    finally:
        cv2.setNumThreads(before)
