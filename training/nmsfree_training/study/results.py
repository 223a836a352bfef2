"""The measured figures of finished runs, one JSON file for each, and what they show together."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from nmsfree.errors import InputError
from nmsfree.evaluation.matching import NMS_IOU
from nmsfree.parsing import Positive, decode_json, read_bytes
from nmsfree.text import shown
from nmsfree_training.study.rows import REFERENCE, ROWS

SPLITS = ("val", "overlap")  # of digits: what recipes are compared on
NMS_GRID = tuple(percent / 100 for percent in range(50, 100, 5))  # IoU thresholds, 0.50 … 0.95
AGAIN = "expected what `nmsfree study run` writes: delete the file, or move it elsewhere"


def grid_key(iou: float) -> str:
    """An IoU threshold as the results name it: "0.60"."""
    return f"{iou:.2f}"


PUBLISHED_NMS = grid_key(NMS_IOU)
_Score = Annotated[float, Meta(ge=-1, le=1)]  # −1 where a split has no object
_Count = Annotated[float, Meta(ge=0)]


@dataclass(frozen=True)
class Head:
    """What the tables need of the figures of a head; all of them are in `measure`."""

    AP: _Score
    F1: _Score
    F1_with_nms: _Score
    duplicates_per_image: _Count
    wrong_duplicates_per_image: _Count
    nms: dict[str, _Score]  # AP by the IoU of an NMS

    def __post_init__(self) -> None:
        missing = [key for key in map(grid_key, NMS_GRID) if key not in self.nms]
        if missing:
            raise InputError(f"nms has no AP at IoU {', '.join(missing)}: {AGAIN}")


@dataclass(frozen=True)
class Split:
    """The figures of a split by head."""

    o2m: Head | None = None
    o2o: Head | None = None

    def __post_init__(self) -> None:
        if self.o2m is self.o2o is None:
            raise InputError(f"a split has the figures of no head, expected o2m or o2o: {AGAIN}")

    @property
    def deployed(self) -> Head:
        """Of the output that is used: of the o2o head, else of o2m with NMS 0.6."""
        head = self.o2o or self.o2m
        assert head is not None
        return head


@dataclass(frozen=True)
class Result:
    """What the tables need of a run's file, see `job.make_result`."""

    row: str
    title: str
    epochs: Positive
    seed: int
    command: str
    minutes: _Count  # of training
    splits: dict[str, Split]


def read_result(path: Path) -> Result:
    """Read the figures of one run.

    Raises:
        InputError: the file cannot be read, or is something else.
    """
    return decode_json(read_bytes(path), Result, path, InputError, AGAIN)


def read_results(folder: Path) -> list[Result]:
    """Read all results of a folder, in the order of their names; none if it is not there.

    Raises:
        InputError: a JSON file in it is no result.
    """
    return [read_result(path) for path in sorted(folder.glob("*.json"))]


def of_one_length(results: list[Result], epochs: int | None, folder: Path) -> list[Result]:
    """Return the results of runs with so many epochs; None: of all, if they are alike.

    Raises:
        InputError: there are none, or of several lengths and none is chosen.
    """
    lengths = sorted({result.epochs for result in results})
    found = ", ".join(map(str, lengths)) or "none"
    if epochs is None and len(lengths) > 1:
        raise InputError(f"{folder}: results of {found} epochs, expected one: choose --epochs")
    chosen = [result for result in results if epochs in (None, result.epochs)]
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
    runs = Counter((result.row, result.epochs, result.seed) for result in results)
    for (row, epochs, seed), count in runs.items():
        if count > 1:
            raise InputError(
                f"{row}, {epochs} epochs, seed {seed} is there {count} times, expected once:"
                " leave one of the folders out"
            )
    measured: dict[str, dict[str, tuple[bool, bool]]] = {}
    for result in results:
        heads = {name: (s.o2m is None, s.o2o is None) for name, s in result.splits.items()}
        if measured.setdefault(result.row, heads) != heads:
            raise InputError(
                f"{shown(result.row)}, seed {result.seed}: has other splits or heads than"
                " another seed of the row: measure them alike"
            )
    return results


