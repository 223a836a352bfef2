"""`nmsfree data check` as a user runs it, on COCO, YOLO and Pascal VOC folders."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from test_runtime_data_check import kinds
from typer.testing import CliRunner

from nmsfree.cli.data import app
from nmsfree.datasets.check.check import check_dataset
from nmsfree.datasets.check.fix import write_fixed
from nmsfree.datasets.check.pictures import choose, choose_faults, write_charts
from nmsfree.datasets.check.report import Check
from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.datasets.sizes import propose_size
from nmsfree.errors import DataError
from nmsfree.images import read_image

runner = CliRunner()


def run(*arguments: object) -> Any:
    return runner.invoke(app, ["check", *map(str, arguments)])


def found(root: Path) -> dict[str, int]:
    return kinds(check_dataset(root))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("check") / "digits"
    write_digits(root, train=12, val=3, overlap=2)
    return root


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib takes a second; other tests draw them."""
    monkeypatch.setattr("nmsfree.cli.data_check.write_charts", lambda check, path: None)


def test_what_is_not_installed_is_told_with_what_it_is_for(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert str(run(digits).exception).startswith("drawing histograms of a dataset needs a package")


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels)


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def yolo(root: Path) -> Path:
    for number, split in enumerate(("train", "train", "train", "val")):
        picture(root / f"images/{split}/{number}.png", number)
        rows = "0 0.5 0.5 0.5 0.5\n1 0.25 0.25 0.25 0.25\n"
        write(root / f"labels/{split}/{number}.txt", rows)
    text = "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: '$x_1$ [b]'}\n"
    write(root / "data.yaml", text)
    return root


def voc(root: Path) -> Path:
    box = "<xmin>9</xmin><ymin>9</ymin><xmax>40</xmax><ymax>40</ymax>"
    thing = f"<object><name>cat</name><bndbox>{box}</bndbox></object>"
    size = "<size><width>64</width><height>48</height></size>"
    for number in range(4):
        picture(root / f"JPEGImages/{number}.jpg", number)
        write(root / f"Annotations/{number}.xml", f"<annotation>{size}{thing}</annotation>")
    for split, names in {"train": "0\n1", "val": "2\n3", "trainval": "0\n1\n2\n3"}.items():
        write(root / f"ImageSets/Main/{split}.txt", names)
    return root


def test_digits_have_no_errors(digits: Path, tmp_path: Path) -> None:
    outcome = run(digits, "--out", tmp_path / "new", "--json", tmp_path / "report.json")
    assert outcome.exit_code == 0, outcome.output
    assert "no errors, " in outcome.stdout
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (report["format"], report["errors"], report["fixed"]) == ("COCO", 0, None)
    assert {f["kind"] for f in report["findings"]} <= {"class-empty", "box-small"}  # few images
    images = {name: split["images"] for name, split in report["splits"].items()}
    assert images == {"train": 12, "val": 3, "overlap": 2}
    for name, split in report["splits"].items():
        dataset = load_dataset(digits, name)
        counts = np.bincount(np.concatenate([s.labels for s in dataset.samples]), minlength=10)
        assert [row["objects"] for row in split["classes"]] == counts.tolist()
        sizes = split["box_sizes"]
        total = sizes["small"] + sizes["medium"] + sizes["large"]
        bins = sum(each["objects"] for each in sizes["sqrt_area_bins"])
        assert split["objects"] == total == bins == counts.sum()
    names = ["train_labels.jpg", "val_labels.jpg", "overlap_labels.jpg", "histograms.png"]
    assert [Path(path).name for path in report["pictures"]] == names
    assert run(digits, "--out", tmp_path / "again").exit_code == 0
    for path in map(Path, report["pictures"]):
        assert str(path) in outcome.stdout
        assert read_image(path).std() > 20
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), "every time"


