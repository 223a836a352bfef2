"""Files in whole: written beside their place and renamed, so that nobody meets half of one."""

import json
import math
import os
import secrets
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: a file that is open cannot be removed there
    fcntl = None  # type: ignore[assignment]

_tidied: set[str] = set()  # folders without leftovers of killed processes


class PartFile:
    """A binary file that takes its name when it is complete.

    It is written beside its place, locked: what a killed process left is not locked, and the next
    writer in the folder removes it. A link is followed. What is not a regular file (a device, a
    pipe, `/dev/stdout`) is written through, as there is nothing to replace.

    Args:
        path: where the file belongs; missing folders are made. An existing file keeps its mode,
            a new one follows the umask.
        suffix: of the temporary name, for encoders that choose the format by it.

    Raises:
        InputError: the operating system refuses.
    """

    def __init__(self, path: Path, suffix: str = "") -> None:
        self.path = path
        self.stream: IO[bytes]
        self.part: Path | None = None  # None: written through
        try:
            if _is_stream(path):
                self.stream = path.open("wb")
                return
            self._target = Path(os.path.realpath(path))
            self._target.parent.mkdir(parents=True, exist_ok=True)
            if self._target.is_dir():
                raise IsADirectoryError(None, "a folder has that name")
            _tidy(self._target.parent)
            self.part, self.stream = _open_locked(self._target.parent, suffix)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise cannot_write(path, error) from None

    def write(self, data: bytes) -> None:
        try:
            self.stream.write(data)
        except OSError as error:
            self.discard()
            raise cannot_write(self.path, error) from None

    def finish(self) -> None:
        """Bring the content to the disk, then give the file its name."""
        try:
            self.stream.flush()
            if self.part is not None:
                os.fsync(self.stream.fileno())
                with suppress(FileNotFoundError):
                    self.part.chmod(stat.S_IMODE(self._target.stat().st_mode))
                if fcntl is None:
                    self.stream.close()  # Windows renames no open file
                self.part.replace(self._target)
                _sync_folder(self._target.parent)
            self.stream.close()
        except OSError as error:
            self.discard()
            raise cannot_write(self.path, error) from None

    def discard(self) -> None:
        """Remove what was written so far."""
        with suppress(OSError):
            self.stream.close()
        if self.part is not None:
            with suppress(OSError):
                self.part.unlink()


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` as a `PartFile`; once this returns it is on the disk, name and all.

    Raises:
        InputError: the operating system refuses.
    """
    file = PartFile(path)
    try:
        file.write(data)
    except BaseException:
        file.discard()
        raise
    file.finish()


def write_json(target: str | Path, content: Any) -> None:
    """Write a JSON document to a file, or to stdout if `target` is "-"; NaN becomes null.

    Raises:
        InputError: the operating system refuses.
    """
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomic(Path(target), text.encode("utf-8", "surrogateescape"))


def check_outputs(outputs: Iterable[str | Path | None], inputs: Iterable[str | Path]) -> None:
    """Refuse, before any work is done, an output that would replace an input.

    Args:
        outputs: files to be written; None and "-" (stdout) are passed over.
        inputs: files that are read.

    Raises:
        InputError: an output is an input, a folder, or empty.
    """
    given = {os.path.realpath(path) for path in inputs}
    for output in outputs:
        if output is None or output == "-":
            continue
        if not str(output):
            raise InputError("an output has an empty name: give a file, or - for stdout")
        if Path(output).is_dir():
            raise InputError(f"{output}: cannot be written (it is a folder): give a file's name")
        if os.path.realpath(output) in given:
            raise InputError(
                f"{output}: is an input of this command and would be replaced: give another output"
            )


def cannot_write(path: Path, error: OSError | ValueError) -> InputError:
    """Say that the operating system refused a path."""
    return InputError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})")


class LinesFile:
    """A text file of lines that appears under its name when it is finished."""

    def __init__(self, path: Path) -> None:
        self._file = PartFile(path)

    def write(self, line: str) -> None:
        self._file.write(line.encode("utf-8", "surrogateescape") + b"\n")

    def finish(self) -> None:
        self._file.finish()


class VideoFile:
    """An mp4 video (MPEG-4 part 2) that appears under its name when it is finished."""

    def __init__(self, path: Path, fps: float, height: int, width: int) -> None:
        self._file = PartFile(path, suffix=".mp4")
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(self._file.part), codec, fps, (width, height))
        if not self._writer.isOpened():
            self._file.discard()
            raise InputError(f"{path}: cannot be written (OpenCV opened no mp4 encoder here)")

    def write(self, picture: NDArray[np.uint8]) -> None:
        """Add a frame, BGR uint8 [height, width, 3] of the size given at the start."""
        self._writer.write(picture)

    def finish(self) -> None:
        self._writer.release()
        self._file.finish()


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a BGR uint8 [h, w, 3] picture in the format of the suffix.

    Raises:
        InputError: it cannot be encoded or written.
    """
    try:
        encoded, data = cv2.imencode(path.suffix, picture)
    except cv2.error:
        encoded = False
    if not encoded:
        height, width = picture.shape[:2]
        raise InputError(f"{path}: {height} × {width} pixels cannot be encoded as {path.suffix}")
    write_atomic(path, data.tobytes())


def _is_stream(path: Path) -> bool:
    """Whether a path names a stream of this process or something that is no regular file."""
    if str(path).startswith(("/dev/fd/", "/dev/std", "/proc/")):
        return True  # may be a regular file by redirection; its reader holds it open
    return path.exists() and not path.is_file() and not path.is_dir()


def _open_locked(folder: Path, suffix: str) -> tuple[Path, IO[bytes]]:
    """Make a temporary file of short name; its permissions follow the umask."""
    while True:
        part = folder / f".nmsfree-{secrets.token_hex(6)}.part{suffix}"
        stream = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), "w+b")
        if fcntl is None:
            return part, stream
        with suppress(OSError):  # a file system without locks; nobody will tidy up there
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(stream.fileno()).st_nlink:
            return part, stream
        stream.close()  # taken for a leftover before it was locked


def _tidy(folder: Path) -> None:
    """Remove temporary files of killed processes, once per process and folder."""
    if str(folder) in _tidied:
        return
    _tidied.add(str(folder))
    for part in folder.glob(".nmsfree-*.part*"):
        with suppress(OSError):
            if fcntl is None:
                part.unlink()
                continue
            with part.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()


def _sync_folder(folder: Path) -> None:
    """Bring the new name to the disk too; systems where folders cannot be opened do it alone."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
