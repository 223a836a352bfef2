"""Reading Pascal VOC folders."""

import os
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from runtime_helpers import not_loaded as refused

from nmsfree.datasets.check.check import check_dataset
from nmsfree.datasets.dataset import UNKNOWN_SIZE, DetectionDataset
from nmsfree.datasets.faults import Kind
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.datasets.formats.voc import voc_splits

WIDTH, HEIGHT = 64, 32
SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"


def thing(name: str, box: str = "11 6 20 15", more: str = "") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(keys, box.split(), strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def image(root: Path, name: str, *things: str, size: str = SIZE, suffix: str = ".jpg") -> None:
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    assert cv2.imwrite(str(root / "JPEGImages" / f"{name}{suffix}"), pixels)
    text = f"<annotation><filename>{name}{suffix}</filename>{size}{''.join(things)}</annotation>"
    (root / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")


def split(root: Path, name: str, *lines: str) -> None:
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (root / f"ImageSets/Main/{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make(root: Path) -> Path:
    image(root, "b", thing("dog"), thing("cat", "1 1 64 32", "<difficult>1</difficult>"))
    image(root, "a")
    image(root, "c", thing("bird"), thing("dog"))
    split(root, "train", "b", "a", "", "b")
    split(root, "val", "c ")
    split(root, "dog_train", "b  1", "a -1")
    return root


def load_one(root: Path, *things: str) -> DetectionDataset:
    """A set of one image."""
    image(root, "a", *things)
    split(root, "train", "a")
    return load_dataset(root, "train")


@pytest.mark.parametrize(("stored", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_files_are_found_in_either_unicode_form(tmp_path: Path, stored: str, written: str) -> None:
    image(tmp_path, unicodedata.normalize(stored, "é"), thing("dog"))  # type: ignore[arg-type]
    split(tmp_path, "train", unicodedata.normalize(written, "é"))  # type: ignore[arg-type]
    (sample,) = load_dataset(tmp_path, "train").samples
    assert sample.path.is_file() and len(sample.boxes) == 1


def test_everything_is_read(tmp_path: Path) -> None:
    dataset = load_dataset(make(tmp_path), "train")
    assert dataset.annotation_file == tmp_path / "ImageSets/Main/train.txt"
    assert dataset.class_names == ("bird", "cat", "dog")  # `bird` is only in val
    assert dataset.category_ids == (1, 2, 3)
    first, second = dataset.samples
    assert (first.path, first.image_id) == (tmp_path / "JPEGImages/a.jpg", 1)
    assert first.boxes.shape == (0, 4)
    assert second.boxes.tolist() == [[10, 5, 20, 15], [0, 0, 64, 32]]  # whole pixels from 1
    assert (second.labels.tolist(), second.iscrowd.tolist()) == ([2, 1], [False, True])
    assert (second.width, second.height) == (WIDTH, HEIGHT)
    other = load_dataset(tmp_path, "val")
    assert other.class_names == dataset.class_names
    assert other.samples[0].labels.tolist() == [0, 2]


def test_a_list_of_classes_takes_their_place(tmp_path: Path) -> None:
    root = make(tmp_path)
    (root / "classes.txt").write_text("\ufeffdog\n cat \n\nfish\n", encoding="utf-8")
    assert load_dataset(root, "train").class_names == ("dog", "cat", "fish")
    refused(r"c\.xml: object 1 is 'bird', which classes\.txt does not", root, "val")
    (root / "classes.txt").unlink()
    (root / "Annotations/c.xml").write_text("<")  # of another split: does not matter
    assert load_dataset(root, "train").class_names == ("cat", "dog")


def test_boxes_of_parts_and_fractions(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    dataset = load_one(tmp_path, thing("dog", "11.5 6 20.25 15", part))
    assert dataset.samples[0].boxes.tolist() == [[10.5, 5, 20.25, 15]]
    assert dataset.class_names == ("dog",)


def test_of_an_element_that_is_there_twice_the_first_counts(tmp_path: Path) -> None:
    """As `find` of every XML library gives it."""
    later = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>"
    twice = thing("dog", "11 6 20 15").replace("</object>", f"<name>cat</name>{later}</object>")
    dataset = load_one(tmp_path, twice)
    assert dataset.samples[0].boxes.tolist() == [[10, 5, 20, 15]]
    assert dataset.class_names == ("dog",)


def test_pictures_of_any_kind(tmp_path: Path) -> None:
    image(tmp_path, "a.v1", thing("dog"), suffix=".PNG")
    image(tmp_path, "b", thing("dog"), suffix=".webp")
    image(tmp_path, "b", thing("dog"), suffix=".png")  # what the annotation names
    split(tmp_path, "train", "a.v1", "b")
    names = [sample.path.name for sample in load_dataset(tmp_path, "train").samples]
    assert names == ["a.v1.PNG", "b.png"]


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height></size>"])
def test_a_size_that_is_not_stated_is_that_of_the_file(tmp_path: Path, size: str) -> None:
    image(tmp_path, "a", thing("dog"), size=size)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40)).save(tmp_path / "JPEGImages/a.jpg", exif=exif)
    split(tmp_path, "train", "a")
    sample = load_dataset(tmp_path, "train").samples[0]
    assert (sample.width, sample.height) == (40, 80)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation>", "is not readable XML"),
        ("<html/>", "its root is <html>, expected <annotation>"),
        ("<annotation><object/></annotation>", "object 1: name: expected str of length >= 1"),
        (
            "<annotation><object><name>a</name></object></annotation>",
            "object 1: lacks the field bndbox",
        ),
        (
            f"<annotation>{thing('a', '1 2 3 x')}</annotation>",
            "object 1: bndbox.ymax: expected float, got str",
        ),
        (
            f"<annotation>{thing('a', more='<difficult>maybe</difficult>')}</annotation>",
            "object 1: difficult: expected .*, got str",
        ),
        (
            "<annotation><object><name>a</name>"
            + "<bndbox>" * 100_000
            + "</bndbox>" * 100_000
            + "</object></annotation>",
            "object 1: .*nested too deeply",
        ),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "is not readable XML"),
        (f"<{'a' * 5000}/>", "its root is <a+ … a+>, expected <annotation>"),
        ("<annotation>\0</annotation>", "is not readable XML"),
        ("<annotation>" + " " * (8 << 20) + "</annotation>", "has 8.* MB, expected at most 8"),
        (
            '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation>&b;</annotation>',
            "has a DOCTYPE, which no VOC annotation needs: delete it",
        ),
    ],
)
def test_unusable_xml_is_one_clear_line(tmp_path: Path, xml: str, message: str) -> None:
    root = make(tmp_path)
    (root / "Annotations/b.xml").write_text(xml)
    said = refused(message, root)
    assert str(root / "Annotations/b.xml") in said and said.count("fix it") < 2


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_encodings_and_hidden_doctypes(tmp_path: Path, encoding: str) -> None:
    load_one(tmp_path, thing("straße"))
    file = tmp_path / "Annotations/a.xml"
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + file.read_text(encoding="utf-8")
    file.write_bytes(text.encode(encoding))
    assert load_dataset(tmp_path, "train").class_names == ("straße",)
    file.write_bytes(text.replace("?>", "?><!DOCTYPE a>").encode(encoding))
    refused("has a DOCTYPE", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", r"missing\.xml: is missing: an image without objects needs a file"),
        ("../../etc/passwd", "leads out of"),
        ("\x1b[31m", r"\\x1b\[31m\.xml: is missing"),
        ("x" * 250 + "/" + "y" * 250, "is missing"),
        ("x" * 300, "none that a file can have"),
    ],
)
def test_unusable_image_names(tmp_path: Path, name: str, message: str) -> None:
    root = make(tmp_path)
    split(root, "train", "a", name)
    refused(message, root)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    root = make(tmp_path)
    refused(r"test\.txt is missing: .* found in .*: train, val$", root, "test")
    split(root, "test")
    refused(r"test\.txt is empty: write one image name a line", root, "test")
    split(root, "test", "a")
    for name in ("train", "val"):
        (root / f"ImageSets/Main/{name}.txt").unlink()
    refused("no annotation names a class: write the names into", root, "test")


