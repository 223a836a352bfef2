"""Reading COCO folders: what is understood, and one clear line for everything else."""

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmsfree.datasets.formats.coco import DetectionDataset, load_coco
from nmsfree.datasets.formats.folder import find_layout, load_dataset
from nmsfree.errors import DataError
from nmsfree.evaluation.analysis import folder_name
from nmsfree.evaluation.evaluate import coco_metrics
from nmsfree.evaluation.scores import Result

DROPPED = object()
NAN, INF = float("nan"), float("inf")


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


def changed(*path: str | int, value: Any = None) -> Any:
    """The content with one value replaced, or left out if it is `DROPPED`."""
    data = place = content()
    for step in path[:-1]:
        place = place[step]  # type: ignore[index]
    place[path[-1]] = value  # type: ignore[index]
    if value is DROPPED:
        del place[path[-1]]  # type: ignore[arg-type]
    return data


def refused(message: str, folder: Path, *written: Any) -> None:
    """Loading ends in one short line that names the file."""
    with pytest.raises(DataError, match=message) as found:
        load(folder, *written) if written else load_coco(folder, "val")
    said = str(found.value)
    assert said.isprintable() and len(said) < 1000 and "instances_val.json" in said


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
    for sample in dataset.samples:
        assert (sample.boxes.dtype, sample.labels.dtype) == (np.float32, np.int64)
        assert sample.iscrowd.dtype == np.bool_


@pytest.mark.parametrize(("stored", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_files_are_found_in_either_unicode_form(tmp_path: Path, stored: str, written: str) -> None:
    data = content()
    name = "größe/é.jpg"
    data["images"][0]["file_name"] = unicodedata.normalize(written, name)  # type: ignore[arg-type]
    path = tmp_path / "val" / unicodedata.normalize(stored, name)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True)
    path.touch()
    assert load(tmp_path, data).samples[0].path == path


@pytest.mark.parametrize(
    "box",
    [
        [1, 1, 0, 5], [1, 1, 5, 0], [1, 1, -3, 5], [1, 1, NAN, 5],
        [NAN, 1, 5, 5], [1, INF, 5, 5], [1, 1, INF, 5], [500, 1, 1e-9, 5],
    ],
)  # fmt: skip
def test_boxes_without_area_are_dropped_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, box: list[float]
) -> None:
    """Also those that have none in float32."""
    data = content()
    data["annotations"] += [{"id": 9, "image_id": 5, "category_id": 3, "bbox": box}] * 2
    dataset = load(tmp_path, data)
    assert [len(sample.boxes) for sample in dataset.samples] == [2, 0]
    (record,) = caplog.records
    assert record.getMessage().endswith(": dropped 2 boxes without area")


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


@pytest.mark.parametrize("folder", ["val", "images/val", "images"])
@pytest.mark.parametrize("name", ["b.jpg", "deep/er/b.jpg", "deep\\b.jpg"])
def test_images_are_found_in_the_usual_folders(tmp_path: Path, folder: str, name: str) -> None:
    path = tmp_path / folder / name.replace("\\", "/")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert load(tmp_path, changed("images", 0, "file_name", value=name)).samples[0].path == path


@pytest.mark.parametrize(
    "name",
    ["val/{}", "./val/{}", "../val/{}", "..\\val\\{}", "..\\annotations\\..\\val\\{}", "sub/../{}",
     "{root}/val/{}"],
)  # fmt: skip
@pytest.mark.parametrize("relative", [False, True])
def test_names_are_counted_from_the_set_or_given_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, relative: bool
) -> None:
    data = content()
    (tmp_path / "val").mkdir()
    for image in data["images"]:
        (tmp_path / "val" / image["file_name"]).touch()
        image["file_name"] = name.format(image["file_name"], root=tmp_path)
    monkeypatch.chdir(tmp_path)
    dataset = load(Path() if relative else tmp_path, data)
    paths = [sample.path.resolve() for sample in dataset.samples]
    assert paths == [tmp_path / "val/b.jpg", tmp_path / "val/a.jpg"]


