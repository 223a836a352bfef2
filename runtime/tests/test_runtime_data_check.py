"""Deliberately broken COCO sets: every planted fault is found by its name, and fixed."""

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from nmsfree.cli.data_check import COMMONEST, RAREST, class_table
from nmsfree.datasets.check.check import check_dataset
from nmsfree.datasets.check.fix import default_folder, needs_fixing, write_fixed
from nmsfree.datasets.check.images import read_images
from nmsfree.datasets.check.report import Check
from nmsfree.datasets.faults import Kind, Level
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.errors import DataError
from nmsfree.images import write_picture

WIDTH, HEIGHT = 96, 64
CLASSES = {1: "car", 2: "bus", 7: "tram"}


def paint(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray[Any, Any]:
    """A picture of its own for every seed, BGR uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(40, 220, (4, 6, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


class Coco:
    """A COCO set of two splits, four images each, one car in each, to break."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content: dict[str, dict[str, Any]] = {}
        for first, split in ((0, "train"), (100, "val")):
            self.content[split] = {
                "info": {"year": 2026},
                "licenses": [{"id": 3, "name": "own"}],
                "categories": [
                    {"id": i, "name": n, "supercategory": "road"} for i, n in CLASSES.items()
                ],
                "images": [],
                "annotations": [],
            }
            for number in range(first, first + 4):
                self.image(split, number)
                for category in CLASSES:
                    self.box(split, number, [10 + category, 20, 30, 25], category)

    def image(self, split: str, number: int, suffix: str = ".png") -> None:
        name = f"{number}{suffix}"
        write_picture(self.root / split / name, paint(number))
        entry = {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT, "license": 3}
        self.content[split]["images"].append(entry)

    def box(self, split: str, image: int, bbox: list[float], category: int = 1) -> None:
        rows = self.content[split]["annotations"]
        ids = {"id": 1000 + len(rows), "image_id": image, "category_id": category}
        rows.append(ids | {"bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0})

    def write(self) -> Path:
        (self.root / "annotations").mkdir(parents=True, exist_ok=True)
        for split, content in self.content.items():
            file = self.root / "annotations" / f"instances_{split}.json"
            file.write_text(json.dumps(content), encoding="utf-8")
        return self.root


def kinds(check: Check, *levels: Level) -> dict[str, int]:
    """Number of faults by kind, of these levels or of all that are not mere information."""
    found: Counter[str] = Counter()
    for finding in check.findings():
        if finding.kind.level in (levels or (Level.ERROR, Level.WARNING)):
            found[finding.kind.code] += len(finding.faults)
    return dict(found)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def box(bbox: list[float], category: int = 1) -> Callable[[Coco], None]:
    return lambda coco: coco.box("train", 1, bbox, category)


def entry(**fields: object) -> Callable[[Coco], None]:
    return lambda coco: coco.content["train"]["images"][1].update(fields)


def one_more(**fields: object) -> Callable[[Coco], None]:
    row = {"id": 70, "width": 1, "height": 1} | fields
    return lambda coco: coco.content["train"]["images"].append(row)


def annotation(**fields: object) -> Callable[[Coco], None]:
    def change(coco: Coco) -> None:
        coco.box("train", 1, [1, 1, 9, 9], 1)
        coco.content["train"]["annotations"][-1].update(fields)

    return change


def jpeg(cut: float, **options: Any) -> Callable[[Coco], None]:
    """One more image, a JPEG of which only a part is there."""

    def change(coco: Coco) -> None:
        coco.image("train", 50, ".jpg")
        path = coco.root / "train" / "50.jpg"
        Image.fromarray(paint(50)).save(path, **options)
        rewrite(path, lambda data: data[: int(len(data) * cut)])

    return change


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: 96 × 64 pixels are shown as 64 × 96
    return exif


def copy(source: str, target: str) -> Callable[[Coco], None]:
    def change(coco: Coco) -> None:
        split, name = target.split("/")
        if not any(i["file_name"] == name for i in coco.content[split]["images"]):
            coco.image(split, int(Path(name).stem))
        shutil.copyfile(coco.root / source, coco.root / target)

    return change


NAN = float("nan")
# What is planted into a clean set, and what must be found, number for number.
PLANTED: dict[str, tuple[Callable[[Coco], None], dict[str, int]]] = {
    "missing": (lambda c: (c.root / "train/1.png").unlink(), {"image-missing": 1}),
    "empty": (lambda c: rewrite(c.root / "train/1.png", lambda _: b""), {"image-unreadable": 1}),
    "cut png": (
        lambda c: rewrite(c.root / "train/1.png", lambda data: data[: len(data) // 2]),
        {"image-truncated": 1},
    ),
    "cut jpeg": (jpeg(0.7), {"image-truncated": 1}),
    "whole jpeg": (jpeg(1.0), {}),
    "turned jpeg": (jpeg(1.0, exif=turned()), {"image-size": 1}),
    "wrong size": (entry(width=100), {"image-size": 1}),
    "no size": (entry(width=None), {"image-size-missing": 1}),
    "no file name": (one_more(), {"image-entry": 1}),
    "same id": (
        lambda c: c.content["train"]["images"][2].update(id=1),
        {"image-id-twice": 1, "dangling-image": 3, "image-unannotated": 2},
    ),
    "same annotation id": (annotation(id=1001), {"annotation-id-twice": 1}),
    "unknown image": (annotation(image_id=9), {"dangling-image": 1}),
    "unknown class": (annotation(category_id=3), {"dangling-category": 1}),
    "flat": (box([5, 5, 0, 5]), {"box-without-area": 1}),
    "nan": (box([NAN, 5, 5, 5]), {"box-without-area": 1}),
    "outside": (box([200, 5, 20, 5]), {"box-outside": 1}),
    "reaches out": (box([80, 5, 20, 5]), {"box-partly-outside": 1}),
    "rounding": (box([80, 5, 16.9, 5]), {}),
    "area below nothing": (annotation(area=-3), {"box-area": 1}),
    "no area": (annotation(area=0), {"box-area": 1}),
    "area beyond the box": (annotation(area=5000), {"box-area": 1}),
    "area of a mask": (annotation(area=3.5), {}),
    "area not stated": (annotation(area=None), {}),
    "fraction of a class": (annotation(category_id=1.5), {"annotation-malformed": 1}),
    "many objects": (
        lambda c: [c.box("train", 1, [4 * i, 4 * j, 2, 2]) for i in range(23) for j in range(5)],
        {"image-full": 1},
    ),
    "repeated": (box([11, 20, 30, 25]), {"box-duplicate": 1}),
    "nearly repeated": (box([11.9, 19.1, 30, 25]), {"box-duplicate": 1}),
    "not repeated": (box([12.1, 20, 30, 25]), {}),
    "repeated once clipped": (
        lambda c: [c.box("train", 1, [90, 50, *size]) for size in ([20, 30], [40, 50])],
        {"box-partly-outside": 2, "box-duplicate": 1},
    ),
    "other class there": (box([11, 20, 30, 25], 7), {}),
    "crowd there": (annotation(bbox=[11, 20, 30, 25], iscrowd=1), {}),
    "twice in a split": (copy("train/0.png", "train/1.png"), {"image-duplicate": 1}),
    "in two splits": (copy("train/0.png", "val/101.png"), {"leakage": 1}),
    "stray image": (
        lambda c: write_picture(c.root / "train/new/x.png", paint(7)),
        {"image-unannotated": 1},
    ),
    "class without objects": (
        lambda c: [x["categories"].append({"id": 9, "name": "bike"}) for x in c.content.values()],
        {"class-empty": 2},
    ),
    "other classes": (
        lambda c: c.content["val"]["categories"][0].update(name="lorry"),
        {"classes-differ": 1},
    ),
    "one name for two": (
        lambda c: [content["categories"][1].update(name="car") for content in c.content.values()],
        {"class-name-twice": 1, "box-duplicate": 8},
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_every_planted_fault_is_found_and_a_fixed_set_is_clean(tmp_path: Path, name: str) -> None:
    plant, expected = PLANTED[name]
    coco = Coco(tmp_path / "set")
    plant(coco)
    root = coco.write()
    before, check = files(root), check_dataset(root)
    assert kinds(check) == expected
    fixed = write_fixed(check, default_folder(check))
    assert files(root) == before  # nothing of the original changed
    assert (fixed.folder, fixed.unfixed) == (tmp_path / "set-clean", ())
    again = check_dataset(fixed.folder)
    left = {"image-duplicate", "class-empty", "image-full"}  # not to be fixed
    assert kinds(again).keys() <= left
    assert not needs_fixing(again)
    for split, written in fixed.splits.items():
        dataset = load_dataset(fixed.folder, split)
        assert len(dataset) == written.images
        assert sum(len(sample.boxes) for sample in dataset.samples) == written.objects
        for sample in dataset.samples:
            limits = [sample.width, sample.height] * 2
            assert sample.path.is_file() and (sample.boxes >= 0).all()
            assert (sample.boxes <= limits).all()


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_fixing_a_clean_set_changes_nothing(tmp_path: Path) -> None:
    check = check_dataset(Coco(tmp_path / "set").write())
    assert not needs_fixing(check)
    fixed = write_fixed(check, tmp_path / "copy")
    for split in ("train", "val"):
        one, other = load_dataset(tmp_path / "set", split), load_dataset(fixed.folder, split)
        assert (one.class_names, one.category_ids) == (other.class_names, other.category_ids)
        for a, b in zip(one.samples, other.samples, strict=True):
            assert a.path.samefile(b.path)
            assert (a.image_id, a.width, a.height) == (b.image_id, b.width, b.height)
            assert np.array_equal(a.boxes, b.boxes) and np.array_equal(a.labels, b.labels)
        assert fixed.splits[split].changes == {}


def test_what_fixing_does_to_boxes_and_entries(tmp_path: Path) -> None:
    coco = Coco(tmp_path / "set")
    coco.box("train", 1, [80, -5, 30, 15])
    coco.content["train"]["annotations"][-1] |= {"area": 300.5, "segmentation": [[1, 2, 3]]}
    coco.box("train", 2, [0.1, 0.2, 0.30000000000000004, 5], 2)
    coco.content["train"]["annotations"][-1] |= {"area": 0.25, "note": "thin"}
    fixed = write_fixed(check_dataset(coco.write()), tmp_path / "out")
    content = json.loads(fixed.splits["train"].file.read_text(encoding="utf-8"))
    clipped, thin = content["annotations"][-2:]
    assert clipped["bbox"] == [80, 0, 16, 10]
    assert (clipped["area"], clipped["segmentation"]) == (160, [[1, 2, 3]])
    assert thin["bbox"] == [0.1, 0.2, 0.30000000000000004, 5]  # not one bit changed
    assert (thin["area"], thin["note"]) == (0.25, "thin")
    assert content["categories"][2] == {"id": 7, "name": "tram", "supercategory": "road"}
    assert content["licenses"] == [{"id": 3, "name": "own"}]
    assert (content["info"]["year"], content["images"][0]["license"]) == (2026, 3)
    assert fixed.splits["train"].changes == {Kind.BOX_PARTLY_OUTSIDE: 1}


def test_leaked_images_leave_the_split_that_trains(tmp_path: Path) -> None:
    coco = Coco(tmp_path / "set")
    copy("train/0.png", "val/101.png")(coco)
    fixed = write_fixed(check_dataset(coco.write()), tmp_path / "out")
    assert [s.image_id for s in load_dataset(tmp_path / "out", "train").samples] == [1, 2, 3]
    assert len(load_dataset(tmp_path / "out", "val")) == 4
    assert fixed.splits["train"].changes == {Kind.LEAKAGE: 1}


def test_splits_that_are_one_another_cannot_be_fixed(tmp_path: Path) -> None:
    coco = Coco(tmp_path / "set")
    for number in range(4):
        copy(f"train/{number}.png", f"val/{100 + number}.png")(coco)
    check = check_dataset(coco.write())
    assert kinds(check) == {"leakage": 4}
    fixed = write_fixed(check, tmp_path / "out")
    assert fixed.unfixed == ("train: all its images are in val, too: take other images",)
    assert fixed.splits["train"].images == 4


def test_one_list_of_classes_for_all_splits(tmp_path: Path) -> None:
    coco = Coco(tmp_path / "set")
    names = {1: "tram", 2: "car", 7: "bike"}
    coco.content["val"]["categories"] = [{"id": i, "name": name} for i, name in names.items()]
    fixed = write_fixed(check_dataset(coco.write()), tmp_path / "out")
    train, val = (load_dataset(fixed.folder, split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ("car", "bus", "tram", "bike")
    assert train.category_ids == val.category_ids == (1, 2, 3, 4)
    named = [val.class_names[label] for label in val.samples[0].labels]
    assert named == ["tram", "car", "bike"]  # what the ids 1, 2 and 7 meant there


def test_a_set_and_its_fixed_copy_can_move_together(tmp_path: Path) -> None:
    coco = Coco(tmp_path / "old" / "set")
    box([5, 5, 0, 5])(coco)
    check = check_dataset(coco.write())
    write_fixed(check, default_folder(check))
    (tmp_path / "old").rename(tmp_path / "new")
    assert load_dataset(tmp_path / "new/set-clean", "train").samples[0].path.is_file()
    again = check_dataset(tmp_path / "new/set")
    write_fixed(again, default_folder(again))  # still known as its own


def test_only_its_own_results_are_overwritten(tmp_path: Path) -> None:
    coco = Coco(tmp_path / "set")
    box([5, 5, 0, 5])(coco)
    check = check_dataset(coco.write())
    out = default_folder(check)
    write_fixed(check, out)
    kept = files(out)
    write_fixed(check, out)
    assert files(out) == kept
    other = check_dataset(Coco(tmp_path / "other").write())
    for file in (tmp_path / "file", out / "notes.txt"):
        file.write_text("mine")
    for wrong, place, said in (
        (check, tmp_path / "set", "is no earlier result of --fix for"),
        (other, out, "so .*set-clean is not touched: delete it, or give another"),
        (check, out, r"notes\.txt is no earlier result"),
        (check, tmp_path / "file", "is no earlier result"),
    ):
        with pytest.raises(DataError, match=said):
            write_fixed(wrong, place)
    assert files(out) == kept | {"notes.txt": b"mine"}


def test_images_of_a_fixed_set_must_stay_inside_their_folder(tmp_path: Path) -> None:
    coco = Coco(tmp_path / "set")
    coco.content["val"]["info"] = {"nmsfree": {"image_folder": "../set/val"}}
    assert len(load_dataset(coco.write(), "val").samples) == 4
    coco.content["val"]["images"][0]["file_name"] = "/etc/hostname"
    with pytest.raises(DataError, match="file name '/etc/hostname' leads out of"):
        load_dataset(coco.write(), "val")
    coco.content["val"]["info"]["nmsfree"]["image_folder"] = "nowhere"
    with pytest.raises(DataError, match=r"its image_folder .*nowhere is missing"):
        load_dataset(coco.write(), "val")


def test_an_unreadable_split_is_reported_beside_the_others(tmp_path: Path) -> None:
    root = Coco(tmp_path / "set").write()
    (root / "annotations/instances_val.json").write_text("{")
    check = check_dataset(root)
    assert kinds(check) == {"split-unreadable": 1}
    assert list(check.splits) == ["train"]
    assert "val: " in write_fixed(check, tmp_path / "out").unfixed[0]
    with pytest.raises(DataError, match="not readable JSON"):
        check_dataset(root, ["val"])
    (root / "annotations/instances_train.json").write_text("[]")
    with pytest.raises(DataError, match="expected object, got array"):
        check_dataset(root)


def test_copies_of_copies(tmp_path: Path) -> None:
    coco = Coco(tmp_path / "set")
    for target in ("train/1.png", "train/2.png", "val/100.png", "val/101.png"):
        copy("train/0.png", target)(coco)
    check = check_dataset(coco.write())
    # Every copy but the first of a split; every image of train that is in val.
    assert kinds(check) == {"image-duplicate": 3, "leakage": 3}
    assert {path.name for _, path, _, _ in check.leaks} == {"0.png", "1.png", "2.png"}


def test_counts_of_a_split(tmp_path: Path) -> None:
    coco = Coco(tmp_path / "set")
    coco.content["train"]["annotations"].clear()
    boxes = ([0, 0, 32, 31.9], [5, 0, 32, 32], [0, 0, 96, 64], [1, 1, 7.9, 60], [2, 2, 0, 4])
    for bbox in boxes:
        coco.box("train", 1, list(bbox), 2)
    coco.box("train", 2, [0, 0, 50, 50], 7)
    coco.content["train"]["annotations"][-1]["iscrowd"] = 1
    stats = check_dataset(coco.write()).splits["train"].stats
    assert (stats.images, stats.images_without_objects) == (4, 3)
    assert (stats.objects, stats.crowd, stats.below_8px) == (4, 1, 1)
    assert stats.by_class == {1: 0, 2: 4, 7: 0}
    assert stats.by_area() == {"small": 2, "medium": 2, "large": 0}
    assert sum(stats.bins()) == 4


def test_threads_do_not_change_what_is_found(tmp_path: Path) -> None:
    root = Coco(tmp_path / "set").write()
    (root / "train/2.png").write_bytes(b"no")
    paths = sorted((root / "train").iterdir())
    seen: list[tuple[int, int]] = []
    facts = read_images(paths, lambda *done: seen.append(done), threads=4)
    assert facts == read_images(paths, threads=1) and list(facts) == paths
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_every_kind_is_described() -> None:
    assert [kind.level for kind in Kind] == sorted(
        (kind.level for kind in Kind), key=list(Level).index
    )  # reports come in this order: errors first
    found = {kind for _, expected in PLANTED.values() for kind in expected}
    errors = {kind.code for kind in Kind if kind.level is Level.ERROR}  # others: YOLO, VOC, splits
    assert errors - found == {"split-unreadable", "annotation-file-missing"}


def test_the_table_of_classes_has_both_ends(tmp_path: Path) -> None:
    coco = Coco(tmp_path / "set")
    for number in range(20):
        name = f"a name of a class that is long {number}"
        for content in coco.content.values():
            content["categories"].append({"id": 10 + number, "name": name})
        for step in range(number):
            coco.box("train", step % 2, [3.0 * step, 5, 20, 20], 10 + number)
    console = Console(file=io.StringIO(), width=80)
    console.print(class_table(check_dataset(coco.write())))
    assert isinstance(console.file, io.StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines() if line.strip()]
    rows = lines[lines.index(next(line for line in lines if line[0] == "class")) + 2 :]
    assert len(rows) == COMMONEST + RAREST + 1
    assert rows[0][-5:] == ["19", "19", "2", "0", "0"]  # train objects, images; val
    assert rows[COMMONEST][:3] == ["…", "9", "more"]
    assert rows[-1][-5:] == ["0", "0", "0", "0", "0"]
