"""The manifest, the list of weights, model cards, and the weights that come with the project."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from nmsfree.errors import CheckpointError, DataError, InputError
from nmsfree.machine import sha256
from nmsfree_training.cli.weights import app
from nmsfree_training.config import preset
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.card import gmac, minutes_of_run, write_card
from nmsfree_training.weights.checkpoint import load_checkpoint, save_checkpoint
from nmsfree_training.weights.manifest import (
    SUMS,
    BundledWeight,
    load_manifest,
    read_card,
    statuses,
)

from .runs import WEIGHTS, save_network

runner = CliRunner()
PROVENANCE = {"command": "nmsfree train --data d", "seed": "7", "machine": "a test"}
MANIFEST = """
[[published]]
name = "fcos_rt_r18_3x"
file = "rt.pth"
url = "https://example.org/rt.pth"
ap = 0.358
ap50 = 0.533

[[bundled]]
name = "fcos_o2o_nano"
file = "small.safetensors"
card = "small.json"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "manifest.toml").write_text(MANIFEST)
    return tmp_path


def run(*arguments: object) -> Result:
    return runner.invoke(app, [str(a) for a in arguments])


def save_small(path: Path, **said: str) -> Path:
    return save_network(Fcos(preset("fcos_o2o_nano", 10).model), path, **(said or PROVENANCE))


def test_list_before_and_after_files_are_there(folder: Path) -> None:
    manifest = load_manifest(folder / "manifest.toml")
    small, published = statuses(manifest)
    assert (small.name, small.kind, small.size, small.sha) == (
        "fcos_o2o_nano",
        "bundled",
        None,
        None,
    )
    assert (published.kind, published.ap, published.sha) == ("published", {"COCO": 0.358}, None)
    save_small(folder / "small.safetensors")
    (folder / "published").mkdir()
    file = folder / "published" / "rt.pth"
    file.write_bytes(b"1234")
    assert [s.sha for s in statuses(manifest)] == ["unknown", "unknown"]
    ap = {"val": 0.7, "overlap": 0.6}
    write_card(folder / "small.safetensors", folder / "small.json", ap=ap, minutes=3)
    (folder / "published" / SUMS).write_text(f"{sha256(file)}  rt.pth\n")
    small, published = statuses(manifest)
    assert (small.sha, published.sha) == ("ok", "ok")
    assert small.ap == ap and small.size == (folder / "small.safetensors").stat().st_size
    save_small(folder / "small.safetensors", **PROVENANCE | {"seed": "8"})
    file.write_bytes(b"12345")
    assert [s.sha for s in statuses(manifest)] == ["differs", "differs"]


def test_list_command(folder: Path) -> None:
    result = run("list", "--manifest", folder / "manifest.toml")
    assert result.exit_code == 0
    for text in ("fcos_o2o_nano", "35.8 COCO", "rt.pth", "missing"):
        assert text in result.stdout
    result = run("list", "--manifest", folder / "manifest.toml", "--json", "-")
    rows = json.loads(result.stdout)
    manifest = load_manifest(folder / "manifest.toml")
    assert rows == [asdict(s) | {"file": str(s.file)} for s in statuses(manifest)]
    target = folder / "list.json"
    result = run("list", "--manifest", folder / "manifest.toml", "--json", target)
    assert "fcos_o2o_nano" in result.stdout and json.loads(target.read_text()) == rows
    result = run("list", "--manifest", folder / "manifest.toml", "--json", folder / "manifest.toml")
    assert "is an input of this command" in str(result.exception)
    assert (folder / "manifest.toml").read_text() == MANIFEST


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("[[published]]", "[[published", "not readable TOML"),
        ("ap = 0.358\n", "", r"published\[0\]: lacks the field ap"),
        ("ap = 0.358", "ap = 0.358\nextra = 1", r"published\[0\]: .*unknown field extra"),
        ('"fcos_rt_r18_3x"', '"fcos"', "'fcos' is unknown"),
        ("https://", "file:///", r"published\[0\]\.url: expected"),
        ("ap = 0.358", "ap = nan", "finite"),
        ("ap = 0.358", "ap = 35.8", r"published\[0\]\.ap: expected float <= 1"),
        ("ap = 0.358", "ap = 0.358\nsize = 99999999999999999999", "64 bits"),
        ("ap = 0.358", "ap = 0.358\nsha256 = 'abc'", r"published\[0\]\.sha256: expected"),
        ('"rt.pth"', '".."', r"published\[0\]\.file: expected"),
        ('"rt.pth"', '"a\\u0000b"', r"published\[0\]\.file: expected"),
        ("[[published]]", "published = 3\n[[bundled]]", "published"),
        ('"small.safetensors"', '"../small.safetensors"', r"bundled\[0\]\.file: expected"),
    ],
)
def test_wrong_manifests(folder: Path, old: str, new: str, complaint: str) -> None:
    path = folder / "manifest.toml"
    assert old in MANIFEST
    path.write_text(MANIFEST.replace(old, new))
    with pytest.raises(InputError, match=complaint):
        load_manifest(path)


def test_missing_manifest(tmp_path: Path) -> None:
    error = run("list", "--manifest", tmp_path / "none.toml").exception
    assert isinstance(error, InputError)
    assert "no such file: run in the project's folder" in str(error)


