"""Short trainings of a small network on the digits, and what is compared of them."""

import json
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor
from typer.testing import CliRunner, Result

from nmsfree.datasets.formats.coco import DetectionDataset, Sample
from nmsfree.errors import CheckpointError
from nmsfree_training.cli.train import train
from nmsfree_training.config import HeadName, Preset, preset
from nmsfree_training.loop.run_config import RunConfig
from nmsfree_training.loop.state import load_state
from nmsfree_training.loop.trainer import Trainer
from nmsfree_training.model.detector import Fcos
from nmsfree_training.monitor.callbacks import Callback, EpochEvent, StepEvent
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

WEIGHTS = Path(__file__).parents[2] / "weights"
BATCH = 4  # three steps an epoch
State = dict[str, Tensor]


def tiny(name: str = "fcos_e2e_nano", **recipe: Any) -> Preset:
    """Two epochs; a nano preset is made smaller still."""
    chosen = preset(name, 10)
    values = {"epochs": 2, "batch_size": BATCH, "warmup_iterations": 2} | recipe
    chosen = replace(chosen, train=replace(chosen.train, **values))
    if not name.endswith("nano"):
        return chosen
    model = replace(chosen.model, width=8, channels=32, head_convs=1)
    return replace(chosen, model=model, input_size=(128, 128))


def run_train(*words: object, columns: int = 80) -> Result:
    """`nmsfree train`, in this process."""
    app = typer.Typer()
    app.command()(train)
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, list(map(str, words)))


class Listener(Callback):
    """Keeps what it is told; may cut the run after (epoch, step)."""

    def __init__(self, cut_at: tuple[int, int] | None = None) -> None:
        self.cut_at = cut_at
        self.steps: list[StepEvent] = []
        self.epochs: list[EpochEvent] = []
        self.told: list[str] = []

    def on_step(self, event: StepEvent) -> None:
        self.steps.append(event)
        if (event.epoch, event.step) == self.cut_at:
            raise KeyboardInterrupt

    def on_epoch(self, event: EpochEvent) -> None:
        self.epochs.append(event)

    def log(self, text: str) -> None:
        self.told.append(text)


@dataclass(frozen=True)
class Runs:
    """Makes trainings on `data`, in folders of `folder`."""

    folder: Path
    data: DetectionDataset

    @property
    def few(self) -> "Runs":
        """On four images: one step an epoch."""
        return replace(self, data=replace(self.data, samples=self.data.samples[:4]))

    def trainer(
        self,
        name: str | Path = "run",
        chosen: Preset | None = None,
        val: DetectionDataset | None = None,
        callback: Callback | None = None,
        heads: tuple[HeadName, ...] | None = None,
        **run: Any,
    ) -> Trainer:
        config = RunConfig(out=self.folder / name, **({"workers": 0} | run))
        return Trainer(chosen or tiny(), self.data, val, config, heads=heads, callback=callback)

    def train(self, *arguments: Any, **run: Any) -> Trainer:
        trainer = self.trainer(*arguments, **run)
        trainer.fit()
        return trainer

    def file(self, name: str = "last.safetensors", run: str = "run") -> Path:
        return self.folder / run / name

    def resume_and_compare(self, chosen: Preset) -> None:
        """The run "cut", gone on with, ends as one that was never interrupted."""
        self.train("whole", chosen)
        self.train("cut", chosen, resume=True)
        assert_same_runs(self.folder / "whole", self.folder / "cut")


def save_network(
    network: Fcos, path: Path, names: Sequence[str] = "0123456789", **said: str
) -> Path:
    """Write a checkpoint whose classes have the ids 1, 2, … and whose provenance is `said`."""
    ids = tuple(range(1, len(names) + 1))
    state = network.state_dict()
    save_checkpoint(Checkpoint(network.config, (256, 256), tuple(names), ids, state, said), path)
    return path


def weights(path: Path) -> State:
    return dict(load_checkpoint(path).state)


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def records(out: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timing = ("seconds", "images_per_second", "wait_share")
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


def assert_same_runs(one: Path, two: Path) -> None:
    for file in ("last.safetensors", "best.safetensors"):
        assert same(weights(one / file), weights(two / file)), file
    a, b = load_state(one)[0], load_state(two)[0]
    assert same(a.network, b.network)
    assert a.position["iteration"] == b.position["iteration"]
    assert records(one) == records(two)


def without_objects(sample: Sample) -> Sample:
    return replace(
        sample, boxes=sample.boxes[:0], labels=sample.labels[:0], iscrowd=sample.iscrowd[:0]
    )


def wait_for_step(process: "subprocess.Popen[str]", out: Path, done: int) -> None:
    """Until this many optimizer steps are in the state file."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(CheckpointError):  # not there yet, or being replaced at this very moment
            if load_state(out)[0].position["iteration"] >= done:
                return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"no step {done}: {process.communicate()[1]}")
