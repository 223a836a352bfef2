"""Files of tensors: read so that nothing in them can run, and not larger than they look."""

import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nmsfree.errors import CheckpointError
from nmsfree.files import plain_name
from nmsfree.parsing import check_file, check_size
from nmsfree.text import shown

MAX_BYTES = 1 << 30  # of a file, packed and unpacked
LEGACY_PICKLES = 5  # magic number, protocol, system, content, keys; then the numbers
# What dense tensors, their containers and NumPy scalars are made of.
_PLAIN = re.compile(
    r"collections\.(OrderedDict|Counter|defaultdict)|_codecs\.encode|__builtin__\.set|torch\.Size"
    r"|torch\.(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
    r"|torch\._utils\._rebuild_(tensor_v2|parameter)"
)

# What `torch.load` was seen to raise on cut and overwritten files, old and new format alike.
_DAMAGED = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,  # a length in the file that no memory has
    OSError,
    RuntimeError,
    TypeError,
    UnpicklingError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def read_torch_file(path: Path, allowed: Sequence[Any] = ()) -> Any:
    """Return what a file written by `torch.save` holds, tensors on the CPU.

    Args:
        allowed: classes and functions admitted besides dense tensors and plain containers, as
            `torch.serialization.safe_globals` takes them.

    Raises:
        CheckpointError: cut, damaged, another format, larger than `MAX_BYTES` once unpacked, or
            with objects that are not admitted; all of it before any tensor is made.
    """
    check_file(path, MAX_BYTES, CheckpointError)
    names = {_name_of(entry) for entry in allowed}
    try:
        with path.open("rb") as file:
            for found in _names_in(path, file):
                if not _PLAIN.fullmatch(found) and found not in names:
                    raise CheckpointError(
                        f"{shown(path)}: holds the Python object {shown(found)}, expected dense "
                        "tensors and plain values: refused, loading it could run code or fill the "
                        "memory; save the state dict alone"
                    )
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED:
        raise CheckpointError(
            f"{shown(path)}: {describe_bytes(path)}, expected a whole PyTorch checkpoint: "
            "get the file again"
        ) from None


def is_state_dict(content: Any) -> TypeGuard[dict[str, Tensor]]:
    """Whether what was read is tensors by name."""
    return isinstance(content, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    )


def _name_of(entry: Any) -> str:
    kind, name = entry if isinstance(entry, tuple) else (entry, None)
    return name or f"{kind.__module__}.{kind.__qualname__}"


def _names_in(path: Path, file: IO[bytes]) -> Iterator[str]:
    """Yield every name, "module.object", that the pickles of a file ask for.

    PyTorch's safe loader knows more of them than a checkpoint needs, among them some that make
    gigabytes of a few bytes. A pickle of protocol 4 can hide its names; `torch.save` writes 2.
    """
    if not zipfile.is_zipfile(file):
        file.seek(0)
        for _ in range(LEGACY_PICKLES):
            yield from _names_of_pickle(file)
        return
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        size = sum(entry.file_size for entry in entries)
        check_size(size, MAX_BYTES, f"{shown(path)}, unpacked,", CheckpointError)
        for entry in entries:
            if entry.filename.lower().endswith("data.pkl"):  # PyTorch finds it in either case
                with archive.open(entry) as pickled:
                    yield from _names_of_pickle(pickled)


def _names_of_pickle(file: IO[bytes]) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            yield f"behind {opcode.name}"


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the texts and the tensors of a `.safetensors` file.

    Raises:
        CheckpointError: cut, damaged, or another format.
    """
    check_file(path, MAX_BYTES, CheckpointError)
    try:
        with plain_name(path) as place, safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
            return metadata, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, *_DAMAGED) as error:
        raise CheckpointError(
            f"{shown(path)}: {describe_bytes(path)}, expected a whole .safetensors file "
            f"({shown(error)})"
        ) from None


def check_values(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are no weights beside the network's own, of the same keys and shapes.

    Raises:
        CheckpointError: one is another kind of number, NaN, or infinite.
    """
    for key, own in expected.items():
        value = state.get(key, own)
        if value.is_floating_point() != own.is_floating_point() or value.is_complex():
            raise CheckpointError(
                f"{shown(path)}: {key} holds {value.dtype}, expected {own.dtype} or the like"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
            raise CheckpointError(
                f"{shown(path)}: {key} holds values that are not finite, so nothing that it detects"
                " would mean anything: take an earlier checkpoint, or train again"
            )


def describe_bytes(path: Path) -> str:
    """Say what a file that cannot be read looks like."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        return f"cannot be opened ({error.strerror or error})"
    if not start:
        return "empty file"
    if b"<html" in start.lower() or b"<!doctype" in start.lower():
        return "an HTML page, probably an error page saved under this name"
    return f"{path.stat().st_size:,} bytes that cannot be read (truncated or another format)"