@pytest.mark.usefixtures("no_charts")
def test_small_objects_are_counted_in_the_input(digits: Path, tmp_path: Path) -> None:
    """Scenes of 256 × 256 pixels, digits of 14 and more along the longer side."""
    sides = []
    for sample in load_dataset(digits, "train").samples:
        sides += (sample.boxes[:, 2:] - sample.boxes[:, :2]).min(axis=1).tolist()
    for size in ((512, 512), (128, 512)):
        file = tmp_path / "report.json"
        shown = run(digits, "--size", *size, "--json", file, "--out", tmp_path).stdout
        report = json.loads(file.read_text())
        assert tuple(report["input_size"]) == size and report["proposed_size"] == [256, 256]
        found = report["splits"]["train"]["box_sizes"]
        for limit in (8, 16):
            expected = (np.array(sides) * min(size) / 256 < limit).sum()
            assert found[f"below_{limit}px_in_input"] == expected, (size, limit)
    assert "below 16 px at 128 × 512" in shown and "(height × width): 256 × 256" in shown
    assert "32 or more" in str(run(digits, "--size", 0, 256).exception)


@pytest.mark.parametrize(
    ("side", "picture", "expected"),
    [
        (40, (400, 400), (256, 256)),
        (20, (400, 400), (320, 320)),  # 16 pixels
        (20, (1200, 800), (640, 960)),
        (4, (400, 400), (416, 416)),  # never 8 pixels, however large
        (4, (4000, 3000), (960, 1280)),
    ],
)
def test_the_proposed_input(side: int, picture: tuple[int, int], expected: tuple[int, int]) -> None:
    objects, pictures = np.full((50, 2), [3 * side, side], float), np.full((50, 2), picture, float)
    assert propose_size(objects, pictures) == expected
    few = np.vstack([objects, [[4.0, 4.0]]])  # 2 % of the objects: too many to leave out
    assert propose_size(few, np.full((51, 2), picture, float)) != (256, 256)
    nothing = np.zeros((0, 2))
    assert propose_size(nothing, nothing) == (256, 256)


def test_what_is_trained_on_decides_the_proposed_input() -> None:
    def split(side: float) -> Any:
        sizes = np.full((50, 2), side), np.full((50, 2), 400.0)
        return SimpleNamespace(stats=SimpleNamespace(objects_and_pictures=sizes))

    splits = {"train": split(20), "test": split(4)}
    assert Check.propose_size(SimpleNamespace(splits=splits)) == (320, 320)
    del splits["train"]
    assert Check.propose_size(SimpleNamespace(splits=splits)) == (416, 416)


@pytest.mark.usefixtures("no_charts")
def test_json_alone_on_stdout_and_chosen_splits(digits: Path, tmp_path: Path) -> None:
    arguments = (digits, "--split", "val", "--split", "overlap", "--out", tmp_path, "--json", "-")
    report = json.loads(run(*arguments).stdout)
    assert list(report["splits"]) == ["val", "overlap"]
    assert not (tmp_path / "train_labels.jpg").exists()


def test_wrong_usage_and_help(digits: Path, tmp_path: Path) -> None:
    outcome = run(tmp_path)
    assert isinstance(outcome.exception, DataError) and outcome.output == "", "no bar either"
    assert "holds no dataset: looked for COCO" in str(outcome.exception)
    outcome = run(digits, "--split", "test", "--out", tmp_path)
    assert isinstance(outcome.exception, DataError)
    assert "splits found" in str(outcome.exception)
    assert run().exit_code == 2
    said = run("--help").stdout
    assert "Example: nmsfree data check data/digits" in said
    assert "Exit status: 0 no errors" in said


