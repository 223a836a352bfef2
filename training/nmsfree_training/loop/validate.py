"""Evaluation during training, shared among the processes."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.detector import Detector
from nmsfree.errors import DataError, InputError, NmsfreeError
from nmsfree.evaluation.evaluate import Result, predict
from nmsfree.evaluation.scores import CocoScorer
from nmsfree.files import write_atomic
from nmsfree.images import read_image
from nmsfree_training.config import Preset
from nmsfree_training.loop.distributed import World
from nmsfree_training.model.detector import Fcos
from nmsfree_training.monitor.curves import parse_record
from nmsfree_training.weights.checkpoint import Checkpoint, save_checkpoint
from nmsfree_training.weights.predict import TorchBackend, make_spec


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


PICTURES = 4  # of predictions, after each evaluation


class Validator:
    """Measures a network on a dataset; each process takes its share of the images.

    Args:
        outputs: describes the model.
        dataset: with at least one object.
        progress: called as (images done, images in all) of this process's share.

    Raises:
        DataError: nothing to find, or a picture is missing: said now, not after an epoch.
    """

    def __init__(
        self,
        outputs: Outputs,
        dataset: DetectionDataset,
        world: World,
        progress: Callable[[int, int], None],
    ) -> None:
        _check(dataset)
        self.outputs, self.dataset, self.world = outputs, dataset, world
        self._progress = progress
        share = dataset.samples[world.rank :: world.size]
        self._share = replace(dataset, samples=share)

    @cached_property
    def _scorer(self) -> CocoScorer:
        return CocoScorer(self.dataset)

    def metrics(self, network: Fcos) -> dict[str, float]:
        """COCO metrics, the same on every process; what is undefined is left out."""
        results = self.results(network)
        values = self.world.on_main(lambda: self._scorer.score(results).metrics.to_json())
        return {name: value for name, value in values.items() if value is not None}

    def results(self, network: Fcos) -> list[Result]:
        """COCO results of all images on rank 0; elsewhere an empty list."""
        own: list[Result] = []
        error: NmsfreeError | None = None
        try:
            own = predict(self.detector(network), self._share, self._progress)
        except (DataError, InputError) as caught:  # a picture
            error = DataError(f"{caught}; the epoch is saved: mend it, and go on with --resume")
        except NmsfreeError as caught:
            error = caught
        self.world.check(error)
        return [result for part in self.world.gather(own) for result in part]

    def detector(self, network: Fcos) -> Detector:
        """The network as it is deployed."""
        checkpoint = self.outputs.checkpoint({})
        return Detector(TorchBackend(network, make_spec(checkpoint, network.deployed_head)))

    def pictures(self, network: Fcos) -> tuple[tuple[str, NDArray[np.uint8]], ...]:
        """A few images with what was found and what is there, by name; rank 0 only."""
        if not self.world.main:
            return ()
        from nmsfree_training.data.pictures import draw_predictions

        detector, drawn = self.detector(network), []
        for sample in self.dataset.samples[:PICTURES]:
            image = read_image(sample.path)
            objects = ~sample.iscrowd
            picture = draw_predictions(
                image,
                detector(image),
                sample.boxes[objects],
                sample.labels[objects],
                self.dataset.class_names,
            )
            drawn.append((sample.path.stem, picture))
        return tuple(drawn)


def _check(dataset: DetectionDataset) -> None:
    if not any((~sample.iscrowd).any() for sample in dataset.samples):
        raise DataError(
            f"{dataset.annotation_file}: no objects to find in split {dataset.name!r}, AP is "
            "undefined: choose another --val, or '' for none"
        )
    missing = [sample.path for sample in dataset.samples if not sample.path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]}: no such file ({len(missing)} of {len(dataset)} images of split "
            f"{dataset.name!r} are missing): `nmsfree data check` lists them"
        )
