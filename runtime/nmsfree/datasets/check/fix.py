"""Writing a cleaned copy of a dataset's annotations; images stay where they are, untouched.

The copy is a COCO dataset of its own, whose header names the folder of the images (see
`nmsfree.datasets.formats.coco`). It holds what the check found usable, boxes cut to their image and
duplicates once, with one list of classes, and without images that a later split (validation, test)
holds, too. Annotation ids are renumbered; everything else that COCO entries hold is kept.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from nmsfree.datasets.check.images import unions
from nmsfree.datasets.check.report import Check, SplitCheck
from nmsfree.datasets.faults import Kind
from nmsfree.datasets.formats.coco import (
    OwnInfo,
    category_of,
    entries,
    fields_of,
    load_coco,
    own_info,
    read_fields,
)
from nmsfree.datasets.rows import EMPTY, ImageRow
from nmsfree.errors import DataError
from nmsfree.files import is_part, write_atomic


def content_of(
    check: Check, split: SplitCheck, images: list[ImageRow], ids: dict[str, int], folder: Path
) -> dict[str, Any]:
    """Return the COCO content of a split with the images that stay; paths count from `folder`."""
    rows = split.rows
    source = read_fields(rows.file) if rows.format == "COCO" else {}
    categories = entries(source, "categories", rows.file) if source else []
    fields = {category_of(entry).name: fields_of(entry) for entry in categories}
    try:
        folders = [os.path.abspath(image.path.parent) for image in images]  # noqa: PTH100
        pictures = Path(os.path.commonpath(folders))
    except ValueError:
        raise DataError("the images lie on several drives: bring them onto one") from None
    header = source.get("info", EMPTY)
    info = fields_of(header) if bytes(header).startswith(b"{") else {}
    sizes = [check.facts[image.path].size or (0, 0) for image in images]  # usable: they have one
    own = OwnInfo(_relative(pictures, folder), _relative(check.layout.root, folder))
    return {
        **source,
        "info": {**info, "nmsfree": own},
        "categories": [
            {**fields.get(name, {}), "id": number, "name": name} for name, number in ids.items()
        ],
        "images": [
            {
                **fields_of(image.entry),
                "id": image.id,
                "file_name": _relative(image.path, pictures),
                "width": width,
                "height": height,
            }
            for image, (width, height) in zip(images, sizes, strict=True)
        ],
        "annotations": _annotations(split, {image.id for image in images}, ids),
    }


def _relative(path: Path, folder: Path) -> str:
    """Return a path from a folder, so that both can be moved together."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return Path(os.path.abspath(path)).as_posix()  # noqa: PTH100


def _annotations(
    split: SplitCheck, image_ids: set[int], ids: dict[str, int]
) -> list[dict[str, Any]]:
    """Return the usable objects of the kept images; only boxes that reach out change."""
    names = {category.id: category.name for category in split.rows.categories}
    boxes = split.boxes
    cut = (boxes.clipped != boxes.xyxy).any(axis=1)
    found: list[dict[str, Any]] = []
    for index in np.flatnonzero(boxes.good).tolist():
        row = split.rows.objects[index]
        if row.image_id not in image_ids:
            continue
        x1, y1, x2, y2 = boxes.clipped[index].tolist()
        bbox = [x1, y1, x2 - x1, y2 - y1] if cut[index] else list(row.bbox)
        area = of_box = bbox[2] * bbox[3]
        if row.area is not None and 0 < row.area < math.inf:  # of a mask, if it can be right
            changed = cut[index] or boxes.area_odd[index]
            area = min(row.area, of_box) if changed else row.area
        own = {
            "id": len(found) + 1,
            "image_id": row.image_id,
            "category_id": ids[names[row.category_id]],
            "bbox": bbox,
            "area": area,
            "iscrowd": int(row.iscrowd),
        }
        found.append({**fields_of(row.entry), **own})
    return found


@dataclass(frozen=True, eq=False)
class FixedSplit:
    """The annotation file of a split, what it holds, and how many faults were fixed."""

    file: Path
    images: int
    objects: int
    changes: Mapping[Kind, int]

    def to_json(self) -> dict[str, Any]:
        changes = {kind.code: count for kind, count in self.changes.items()}
        return vars(self) | {"file": str(self.file), "changes": changes}


