"""One process at a time works on something, however many start at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nmsfree.errors import InputError
from nmsfree.files import cannot_write
from nmsfree.text import shown

RUN_LOCK = ".lock"  # in a folder that one process owns, such as that of a training


@contextmanager
def locked(path: Path, patience: float = -1) -> Iterator[None]:
    """Hold a lock file for the block.

    The system drops the lock when the process ends, however that happens. The file stays: if it
    were removed, those that wait for it and those that come later would hold two different ones.

    Args:
        path: the file; missing folders are made.
        patience: seconds to wait for whoever has it; -1 waits as long as it takes.

    Raises:
        InputError: somebody else still has it, or it cannot be written.
    """
    from filelock import FileLock, Timeout  # 50 ms, which most commands need not spend

    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=patience)
    except Timeout:
        raise InputError(
            f"{shown(path)}: held by another process, which still works there: wait for it, end "
            "it, or choose another place"
        ) from None
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        yield
    finally:
        lock.release()
