"""One process at a time works on a run, even if the one before lost its parent."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nmsfree.errors import InputError

PATIENCE = 60.0  # seconds: a training that was asked to stop saves first


@contextmanager
def locked(path: Path, patience: float = PATIENCE) -> Iterator[int]:
    """Hold a lock for the block; yields the descriptor of the file.

    A child that gets the descriptor shares the lock. The system drops it when the last of them
    ends, however that happens.

    Raises:
        InputError: somebody else still has it after `patience` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        deadline = time.monotonic() + patience
        while not _take(file.fileno()):
            if time.monotonic() > deadline:
                raise InputError(
                    f"{path}: held by another process, which still works on this run: "
                    "wait for it, or end it"
                )
            time.sleep(0.2)
        yield file.fileno()


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
