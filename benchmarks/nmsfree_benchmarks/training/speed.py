"""How many images a second training consumes on this machine: real steps, loading left out."""

import math
import time
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree_benchmarks.training.loading import LoadingSpeed, measure_loading, torch_threads
from nmsfree_training.config import Preset
from nmsfree_training.data.batch import CPU, Batch
from nmsfree_training.data.loader import epoch_loader
from nmsfree_training.loop.distributed import World
from nmsfree_training.loop.optim import make_optimizer
from nmsfree_training.loop.step import Stepper
from nmsfree_training.model.detector import Fcos, place

# Of a step on a CPU, where a larger batch takes longer but no less per image.
CPU_PIXELS = 1 << 20
BATCHES = 4  # distinct ones that steps go through, since their sizes may differ
MIN_STEPS = 2


@dataclass(frozen=True)
class TrainingSpeed:
    """What training consumes.

    Attributes:
        images, seconds: of the timed steps, all together.
        steps: how many there were.
        batch_size: images of a step.
        height, width: in pixels, average of the timed batches.
        device, precision, threads: what it ran on.
    """

    images: int
    seconds: float
    steps: int
    batch_size: int
    height: float
    width: float
    device: str
    precision: str
    threads: int

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"images_per_second": self.images_per_second}

    def summary(self) -> str:
        """One line of text."""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return (
            f"{self.images_per_second:.1f} images/s ({self.steps} steps of batch "
            f"{self.batch_size}, {self.height:.0f} × {self.width:.0f} on average, {self.device}, "
            f"{self.precision}, {threads})"
        )


def measure_training(
    dataset: DetectionDataset,
    preset: Preset,
    *,
    seconds: float = 5.0,
    device: torch.device | None = None,
    precision: str = "fp32",
    threads: int | None = None,
) -> TrainingSpeed:
    """Time forward, losses, backward and update of steps on batches loaded before.

    At least two steps are timed, after one with each batch that is not. On a CPU the batch is cut
    to about a million pixels, on a GPU to what goes through at once (`accumulate`).

    Raises:
        DataError: there are no images, or they cannot be used.
        InputError: the precision is unknown.
    """
    device = device or CPU
    with torch_threads(threads):
        batches = _batches(dataset, preset, device)
        torch.manual_seed(0)
        step = _Step(preset, device, precision)
        for batch in batches:  # each size is prepared for when it first comes
            step(batch)
        times: list[float] = []
        while len(times) < MIN_STEPS or sum(times) < seconds:
            times.append(step(batches[len(times) % len(batches)]))
        used = [batches[i % len(batches)].images.shape for i in range(len(times))]
        return TrainingSpeed(
            images=sum(shape[0] for shape in used),
            seconds=sum(times),
            steps=len(times),
            batch_size=used[0][0],
            height=sum(shape[2] for shape in used) / len(used),
            width=sum(shape[3] for shape in used) / len(used),
            device=str(device),
            precision=precision,
            threads=torch.get_num_threads(),
        )


def _batches(dataset: DetectionDataset, preset: Preset, device: torch.device) -> list[Batch]:
    size = preset.train.batch_size // preset.train.accumulate
    if device.type == "cpu":
        height, width = preset.input_size
        size = min(size, CPU_PIXELS // (height * width))
    recipe = replace(preset.train, batch_size=max(1, size), accumulate=1)
    loader = epoch_loader(dataset, replace(preset, train=recipe), 0, 0, 0, device=device)
    return list(islice(loader, BATCHES))


class _Step:
    """Takes the trainer's own optimizer steps, from fresh weights; returns their seconds."""

    def __init__(self, preset: Preset, device: torch.device, precision: str) -> None:
        network = place(Fcos(preset.model), device).train()
        optimizer = make_optimizer(network, preset.train)
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # it computes the same, and no step can diverge
        heads = preset.model.heads
        self.step = Stepper(network, optimizer, preset.train, heads, precision, World())
        self.device = device

    def __call__(self, batch: Batch) -> float:
        self._wait()
        start = time.perf_counter()
        self.step([batch], 0)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class TrainingBench:
    """Loading beside training, and what follows."""

    preset: str
    loading: LoadingSpeed
    training: TrainingSpeed

    @property
    def processes(self) -> int:
        """Loader processes (`--workers`) that keep up with training."""
        return max(1, math.ceil(self.load))

    @property
    def load(self) -> float:
        """Loader processes that would be busy all the time."""
        return self.training.images_per_second / self.loading.images_per_second_per_process

    def to_json(self) -> dict[str, Any]:
        return {
            "preset": self.preset,
            "loading": self.loading.to_json(),
            "training": self.training.to_json(),
            "loader_processes": self.processes,
            "loader_load": self.load,
        }

    def summary(self) -> str:
        """A few lines of text."""
        count, busy = self.processes, self.load / self.processes
        who, each = (
            ("1 loader process keeps", "it is")
            if count == 1
            else (f"{count} loader processes keep", "each is")
        )
        share = f"{busy * 100:.0f} %" if busy >= 0.01 else "under 1 %"
        return "\n".join(
            [
                self.loading.summary(),
                f"training {self.preset}: {self.training.summary()}",
                f"{who} up: {each} busy {share} of the time",
            ]
        )


def bench_training(
    dataset: DetectionDataset,
    preset: Preset,
    *,
    seconds: float = 5.0,
    device: torch.device | None = None,
    precision: str = "fp32",
    threads: int | None = None,
) -> TrainingBench:
    """Measure loading, then training steps, `seconds` each.

    Args:
        device, precision, threads: of training; None = CPU, and PyTorch's present threads.

    Raises:
        DataError: there are no images, or they cannot be used.
        InputError: the precision is unknown.
    """
    loading = measure_loading(dataset, preset, seconds=seconds)
    training = measure_training(
        dataset, preset, seconds=seconds, device=device, precision=precision, threads=threads
    )
    return TrainingBench(preset.model.name, loading, training)
