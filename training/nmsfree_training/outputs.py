"""What a run leaves in its folder: checkpoints and `metrics.jsonl`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nmsfree.data.coco import DetectionDataset
from nmsfree.files import write_atomic
from nmsfree_training.checkpoint import Checkpoint, save_checkpoint
from nmsfree_training.config import Preset
from nmsfree_training.metrics_file import parse_record


class Outputs:
    """Writes the files of one run.

    Args:
        folder: where.
        preset, train_set, provenance: go into every checkpoint.
    """

    def __init__(
        self, folder: Path, preset: Preset, train_set: DetectionDataset, provenance: dict[str, str]
    ) -> None:
        self.folder, self.preset, self.train_set = folder, preset, train_set
        self.provenance = provenance

    @property
    def metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    def start(self) -> None:
        """Make the folder; an earlier run's record of losses is dropped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.metrics_file.unlink(missing_ok=True)

    def checkpoint(
        self, state: Mapping[str, Tensor], provenance: dict[str, str] | None = None
    ) -> Checkpoint:
        """These weights with all that is needed to use them."""
        return Checkpoint(
            self.preset.model,
            self.preset.input_size,
            self.train_set.class_names,
            self.train_set.category_ids,
            state,
            self.provenance | (provenance or {}),
        )

    def write(
        self, name: str, state: Mapping[str, Tensor], epoch: int, metrics: dict[str, float]
    ) -> None:
        """Write `NAME.safetensors`."""
        provenance = {"epoch": str(epoch)}
        if metrics:
            provenance["AP"] = f"{metrics['AP']:.4f}"
        save_checkpoint(self.checkpoint(state, provenance), self.folder / f"{name}.safetensors")

    def write_epoch(
        self,
        state: Mapping[str, Tensor],
        record: dict[str, float],
        metrics: dict[str, float],
        best: bool,
        keep_every: int,
    ) -> None:
        """Write the checkpoints that an epoch leaves, and its line in `metrics.jsonl`.

        Args:
            record: the line; "epoch" counts from 1.
            metrics: of the evaluation, if there was one.
            keep_every: epochs between checkpoints that stay; 0 = none.
        """
        epoch = int(record["epoch"])
        names = ["last"] + ["best"] * best
        if keep_every and epoch % keep_every == 0:
            names.append(f"epoch_{epoch:04d}")
        for name in names:
            self.write(name, state, epoch, metrics)
        self.log(record)

    def log(self, record: dict[str, float]) -> None:
        """Add an epoch to `metrics.jsonl`."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def forget_after(self, epoch: int) -> None:
        """Drop records of epochs that are trained again, and what a kill left of a line."""
        if not self.metrics_file.is_file():
            return
        kept = []
        for line in self.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines():
            record = parse_record(line)
            if record is not None and record["epoch"] <= epoch:
                kept.append(line + "\n")
        write_atomic(self.metrics_file, "".join(kept).encode())