@pytest.mark.slow
@pytest.mark.usefixtures("no_charts")
def test_a_broken_set_fails_and_its_fixed_copy_passes(
    digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(digits, tmp_path / "my digits")
    (root / "train/00003.png").write_bytes((root / "train/00003.png").read_bytes()[:500])
    (root / "val/00001.png").unlink()
    outcome = run(root, "--out", tmp_path / "pictures")
    assert outcome.exit_code == 1
    assert "2 errors, " in outcome.stdout
    assert "train/00003.png: is cut" in outcome.stdout
    assert capfd.readouterr() == ("", ""), "OpenCV does not chatter"
    assert (tmp_path / "pictures/problems.jpg").is_file()
    assert not (tmp_path / "my digits-clean").exists()

    outcome = run(root, "--out", tmp_path / "pictures", "--fix", "--json", tmp_path / "r.json")
    assert outcome.exit_code == 0
    assert f"nmsfree train --data '{root}-clean'" in outcome.stdout
    assert "1 missing images: left out" in outcome.stdout
    fixed = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["fixed"]
    assert fixed["splits"]["train"]["changes"] == {"image-truncated": 1}
    assert fixed["splits"]["val"]["images"] == 2
    assert len(load_dataset(tmp_path / "my digits-clean", "train")) == 11

    outcome = run(tmp_path / "my digits-clean", "--out", tmp_path / "pictures", "--fix")
    assert outcome.exit_code == 0
    assert "nothing to fix" in outcome.stdout
    assert not (tmp_path / "pictures/problems.jpg").exists()  # an old one would mislead


@pytest.mark.usefixtures("no_charts")
def test_the_command_names_splits_that_train_does_not_expect(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set")
    text = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(text.replace("train: ", "fit: ").replace("val: ", "test: "))
    (root / "labels/train/1.txt").write_text("0 0.5 0.5 0 0.5")
    outcome = run(root, "--out", tmp_path / "p", "--fix", "--out-fixed", tmp_path / "clean")
    assert outcome.exit_code == 0, outcome.output
    assert f"train --data {tmp_path / 'clean'} --split fit --val test" in outcome.stdout


@pytest.mark.usefixtures("no_charts")
def test_a_split_that_cannot_be_read_is_not_for_fixing(digits: Path, tmp_path: Path) -> None:
    root = shutil.copytree(digits, tmp_path / "set")
    (root / "annotations/instances_overlap.json").write_text("{")
    outcome = run(root, "--out", tmp_path, "--fix")
    assert outcome.exit_code == 1
    assert "nothing that --fix can fix" in outcome.stdout
    assert not (tmp_path / "set-clean").exists()


Plant = Callable[[Path], object]
LABEL, XML = "labels/train/1.txt", "Annotations/1.xml"


def text(name: str, content: str | bytes) -> Plant:
    data = content.encode() if isinstance(content, str) else content
    return lambda root: (root / name).write_bytes(data)


def gone(name: str) -> Plant:
    return lambda root: (root / name).unlink()


def same(source: str, target: str) -> Plant:
    return lambda root: shutil.copy(root / source, root / target)


def swap(name: str, *pairs: tuple[str, str]) -> Plant:
    def change(root: Path) -> None:
        for old, new in pairs:
            (root / name).write_text((root / name).read_text().replace(old, new))

    return change


def several(*plants: Plant) -> Plant:
    return lambda root: [plant(root) for plant in plants]


YOLO: dict[str, tuple[Plant, dict[str, int]]] = {
    "nothing": (several(), {}),
    "columns": (text(LABEL, "0 1 2"), {"annotation-malformed": 1}),
    "pixels": (text(LABEL, "0 20 20 9 9\n1 .5 .5 .1 .1"), {"box-outside": 1}),
    "class": (text(LABEL, "2 .5 .5 .1 .1"), {"dangling-category": 1}),
    "flat": (text(LABEL, "1 .5 .5 0 .1"), {"box-without-area": 1}),
    "nan": (text(LABEL, "1 nan .5 .1 .1"), {"box-without-area": 1}),
    "out": (text(LABEL, "1 .9 .5 .4 .1"), {"box-partly-outside": 1}),
    "far out": (text(LABEL, "1 .5 .5 2 .1"), {"box-partly-outside": 1}),
    "twice": (text(LABEL, "1 .5 .5 .4 .4\n1 .505 .5 .4 .4"), {"box-duplicate": 1}),
    "line twice": (text(LABEL, "1 .5 .5 .4 .4\n1 0.5 0.5 0.4 0.4"), {"line-repeated": 1}),
    "stray label": (
        several(text("labels/train/x.txt", ""), text("labels/train/classes.txt", "")),
        {"label-without-image": 1},
    ),
    "no label": (gone(LABEL), {}),
    "image": (text("images/train/1.png", b"no"), {"image-unreadable": 1}),
    "leak": (same("images/train/1.png", "images/val/3.png"), {"leakage": 1}),
    "listed but gone": (
        several(
            text("list.txt", "images/train/0.png\nimages/train/gone.png"),
            text("data.yaml", "train: list.txt\nnames: [cat, dog]"),
        ),
        {"image-missing": 1},
    ),
    "no folder": (
        lambda r: shutil.rmtree(r / "images/val"),
        {"split-unreadable": 1, "label-without-image": 0},
    ),
}


@pytest.mark.parametrize("name", YOLO)
def test_faults_of_yolo_sets(tmp_path: Path, name: str) -> None:
    plant, expected = YOLO[name]
    root = yolo(tmp_path / "set")
    plant(root)
    assert found(root) == {kind: count for kind, count in expected.items() if count}
    fixed = write_fixed(check_dataset(root), tmp_path / "clean")
    assert len(fixed.unfixed) == expected.get("split-unreadable", 0)
    assert found(tmp_path / "clean") == {}


VOC: dict[str, tuple[Plant, dict[str, int]]] = {
    "nothing": (several(), {}),
    "no xml": (gone(XML), {"annotation-file-missing": 1}),
    "broken xml": (text(XML, "<annotation>"), {"annotation-malformed": 1}),
    "no box": (
        text(XML, "<annotation><object><name>cat</name></object></annotation>"),
        {"annotation-malformed": 1},
    ),
    "class": (
        several(text("classes.txt", "cat"), swap(XML, ("cat", "dog"))),
        {"dangling-category": 1},
    ),
    "size": (swap(XML, ("<width>64", "<width>65")), {"image-size": 1}),
    "outside": (swap(XML, ("<xmin>9", "<xmin>70"), ("<xmax>40", "<xmax>90")), {"box-outside": 1}),
    "from zero": (swap(XML, ("<xmin>9", "<xmin>0")), {}),
    "one pixel": (swap(XML, ("<xmax>40", "<xmax>9")), {}),
    "backwards": (swap(XML, ("<xmax>40", "<xmax>8")), {"box-without-area": 1}),
    "stray": (lambda r: picture(r / "JPEGImages/9.jpg", 9), {"image-unannotated": 1}),
    "gone": (gone("JPEGImages/1.jpg"), {"image-missing": 1}),
    "name": (
        swap("ImageSets/Main/train.txt", ("0", "../0")),
        {"image-entry": 1, "image-unannotated": 1},
    ),
    "leak": (same("JPEGImages/1.jpg", "JPEGImages/2.jpg"), {"leakage": 1}),
}


@pytest.mark.parametrize("name", VOC)
def test_faults_of_voc_sets(tmp_path: Path, name: str) -> None:
    plant, expected = VOC[name]
    root = voc(tmp_path / "set")
    for split in ("val", "trainval"):  # the other splits have their own tests
        if name != "leak" or split == "trainval":
            (root / f"ImageSets/Main/{split}.txt").unlink()
    if name != "leak":
        for number in (2, 3):
            (root / f"JPEGImages/{number}.jpg").unlink()
    plant(root)
    assert found(root) == expected
    assert write_fixed(check_dataset(root), tmp_path / "clean").unfixed == ()
    assert found(tmp_path / "clean") == {}


@pytest.mark.usefixtures("no_charts")
def test_a_split_that_joins_others_shares_their_images(tmp_path: Path) -> None:
    root = voc(tmp_path / "set")
    check = check_dataset(root)
    unions = [f.detail for f in check.faults if f.kind.code == "split-union"]
    assert (found(root), unions) == ({}, ["trainval is train and val together"])
    shutil.copy(root / "JPEGImages/0.jpg", root / "JPEGImages/2.jpg")
    (root / "Annotations/1.xml").write_text("no")
    assert found(root).keys() == {"leakage", "annotation-malformed", "image-duplicate"}
    outcome = run(root, "--out", tmp_path / "p", "--fix", "--out-fixed", tmp_path / "clean")
    assert outcome.exit_code == 1  # nothing is left to train on
    assert "not fixed: train: all its images are in val" in " ".join(outcome.stdout.split())


def test_a_joined_split_is_fixed_like_its_parts(tmp_path: Path) -> None:
    root, clean = voc(tmp_path / "set"), tmp_path / "clean"
    shutil.copy(root / "JPEGImages/0.jpg", root / "JPEGImages/2.jpg")
    write_fixed(check_dataset(root), clean)
    assert found(clean) == {}
    names = {"train": ["1"], "val": ["2", "3"], "trainval": ["1", "2", "3"]}
    for split, stems in names.items():
        assert [sample.path.stem for sample in load_dataset(clean, split).samples] == stems


def test_chosen_pictures(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set")
    (root / "labels/train/0.txt").write_text("")
    (root / "labels/train/1.txt").write_text("0 .5 .5 .1 .1\n1 .5 .5 0 .1\n1 .5 .2 0 .1")
    (root / "images/train/2.png").write_bytes(b"no")
    check = check_dataset(root)
    # One to look at: the first has no object, the last is unreadable.
    assert [image.path.stem for image in choose(check, check.splits["train"])] == ["1"]
    problems = choose_faults(check)
    assert [(s, faults[0].kind.code, len(faults)) for s, faults in problems] == [
        ("train", "image-unreadable", 1),
        ("train", "box-without-area", 2),
    ]


@pytest.mark.slow
def test_many_classes_give_one_page(tmp_path: Path) -> None:
    root = yolo(tmp_path / "set")
    heights = []
    for count in (2, 200):
        names = ", ".join(f"'class {i} $'" for i in range(count))
        (root / "data.yaml").write_text(f"train: images/train\nnames: [{names}]")
        write_charts(check_dataset(root), tmp_path / f"{count}.png")
        heights.append(read_image(tmp_path / f"{count}.png").shape[0])
    assert heights[0] < heights[1] < 2600


def test_outputs_never_replace_the_dataset(tmp_path: Path) -> None:
    for root in (yolo(tmp_path / "yolo"), voc(tmp_path / "voc")):
        files = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for path in files:
            result = run(root, "--json", path, "--out", tmp_path / "out")
            assert "is an input of this command" in str(result.exception), path
        picture(root / "images/train/problems.jpg", 0)
        assert not (tmp_path / "out").exists()
        assert {path: path.read_bytes() for path in files} == files


def test_pictures_that_cannot_be_written_do_not_cost_the_report(tmp_path: Path) -> None:
    root, out = yolo(tmp_path / "yolo"), tmp_path / "file"
    out.touch()
    result = run(root, "--out", out, "--json", tmp_path / "report.json")
    assert result.exit_code == 1
    assert "no errors" in result.stdout
    assert result.stderr.count("error: ") == 1 and f"{out} is no folder" in result.stderr
    assert json.loads((tmp_path / "report.json").read_text())["pictures"] == []


@pytest.mark.usefixtures("no_charts")
def test_no_sheet_replaces_a_picture_of_the_dataset(tmp_path: Path) -> None:
    root = yolo(tmp_path / "yolo")
    (root / "images/val/3.png").rename(root / "images/val/problems.jpg")
    (root / "labels/val/3.txt").rename(root / "labels/val/problems.txt")
    before = (root / "images/val/problems.jpg").read_bytes()
    result = run(root, "--out", root / "images/val")
    assert result.exit_code == 1 and "is an input of this command" in result.stderr
    assert (root / "images/val/problems.jpg").read_bytes() == before


@pytest.mark.parametrize("name", ["../../leak", "{tmp}/leak"])
@pytest.mark.usefixtures("no_charts")
def test_no_name_of_a_split_is_a_path(tmp_path: Path, name: str) -> None:
    root, name = yolo(tmp_path / "a" / "yolo"), name.format(tmp=tmp_path)
    with (root / "data.yaml").open("a") as file:
        file.write(f"'{name}': images/val\n")
    before = set(tmp_path.rglob("*"))
    result = run(root, "--out", tmp_path / "out", "--fix", "--out-fixed", tmp_path / "clean")
    assert result.exit_code == 1
    assert any("the name of split" in fault.detail for fault in check_dataset(root).faults)
    made = set(tmp_path.rglob("*")) - before
    assert made and all(
        path.is_relative_to(tmp_path / "out") for path in made if path.suffix == ".jpg"
    )
    assert not [path for path in made if "leak" in path.name or path.parts[-2:-1] == ("a",)]
    with pytest.raises(DataError, match="is a path"):
        load_dataset(root, name)


def test_a_fix_that_was_killed_is_done_again(tmp_path: Path) -> None:
    root, folder = yolo(tmp_path / "yolo"), tmp_path / "clean/annotations"
    folder.mkdir(parents=True)
    (folder / ".nmsfree-0123456789ab.part").write_bytes(b"{")
    for _ in range(2):
        write_fixed(check_dataset(root), tmp_path / "clean")
    names = [path.name for path in sorted(folder.iterdir())]
    assert names == ["instances_train.json", "instances_val.json"]
