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
from threading import Thread

import typer

from nmsfree.errors import NmsfreeError
from nmsfree.lock import RUN_LOCK, locked
from nmsfree.text import shown
from nmsfree_training.study.jobs import INTERRUPTED, Job

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

    from nmsfree_training.study.record import write_result

    torch.set_num_threads(1)
    typer.echo(f"measuring {shown(job.folder / 'last.safetensors')}", err=True)
    write_result(job)


if __name__ == "__main__":
    main()
