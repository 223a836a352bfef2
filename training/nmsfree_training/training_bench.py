"""Loading and training of a recipe, timed side by side: how many loader processes keep up."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from nmsfree.data.coco import DetectionDataset
from nmsfree_training.config import Preset
from nmsfree_training.loading_speed import LoadingSpeed, measure_loading
from nmsfree_training.training_speed import TrainingSpeed, measure_training


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
