"""Result files: JSON that is checked against a schema when it is written and when it is read."""

import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from nmsfree.decode import check_format, decode_json, read_bytes
from nmsfree.errors import InputError
from nmsfree.files import write_atomic
from nmsfree.text import shown
from nmsfree_benchmarks.record.records import FORMAT_VERSION, Results

AGAIN = "measure again with `nmsfree bench`"
EXPECTED = "expected a file of `nmsfree bench`"
_NUMBERS = re.compile(r"\[\n\s+(-?[\d.]+(?:,\s+-?[\d.]+)*)\s+\]")


def to_text(results: Results) -> str:
    """Return the results as JSON, indented, with lists of numbers on one line."""
    content = results.to_json()
    _validator().validate(content)  # a file that cannot be read again is our mistake
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return _NUMBERS.sub(lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text) + "\n"


def write(results: Results, path: Path) -> None:
    """Write a result file, whole or not at all.

    Raises:
        InputError: the folder cannot be written to.
    """
    write_atomic(path, to_text(results).encode())


def read(path: Path) -> Results:
    """Read a result file.

    Raises:
        InputError: it cannot be read, is no result file, or is of a newer format.
    """
    return parse(path, read_bytes(path))


def parse(path: Path, data: bytes) -> Results:
    """Return the results in the bytes of a file; `path` is for the message.

    Raises:
        InputError: they are no result file, or of a newer format.
    """
    check_format(data, FORMAT_VERSION, path, InputError, AGAIN)
    content = decode_json(data, dict[str, Any], path, InputError, AGAIN)
    _check(path, content)
    return Results.from_json(content)


def _check(path: Path, content: dict[str, Any]) -> None:
    error = next(_validator().iter_errors(content), None)
    if error is not None:
        place = shown("/".join(map(str, error.absolute_path))) or "the file"
        raise InputError(f"{shown(path)}: {place}: {shown(error.message, 200)}, {EXPECTED}")
    for index, record in enumerate(content["records"]):
        lengths = {len(times) for times in record["raw_ns"].values()}
        if lengths != {record["timed_calls"]} or lengths == {0}:
            raise InputError(
                f"{path}: records/{index}/raw_ns: {sorted(lengths)} times, expected "
                f"{record['timed_calls']} (timed_calls, at least 1) of each part"
            )


@cache
def _validator() -> Draft202012Validator:
    text = (
        files("nmsfree_benchmarks.record")
        .joinpath("results.schema.json")
        .read_text(encoding="utf-8")
    )
    return Draft202012Validator(json.loads(text))
