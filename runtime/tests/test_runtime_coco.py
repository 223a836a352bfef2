"""Reading COCO folders: what is understood, and one clear line for everything else."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmsfree.data.coco import DetectionDataset, load_coco
from nmsfree.errors import DataError


def content() -> dict[str, Any]:
    """Two images, sparse category ids out of order, a crowd region."""
    return {
        "categories": [{"id": 90, "name": "brush"}, {"id": 3, "name": "car"}],
        "images": [
            {"id": 12, "file_name": "b.jpg", "width": 64, "height": 48},
            {"id": 5, "file_name": "a.jpg", "width": 32, "height": 32},
        ],
        "annotations": [
            {"id": 1, "image_id": 12, "category_id": 90, "bbox": [1.5, 2, 10, 20], "iscrowd": 0},
            {"id": 2, "image_id": 12, "category_id": 3, "bbox": [0, 0, 64, 48], "iscrowd": 1},
        ],
    }


def load(folder: Path, written: Any, split: str = "val") -> DetectionDataset:
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir(exist_ok=True)
    text = written if isinstance(written, str) else json.dumps(written)
    (folder / f"annotations/instances_{split}.json").write_text(text, encoding="utf-8")
    return load_coco(folder, split)


def test_everything_is_read(tmp_path: Path) -> None:
    dataset = load(tmp_path, content())
    assert (dataset.name, dataset.class_names) == ("val", ("car", "brush"))
    assert dataset.category_ids == (3, 90)
    first, second = dataset.samples  # the file's own order
    assert (first.image_id, first.width, first.height) == (12, 64, 48)
    assert first.path == tmp_path / "val" / "b.jpg"
    assert np.array_equal(first.boxes, np.array([[1.5, 2, 11.5, 22], [0, 0, 64, 48]], np.float32))
    assert first.labels.tolist() == [1, 0]
    assert first.iscrowd.tolist() == [False, True]
    assert (second.boxes.shape, second.labels.shape, second.iscrowd.shape) == ((0, 4), (0,), (0,))


def test_types_do_not_depend_on_the_number_of_objects(tmp_path: Path) -> None:
    for sample in load(tmp_path, content()).samples:
        assert sample.boxes.dtype == np.float32
        assert sample.labels.dtype == np.int64
        assert sample.iscrowd.dtype == np.bool_


@pytest.mark.parametrize("size", [[0, 5], [5, 0], [-3, 5], [float("nan"), 5]])
def test_boxes_without_area_are_dropped_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: list[float]
) -> None:
    data = content()
    for _ in range(2):
        data["annotations"].append(
            {"id": 9, "image_id": 5, "category_id": 3, "bbox": [1, 1, *size]}
        )
    with caplog.at_level(logging.WARNING):
        dataset = load(tmp_path, data)
    assert [len(sample.boxes) for sample in dataset.samples] == [2, 0]
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "dropped 2 boxes without area"
    ]


def test_iscrowd_may_be_missing(tmp_path: Path) -> None:
    data = content()
    del data["annotations"][0]["iscrowd"]
    assert load(tmp_path, data).samples[0].iscrowd.tolist() == [False, True]


def broken(change: str) -> Any:
    data = content()
    match change:
        case "json":
            return "{"
        case "list":
            return []
        case "categories" | "images" | "annotations":
            del data[change]
        case "bbox" | "image_id":
            del data["annotations"][0][change]
        case "short bbox":
            data["annotations"][0]["bbox"] = [1, 2, 3]
        case "category":
            data["annotations"][0]["category_id"] = 4
        case "image":
            data["annotations"][0]["image_id"] = 4
        case "twice":
            data["images"][0]["id"] = 5
        case "category twice":
            data["categories"][0]["id"] = 3
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("json", "not readable JSON"),
        ("list", "a JSON list, expected COCO"),
        ("categories", "has no 'categories' list: expected COCO"),
        ("images", "has no 'images'"),
        ("annotations", "has no 'annotations'"),
        ("bbox", "has no 'bbox'"),
        ("image_id", "has no 'image_id'"),
        ("short bbox", "is malformed"),
        ("category", "annotation 1 names category 4, which"),
        ("image", "annotation 1 names image 4, which"),
        ("twice", "image id twice"),
        ("category twice", "category id twice"),
    ],
)
def test_malformed_file_is_one_clear_line(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, broken(change))
    assert "\n" not in str(caught.value)
    assert "instances_val.json" in str(caught.value)


def test_missing_folders_and_splits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        load_coco(tmp_path / "nowhere", "val")
    with pytest.raises(DataError, match=r"instances_val\.json is missing; splits found .*: none"):
        load_coco(tmp_path, "val")
    load(tmp_path, content(), "train")
    load(tmp_path, content(), "crowd")
    with pytest.raises(DataError, match=r"splits found in .*: crowd, train"):
        load_coco(tmp_path, "val")
    (tmp_path / "train").rmdir()
    with pytest.raises(DataError, match="the images of split 'train' belong there"):
        load_coco(tmp_path, "train")


@pytest.mark.parametrize(
    "box",
    [[float("nan"), 1, 5, 5], [1, float("inf"), 5, 5], [1, 1, float("inf"), 5], [500, 1, 1e-9, 5]],
)
def test_boxes_that_float32_cannot_hold_are_dropped(tmp_path: Path, box: list[float]) -> None:
    data = content()
    data["annotations"][0]["bbox"] = box
    dataset = load(tmp_path, data)
    assert dataset.samples[0].labels.tolist() == [0]
    assert np.isfinite(dataset.samples[0].boxes).all()


@pytest.mark.parametrize("folder", ["val", "images/val", "images"])
@pytest.mark.parametrize("name", ["b.jpg", "deep/er/b.jpg", "deep\\b.jpg"])
def test_images_are_found_in_the_usual_folders(tmp_path: Path, folder: str, name: str) -> None:
    path = tmp_path / folder / name.replace("\\", "/")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    data = content()
    data["images"][0]["file_name"] = name
    assert load(tmp_path, data).samples[0].path == path


@pytest.mark.parametrize("name", ["../val/b.jpg", "/b.jpg", "a/../../b.jpg", "..\\b.jpg", "", "."])
def test_no_file_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    data = content()
    data["images"][0]["file_name"] = name
    with pytest.raises(DataError, match=r"image entry 1 is malformed \(file name .* leads out of"):
        load(tmp_path, data)


@pytest.mark.parametrize("folder", ["elsewhere/photos", "../photos", "/absolute"])
def test_a_file_may_name_its_image_folder(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "set"
    named = folder.replace("/absolute", str(tmp_path / "absolute"))
    (root / named).mkdir(parents=True)
    data = content() | {"info": {"nmsfree": {"image_folder": named}}}
    assert load(root, data).samples[0].path == root / named / "b.jpg"


@pytest.mark.parametrize("info", [None, "text", [], {"nmsfree": 3}, {"nmsfree": {}}])
def test_any_other_header_is_ignored(tmp_path: Path, info: Any) -> None:
    assert load(tmp_path, content() | {"info": info}).samples[0].path == tmp_path / "val" / "b.jpg"


@pytest.mark.parametrize("size", [0, -1, None, "wide", float("nan"), float("inf")])
def test_sizes_must_make_sense(tmp_path: Path, size: Any) -> None:
    data = content()
    data["images"][0]["width"] = size
    with pytest.raises(DataError, match=r"instances_val\.json: image entry 1 is malformed"):
        load(tmp_path, data)


def test_class_names_tell_classes_apart(tmp_path: Path) -> None:
    data = content()
    data["categories"][0]["name"] = "car"
    with pytest.raises(DataError, match=r"gives several classes one name \(car\): rename them"):
        load(tmp_path, data)


def test_ids_may_be_text(tmp_path: Path) -> None:
    data = content()
    for image in data["images"]:
        image["id"] = f"{image['id']:06d}"
    data["annotations"][0]["image_id"] = "000012"
    assert load(tmp_path, data).samples[0].image_id == 12
