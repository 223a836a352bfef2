"""Writing a dataset that is made here: pictures and COCO instances, split by split.

A record in the folder tells which splits are finished, so that an interrupted set is completed, and
a folder with anything else is left alone.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import DataError
from nmsfree.files import is_part, write_atomic
from nmsfree.images import write_picture
from nmsfree.parsing import decode_json, read_bytes
from nmsfree.text import shown

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # split, images done, images in the split


class Labelled(NamedTuple):
    """One picture, and its objects as COCO has them."""

    image: NDArray[np.uint8]  # [h, w, 3], BGR
    boxes: list[list[float]]  # xyxy in pixels
    labels: list[int]
    iscrowd: Sequence[int]


@dataclass(frozen=True)
class MadeSet:
    """What a set says of itself."""

    name: str  # "digits"; the record is digits.json
    recipe: int  # raised whenever the same seed would give other pictures
    seed: int
    class_names: tuple[str, ...]
    supercategory: str
    contributor: str
    licence: Mapping[str, str]  # name and url

    def write(
        self,
        out: Path,
        counts: Mapping[str, int],
        make: Callable[[str, int], Labelled],
        progress: Progress | None,
    ) -> list[str]:
        """Write the splits that are missing: SPLIT/NNNNN.png, annotations/instances_SPLIT.json.

        Args:
            counts: images of each split; one without images is left out.
            make: makes a picture of a split by its index.

        Returns:
            The splits that had to be written; none when the set was complete.

        Raises:
            DataError: the folder holds other data, or this set of another seed.
        """
        finished = self._read_record(out)
        written = []
        for split, count in counts.items():
            if count == 0 or (finished.get(split) == count and _is_complete(out, split, count)):
                continue
            finished.pop(split, None)
            self._write_record(out, finished)
            made = []
            for index in range(count):
                labelled = make(split, index)
                write_picture(out / split / _file_name(index), labelled.image)
                height, width = labelled.image.shape[:2]
                made.append((width, height, *labelled[1:]))
                if progress is not None:
                    progress(split, index + 1, count)
            content = json.dumps(self._coco(split, made))
            write_atomic(_annotations(out, split), content.encode())
            finished[split] = count
            self._write_record(out, finished)
            written.append(split)
            logger.info("wrote %d %s pictures to %s", count, split, out)
        return written

    def _read_record(self, out: Path) -> dict[str, int]:
        """Return the finished splits of a set and their lengths, empty for a new folder."""
        path, what = out / f"{self.name}.json", f"give an empty or new folder for the {self.name}"
        if out.exists() and not out.is_dir():
            raise DataError(f"{out} is a file: {what}")
        if not path.exists():
            if out.exists() and not all(map(is_part, out.iterdir())):
                raise DataError(f"{out} holds other data: {what}")
            return {}
        data = read_bytes(path, error=DataError)
        found = decode_json(data, _Record, path, DataError, f"delete {shown(out)}")
        if (found.recipe, found.seed) != (self.recipe, self.seed):
            raise DataError(
                f"{out} holds {self.name} of recipe {found.recipe} and seed {found.seed}, asked "
                f"for recipe {self.recipe} and seed {self.seed}: delete it or give another folder"
            )
        return dict(found.splits)

    def _write_record(self, out: Path, splits: dict[str, int]) -> None:
        record = {"recipe": self.recipe, "seed": self.seed, "splits": splits}
        write_atomic(out / f"{self.name}.json", json.dumps(record, sort_keys=True).encode())

    def _coco(self, split: str, made: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
        """COCO instances; image ids count from 1, category ids are label + 1."""
        objects = [
            (image, *row)
            for image, (_, _, *columns) in enumerate(made, start=1)
            for row in zip(*columns, strict=True)
        ]
        description = f"nmsfree {self.name}, {split}, recipe {self.recipe}, seed {self.seed}"
        return {
            "info": {"description": description, "contributor": self.contributor},
            "licenses": [{"id": 1, **self.licence}],
            "categories": [
                {"id": label, "name": name, "supercategory": self.supercategory}
                for label, name in enumerate(self.class_names, start=1)
            ],
            "images": [
                {
                    "id": number,
                    "file_name": _file_name(number - 1),
                    "width": width,
                    "height": height,
                    "license": 1,
                }
                for number, (width, height, *_) in enumerate(made, start=1)
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": image,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": crowd,
                }
                for number, (image, (x1, y1, x2, y2), label, crowd) in enumerate(objects, start=1)
            ],
        }


@dataclass(frozen=True)
class _Record:
    """What made a set, and the lengths of its finished splits."""

    recipe: int
    seed: int
    splits: dict[str, int]


def _annotations(out: Path, split: str) -> Path:
    return out / "annotations" / f"instances_{split}.json"


def _file_name(index: int) -> str:
    return f"{index:05d}.png"


def _is_complete(out: Path, split: str, count: int) -> bool:
    """Tell whether the annotations and every image are there."""
    names = {path.name for path in (out / split).glob("*.png")}
    whole = all(_file_name(index) in names for index in range(count))
    return whole and _annotations(out, split).is_file()
