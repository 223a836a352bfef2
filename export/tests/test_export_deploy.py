"""The deployed graph against the network's own code: folding, choosing, and the filters.

The filters compare levels, so the graph must see all at once.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto
from torch import nn

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.errors import GateError
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_export.graph.deploy import (
    DeployNetwork,
    fold_backbone,
    fold_head,
    folded_conv,
    top_pairs,
)
from nmsfree_export.graph.write import OPSET, build_onnx, deploy_module, deployed_tensors
from nmsfree_export.verify.certificate import certify
from nmsfree_export.verify.compare import Side, open_pair
from nmsfree_export.verify.parity import compare, load_images
from nmsfree_training.config import HeadNorm, ModelConfig, preset
from nmsfree_training.model.backbones.lite0 import Lite0
from nmsfree_training.model.backbones.resnet import ResNet
from nmsfree_training.model.detector import Fcos
from nmsfree_training.model.norms import FrozenBatchNorm2d, normalize
from nmsfree_training.weights.checkpoint import Checkpoint, save_checkpoint
from nmsfree_training.weights.predict import TorchBackend, make_spec

ODD = (224, 160)
SHAPES = [(28, 20), (14, 10), (7, 5)]  # of its levels
Make = Callable[..., Checkpoint]

Kind = Literal["logits", "features", "duplicates"]
KINDS = pytest.mark.parametrize("kind", ["logits", "features", "duplicates"])
NORMS = pytest.mark.parametrize("norm", ["batch_per_level", "batch", "group"])


def randomise_norms(module: nn.Module) -> None:
    """Give every batch norm statistics that are not the identity."""
    generator = torch.Generator().manual_seed(3)
    for norm in norms(module):
        for value, low in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_var, 0.5)):
            value.data = low + torch.rand(value.shape, generator=generator)
        norm.running_mean = torch.randn(norm.running_mean.shape, generator=generator)


def norms(module: nn.Module) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_folded_convolution_equals_convolution_and_norm(bias: bool, norm: type) -> None:
    torch.manual_seed(0)
    pair = nn.Sequential(nn.Conv2d(5, 7, 3, 2, 1, bias=bias), norm(7)).eval()
    randomise_norms(pair)
    x = torch.randn(2, 5, 11, 13)
    assert torch.allclose(folded_conv(pair[0], pair[1])(x), pair(x), atol=1e-5)


@pytest.mark.parametrize("depth", [18, 50, None])
@pytest.mark.parametrize("frozen", [False, True])
def test_folded_backbone_has_no_norm_and_gives_the_same(depth: int | None, frozen: bool) -> None:
    """Of ResNets, and of EfficientNet-Lite0."""
    torch.manual_seed(0)
    backbone = (ResNet(depth, 8, frozen, 0) if depth else Lite0(frozen, 0)).eval()
    randomise_norms(backbone)
    folded = fold_backbone(backbone)
    assert norms(backbone) and not norms(folded)
    x = torch.randn(1, 3, 64, 96)
    for a, b in zip(folded(x), backbone(x), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize(("norm", "copies"), [("batch_per_level", 3), ("batch", 1), ("group", 1)])
def test_folded_head_gives_the_same_on_every_level(norm: HeadNorm, copies: int) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(preset("fcos_e2e_nano", 7).model, head_norm=norm, dedup_iou=0.0)
    head = Fcos(config).heads["o2o"].eval()
    randomise_norms(head)
    levels = fold_head(head, [(8, 8), (4, 4), (2, 2)])
    assert len({id(level) for level in levels}) == copies
    assert not any(norms(level) for level in levels)
    assert len({id(level.cls_pred) for level in levels}) == 1  # stored once
    maps = tuple(torch.randn(2, 64, s, s) for s in (8, 4, 2))
    for level, x, expected in zip(levels, maps, head(maps), strict=True):
        for a, b in zip(level((x,))[0], expected, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("classes", "cells", "k"), [(1, 50, 20), (80, 300, 100), (7, 20, 20)])
def test_two_stage_top_k_is_the_full_sort(classes: int, cells: int, k: int) -> None:
    logits = torch.randn(3, classes, cells, generator=torch.Generator().manual_seed(classes))
    best, cell, label = top_pairs(logits, k)
    assert torch.equal(best, logits.flatten(1).sort(descending=True).values[:, :k])
    for n in range(3):
        assert torch.equal(logits[n, label[n], cell[n]], best[n])
        assert len(set(zip(cell[n].tolist(), label[n].tolist(), strict=True))) == k


def test_nms_free_module_gives_what_the_network_gives(checkpoint: Checkpoint) -> None:
    network = checkpoint.build()
    spec = make_spec(checkpoint, "o2o", top_k=50)
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 128, 3), dtype=np.uint8)
    expected = TorchBackend(network, spec).run(images)
    with torch.no_grad():
        count, boxes, scores, classes = deploy_module(network, spec)(torch.from_numpy(images))
    assert np.array_equal(count.numpy(), expected.num_detections)
    assert np.allclose(scores.numpy(), expected.detection_scores, atol=1e-5)
    assert np.allclose(boxes.numpy(), expected.detection_boxes, atol=1e-2)
    assert np.array_equal(classes.numpy(), expected.detection_classes)
    assert 0 < expected.num_detections.min() <= 50
    assert (boxes >= 0).all() and (boxes <= torch.tensor([128, 96, 128, 96])).all()
    assert (scores.diff(dim=1) <= 0).all()
    assert classes.dtype == torch.int32


def with_filter(model: ModelConfig, kind: Kind) -> ModelConfig:
    if kind == "duplicates":
        return dataclasses.replace(model, dedup_iou=0.8)
    return dataclasses.replace(model, max_filter=kind)


def make(make_checkpoint: Make, kind: Kind, norm: HeadNorm = "batch_per_level") -> Checkpoint:
    model = dataclasses.replace(preset("fcos_e2e_nano", 7).model, head_norm=norm, dedup_iou=0.0)
    return make_checkpoint(with_filter(model, kind), ODD)


def without_filter(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights, and zero as those of the filter: it changes nothing."""
    state = {
        key: torch.zeros_like(value) if "_filter." in key else value
        for key, value in checkpoint.state.items()
    }
    return dataclasses.replace(checkpoint, state=state)


