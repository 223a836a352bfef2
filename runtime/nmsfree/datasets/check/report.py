"""What checking a dataset found, by kind and split, and as JSON."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.check.boxes import SMALL_SIDE, Boxes
from nmsfree.datasets.check.images import ImageFact, Leak
from nmsfree.datasets.faults import Fault, Kind, Level
from nmsfree.datasets.formats.folder import Layout
from nmsfree.datasets.image_files import Size
from nmsfree.datasets.rows import SplitRows, relative_name
from nmsfree.datasets.sizes import HeightWidth, Sizes, count_small, propose_size

# COCO's classes of area: below 32², up to 96², above; its own evaluation may use mask areas.
SMALL_AREA, LARGE_AREA = 32**2, 96**2
# Edges of the bins of √area in pixels, about √2 apart; 32 and 96 are among them.
EDGES = (0, 4, 6, 8, 11, 16, 23, 32, 45, 64, 96, 128, 181, 256, 362, 512, 724, 1024, np.inf)


@dataclass(frozen=True, eq=False)
class SplitStats:
    """Counts of one split; boxes that are of no use (no area, outside, repeated) do not count."""

    images: int
    images_without_objects: int  # those without any usable box that is not a crowd region
    objects: int
    crowd: int  # regions to ignore
    by_class: dict[int, int]  # objects of each category id
    images_by_class: dict[int, int]  # images that show it
    sides: NDArray[np.float64]  # [objects], √area in source pixels
    below_8px: int  # objects with a width or height below 8 pixels
    # [known, 2], width and height of the objects in pictures of known size, and of those pictures
    objects_and_pictures: tuple[Sizes, Sizes]

    def by_area(self) -> dict[str, int]:
        """Return the number of small, medium and large objects as COCO divides them."""
        area = self.sides**2
        small, large = int((area < SMALL_AREA).sum()), int((area > LARGE_AREA).sum())
        return {"small": small, "medium": len(area) - small - large, "large": large}

    def bins(self) -> list[int]:
        """Return the number of objects in every bin of √area."""
        counts: list[int] = np.histogram(self.sides, EDGES)[0].tolist()
        return counts

    def to_json(self, rows: SplitRows, size: HeightWidth) -> dict[str, Any]:
        """Return everything, classes by name, and what is small in an input of this size."""
        bins = zip(pairwise(EDGES), self.bins(), strict=True)
        lost, hard = count_small(*self.objects_and_pictures, size)
        return {
            "images": self.images,
            "images_without_objects": self.images_without_objects,
            "objects": self.objects,
            "crowd": self.crowd,
            "classes": [
                {"id": i, "name": n, "objects": self.by_class[i], "images": self.images_by_class[i]}
                for i, n in rows.categories
            ],
            "box_sizes": {
                **self.by_area(),
                "below_8px": self.below_8px,
                "below_8px_in_input": lost,
                "below_16px_in_input": hard,
                "sqrt_area_bins": [
                    {"from": low, "to": high if np.isfinite(high) else None, "objects": count}
                    for (low, high), count in bins
                ],
            },
        }


def count(rows: SplitRows, boxes: Boxes, sizes: Mapping[int, Size | None]) -> SplitStats:
    """Count the usable boxes of a split; `sizes` are those of the images by id."""
    usable = boxes.good & ~boxes.crowd
    sides = boxes.clipped[usable, 2:] - boxes.clipped[usable, :2]
    objects = [rows.objects[index] for index in np.flatnonzero(usable).tolist()]
    by_class = Counter(row.category_id for row in objects)
    shown = Counter(c for _, c in {(row.image_id, row.category_id) for row in objects})
    filled = {row.image_id for row in objects}
    pictures = np.array([sizes[row.image_id] or (np.nan, np.nan) for row in objects], np.float64)
    pictures = pictures.reshape(-1, 2)
    known = ~np.isnan(pictures[:, 0])
    return SplitStats(
        images=len(rows.images),
        images_without_objects=len(rows.images) - len(filled),
        objects=len(objects),
        crowd=int(boxes.crowd.sum()),
        by_class={category.id: by_class[category.id] for category in rows.categories},
        images_by_class={category.id: shown[category.id] for category in rows.categories},
        sides=np.sqrt(sides.prod(axis=1)),
        below_8px=int((sides.min(axis=1, initial=np.inf) < SMALL_SIDE).sum()),
        objects_and_pictures=(sides[known], pictures[known]),
    )


def by_name(rows: SplitRows, counts: Mapping[int, int]) -> Counter[str]:
    """Add up counts of category ids by class: two ids of one name are one class."""
    found: Counter[str] = Counter()
    for number, name in rows.categories:
        found[name] += counts[number]
    return found


@dataclass(frozen=True, eq=False)
class SplitCheck:
    """One split that could be read."""

    rows: SplitRows  # what the source says, without what is malformed or dangling
    boxes: Boxes  # the verdict on every box
    stats: SplitStats  # counts of what is usable
    faults: tuple[Fault, ...]  # what is wrong with the split by itself


@dataclass(frozen=True, eq=False)
class Check:
    """What checking a dataset found."""

    layout: Layout  # format and folder
    splits: dict[str, SplitCheck]  # by name, those that could be read
    facts: dict[Path, ImageFact]  # what reading each image gave
    leaks: tuple[Leak, ...]  # images shared by two splits
    faults: tuple[Fault, ...]  # of several splits, or of one that cannot be read

    def files(self) -> Iterator[Path]:
        """Yield the files that annotate and the pictures, which no output may replace."""
        yield from self.layout.files()
        for split in self.splits.values():
            for image in split.rows.images:
                yield from (image.path, image.source)

    def findings(self) -> list["Finding"]:
        """Return all faults by kind and split, the worst kinds first."""
        found: dict[tuple[Kind, str], list[Fault]] = defaultdict(list)
        named = [("", self.faults), *((name, split.faults) for name, split in self.splits.items())]
        for name, fault in ((name, fault) for name, faults in named for fault in faults):
            found[fault.kind, name].append(fault)
        order = [*Kind]
        keys = sorted(found, key=lambda key: order.index(key[0]))
        return [Finding(*key, tuple(found[key])) for key in keys]

    def count(self, level: Level) -> int:
        """Return the number of faults of a level."""
        return sum(len(f.faults) for f in self.findings() if f.kind.level is level)

    def propose_size(self) -> HeightWidth:
        """Return the (height, width) of an input that suits what is trained on.

        Those are the objects of the split "train", or of all splits where none has this name.
        """
        trained = [self.splits["train"]] if "train" in self.splits else self.splits.values()
        every = [split.stats.objects_and_pictures for split in trained]
        objects, pictures = (np.concatenate(parts) for parts in zip(*every, strict=True))
        return propose_size(objects, pictures)

    def to_json(self, size: HeightWidth) -> dict[str, Any]:
        """Return everything, ready for `json.dumps`; paths count from the dataset's folder.

        `size` is the (height, width) of the input at which small objects are counted.
        """
        return {
            "dataset": str(self.layout.config or self.layout.root),
            "format": self.layout.format,
            "errors": self.count(Level.ERROR),
            "warnings": self.count(Level.WARNING),
            "input_size": size,
            "proposed_size": self.propose_size(),
            "splits": {
                name: {"file": str(split.rows.file), **split.stats.to_json(split.rows, size)}
                for name, split in self.splits.items()
            },
            "findings": [finding.to_json(self.layout.root) for finding in self.findings()],
        }


@dataclass(frozen=True)
class Finding:
    """All faults of one kind in one split; `split` is empty where it concerns several."""

    kind: Kind
    split: str
    faults: tuple[Fault, ...]

    def to_json(self, root: Path) -> dict[str, Any]:
        items = [
            {
                "file": relative_name(fault.source, root),
                "detail": fault.detail,
                "image": fault.image and relative_name(fault.image, root),
            }
            for fault in self.faults
        ]
        return {
            "kind": self.kind.code,
            "level": self.kind.level.value,
            "split": self.split or None,
            "title": self.kind.title,
            "advice": self.kind.advice,
            "count": len(items),
            "items": items,
        }