# Mean and deviation of every row over its seeds, and the difference to the reference.


@dataclass(frozen=True)
class Stat:
    """Mean, sample standard deviation (None of a single value) and number of values."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Stat":
        known = list(values)
        sd = statistics.stdev(known) if len(known) > 1 else None
        return cls(statistics.fmean(known), sd, len(known))


@dataclass(frozen=True)
class AtIou:
    """A figure at the IoU threshold of the NMS where its mean is highest: ("0.80", …)."""

    iou: str
    stat: Stat


@dataclass(frozen=True)
class SplitSummary:
    """One row on one split; AP and F1 are 0–1. None: it has no such head, or no such seed."""

    ap: Stat  # of the deployed output: the o2o head's, else the o2m head's after NMS at 0.6
    o2m: Stat | None  # AP of the o2m head after NMS at 0.6
    o2m_best: AtIou | None  # and at the threshold of the grid with the highest mean
    nms_gain: Stat | None  # what NMS at 0.6 on top of the o2o head's output adds to its AP
    nms_gain_best: AtIou | None  # and at the threshold with the largest mean
    duplicates: Stat  # per image, at the threshold of the best F1
    wrong_duplicates: Stat
    f1: Stat  # best F1 of the deployed output
    f1_with_nms: Stat  # and after NMS at 0.6 on top of it
    against: Stat | None  # the o2o head's AP minus the reference's at its best, seed by seed


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
    places = {row.name: place for place, row in enumerate(ROWS)}
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda r: (places.get(r.row, math.inf), r.row, r.seed)):
        groups.setdefault(result.row, []).append(result)
    reference = groups.get(REFERENCE, [])
    return [
        RowSummary(
            row,
            own[-1].title,  # it may have been changed meanwhile
            own[-1].epochs,
            tuple(result.seed for result in own),
            Stat.of(result.minutes for result in own),
            {split: _split(own, reference, split) for split in own[-1].splits},
        )
        for row, own in groups.items()
    ]


def _split(results: list[Result], reference: list[Result], split: str) -> SplitSummary:
    deployed = [result.splits[split].deployed for result in results]
    o2m, o2o = (list(_heads(results, split, name).values()) for name in ("o2m", "o2o"))
    theirs, best = _heads(reference, split, "o2m"), None
    if theirs:
        best = _best(lambda iou: [head.nms[iou] for head in theirs.values()]).iou
    pairs = [
        head.AP - theirs[seed].nms[best]
        for seed, head in _heads(results, split, "o2o").items()
        if best and seed in theirs
    ]
    return SplitSummary(
        ap=Stat.of(head.AP for head in deployed),
        o2m=Stat.of(head.nms[PUBLISHED_NMS] for head in o2m) if o2m else None,
        o2m_best=_best(lambda iou: [head.nms[iou] for head in o2m]) if o2m else None,
        nms_gain=Stat.of(head.nms[PUBLISHED_NMS] - head.AP for head in o2o) if o2o else None,
        nms_gain_best=_best(lambda iou: [h.nms[iou] - h.AP for h in o2o]) if o2o else None,
        duplicates=Stat.of(head.duplicates_per_image for head in deployed),
        wrong_duplicates=Stat.of(head.wrong_duplicates_per_image for head in deployed),
        f1=Stat.of(head.F1 for head in deployed),
        f1_with_nms=Stat.of(head.F1_with_nms for head in deployed),
        against=Stat.of(pairs) if pairs else None,
    )


def _heads(results: list[Result], split: str, name: Literal["o2m", "o2o"]) -> dict[int, Head]:
    """A head's figures by seed, where there are any."""
    found = {r.seed: getattr(r.splits.get(split), name, None) for r in results}
    return {seed: head for seed, head in found.items() if head is not None}


def _best(values: Callable[[str], list[float]]) -> AtIou:
    """The first of equal ones, in the order of the grid."""
    stats = {iou: Stat.of(values(iou)) for iou in map(grid_key, NMS_GRID)}
    best = max(stats, key=lambda iou: stats[iou].mean)
    return AtIou(best, stats[best])
