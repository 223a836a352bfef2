"""Reading YOLO datasets: the many ways to write a data.yaml, and rows of labels."""

import os
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from runtime_helpers import not_loaded as refused

from nmsfree.datasets.dataset import UNKNOWN_SIZE, DetectionDataset
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.datasets.formats.yolo import label_file, parse_row
from nmsfree.errors import DataError

WIDTH, HEIGHT = 64, 32
YAML = "train: images/train\nval: images/val\nnames: [car, bus]\n"


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return path


def label(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def make(root: Path, yaml: str = YAML, name: str = "data.yaml") -> Path:
    """The usual layout: two images to train on, one without label file, one to validate."""
    image(root / "images/train/b.png")
    image(root / "images/train/a.png")
    image(root / "images/val/c.png")
    label(root / "labels/train/b.txt", "1 0.5 0.5 0.25 0.5", "", "0 0.25 0.5 0.5 1")
    label(root / "labels/val/c.txt", "0 0.5 0.5 1 1")
    (root / name).write_text(yaml, encoding="utf-8")
    return root


def boxes(dataset: DetectionDataset) -> list[list[list[float]]]:
    return [sample.boxes.tolist() for sample in dataset.samples]


EXPECTED = [[], [[24, 8, 40, 24], [0, 0, 32, 32]]]  # of a.png and b.png


def test_a_line_that_repeats_another_counts_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path)
    label(tmp_path / "labels/val/c.txt", "0 0.5 0.5 1 1", "1 0.5 0.5 1 1", "0 .5 .5 1 1.0")
    assert load_dataset(tmp_path, "val").samples[0].labels.tolist() == [0, 1]
    assert "left out 1 label lines that repeat another" in caplog.text


def test_everything_is_read(tmp_path: Path) -> None:
    dataset = load_dataset(make(tmp_path), "train")
    assert (dataset.name, dataset.class_names) == ("train", ("car", "bus"))
    assert (dataset.category_ids, dataset.annotation_file) == ((0, 1), tmp_path / "data.yaml")
    assert [(s.image_id, s.path) for s in dataset.samples] == [
        (1, tmp_path / "images/train/a.png"),
        (2, tmp_path / "images/train/b.png"),
    ]
    assert {(s.width, s.height) for s in dataset.samples} == {(WIDTH, HEIGHT)}
    assert boxes(dataset) == EXPECTED
    assert [s.labels.tolist() for s in dataset.samples] == [[], [1, 0]]
    assert not any(s.iscrowd.any() for s in dataset.samples)
    assert dataset.samples[0].boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "yaml",
    [
        "path: .\n" + YAML,
        "path: ''\n" + YAML,
        "path: /nowhere/this/machine/has\n" + YAML,
        "path: ../{name}\n" + YAML,
        "path: images\ntrain: train\nval: val\nnames: [car, bus]",
        "train: [images/train]\nval: images/val\nnames:\n  0: car\n  1: bus",
        "train: ../images/train\nval: ../images/val\nnames: [car, bus]\nnc: 2",
        "train: images\\train\nnames: [car, bus]\ntest:\nval: ~",
        "train: list.txt\nnames: {{1: bus, 0: car}}",
        "\ufefftrain: images/train  # with a byte order mark\nnames: ['car', \"bus\"]",
    ],
)
def test_ways_to_write_the_same(tmp_path: Path, yaml: str) -> None:
    root = make(tmp_path / "set", yaml.format(name="set"))
    (root / "list.txt").write_text("./images/train/b.png\nimages/train/a.png\n\n")
    dataset = load_dataset(root, "train")
    assert dataset.class_names == ("car", "bus")
    assert boxes(dataset) == EXPECTED


def test_several_folders_and_lists_make_one_split(tmp_path: Path) -> None:
    root = make(tmp_path, "train: [images/val, images/train, list.txt]\nnames: [car, bus]")
    (root / "list.txt").write_text(str(image(tmp_path / "elsewhere/images/d.png")))
    label(tmp_path / "elsewhere/labels/d.txt", "0 .5 .5 .5 .5")
    dataset = load_dataset(root, "train")
    assert [s.path.stem for s in dataset.samples] == ["d", "a", "b", "c"]  # by path
    assert [len(s.boxes) for s in dataset.samples] == [1, 0, 2, 1]


