"""Files in whole: written beside their place and renamed, so that nobody meets half of one."""

import json
import logging
import math
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from nmsfree.errors import InputError
from nmsfree.text import shown

try:
    import fcntl
except ImportError:  # Windows: a file that is open cannot be removed there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
PARTS = ".nmsfree-*.part*"
RUN_LOCK = ".lock"  # in a folder that one process owns, such as that of a training
_tidied: set[str] = set()  # folders without leftovers of killed processes


def cannot_write(path: Path, reason: object, advice: str = "") -> InputError:
    """The error for a path that cannot be written; `reason` may be the system's own error."""
    reason = getattr(reason, "strerror", None) or reason
    return InputError(f"{shown(path)}: cannot be written ({reason}){advice and ': ' + advice}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make what the operating system refuses within the block an InputError that names the path."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise cannot_write(path, error) from None


class PartFile:
    """A binary file that takes its name when it is complete.

    It is written beside its place, locked: what a killed process left is not locked, and the next
    writer in the folder removes it. A link is followed. What is not a regular file (a device, a
    pipe, `/dev/stdout`) is written through, as there is nothing to replace.

    Args:
        path: where the file belongs; missing folders are made. An existing file keeps its mode,
            a new one follows the umask.
        suffix: of the temporary name, for encoders that choose the format by it.
        sync: bring the content to the disk before it gets its name, which takes milliseconds.

    Raises:
        InputError: the operating system refuses.
    """

    def __init__(self, path: Path, suffix: str = "", *, sync: bool = True) -> None:
        self.path, self._sync = path, sync
        self.stream: IO[bytes]
        self.part: Path | None = None  # None: written through
        with self._discarded_on_error():
            if _is_stream(path):
                own = _own_stream(path)
                self.stream = path.open("wb") if own is None else os.fdopen(os.dup(own), "wb")
                return
            self._target = Path(os.path.realpath(path))
            self._target.parent.mkdir(parents=True, exist_ok=True)
            if self._target.is_dir():
                raise IsADirectoryError(None, "a folder has that name")
            _tidy(self._target.parent)
            self.stream = self._open_locked(self._target.parent, suffix)

    def _open_locked(self, folder: Path, suffix: str) -> IO[bytes]:
        """Make a temporary file of short name; its permissions follow the umask."""
        while True:
            # Known before it is there: Ctrl-C may come at any time.
            self.part = part = folder / f".nmsfree-{secrets.token_hex(6)}.part{suffix}"
            stream = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), "w+b")
            if fcntl is None:
                return stream
            with suppress(OSError):  # a file system without locks; nobody will tidy up there
                fcntl.flock(stream, fcntl.LOCK_EX)
            if os.fstat(stream.fileno()).st_nlink:
                return stream
            stream.close()  # taken for a leftover before it was locked

    @contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        try:
            with writing(self.path):
                yield
        except BaseException:
            self.discard()
            raise

    def write(self, data: bytes) -> None:
        with self._discarded_on_error():
            self.stream.write(data)

    def finish(self, path: Path | None = None) -> None:
        """Give the file its name, or another in its folder."""
        if path is not None and path != self.path:
            self._target = path
        with self._discarded_on_error():
            self.stream.flush()
            if self.part is not None:
                if self._sync:
                    os.fsync(self.stream.fileno())
                with suppress(FileNotFoundError):
                    self.part.chmod(stat.S_IMODE(self._target.stat().st_mode))
                if fcntl is None:
                    self.stream.close()  # Windows renames no open file
                self.part.replace(self._target)
                if self._sync:
                    with suppress(OSError), _opened(self._target.parent) as handle:
                        os.fsync(handle)  # the new name, too, where folders can be opened
            self.stream.close()

    def discard(self) -> None:
        """Remove what was written so far."""
        with suppress(OSError, AttributeError):  # not open yet
            self.stream.close()
        if self.part is not None:
            with suppress(OSError):
                self.part.unlink()


