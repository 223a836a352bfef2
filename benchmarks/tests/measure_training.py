"""Speed of `nmsfree train` as it starts by default, beside every choice, alone and in company.

    python benchmarks/tests/measure_training.py fcos_e2e_nano 256 256 [--company]

Threads × loader processes × precision, on digits: real runs of two short epochs in a process each,
of which the second counts. Then the default, which may choose among them; --company: the default
and `--threads 1` alone, beside a process that keeps one processor busy. Minutes: a dozen runs.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.machine import processors
from nmsfree_benchmarks.questions.training import CPU_PIXELS
from nmsfree_training.loop.checkpoints import METRICS
from nmsfree_training.loop.probe import _counts
from nmsfree_training.monitor.curves import read_metrics
from nmsfree_training.weights.checkpoint import load_checkpoint

STEPS = 4  # of an epoch
BATCH = 16  # at most


@contextmanager
def company() -> Iterator[None]:
    """One process that is always busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def speed(folder: Path, model: str, size: tuple[str, str], *flags: object) -> float:
    """Images a second of a run with these flags; prints them with what it ran with."""
    images = min(BATCH, CPU_PIXELS // (int(size[0]) * int(size[1])))
    data = folder / "data"
    write_digits(data, train=STEPS * images, val=0, overlap=0)
    with TemporaryDirectory(dir=folder) as out:
        command = ["-m", "nmsfree", "train", "--data", data, "--val", "", "--out", f"{out}/run"]
        command += ["--model", model, "--size", *size, "--batch-size", images, "--epochs", 2]
        words = [sys.executable, *map(str, (*command, "--no-tensorboard", *flags))]
        subprocess.run(words, check=True, capture_output=True)
        found = read_metrics(Path(out) / "run" / METRICS)[-1]["images_per_second"]
        said = load_checkpoint(Path(out) / "run" / "last.safetensors").provenance["setting"]
    sys.stdout.write(f"{found:7.1f} images/s  {said}{'' if len(flags) > 2 else '  chosen'}\n")
    sys.stdout.flush()
    return float(found)


def main() -> None:
    """Print the figures, a line each, and the shares."""
    model, *size = sys.argv[1:4]
    shape = size[0], size[1]
    with TemporaryDirectory() as name:
        folder = Path(name)
        if "--company" in sys.argv:
            with company():
                share = speed(folder, model, shape) / speed(folder, model, shape, "--threads", 1)
            sys.stdout.write(f"in company: {share:.2f} of --threads 1\n")
            return
        cores = processors()
        choices = product(_counts(cores), sorted({0, 1, min(2, cores)}), ("fp32", "bf16"))
        best = max(
            speed(folder, model, shape, "--threads", t, "--workers", w, "--precision", p)
            for t, w, p in choices
        )
        sys.stdout.write(f"default: {speed(folder, model, shape) / best:.2f} of the best\n")


if __name__ == "__main__":
    main()
