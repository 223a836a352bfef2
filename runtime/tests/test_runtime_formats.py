"""The same scenes as COCO, YOLO and Pascal VOC are the same dataset; and telling them apart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.datasets.digits.scenes import CLASS_NAMES, Scene, make_scene, write_digits
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.errors import DataError, InputError
from nmsfree.images import write_picture

SIDE, SCENES = 256, 6
FORMATS = ("COCO", "YOLO", "VOC")


def scenes() -> list[Scene]:
    """Scenes with boxes at whole pixels, which VOC needs; the last has no object."""
    made = [make_scene("overlap", index) for index in range(SCENES)]
    whole = [Scene(s.image, np.round(s.boxes), s.labels) for s in made]
    return [*whole[:-1], Scene(made[-1].image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))]


def write_coco(root: Path) -> None:
    images, rows = [], []
    for number, scene in enumerate(scenes(), start=1):
        write_picture(root / "val" / f"{number}.png", scene.image)
        images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        for (x1, y1, x2, y2), label in zip(scene.boxes.tolist(), scene.labels, strict=True):
            bbox = [x1, y1, x2 - x1, y2 - y1]
            rows.append({"image_id": number, "category_id": int(label) + 1, "bbox": bbox})
    names = [{"id": label + 1, "name": name} for label, name in enumerate(CLASS_NAMES)]
    write_annotations(root, {"images": images, "annotations": rows, "categories": names})


def write_annotations(root: Path, content: dict[str, Any]) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations/instances_val.json").write_text(json.dumps(content))


def annotations(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "annotations/instances_val.json").read_text())
    return content


def write_yolo(root: Path) -> None:
    (root / "labels").mkdir(parents=True)
    for number, scene in enumerate(scenes(), start=1):
        write_picture(root / "images" / f"{number}.png", scene.image)
        lines = []
        for (x1, y1, x2, y2), label in zip(scene.boxes.tolist(), scene.labels, strict=True):
            values = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
            lines.append(" ".join([str(label), *(repr(value / SIDE) for value in values)]))
        (root / f"labels/{number}.txt").write_text("\n".join(lines))
    names = ", ".join(f"'{name}'" for name in CLASS_NAMES)
    (root / "data.yaml").write_text(f"val: images\nnames: [{names}]\n")


def write_voc(root: Path) -> None:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number, scene in enumerate(scenes(), start=1):
        write_picture(root / "JPEGImages" / f"{number}.png", scene.image)
        things = ""
        for (x1, y1, x2, y2), label in zip(scene.boxes.tolist(), scene.labels, strict=True):
            corners = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
            box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
            things += f"<object><name>{CLASS_NAMES[label]}</name><bndbox>{box}</bndbox></object>"
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height></size>"
        xml = f"<annotation>{size}{things}</annotation>"
        (root / f"Annotations/{number}.xml").write_text(xml)
    (root / "ImageSets/Main/val.txt").write_text("\n".join(map(str, range(1, SCENES + 1))))
    (root / "classes.txt").write_text("\n".join(CLASS_NAMES))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("formats")
    for name, write in zip(FORMATS, (write_coco, write_yolo, write_voc), strict=True):
        write(root / name)
    return {name: root / name for name in FORMATS}


@pytest.fixture(scope="module")
def datasets(folders: dict[str, Path]) -> dict[str, DetectionDataset]:
    return {name: load_dataset(folder, "val") for name, folder in folders.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_scenes_are_the_same_samples(
    datasets: dict[str, DetectionDataset], name: str
) -> None:
    coco, other = datasets["COCO"], datasets[name]
    assert other.class_names == coco.class_names == CLASS_NAMES
    assert len(other) == len(coco) == SCENES
    for ours, theirs in zip(coco.samples, other.samples, strict=True):
        assert (ours.image_id, ours.path.name) == (theirs.image_id, theirs.path.name)
        assert (ours.width, ours.height) == (theirs.width, theirs.height) == (SIDE, SIDE)
        for field in ("boxes", "labels", "iscrowd", "xywh", "area"):
            one, two = getattr(ours, field), getattr(theirs, field)
            assert np.array_equal(one, two) and one.dtype == two.dtype, field
        # Metrics take the boxes that training takes.
        assert np.array_equal(theirs.xywh[:, :2], theirs.boxes[:, :2])
        assert np.array_equal(theirs.xywh[:, 2:], theirs.boxes[:, 2:] - theirs.boxes[:, :2])
        assert np.array_equal(theirs.area, theirs.xywh[:, 2:].prod(axis=1))
        assert (theirs.xywh.dtype, theirs.area.dtype) == (np.float64, np.float64)


def test_coco_keeps_what_the_file_says(tmp_path: Path) -> None:
    write_coco(tmp_path)
    content = annotations(tmp_path)
    content["annotations"][0] |= {"id": 77, "area": 5.25, "iscrowd": 1, "image_id": "2"}
    content["annotations"][1]["bbox"] = [0.1, 0.2, 0.30000000000000004, 7.1]
    write_annotations(tmp_path, content)
    one, two, *_ = load_dataset(tmp_path, "val").samples
    assert (two.area[0], two.iscrowd[0]) == (5.25, True)
    assert one.xywh[0].tolist() == [0.1, 0.2, 0.30000000000000004, 7.1]
    assert one.area[0] == 0.30000000000000004 * 7.1


def test_paths_may_be_relative(
    folders: dict[str, Path], datasets: dict[str, DetectionDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, folder in folders.items():
        monkeypatch.chdir(folder)
        for ours, other in zip(
            load_dataset(Path(), "val").samples, datasets[name].samples, strict=True
        ):
            assert ours.path.is_file() and np.array_equal(ours.xywh, other.xywh)


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder: give .*COCO .*YOLO .*VOC"):
        load_dataset(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"holds no dataset: looked for COCO \(annotations/inst"):
        load_dataset(tmp_path, "train")
    (tmp_path / "notes.yaml").write_text("training: maybe")
    (tmp_path / "annotations").mkdir()
    with pytest.raises(DataError, match="holds no dataset"):
        load_dataset(tmp_path, "train")
    write_voc(tmp_path / "VOC2012")
    with pytest.raises(DataError, match=r"did you mean .*VOC2012\?"):
        load_dataset(tmp_path, "train")


def test_two_formats_in_one_folder_are_ambiguous(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_yolo(tmp_path)
    with pytest.raises(DataError, match=r"COCO \(annotations/\), YOLO \(data\.yaml\); give the"):
        load_dataset(tmp_path, "val")
    assert load_dataset(tmp_path / "data.yaml", "val").category_ids[0] == 0
    (tmp_path / "data.yaml").rename(tmp_path / "data.yaml.old")
    assert load_dataset(tmp_path, "val").category_ids[0] == 1


@pytest.mark.parametrize("given", ["https://host/data", 5, None, b"data"])
def test_what_is_no_folder_is_named(given: Any) -> None:
    with pytest.raises(InputError, match=r"^the dataset is .*, expected a folder or a data\.yaml"):
        load_dataset(given, "val")


def test_the_old_name_of_the_overlap_split_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_digits(tmp_path, train=0, val=0, overlap=2)
    assert len(load_dataset(tmp_path, "crowd")) == 2
    assert "split crowd of the digits is now overlap" in caplog.text