def test_any_other_name_of_the_yaml_and_the_file_itself(tmp_path: Path) -> None:
    make(tmp_path, name="coco8.yaml")
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    assert boxes(load_dataset(tmp_path, "train")) == EXPECTED
    assert boxes(load_dataset(tmp_path / "coco8.yaml", "train")) == EXPECTED
    (tmp_path / "mine.yml").write_text(YAML)
    with pytest.raises(DataError, match=r"more than one format: YOLO \(coco8\.yaml\), YOLO \(mine"):
        load_dataset(tmp_path, "train")
    (tmp_path / "data.yaml").write_text(YAML)  # this name comes before all others
    assert boxes(load_dataset(tmp_path, "train")) == EXPECTED


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ("{7: bus, 3: car}", {3: "car", 7: "bus"}),
        ("\n  00: car\n  01: bus\n", {0: "car", 1: "bus"}),
        (
            "[no, 010, 'off: 1', 1.0, straße, null]",
            dict(enumerate(("no", "010", "off: 1", "1.0", "straße", "null"))),
        ),
    ],
)
def test_names_and_indices_are_taken_as_written(
    tmp_path: Path, names: str, classes: dict[int, str]
) -> None:
    root = make(tmp_path, f"train: images/train\nval: images/val\nnames: {names}")
    first, second, *_ = classes
    label(root / "labels/train/b.txt", f"{second} .5 .5 .25 .5", f"{first} 0.25 0.5 0.5 1")
    dataset = load_dataset(root, "train")
    assert dict(zip(dataset.category_ids, dataset.class_names, strict=True)) == classes
    assert dataset.samples[1].labels.tolist() == [1, 0]


def test_labels_are_looked_for_image_by_image(tmp_path: Path) -> None:
    """Three folders of one split, labelled in labels/, beside the images, and both."""
    root = make(tmp_path, "train: [images/train, more/images, plain]\nnames: [car, bus]\n")
    for name in ("more/images/e.png", "more/images/f.png", "plain/g.png"):
        image(root / name)
    label(root / "more/images/e.txt", "1 0.5 0.5 0.25 0.5")
    label(root / "more/images/f.txt", "1 0.5 0.5 1 1")
    label(root / "more/labels/f.txt", "0 0.5 0.5 0.25 0.5")
    label(root / "plain/g.txt", "0 .5 .5 .25 .5")
    dataset = load_dataset(root, "train")
    assert boxes(dataset) == [*EXPECTED, *[[[24, 8, 40, 24]]] * 3]
    assert [s.labels.tolist() for s in dataset.samples[2:]] == [[1], [0], [0]]


def test_linked_folders_are_read_and_what_is_left_out_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make(tmp_path / "set")
    (tmp_path / "pictures").mkdir()
    image(tmp_path / "pictures/d.jfif.png").rename(tmp_path / "pictures/d.jfif")
    label(tmp_path / "labels/d.txt", "0 0.5 0.5 1 1")
    (root / "images/train/cam").symlink_to(tmp_path / "pictures")
    (root / "labels/train/cam").symlink_to(tmp_path / "labels")
    (root / "images/train/x.heic").touch()
    (root / "images/train/b.txt").touch()  # beside its image: the one in labels/ counts
    for _ in range(2):
        dataset = load_dataset(root, "train")
        assert boxes(dataset) == [*EXPECTED, [[0, 0, WIDTH, HEIGHT]]]
    assert [r.getMessage() for r in caplog.records] == [
        f"{root / 'images/train'}: left out: 1 of other kinds (x.heic)"
    ]


@pytest.mark.parametrize(("stored", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_found_in_either_unicode_form(tmp_path: Path, stored: str, written: str) -> None:
    def on(form: str, name: str) -> str:
        return unicodedata.normalize(form, name)  # type: ignore[arg-type]

    root = make(tmp_path, "train: list.txt\nnames: [car, bus]\n")
    image(root / on(stored, "images/träin/é.png"))
    label(root / on(written, "labels/träin/é.txt"), "0 0.5 0.5 1 1")
    (root / "list.txt").write_text(on(written, "images/träin/é.png\n"), encoding="utf-8")
    dataset = load_dataset(root, "train")
    assert [s.path for s in dataset.samples] == [root / on(stored, "images/träin/é.png")]
    assert boxes(dataset) == [[[0, 0, WIDTH, HEIGHT]]]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("set/images/a.jpg", "set/labels/a.txt"),
        ("set/images/x/images/y/a.b.jpg", "set/images/x/labels/y/a.b.txt"),
        ("set/train/images.jpg", "set/train/images.txt"),
        ("images/a.jpg", "labels/a.txt"),
    ],
)
def test_label_file_replaces_the_last_folder_images(path: str, expected: str) -> None:
    root = Path("/images/root")  # what lies above the dataset is not replaced
    assert label_file(root / path, root) == root / expected
    assert label_file(Path("/other") / path, root) == Path("/other") / expected


