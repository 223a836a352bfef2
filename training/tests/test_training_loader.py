"""Batches: padding, determinism, and no influence of the number of workers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nmsfree.data.coco import DetectionDataset
from nmsfree.images import read_image
from nmsfree_training.augment import Example
from nmsfree_training.config import Preset, preset
from nmsfree_training.loader import Batch, TrainingSet, collate, epoch_loader, epoch_order
from nmsfree_training.normalize import normalize


@pytest.fixture
def chosen() -> Preset:
    nano = preset("fcos_e2e_nano", 10)
    return replace(nano, train=replace(nano.train, batch_size=4))


def batches(data: DetectionDataset, p: Preset, workers: int = 0, epoch: int = 0) -> list[Batch]:
    return list(epoch_loader(data, p, seed=5, epoch=epoch, workers=workers))  # type: ignore[arg-type]


def assert_equal(a: Batch, b: Batch) -> None:
    assert torch.equal(a.images, b.images)
    assert (a.padding is None) == (b.padding is None)
    for name in ("boxes", "labels", "valid"):
        assert torch.equal(getattr(a.targets, name), getattr(b.targets, name))


def test_examples_depend_on_seed_epoch_and_index_alone(
    train_set: DetectionDataset, chosen: Preset
) -> None:
    first = TrainingSet(train_set, chosen, seed=1, epoch=2)[3]
    again = TrainingSet(train_set, chosen, seed=1, epoch=2)
    again[7]  # what was read before does not matter
    for one, other in zip(first, again[3], strict=True):
        np.testing.assert_array_equal(one, other)
    for seed, epoch in ((2, 2), (1, 3)):
        other = TrainingSet(train_set, chosen, seed=seed, epoch=epoch)[3]
        assert not np.array_equal(other.image, first.image)


def test_crowd_regions_are_no_targets(train_set: DetectionDataset, chosen: Preset) -> None:
    sample = train_set.samples[0]
    plain = replace(chosen, train=replace(chosen.train, crop=None))
    crowd = np.zeros(len(sample.labels), bool)
    crowd[0] = True
    data = replace(train_set, samples=(replace(sample, iscrowd=crowd),))
    example = TrainingSet(data, plain, 0, 0)[0]
    np.testing.assert_array_equal(example.labels, sample.labels[1:])
    np.testing.assert_array_equal(example.boxes, sample.boxes[1:])


def test_workers_do_not_change_the_batches(train_set: DetectionDataset, chosen: Preset) -> None:
    alone, helped = batches(train_set, chosen, 0), batches(train_set, chosen, 2)
    assert len(alone) == len(helped) == 3
    for one, other in zip(alone, helped, strict=True):
        assert_equal(one, other)


def test_epochs_differ_and_repeat(train_set: DetectionDataset, chosen: Preset) -> None:
    zero, one = batches(train_set, chosen, epoch=0)[0], batches(train_set, chosen, epoch=1)[0]
    assert not torch.equal(zero.images, one.images)
    assert_equal(zero, batches(train_set, chosen, epoch=0)[0])


def test_order_is_a_permutation() -> None:
    order = epoch_order(50, seed=0, epoch=0)
    assert sorted(order.tolist()) == list(range(50))
    assert order.tolist() == epoch_order(50, 0, 0).tolist()
    assert order.tolist() != epoch_order(50, 0, 1).tolist()
    assert order.tolist() != epoch_order(50, 1, 0).tolist()


@pytest.mark.parametrize(
    ("size", "steps", "images"), [(4, 3, 4), (5, 2, 5), (12, 1, 12), (64, 1, 12)]
)
def test_incomplete_batches_are_dropped_unless_alone(
    train_set: DetectionDataset, chosen: Preset, size: int, steps: int, images: int
) -> None:
    data = batches(train_set, replace(chosen, train=replace(chosen.train, batch_size=size)))
    assert [len(b.images) for b in data] == [images] * steps


def test_collate_pads_to_the_largest() -> None:
    random = np.random.default_rng(0)
    sizes = [(40, 60), (50, 30), (20, 20)]
    examples = [
        Example(
            random.integers(0, 256, (*size, 3), dtype=np.uint8),
            np.array([[1, 2, 15, 18]] * count, np.float32).reshape(-1, 4),
            np.arange(count),
        )
        for count, size in enumerate(sizes)
    ]
    batch = collate(examples)
    assert batch.images.shape == (3, 3, 50, 60) and batch.images.dtype == torch.float32
    assert batch.padding is not None and batch.padding.shape == (3, 50, 60)
    for i, (height, width) in enumerate(sizes):
        inside = torch.zeros(50, 60, dtype=torch.bool)
        inside[:height, :width] = True
        assert torch.equal(~batch.padding[i], inside)
        assert not batch.images[i][:, ~inside].any()  # zero after normalisation
        pixels = normalize(torch.from_numpy(examples[i].image)[None])[0]
        assert torch.equal(batch.images[i, :, :height, :width], pixels)
    assert batch.targets.valid.tolist() == [[False, False], [True, False], [True, True]]
    assert batch.targets.labels.tolist() == [[0, 0], [0, 0], [0, 1]]


def test_collate_without_padding_has_no_mask() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    example = Example(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    batch = collate([example, example])
    assert batch.padding is None
    assert not batch.targets.valid.any()
    moved = batch.to(torch.device("cpu"))
    assert_equal(moved, batch)


def test_without_augmentation_the_network_sees_the_file(
    train_set: DetectionDataset, chosen: Preset
) -> None:
    plain = replace(chosen, train=replace(chosen.train, crop=None, color_jitter=0.0))
    example = TrainingSet(train_set, plain, 0, 0)[1]
    sample = train_set.samples[1]
    np.testing.assert_array_equal(example.image, read_image(sample.path))
    np.testing.assert_array_equal(example.boxes, sample.boxes)
