"""The measured figures of finished runs, one JSON file for each, and what they show together."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from nmsfree.decode import Positive, decode_json, read_bytes
from nmsfree.errors import InputError
from nmsfree.evaluation.matching import NMS_IOU
from nmsfree.text import shown
from nmsfree_training.study.rows import REFERENCE, ROWS

Result = dict[str, Any]  # see `job.make_result`

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


# Mean and deviation of every row over its seeds, and the difference to the reference.

GRID_KEYS = tuple(grid_key(iou) for iou in NMS_GRID)


@dataclass(frozen=True)
class Stat:
    """Mean, sample standard deviation (None of a single value) and number of values."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Stat":
        sd = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), sd, len(values))


@dataclass(frozen=True)
class AtIou:
    """A figure at the IoU threshold of the NMS where its mean is highest: ("0.80", …)."""

    iou: str
    stat: Stat


@dataclass(frozen=True)
class SplitSummary:
    """One row on one split; AP and F1 are 0–1.

    Attributes:
        ap: of the deployed output: the o2o head's, else the o2m head's after NMS at 0.6.
        o2m, o2m_best: AP of the o2m head after NMS at 0.6, and at the threshold of the grid with
            the highest mean; None without such a head.
        nms_gain, nms_gain_best: what NMS on top of the o2o head's output adds to its AP, at 0.6
            and at the threshold with the largest mean; None without such a head.
        duplicates, wrong_duplicates: per image, at the threshold of the best F1.
        f1, f1_with_nms: best F1 of the deployed output, and after NMS at 0.6 on top of it.
        against: AP of the o2o head minus that of the reference row at its best threshold, seed
            by seed; None without an o2o head or a seed in common.
    """

    ap: Stat
    o2m: Stat | None
    o2m_best: AtIou | None
    nms_gain: Stat | None
    nms_gain_best: AtIou | None
    duplicates: Stat
    wrong_duplicates: Stat
    f1: Stat
    f1_with_nms: Stat
    against: Stat | None


@dataclass(frozen=True)
class RowSummary:
    """One row: its seeds, minutes of training, and its figures by split."""

    row: str
    title: str
    epochs: int
    seeds: tuple[int, ...]
    minutes: Stat
    splits: dict[str, SplitSummary]


def summarize(results: Sequence[Result]) -> list[RowSummary]:
    """Return the rows that have results, in the study's order; unknown ones come last.

    Args:
        results: of runs with the same number of epochs.
    """
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda r: (_place(r["row"]), r["row"], r["seed"])):
        groups.setdefault(result["row"], []).append(result)
    reference = groups.get(REFERENCE, [])
    return [_row(group, reference) for group in groups.values()]


def _place(row: str) -> float:
    names = [known.name for known in ROWS]
    return names.index(row) if row in names else math.inf


def _row(results: list[Result], reference: list[Result]) -> RowSummary:
    first = results[-1]  # the title may have been changed meanwhile
    return RowSummary(
        first["row"],
        first["title"],
        first["epochs"],
        tuple(result["seed"] for result in results),
        Stat.of([result["minutes"] for result in results]),
        {split: _split(results, reference, split) for split in first["splits"]},
    )


def _split(results: list[Result], reference: list[Result], split: str) -> SplitSummary:
    def stat(figure: str) -> Stat:
        return Stat.of([deployed(result, split)[figure] for result in results])

    heads = results[0]["splits"][split]
    gain = _gain(results, split) if "o2o" in heads else None
    return SplitSummary(
        ap=stat("AP"),
        o2m=Stat.of(_o2m_ap(results, split, PUBLISHED_NMS)) if "o2m" in heads else None,
        o2m_best=best_o2m(results, split) if "o2m" in heads else None,
        nms_gain=Stat.of(gain(PUBLISHED_NMS)) if gain else None,
        nms_gain_best=_best(gain) if gain else None,
        duplicates=stat("duplicates_per_image"),
        wrong_duplicates=stat("wrong_duplicates_per_image"),
        f1=stat("F1"),
        f1_with_nms=stat("F1_with_nms"),
        against=_against(results, reference, split) if "o2o" in heads else None,
    )


def best_o2m(results: Sequence[Result], split: str) -> AtIou:
    """Return the o2m head's AP at the NMS threshold with the highest mean over the seeds."""
    return _best(lambda iou: _o2m_ap(results, split, iou))


def _best(values: Callable[[str], list[float]]) -> AtIou:
    """The first of equal ones, in the order of the grid."""
    stats = {iou: Stat.of(values(iou)) for iou in GRID_KEYS}
    best = max(stats, key=lambda iou: stats[iou].mean)
    return AtIou(best, stats[best])


def _o2m_ap(results: Sequence[Result], split: str, iou: str) -> list[float]:
    return [result["splits"][split]["o2m"]["nms"][iou] for result in results]


def _gain(results: Sequence[Result], split: str) -> Callable[[str], list[float]]:
    heads = [result["splits"][split]["o2o"] for result in results]
    return lambda iou: [head["nms"][iou] - head["AP"] for head in heads]


def _against(results: list[Result], reference: list[Result], split: str) -> Stat | None:
    reference = [r for r in reference if "o2m" in r["splits"].get(split, {})]
    seeds = {result["seed"] for result in results} & {result["seed"] for result in reference}
    if not seeds:
        return None
    iou = best_o2m(reference, split).iou
    theirs = {r["seed"]: r["splits"][split]["o2m"]["nms"][iou] for r in reference}
    own = {r["seed"]: deployed(r, split)["AP"] for r in results}
    return Stat.of([own[seed] - theirs[seed] for seed in sorted(seeds)])
