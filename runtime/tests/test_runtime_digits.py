"""Digits scenes: what is promised about every picture, and the set on disk."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from nmsfree.cli.data import app
from nmsfree.datasets.digits.draw import draw_group
from nmsfree.datasets.digits.layout import draw_glyph, instances, lay_out, load_digits
from nmsfree.datasets.digits.scenes import (
    CLASS_NAMES,
    SPLITS,
    Scene,
    make_scene,
    write_digits,
)
from nmsfree.datasets.formats.coco import load_coco
from nmsfree.errors import DataError, InputError
from nmsfree.images import read_image


def iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    size = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.maximum(size, 0).prod())
    return shared / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - shared)


def overlaps(scene: Scene) -> list[tuple[float, bool]]:
    """IoU and "same class" of every two objects."""
    objects = list(zip(scene.boxes, scene.labels, strict=True))
    return [(iou(a, b), p == q) for (a, p), (b, q) in itertools.combinations(objects, 2)]


@pytest.fixture(scope="module")
def train_scenes() -> list[Scene]:
    return [make_scene("train", index) for index in range(80)]


@pytest.fixture(scope="module")
def overlap_scenes() -> list[Scene]:
    return [make_scene("overlap", index) for index in range(30)]


def test_scene_depends_on_nothing_but_its_arguments() -> None:
    first, again = make_scene("val", 7), make_scene("val", 7)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    others = (make_scene(split, 7) for split in SPLITS if split != "val")
    for other in (make_scene("val", 8), make_scene("val", 7, seed=1), *others):
        assert not np.array_equal(first.image, other.image)
    with pytest.raises(DataError, match="train, val, overlap, test, test-overlap"):
        make_scene("valid", 0)


def test_recipe_is_unchanged() -> None:
    """If this fails on purpose, raise the recipe of DIGITS: sets and results are outdated."""
    scene = make_scene("overlap", 0)
    assert scene.labels.tolist() == [2, 2, 3, 3, 3, 3]
    expected = [
        [95, 130, 146, 203], [92, 149, 147, 214], [194, 76, 229, 133],
        [195, 62, 229, 122], [47, 63, 81, 111], [54, 61, 83, 106],
    ]  # fmt: skip
    assert np.abs(scene.boxes - np.array(expected)).max() <= 1  # resampling rounds per processor


def test_training_shares_no_handwritten_digit() -> None:
    labels = load_digits().labels
    for label, (train, held_out) in enumerate(zip(instances(False), instances(True), strict=True)):
        assert not set(train) & set(held_out)
        assert set(train) | set(held_out) == set(np.flatnonzero(labels == label))
        assert 0.27 < len(held_out) / (len(train) + len(held_out)) < 0.33
    allowed = set(np.concatenate(instances(held_out=True)).tolist())
    for seed in range(20):
        groups = lay_out(np.random.default_rng(seed), instances(held_out=True), 1, 4)
        assert {digit.glyph.instance for group in groups for digit in group} <= allowed


def test_types_counts_sizes_and_places(
    train_scenes: list[Scene], overlap_scenes: list[Scene]
) -> None:
    sides = []
    for scene in train_scenes + overlap_scenes:
        assert (scene.image.shape, scene.image.dtype) == ((256, 256, 3), np.uint8)
        assert (scene.boxes.shape, scene.boxes.dtype) == ((len(scene.labels), 4), np.float32)
        assert scene.labels.dtype == np.int64
        assert 3 <= len(scene.labels) <= 10
        assert scene.boxes.min() >= 1 and scene.boxes.max() <= 255
        sides += (scene.boxes[:, 2:] - scene.boxes[:, :2]).max(axis=1).tolist()
    assert min(sides) >= 14 and max(sides) <= 110
    assert np.percentile(sides, 10) < 25 and np.percentile(sides, 90) > 75
    counts = np.bincount(np.concatenate([scene.labels for scene in train_scenes]), minlength=10)
    assert counts.min() > 0.06 * counts.sum(), "every class appears"


def test_pairs_overlap_and_others_hardly_do(
    train_scenes: list[Scene], overlap_scenes: list[Scene]
) -> None:
    pairs = {}
    tests = [make_scene("test-overlap", index) for index in range(20)]
    for name, scenes in (("train", train_scenes), ("overlap", overlap_scenes + tests)):
        every = [[each for each in overlaps(scene) if each[0] >= 0.3] for scene in scenes]
        assert all(same and 0.5 <= value <= 0.75 for found in every for value, same in found)
        pairs[name] = [*map(len, every)]
    assert set(pairs["overlap"]) == {2, 3}
    assert set(pairs["train"]) == {0, 1} and 0.2 < np.mean(pairs["train"]) < 0.4


@pytest.mark.parametrize("side", [15.5, 40.0, 108.5])
def test_glyph_touches_all_sides_of_its_box(side: float) -> None:
    rng = np.random.default_rng(3)
    for instance in range(0, 1797, 60):
        glyph = draw_glyph(rng, instance, side)
        ink = glyph.alpha >= 0.5
        inner = ink[1:-1, 1:-1]
        assert inner[0].any() and inner[-1].any() and inner[:, 0].any() and inner[:, -1].any()
        assert ink.sum() == inner.sum()  # nothing in the margin
        assert abs(max(glyph.size) - side) <= 1.5


def test_box_encloses_what_is_drawn() -> None:
    """On an even ground, the pixels that became at least half ink span exactly the box."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        (group,) = lay_out(rng, instances(held_out=False), 0, 1)
        canvas = np.full((256, 256, 3), 128, np.uint8)
        draw_group(rng, canvas, group)
        change = np.abs(canvas.astype(int) - 128).max(axis=2)
        rows, columns = np.nonzero(change >= change.max() / 2)
        drawn = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.subtract(drawn, group[0].box)).max() <= 1  # colours are whole numbers


