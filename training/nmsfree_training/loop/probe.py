"""What trains fastest on this machine: threads, loader processes and precision, tried shortly."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from statistics import median

import cv2
import torch

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.machine import computes_bf16, processors
from nmsfree_training.config import HeadName, Preset
from nmsfree_training.criterion.assignment import pad_targets
from nmsfree_training.data.batch import Batch, pack, unpack
from nmsfree_training.data.examples import TrainingSet
from nmsfree_training.loop.distributed import World
from nmsfree_training.loop.step import Stepper, make_optimizer
from nmsfree_training.model.detector import Fcos

PIXELS = 256 * 256  # of an image that is tried: a larger one takes as much longer with any choice
STEP_SECONDS = 0.2  # a step has as many images as take about that long
# In each every choice is timed once; after two, those that are hopeless in both are left out: what
# else the machine does may have disturbed one.
ROUNDS, SURE = 4, 2
LOADING_SECONDS = 0.3
HOPELESS = 1.5  # times the fastest step
MOST_WORKERS = 16
GAIN = 1.03  # by which another loader process must be faster


@dataclass(frozen=True)
class Setting:
    """How a run uses the machine."""

    threads: int
    workers: int
    precision: str

    def __str__(self) -> str:
        flags = f"--threads {self.threads} --workers {self.workers}"
        return f"{flags} --precision {self.precision}"


@dataclass(frozen=True)
class Wanted:
    """What the user has chosen already; None: the fastest."""

    threads: int | None = None
    workers: int | None = None
    precision: str | None = None


@dataclass(frozen=True)
class Probe:
    """What came out."""

    best: Setting
    images_per_second: float  # that it should reach
    steps: dict[tuple[int, str], float]  # seconds of an image in a step by (threads, precision)
    loading: float  # seconds of an image in one loader process
    seconds: float  # that this took

    def __str__(self) -> str:
        tried = ", ".join(
            f"{threads} thread{'s' * (threads != 1)} {precision} {1 / seconds:.3g}"
            for (threads, precision), seconds in self.steps.items()
        )
        return (
            f"fastest here: {self.best} (about {self.images_per_second:.3g} images/s; tried for "
            f"{self.seconds:.1f} s: {tried} images/s, loading {1 / self.loading:.3g})"
        )


def has_bf16(device: torch.device) -> bool:
    """Whether it computes in bfloat16; autocast itself is content with an emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return computes_bf16() is not False


def probe(
    network: Fcos,
    preset: Preset,
    heads: tuple[HeadName, ...],
    dataset: DetectionDataset,
    device: torch.device,
    wanted: Wanted,
) -> Probe:
    """Time steps on noise and the loading of some images; the network stays as it is.

    Raises:
        DataError: the images cannot be used.
    """
    started, cores = time.monotonic(), processors()
    loading = _time_loading(dataset, preset)
    steps = _time_steps(network, preset, heads, device, wanted)
    shared = cores if device.type == "cpu" else None
    workers = range(min(cores, MOST_WORKERS) + 1) if wanted.workers is None else [wanted.workers]
    best, least = None, float("inf")
    for (threads, precision), step in steps.items():
        for count in workers:
            seconds = expected(step, loading, threads, count, shared)
            if seconds * GAIN < least:
                best, least = Setting(threads, count, precision), seconds
    assert best is not None
    return Probe(best, 1 / least, steps, loading, time.monotonic() - started)


def expected(step: float, loading: float, threads: int, workers: int, cores: int | None) -> float:
    """Seconds of an image in training, by those in a step and in one loader process.

    `cores` are what both share; None: the step needs none of them.
    """
    if workers == 0:
        return step + loading
    busy = (threads * step + loading) / cores if cores else 0.0
    return max(step, loading / workers, busy)


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Compute with so many threads within the block; images are then worked on by one."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(count)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def _time_loading(dataset: DetectionDataset, preset: Preset) -> float:
    """Seconds of an image: the least of a few, as the first ones come from the disk."""
    examples, times = TrainingSet(dataset, preset, 0, 0), list[float]()
    with use_threads(1):
        for index in cycle(range(len(examples))):
            started = time.perf_counter()
            unpack(pack([examples[index]]))
            times.append(time.perf_counter() - started)
            if sum(times) > LOADING_SECONDS:
                break
    return median(times)


def _time_steps(
    network: Fcos, preset: Preset, heads: tuple[HeadName, ...], device: torch.device, wanted: Wanted
) -> dict[tuple[int, str], float]:
    """Seconds of an image in a step by (threads, precision)."""
    counts = [wanted.threads or torch.get_num_threads()]
    if wanted.threads is None and device.type == "cpu":
        counts = _counts(counts[0])
    precisions = [wanted.precision or "fp32"]
    if wanted.precision is None and has_bf16(device):
        precisions.append("bf16")
    trained = copy.deepcopy(network).train()
    optimizer = make_optimizer(trained, preset.train)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # it computes the same, and no step can diverge
    world = World(device=device)
    steppers = {p: Stepper(trained, optimizer, preset.train, heads, p, world) for p in precisions}

    def seconds(choice: tuple[int, str], batch: Batch) -> float:
        with use_threads(choice[0]):
            started = time.perf_counter()
            steppers[choice[1]]([batch], 0)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return (time.perf_counter() - started) / len(batch.images)

    choices = [(count, precision) for precision in precisions for count in counts]
    one = _noise(1, preset, device)
    seconds(choices[0], one)
    images = round(STEP_SECONDS / seconds(choices[0], one))
    batch = _noise(min(max(1, images), preset.train.batch_size), preset, device)
    for choice in choices:  # the first time memory is taken and kernels are chosen
        seconds(choice, batch)
    times: dict[tuple[int, str], list[float]] = {choice: [] for choice in choices}
    for _ in range(ROUNDS):
        least = min((min(own) for own in times.values() if own), default=float("inf"))
        for choice, own in times.items():
            if len(own) < SURE or min(own) < HOPELESS * least:
                own.append(seconds(choice, batch))
    return {choice: median(own) for choice, own in times.items()}


def _counts(most: int) -> list[int]:
    """1, 2, 4 … and the most."""
    return [count for count in (2**i for i in range(10)) if count < most] + [most]


def _noise(count: int, preset: Preset, device: torch.device) -> Batch:
    """Images of the recipe's shape, with one object each."""
    height, width = preset.input_size
    factor = min(1.0, (PIXELS / (height * width)) ** 0.5)
    sides = [max(32, round(side * factor) // 32 * 32) for side in (height, width)]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, *sides, generator=generator)
    box = torch.tensor([[4.0, 4.0, 28.0, 28.0]])
    targets = pad_targets([box] * count, [torch.zeros(1, dtype=torch.int64)] * count)
    return Batch(images.to(device), None, targets.to(device))