def test_rotated_photographs_have_the_size_that_is_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    (tmp_path / "images").mkdir()
    Image.new("RGB", (80, 40)).save(tmp_path / "images/a.jpg", exif=exif)
    label(tmp_path / "labels/a.txt", "0 0.5 0.5 1 0.5")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [car]")
    sample = load_dataset(tmp_path, "train").samples[0]
    assert (sample.width, sample.height, sample.boxes.tolist()) == (40, 80, [[0, 20, 40, 60]])


@pytest.mark.parametrize(
    ("row", "keypoints", "expected"),
    [
        ("3 0.5 0.5 0.5 0.25", False, (3, (16, 12, 32, 8))),
        ("3.0 0.5 0.5 0.5 0.25", False, (3, (16, 12, 32, 8))),
        ("0 0.25 0.5 0.75 0.25 0.5 1", False, (0, (16, 8, 32, 24))),  # a triangle
        ("0 0 0 1 0 1 1 0 1", False, (0, (0, 0, 64, 32))),  # four corners
        ("0 0.5 0.5 0.5 0.25 0.1 0.1 2", True, (0, (16, 12, 32, 8))),
        ("0 1.005 0.5 0.5 0.25", False, (0, (48.32, 12, 32, 8))),
    ],
)
def test_rows(row: str, keypoints: bool, expected: tuple[int, tuple[float, ...]]) -> None:
    index, box, odd = parse_row(row.split(), (WIDTH, HEIGHT), keypoints)
    assert (index, odd) == (expected[0], "")
    assert box == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images/train\nval: images/val", "has no list of class names: add `names:"),
        ("train: images/train\nnc: 2", "for its 2 classes: add `names:"),
        ("train: images/train\nnames: classes.txt", "has no list of class names"),
        ("train: images/train\nnames: [a, '']", r"names: \[1\]: expected str of length >= 1"),
        (
            "train: images/train\nnames: {a: b}",
            "names: a key: expected int, got str: expected a list, or",
        ),
        ("train: images/train\nnames: [a, a]", "gives several classes one name"),
        ("train: images/train\nnames: [a]\nnc: 2", "nc is 2, but names has 1"),
        ("names: [a]\ntrain:", "names no images: add `train"),
        ("train: images/nowhere\nnames: [a]", "nowhere is neither a folder nor a list"),
        ("train: labels/train\nnames: [a]", "train holds no image"),
        ("val: images/val\nnames: [a]", "has no split 'train'; splits found: val"),
        ("train: [a\nnames: b", "is not readable YAML"),
        ("names", "expected `key: value` lines"),
        (f"train: images/train\nnames: [{'a' * 5000}]", "expected str of length <= 1000"),
        (f"path: {'x' * 5000}\ntrain: images/train\nnames: [a]", "path: file name .* none that"),
        (f"train: images/train\nnames: [a]\nnc: {'9' * 5000}", "nc is 9+ … 9+, but names has 1"),
        ('train: "a\\0b"\nnames: [a]', "is neither a folder nor a list of images"),
        ('train: "\\uD800"\nnames: [a]', "data.yaml"),
        ("train: /dev/zero\nnames: [a]", "is a pipe or device, expected a regular file"),
        ("train: [images/train, pipe]\nnames: [a]", "is a pipe or device"),
        ("train: list.txt\nnames: [a]", r"list\.txt: line 2: file name .* none that a"),
    ],
)
def test_unusable_yaml_is_one_clear_line(tmp_path: Path, yaml: str, message: str) -> None:
    root = make(tmp_path, yaml)
    os.mkfifo(root / "pipe")
    (root / "list.txt").write_text(f"images/train/b.png\n{'x' * 300}.png\n")
    assert str(root) in refused(message, root)