def test_lower_digit_of_a_pair_stays_visible() -> None:
    for seed in range(30):
        (pair,) = lay_out(np.random.default_rng(seed), instances(held_out=True), 1, 0)
        alone = np.full((256, 256, 3), 128, np.uint8)
        both = alone.copy()
        draw_group(np.random.default_rng(0), alone, pair[:1])
        draw_group(np.random.default_rng(0), both, pair)  # the lower digit gets the same colour
        ink = np.abs(alone.astype(int) - 128).max(axis=2) >= 25
        visible = ink & (alone == both).all(axis=2)
        assert visible.sum() >= 0.45 * ink.sum()


def test_set_on_disk_is_what_the_scenes_are(tmp_path: Path) -> None:
    counts = {"train": 3, "val": 4, "overlap": 2, "test": 1, "test-overlap": 2}
    write_digits(tmp_path / "set", **counts)
    for split, count in counts.items():
        dataset = load_coco(tmp_path / "set", split)
        assert dataset.class_names == CLASS_NAMES
        assert dataset.category_ids == tuple(range(1, 11))
        assert len(dataset) == count
        for index, sample in enumerate(dataset.samples):
            scene = make_scene(split, index)
            assert np.array_equal(sample.boxes, scene.boxes)
            assert np.array_equal(sample.labels, scene.labels)
            assert np.array_equal(read_image(sample.path), scene.image)
    text = (tmp_path / "set/annotations/instances_val.json").read_text(encoding="utf-8")
    content = json.loads(text)
    assert "10.24432/C50P49" in text  # the attribution that the licence asks for
    assert content["licenses"][0]["name"] == "CC BY 4.0"
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4]
    for number, annotation in enumerate(content["annotations"], start=1):
        _, _, width, height = annotation["bbox"]
        assert (annotation["id"], annotation["iscrowd"]) == (number, 0)
        assert annotation["area"] == width * height


