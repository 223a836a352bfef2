"""A run of the study: one row with one seed, its command and its files."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nmsfree.errors import InputError
from nmsfree.text import shown
from nmsfree_training.study.results import read_result
from nmsfree_training.study.rows import Row

GPU_WORKERS = 4  # processes that load images for one run
INTERRUPTED = 130  # exit status of what was asked to stop, and saved


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        data: dataset folder with the splits train, val and crowd.
        runs: where run folders and logs go.
        results: where the measured figures go, one JSON file for each run.
        precision: of the network while it is trained. The recipe is the same in each.
        device: "cpu" or "cuda"; figures are measured on the processor in either case.
    """

    row: Row
    epochs: int
    seed: int
    data: Path
    runs: Path
    results: Path
    precision: str = "bf16"
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.row.name}_e{self.epochs}_s{self.seed}"

    @property
    def folder(self) -> Path:
        return self.runs / self.name

    @property
    def log(self) -> Path:
        return self.runs / f"{self.name}.log"

    @property
    def result_file(self) -> Path:
        return self.results / f"{self.name}.json"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The words after `nmsfree`. On a processor one thread each: two runs share two cores."""
        machine = ("--threads", "1", "--workers", "0")
        if self.device != "cpu":
            machine = ("--device", self.device, "--workers", str(GPU_WORKERS))
        return (
            *("train", "--data", str(self.data), "--model", self.row.model, *self.row.options),
            *("--epochs", str(self.epochs), "--seed", str(self.seed)),
            *("--precision", self.precision),
            *(*machine, "--eval-every", "0", "--no-tensorboard"),
            *("--out", str(self.folder)),
        )

    @property
    def command(self) -> str:
        """What a user would type for this run."""
        return shlex.join(["nmsfree", *self.arguments])

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, for a process of its own."""
        paths = {name: str(getattr(self, name)) for name in ("data", "runs", "results")}
        kind = {name: getattr(self, name) for name in ("epochs", "seed", "precision", "device")}
        return {"row": asdict(self.row), **kind, **paths}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Job":
        """The way back of `to_json`."""
        row = Row(**values["row"] | {"options": tuple(values["row"]["options"])})
        data, runs, results = (Path(values[name]) for name in ("data", "runs", "results"))
        kind = values["precision"], values["device"]
        return cls(row, values["epochs"], values["seed"], data, runs, results, *kind)


def plan(
    rows: Sequence[Row],
    epochs: int,
    seeds: Iterable[int],
    *,
    data: Path,
    runs: Path,
    results: Path,
    precision: str = "bf16",
    device: str = "cpu",
) -> list[Job]:
    """Return all runs, seed by seed: a study that is stopped has compared all rows alike."""
    return [
        Job(row, epochs, seed, data, runs, results, precision, device)
        for seed in dict.fromkeys(seeds)  # a seed given twice counts once
        for row in rows
    ]


def is_done(job: Job) -> bool:
    """Whether the run has been measured.

    Raises:
        InputError: it has, but with another command than the row has now.
    """
    if not job.result_file.is_file():
        return False
    found = read_result(job.result_file)["command"]
    if _recipe(found) != _recipe(job.command):
        raise InputError(
            f"{job.result_file}: found the command `{shown(found, 1000)}`, "
            f"expected `{job.command}`: delete the file and {job.folder}, or rename the row"
        )
    return True


def _recipe(command: str) -> list[str]:
    """The words of a command but for where it writes and how the machine computes."""
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote: no command of ours
        return [command]
    for option in ("--out", "--precision", "--device", "--threads", "--workers"):
        if option in words:
            at = words.index(option)
            del words[at : at + 2]
    return words
