"""Reading `metrics.jsonl`, also of a run that was killed while it wrote."""

import logging
import re
from pathlib import Path
from typing import Any

from nmsfree.decode import decode_json, read_bytes
from nmsfree.errors import InputError

logger = logging.getLogger(__name__)

Record = dict[str, float]
MAX_EPOCHS = 1_000_000


def read_metrics(path: Path) -> list[Record]:
    """Return one record for each epoch, in their order: the last one where an epoch was repeated.

    Lines cut short by a kill are left out, with a warning; so are values that are no numbers.

    Raises:
        InputError: the file cannot be read or has no finished epoch.
    """
    lines = read_bytes(path).splitlines()
    epochs: dict[float, Record] = {}
    for number, line in enumerate(lines, 1):
        record = parse_record(line)
        if record is not None:
            epochs[record["epoch"]] = record
        elif line.strip():
            logger.warning("%s: line %d is not a record of an epoch, left out", path, number)
    if not epochs:
        raise InputError(f"{path}: no finished epoch in it, expected one line for each")
    return [epochs[epoch] for epoch in sorted(epochs)]


def parse_record(line: bytes | str) -> Record | None:
    """Return the numbers of a line by name, or None if it is not the record of an epoch."""
    text = line.encode("utf-8", "replace") if isinstance(line, str) else line
    strict = re.sub(rb"-?\b(NaN|Infinity)\b", b"null", text)  # as Python writes what is no number
    try:
        values = decode_json(strict, dict[str, Any], "line", InputError)
    except InputError:
        return None
    record = {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return record if 1 <= record.get("epoch", 0.0) <= MAX_EPOCHS else None
