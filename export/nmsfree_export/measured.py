"""Recommended thresholds for a file that is exported: of the checkpoint, or of an evaluation."""

import json
from pathlib import Path
from typing import Any

from nmsfree.errors import InputError, ModelError
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


def _read(file: Path, class_names: tuple[str, ...], head: HeadName) -> Thresholds:
    report = _read_json(file)
    if not isinstance(report, dict) or "thresholds" not in report or "class_names" not in report:
        raise InputError(
            f"{file}: no thresholds and class_names, expected what `nmsfree eval --json` writes"
        )
    names = tuple(report["class_names"])
    if names != class_names:
        raise InputError(
            f"{file}: measured for other classes ({_difference(names, class_names)}): "
            "evaluate this checkpoint"
        )
    if report.get("head", head) != head:
        raise InputError(
            f"{file}: measured for the head {report['head']}, this export is of {head}: "
            "evaluate a file of that head"
        )
    try:
        return Thresholds.from_json(report["thresholds"])
    except ModelError as error:
        raise InputError(f"{file}: {error}") from None


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise InputError(
            f"{file}: not JSON ({error}), expected what `nmsfree eval --json` writes"
        ) from None


def _difference(found: tuple[str, ...], expected: tuple[str, ...]) -> str:
    if len(found) != len(expected):
        return f"{len(found)}, the checkpoint has {len(expected)}"
    number = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
    return f"class {number} is {found[number]!r}, the checkpoint's is {expected[number]!r}"