def write_atomic(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write `data` as a `PartFile`; once this returns it is on the disk, name and all.

    Args:
        sync: False returns sooner; a failure of power, but no kill, may then cost the content.

    Raises:
        InputError: the operating system refuses.
    """
    file = PartFile(path, sync=sync)
    file.write(data)
    file.finish()


def write_json(target: str | Path | None, content: Any) -> None:
    """Write a JSON document to a file, to stdout if `target` is "-", nowhere if it is None.

    NaN becomes null.

    Raises:
        InputError: the operating system refuses.
    """
    if target is None:
        return
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomic(Path(target), text.encode("utf-8", "surrogateescape"))


def check_outputs(
    outputs: Iterable[str | Path | None], inputs: Iterable[str | Path | None] = ()
) -> None:
    """Refuse, before any work is done, outputs that cannot be or that would replace an input.

    Args:
        outputs: files to be written; None and "-" (stdout) are passed over.
        inputs: files that are read; looked at only where an output exists.

    Raises:
        InputError: an output is an input, another output, a folder, below a file, or empty.
    """
    there: dict[tuple[int, int], str | Path] = {}
    places: set[str] = set()
    for output in outputs:
        if output is None or output == "-":
            continue
        if not str(output):
            raise InputError("an output has an empty name: give a file, or - for stdout")
        if _is_stream(Path(output)):
            continue
        _check_place(Path(output))
        place = os.path.realpath(output)
        if place in places:
            raise InputError(f"{shown(output)}: is named for two outputs: give two names")
        places.add(place)
        if (identity := _identity(output)) is not None:
            there[identity] = output
    if not there:
        return
    for path in inputs:
        if path is not None and (identity := _identity(path)) in there:
            raise InputError(
                f"{shown(there[identity])}: is an input of this command and would be replaced: "
                "give another output"
            )


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise cannot_write(path, "it is a folder", "give a file's name")
    target = Path(os.path.realpath(path))
    folder = next(parent for parent in target.parents if parent.exists())
    if not folder.is_dir():
        raise cannot_write(path, f"{shown(folder)} is no folder", "give another output")
    if not os.access(folder, os.W_OK):
        raise cannot_write(path, f"{shown(folder)} is protected", "give another output")


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Device and number of a file, the same by whatever name; None if there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def problems_in(problems: list[str]) -> Iterator[None]:
    """Make an output that fails within the block a line of `problems`; the work goes on."""
    try:
        yield
    except InputError as error:
        problems.append(str(error))


class LinesFile:
    """A text file of lines that appears under its name when it is finished.

    What another process has put there since the start stays: this file then gets a number.
    """

    def __init__(self, path: Path) -> None:
        self._before = version_of(path)
        self._file = PartFile(path)

    def write(self, text: str) -> None:
        """Add whole lines."""
        self._file.write(text.encode("utf-8", "surrogateescape"))

    def finish(self) -> None:
        wanted = path = self._file.path
        with _held(path.parent):  # two may end at once
            number = 1
            while self._file.part is not None and version_of(path) not in (None, self._before):
                number += 1
                path = wanted.with_stem(f"{wanted.stem}-{number}")
            if path != wanted:
                logger.warning(
                    "%s: written by another run meanwhile, ours is %s", shown(wanted), shown(path)
                )
            self._file.finish(path)


def _is_stream(path: Path) -> bool:
    """Whether a path names a stream of this process or something that is no regular file."""
    if str(path).startswith(("/dev/fd/", "/dev/std", "/proc/")):
        return True  # may be a regular file by redirection; its reader holds it open
    return path.exists() and not path.is_file() and not path.is_dir()


def _own_stream(path: Path) -> int | None:
    """Return the number of a stream of this process.

    Opened anew, one that leads to a file would write from its start, over what goes there anyway.
    """
    named = {"/dev/stdout": 1, "/dev/stderr": 2}
    found = re.fullmatch("(?:/dev/fd|/proc/self/fd)/([0-9]{1,9})", str(path))
    return int(found[1]) if found else named.get(str(path))


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder in the system's place for temporary files, removed at the end of the block.

    It is locked like a `PartFile`, and what killed processes left is removed.
    """
    _tidy(Path(tempfile.gettempdir()))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=".nmsfree-", suffix=".part"))
        with _held(folder):
            if not folder.is_dir():
                continue  # taken for a leftover before it was locked
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


@contextmanager
def plain_name(path: Path) -> Iterator[str]:
    """Give a name by which libraries open a file: OpenCV crashes at one that is not UTF-8."""
    if shown(path, len(str(path))) == str(path):
        yield str(path)
        return
    with temporary_folder() as folder:
        link = folder / f"file{path.suffix if path.suffix.isascii() else ''}"
        link.symlink_to(path.resolve())
        yield str(link)


def is_part(path: Path) -> bool:
    """Whether a file or folder is a temporary one of this project."""
    return path.match(PARTS)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left anywhere below a folder."""
    for part in folder.rglob(PARTS):
        _remove_leftover(part)


def _tidy(folder: Path) -> None:
    """Remove what killed processes left in a folder, once per process and folder."""
    if str(folder) not in _tidied:
        _tidied.add(str(folder))
        for part in folder.glob(PARTS):
            _remove_leftover(part)


def _remove_leftover(part: Path) -> None:
    """Remove a temporary file or folder, unless somebody holds it."""
    with suppress(OSError):
        if fcntl is None:
            part.unlink()  # a folder stays: whether it is in use cannot be told
            return
        with _opened(part, os.O_NOFOLLOW) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part) if part.is_dir() else part.unlink()


def version_of(path: Path) -> tuple[int, int] | None:
    """Changes when a file is replaced; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | flags)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder for the block, where the system has such locks."""
    with ExitStack() as stack:
        with suppress(OSError):
            handle = stack.enter_context(_opened(folder))
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def locked(path: Path, patience: float = -1) -> Iterator[None]:
    """Hold a lock file for the block: one process at a time, however many start at once.

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
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=patience)
        except Timeout:  # an OSError, too
            raise InputError(
                f"{shown(path)}: held by another process, which still works there: wait for it,"
                " end it, or choose another place"
            ) from None
    try:
        yield
    finally:
        lock.release()


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
