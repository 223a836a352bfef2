"""`python -m nmsfree_training.study.worker JOB`: one run in a process of its own.

It trains by the very command that a user would type, measures the weights and writes the result.
It lives no longer than the runner that started it: at the end of its standard input it stops,
after the training has saved.
"""

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from threading import Thread

import torch
import typer

from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.errors import NmsfreeError
from nmsfree.files import RUN_LOCK, locked, write_json
from nmsfree.machine import processor_name, sha256
from nmsfree.text import shown
from nmsfree_training.monitor.callbacks import is_loss
from nmsfree_training.monitor.curves import Record, read_metrics
from nmsfree_training.study.jobs import INTERRUPTED, Job
from nmsfree_training.study.measure import SPLITS, measure
from nmsfree_training.study.results import Result
from nmsfree_training.weights.checkpoint import load_checkpoint

# Those of `train_state`, which is not imported: this process waits for hours, without PyTorch.
STATES = "*.state.pt"
PATIENCE = 60.0  # seconds: a training that was asked to stop saves first


def main() -> None:
    """Carry out the run that the first argument describes; see `Job.to_json`."""
    job = Job.from_json(json.loads(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    Thread(target=_stop_with_runner, daemon=True).start()
    try:
        sys.exit(carry_out(job))
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
            _measure(job)
    return status


def training_command(job: Job) -> list[str]:
    """Return the words that train; with `--resume` where the run folder holds a state."""
    begun = any(job.folder.glob(STATES))
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


def _measure(job: Job) -> None:
    import torch

    torch.set_num_threads(1)
    typer.echo(f"measuring {shown(job.folder / 'last.safetensors')}", err=True)
    write_result(job)


if __name__ == "__main__":
    main()


def write_result(job: Job) -> None:
    """Measure the last weights of a run and write its result; the file appears whole.

    Raises:
        NmsfreeError: the run folder or the dataset cannot be used, see `measure`.
    """
    write_json(job.result_file, make_result(job))


def make_result(job: Job) -> Result:
    """Return all that is known of a finished run, ready for `json.dumps`.

    minutes: of training, without evaluation. images_per_second: of training, in the mean.
    losses: of the last epoch. parameters: of the network with all its heads. data: the folder's
    name, and how many images its splits have. splits: see `measure`.
    """
    weights = job.folder / "last.safetensors"
    records = read_metrics(job.folder / "metrics.jsonl")
    network = load_checkpoint(weights).build()
    return {
        "row": job.row.name,
        "title": job.row.title,
        "model": job.row.model,
        "epochs": job.epochs,
        "seed": job.seed,
        "command": job.command,
        **_pace(records),
        "losses": {name: value for name, value in records[-1].items() if is_loss(name)},
        "parameters": sum(p.numel() for p in network.parameters()),
        "versions": {"nmsfree": version("nmsfree"), "torch": torch.__version__},
        "machine": processor_name(),
        "weights_sha256": sha256(weights),
        "data": {"folder": job.data.resolve().name, "images": _counts(job.data)},
        "splits": measure(weights, job.data),
    }


def _pace(records: list[Record]) -> dict[str, float]:
    seconds = sum(record["seconds"] for record in records)
    images = sum(record["images_per_second"] * record["seconds"] for record in records)
    return {
        "minutes": round(seconds / 60, 2),
        "images_per_second": round(images / max(seconds, 1e-9), 1),
    }


def _counts(data: Path) -> dict[str, int]:
    return {split: len(load_dataset(data, split)) for split in ("train", *SPLITS)}
