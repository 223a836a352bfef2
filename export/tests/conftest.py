"""Small checkpoints with weights that find something, pictures, and what the tests here share."""

# What brings PyTorch and its exporter is imported where it is used: `make quick` needs neither.
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from export_traced import shared_folder, traced_once
from onnx import ModelProto
from typer.testing import CliRunner

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree_training.config import ModelConfig, preset

if TYPE_CHECKING:
    from nmsfree_training.weights.checkpoint import Checkpoint

TRAIN, VAL = 8, 12


@pytest.fixture(scope="session", autouse=True)
def _traced_once(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    with traced_once(shared_folder(pytestconfig, tmp_path_factory, "traced")):
        yield


@pytest.fixture(scope="session")
def weights() -> Path:
    """The folder of the bundled weights."""
    return Path(__file__).parents[2] / "weights"


@pytest.fixture(scope="session")
def nano(weights: Path) -> "Checkpoint":
    """The trained NMS-free nano detector, with batch norm and a duplicate filter."""
    from nmsfree_training.weights.checkpoint import load_checkpoint

    return load_checkpoint(weights / "fcos_e2e_nano.safetensors")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> "Checkpoint":
    """The published network with random weights, 512 × 736."""
    import torch

    from nmsfree_training.model.detector import Fcos
    from nmsfree_training.weights.checkpoint import load_checkpoint
    from nmsfree_training.weights.published import random_state_dict

    path = tmp_path_factory.mktemp("published") / "fcos_e2e_r18_3x_coco.pth"
    torch.save({"model": random_state_dict(Fcos(preset("fcos_e2e_r18_3x").model), seed=11)}, path)
    return load_checkpoint(path)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with 8 training and 12 validation pictures."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    write_digits(folder, train=TRAIN, val=VAL, overlap=0)
    return folder


@pytest.fixture(scope="session")
def run() -> Callable[..., Any]:
    """Return what runs `nmsfree export`, `convert` or `verify` with words."""
    from nmsfree_export.cli.convert import convert
    from nmsfree_export.cli.export import export, verify

    app = typer.Typer()
    app.command("export")(export)
    app.command("verify")(verify)
    app.command("convert")(convert)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="session")
def trace() -> Callable[..., ModelProto]:
    """Return what exports a checkpoint with options, without a certificate or parity."""
    from nmsfree_export.export import ExportOptions, make_export_spec
    from nmsfree_export.graph.contract import describe
    from nmsfree_export.graph.half import to_half
    from nmsfree_export.graph.write import build_onnx, deploy_module

    def traced(checkpoint: "Checkpoint", **options: Any) -> ModelProto:
        spec = make_export_spec(checkpoint, ExportOptions(**options))
        model = build_onnx(deploy_module(checkpoint.build(), spec), spec)
        if spec.precision == "fp16":
            model = to_half(model)
            describe(model, spec)
        return model

    return traced


@pytest.fixture(scope="session")
def copied() -> Callable[[ModelProto], ModelProto]:
    """Return what copies a model."""
    return lambda model: ModelProto.FromString(model.SerializeToString())


@pytest.fixture(scope="session")
def checkpoint() -> "Checkpoint":
    """Two heads without a filter, random weights with spread-out scores, 7 classes, 96 × 128."""
    from export_checkpoints import CLASSES, make

    plain = dataclasses.replace(preset("fcos_e2e_nano", len(CLASSES)).model, dedup_iou=0.0)
    return make(plain, (96, 128))


@pytest.fixture(scope="session")
def grouped() -> "Checkpoint":
    """The same with what the published network has, GroupNorm, and a duplicate filter of 0.8."""
    from export_checkpoints import CLASSES, make

    model = preset("fcos_e2e_nano", len(CLASSES)).model
    return make(dataclasses.replace(model, head_norm="group", dedup_iou=0.8), (96, 128))


@pytest.fixture(scope="session")
def make_checkpoint() -> "Callable[[ModelConfig, tuple[int, int]], Checkpoint]":
    """Return a function that makes such a checkpoint of another network, and of another size."""
    from export_checkpoints import make

    return make
