"""One process at a time builds an engine again, however many workers start at once."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nmsfree.errors import InputError


def lock_path(engine: Path) -> Path:
    """`model.engine` → `model.engine.lock`; exists while somebody builds it again."""
    return engine.with_name(engine.name + ".lock")


@contextmanager
def locked(engine: Path) -> Iterator[None]:
    """Hold the lock of an engine for the block; waits for whoever has it.

    The system drops it when the process ends, however that happens.

    Raises:
        InputError: the folder cannot be written to.
    """
    path = lock_path(engine)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    try:
        _take(handle)
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            path.unlink()
        os.close(handle)  # and drops the lock


def _take(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)
