"""Mean and deviation of every row over its seeds, and the difference to the reference."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nmsfree_training.study.results import NMS_GRID, PUBLISHED_NMS, Result, deployed, grid_key
from nmsfree_training.study.rows import REFERENCE, ROWS

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


def summarise(results: Sequence[Result]) -> list[RowSummary]:
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