@dataclass(frozen=True, eq=False)
class Fixed:
    """What `write_fixed` did; `unfixed` are the errors that are left, a line each."""

    folder: Path
    splits: dict[str, FixedSplit]
    unfixed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything, ready for `json.dumps`."""
        splits = {name: split.to_json() for name, split in self.splits.items()}
        return {"folder": str(self.folder), "splits": splits, "unfixed": list(self.unfixed)}


def default_folder(check: Check) -> Path:
    """Return where the cleaned dataset goes unless told otherwise: DIR-clean beside DIR."""
    root = Path(os.path.abspath(check.layout.root))  # noqa: PTH100 (resolve() follows links)
    return root.with_name(f"{root.name}-clean")


def needs_fixing(check: Check) -> bool:
    """Tell whether there is a fault that `write_fixed` fixes."""
    return any(finding.kind.fix for finding in check.findings())


def write_fixed(check: Check, folder: Path) -> Fixed:
    """Write the cleaned dataset; an earlier one of the same dataset is replaced.

    DataError if the folder holds anything else; InputError if it cannot be written.
    """
    _refuse_others(check, folder)
    kept, unfixed = _kept_images(check)
    ids: dict[str, int] = {}  # of every class of all splits
    for split in check.splits.values():
        for category in split.rows.categories:
            ids.setdefault(category.name, category.id)
    if len({*ids.values()}) < len(ids):  # the dataset's own do not agree
        ids = {name: number for number, name in enumerate(ids, start=1)}
    written: dict[str, FixedSplit] = {}
    for name, split in check.splits.items():
        if not kept[name]:
            unfixed.append(f"{name}: no image is left, so it was not written")
            continue
        content = content_of(check, split, kept[name], ids, folder)
        file = folder / "annotations" / f"instances_{name}.json"
        write_atomic(file, msgspec.json.encode(content))
        load_coco(folder, name)  # it must load; anything else is a defect of this module
        objects, changes = len(content["annotations"]), _changes(check, split, kept[name])
        written[name] = FixedSplit(file, len(kept[name]), objects, changes)
    unfixed += [fault.detail for fault in check.faults if fault.kind is Kind.SPLIT_UNREADABLE]
    return Fixed(folder, written, tuple(unfixed))


def _refuse_others(check: Check, folder: Path) -> None:
    """Refuse a folder with anything but an earlier result for the same dataset."""
    if not folder.exists():
        return
    mark = _relative(check.layout.root, folder)
    found = folder.rglob("*") if folder.is_dir() else iter([folder])
    for file in (path for path in found if path.is_file() and not is_part(path)):
        ours = file.parent == folder / "annotations" and file.suffix == ".json"
        if not ours or own_info(read_fields(file)).cleaned_from != mark:
            raise DataError(
                f"{file} is no earlier result of --fix for {check.layout.root}, so {folder} is "
                "not touched: delete it, or give another folder with --out-fixed"
            )


def _kept_images(check: Check) -> tuple[dict[str, list[ImageRow]], list[str]]:
    """Return the images of each split that stay, and what cannot be fixed."""
    unfixed: list[str] = []
    kept: dict[str, list[ImageRow]] = {}
    usable = {
        name: [image for image in split.rows.images if _is_usable(check, image)]
        for name, split in check.splits.items()
    }
    for name, images in usable.items():
        leaked = {path: other for one, path, other, _ in check.leaks if one == name}
        kept[name] = [image for image in images if image.path not in leaked]
        if images and not kept[name]:
            kept[name] = images
            others = " and ".join(
                sorted({other for one, _, other, _ in check.leaks if one == name})
            )
            unfixed.append(f"{name}: all its images are in {others}, too: take other images")
    for name, parts in unions({name: split.rows for name, split in check.splits.items()}).items():
        paths = {image.path for part in parts for image in kept[part]}
        kept[name] = [image for image in usable[name] if image.path in paths]
    return kept, unfixed


def _is_usable(check: Check, image: ImageRow) -> bool:
    size = check.facts[image.path].size
    return size is not None and image.size in (None, size)


def _changes(check: Check, split: SplitCheck, kept: list[ImageRow]) -> dict[Kind, int]:
    """Count the fixed faults of a split by kind."""
    changes = Counter(fault.kind for fault in split.faults if fault.kind.fix)
    stays = {image.path for image in kept}
    gone = [i for i in split.rows.images if i.path not in stays and _is_usable(check, i)]
    changes[Kind.LEAKAGE] = len(gone)
    lists = (Kind.CLASSES_DIFFER, Kind.CLASS_NAME_TWICE)
    changes.update(f.kind for f in check.faults if f.kind in lists and f.source == split.rows.file)
    return {kind: changes[kind] for kind in Kind if changes[kind]}
