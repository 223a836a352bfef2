"""Any supported dataset by its folder: what is in it decides how it is read."""

from pathlib import Path
from typing import Any

from nmsfree.data.coco import read_json
from nmsfree.data.dataset import DetectionDataset, build
from nmsfree.data.faults import refuse
from nmsfree.data.formats import YAML_SUFFIXES, Layout, find_layout
from nmsfree.data.image_size import Size, image_size
from nmsfree.data.rows import to_coco
from nmsfree.errors import DataError


def load_dataset(directory: Path, split: str) -> DetectionDataset:
    """Read one split of a dataset; pictures are not opened beyond their headers.

    Args:
        directory: folder of a COCO, YOLO or Pascal VOC dataset, or the data.yaml of a YOLO one.
        split: name of the split; for YOLO a key of the data.yaml.

    Raises:
        DataError: a folder or file is missing, malformed, or of no known format.
        MissingExtraError: PyYAML is not installed and the dataset is YOLO.
    """
    return build(find_layout(directory).read(split, refuse))


def ground_truth(dataset: DetectionDataset) -> dict[str, Any]:
    """Return the annotations as COCO instances, complete enough for the official evaluation.

    They are read again from the source, at its full precision. What COCO readers tolerate missing
    is filled in: area, iscrowd, and annotation ids from 1 (0 reads as "unmatched").
    """
    file = dataset.annotation_file
    if file.suffix.lower() == ".json":
        return _coco(read_json(file), file)
    sizes = {sample.path: (sample.width, sample.height) for sample in dataset.samples}

    def read_size(path: Path) -> Size:
        return sizes.get(path) or image_size(path)

    if file.suffix.lower() in YAML_SUFFIXES:
        layout = Layout("YOLO", file.parent, file)
    else:
        layout = Layout("VOC", file.parents[2])  # DIR/ImageSets/Main/SPLIT.txt
    return to_coco(layout.read(dataset.name, refuse, read_size))


def _coco(content: dict[str, Any], file: Path) -> dict[str, Any]:
    for image in content["images"]:
        image["id"] = int(image["id"])
    for category in content["categories"]:
        category["id"] = int(category["id"])
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["bbox"] = [float(value) for value in annotation["bbox"]]  # also from text
        annotation["area"] = _area(annotation, f"{file}: annotation {annotation.get('id', number)}")
        annotation["id"] = number
        annotation["image_id"] = int(annotation["image_id"])
        annotation["category_id"] = int(annotation["category_id"])
        annotation["iscrowd"] = int(annotation.get("iscrowd") or 0)
    return content


def _area(annotation: dict[str, Any], place: str) -> float:
    """Return the stated area, or that of the box where none is stated."""
    stated = annotation.get("area")
    if stated is None:
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    try:
        return float(stated)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"{place} has the area {stated!r}, expected square pixels: mend it, or leave it out "
            "to take that of the box"
        ) from None
