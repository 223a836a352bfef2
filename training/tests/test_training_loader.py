"""Batches: padding, determinism, and no influence of the number of workers."""

import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.errors import DataError, InputError
from nmsfree.images import read_image
from nmsfree_training.config import Preset, preset
from nmsfree_training.criterion.assignment import Targets
from nmsfree_training.data.augment import Example
from nmsfree_training.data.batch import Batch, pack, pad_batch, unpack
from nmsfree_training.data.examples import LoaderError, TrainingSet
from nmsfree_training.data.loader import EpochLoader, epoch_order
from nmsfree_training.model.norms import _constants, normalize

from .runs import without_objects

TARGETS = ("boxes", "labels", "valid")
NANO = preset("fcos_e2e_nano", 10)
NANO = replace(NANO, train=replace(NANO.train, batch_size=4))
MIXED: dict[str, Any] = {"mosaic": 0.5, "mixup": 0.5, "scale": (0.5, 1.5), "flip": 0.5}


def batches(
    data: DetectionDataset, p: Preset, workers: int = 0, epoch: int = 0, **part: Any
) -> list[Batch]:
    loader = EpochLoader(data, p, seed=5, epoch=epoch, workers=workers, **part)
    made = list(loader)
    assert len(made) == len(loader)
    return made


def with_recipe(p: Preset, **recipe: Any) -> Preset:
    return replace(p, train=replace(p.train, **recipe))


# Batches of 4 whose sizes vary, made of one or several images.
VARIED = with_recipe(NANO, crop=None, short_sides=(96, 128, 160), long_side=200, **MIXED)


def concatenate(parts: Sequence[Batch]) -> Batch:
    """One batch of several, padded to a common size."""
    height, width = (max(b.images.shape[i] for b in parts) for i in (2, 3))
    padded = [pad_batch(b, height, width) for b in parts]
    no_padding = torch.zeros(1, height, width, dtype=torch.bool)
    masks = torch.cat(
        [
            no_padding.expand(len(b.images), -1, -1) if b.padding is None else b.padding
            for b in padded
        ]
    )
    rows = (pad_sequence([r for b in parts for r in getattr(b.targets, n)], True) for n in TARGETS)
    return Batch(
        torch.cat([b.images for b in padded]),
        masks if bool(masks.any()) else None,
        Targets(*rows),
        tuple(name for b in parts for name in b.names),
        tuple(failure for b in parts for failure in b.failed),
    )


def assert_equal(a: Batch, b: Batch) -> None:
    assert torch.equal(a.images, b.images)
    for name in TARGETS:
        assert torch.equal(getattr(a.targets, name), getattr(b.targets, name))
    assert (a.padding is None) == (b.padding is None)
    assert a.padding is None or torch.equal(a.padding, b.padding)
    assert a.names == b.names and a.failed == b.failed


def assert_all_equal(some: Sequence[Batch], others: Sequence[Batch]) -> None:
    for one, other in zip(some, others, strict=True):
        assert_equal(one, other)


def test_examples_depend_on_seed_epoch_and_index_alone(train_set: DetectionDataset) -> None:
    first = TrainingSet(train_set, NANO, seed=1, epoch=2)[3]
    again = TrainingSet(train_set, NANO, seed=1, epoch=2)
    again[7]  # what was read before does not matter
    for one, other in zip(first, again[3], strict=True):
        np.testing.assert_array_equal(one, other)
    for seed, epoch in ((2, 2), (1, 3)):
        other = TrainingSet(train_set, NANO, seed=seed, epoch=epoch)[3]
        assert not np.array_equal(other.image, first.image)


@pytest.mark.parametrize("recipe", [{}, MIXED])
def test_workers_do_not_change_the_batches(
    train_set: DetectionDataset, recipe: dict[str, Any]
) -> None:
    mixed = with_recipe(NANO, **recipe)
    alone = batches(train_set, mixed)
    assert len(alone) == 3
    assert_all_equal(alone, batches(train_set, mixed, 2))


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
    train_set: DetectionDataset, size: int, steps: int, images: int
) -> None:
    recipe = with_recipe(NANO, batch_size=size)
    assert [len(b.images) for b in batches(train_set, recipe)] == [images] * steps


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
    batch = unpack(pack(examples))
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
    same_size = unpack(pack([examples[0]] * 2))
    assert same_size.padding is None and not same_size.targets.valid.any()


