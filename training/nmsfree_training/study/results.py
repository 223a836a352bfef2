"""The measured figures of finished runs: one JSON file for each, kept in the repository."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from nmsfree.errors import InputError
from nmsfree.evaluation.matching import NMS_IOU

Result = dict[str, Any]  # see `record.make_result`

NMS_GRID = tuple(percent / 100 for percent in range(50, 100, 5))  # IoU thresholds, 0.50 … 0.95
REQUIRED = ("row", "title", "epochs", "seed", "command", "minutes", "splits")


def grid_key(iou: float) -> str:
    """An IoU threshold as the results name it: "0.60"."""
    return f"{iou:.2f}"


PUBLISHED_NMS = grid_key(NMS_IOU)


def read_result(path: Path) -> Result:
    """Read the figures of one run.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError:
        values = None
    missing = [name for name in REQUIRED if not isinstance(values, dict) or name not in values]
    if missing:
        raise InputError(
            f"{path}: no {', '.join(missing)} in it, expected what `nmsfree study run` writes: "
            "delete the file, or move it elsewhere"
        )
    assert isinstance(values, dict)
    return values


def read_results(folder: Path) -> list[Result]:
    """Read all results of a folder, in the order of their names; none if it is not there.

    Raises:
        InputError: a JSON file in it is no result.
    """
    return [read_result(path) for path in sorted(folder.glob("*.json"))]


def of_one_length(results: list[Result], epochs: int | None, folder: Path) -> list[Result]:
    """Return the results of runs with so many epochs.

    Args:
        epochs: None takes those that there are, if they are all alike.
        folder: where they were read, for the messages.

    Raises:
        InputError: there are none, or of several lengths and none is chosen.
    """
    lengths = sorted({result["epochs"] for result in results})
    found = ", ".join(map(str, lengths)) or "none"
    if epochs is None and len(lengths) > 1:
        raise InputError(f"{folder}: results of {found} epochs, expected one: choose --epochs")
    chosen = [result for result in results if epochs in (None, result["epochs"])]
    if not chosen:
        wanted = "" if epochs is None else f" of {epochs} epochs (found: {found})"
        raise InputError(f"{folder}: no results{wanted}: `nmsfree study run` makes them")
    return chosen


def once(results: list[Result]) -> list[Result]:
    """Return them as they are.

    Raises:
        InputError: two of them are the same run, as results of several folders may be.
    """
    runs = Counter((result["row"], result["epochs"], result["seed"]) for result in results)
    for (row, epochs, seed), count in runs.items():
        if count > 1:
            raise InputError(
                f"{row}, {epochs} epochs, seed {seed} is there {count} times, expected once:"
                " leave one of the folders out"
            )
    return results


def deployed(result: Result, split: str) -> dict[str, Any]:
    """Return the figures of the output that is used: of the o2o head, else of o2m with NMS 0.6."""
    heads: dict[str, dict[str, Any]] = result["splits"][split]
    return heads["o2o"] if "o2o" in heads else heads["o2m"]
