"""A checkpoint of the published layout, as its file is, at the published size."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_export.verify.compare import Side, open_pair
from nmsfree_export.verify.parity import compare, load_images
from nmsfree_training.config import fcos_e2e_r18_3x
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.checkpoint import load_checkpoint
from nmsfree_training.weights.published import standin_state_dict


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-in weights of another seed than the fixtures', in the published pickle."""
    path = tmp_path_factory.mktemp("published") / "fcos_e2e_r18_3x_coco.pth"
    state = standin_state_dict(Fcos(fcos_e2e_r18_3x().model), seed=7)
    args = argparse.Namespace(model="fcos_e2e_r18_3x", batch_size=16)
    torch.save({"model": state, "mAP": np.float64(0.341), "epoch": 36, "args": args}, path)
    return path


@pytest.mark.parametrize("head", ["o2o", "o2m"])
def test_published_checkpoint_exports_within_tolerance(
    published: Path, tmp_path: Path, head: str
) -> None:
    """512 × 736: score within 1e-4 and box within 0.05 px of the network's own code."""
    out = tmp_path / f"{head}.onnx"
    report = export_onnx(load_checkpoint(published), out, ExportOptions(head=head))
    assert (report.spec.height, report.spec.width) == (512, 736)
    assert report.parity.rows == 500
    assert report.parity.unmatched == 0
    assert report.parity.score_difference < 1e-4
    assert report.parity.box_difference < 0.05
    assert report.certificate.weight_bytes["backbone"] > 40e6
    checkpoint, file = open_pair(Side(published), Side(out))  # what `nmsfree verify` does
    assert compare(checkpoint, file, load_images(None)[3:4]).passed
    assert isinstance(file, OnnxRuntimeBackend)
    assert file.spec.class_names[0] == "person"
    assert file.spec.category_ids[-1] == 90
