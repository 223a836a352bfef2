"""The trees set, from a wheel of the same shape with boxes that are known."""

import hashlib
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from nmsfree import DataError, InputError, read_image
from nmsfree.cli.data import app
from nmsfree.datasets import trees
from nmsfree.datasets.formats.folder import load_dataset

LARGE, SMALL = trees.REGIONS
SIZES = {LARGE: (2299, 2472), SMALL: (1249, 1035)}
# Corners in the VOC files, counted from 1.
BOXES = {
    LARGE: [
        (11, 2083, 40, 2102),
        (371, 2201, 400, 2230),
        (2001, 2061, 2040, 2080),
        (5, 1610, 9, 1620),
    ],
    SMALL: [(901, 101, 950, 140), (821, 601, 855, 640)],
}


def annotation(scene: str) -> str:
    width, height = SIZES[scene]
    objects = "".join(
        f"<object><name>Tree</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for x1, y1, x2, y2 in [*BOXES[scene], (101, 301, 130, 340), (501, 401, 560, 460)]
    )
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    return f"<annotation><filename>{scene}.png</filename>{size}{objects}</annotation>"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes whose pixels tell where they are: x // 10, y // 10 and whether it is the large one."""
    path = tmp_path_factory.mktemp("wheel") / trees.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        for scene, (width, height) in SIZES.items():
            y, x = np.mgrid[:height, :width]
            which = x * 0 + (scene == LARGE)
            picture = np.stack([x // 10, y // 10, which], axis=2).astype(np.uint8)
            archive.writestr(
                f"deepforest/data/{scene}.png", cv2.imencode(".png", picture)[1].tobytes()
            )
            archive.writestr(f"deepforest/data/{scene}.xml", annotation(scene))
        archive.writestr(trees.LICENCE, "MIT License")
    return path


@pytest.fixture(autouse=True)
def expected(wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trees, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["trees", *map(str, arguments)])


@pytest.fixture(scope="session")
def written(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The set, and what the command says of it."""
    folder = tmp_path_factory.mktemp("set") / "trees"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
        outcome = command("--out", folder, "--wheel", wheel, "--json", "-")
    assert outcome.exit_code == 0, outcome.output
    return folder, json.loads(outcome.stdout)


def test_the_set(written: tuple[Path, Any]) -> None:
    folder, report = written
    assert report["written"] == ["train", "val", "test", "test-whole"]
    images = {split: found["images"] for split, found in report["splits"].items()}
    assert images == {"train": 7 * 11 + 5, "val": 6 + 3, "test": 6 + 3, "test-whole": 2}
    assert (folder / "LICENSE").read_text() == "MIT License"
    assert "NEON" in (folder / "ATTRIBUTION.txt").read_text()
    test = load_dataset(folder, "test-whole")
    assert [s.boxes.tolist() for s in test.samples] == [
        [[10, 10, 40, 30], [370, 128, 400, 158], [2000, 0, 2040, 8]],
        [[51, 100, 101, 140], [0, 600, 6, 640]],
    ]
    assert [s.iscrowd.tolist() for s in test.samples] == [[0, 0, 1], [0, 1]]
    tiles = load_dataset(folder, "test").samples
    found = [
        (n, b.tolist(), c)
        for n, s in enumerate(tiles)
        for b, c in zip(s.boxes, s.iscrowd, strict=True)
    ]
    assert found == [
        (0, [10, 10, 40, 30], False),
        (0, [370, 128, 383, 158], True),  # 13 of its 30 pixels
        (1, [0, 128, 17, 158], False),
        (5, [2000 - 1916, 0, 2040 - 1916, 8], True),
        (6, [51, 100, 101, 140], False),
        (7, [0, 600 - 345, 6, 640 - 345], True),
    ]
    assert (test.class_names, len(tiles)) == (("Tree",), 9)


def places(picture: NDArray[np.uint8]) -> set[int]:
    """A number for each colour of a picture."""
    return {*np.unique(picture.astype(np.int32) @ np.array([1, 256, 65536], np.int32)).tolist()}


def test_no_tile_crosses_a_region_and_pixels_are_those_of_the_scene(
    written: tuple[Path, Any],
) -> None:
    seen = set()
    for split in ("train", "val", "test"):
        for number, sample in enumerate(load_dataset(written[0], split).samples):
            picture = read_image(sample.path)
            assert max(picture.shape[:2]) <= trees.TILE
            scene = LARGE if number < {"train": 77, "val": 6, "test": 6}[split] else SMALL
            x1, y1, x2, y2 = trees.REGIONS[scene][split]
            columns, rows = picture[..., 0], picture[..., 1]
            assert x1 // 10 <= columns.min() and columns.max() <= (x2 - 1) // 10
            assert y1 // 10 <= rows.min() and rows.max() <= (y2 - 1) // 10
            seen |= places(picture) if split == "train" else set()
    assert len(seen) >= 230 * 160, "the whole region is in some tile"


def test_folds_test_on_every_block_once(wheel: Path, tmp_path: Path) -> None:
    """No split of a fold shows what another one shows."""
    tested = list[int]()
    for fold in range(trees.FOLDS):
        seen: dict[str, set[int]] = {}
        out = tmp_path / str(fold)
        trees.write_trees(out, wheel, fold=fold)
        for split in ("train", "val", "test"):
            for sample in load_dataset(out, split).samples:
                picture = read_image(sample.path)
                assert max(picture.shape[:2]) <= trees.TILE
                seen.setdefault(split, set()).update(places(picture))
        assert not seen["train"] & seen["val"] and not seen["test"] & (seen["train"] | seen["val"])
        tested += seen["test"]
    assert len(tested) == len(set(tested)) > 0.8 * (2299 * 2472 + 1249 * 1035) / 100
    outcome = command("--out", tmp_path / "0", "--wheel", wheel, "--fold", 1)
    assert isinstance(outcome.exception, DataError)
    assert command("--out", tmp_path / "x", "--wheel", wheel, "--fold", trees.FOLDS).exit_code == 2


def test_it_is_written_once_and_other_files_are_refused(
    wheel: Path, written: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(written[0], tmp_path / "set")
    (tmp_path / "set/val/00000.png").unlink()
    assert trees.write_trees(tmp_path / "set", wheel) == ["val"]
    outcome = command("--out", tmp_path / "set", "--wheel", wheel)
    assert "complete already" in outcome.stderr and "test: 9 images, 3 trees" in outcome.stdout
    with pytest.raises(DataError, match="holds other data"):
        trees.write_trees(wheel.parent, wheel)
    monkeypatch.setattr(trees, "SHA256", "0" * 64)
    assert isinstance(command("--out", tmp_path / "b", "--wheel", wheel).exception, InputError)
    assert isinstance(command("--out", tmp_path / "b", "--wheel", "none").exception, InputError)
    assert not (tmp_path / "b").exists()


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A Python whose pip does what is written here."""

    def make(body: str) -> None:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return make


def test_pip_fetches_the_wheel_once(
    wheel: Path, tmp_path: Path, pip: Callable[[str], None]
) -> None:
    pip(f'echo "$@" >> {tmp_path}/calls; for last; do :; done; shift 7; cp {wheel} "$1"')
    found = [trees.fetch_wheel() for _ in range(2)]
    assert found == [tmp_path / "cache/nmsfree" / trees.WHEEL] * 2
    assert found[0].read_bytes() == wheel.read_bytes()
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call.startswith("-m pip download --no-deps --only-binary=:all: --ignore-requires-python")
    assert call.endswith(" deepforest==2.1.0")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo No module named pip >&2; exit 1", "(No module named pip): download deepforest-"),
        ("exit 0", "(no word)"),
        ('shift 7; echo other > "$1/deepforest-2.1.0-py3-none-any.whl"', "has SHA-256"),
    ],
)
def test_what_pip_cannot_get_is_said(pip: Callable[[str], None], body: str, message: str) -> None:
    pip(body)
    with pytest.raises(InputError) as refusal:
        trees.fetch_wheel()
    assert message in str(refusal.value)
