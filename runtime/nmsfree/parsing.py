"""Reading what others wrote: files of bounded size, and JSON, YAML and TOML as typed records.

A record is a frozen dataclass or `msgspec.Struct`; its annotations are the check. Unknown fields
are ignored. Whatever does not fit is one sentence that names the field, never another exception.
"""

import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from nmsfree.errors import InputError, MissingExtraError, NmsfreeError
from nmsfree.text import shown

T = TypeVar("T")

Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
Side = Annotated[int, msgspec.Meta(ge=1, le=16384)]  # pixels
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[
    str, msgspec.Meta(pattern=r"^(?!\.{1,2}$)[^/\\\x00-\x1f]{1,255}$")
]  # no folder

MAX_FILE = 64 << 20  # bytes
MAX_YAML = 512 << 10  # bytes; its reader takes up to ten seconds for that many
# What the three decoders and the conversion were seen to raise. YAMLError is no ValueError.
MALFORMED = (ValueError, TypeError, OverflowError, RecursionError, NmsfreeError)


def whole_number(text: str) -> int | None:
    """Return what up to nine digits of ASCII write; None for every other text, "²" among them."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def read_bytes(
    path: str | Path, limit: int = MAX_FILE, error: type[NmsfreeError] = InputError
) -> bytes:
    """Read a regular file, or what a link to one leads to.

    Args:
        limit: most bytes that are read; the variable NMSFREE_MAX_FILE_MB replaces it.

    Raises:
        error: no such file, a folder, a pipe or device, no permission, or larger than the limit.
    """
    check_file(path, limit, error)
    try:
        with open(path, "rb") as file:  # noqa: PTH123 (a Path made anew costs more than the reading)
            return file.read()
    except OSError as refusal:
        raise error(f"{shown(path)}: cannot be read ({refusal.strerror})") from None


def read_text(
    path: str | Path, limit: int = MAX_FILE, error: type[NmsfreeError] = InputError
) -> str:
    """Read a text in UTF-8, or UTF-16 with a byte-order mark (PowerShell's), or raise `error`."""
    data = read_bytes(path, limit, error)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as refusal:
        raise error(f"{shown(path)}: is no text in UTF-8 (byte {refusal.start})") from None


def check_file(
    path: str | Path, limit: int = MAX_FILE, error: type[NmsfreeError] = InputError
) -> int:
    """Return the size of a file that another library is going to open; `error` as `read_bytes`."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        raise error(f"{shown(path)}: no such file") from None
    except (OSError, ValueError) as refusal:  # ValueError: a NUL or a lone surrogate in the name
        reason = getattr(refusal, "strerror", None) or refusal
        raise error(f"{shown(path)}: cannot be read ({reason})") from None
    if stat.S_ISDIR(found.st_mode):
        raise error(f"{shown(path)}: is a folder, expected a file")
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{shown(path)}: is a pipe or device, expected a regular file")
    check_size(found.st_size, limit, path, error)
    return found.st_size


def check_size(size: int, limit: int, where: object, error: type[NmsfreeError]) -> None:
    """Refuse what has more bytes than the limit, or than NMSFREE_MAX_FILE_MB where that is set.

    Raises:
        error: it has.
        InputError: the variable is no whole number.
    """
    if megabytes := os.environ.get("NMSFREE_MAX_FILE_MB"):
        if (number := whole_number(megabytes)) is None:
            raise InputError(
                f"NMSFREE_MAX_FILE_MB is {shown(megabytes, 40)!r}, expected a whole number"
            )
        limit = number << 20
    if size > limit:
        raise error(
            f"{shown(where)}: has {size / 2**20:.1f} MB, expected at most {limit / 2**20:g}: if it "
            f"is right, set NMSFREE_MAX_FILE_MB={(size >> 20) + 1}"
        )


@contextmanager
def _readable(
    kind: str, where: object, error: type[NmsfreeError], advice: str, also: Any = ValueError
) -> Iterator[None]:
    """Make whatever a decoder raises in the block one sentence."""
    try:
        yield
    except (*MALFORMED, also) as refusal:
        end = f": {advice}" if advice else ""
        raise error(f"{shown(where)}: {explain(refusal, kind)}{end}") from None


def decode_json(
    data: bytes | str, type: type[T], where: object, error: type[NmsfreeError], advice: str = ""
) -> T:
    """Decode JSON (UTF-8, with or without a byte-order mark) into `type`.

    Args:
        where: what the data is, usually its file; begins the message.
        advice: what to do; ends the message.

    Raises:
        error: not JSON, a field is missing, of another type or out of its bounds; an integer
            beyond 64 bits; NaN and infinity, which JSON does not have.
    """
    with _readable("JSON", where, error, advice):
        raw = (data.encode() if isinstance(data, str) else data).removeprefix(b"\xef\xbb\xbf")
        found = msgspec.json.decode(raw, type=type)
        if re.search(rb"[0-9]{19}", raw):
            _check_values(msgspec.json.decode(raw), len(raw))
        return found


@dataclass(frozen=True)
class _Format:
    format_version: str


def decode_format(
    data: bytes | str,
    type: type[T],
    ours: str,
    where: object,
    error: type[NmsfreeError],
    advice: str,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: fields,
) -> T:
    """Decode JSON whose "format_version" is of our major version, as `decode_json`.

    Args:
        upgrade: makes fields of an older format those of ours.
    """
    fields = upgrade(decode_json(data, dict[str, Any], where, error, advice))
    with _readable("JSON", where, error, advice):
        found = msgspec.convert(fields, _Format).format_version
        major = ours.partition(".")[0]
        if found.partition(".")[0] == major:
            return msgspec.convert(fields, type)
    raise error(
        f"{shown(where)}: has format {shown(found, 40)}, this version reads {major}.x: "
        f"update nmsfree, or {advice}"
    )


def decode_yaml(
    data: bytes, type: type[T], where: object, error: type[NmsfreeError], advice: str = ""
) -> T:
    """Decode YAML of which every value is text as written (`no` is "no"), as `decode_json`.

    A field that is a number takes text of a number. Aliases may not multiply the content.

    Raises:
        error: as `decode_json`; larger than 512 kB.
        MissingExtraError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("reading YAML", "nmsfree[eval]") from None
    check_size(len(data), MAX_YAML, where, error)
    with _readable("YAML", where, error, advice, yaml.YAMLError):
        content = yaml.load(data.decode("utf-8-sig"), Loader=yaml.BaseLoader)
        _check_values(content, len(data))
        return msgspec.convert(content, type, strict=False)


def decode_toml(
    data: bytes, type: type[T], where: object, error: type[NmsfreeError], advice: str = ""
) -> T:
    """Decode TOML, as `decode_json`."""
    import tomllib

    with _readable("TOML", where, error, advice):
        content = tomllib.loads(data.decode("utf-8-sig"))
        _check_values(content, len(data))
        return msgspec.convert(content, type)


def _check_values(content: Any, size: int) -> None:
    """Refuse numbers that no field can hold, and aliases that make much of a small file."""
    left = 10_000 + size
    waiting = [content]
    while waiting:
        value = waiting.pop()
        left -= 1
        if left < 0:
            raise ValueError("its aliases stand for more values than the file has bytes")
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"it holds the number {value}, expected finite numbers")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("it holds an integer beyond 64 bits")


def explain(refusal: Exception, kind: str) -> str:
    """Say what a decoder refused, as the rest of a sentence that begins with the place."""
    text, _, place = str(refusal).replace("`", "").rpartition(" - at ")
    if isinstance(refusal, msgspec.ValidationError):
        place = place.replace("key in $", "a key").removeprefix("$").removeprefix(".")
        field = place if text else ""
        text = (text or place).replace("Expected", "expected")
        text = shown(text.replace("Object missing required field", "lacks the field"))
        return f"{shown(field)}: {text}" if field else text
    if isinstance(refusal, NmsfreeError):  # of a record that checks its fields together
        return str(refusal)
    deep = isinstance(refusal, RecursionError)
    reason = "nested too deeply" if deep else " ".join(str(refusal).split())
    return f"is not readable {kind} ({shown(reason)})"
