"""Text from outside (names, paths, messages) made fit to show."""

import os
import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from nmsfree.errors import InputError

CLOSE, CLOSE_OF_THREE = 0.6, 0.7  # of 1; one other letter of three (npu, cpu) is not close
_HIDDEN = {"Cc", "Cs", "Zl", "Zp"}  # controls, halves of surrogate pairs, line separators
_MARKDOWN = re.compile(r"([\\`*\[\]|<>#])")
_DIRECTION = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


def shown(text: object, limit: int = 300) -> str:
    """Return `str(text)` as one line that any terminal, file, font or library takes.

    What is not printable (escape sequences, line breaks, bytes of a name that is not UTF-8) is
    written as an escape; what is longer than `limit` characters is cut in its middle.
    """
    full = str(text)
    if len(full) <= limit and full.isprintable():
        return full
    if len(full) > limit:
        half = (limit - 3) // 2
        full = f"{full[:half]} … {full[-half:]}"
    return "".join(_escape(character) for character in full)


def shorten(name: str, longest: int) -> str:
    """Make a name fit to show and cut it in its middle: many that begin alike differ at the end."""
    name = shown(name)
    if len(name) <= longest:
        return name
    tail = longest // 2
    return f"{name[: longest - 1 - tail]}…{name[len(name) - tail :]}"


def one_of(known: Iterable[object], wrong: object) -> str:
    """For messages: `one of: a, b`, and which of them was probably meant."""
    names = [shown(name, 100) for name in known]
    return f"one of: {', '.join(names)}{meant(names, wrong)}"


def meant(known: Iterable[str], wrong: object) -> str:
    """`; did you mean a?` where a known name is like the wrong one."""
    word = str(wrong)
    like = get_close_matches(word, list(known), 1, CLOSE if len(word) > 3 else CLOSE_OF_THREE)
    return f"; did you mean {shown(like[0], 100)}?" if like else ""


def in_markdown(text: object, limit: int = 300) -> str:
    """Return `shown(text)` so that Markdown and HTML take it for nothing but text."""
    return _MARKDOWN.sub(r"\\\1", shown(text, limit))


def _escape(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN and character not in _DIRECTION:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode could not read
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


FilePath = str | os.PathLike[str]
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib leaves one slash; a drive has one letter


def as_path(path: object, what: str, expected: str = "a path") -> Path:
    """Check what the caller gave as a path; `what` names the argument, `expected` what it may be.

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
