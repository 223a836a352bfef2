"""ImageNet weights with torchvision's names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nmsfree.errors import CheckpointError
from nmsfree_training.config import preset
from nmsfree_training.loop.start import load_imagenet
from nmsfree_training.model.backbone import ResNet
from nmsfree_training.model.detector import Fcos


def torchvision_state(depth: int = 18, width: int = 64) -> dict[str, Tensor]:
    """What torchvision's file of this ResNet holds: counters and a classifier come with it."""
    resnet = ResNet(depth, width, frozen_norm=False, frozen_stages=0)
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    state = resnet.state_dict()
    assert "bn1.num_batches_tracked" in state and "layer2.0.downsample.1.weight" in state
    features = resnet.channels[-1]
    return state | {"fc.weight": torch.zeros(1000, features), "fc.bias": torch.zeros(1000)}


def small(frozen_norm: bool) -> Fcos:
    name = "fcos_rt_r18_3x" if frozen_norm else "fcos_rt_nano"
    return Fcos(preset(name, 3).model)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("frozen_norm", [True, False])
def test_backbone_takes_the_weights(frozen_norm: bool, suffix: str, tmp_path: Path) -> None:
    network = small(frozen_norm)
    state = torchvision_state(width=network.config.width)
    path = tmp_path / f"resnet18{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    others = {k: v.clone() for k, v in network.state_dict().items() if "backbone" not in k}
    load_imagenet(network, path)
    for key, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    assert all(torch.equal(network.state_dict()[key], t) for key, t in others.items())


def test_files_without_counters(tmp_path: Path) -> None:
    """Old torchvision files have no num_batches_tracked."""
    state = {k: v for k, v in torchvision_state(width=16).items() if "num_batches" not in k}
    torch.save(state, tmp_path / "old.pth")
    network = small(frozen_norm=False)
    load_imagenet(network, tmp_path / "old.pth")
    assert torch.equal(network.backbone.conv1.weight, state["conv1.weight"])


def test_other_files_are_refused(tmp_path: Path) -> None:
    network, path = small(frozen_norm=False), tmp_path / "weights.pth"
    before = {k: v.clone() for k, v in network.state_dict().items()}

    def refusal(name: str = "weights.pth") -> str:
        with pytest.raises(CheckpointError) as caught:
            load_imagenet(network, tmp_path / name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file" in refusal()
    torch.save(torchvision_state(34, 16), path)
    assert "does not fit the ResNet-18 of width 16: 0 keys missing" in refusal()
    torch.save(torchvision_state(18, 64), path)
    assert "of another shape" in refusal()
    torch.save({"state_dict": torchvision_state(18, 16)}, path)
    assert "expected a state dict" in refusal()
    torch.save({3: torch.zeros(1)}, path)
    assert "expected a state dict" in refusal()
    odd = torchvision_state(18, 16)
    torch.save(odd | {"bn1.bias": torch.full((16,), float("inf"))}, path)
    assert "bn1.bias holds values that are not finite" in refusal()
    save_file({"a": torch.zeros(1)}, tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff" * 50)
    assert "truncated or another format" in refusal("cut.safetensors")
    torch.save([1], path)
    assert "holds list" in refusal()
    path.write_bytes(path.read_bytes()[:50])
    assert "truncated or another format" in refusal()
    (tmp_path / "weights.safetensors").write_bytes(b"123")
    assert "truncated or another format" in refusal("weights.safetensors")
    assert all(torch.equal(network.state_dict()[key], t) for key, t in before.items())
