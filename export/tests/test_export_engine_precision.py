"""Engines of this project's own FP16 and INT8 files, built for SM 8.9 with no GPU."""

from pathlib import Path

import pytest
import torch

from nmsfree import RawDetections
from nmsfree.datasets.digits.scenes import write_digits
from nmsfree_export.candidate import Candidate, Workshop
from nmsfree_export.graph.write import content_of
from nmsfree_export.options import ExportOptions, Int8Options, make_export_spec
from nmsfree_export.quantize import load_calibration
from nmsfree_export.tensorrt.build import BuildReport, build_engine
from nmsfree_training.config import fcos_e2e_r18_3x
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint
from nmsfree_training.weights.published import standin_state_dict

pytest.importorskip("tensorrt_rtx")

WEIGHTS = Path(__file__).parents[2] / "weights"
PUBLISHED = "fcos_e2e_r18_3x"


@pytest.fixture(scope="module", params=["fcos_e2e_nano", PUBLISHED])
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """Batch norm and a rival filter; and the published network with stand-in weights."""
    if request.param != PUBLISHED:
        return load_checkpoint(WEIGHTS / f"{request.param}.safetensors")
    path = tmp_path_factory.mktemp("published") / f"{PUBLISHED}_coco.pth"
    torch.save({"model": standin_state_dict(Fcos(fcos_e2e_r18_3x().model), seed=11)}, path)
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder, train=2, val=1, crowd=0)
    return folder


def build(candidate: Candidate, folder: Path) -> BuildReport:
    onnx = folder / "model.onnx"
    onnx.write_bytes(content_of(candidate.model, candidate.spec))
    return build_engine(onnx, folder / "model.engine")


def check(report: BuildReport, checkpoint: Checkpoint) -> None:
    height, width = checkpoint.input_size
    assert report.sidecar.targets == (89,)
    assert not report.sidecar.tf32
    assert [str(t) for t in report.inputs] == [f"images uint8 [1, {height}, {width}, 3]"]
    assert tuple(t.name for t in report.outputs) == RawDetections._fields
    assert {t.dtype for t in report.outputs} == {"int32", "float32"}


def test_fp16(checkpoint: Checkpoint, tmp_path: Path) -> None:
    spec = make_export_spec(checkpoint, ExportOptions(precision="fp16"))
    report = build(Workshop(checkpoint.build(), spec, None, tmp_path, print).make(), tmp_path)
    check(report, checkpoint)
    assert report.sidecar.precision == "fp16"
    assert report.sidecar.spec.precision == "fp16"
    if checkpoint.model.name == PUBLISHED:
        assert report.size == pytest.approx(38e6, rel=0.1)  # half of FP32's 74 MB


def test_int8_for_tensorrt(checkpoint: Checkpoint, digits: Path, tmp_path: Path) -> None:
    int8 = Int8Options("tensorrt", digits)
    spec = make_export_spec(checkpoint, ExportOptions(precision="int8", int8=int8))
    calibration = load_calibration(digits, "train", 2, spec, None)
    shop = Workshop(checkpoint.build(), spec, calibration, tmp_path, print)
    report = build(shop.make(), tmp_path)
    check(report, checkpoint)
    assert report.sidecar.precision == "int8"
    assert report.sidecar.spec.made_for == "tensorrt"
