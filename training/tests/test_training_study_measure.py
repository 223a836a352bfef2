"""The study's figures are those of `nmsfree eval`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nmsfree.datasets.formats.coco import load_coco
from nmsfree.detector import Detector
from nmsfree.evaluation.analysis import analyse
from nmsfree.evaluation.evaluate import evaluate, predict
from nmsfree.spec import NmsSpec
from nmsfree_training.config import preset
from nmsfree_training.model.detector import Fcos
from nmsfree_training.study.measure import measure
from nmsfree_training.study.results import NMS_GRID, grid_key
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nmsfree_training.weights.predict import TorchBackend, make_spec

WEIGHTS = Path(__file__).parents[2] / "weights" / "fcos_e2e_nano.safetensors"


@pytest.fixture(scope="module")
def measured(digits: Path) -> dict[str, Any]:
    return measure(WEIGHTS, digits)


def test_both_heads_have_the_figures_of_eval(measured: dict[str, Any], digits: Path) -> None:
    checkpoint = load_checkpoint(WEIGHTS)
    assert list(measured) == ["val", "overlap"]
    for split, found in measured.items():
        dataset = load_coco(digits, split)
        assert found["images"] == len(dataset)
        for head in ("o2m", "o2o"):
            spec = make_spec(checkpoint, head)
            with Detector(TorchBackend(checkpoint.build(), spec)) as detector:
                expected = analyse(dataset, predict(detector, dataset), spec)
            own = found[head]
            assert found["objects"] == expected.objects
            assert own["AP"] == pytest.approx(expected.metrics.ap, abs=1e-6)
            at_06 = expected.metrics.ap if head == "o2m" else expected.ap_with_nms
            assert own["nms"]["0.60"] == pytest.approx(at_06, abs=1e-6)
            names = ("F1", "F1_with_nms", "AP50", "duplicates_per_image_at_floor")
            names += ("duplicates_per_image", "wrong_duplicates_per_image")
            values = expected.to_json()
            assert {n: own[n] for n in names} == pytest.approx({n: values[n] for n in names})
            assert own["threshold"] == pytest.approx(expected.best.threshold, abs=1e-6)


def test_the_grid_is_what_eval_says_at_every_threshold(
    measured: dict[str, Any], digits: Path
) -> None:
    checkpoint, dataset = load_checkpoint(WEIGHTS), load_coco(digits, "overlap")
    nms = measured["overlap"]["o2m"]["nms"]
    assert list(nms) == [grid_key(iou) for iou in NMS_GRID]
    assert len(set(nms.values())) > 3  # the threshold matters where objects overlap
    for iou in (0.5, 0.8):
        spec = replace(make_spec(checkpoint, "o2m"), nms=NmsSpec(iou=iou))
        with Detector(TorchBackend(checkpoint.build(), spec)) as detector:
            assert nms[grid_key(iou)] == pytest.approx(evaluate(detector, dataset).ap, abs=1e-6)


def test_a_network_of_one_head_that_finds_nothing(digits: Path, tmp_path: Path) -> None:
    chosen, dataset = preset("fcos_rt_nano", 10), load_coco(digits, "val")
    torch.manual_seed(0)
    state = Fcos(chosen.model).state_dict()
    classes = (dataset.class_names, dataset.category_ids)
    save_checkpoint(
        Checkpoint(chosen.model, chosen.input_size, *classes, state), tmp_path / "x.safetensors"
    )
    found = measure(tmp_path / "x.safetensors", digits, ("val",))["val"]
    assert found.keys() == {"images", "objects", "o2m"}
    assert found["o2m"]["AP"] == 0.0 and set(found["o2m"]["nms"].values()) == {0.0}
