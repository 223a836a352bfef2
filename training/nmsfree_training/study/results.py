"""The measured figures of finished runs: one JSON file for each, kept in the repository."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from nmsfree.decode import Positive, decode_json, read_bytes
from nmsfree.errors import InputError
from nmsfree.evaluation.matching import NMS_IOU
from nmsfree.text import shown

Result = dict[str, Any]  # see `record.make_result`

NMS_GRID = tuple(percent / 100 for percent in range(50, 100, 5))  # IoU thresholds, 0.50 … 0.95
AGAIN = "expected what `nmsfree study run` writes: delete the file, or move it elsewhere"


def grid_key(iou: float) -> str:
    """An IoU threshold as the results name it: "0.60"."""
    return f"{iou:.2f}"


PUBLISHED_NMS = grid_key(NMS_IOU)


_Score = Annotated[float, Meta(ge=-1, le=1)]  # −1 where a split has no object
_Count = Annotated[float, Meta(ge=0)]


@dataclass(frozen=True)
class _Head:
    """What the tables need of the figures of a head."""

    AP: _Score
    F1: _Score
    F1_with_nms: _Score
    duplicates_per_image: _Count
    wrong_duplicates_per_image: _Count
    nms: dict[str, _Score]

    def __post_init__(self) -> None:
        missing = [key for key in map(grid_key, NMS_GRID) if key not in self.nms]
        if missing:
            raise InputError(f"nms has no AP at IoU {', '.join(missing)}: {AGAIN}")


@dataclass(frozen=True)
class _Split:
    o2m: _Head | None = None
    o2o: _Head | None = None

    def __post_init__(self) -> None:
        if self.o2m is self.o2o is None:
            raise InputError(f"a split has the figures of no head, expected o2m or o2o: {AGAIN}")


@dataclass(frozen=True)
class _Known:
    """The fields that a result must have; the others are for its readers."""

    row: str
    title: str
    epochs: Positive
    seed: int
    command: str
    minutes: _Count
    splits: dict[str, _Split]


def read_result(path: Path) -> Result:
    """Read the figures of one run.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    data = read_bytes(path)
    decode_json(data, _Known, path, InputError, AGAIN)
    return decode_json(data, dict[str, Any], path, InputError, AGAIN)


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
        InputError: two of them are the same run, as results of several folders may be, or two
            runs of a row were measured differently.
    """
    runs = Counter((result["row"], result["epochs"], result["seed"]) for result in results)
    for (row, epochs, seed), count in runs.items():
        if count > 1:
            raise InputError(
                f"{row}, {epochs} epochs, seed {seed} is there {count} times, expected once:"
                " leave one of the folders out"
            )
    measured: dict[str, dict[str, list[str]]] = {}
    for result in results:
        heads = {name: sorted({"o2m", "o2o"} & set(s)) for name, s in result["splits"].items()}
        if measured.setdefault(result["row"], heads) != heads:
            raise InputError(
                f"{shown(result['row'])}, seed {result['seed']}: has other splits or heads than"
                " another seed of the row: measure them alike"
            )
    return results


def deployed(result: Result, split: str) -> dict[str, Any]:
    """Return the figures of the output that is used: of the o2o head, else of o2m with NMS 0.6."""
    heads: dict[str, dict[str, Any]] = result["splits"][split]
    return heads["o2o"] if "o2o" in heads else heads["o2m"]