def test_aliases_do_not_multiply_what_a_small_file_holds(tmp_path: Path) -> None:
    """Nine levels of nine aliases are 3 × 10⁸ values in 332 bytes."""
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    bomb = "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *levels, "names: *a8"])
    root = make(tmp_path, YAML.replace("names: [car, bus]", bomb))
    refused("its aliases stand for more values than", root)
    root = make(tmp_path / "few", "train: &t images/train\nval: *t\nnames: [car, bus]\n")
    assert boxes(load_dataset(root, "val")) == EXPECTED


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0 0.5 0.5 0.5", "line 1 has 4 columns, expected class"),
        (b"0 .5 .5 .5 .5\n0 .5 .5 .5 .5 .9", "line 2 has 6 columns"),
        (b"car 0.5 0.5 0.5 0.5", "line 1 is not made of numbers"),
        (b"0.5 0.5 0.5 0.5 0.5", r"line 1 has class 0\.5, expected a whole number"),
        (b"0 0.5 0.5 inf 0.5", "line 1: w is inf, expected fractions"),
        (b"0 0.5 0.5 -0.5 0.5", r"line 1: w is -0\.5, expected fractions"),
        (b"0 1.1 1.2 1.5 1.5 1.3 1.4", r"line 1: x1 is 1\.1, expected fractions"),
        (b"2 0.5 0.5 0.5 0.5", r"line 1 has class 2, which data\.yaml does not name"),
        (b"\xff\x00", r"is no text in UTF-8 \(byte 0\)"),
        (b"0 " * 10**6, "line 1 has 1000000 columns"),
        (b"9" * 400 + b" 0.5 0.5 0.25 0.5", "line 1 has class 9+ … 9+, expected a whole number"),
        (b"\x1b[31m 0.5 0.5 0.25 0.5", r"line 1 is not made of numbers \(\\x1b"),
        (b"x" * (8 << 20) + b"x", "has 8.* MB, expected at most 8"),
    ],
)
def test_whatever_a_label_file_holds_is_one_sentence(
    tmp_path: Path, content: bytes, message: str
) -> None:
    root = make(tmp_path)
    (root / "labels/train/b.txt").write_bytes(content)
    assert str(root / "labels/train/b.txt") in refused(message, root)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_does_not_matter(tmp_path: Path, encoding: str) -> None:
    root = make(tmp_path, YAML.replace("images/train", "list.txt"))
    (root / "list.txt").write_text("images/train/b.png\nimages/train/a.png", encoding)
    for file in (root / "labels/train").iterdir():
        file.write_text(file.read_text(), encoding)
    assert boxes(load_dataset(root, "train")) == EXPECTED


def test_images_without_any_label_file_are_a_mistake(tmp_path: Path) -> None:
    root = make(tmp_path)
    (root / "labels/train/b.txt").unlink()
    refused(r"none of the 2 images .* example .*labels/train/a\.txt", root)
    label(root / "labels/train/b.txt")  # an empty one says: no objects
    assert boxes(load_dataset(root, "train")) == [[], []]


def test_metrics_get_the_full_precision_and_boxes_that_reach_out(tmp_path: Path) -> None:
    """As in COCO: metrics need them whole, training clips them."""
    root = make(tmp_path)
    label(root / "labels/train/b.txt", "1 0.123456789012 0.5 0.1 0.333333333333", "0 .5 .5 2 .5")
    sample = load_dataset(root, "train").samples[1]
    width, height = 0.1 * WIDTH, 0.333333333333 * HEIGHT
    left, top = (0.123456789012 - 0.05) * WIDTH, (0.5 - 0.333333333333 / 2) * HEIGHT
    assert sample.xywh.tolist() == [[left, top, width, height], [-32, 8, 128, 16]]
    assert sample.area.tolist() == [width * height, 128 * 16]
    assert sample.boxes[1].tolist() == [-32, 8, 96, 24]


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", None])
def test_images_that_cannot_be_read_do_not_stop_loading(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    """Who reads the pixels finds them in the set, and says what is wrong."""
    root = make(tmp_path, YAML.replace("images/train", "list.txt"))
    (root / "list.txt").write_text("images/train/a.png\nimages/train/b.png\n")
    broken = root / "images/train/b.png"
    broken.unlink()
    if content is not None:
        broken.write_bytes(content)
    dataset = load_dataset(root, "train")
    assert [s.path.name for s in dataset.samples] == ["a.png", "b.png"]
    assert (dataset.samples[1].width, dataset.samples[1].height) == UNKNOWN_SIZE
    assert caplog.messages == [f"{root / 'data.yaml'}: 1 image cannot be read: {broken}"]
