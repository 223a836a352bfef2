"""What a training step needs, and how it travels there: packed as bytes, normalised on arrival.

A process that loads images hands over uint8 pixels: a quarter of the bytes of float32 through
shared memory, which is 64 MB in many containers, and into a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nmsfree.errors import InputError
from nmsfree.text import shown
from nmsfree_training.criterion.assignment import Targets, pad_targets
from nmsfree_training.data.augment import Example
from nmsfree_training.model.norms import normalize

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """What a training step needs."""

    images: Tensor  # float32 [N, 3, H, W], normalised RGB, zero in the padding
    padding: Tensor | None  # bool [N, H, W], True where a pixel is padding; None if there is none
    targets: Targets  # objects in input pixels
    names: tuple[str, ...] = ()  # files of all images that the examples were made of
    # (file, reason) of images that could not be used and were replaced by others.
    failed: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class PackedBatch:
    """A batch on its way from the process that made it."""

    pixels: Tensor  # uint8 [N, H, W, 3], BGR; what lies outside `sizes` is undefined
    # (height, width) of each image in the upper left of its frame.
    sizes: tuple[tuple[int, int], ...]
    targets: Targets
    names: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]

    def share(self) -> None:
        """Move the tensors to memory that other processes read.

        PyTorch does so when it sends them, in a thread whose errors reach nobody: the process that
        trains would wait for ever.

        Raises:
            InputError: there is too little of it.
        """
        targets = self.targets
        try:
            for tensor in (self.pixels, targets.boxes, targets.labels, targets.valid):
                tensor.share_memory_()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            reason = shown(error)
            enough = "--shm-size 2g for a container (docker gives 64 MB)"
            if "Too many open files" in reason:
                enough = "a higher `ulimit -n`"
            raise InputError(
                f"a batch of {self.pixels.nbytes / 2**20:.1f} MB cannot be handed over in shared "
                f"memory ({reason}): expected room for a few; give {enough}, fewer --workers, or "
                "--workers 0, which needs none"
            ) from None


def pack(examples: Sequence[Example]) -> PackedBatch:
    """Put examples into frames of the largest height and the largest width."""
    sizes = tuple((e.image.shape[0], e.image.shape[1]) for e in examples)
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    pixels = np.empty((len(examples), height, width, 3), np.uint8)
    for frame, example, (h, w) in zip(pixels, examples, sizes, strict=True):
        frame[:h, :w] = example.image
    targets = pad_targets(
        [torch.from_numpy(e.boxes) for e in examples],
        [torch.from_numpy(e.labels) for e in examples],
    )
    names = tuple(name for e in examples for name in e.names)
    failed = tuple(failure for e in examples for failure in e.failed)
    return PackedBatch(torch.from_numpy(pixels), sizes, targets, names, failed)


def unpack(packed: PackedBatch, device: torch.device = CPU) -> Batch:
    """Normalise; the images come out in channels-last memory, zero in the padding."""
    targets = packed.targets
    if device.type == "cpu":
        images = _normalize_on_cpu(packed)
    else:
        pixels = packed.pixels
        if device.type == "cuda":  # only from pinned memory the copy does not make the host wait
            pixels = pixels.pin_memory()
            targets = Targets(*(tensor.pin_memory() for tensor in vars(targets).values()))
        images = normalize(pixels.to(device, non_blocking=True))
        images = images.contiguous(memory_format=torch.channels_last)
    height, width = packed.pixels.shape[1:3]
    padding: Tensor | None = None
    if any(size != (height, width) for size in packed.sizes):
        padding = torch.ones(len(packed.sizes), height, width, dtype=torch.bool, device=device)
        for image, mask, (h, w) in zip(images, padding, packed.sizes, strict=True):
            mask[:h, :w] = False
            image[:, h:] = 0
            image[:, :h, w:] = 0
    return Batch(images, padding, targets.to(device), packed.names, packed.failed)


def pad_batch(batch: Batch, height: int, width: int) -> Batch:
    """Pad right and bottom to a common size, which several processes must agree on.

    Args:
        height, width: in pixels, not below those of the batch.
    """
    down, right = height - batch.images.shape[2], width - batch.images.shape[3]
    assert down >= 0 and right >= 0, "a batch is padded, not cut"
    if down == 0 and right == 0:
        return batch
    padding = batch.padding
    if padding is None:
        n, _, h, w = batch.images.shape
        padding = torch.zeros(n, h, w, dtype=torch.bool, device=batch.images.device)
    edges = (0, right, 0, down)
    return replace(
        batch, images=F.pad(batch.images, edges), padding=F.pad(padding, edges, value=True)
    )


def _normalize_on_cpu(packed: PackedBatch) -> Tensor:
    """Look every value up: bit for bit what `normalize` gives, in one pass over the pixels.

    NumPy allocates the floats because it asks for huge pages: they halve the time.
    """
    pixels = packed.pixels.numpy()
    images = np.empty(pixels.shape, np.float32)
    for frame, source, (h, w) in zip(images, pixels, packed.sizes, strict=True):
        rgb = cv2.cvtColor(source[:h, :w], cv2.COLOR_BGR2RGB)
        cv2.LUT(rgb, _table(), dst=frame[:h, :w])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@lru_cache(maxsize=1)
def _table() -> NDArray[np.float32]:
    """[1, 256, 3]: every value of every channel, R, G, B, normalised."""
    values = torch.arange(256, dtype=torch.uint8)[None, None, :, None].expand(1, 1, 256, 3)
    return np.ascontiguousarray(normalize(values)[0].permute(1, 2, 0).numpy())