@NORMS
@KINDS
def test_deployed_maps_are_those_of_the_network(
    make_checkpoint: Make, kind: Kind, norm: HeadNorm
) -> None:
    made = make(make_checkpoint, kind, norm)
    images = torch.randint(0, 256, (2, *ODD, 3), dtype=torch.uint8)
    for checkpoint in (made, without_filter(made)):
        network = checkpoint.build()
        with torch.no_grad():
            maps = DeployNetwork(network, "o2o", SHAPES)(images)
            want = network(normalize(images), heads=("o2o",))["o2o"]
        assert maps.sizes == tuple(h * w for h, w in SHAPES)
        logits = maps.logits.transpose(1, 2)
        # Where two cells are nearly equal the duplicate filter magnifies a difference of 1e-5.
        torch.testing.assert_close(logits, want.logits, rtol=1e-4, atol=4e-4)
    # The last one had no effect: were the first alike, nothing would have been tested.
    with torch.no_grad():
        filtered = made.build()(normalize(images), heads=("o2o",))["o2o"].logits
    assert (filtered - want.logits).abs().max() > 0.1


@pytest.mark.parametrize(("norm", "copies"), [("batch_per_level", 3), ("batch", 1)])
@KINDS
def test_the_filter_is_stored_once(
    make_checkpoint: Make, kind: Kind, norm: HeadNorm, copies: int
) -> None:
    network = make(make_checkpoint, kind, norm).build()
    levels = fold_head(network.heads["o2o"], SHAPES)  # type: ignore[arg-type]
    assert len({id(level) for level in levels}) == copies
    names = ("logit_filter", "feature_filter", "duplicate_filter", "cls_pred", "reg_pred")
    assert all(len({id(getattr(level, name)) for level in levels}) == 1 for name in names)
    keys = deployed_tensors(DeployNetwork(network, "o2o", SHAPES))
    size = {"logits": 3, "features": 2, "duplicates": 4}[kind]
    assert sum("_filter." in key for key in keys) == size


