"""Images a second: loaded by one core, consumed by training.

Example: nmsfree bench training --data data/digits --model fcos_e2e_nano --precision bf16
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from rich.console import Console

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.files import check_outputs, write_json
from nmsfree.options import Option
from nmsfree_benchmarks.harness.machine import describe
from nmsfree_benchmarks.harness.options import Json, Threads
from nmsfree_training.config import Preset, preset

if TYPE_CHECKING:
    import torch

    from nmsfree_training.data.batch import Batch

# Loading is timed stage by stage, on one thread and on files that the operating system has in its
# cache: a slow disk comes on top. A loader process decodes, resizes, augments and packs; the
# training process normalises what arrives. Beside it stand real training steps, on batches loaded
# before.
IMAGES = 256  # distinct ones that are loaded, at most; more would be read from the disk
STAGES = {
    "decode": "read and decode",
    "resize": "resize and crop",
    "mix": "mosaic and mixup",
    "augment": "flip and colour",
    "pack": "pack the batch",
    "normalize": "normalise (in the training process)",
}
OF_METHODS = {  # of `TrainingSet` → stage
    "load": "decode",
    "mosaic": "mix",
    "place": "resize",
    "mixup": "mix",
    "finish": "augment",
}
# Of a step on a CPU, where a larger batch takes longer but no less per image.
CPU_PIXELS = 1 << 20
BATCHES = 4  # distinct ones that steps go through, since their sizes may differ
MIN_STEPS = 2

R = TypeVar("R")


@dataclass(frozen=True)
class Options:
    data: Annotated[Path, Option("Dataset that is loaded.")] = Path("data/digits")
    split: Annotated[str, Option("Split of it.")] = "train"
    model: Annotated[str, Option("Preset that is trained.")] = "fcos_e2e_nano"
    device: Annotated[str, Option("cpu or cuda.")] = "cpu"
    precision: Annotated[str, Option("fp32, bf16 or fp16.")] = "fp32"
    threads: Threads = None
    seconds: Annotated[float, Option("Time for each measurement.", min=0.1, max=86400)] = 5.0
    json_file: Json = None


def main(options: Options) -> None:
    from nmsfree_training.weights.predict import torch_device

    check_outputs([options.json_file], options.data.rglob("*"))
    dataset = load_dataset(options.data, options.split)
    chosen = preset(options.model, len(dataset.class_names))
    device, seconds = torch_device(options.device), options.seconds
    console = Console(stderr=options.json_file == "-", highlight=False)
    with console.status("loading images, then training on them"):
        found = TrainingBench(
            chosen.model.name,
            measure_loading(dataset, chosen, seconds=seconds),
            measure_training(
                dataset,
                chosen,
                seconds=seconds,
                device=device,
                precision=options.precision,
                threads=options.threads,
            ),
        )
    console.print(found.summary())
    about = {"model": options.model, "data": str(options.data), "split": options.split}
    more = {"environment": describe(found.training.threads, options.device)}
    report = about | {"batch": chosen.train.batch_size} | found.to_json() | more
    write_json(options.json_file, report)


@dataclass(frozen=True)
class LoadingSpeed:
    images: int  # examples timed
    stages: dict[str, float]  # milliseconds per example of `STAGES`, means over all batches
    images_per_second_per_core: float  # which does everything; the median over batches
    quartiles: tuple[float, float]  # of the same; a wide span distrusts the median

    @property
    def images_per_second_per_process(self) -> float:
        """Of one loader process: everything but normalising."""
        whole = sum(self.stages.values())
        return self.images_per_second_per_core * whole / (whole - self.stages["normalize"])

    def to_json(self) -> dict[str, Any]:
        more = {"images_per_second_per_process": self.images_per_second_per_process}
        return asdict(self) | more

    def summary(self) -> str:
        low, high = self.quartiles
        whole = sum(self.stages.values())
        lines = [
            f"loading, one core: {self.images_per_second_per_core:.0f} images/s "
            f"(median of batches, quartiles {low:.0f} … {high:.0f}; {self.images} images, files in "
            "the cache)"
        ]
        lines += [
            f"  {STAGES[name]:<36} {ms:7.3f} ms  {ms / whole * 100:3.0f} %"
            for name, ms in self.stages.items()
            if ms > 0
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class TrainingSpeed:
    images: int  # of the timed steps, all together
    seconds: float
    steps: int
    batch_size: int  # images of a step
    height: float  # in pixels, average of the timed batches
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
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return (
            f"{self.images_per_second:.1f} images/s ({self.steps} steps of batch "
            f"{self.batch_size}, {self.height:.0f} × {self.width:.0f} on average, {self.device}, "
            f"{self.precision}, {threads})"
        )


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
        busy = self.load / self.processes
        share = f"{busy * 100:.0f} %" if busy >= 0.01 else "under 1 %"
        one = self.processes == 1
        who = "process keeps up: it is" if one else "processes keep up: each is"
        return (
            f"{self.loading.summary()}\n"
            f"training {self.preset}: {self.training.summary()}\n"
            f"{self.processes} loader {who} busy {share} of the time"
        )


class Clock:
    """Adds up the time of stages; one inside another stops the outer."""

    def __init__(self) -> None:
        self.milliseconds = dict.fromkeys(STAGES, 0.0)
        self._running: list[str] = []
        self._since = 0.0

    def _lap(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.milliseconds[self._running[-1]] += (now - self._since) * 1e3
        self._since = now

    def timed(self, name: str, run: Callable[..., R]) -> Callable[..., R]:
        """The function as a stage."""

        def call(*arguments: Any) -> R:
            self._lap()
            self._running.append(name)
            try:
                return run(*arguments)
            finally:
                self._lap()
                self._running.pop()

        return call


def measure_loading(
    dataset: DetectionDataset, preset: Preset, *, seconds: float = 5.0, seed: int = 0
) -> LoadingSpeed:
    """Time every stage of loading in this process, on one thread.

    At least two batches are loaded; the first is not timed. DataError: there are no images, or they
    cannot be used.
    """
    from nmsfree_training.data.loader import epoch_order
    from nmsfree_training.loop.probe import use_threads

    chosen = epoch_order(len(dataset), seed, 0)[:IMAGES].tolist()
    few = replace(dataset, samples=tuple(dataset.samples[i] for i in chosen))
    whole = replace(preset, train=replace(preset.train, accumulate=1))
    with use_threads(1):
        rows = _time_batches(few, whole, seconds, seed)
    size, times = rows[0][0], np.array([row[1] for row in rows]) / rows[0][0]
    totals = 1e3 / times.sum(axis=1)
    low, middle, high = statistics.quantiles(totals, n=4) if len(rows) > 1 else (totals[0],) * 3
    stages = dict(zip(STAGES, times.mean(axis=0).tolist(), strict=True))
    return LoadingSpeed(size * len(rows), stages, float(middle), (float(low), float(high)))


def _time_batches(
    dataset: DetectionDataset, preset: Preset, seconds: float, seed: int
) -> list[tuple[int, list[float]]]:
    """(images, milliseconds of each stage) of batch after batch."""
    from nmsfree_training.data.batch import pack, unpack
    from nmsfree_training.data.examples import TrainingSet
    from nmsfree_training.data.loader import EpochLoader

    clock = Clock()
    rows: list[tuple[int, list[float]]] = []
    end, epoch = math.inf, 0
    while True:
        loader = EpochLoader(dataset, preset, seed, epoch, workers=0)
        examples = TrainingSet(dataset, preset, seed, epoch)
        for method, name in OF_METHODS.items():
            setattr(examples, method, clock.timed(name, getattr(examples, method)))
        for indices in loader.batches.parts:
            clock.milliseconds = dict.fromkeys(STAGES, 0.0)
            items = [examples[index] for index in indices]
            packed = clock.timed("pack", pack)(items)
            clock.timed("normalize", unpack)(packed)
            rows.append((len(indices), list(clock.milliseconds.values())))
            if len(rows) == 1:  # it filled caches
                end = time.perf_counter() + seconds
            elif time.perf_counter() >= end:
                return rows[1:]
        epoch += 1


def measure_training(
    dataset: DetectionDataset,
    preset: Preset,
    *,
    seconds: float = 5.0,
    device: "torch.device | None" = None,
    precision: str = "fp32",
    threads: int | None = None,
) -> TrainingSpeed:
    """Time forward, losses, backward and update of steps on batches loaded before.

    At least two steps are timed, after one with each batch that is not. On a CPU (the default) the
    batch is cut to about a million pixels, on a GPU to what goes through at once (`accumulate`).
    DataError: there are no images, or they cannot be used. InputError: the precision is unknown.
    """
    import torch

    from nmsfree_training.loop.probe import use_threads

    device, used = device or torch.device("cpu"), threads or torch.get_num_threads()
    with use_threads(used):
        found = batches(dataset, preset, device)
        torch.manual_seed(0)
        step = _step(preset, device, precision)
        for batch in found:  # each size is prepared for when it first comes
            step(batch)
        times: list[float] = []
        while len(times) < MIN_STEPS or sum(times) < seconds:
            times.append(step(found[len(times) % len(found)]))
    shapes = [found[i % len(found)].images.shape for i in range(len(times))]
    return TrainingSpeed(
        images=sum(shape[0] for shape in shapes),
        seconds=sum(times),
        steps=len(times),
        batch_size=shapes[0][0],
        height=sum(shape[2] for shape in shapes) / len(shapes),
        width=sum(shape[3] for shape in shapes) / len(shapes),
        device=str(device),
        precision=precision,
        threads=used,
    )


def batches(dataset: DetectionDataset, preset: Preset, device: "torch.device") -> "list[Batch]":
    from nmsfree_training.data.loader import EpochLoader

    size = preset.train.batch_size // preset.train.accumulate
    if device.type == "cpu":
        height, width = preset.input_size
        size = min(size, CPU_PIXELS // (height * width))
    recipe = replace(preset.train, batch_size=max(1, size), accumulate=1)
    loader = EpochLoader(dataset, replace(preset, train=recipe), 0, 0, 0, device=device)
    return list(islice(loader, BATCHES))


def _step(preset: Preset, device: "torch.device", precision: str) -> "Callable[[Batch], float]":
    """What takes the trainer's own optimizer steps, from fresh weights; returns their seconds."""
    import torch

    from nmsfree_training.loop.distributed import World
    from nmsfree_training.loop.step import Stepper, make_optimizer
    from nmsfree_training.model.detector import Fcos, place

    network = place(Fcos(preset.model), device).train()
    optimizer = make_optimizer(network, preset.train)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # it computes the same, and no step can diverge
    stepper = Stepper(network, optimizer, preset.train, preset.model.heads, precision, World())

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def step(batch: "Batch") -> float:
        start = now()
        stepper([batch], 0)
        return now() - start

    return step