def test_roboflow_layout(tmp_path: Path) -> None:
    files = [tmp_path / split / "_annotations.coco.json" for split in ("train", "valid")]
    for file in files:
        file.parent.mkdir()
        (file.parent / "b.jpg").touch()
        file.write_text(json.dumps(content()))
    layout = find_layout(tmp_path)
    assert (layout.splits(), layout.files()) == (["train", "valid"], files)
    dataset = load_dataset(tmp_path, "valid")
    assert dataset.samples[0].path == tmp_path / "valid/b.jpg"
    assert (dataset.root, folder_name(dataset)) == (tmp_path, tmp_path.name)


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


def test_numbers_may_be_text(tmp_path: Path) -> None:
    data = content()
    for image in data["images"]:
        image["id"] = f"{image['id']:06d}"
    text = {"image_id": "000012", "bbox": ["1.5", "2", "10", "20"], "iscrowd": "0"}
    data["annotations"][0] |= text
    first = load(tmp_path, data).samples[0]
    assert (first.image_id, first.xywh[0].tolist()) == (12, [1.5, 2, 10, 20])


@pytest.mark.parametrize("start", [2**31, 2**53, 2**63 - 1, 2**64, 10**40, -(2**53), -(2**70)])
def test_ids_of_any_size(tmp_path: Path, start: int) -> None:
    """Neighbours that a float cannot tell apart stay two images, two classes."""
    data = content()
    of_class = start if abs(start) < 2**62 else 2**62  # model files hold 64 bits
    for row in (*data["images"], *data["annotations"]):
        row["id"] += start
    for category in data["categories"]:
        category["id"] += of_class
    for annotation in data["annotations"]:
        annotation["category_id"] += of_class
        annotation["image_id"] += start
    dataset = load(tmp_path, data)
    assert [sample.image_id for sample in dataset.samples] == [start + 12, start + 5]
    assert dataset.category_ids == (of_class + 3, of_class + 90)
    assert dataset.samples[0].labels.tolist() == [1, 0]
    found: Result = {
        "image_id": start + 12, "category_id": of_class + 90,
        "bbox": [1.5, 2, 10, 20], "score": 0.5,
    }  # fmt: skip
    assert coco_metrics(dataset, [found]).ap == pytest.approx(1)
    for name, other in (("image_id", start + 5), ("category_id", of_class + 3)):
        assert coco_metrics(dataset, [found | {name: other}]).ap == 0


