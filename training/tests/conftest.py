"""What several training tests need: reference numbers, random networks, a tiny dataset."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.datasets.formats.coco import DetectionDataset, load_coco
from nmsfree_training.config import preset
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.published import (
    from_published_keys,
    random_state_dict,
    to_published_keys,
)

from .runs import Runs

FIXTURES = Path(__file__).parent / "fixtures"

Arrays = dict[str, NDArray[np.generic]]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Same random networks and images in every run, whichever tests are chosen."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _impatient() -> None:
    """A loader that was killed is noticed after a fifth of a second, not after five."""
    _MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.2,)


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Arrays]:
    """Return a function giving the numbers of the authors' implementation by file name."""

    @cache
    def read(name: str) -> Arrays:
        with np.load(FIXTURES / f"{name}.npz") as file:
            return dict(file)

    return read


@pytest.fixture(scope="session")
def published_shapes() -> dict[str, dict[str, list[int]]]:
    """Keys and shapes of the published checkpoints by model."""
    shapes: dict[str, dict[str, list[int]]] = json.loads(
        (FIXTURES / "state_dict_shapes.json").read_text(encoding="utf-8")
    )
    return shapes


@pytest.fixture(scope="session")
def random_network() -> Callable[[str], Fcos]:
    """Return a function giving a published network with random weights, for evaluation."""

    @cache
    def build(name: str) -> Fcos:
        network = Fcos(preset(name).model).eval()
        weights = random_state_dict(network)
        network.load_state_dict(from_published_keys(network.config.heads, weights))
        return network.requires_grad_(False)

    return build


@pytest.fixture(scope="session")
def thin_state() -> Callable[..., dict[str, Tensor]]:
    """Return a function giving a published state dict of zeros that takes next to no memory.

    Every tensor has its right shape but one stored number, so the files are a few kB.
    """

    def make(name: str = "fcos_rt_r18_3x", num_classes: int = 80) -> dict[str, Tensor]:
        config = preset(name, num_classes).model
        with torch.device("meta"):
            network = Fcos(config)
        keys = to_published_keys(config.heads, network.state_dict())
        return {key: torch.zeros(1).expand(t.shape) for key, t in keys.items()}

    return make


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits set of 12 training, 3 val and 2 overlap images."""
    folder = tmp_path_factory.mktemp("training") / "digits"
    write_digits(folder, train=12, val=3, overlap=2)
    return folder


@pytest.fixture(scope="session")
def train_set(digits: Path) -> DetectionDataset:
    return load_coco(digits, "train")


@pytest.fixture(scope="session")
def val_set(digits: Path) -> DetectionDataset:
    return load_coco(digits, "val")


@pytest.fixture
def runs(tmp_path: Path, train_set: DetectionDataset) -> Runs:
    return Runs(tmp_path, train_set)