def test_without_augmentation_the_network_sees_the_file(train_set: DetectionDataset) -> None:
    plain = with_recipe(NANO, crop=None, color_jitter=0.0)
    example = TrainingSet(train_set, plain, 0, 0)[1]
    sample = train_set.samples[1]
    np.testing.assert_array_equal(example.image, read_image(sample.path))
    np.testing.assert_array_equal(example.boxes, sample.boxes)


# How an epoch is divided: steps, parts of a step, processes.


@pytest.mark.parametrize(("accumulate", "world"), [(1, 2), (1, 4), (2, 1), (2, 2), (4, 1)])
def test_parts_of_all_processes_are_the_batch(
    train_set: DetectionDataset, accumulate: int, world: int
) -> None:
    whole, recipe = batches(train_set, VARIED), with_recipe(VARIED, accumulate=accumulate)
    ranks = [batches(train_set, recipe, rank=rank, world=world) for rank in range(world)]
    assert {len(rank) for rank in ranks} == {accumulate * len(whole)}
    for step, batch in enumerate(whole):
        parts = range(step * accumulate, (step + 1) * accumulate)
        shares = [rank[part] for part in parts for rank in ranks]
        assert {len(share.images) for share in shares} == {4 // accumulate // world}
        assert_equal(concatenate(shares), concatenate([batch]))


@pytest.mark.parametrize(("start", "workers"), [(0, 0), (1, 0), (2, 0), (2, 2), (3, 0), (5, 2)])
def test_a_later_start_drops_the_first_steps(
    train_set: DetectionDataset, start: int, workers: int
) -> None:
    recipe = with_recipe(VARIED, accumulate=2)
    rest = batches(train_set, recipe, workers, start=start, rank=1, world=2)
    expected = batches(train_set, recipe, rank=1, world=2)[2 * start :]
    assert len(rest) == 2 * max(0, 3 - start)
    assert_all_equal(rest, expected)


def test_the_order_of_images_is_that_of_the_epoch(train_set: DetectionDataset) -> None:
    plain = with_recipe(NANO, accumulate=2)
    files = [str(train_set.samples[i].path) for i in epoch_order(12, 5, 3)]
    for rank in range(2):
        made = batches(train_set, plain, epoch=3, rank=rank, world=2)
        assert [b.names for b in made] == [(files[2 * n + rank],) for n in range(6)]


@pytest.mark.parametrize(
    ("size", "accumulate", "world", "found"), [(4, 3, 1, 4), (6, 2, 2, 6), (64, 5, 1, 12)]
)
def test_batches_that_cannot_be_cut_are_refused(
    train_set: DetectionDataset, size: int, accumulate: int, world: int, found: int
) -> None:
    recipe = with_recipe(NANO, batch_size=size, accumulate=accumulate)
    with pytest.raises(InputError, match=f"a batch of {found} images .* multiple of") as error:
        EpochLoader(train_set, recipe, 0, 0, 0, world=world)
    assert "\n" not in str(error.value)


def test_an_empty_set_is_refused(train_set: DetectionDataset) -> None:
    empty = replace(train_set, samples=())
    with pytest.raises(DataError, match="no images"):
        EpochLoader(empty, NANO, 0, 0, 0)


def test_padding_a_batch_adds_zeros_right_and_below() -> None:
    image = np.full((20, 30, 3), 200, np.uint8)
    boxes, labels = np.array([[1, 2, 15, 18]], np.float32), np.array([1])
    batch = unpack(pack([Example(image, boxes, labels, ("a",), (("b", "cut"),))] * 2))
    padded = pad_batch(batch, 25, 37)
    assert padded.images.shape == (2, 3, 25, 37)
    assert torch.equal(padded.images[:, :, :20, :30], batch.images)
    assert not padded.images[:, :, 20:].any() and not padded.images[:, :, :, 30:].any()
    assert padded.padding is not None
    assert not padded.padding[:, :20, :30].any()
    assert padded.padding[:, 20:].all() and padded.padding[:, :, 30:].all()
    assert padded.names == ("a", "a") and padded.failed == (("b", "cut"),) * 2
    assert pad_batch(batch, 20, 30) is batch
    assert_equal(pad_batch(pad_batch(batch, 22, 30), 25, 37), padded)


def test_loading_leaves_the_global_random_numbers_alone(train_set: DetectionDataset) -> None:
    torch.manual_seed(3)
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for workers in (0, 1):
        batches(train_set, VARIED, workers)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == legacy).all()  # noqa: NPY002


# Mosaic and blends.