@pytest.mark.parametrize(
    ("kind", "batch", "norm"),
    [
        ("logits", 1, "batch_per_level"),
        ("features", 3, "group"),
        ("duplicates", None, "batch_per_level"),
    ],
)
def test_exported_file_agrees_with_the_network(
    make_checkpoint: Make, tmp_path: Path, kind: Kind, batch: int | None, norm: HeadNorm
) -> None:
    made, out = make(make_checkpoint, kind, norm), tmp_path / "model.onnx"
    report = export_onnx(made, out, ExportOptions(batch=batch))
    assert report.parity.passed and report.parity.rows == 500
    # Where two cells are nearly equal the duplicate filter magnifies their rounding.
    assert report.parity.score_difference < (1e-4 if kind == "duplicates" else 1e-5)
    nodes = onnx.load(out).graph.node
    pools = sum(node.op_type == "MaxPool" for node in nodes)
    assert pools == 1 + (1 if kind == "duplicates" else 3 + 2)  # the stem has one
    assert not {node.domain for node in nodes} - {""}
    # The weights of the filter are at work in the file: without them it says something else.
    images, spec = load_images(None)[:2], dataclasses.replace(report.spec, batch=None)
    plain = TorchBackend(without_filter(made).build(), spec)
    assert not compare(plain, OnnxRuntimeBackend(out), images).passed
    weights = tmp_path / "model.safetensors"
    save_checkpoint(made, weights)
    with open_pair(Side(weights), Side(out)) as pair:
        assert compare(*pair, images).passed


def test_lite0_is_exported(make_checkpoint: Make, tmp_path: Path) -> None:
    """Depthwise convolutions, ReLU6, and padding that is not the same on both sides."""
    made = make_checkpoint(preset("fcos_o2o_lite0", 7).model, (96, 160))
    assert export_onnx(made, tmp_path / "model.onnx").parity.passed


def test_the_other_head_has_no_filter(make_checkpoint: Make, tmp_path: Path) -> None:
    made, weights = make(make_checkpoint, "duplicates"), tmp_path / "model.safetensors"
    save_checkpoint(made, weights)
    out = tmp_path / "o2m.onnx"
    assert export_onnx(made, out, ExportOptions(head="o2m")).parity.passed
    with open_pair(Side(weights), Side(out)) as pair:
        assert compare(*pair, load_images(None)[:2]).passed
    kinds = Counter(node.op_type for node in onnx.load(out).graph.node)
    assert kinds["MaxPool"] == 1 and not kinds["Tanh"]


@pytest.fixture(scope="module")
def built(make_checkpoint: Make) -> tuple[ModelProto, Checkpoint]:
    made = make(make_checkpoint, "logits")
    spec = make_spec(made, "o2o", batch=1)
    return build_onnx(deploy_module(made.build(), spec), spec), made


@pytest.mark.parametrize("kind", ["same", "finer", "coarser"])
def test_certificate_misses_a_weight_of_the_filter(
    built: tuple[ModelProto, Checkpoint], kind: str
) -> None:
    """A file made with another weight of one level is refused, though that is one number."""
    model, made = built
    spec = make_spec(made, "o2o", batch=1)
    certify(model, spec, deployed_tensors(deploy_module(made.build(), spec)), OPSET)
    key = f"heads.o2o.logit_filter.weights.{kind}"
    changed = made.state[key].clone()
    changed[1] += 0.25  # the middle level has neighbours of every kind
    other = dataclasses.replace(made, state={**made.state, key: changed}).build()
    with pytest.raises(GateError, match=rf"1 tensors are missing.*weights\.{kind}"):
        certify(model, spec, deployed_tensors(deploy_module(other, spec)), OPSET)


def test_certificate_refuses_what_levels_share_stored_twice(
    built: tuple[ModelProto, Checkpoint],
) -> None:
    model, made = ModelProto(), built[1]
    model.CopyFrom(built[0])
    predictor = made.state["heads.o2o.cls_pred.weight"].numpy().tobytes()
    shared = next(t for t in model.graph.initializer if t.raw_data == predictor)
    again = model.graph.initializer.add()
    again.CopyFrom(shared)
    again.name = "again"
    users = [node for node in model.graph.node if shared.name in node.input]
    users[-1].input[list(users[-1].input).index(shared.name)] = "again"
    spec = make_spec(made, "o2o", batch=1)
    with pytest.raises(GateError, match="'again' is stored twice"):
        certify(model, spec, deployed_tensors(deploy_module(made.build(), spec)), OPSET)
