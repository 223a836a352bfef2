"""Tiny networks and pictures that several tests of the sub-commands share."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import cv2
import pytest
import torch

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree_benchmarks.harness import exports
from nmsfree_benchmarks.harness.engines import ENGINES
from nmsfree_benchmarks.harness.subject import Subject
from nmsfree_benchmarks.harness.weights import open_weights
from nmsfree_training.config import preset
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.checkpoint import Checkpoint, save_checkpoint
from nmsfree_training.weights.published import from_published_keys, random_state_dict


def write_standin(folder: Path, name: str, side: int) -> None:
    """Save a nano network for side × side pixels with stand-in weights, for ten classes."""
    chosen = preset(name, 10)
    network = Fcos(chosen.model)
    standin = from_published_keys(chosen.model.heads, random_state_dict(network, seed=0))
    names, ids = tuple("0123456789"), tuple(range(1, 11))
    # Filters stay at zero, as training leaves the parts of them that nothing uses.
    standin = {key: value for key, value in standin.items() if "_filter." not in key}
    state = network.state_dict() | standin
    checkpoint = Checkpoint(chosen.model, (side, side), names, ids, state)
    save_checkpoint(checkpoint, folder / f"{name}.safetensors")


@pytest.fixture(scope="session")
def work(pytestconfig: pytest.Config) -> Path:
    """A folder in pytest's cache: exported files are named after all that they are made of."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("bench-work")


@pytest.fixture(scope="session")
def exported() -> Callable[[Path, str], Path]:
    """What returns the FP32 file of a model, from a folder with its `weights` and `work`."""

    def file(folder: Path, model: str) -> Path:
        weights = open_weights(folder / "weights" / f"{model}.safetensors", "none")
        subject = Subject(weights, ENGINES["onnxruntime"], 1)
        assert exports.export_all([subject], folder / "work", None, lambda done, total: None) == {}
        return subject.file

    return file


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, work: Path) -> Path:
    """A folder with `weights` of one network for 64 × 64 pixels, `data`: a digits set, `work`."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "work").symlink_to(work, target_is_directory=True)
    write_standin(root / "weights", "fcos_e2e_nano", 64)
    write_digits(root / "data", train=3, val=4, overlap=0)
    return root


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Export without a new process, and give threads back after a command took its own."""
    threads, of_opencv = torch.get_num_threads(), cv2.getNumThreads()
    monkeypatch.setattr(exports, "exporter", lambda: nullcontext(exports.export_here))
    yield
    torch.set_num_threads(threads)
    cv2.setNumThreads(of_opencv)


@pytest.fixture
def options(tiny: Path, tmp_path: Path) -> list[str]:
    """Options of a quick command that runs on `tiny` and writes to `tmp_path / "out"`."""
    return [
        *(f"--{name}={tiny / name}" for name in ("weights", "data", "work")),
        f"--out={tmp_path / 'out'}",
        "--quick",
        "--seconds=0",
        "--threads=1",
    ]
