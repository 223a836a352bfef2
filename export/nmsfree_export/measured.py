"""Recommended thresholds for a file that is exported: of the checkpoint, or of an evaluation."""

from dataclasses import dataclass
from pathlib import Path

from nmsfree.decode import decode_json, read_bytes
from nmsfree.errors import InputError
from nmsfree.text import shown
from nmsfree.thresholds import Thresholds
from nmsfree_training.checkpoint import Checkpoint
from nmsfree_training.config import HeadName


def measured_thresholds(
    checkpoint: Checkpoint, head: HeadName, file: Path | None
) -> Thresholds | None:
    """Return the thresholds of a head, None where nothing is known.

    Those in a checkpoint belong to the head that is deployed by default; the scores of the other
    head mean something else.

    Args:
        file: written by `nmsfree eval --json`; it goes before the checkpoint's own.

    Raises:
        InputError: the file cannot be read, or is about other classes or the other head.
    """
    if file is not None:
        return _read(file, checkpoint.class_names, head)
    return checkpoint.thresholds if head == default_head(checkpoint) else None


def default_head(checkpoint: Checkpoint) -> HeadName:
    """The one-to-one head if there is one."""
    return "o2o" if "o2o" in checkpoint.model.heads else "o2m"


@dataclass(frozen=True)
class _Report:
    """What is of use here of a report of `nmsfree eval --json`."""

    class_names: tuple[str, ...]
    thresholds: Thresholds
    head: HeadName | None = None


def _read(file: Path, class_names: tuple[str, ...], head: HeadName) -> Thresholds:
    content = read_bytes(file, error=InputError)
    report = decode_json(
        content, _Report, file, InputError, "give what `nmsfree eval --json` wrote"
    )
    if report.class_names != class_names:
        raise InputError(
            f"{file}: measured for other classes ({_difference(report.class_names, class_names)}): "
            "evaluate this checkpoint"
        )
    if report.head not in (None, head):
        raise InputError(
            f"{file}: measured for the head {report.head}, this export is of {head}: "
            "evaluate a file of that head"
        )
    return report.thresholds


def _difference(found: tuple[str, ...], expected: tuple[str, ...]) -> str:
    if len(found) != len(expected):
        return f"{len(found)}, the checkpoint has {len(expected)}"
    number = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
    return f"class {number} is {shown(found[number])!r}, the checkpoint's is {expected[number]!r}"