def test_names_with_spaces_and_suffixes(tmp_path: Path) -> None:
    """A last column of 1, 0 or -1 is none of the name, unless an image of that name is there."""
    for name in ("voc 1 ß", "photo 1", "photo 0", "plain", "a"):
        image(tmp_path, name, thing("dog"))
    image(tmp_path, "a.jpg", thing("dog"), suffix=".png")
    splits = {
        "train": (("voc 1 ß", "photo 1"), ["photo 1", "voc 1 ß"]),
        "mine": (("photo 1", "photo 0"), ["photo 0", "photo 1"]),
        "dog_train": (("voc 1 ß  1", "photo 1 -1", "plain 0"), ["photo 1", "plain", "voc 1 ß"]),
        "val": (("plain 1",), ["plain"]),  # a split by its name, whatever its columns
        "suffix": (("a.jpg", "a"), ["a", "a.jpg"]),
    }
    for name, (lines, _) in splits.items():
        split(tmp_path, name, *lines)
    assert voc_splits(tmp_path) == ["mine", "suffix", "train", "val"]
    for name, (_, stems) in splits.items():
        assert [s.path.stem for s in load_dataset(tmp_path, name).samples] == stems


def test_an_image_without_size_that_cannot_be_read_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image(tmp_path, "a", thing("dog"), size="")
    split(tmp_path, "train", "a")
    (tmp_path / "JPEGImages/a.jpg").write_bytes(b"")
    (sample,) = load_dataset(tmp_path, "train").samples
    assert (sample.width, sample.height) == UNKNOWN_SIZE
    assert "1 image cannot be read" in caplog.text and "a.jpg" in caplog.text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("0", False), ("1", True), ("", False), (" 1 ", True), ("0.0", False), ("1.0", True),
        ("true", True), ("False", False), ("Unspecified", False),
    ],
)  # fmt: skip
def test_ways_to_write_difficult(tmp_path: Path, written: str, expected: bool) -> None:
    dataset = load_one(tmp_path, thing("dog", more=f"<difficult>{written}</difficult>"))
    assert dataset.samples[0].iscrowd.tolist() == [expected]