@pytest.mark.parametrize(
    ("place", "field", "value", "message"),
    [
        ("images", "id", "img_1", "image entry 1: id: expected a whole number, got 'img_1'"),
        ("images", "id", 3.7, r"image entry 1: id: expected int \| str, got float"),
        ("images", "id", True, r"image entry 1: id: .*, got bool"),
        ("images", "file_name", 7, "image entry 1: file_name: expected str, got int"),
        ("categories", "id", "x", "category 1: id: expected a whole number, got 'x'"),
        ("categories", "id", 2**63, "category 1: id: 9223372036854775808 is beyond 64 bits"),
        ("categories", "name", "x" * 5000, "category 1: name: expected str of length <= 1000"),
        ("categories", "name", None, "category 1: name: expected .*, got null"),
        ("annotations", "category_id", 3.7, "annotation 1: category_id: .*, got float"),
        ("annotations", "image_id", 12.5, "annotation 1: image_id: .*, got float"),
        ("annotations", "image_id", "9" * 5000, "annotation 1: image_id: expected a whole number"),
        ("annotations", "iscrowd", "false", "annotation 1: iscrowd: expected a whole number"),
        ("annotations", "bbox", {"x": 1}, "annotation 1: bbox: expected array, got object"),
        ("annotations", "bbox", [1, 2, "wide", 4], r"annotation 1: bbox\[2\]: expected float"),
        ("annotations", "area", "large", "annotation 1: area: expected float"),
        ("annotations", "bbox", [1, 2, 3], "annotation 1: bbox: expected array of length 4"),
        ("annotations", "category_id", 4, "annotation 1 names category 4, which"),
        ("annotations", "image_id", 4, "annotation 1 names image 4, which"),
        ("images", "id", 5, "image id twice"),
        ("categories", "id", 3, "category id twice"),
        ("categories", "name", "car", r"gives several classes one name \(car\): rename them"),
        ("annotations", "bbox", DROPPED, "annotation 1: lacks the field bbox"),
        *(
            ("images", "file_name", name, "image entry 1: file name .* (leads out|names no file)")
            for name in ("../../b.jpg", "/b.jpg", "a/../../../b.jpg", "..\\..\\b.jpg", "", "./")
        ),
        *(
            ("images", "file_name", name, "image entry 1: file name .* none that a file can")
            for name in ("a\0b.jpg", "x" * 300, f"val/{'ß' * 200}.jpg", "x" * 10**6)
        ),
        *(
            ("images", "width", size, r"instances_val\.json: image entry 1: width: expected int")
            for size in (0, None, "wide", NAN, 64.5, 2**40, True)
        ),
    ],
)
def test_a_message_names_the_field(
    tmp_path: Path, place: str, field: str, value: Any, message: str
) -> None:
    refused(message, tmp_path, changed(place, 0, field, value=value))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        *(
            (data, "instances_val")
            for data in (
                b"",
                b'{"images": ' + b"[" * 100_000,
                b'{"images": 1e400, "annotations": [], "categories": []}',
                b'{"images": {}, "annotations": [], "categories": []}',
                b'{"images": ["\\ud800"], "annotations": [], "categories": []}',
                b'{"images": [], "annotations": [], "categories": [], "\xff": 1}',
                b'{"images": [3, null, "x", [], 1e400], "annotations": [], "categories": []}',
                b'{"images": [], "annotations": [], "categories": [], "categories": 3}',
                b"\xff\xfe\x00",
            )
        ),
        (b'{"annotations": [], "categories": []}', "has no 'images' list: expected COCO"),
        (b'{"images": [], "categories": []}', "has no 'annotations'"),
        (b'{"images": [], "annotations": []}', "has no 'categories'"),
    ],
)
def test_whatever_a_file_holds_is_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    load(tmp_path, content())
    (tmp_path / "annotations/instances_val.json").write_bytes(data)
    refused(message, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_a_byte_order_mark_does_not_matter(tmp_path: Path, encoding: str) -> None:
    load(tmp_path, content())
    text = json.dumps(content()).replace("brush", "Bürste")
    (tmp_path / "annotations/instances_val.json").write_text(text, encoding)
    assert load_coco(tmp_path, "val").class_names == ("car", "Bürste")


def test_a_pipe_and_a_large_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tmp_path, content() | {"info": "x" * (2 << 20)})
    monkeypatch.setenv("NMSFREE_MAX_FILE_MB", "1")
    refused(r"has 2.* MB, expected at most 1.* NMSFREE_MAX_FILE_MB=3", tmp_path)
    monkeypatch.setenv("NMSFREE_MAX_FILE_MB", "3")
    assert len(load_coco(tmp_path, "val")) == 2
    file = tmp_path / "annotations/instances_val.json"
    file.unlink()
    os.mkfifo(file)
    refused("is a pipe or device", tmp_path)


@pytest.mark.parametrize("area", [None, -5, 2e10, float("nan"), "12.5", 12.5])
def test_an_area_that_is_none_is_that_of_the_box(tmp_path: Path, area: Any) -> None:
    data = changed("annotations", 0, "area", value=area)
    expected = 12.5 if area in (12.5, "12.5") else 200
    assert load(tmp_path, data).samples[0].area.tolist() == [expected, 64 * 48]
