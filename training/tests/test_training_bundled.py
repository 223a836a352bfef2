"""The weights that come with the project are what their cards say."""

from pathlib import Path

import pytest

from nmsfree.machine import sha256
from nmsfree_training.config import preset
from nmsfree_training.weights.card import gmac
from nmsfree_training.weights.checkpoint import load_checkpoint
from nmsfree_training.weights.manifest import BundledWeight, load_manifest, read_card

MANIFEST = load_manifest(Path(__file__).parents[2] / "weights" / "manifest.toml")
NANO = ("fcos_rt_nano", "fcos_o2o_nano", "fcos_e2e_nano")
BUNDLED = pytest.mark.parametrize("weight", MANIFEST.bundled, ids=lambda w: w.name)
MB = 1_000_000


def test_manifest_lists_all_variants() -> None:
    assert tuple(w.name for w in MANIFEST.bundled) == NANO
    published = {w.name: (w.file, w.ap, w.ap50) for w in MANIFEST.published}
    assert published == {
        "fcos_rt_r18_3x": ("fcos_rt_r18_3x_coco.pth", 0.358, 0.533),
        "fcos_o2o_r18_3x": ("fcos_rt_r18_3x_top1_coco.pth", 0.309, 0.488),
        "fcos_e2e_r18_3x": ("fcos_e2e_r18_3x_coco.pth", 0.341, 0.506),
    }
    release = "https://github.com/yjh0410/E2E_FCOS/releases/download/fcos_weight/"
    assert all(w.url == release + w.file for w in MANIFEST.published)


@BUNDLED
def test_card_fits_the_file(weight: BundledWeight) -> None:
    path = MANIFEST.folder / weight.file
    card = read_card(MANIFEST.folder / weight.card)
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


@BUNDLED
def test_file_is_small(weight: BundledWeight) -> None:
    assert (MANIFEST.folder / weight.file).stat().st_size <= 5 * MB


def test_all_files_together_are_small() -> None:
    assert sum((MANIFEST.folder / w.file).stat().st_size for w in MANIFEST.bundled) <= 15 * MB


def test_every_bundled_file_is_in_the_manifest() -> None:
    found = {p.name for p in MANIFEST.folder.glob("*.safetensors")}
    assert found == {w.file for w in MANIFEST.bundled}
    assert {p.name for p in MANIFEST.folder.glob("*.json")} == {w.card for w in MANIFEST.bundled}
