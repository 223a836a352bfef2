"""Reading `metrics.jsonl`, also of a run that was killed while it wrote."""

import json
import logging
from pathlib import Path

from nmsfree.errors import InputError

logger = logging.getLogger(__name__)

Record = dict[str, float]


def read_metrics(path: Path) -> list[Record]:
    """Return one record for each epoch, in their order: the last one where an epoch was repeated.

    Lines cut short by a kill are left out, with a warning; so are values that are no numbers.

    Raises:
        InputError: the file cannot be read or has no finished epoch.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
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


def parse_record(line: str) -> Record | None:
    """Return the numbers of a line by name, or None if it is not the record of an epoch."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    record = {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return record if record.get("epoch", 0.0) >= 1 else None
