"""`nmsfree bench training` and `bench criterion` on small sizes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree_benchmarks.cli import app

runner = CliRunner()


def test_loading_beside_training(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits", train=8, val=0, overlap=0)
    options = ["--data", str(tmp_path / "digits"), "--seconds", "0.1", "--json", "-"]
    result = runner.invoke(app, ["training", *options])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["model"] == "fcos_e2e_nano" and report["loader_processes"] >= 1
    assert report["loading"]["images_per_second_per_core"] > 0
    assert report["training"]["images_per_second"] > 0
    assert "keep" in result.stderr and "images/s" in result.stderr


def test_share_of_the_criterion(tmp_path: Path) -> None:
    options = ["--batch", "1", "--size", "64", "96", "--objects", "2", "--rounds", "1"]
    options += ["--json", str(tmp_path / "a.json")]
    result = runner.invoke(app, ["criterion", *options])
    assert result.exit_code == 0, result.output
    costs = json.loads((tmp_path / "a.json").read_text())["criterion"]
    assert [c["preset"] for c in costs] == ["fcos_rt_r18_3x", "fcos_e2e_r18_3x"]
    for cost in costs:
        measured = cost["criterion_s"]["median"] / cost["network_s"]["median"]
        assert cost["share"]["median"] == pytest.approx(measured, rel=1e-3)
        # So small a step may fit into memory that the process holds already: 0 is a right answer.
        assert 0 <= cost["criterion_peak_mb"] < 50


def test_a_dataset_that_is_missing(tmp_path: Path) -> None:
    result = runner.invoke(app, ["training", "--data", str(tmp_path / "none")])
    assert "is not a folder" in str(result.exception)