@pytest.mark.parametrize(
    ("line", "suffix"),
    [
        ("cam/{}", ".png"),
        ("./cam/{}", ".jpg"),
        ("cam\\{}", ".png"),
        ("cam/{}.png", ".png"),
        ("cam/{}.JPG", ".jpg"),
        ("cam/{}  1", ".png"),
        ("cam/{}.png -1", ".png"),
    ],
)
def test_lists_with_folders_and_suffixes(tmp_path: Path, line: str, suffix: str) -> None:
    for folder in ("Annotations/cam", "JPEGImages/cam"):
        (tmp_path / folder).mkdir(parents=True)
    names = ("a", "b.v2", "é")
    for name in names:
        image(tmp_path, f"cam/{name}", thing("dog"), suffix=suffix)
    image(tmp_path, "a", thing("cat"))  # of the same name in another folder
    split(tmp_path, "train", *(line.format(name) for name in names))
    split(tmp_path, "val", "a.jpg")
    dataset = load_dataset(tmp_path, "train")
    expected = [tmp_path / f"JPEGImages/cam/{name}{suffix}" for name in names]
    assert [sample.path for sample in dataset.samples] == expected
    assert all(len(sample.boxes) == 1 for sample in dataset.samples)
    check = check_dataset(tmp_path)
    assert not [f for f in check.faults if f.kind is Kind.IMAGE_UNANNOTATED]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    root = make(tmp_path)
    (root / "ImageSets/Main/train.txt").write_text("b\na\n", encoding)
    assert len(load_dataset(root, "train")) == 2


def test_pipes_and_other_encodings_among_the_lists(tmp_path: Path) -> None:
    root = make(tmp_path)
    os.mkfifo(root / "ImageSets/Main/other.txt")
    (root / "ImageSets/Main/latin.txt").write_bytes(b"\xe4\n")
    refused(r"other\.txt: is a pipe or device", root, "other")
    refused(r"latin\.txt: is no text in UTF-8", root, "latin")
    (root / "classes.txt").write_bytes(b"\xe4\n")
    refused(r"classes\.txt: is no text in UTF-8", root)
