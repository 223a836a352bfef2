"""A run of the study: one row with one seed, its command, its files, and a process for it.

`python -m nmsfree_training.study.job JOB` trains by the very command that a user would type,
measures the weights and writes the result. It lives no longer than the runner that started it: at
the end of its standard input it stops, after the training has saved.
"""

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import typer

from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.errors import InputError, NmsfreeError
from nmsfree.files import RUN_LOCK, locked, write_json
from nmsfree.machine import processor_name, sha256
from nmsfree.text import shown
from nmsfree_training.monitor.callbacks import is_loss
from nmsfree_training.monitor.curves import read_metrics
from nmsfree_training.study.results import SPLITS, read_result
from nmsfree_training.study.rows import OF_REFERENCE, REFERENCE, Row

GPU_WORKERS = 4  # processes that load images for one run
INTERRUPTED = 130  # exit status of what was asked to stop, and saved


@dataclass(frozen=True)
class Job:
    """One run."""

    row: Row
    epochs: int
    seed: int
    data: Path  # dataset folder with the split train and those that are measured
    runs: Path  # where run folders and logs go
    results: Path  # where the measured figures go, one JSON file for each run
    precision: str = "bf16"  # of the network while it is trained; the recipe is the same in each
    device: str = "cpu"  # or "cuda"; figures are measured on the processor in either case
    splits: tuple[str, ...] = SPLITS  # that are measured; on the first thresholds are chosen
    more: str = ""  # words of `nmsfree train` that all rows have

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
    def arguments(self) -> list[str]:
        """The words after `nmsfree`. On a processor one thread each: two runs share two cores."""
        machine = f"--device {self.device} --workers {GPU_WORKERS}"
        if self.device == "cpu":
            machine = "--threads 1 --workers 0"
        recipe = f"{self.row.options} {self.more} --epochs {self.epochs} --seed {self.seed}"
        words = f"{recipe} --precision {self.precision} {machine} --eval-every 0 --no-tensorboard"
        start = ["train", "--data", str(self.data)]
        start += ["--model", self.row.model] if self.row.model else []
        reference = f"{REFERENCE}_e{self.epochs}_s{self.seed}"
        weights = str(self.runs / reference / "last.safetensors")
        given = [weights if word == OF_REFERENCE else word for word in words.split()]
        return [*start, *given, "--out", str(self.folder)]

    @property
    def command(self) -> str:
        """What a user would type for this run."""
        return shlex.join(["nmsfree", *self.arguments])

    def to_text(self) -> str:
        """JSON, for a process of its own."""
        return msgspec.json.encode(self, enc_hook=str).decode()

    @classmethod
    def from_text(cls, text: str) -> "Job":
        """The way back of `to_text`."""
        return msgspec.json.decode(text, type=cls, dec_hook=lambda kind, value: kind(value))


def is_done(job: Job) -> bool:
    """Whether the run has been measured.

    Raises:
        InputError: it has, but with another command than the row has now.
    """
    if not job.result_file.is_file():
        return False
    found = read_result(job.result_file).command
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
    for option in ("--out", "--retrofit", "--precision", "--device", "--threads", "--workers"):
        if option in words:
            at = words.index(option)
            del words[at : at + 2]
    return words


# The process.

PATIENCE = 60.0  # seconds: a training that was asked to stop saves first


def main() -> None:
    """Carry out the run that the first argument describes; see `Job.to_text`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    Thread(target=_stop_with_runner, daemon=True).start()
    try:
        sys.exit(carry_out(Job.from_text(sys.argv[1])))
    except NmsfreeError as error:
        typer.echo(f"error: {shown(error, 2000)}", err=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _stop_with_runner() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def carry_out(job: Job) -> int:
    """Train, going on where there is something to go on from; measure; write the result.

    Returns:
        0, or the exit status of a training that failed.

    Raises:
        NmsfreeError: another process works on this run, or it cannot be measured.
        KeyboardInterrupt: SIGINT came; the training has saved.
    """
    with locked(job.runs / f"{job.name}.lock", PATIENCE):
        with locked(job.folder / RUN_LOCK, PATIENCE):
            pass  # a training that outlived its worker has ended
        status = _train(job)
        if status == 0:
            typer.echo(f"measuring {shown(job.folder / 'last.safetensors')}", err=True)
            write_json(job.result_file, make_result(job))
    return status


def training_command(job: Job) -> list[str]:
    """Return the words that train; with `--resume` where the run folder holds a state."""
    # As `loop/state.py` names them, which brings PyTorch: this process waits for hours without.
    begun = any(job.folder.glob("*.state.pt"))
    return [sys.executable, "-m", "nmsfree", *job.arguments, *["--resume"] * begun]


def _train(job: Job) -> int:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(training_command(job), stdin=subprocess.DEVNULL, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)  # it saves, then ends
        process.wait()
        raise


def make_result(job: Job) -> dict[str, Any]:
    """Return all that is known of a finished run, ready for `json.dumps`.

    minutes: of training, without evaluation. images_per_second: of training, in the mean.
    losses: of the last epoch. parameters: of the network with all its heads. data: the folder's
    name, and how many images its splits have. splits: see `measure`. untouched: figures of the
    splits whose name begins with test, by output, see `untouched.outputs`.

    Raises:
        NmsfreeError: the run folder or the dataset cannot be used, see `measure`.
    """
    import torch

    from nmsfree_training.study.measure import measure
    from nmsfree_training.study.untouched import outputs
    from nmsfree_training.weights.checkpoint import load_checkpoint

    torch.set_num_threads(1)
    weights = job.folder / "last.safetensors"
    records = read_metrics(job.folder / "metrics.jsonl")
    seconds = sum(record["seconds"] for record in records)
    images = sum(record["images_per_second"] * record["seconds"] for record in records)
    network = load_checkpoint(weights).build()
    return {
        "row": job.row.name,
        "title": job.row.title,
        "model": network.config.name,
        "epochs": job.epochs,
        "seed": job.seed,
        "command": job.command,
        "minutes": round(seconds / 60, 2),
        "images_per_second": round(images / max(seconds, 1e-9), 1),
        "losses": {name: value for name, value in records[-1].items() if is_loss(name)},
        "parameters": sum(p.numel() for p in network.parameters()),
        "versions": {"nmsfree": version("nmsfree"), "torch": torch.__version__},
        "machine": processor_name(),
        "weights_sha256": sha256(weights),
        "data": {
            "folder": job.data.resolve().name,
            "images": {name: len(load_dataset(job.data, name)) for name in ("train", *job.splits)},
        },
        "splits": measure(weights, job.data, job.splits),
        "untouched": {
            split: {
                name: output.figures()
                for name, output in outputs(weights, job.data, job.splits[0], split).items()
            }
            for split in job.splits
            if split.startswith("test")
        },
    }


if __name__ == "__main__":
    main()