def test_card_holds_what_it_must(tmp_path: Path) -> None:
    path = save_small(tmp_path / "small.safetensors")
    card = write_card(path, tmp_path / "card.json", ap={"val": 0.71234567}, minutes=12.345)
    assert json.loads((tmp_path / "card.json").read_text()) == card
    assert card == {
        "command": "nmsfree train --data d",
        "seed": 7,
        "minutes": 12.3,
        "machine": "a test",
        "AP": {"val": 0.7123},
        "gmac": pytest.approx(0.4392, abs=1e-4),
        "sha256": sha256(path),
    }
    other = write_card(path, tmp_path / "card.json", ap={}, minutes=0, machine="2 × Zen 5")
    assert other["machine"] == "2 × Zen 5"


def test_card_needs_a_checkpoint_that_says_how_it_was_made(tmp_path: Path) -> None:
    path = save_small(tmp_path / "small.safetensors", seed="1")
    with pytest.raises(CheckpointError, match="does not say its command, machine"):
        write_card(path, tmp_path / "card.json", ap={}, minutes=1)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not written by nmsfree"):
        write_card(path, tmp_path / "card.json", ap={}, minutes=1)
    assert not (tmp_path / "card.json").exists()


def test_minutes_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    with pytest.raises(InputError, match="give --minutes"):
        minutes_of_run(file)
    (tmp_path / "metrics.jsonl").write_text(
        '{"epoch": 1, "seconds": 90}\n{"epoch": 2, "seconds": 30.0}\n'
    )
    assert minutes_of_run(file) == 2
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "second": 90}\n')
    with pytest.raises(InputError, match="give --minutes"):
        minutes_of_run(file)


def test_card_command_measures_both_splits(digits: Path, tmp_path: Path) -> None:
    path = save_small(tmp_path / "small.safetensors")
    result = run("card", path, "--data", digits, "--minutes", 2, "--machine", "here")
    assert result.exit_code == 0, result.output
    card = json.loads((tmp_path / "small.json").read_text())
    assert set(card["AP"]) == {"val", "overlap"}
    assert all(0 <= value <= 1 for value in card["AP"].values())
    assert (card["minutes"], card["machine"], card["sha256"]) == (2.0, "here", sha256(path))
    assert "AP val" in result.stderr


def test_card_command_fails_early(digits: Path, tmp_path: Path) -> None:
    path = save_small(tmp_path / "small.safetensors")
    assert isinstance(run("card", path, "--data", digits).exception, InputError)
    missing = run("card", path, "--data", tmp_path / "none", "--minutes", 1).exception
    assert isinstance(missing, DataError)
    loaded = load_checkpoint(path)
    save_checkpoint(replace(loaded, class_names=tuple("abcdefghij")), path)
    other = run("card", path, "--data", digits, "--minutes", 1).exception
    assert isinstance(other, DataError) and "classes differ" in str(other)
    assert not (tmp_path / "small.json").exists()


# The weights that come with the project are what their cards say


OURS = load_manifest(WEIGHTS / "manifest.toml")
NANO = ("fcos_rt_nano", "fcos_o2o_nano", "fcos_e2e_nano")
BUNDLED = pytest.mark.parametrize("weight", OURS.bundled, ids=lambda w: w.name)
MB = 1_000_000


def test_manifest_lists_all_variants() -> None:
    assert tuple(w.name for w in OURS.bundled) == NANO
    published = {w.name: (w.file, w.ap, w.ap50) for w in OURS.published}
    assert published == {
        "fcos_rt_r18_3x": ("fcos_rt_r18_3x_coco.pth", 0.358, 0.533),
        "fcos_o2o_r18_3x": ("fcos_rt_r18_3x_top1_coco.pth", 0.309, 0.488),
        "fcos_e2e_r18_3x": ("fcos_e2e_r18_3x_coco.pth", 0.341, 0.506),
    }
    release = "https://github.com/yjh0410/E2E_FCOS/releases/download/fcos_weight/"
    assert all(w.url == release + w.file for w in OURS.published)


@BUNDLED
def test_card_fits_the_file(weight: BundledWeight) -> None:
    path = OURS.folder / weight.file
    card = read_card(OURS.folder / weight.card)
    assert list(card) == ["command", "seed", "minutes", "machine", "AP", "gmac", "sha256"]
    assert card["sha256"] == sha256(path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.model == preset(weight.name, 10).model
    assert checkpoint.class_names == tuple("0123456789")
    assert card["gmac"] == pytest.approx(gmac(checkpoint.build(), checkpoint.input_size), abs=1e-4)
    assert card["command"] == checkpoint.provenance["command"]
    assert card["seed"] == int(checkpoint.provenance["seed"])
    assert card["minutes"] > 0 and card["machine"]
    assert set(card["AP"]) == {"val", "overlap"}
    assert all(0 < value < 1 for value in card["AP"].values())


def test_all_files_together_are_small() -> None:
    assert sum((OURS.folder / w.file).stat().st_size for w in OURS.bundled) <= 15 * MB


def test_every_bundled_file_is_in_the_manifest() -> None:
    found = {p.name for p in OURS.folder.glob("*.safetensors")}
    assert found == {w.file for w in OURS.bundled}
    assert {p.name for p in OURS.folder.glob("*.json")} == {w.card for w in OURS.bundled}