def test_splits_do_not_depend_on_one_another(tmp_path: Path) -> None:
    write_digits(tmp_path / "a", train=0, val=2, overlap=0)
    write_digits(tmp_path / "b", train=3, val=2, overlap=1)
    assert contents(tmp_path / "a" / "val") == contents(tmp_path / "b" / "val")
    assert not (tmp_path / "a/train").exists(), "a split of no images is not written"
    assert [p.name for p in (tmp_path / "a/annotations").iterdir()] == ["instances_val.json"]


def test_only_what_is_missing_is_written(tmp_path: Path) -> None:
    counts = {"train": 2, "val": 2, "overlap": 1}
    assert write_digits(tmp_path, **counts) == ["train", "val", "overlap"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_digits(tmp_path, **counts) == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    whole = contents(tmp_path)
    (tmp_path / "val/00001.png").unlink()
    assert write_digits(tmp_path, **counts) == ["val"]
    (tmp_path / "annotations/instances_train.json").unlink()
    assert write_digits(tmp_path, **counts) == ["train"]
    assert contents(tmp_path) == whole
    assert write_digits(tmp_path, **counts | {"train": 3}) == ["train"]
    assert len(load_coco(tmp_path, "train")) == 3


def test_interrupted_set_is_completed(tmp_path: Path) -> None:
    def interrupt(split: str, done: int, total: int) -> None:
        if (split, done) == ("val", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_digits(tmp_path / "a", train=2, val=3, overlap=0, progress=interrupt)
    assert not (tmp_path / "a/annotations/instances_val.json").exists()
    assert write_digits(tmp_path / "a", train=2, val=3, overlap=0) == ["val"]
    write_digits(tmp_path / "b", train=2, val=3, overlap=0)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_set_killed_before_its_first_file_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / ".nmsfree-0123456789ab.part").write_bytes(b"{")
    assert write_digits(tmp_path, train=1, val=0, overlap=0) == ["train"]
    assert {path.name for path in tmp_path.iterdir()} == {"annotations", "digits.json", "train"}


def test_other_data_is_never_touched(tmp_path: Path) -> None:
    write_digits(tmp_path / "set", train=1, val=0, overlap=0)
    with pytest.raises(DataError, match="seed 0, asked for recipe 1 and seed 1"):
        write_digits(tmp_path / "set", train=1, val=0, overlap=0, seed=1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/mine.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="holds other data"):
        write_digits(tmp_path / "photos", train=1)
    with pytest.raises(DataError, match="is a file"):
        write_digits(tmp_path / "photos/mine.jpg", train=1)
    for broken in ("[]", "[" * 100_000, '{"recipe": 1, "seed": 0, "splits": {"train": 1e9999}}'):
        (tmp_path / "set/digits.json").write_text(broken, encoding="utf-8")
        with pytest.raises(DataError, match=r"digits\.json: .*: delete "):
            write_digits(tmp_path / "set", train=1)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["digits", *map(str, arguments)])


def test_the_command_writes_a_set_once(tmp_path: Path) -> None:
    arguments = ("--out", tmp_path / "set", "--train", 0, "--val", 1, "--overlap", 2)
    arguments += ("--test", 2, "--test-overlap", 1)
    for said in ("wrote val, overlap, test, test-overlap", "complete already"):
        outcome = command(*arguments)
        assert (outcome.exit_code, outcome.stdout) == (0, ""), outcome.output
        assert said in outcome.stderr


def test_the_preview_shows_the_scenes(tmp_path: Path) -> None:
    assert command("--preview", tmp_path / "new/sheet.png").exit_code == 0
    picture = read_image(tmp_path / "new/sheet.png")
    tiles = [
        part
        for row in np.array_split(picture, len(SPLITS))
        for part in np.array_split(row, 4, axis=1)
    ]
    assert all(tile.std() > 20 for tile in tiles)
    for name in ("sheet", "sheet.txt"):
        assert "expected .png or .jpg" in str(command("--preview", tmp_path / name).exception)


def test_nothing_to_do_and_wrong_numbers() -> None:
    assert isinstance(command().exception, InputError)
    assert command("--out", "unused", "--train", -1).exit_code == 2
    assert not Path("unused").exists()
