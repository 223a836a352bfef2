"""Files that are never seen half-written, even after a power cut."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from nmsfree.errors import InputError


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, flush it to the disk, then rename; makes missing folders.

    What it returns from is on the disk, name and all, where the system can do that (POSIX).

    Raises:
        InputError: the operating system refuses.
    """
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        part = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)  # mkstemp gives 0o600
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink()  # still there only after a failure


def _sync_folder(folder: Path) -> None:
    """Bring the new name to the disk too; systems where folders cannot be opened do it alone."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
