"""Pictures and results on disk or in an object store: file systems of Arrow and of fsspec."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq

from nmsfree.errors import InputError
from nmsfree.files import write_atomic
from nmsfree.streams.sources import IMAGE_SUFFIXES, expand, without_secrets
from nmsfree.text import shorten, shown

KEY = b"nmsfree"  # of what a result file says of itself, JSON
FORMAT_VERSION = "1.0"
LARGEST = 1 << 30  # bytes of a picture
SCHEMA = pa.schema(
    [
        ("image", pa.string()),  # as it was named, or its address
        ("height", pa.int32()),  # height, width: in pixels; null with an error
        ("width", pa.int32()),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),  # x1, y1, x2, y2 in pixels
        ("scores", pa.list_(pa.float32())),  # descending
        ("classes", pa.list_(pa.string())),
        ("class_ids", pa.list_(pa.int32())),
        ("truncated", pa.bool_()),  # all rows of the model are above the threshold
        ("model", pa.string()),  # SHA-256 of the model's file
        ("error", pa.string()),  # why it could not be read; null of others
    ]
)


class Pictures(NamedTuple):
    """Pictures of one file system."""

    root: str  # address through which they are reached; "" on disk
    paths: tuple[str, ...]  # in that file system


@contextmanager
def _refusals(where: str) -> Iterator[None]:
    """Make what a file system refuses an InputError; `where` may hold a password."""
    try:
        yield
    except (OSError, pa.ArrowException, ImportError, ValueError) as error:
        reason = shown(" ".join(str(error).split()), 300)
        raise InputError(f"{named(where)}: cannot be reached ({reason})") from None


def named(address: str) -> str:
    """An address as it may be shown: without user, password and options."""
    return without_secrets(address) if "://" in address else shown(address)


@lru_cache
def reach(address: str) -> tuple[fs.FileSystem, str]:
    """The file system of an address, and the path in it. InputError if there is none such."""
    if "://" not in address:
        return fs.LocalFileSystem(), str(Path(address).absolute())
    with _refusals(address):
        try:
            system, path = fs.FileSystem.from_uri(address)
        except pa.ArrowInvalid:  # none of Arrow's own
            import fsspec

            other, path = fsspec.core.url_to_fs(address)
            system = fs.PyFileSystem(fs.FSSpecHandler(other))
        return system, path


def find_pictures(sources: tuple[str, ...]) -> tuple[list[Pictures], list[str]]:
    """Find the pictures, and a line for each source that has none.

    On disk they are those that `nmsfree detect` finds; below an address all files of an image's
    suffix that are not hidden.
    """
    local, problems = expand([source for source in sources if "://" not in source])
    problems += [
        f"{shown(s.name)}: a {s.kind}, expected pictures" for s in local if s.kind != "image"
    ]
    names = [source.name for source in local if source.kind == "image"]
    problems += [f"{shown(name)}: its name is not UTF-8" for name in names if not _is_text(name)]
    found = [Pictures("", tuple(filter(_is_text, names)))]
    for source in sources:
        if "://" in source:
            system, path = reach(source)
            with _refusals(source):
                infos = [system.get_file_info(path)]
                if infos[0].type != fs.FileType.File:
                    infos = system.get_file_info(fs.FileSelector(path, recursive=True))
            paths = sorted(info.path for info in infos if info.is_file and _is_picture(info.path))
            if not paths:
                problems.append(f"{named(source)}: no picture ({' '.join(IMAGE_SUFFIXES)})")
            found.append(Pictures(source, tuple(paths)))
    return found, problems


def _is_text(name: str) -> bool:
    return name.isascii() or not re.search("[\ud800-\udfff]", name)


def _is_picture(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return not name.startswith(".") and name.endswith(IMAGE_SUFFIXES)


def name_of(root: str, path: str) -> str:
    """What a result calls a picture."""
    return f"{root.partition('://')[0]}://{path}" if root else path


def read(root: str, path: str) -> bytes:
    """The bytes of a picture in an object store. InputError if they cannot be had."""
    name = name_of(root, path)
    with _refusals(name), reach(root)[0].open_input_stream(path) as stream:
        data: bytes = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise InputError(f"{shown(name)}: has more than {LARGEST >> 20} MB")
    return data


def write_rows(out: str, file: str, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Write a result file, which appears when it is complete. InputError if it cannot."""
    schema = SCHEMA.with_metadata({KEY: json.dumps(about)})
    data = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), data, compression="zstd")
    if "://" not in out:
        write_atomic(Path(out, file), data.getvalue())
        return
    system, path = reach(out)
    with _refusals(out), system.open_output_stream(f"{path}/{file}") as stream:
        stream.write(data.getvalue())


def names_done(out: str, about: dict[str, Any]) -> set[str]:
    """Names of the pictures that have a result in `out`.

    InputError if something else lies there: results of another model or other options.
    """
    system, path = reach(out)
    with _refusals(out):
        infos = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    done: set[str] = set()
    for info in infos:
        if not info.path.endswith(".parquet"):
            continue
        with _refusals(info.path), system.open_input_file(info.path) as stream:
            file = pq.ParquetFile(stream)
            found = json.loads((file.schema_arrow.metadata or {}).get(KEY, b"null"))
            found = found and {"reduced": False} | found  # older files do not say it
            if found == about:
                done.update(file.read(["image"])["image"].to_pylist())
        if found != about:
            of = [
                f"its {key} is {shorten(str(value), 16)}, not {shorten(str(about.get(key)), 16)}"
                for key, value in (dict.fromkeys(about) | found if found else {}).items()
                if about.get(key) != value
            ]
            raise InputError(
                f"{named(info.path)}: is of another run ({'; '.join(of) or 'not ours'}): give"
                " another --out, or the model and options of then"
            )
    return done
