"""Small checkpoints with weights that find something, pictures, and what the tests here share."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from export_traced import shared_folder, traced_once
from onnx import ModelProto, NodeProto
from torch import nn
from typer.testing import CliRunner

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree_export.cli.convert import convert
from nmsfree_export.cli.export import export, verify
from nmsfree_export.export import ExportOptions, make_export_spec
from nmsfree_export.graph.contract import describe
from nmsfree_export.graph.half import to_half
from nmsfree_export.graph.write import build_onnx, deploy_module
from nmsfree_training.config import ModelConfig, fcos_e2e_nano, fcos_e2e_r18_3x
from nmsfree_training.model.detector import Fcos
from nmsfree_training.model.head import Head
from nmsfree_training.model.norms import normalize
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint
from nmsfree_training.weights.published import random_state_dict

CLASSES = tuple("abcdefg")
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
def nano(weights: Path) -> Checkpoint:
    """The trained NMS-free nano detector, with batch norm and a duplicate filter."""
    return load_checkpoint(weights / "fcos_e2e_nano.safetensors")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The published network with random weights, 512 × 736."""
    path = tmp_path_factory.mktemp("published") / "fcos_e2e_r18_3x_coco.pth"
    torch.save({"model": random_state_dict(Fcos(fcos_e2e_r18_3x().model), seed=11)}, path)
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
    app = typer.Typer()
    app.command("export")(export)
    app.command("verify")(verify)
    app.command("convert")(convert)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="session")
def trace() -> Callable[..., ModelProto]:
    """Return what exports a checkpoint with options, without a certificate or parity."""

    def traced(checkpoint: Checkpoint, **options: Any) -> ModelProto:
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
def first() -> Callable[..., NodeProto]:
    """Return what finds the first node whose fields have these values."""
    return lambda model, **fields: next(
        node for node in model.graph.node if all(getattr(node, k) == v for k, v in fields.items())
    )


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """Two heads without a filter, random weights with spread-out scores, 7 classes, 96 × 128."""
    plain = dataclasses.replace(fcos_e2e_nano(len(CLASSES)).model, dedup_iou=0.0)
    return _make_checkpoint(plain, (96, 128))


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[[ModelConfig, tuple[int, int]], Checkpoint]:
    """Return a function that makes such a checkpoint of another network, and of another size."""
    return _make_checkpoint


def _make_checkpoint(config: ModelConfig, input_size: tuple[int, int]) -> Checkpoint:
    torch.manual_seed(5)
    network = Fcos(config)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    for head in network.heads.values():
        for block in [*head.cls_heads, *head.reg_heads]:
            nn.init.kaiming_normal_(block.conv.weight)
        nn.init.constant_(head.cls_pred.bias, -2.0)
        _randomise_filter(head)
    _spread(network)
    ids = tuple(range(1, 2 * len(CLASSES), 2))
    return Checkpoint(config, input_size, CLASSES, ids, network.state_dict(), {"seed": "5"})


@torch.no_grad()
def _randomise_filter(head: Head) -> None:
    """Weights as after training: elements that no level uses stay zero."""
    if head.feature_filter is not None:
        nn.init.normal_(head.feature_filter.mix.weight, std=0.05)
        nn.init.normal_(head.feature_filter.mix.bias, std=0.1)
    if head.duplicate_filter is not None:
        assert head.reg_pred.bias is not None
        head.reg_pred.bias[2:] = 2.0  # boxes of some 7 cells, as only such agree with a neighbour's
        for kind, weight in head.duplicate_filter.weights.items():
            nn.init.uniform_(weight, 0.2, 0.5)
            if kind != "same":
                weight[0 if kind == "finer" else -1] = 0.0
    if head.logit_filter is not None:
        maps = [torch.randn(2, 3, s, s) for s in (8, 4, 2)]
        for weight in head.logit_filter.parameters():
            nn.init.uniform_(weight, 0.2, 0.9)
        with torch.enable_grad():
            sum(z.square().sum() for z in head.logit_filter(maps)).backward()
        for weight in head.logit_filter.parameters():
            weight *= weight.grad != 0
            weight.grad = None


@torch.no_grad()
def _spread(network: Fcos) -> None:
    """Scale the predictions so that logits and deltas spread as a trained network's do."""
    images = normalize(torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8))
    features = network.eval().features(images)
    for head in network.heads.values():
        levels = head(features)
        for conv, index, spread in ((head.cls_pred, 0, 2.0), (head.reg_pred, 1, 0.7)):
            conv.weight *= spread / torch.cat([level[index].flatten() for level in levels]).std()
