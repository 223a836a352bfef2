"""Paths as applications give them."""

import os
import re
from pathlib import Path

from nmsfree.errors import InputError
from nmsfree.text import shown

FilePath = str | os.PathLike[str]
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib leaves one slash; a drive has one letter


def as_path(path: object, what: str, expected: str = "a path") -> Path:
    """Check what the caller gave as a path.

    Args:
        what: the argument, as a message names it.
        expected: what it may be, in words.

    Raises:
        InputError: it is not a text or an `os.PathLike`, or it is a URL.
    """
    given = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(given, str):
        raise InputError(f"{what} is {_kind(path)}, expected {expected}")
    if _URL.match(given):
        raise InputError(
            f"{what} is a URL ({shown(given)}), expected {expected}: download it first"
        )
    return Path(given)


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