def test_names_tell_all_images_of_an_example(train_set: DetectionDataset) -> None:
    known = [str(sample.path) for sample in train_set.samples]
    for recipe, count in (({"mosaic": 1.0}, 4), ({"mixup": 1.0}, 2), (MIXED | {"mosaic": 1.0}, 5)):
        examples = TrainingSet(train_set, with_recipe(NANO, **recipe), 0, 0)
        most = max((examples[i] for i in range(12)), key=lambda e: len(e.names))
        assert len(most.names) == count and set(most.names) <= set(known)
    assert all(examples[i].names[0] == known[i] for i in range(12))


def test_the_last_epochs_are_plain(train_set: DetectionDataset) -> None:
    plain = with_recipe(NANO, epochs=10)
    mixed = with_recipe(plain, mosaic=1.0, mixup=1.0, plain_epochs=3)
    for epoch in (0, 6, 7, 9):
        made, expected = (TrainingSet(train_set, p, 0, epoch)[2] for p in (mixed, plain))
        assert len(made.names) == (5 if epoch < 7 else 1)
        if epoch >= 7:
            np.testing.assert_array_equal(made.image, expected.image)
            np.testing.assert_array_equal(made.boxes, expected.boxes)


# Images that cannot be used.


def broken(train_set: DetectionDataset, count: int, folder: Path) -> DetectionDataset:
    """The first `count` files are missing, cut or of another size, in turn."""
    bad = []
    for i, sample in enumerate(train_set.samples[:count]):
        cut = folder / f"cut{i}.png"
        cut.write_bytes(sample.path.read_bytes()[:1000])
        faults = ({"path": folder / f"missing{i}.png"}, {"path": cut}, {"width": sample.width + 1})
        bad.append(replace(sample, **faults[i % 3]))
    return replace(train_set, samples=(*bad, *train_set.samples[count:]))


