"""Writing a cleaned copy of a dataset's annotations; images stay where they are, untouched.

The copy is a COCO dataset of its own, DIR/annotations/instances_SPLIT.json, whose header names
the folder of the images (see `nmsfree.data.coco`). It holds what the check found usable:

- without images that are missing, unreadable, damaged or of another size than annotated;
- without boxes that have no area or lie outside; others cut to the image; duplicates once;
- without annotations that are malformed or name what is not defined;
- with one list of classes, and without images that a later split (validation, test) holds, too.

Annotation ids are renumbered; everything else that COCO entries hold is kept.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nmsfree.data.check_copies import unions
from nmsfree.data.check_report import Check, SplitCheck
from nmsfree.data.coco import load_coco, own_info, read_fields
from nmsfree.data.faults import DESCRIPTIONS, Fault, Kind
from nmsfree.data.fix_content import category_ids, content_of, source_mark
from nmsfree.data.rows import ImageRow
from nmsfree.errors import DataError
from nmsfree.files import is_part, write_atomic


@dataclass(frozen=True, eq=False)
class FixedSplit:
    """What became of a split.

    Attributes:
        file: the annotation file written.
        images, objects: how many it holds, crowd regions included.
        changes: number of faults of each kind that were mended.
    """

    file: Path
    images: int
    objects: int
    changes: Mapping[Kind, int]


@dataclass(frozen=True, eq=False)
class Fixed:
    """What `write_fixed` did.

    Attributes:
        folder: the cleaned dataset.
        splits: by name.
        unfixed: errors that are left, a line each.
    """

    folder: Path
    splits: dict[str, FixedSplit]
    unfixed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything, ready for `json.dumps`."""
        return {
            "folder": str(self.folder),
            "splits": {
                name: {
                    "file": str(split.file),
                    "images": split.images,
                    "objects": split.objects,
                    "changes": {kind.value: count for kind, count in split.changes.items()},
                }
                for name, split in self.splits.items()
            },
            "unfixed": list(self.unfixed),
        }


def default_folder(check: Check) -> Path:
    """Return where the cleaned dataset goes unless told otherwise: DIR-clean beside DIR."""
    root = Path(os.path.abspath(check.layout.root))  # noqa: PTH100 (resolve() follows links)
    return root.with_name(f"{root.name}-clean")


def needs_fixing(check: Check) -> bool:
    """Tell whether there is a fault that `write_fixed` mends."""
    return any(DESCRIPTIONS[finding.kind].fix for finding in check.findings())


def write_fixed(check: Check, folder: Path) -> Fixed:
    """Write the cleaned dataset; an earlier one of the same dataset is replaced.

    Raises:
        DataError: the folder holds anything else.
        InputError: it cannot be written.
    """
    _refuse_others(check, folder)
    kept, unfixed = _kept_images(check)
    ids = category_ids(check)
    written: dict[str, FixedSplit] = {}
    for name, split in check.splits.items():
        if not kept[name]:
            unfixed.append(f"{name}: no image is left, so it was not written")
            continue
        content = content_of(check, split, kept[name], ids, folder)
        file = folder / "annotations" / f"instances_{name}.json"
        write_atomic(file, msgspec.json.encode(content))
        load_coco(folder, name)  # it must load; anything else is a defect of this module
        changes = _changes(check, split, kept[name])
        written[name] = FixedSplit(
            file, len(content["images"]), len(content["annotations"]), changes
        )
    unfixed += [fault.detail for fault in check.faults if fault.kind is Kind.SPLIT_UNREADABLE]
    return Fixed(folder, written, tuple(unfixed))


def _refuse_others(check: Check, folder: Path) -> None:
    """Refuse a folder with anything but an earlier result for the same dataset."""
    if not folder.exists():
        return
    found = folder.rglob("*") if folder.is_dir() else iter([folder])
    for file in (path for path in found if path.is_file() and not is_part(path)):
        ours = file.parent == folder / "annotations" and file.suffix == ".json"
        if not ours or own_info(read_fields(file)).cleaned_from != source_mark(check, folder):
            raise DataError(
                f"{file} is no earlier result of --fix for {check.layout.root}, so {folder} is "
                "left alone: delete it, or give another folder with --out-fixed"
            )


def _kept_images(check: Check) -> tuple[dict[str, list[ImageRow]], list[str]]:
    """Return the images of each split that stay, and what cannot be mended."""
    unfixed: list[str] = []
    kept: dict[str, list[ImageRow]] = {}
    for name, split in check.splits.items():
        usable = [image for image in split.rows.images if _is_usable(check, image)]
        leaked = {path for one, path, _, _ in check.leaks if one == name}
        kept[name] = [image for image in usable if image.path not in leaked]
        if usable and not kept[name]:
            others = sorted({other for one, _, other, _ in check.leaks if one == name})
            kept[name] = usable
            unfixed.append(
                f"{name}: all its images are in {' and '.join(others)}, too: take other images"
            )
    for name, parts in unions({name: split.rows for name, split in check.splits.items()}).items():
        paths = {image.path for part in parts for image in kept[part]}
        images = check.splits[name].rows.images
        kept[name] = [i for i in images if i.path in paths and _is_usable(check, i)]
    return kept, unfixed


def _is_usable(check: Check, image: ImageRow) -> bool:
    size = check.facts[image.path].size
    return size is not None and image.size in (None, size)


def _changes(check: Check, split: SplitCheck, kept: list[ImageRow]) -> dict[Kind, int]:
    """Count the mended faults of a split by kind."""
    changes = Counter(fault.kind for fault in split.faults if DESCRIPTIONS[fault.kind].fix)
    stays = {image.path for image in kept}
    gone = [i for i in split.rows.images if i.path not in stays and _is_usable(check, i)]
    changes[Kind.LEAKAGE] = len(gone)
    changes.update(f.kind for f in check.faults if _concerns(f, split))
    return {kind: changes[kind] for kind in Kind if changes[kind]}


def _concerns(fault: Fault, split: SplitCheck) -> bool:
    """Tell whether a fault of the whole set is mended in a split."""
    lists = (Kind.CLASSES_DIFFER, Kind.CLASS_NAME_TWICE)
    return fault.kind in lists and fault.source == split.rows.file
