"""Files written by `torch.save`, read so that nothing pickled in them can run."""

import re
import struct
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from nmsfree.errors import CheckpointError

# What `torch.load` was seen to raise on cut and overwritten files, old and new format alike.
_DAMAGED = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    UnpicklingError,
    ValueError,
    struct.error,
)


def read_torch_file(path: Path, allowed: Sequence[Any] = ()) -> Any:
    """Return what a file written by `torch.save` holds, tensors on the CPU.

    Args:
        allowed: classes and functions admitted besides tensors and plain containers, as
            `torch.serialization.safe_globals` takes them.

    Raises:
        CheckpointError: cut, damaged, another format, or with objects that are not admitted;
            these are refused before any of their code runs.
    """
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise CheckpointError(f"{path}: {_reason(path, error)}") from None


def _reason(path: Path, error: Exception) -> str:
    """One line: PyTorch's own text spans several and advises to load the file unsafely."""
    # torch names the offender as "GLOBAL module.name"; everything else is damage.
    refused = re.search(r"GLOBAL (\S+\w)(?=\s|$)", str(error))
    if isinstance(error, UnpicklingError) and refused:
        return (
            f"holds the Python object {refused[1]}, expected tensors and plain values: "
            "refused, loading it could run code; save the state dict alone"
        )
    return f"{describe_bytes(path)}, expected a whole PyTorch checkpoint: get the file again"


def describe_bytes(path: Path) -> str:
    """Say what a file that cannot be read looks like."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        return f"cannot be opened ({error.strerror or error})"
    if not start:
        return "empty file"
    if is_html(start):
        return "an HTML page, probably an error page saved under this name"
    return f"{path.stat().st_size:,} bytes that cannot be read (truncated or another format)"


def is_html(start: bytes) -> bool:
    """Whether a file that starts like this is a web page."""
    return b"<html" in start.lower() or b"<!doctype" in start.lower()
