"""Evaluation during training, shared among the processes, and what follows the last one."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.detector import Detector
from nmsfree.errors import DataError, InputError
from nmsfree.evaluation.analysis import Analysis, analyse
from nmsfree.evaluation.evaluate import predict
from nmsfree.evaluation.plots import write_plots
from nmsfree.evaluation.scores import CocoScorer, Result
from nmsfree.images import read_image
from nmsfree_training.loop.distributed import World
from nmsfree_training.model.detector import Fcos, place
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nmsfree_training.weights.predict import TorchBackend, make_spec

PICTURES = 4  # of predictions, after each evaluation


class Validator:
    """Measures a network on a dataset; each process takes its share of the images.

    Args:
        describe: the model that is trained; its weights do not matter.
        progress: called as (images done, images in all) of this process's share.

    Raises:
        DataError: nothing to find, or a picture is missing: said now, not after an epoch.
    """

    def __init__(
        self,
        describe: Callable[[], Checkpoint],
        dataset: DetectionDataset,
        world: World,
        progress: Callable[[int, int], None],
    ) -> None:
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
        self.describe, self.dataset, self.world = describe, dataset, world
        self._progress = progress
        self._share = replace(dataset, samples=dataset.samples[world.rank :: world.size])

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
        with self.world.together():
            try:
                own = predict(self.detector(network), self._share, self._progress)
            except (DataError, InputError) as error:  # a picture
                advice = "the epoch is saved: fix it, and go on with --resume"
                raise DataError(f"{error}; {advice}") from None
        return [result for part in self.world.gather(own) for result in part]

    def detector(self, network: Fcos) -> Detector:
        """The network as it is deployed."""
        spec = make_spec(self.describe(), network.config.deployed_head)
        return Detector(TorchBackend(network, spec))

    def pictures(self, network: Fcos) -> tuple[tuple[str, NDArray[np.uint8]], ...]:
        """A few images with what was found and what is there, by name; rank 0 only."""
        if not self.world.main:
            return ()
        from nmsfree_training.data.pictures import draw_predictions

        detector, drawn = self.detector(network), []
        for sample in self.dataset.samples[:PICTURES]:
            image = read_image(sample.path)
            objects = ~sample.iscrowd
            truth = sample.boxes[objects], sample.labels[objects]
            names = self.dataset.class_names
            picture = draw_predictions(image, detector(image), *truth, names)
            drawn.append((sample.path.stem, picture))
        return tuple(drawn)


def measure_best(validator: Validator, dataset: DetectionDataset, folder: Path) -> float:
    """AP (0–1) of the best weights of a run on other pictures, the same on all processes.

    Raises:
        DataError: nothing to find there, or a picture cannot be used.
    """
    world, path = validator.world, folder / "best.safetensors"
    network = place(world.on_main(lambda: load_checkpoint(path)).build(), world.device)
    other = Validator(validator.describe, dataset, world, lambda *_: None)
    return other.metrics(network)["AP"]


def analyse_best(validator: Validator, folder: Path) -> Analysis | None:
    """Measure the best weights of a run once more; rank 0 gets the outcome.

    The recommended thresholds are added to `best.safetensors`; `confusion_matrix.png` and
    `pr_curve.png` are written beside it.
    """
    world, path = validator.world, folder / "best.safetensors"
    checkpoint = world.on_main(lambda: load_checkpoint(path))
    # A network of its own: an interrupt in here saves the trainer's, which must stay the last.
    network = place(checkpoint.build(), world.device)
    results = validator.results(network)
    analyses: list[Analysis] = []

    def conclude() -> None:
        analysis = analyse(validator.dataset, results, validator.detector(network).spec)
        save_checkpoint(replace(checkpoint, thresholds=analysis.thresholds), path)
        write_plots(analysis, folder)
        analyses.append(analysis)

    world.on_main(conclude)
    return analyses[0] if analyses else None
