"""How far a running job is, from the lines that its training writes."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from nmsfree.decode import read_bytes
from nmsfree.errors import InputError
from nmsfree_training.metrics_file import parse_record
from nmsfree_training.study.jobs import Job

ALMOST = 0.98  # of an epoch: what is only guessed never completes one


@dataclass(frozen=True)
class Progress:
    """State of a run.

    Attributes:
        epochs: whole ones that are done.
        within: of the present epoch, guessed from the time the others took, 0–1.
        images_per_second: of the last epoch; None before its end.
        epoch_seconds: that an epoch takes in the mean; None before the first one's end.
    """

    epochs: int
    within: float = 0.0
    images_per_second: float | None = None
    epoch_seconds: float | None = None

    def remaining(self, epochs: int) -> float | None:
        """Seconds left of a run of so many epochs; None = unknown yet."""
        if self.epoch_seconds is None:
            return None
        return max(0.0, (epochs - self.epochs - self.within) * self.epoch_seconds)


def read_progress(job: Job, clock: Callable[[], float] = time.time) -> Progress:
    """Return how far a run is; one that has not written anything yet is at its start."""
    path = job.folder / "metrics.jsonl"
    try:
        lines = read_bytes(path).splitlines()
        age = clock() - path.stat().st_mtime
    except (OSError, InputError):
        return Progress(0)
    records = [record for record in map(parse_record, lines) if record is not None]
    if not records:
        return Progress(0)
    seconds = sum(record.get("seconds", 0.0) for record in records) / len(records)
    guess = min(ALMOST, max(0.0, age / seconds)) if seconds > 0 else 0.0
    done = int(records[-1]["epoch"])
    return Progress(
        done,
        guess if done < job.epochs else 0.0,
        records[-1].get("images_per_second"),
        seconds or None,
    )