@pytest.mark.parametrize("recipe", [{}, MIXED])
def test_unusable_images_are_replaced_and_told(
    train_set: DetectionDataset, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    data, mixed = broken(train_set, 3, tmp_path), with_recipe(NANO, **recipe)
    alone = batches(data, mixed)
    assert_all_equal(alone, batches(data, mixed, 2))
    failed = dict(failure for batch in alone for failure in batch.failed)
    bad = [str(sample.path) for sample in data.samples[:3]]
    assert set(failed) == set(bad)
    assert "no such file" in failed[bad[0]]
    assert "annotated as" in failed[bad[2]]
    assert all("\n" not in reason and bad[0] not in reason for reason in failed.values())
    assert not set(bad) & {name for batch in alone for name in batch.names}
    assert [len(batch.images) for batch in alone] == [4, 4, 4]


def test_good_examples_do_not_change_where_others_fail(
    train_set: DetectionDataset, tmp_path: Path
) -> None:
    data = broken(train_set, 3, tmp_path)
    for index in range(3, 12):
        one, other = (TrainingSet(d, NANO, 0, 0)[index] for d in (data, train_set))
        np.testing.assert_array_equal(one.image, other.image)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_set_of_unusable_images_is_refused_in_one_line(
    train_set: DetectionDataset, tmp_path: Path, workers: int
) -> None:
    with pytest.raises(DataError, match="nmsfree data check") as error:
        batches(broken(train_set, 12, tmp_path), NANO, workers)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_processes_serve_all_epochs_however_they_start(
    method: str, train_set: DetectionDataset
) -> None:
    """Python 3.14 starts them by forkserver, macOS and Windows by spawn."""
    loader = EpochLoader(train_set, VARIED, seed=5, epoch=0, workers=1)
    loader.multiprocessing_context = method
    processes = []
    for epoch, start in ((0, 0), (1, 0), (1, 2), (0, 1)):
        loader.go_to(epoch, start)
        expected = batches(train_set, VARIED, epoch=epoch, start=start)
        for a, b in zip(loader, expected, strict=True):
            assert torch.equal(a.images, b.images) and a.names == b.names
        processes.append({child.pid for child in multiprocessing.active_children()})
    assert set.intersection(*processes)


# Loaders that lack something, or are ended.


@contextmanager
def limited(what: int, soft: int) -> Iterator[None]:
    """A lower limit for this process and the loaders it starts."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is no file elsewhere")
def test_shared_memory_that_does_not_suffice(train_set: DetectionDataset) -> None:
    """A limit on the size of files refuses it as a small /dev/shm does, at another place."""
    with limited(resource.RLIMIT_FSIZE, 100_000):
        assert len(batches(train_set, NANO)) == 3  # in this process it needs none
        with pytest.raises(
            InputError, match=r"a batch of \d\.\d MB .*--shm-size .*--workers 0"
        ) as e:
            batches(train_set, NANO, 2)
    assert "\n" not in str(e.value) and len(str(e.value)) < 500


def test_loaders_that_cannot_be_started(train_set: DetectionDataset) -> None:
    used = len(list(Path("/dev/fd").iterdir()))
    with (
        limited(resource.RLIMIT_NOFILE, used + 4),
        pytest.raises(
            InputError, match=r"4 processes .* cannot be started \(Too many open files\)"
        ),
    ):
        batches(train_set, NANO, 4)


@pytest.mark.slow
@pytest.mark.parametrize("taken", [0, 1])
def test_a_killed_loader_is_told_when_its_batch_is_asked_for(
    taken: int, train_set: DetectionDataset
) -> None:
    """In the first batch and later; never in between, where it could cut a step in two."""
    handler, before = signal.getsignal(signal.SIGCHLD), multiprocessing.active_children()
    loader = EpochLoader(train_set, with_recipe(NANO, batch_size=1), 0, 0, 1)
    loader.batches.examples = Slow(train_set, NANO, 0, 0)
    items = iter(loader)
    got = [next(items) for _ in range(taken)]
    killer = Timer(0.5 if not taken else 0.0, kill_children, [before])
    killer.start()
    with pytest.raises(LoaderError, match=r"ended from outside .*fewer --workers than 1"):
        got += list(items)
    killer.join()
    assert taken <= len(got) < 12
    assert signal.getsignal(signal.SIGCHLD) == handler


class Slow(TrainingSet):
    def __getitem__(self, index: int) -> Example:
        time.sleep(0.3)
        return super().__getitem__(index)


def kill_children(but: Sequence[Any]) -> None:
    """Kill the processes that were started since; a busy machine starts them late."""
    while not (new := [child for child in multiprocessing.active_children() if child not in but]):
        time.sleep(0.05)
    for child in new:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)


class Faulty(TrainingSet):
    """Raises what no picture can cause."""

    error: type[Exception] = MemoryError

    def __getitem__(self, index: int) -> Example:
        raise self.error("of the loader")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_raises(workers: int, train_set: DetectionDataset) -> None:
    loader = EpochLoader(train_set, NANO, 0, 0, workers)
    loader.batches.examples = Faulty(train_set, NANO, 0, 0)
    with pytest.raises(LoaderError, match="no memory left to load images"):
        next(iter(loader))
    loader = EpochLoader(train_set, NANO, 0, 0, workers)  # the other's process has a copy
    loader.batches.examples = faulty = Faulty(train_set, NANO, 0, 0)
    faulty.error = ZeroDivisionError  # a fault of ours keeps its traceback
    with pytest.raises(ZeroDivisionError, match="of the loader"):
        next(iter(loader))


def test_images_without_objects_make_batches(train_set: DetectionDataset) -> None:
    data = replace(train_set, samples=tuple(map(without_objects, train_set.samples)))
    for recipe in ({}, MIXED):
        for batch in batches(data, with_recipe(NANO, **recipe)):
            assert not batch.targets.valid.any()


def test_normalising_first_without_autograd_does_not_hinder_training() -> None:
    """The constants are kept; those of inference mode could not be used in a graph."""
    _constants.cache_clear()
    pixels = torch.arange(48, dtype=torch.uint8).reshape(1, 4, 4, 3)
    with torch.inference_mode():
        first = normalize(pixels)
    again = normalize(pixels)
    assert torch.equal(first, again)
    (again * torch.ones(1, requires_grad=True)).sum().backward()
    assert not any(constant.is_inference() for constant in _constants(pixels.device))
    assert _constants(pixels.device)[0] is _constants(pixels.device)[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sending_a_batch_to_a_gpu_never_waits_for_it() -> None:
    device, random = torch.device("cuda", 0), np.random.default_rng(0)
    examples = [
        Example(
            random.integers(0, 256, (h, w, 3), dtype=np.uint8),
            np.array([[2, 3, 40, 50]], np.float32),
            np.array([1]),
        )
        for h, w in ((64, 96), (96, 64))
    ]
    packed = pack(examples)
    unpack(packed, device)  # fills what is kept
    torch.cuda.set_sync_debug_mode("error")
    try:
        sent = unpack(packed, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    here = unpack(packed)
    torch.testing.assert_close(sent.images.cpu(), here.images)
    assert sent.padding is not None and here.padding is not None
    assert sent.padding.cpu().equal(here.padding)
    assert sent.targets.boxes.cpu().equal(here.targets.boxes)
    assert sent.targets.labels.cpu().equal(here.targets.labels)
