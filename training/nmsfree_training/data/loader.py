"""Dataset → batches: which images make which step, and the processes that load them."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.errors import DataError, InputError, NmsfreeError
from nmsfree_training.config import Preset
from nmsfree_training.data.batch import CPU, Batch, unpack
from nmsfree_training.data.examples import LoaderError, MicroBatches, TrainingSet


def epoch_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the shuffled order of one epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def check_batch(dataset: DetectionDataset, preset: Preset, world: int) -> None:
    """Refuse a batch that cannot be cut into equal shares.

    Raises:
        DataError: there is no image.
        InputError: it cannot.
    """
    if not len(dataset):
        raise DataError(f"{dataset.annotation_file}: no images to train on")
    size, parts = min(preset.train.batch_size, len(dataset)), preset.train.accumulate
    if size % (parts * world):
        raise InputError(
            f"a batch of {size} images cannot be cut into {parts} (--accumulate) × {world} "
            f"(processes) equal shares: expected a multiple of {parts * world} as --batch-size"
        )


class EpochLoader(DataLoader[Any]):
    """The batches of one epoch for one process, normalised where they are to lie.

    An optimizer step takes the next B = min(batch size, images) of `epoch_order`, cut into
    `accumulate` parts, each of which is divided among the processes; what is yielded is one such
    share after another, `accumulate` of them to a step.

    Args:
        workers: processes that load images; 0 = this one. They serve all epochs of the loader:
            to start one takes 2 to 4 s where it has to import everything again (forkserver, spawn).
        start: the first optimizer step to yield, to go on in the middle of an epoch.
        rank, world: number of this process, and how many there are.
        device: where the images are normalised and the batches lie. A GPU is then sent bytes.

    Raises:
        DataError: there is no image.
        InputError: a batch cannot be cut into equal parts.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        preset: Preset,
        seed: int,
        epoch: int,
        workers: int,
        *,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device = CPU,
    ) -> None:
        assert 0 <= rank < world
        check_batch(dataset, preset, world)
        batches = MicroBatches(TrainingSet(dataset, preset, seed, epoch), [])
        super().__init__(
            batches,
            batch_size=None,  # an item is a batch already
            sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_init_worker,
            # Its own generator: loading leaves torch's global random numbers alone.
            generator=torch.Generator(),
        )
        self.batches, self.device = batches, device
        self._rank, self._world = rank, world
        self.go_to(epoch, start)

    def go_to(self, epoch: int, start: int = 0) -> None:
        """Yield the batches of this epoch from now on, from the optimizer step `start`."""
        examples, rank, world = self.batches.examples, self._rank, self._world
        examples.go_to(epoch)
        images, recipe = len(examples), examples.preset.train
        size = min(recipe.batch_size, images)
        share = size // (recipe.accumulate * world)
        order = epoch_order(images, examples.seed, epoch).tolist()
        self.batches.parts = [
            order[first : first + share]
            for step in range(start, images // size)
            for first in range(step * size + rank * share, (step + 1) * size, world * share)
        ]

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            with _same_child_handler():
                items = super().__iter__()
        except OSError as error:
            raise InputError(
                f"{self.num_workers} processes that load images cannot be started "
                f"({error.strerror or error}): give fewer --workers, or 0"
            ) from None
        while True:
            try:
                item = next(items, None)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker (pid"):
                    raise
                raise LoaderError(
                    f"a process that loads images was ended from outside ({error}), most often "
                    f"because memory ran out: give fewer --workers than {self.num_workers}; 0 "
                    "needs no process"
                ) from None
            if item is None:
                return
            if isinstance(item, NmsfreeError):
                raise item
            yield unpack(item, self.device)


@contextmanager
def _same_child_handler() -> Iterator[None]:
    """PyTorch's handler raises as soon as a loader is killed, also in the middle of a step.

    The loss is noticed in any case when the next batch is asked for.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _init_worker(_: int) -> None:
    """One thread each, and the parent alone decides what an interrupt means."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler came along with the fork
