"""Tiny networks and pictures that several tests of the sub-commands share."""

# What brings PyTorch and its exporter is imported where it is used: `make quick` needs neither.
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
from export_traced import shared_folder, traced_once
from typer.testing import CliRunner

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree_benchmarks.cli import app
from nmsfree_benchmarks.harness import machine
from nmsfree_benchmarks.harness.records import Results, read
from nmsfree_benchmarks.harness.weights import Weights, open_weights
from nmsfree_benchmarks.questions import throughput
from nmsfree_training.config import ModelConfig, preset

WEIGHTS = Path(__file__).parents[2] / "weights"
SIDE = 64


@pytest.fixture(scope="session", autouse=True)
def _impatient() -> None:
    """What a run waits for by the clock is short: its look for other work, its windows."""
    machine.busy_cores.__defaults__ = (0.02,)
    throughput.QUICK_WINDOW = 0.02


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[None]:
    """Export without a new process, and trace no network twice."""
    from nmsfree_benchmarks.harness import exports

    folder = shared_folder(pytestconfig, tmp_path_factory, "traced")
    with traced_once(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(exports, "exporter", lambda: nullcontext(exports.export_here))
        yield


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config, here: None) -> Path:
    """A folder that outlives the run: exported files are named after all that they are made of."""
    return shared_folder(pytestconfig, tmp_path_factory, "bench-work")


@pytest.fixture(scope="session")
def small() -> Callable[[str], ModelConfig]:
    """The network of a preset for ten classes, soon traced: a short head, no duplicate filter."""
    return lambda name: replace(preset(name, 10).model, head_convs=1, dedup_iou=0.0)


def write_folder(
    root: Path, work: Path, small: Callable[[str], ModelConfig], *names: str, train: int = 0
) -> Path:
    """Random `weights` of networks for 64 × 64 pixels, `data`: a digits set, and `work`."""
    from nmsfree_training.model.detector import Fcos
    from nmsfree_training.weights.checkpoint import Checkpoint, save_checkpoint
    from nmsfree_training.weights.published import from_published_keys, random_state_dict

    (root / "work").symlink_to(work, target_is_directory=True)
    for name in names:
        config = small(name)
        network = Fcos(config)
        random = from_published_keys(config.heads, random_state_dict(network, seed=0))
        state = network.state_dict() | random
        classes, ids = tuple("0123456789"), tuple(range(1, 11))
        checkpoint = Checkpoint(config, (SIDE, SIDE), classes, ids, state)
        save_checkpoint(checkpoint, root / "weights" / f"{name}.safetensors")
    write_digits(root / "data", train=train, val=4, overlap=0)
    return root


@pytest.fixture(scope="session")
def tiny(
    tmp_path_factory: pytest.TempPathFactory, work: Path, small: Callable[[str], ModelConfig]
) -> Path:
    """A folder of one network without NMS."""
    return write_folder(tmp_path_factory.mktemp("tiny"), work, small, "fcos_e2e_nano", train=3)


@pytest.fixture(scope="session")
def pair(
    tmp_path_factory: pytest.TempPathFactory, work: Path, small: Callable[[str], ModelConfig]
) -> Path:
    """A folder of a network with NMS and one without."""
    names = ("fcos_rt_nano", "fcos_e2e_nano")
    return write_folder(tmp_path_factory.mktemp("pair"), work, small, *names)


@pytest.fixture(scope="session")
def exported(work: Path) -> Callable[..., Path]:
    """What returns the exported file of weights, which are opened or the path of a checkpoint."""
    from nmsfree_benchmarks.harness import exports
    from nmsfree_benchmarks.harness.engines import ENGINES
    from nmsfree_benchmarks.harness.subject import Subject

    def file(weights: Weights | Path, **how: Any) -> Path:
        if isinstance(weights, Path):
            weights = open_weights(weights, "none")
        subject = Subject(weights, ENGINES["onnxruntime"], 1, **how)
        assert exports.export_all([subject], work, None, lambda done, total: None) == {}
        return subject.file

    return file


@pytest.fixture(scope="session")
def ask() -> Callable[..., dict[str, Any]]:
    """What runs `nmsfree bench` with --json=- and returns that; threads are as before then."""
    import torch

    def run(*words: str) -> dict[str, Any]:
        threads, of_opencv = torch.get_num_threads(), cv2.getNumThreads()
        result = CliRunner().invoke(app, [*words, "--json=-"], catch_exceptions=False)
        torch.set_num_threads(threads)
        cv2.setNumThreads(of_opencv)
        assert result.exit_code == 0, result.output
        content: dict[str, Any] = json.loads(result.stdout)
        return content

    return run


@pytest.fixture(scope="session")
def left() -> Callable[[Path, dict[str, Any]], tuple[Results, str]]:
    """What checks the files that a run leaves in a folder; returns its results and Markdown."""

    def check(folder: Path, content: dict[str, Any]) -> tuple[Results, str]:
        kind = content["kind"]
        stem = content["stamp"] + ("" if kind == "table" else f"-{kind}")
        names = [f"{stem}.{suffix}" for suffix in ("json", "md", "png")]
        assert sorted(path.name for path in folder.iterdir()) == names
        data, text, png = (folder / name for name in names)
        results = read(data)  # raises where the schema does not hold
        assert results.to_json() == content
        picture = cv2.imread(str(png))
        assert picture is not None and min(picture.shape[:2]) > 300 and picture.std() > 1
        said = text.read_text(encoding="utf-8")
        assert f"]({png.name})" in said
        assert str(folder.parent) not in said + data.read_text(encoding="utf-8")
        return results, said

    return check


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
