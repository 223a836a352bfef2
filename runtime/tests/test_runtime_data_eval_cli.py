"""`nmsfree data digits` as a user runs it."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from nmsfree.cli.data import app as data_app
from nmsfree.errors import InputError
from nmsfree.images import read_image

runner = CliRunner()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    arguments = ["digits", "--out", str(folder), "--train", "0", "--val", "1", "--overlap", "2"]
    outcome = runner.invoke(data_app, arguments)
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stdout == ""
    assert "wrote val, overlap" in outcome.stderr
    return folder


def test_complete_set_is_recognised(digits: Path) -> None:
    arguments = ["digits", "--out", str(digits), "--train", "0", "--val", "1", "--overlap", "2"]
    outcome = runner.invoke(data_app, arguments)
    assert outcome.exit_code == 0
    assert "complete already" in outcome.stderr


def test_preview_shows_the_scenes(tmp_path: Path) -> None:
    outcome = runner.invoke(data_app, ["digits", "--preview", str(tmp_path / "new/sheet.png")])
    assert outcome.exit_code == 0
    picture = read_image(tmp_path / "new/sheet.png")
    tiles = [part for row in np.array_split(picture, 3) for part in np.array_split(row, 4, axis=1)]
    assert all(tile.std() > 20 for tile in tiles)


@pytest.mark.parametrize("name", ["sheet", "sheet.txt"])
def test_preview_needs_a_picture_format(tmp_path: Path, name: str) -> None:
    outcome = runner.invoke(data_app, ["digits", "--preview", str(tmp_path / name)])
    assert isinstance(outcome.exception, InputError)
    assert "expected .png or .jpg" in str(outcome.exception)


def test_nothing_to_do_and_wrong_numbers() -> None:
    assert isinstance(runner.invoke(data_app, ["digits"]).exception, InputError)
    outcome = runner.invoke(data_app, ["digits", "--out", "unused", "--train", "-1"])
    assert outcome.exit_code == 2
    assert not Path("unused").exists()
