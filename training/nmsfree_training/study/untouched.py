"""What networks reach on a split on which nothing was chosen.

The IoU of an NMS (by AP, and by F1), the duplicate filter's τ (by F1) and the score threshold (by
F1) are chosen on another split first. How much a figure depends on the pictures, and on the seeds,
says the bootstrap: both are drawn again with replacement, the same pictures for all networks (Efron
and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 13).

Folds are datasets that test on other pictures each, with networks of their own. AP and F1 are then
the means over folds: scores of two networks are no common ranking. Folds are drawn again, too, the
same for both groups; then the seeds within each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.errors import InputError
from nmsfree.evaluation.boxes import Boxes, best_first, objects_of, read_boxes
from nmsfree.evaluation.curves import RECALLS, Curve
from nmsfree.evaluation.evaluate import category_ids_of
from nmsfree.evaluation.matching import HIT_IOU, NMS_IOU, duplicates, match, nested, survivors
from nmsfree_training.config import HeadName
from nmsfree_training.model.detector import Fcos
from nmsfree_training.model.filters import DuplicateFilter
from nmsfree_training.study.measure import DIGITS, candidates
from nmsfree_training.study.results import NMS_GRID, PUBLISHED_NMS
from nmsfree_training.weights.checkpoint import Checkpoint, load_checkpoint
from nmsfree_training.weights.predict import PostprocessConfig

if TYPE_CHECKING:
    from rich.console import Console

IOUS = np.arange(50, 100, 5) / 100  # at which COCO's AP is the mean
TAUS = (0.76, 0.7, 0.65, 0.6, 0.55, 0.5)  # of the duplicate filter, once trained
DRAWS = 1000
FLOOR = PostprocessConfig(1).score_floor
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Found:
    """What an output gives in a split, and what there is.

    Attributes:
        found: detections, as `best_first` sorts them.
        truth: objects.
        images: how many pictures the split has.
    """

    found: Boxes
    truth: Boxes
    images: int

    def best(self) -> tuple[float, float]:
        """The best F1 and its score threshold; 0 and 1 if no object is hit."""
        matches = match(self.found, self.truth)
        own, objects = ~matches.ignored, int((~self.truth.crowd).sum())
        hit = matches.hit[own]
        point = Curve.of(self.found.score[own], hit, objects, FLOOR).best_f1()
        return (0.0, 1.0) if point is None else (point.f1, point.threshold)

    def counts(self, threshold: float) -> Values:
        """float64 [3, images]: hits, detections and objects above a score threshold."""
        shown = self.found.select(self.found.score > threshold)
        matches = match(shown, self.truth)
        rows = (
            shown.image[matches.hit],
            shown.image[~matches.ignored],
            self.truth.image[~self.truth.crowd],
        )
        return np.array([np.bincount(row, minlength=self.images) for row in rows], np.float64)

    def ap(self) -> Callable[[Values], tuple[float, float]]:
        """Match once; return COCO's AP and AP50, 0–1, by the weights [images] of the pictures.

        With a weight of one each it is what `CocoScorer` gives where no picture has over a hundred
        detections of a class.
        """
        order = np.argsort(-self.found.score, kind="stable")
        matches = [match(self.found, self.truth, iou=iou) for iou in IOUS]
        hit = np.array([m.hit[order] for m in matches])  # [10, n]
        wrong = np.array([~m.hit[order] & ~m.ignored[order] for m in matches])
        image, label = self.found.image[order], self.found.label[order]
        objects = ~self.truth.crowd
        classes = []
        for own in np.unique(self.truth.label[objects]).tolist():
            rows = np.flatnonzero(label == own)
            there = self.truth.image[objects & (self.truth.label == own)]
            count = np.bincount(there, minlength=self.images).astype(np.float64)
            classes.append((image[rows], hit[:, rows], wrong[:, rows], count))

        def weighted(weights: Values) -> tuple[float, float]:
            parts = []
            for pictures, right, false, count in classes:
                total = float(weights @ count)
                if total > 0:
                    own = weights[pictures]
                    parts.append(_precisions(own * right, own * false, total))
            means = np.mean(parts, axis=0) if parts else np.zeros(len(IOUS))
            return float(means.mean()), float(means[0])

        return weighted


def _precisions(right: Values, wrong: Values, total: float) -> Values:
    """Average precision [10] of a class; right and wrong: weights [10, n], best score first."""
    hits, misses = right.cumsum(axis=1), wrong.cumsum(axis=1)
    precision = hits / np.maximum(hits + misses, 1e-12)
    beyond = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.concatenate([beyond, np.zeros((len(beyond), 1))], axis=1)
    # Sums of weights differ in their last bits: a recall that is reached counts as reached.
    at = [np.searchsorted(row / total + 1e-12, RECALLS, "left") for row in hits]
    return np.array([row[own].mean() for row, own in zip(reached, at, strict=True)])


@dataclass(frozen=True, eq=False)
class Output:
    """A head, what was chosen for it, and its detections in the untouched split.

    Attributes:
        nms: IoU of the NMS behind the head; None has none.
        tau: of the duplicate filter, where it is another than the checkpoint's.
        threshold: of the score, with the best F1 in the split for choosing.
        seen: in the untouched split.
    """

    head: HeadName
    nms: float | None
    tau: float | None
    threshold: float
    seen: Found

    def figures(self) -> dict[str, Any]:
        """AP and F1 are 0–1; duplicates and nested pairs are counted above the threshold."""
        hits, detections, objects = self.seen.counts(self.threshold).sum(axis=1).tolist()
        found, images = self.seen.found, self.seen.images
        shown = found.select(found.score > self.threshold)
        ap, ap50 = self.seen.ap()(np.ones(images))
        figures = {
            "threshold": self.threshold,
            "AP": ap,
            "AP50": ap50,
            "F1": 2 * hits / max(1.0, detections + objects),
            "F1_best_here": self.seen.best()[0],
            "precision": hits / max(1.0, detections),
            "recall": hits / max(1.0, objects),
            "duplicates_per_image_iou50": int(duplicates(shown, HIT_IOU).sum()) / images,
            "duplicates_per_image": int(duplicates(shown).sum()) / images,
            "nested_pairs_per_image": nested(shown) / images,
        }
        chosen = {"nms": self.nms, "tau": self.tau}
        return chosen | {name: round(v, DIGITS) for name, v in figures.items()}


def outputs(checkpoint: Path, data: Path, choose: str, split: str) -> dict[str, Output]:
    """Choose on one split and detect in another.

    Returns:
        By name: of the o2m head "o2m, NMS 0.60", "o2m, best NMS" and "o2m, NMS for F1", of the o2o
        head "o2o", "o2o, best NMS" and, where it has a duplicate filter, "o2o, τ for F1".

    Raises:
        NmsfreeError: see `measure`.
    """
    loaded = load_checkpoint(checkpoint)
    network, made = loaded.build(), dict[str, Output]()
    first, other = load_dataset(data, choose), load_dataset(data, split)

    def add(seen: tuple[_Seen, _Seen], name: str, nms: float | None, tau: float | None) -> None:
        head: HeadName = "o2m" if name.startswith("o2m") else "o2o"
        threshold = seen[0].found(head, nms).best()[1]
        made[name] = Output(head, nms, tau, threshold, seen[1].found(head, nms))

    seen = _Seen(network, loaded, first), _Seen(network, loaded, other)
    for head in loaded.model.heads:
        of_nms = {iou: seen[0].found(head, iou) for iou in NMS_GRID}
        plain = {"o2m": (f"o2m, NMS {PUBLISHED_NMS}", NMS_IOU), "o2o": ("o2o", None)}[head]
        add(seen, *plain, None)
        best = max(NMS_GRID, key=lambda iou: of_nms[iou].ap()(seen[0].equal)[0])
        add(seen, f"{head}, best NMS", best, None)
        if head == "o2m":
            most = max(NMS_GRID, key=lambda iou: of_nms[iou].best()[0])
            add(seen, "o2m, NMS for F1", most, None)
    if (own := _filter_of(network)) is not None:
        at = dict[float, _Seen]()
        for own.deployed in TAUS:
            at[own.deployed] = _Seen(network, loaded, first)
        own.deployed = max(TAUS, key=lambda tau: at[tau].found("o2o", None).best()[0])
        pair = at[own.deployed], _Seen(network, loaded, other)
        add(pair, "o2o, τ for F1", None, own.deployed)
    return made


def _filter_of(network: Fcos) -> DuplicateFilter | None:
    if "o2o" not in network.heads:
        return None
    found = network.heads["o2o"].duplicate_filter
    return found if isinstance(found, DuplicateFilter) else None


class _Seen:
    """What a network's heads find in a split, before any NMS."""

    def __init__(self, network: Fcos, checkpoint: Checkpoint, dataset: DetectionDataset) -> None:
        self._ids = [sample.image_id for sample in dataset.samples]
        self._categories = category_ids_of(checkpoint.class_names, dataset)
        self._labels = {category: label for label, category in enumerate(self._categories)}
        self._truth = objects_of(dataset, self._labels)
        self._size = checkpoint.input_size
        self._candidates = candidates(network, checkpoint, dataset)
        self.equal = np.ones(len(dataset))

    def found(self, head: HeadName, nms: float | None) -> Found:
        """Of the o2m head the NMS leaves its best hundred, of the o2o head it comes after them."""
        inside = nms if head == "o2m" else None
        images = self._candidates[head]
        rows = [row for i in images for row in i.results(self._categories, self._size, inside)]
        boxes = best_first(read_boxes(rows, self._ids, self._labels))
        if nms is not None and nms != inside:
            boxes = boxes.select(survivors(boxes, nms))
        return Found(boxes, self._truth, len(self._ids))


# How sure it is.


@dataclass(frozen=True)
class Interval:
    """A mean over networks, or a difference of two such means, and 95 % of its draws."""

    mean: float
    low: float
    high: float


def intervals(
    ours: Sequence[Output], theirs: Sequence[Output] = (), folds: int = 1, seed: int = 0
) -> dict[str, Interval]:
    """AP and F1 (0–1) of networks that differ by their seed and fold, less those of others.

    Args:
        ours, theirs: one output of each network; of the same length, seeds of theirs are drawn
            with ours, one by one. None of theirs: ours alone.
        folds: all those of the first seed come first, then those of the next; the drawn folds and
            the drawn pictures of a fold are the same for both.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    # [draws + 1, images] of each fold
    pictures = [_pictures(rng, output.seen.images) for output in ours[:folds]]
    groups = [group for group in (ours, theirs) if group]
    # [draws + 1, networks] by figure and group
    by_figure = {
        name: [np.array(list(map(values, group, cycle(pictures)))).T for group in groups]
        for name, values in (("AP", _aps), ("F1", _f1s))
    }
    of_folds = _shares(rng, folds)
    drawn = [_of_networks(of_folds, _shares(rng, len(g) // folds, folds)) for g in groups]
    if len(groups) == 2 and len(ours) == len(theirs):
        drawn[1] = drawn[0]
    made = {}
    for name, values in by_figure.items():
        means = [(v * w).sum(axis=1) for v, w in zip(values, drawn, strict=True)]
        total = means[0] - means[1] if len(means) == 2 else means[0]
        low, high = np.quantile(total[1:], (0.025, 0.975)).tolist()
        made[name] = Interval(*(round(float(v), DIGITS) for v in (total[0], low, high)))
    return made


def _pictures(rng: np.random.Generator, count: int) -> Values:
    """How often each picture is drawn, [draws + 1, count]; the first is what was measured."""
    drawn = rng.multinomial(count, [1 / count] * count, size=DRAWS)
    return np.concatenate([np.ones((1, count)), drawn])


def _shares(rng: np.random.Generator, count: int, *more: int) -> Values:
    """Shares [draws + 1, *more, count] of what is drawn; the first are equal."""
    drawn = rng.multinomial(count, [1 / count] * count, size=(DRAWS, *more)) / count
    return np.concatenate([np.full((1, *more, count), 1 / count), drawn])


def _of_networks(folds: Values, seeds: Values) -> Values:
    """Shares [draws + 1, networks], of shares of folds and of the seeds within each."""
    both: Values = (folds[:, :, None] * seeds).swapaxes(1, 2)
    return both.reshape(len(both), -1)


def _aps(output: Output, pictures: Values) -> list[float]:
    ap = output.seen.ap()
    return [ap(weights)[0] for weights in pictures]


def _f1s(output: Output, pictures: Values) -> Values:
    hits, detections, objects = output.seen.counts(output.threshold) @ pictures.T
    f1: Values = 2 * hits / np.maximum(1.0, detections + objects)
    return f1


def compare(
    ours: Sequence[Path], theirs: Sequence[Path], data: Sequence[Path], choose: str, split: str
) -> dict[str, Any]:
    """Figures of networks, and of ours less theirs, ready for `json.dumps`.

    Args:
        ours, theirs: checkpoints of one recipe each, which differ by their seed; theirs may lack.
        data: a dataset, or folds: checkpoints are of one fold after the other, seed by seed.

    Returns:
        networks: by "ours" and "theirs" and by output the mean figures, and `AP` and `F1` as
        intervals. differences: of our outputs without NMS (or else of all) less each of theirs.

    Raises:
        NmsfreeError: see `measure`.
    """
    groups = {"ours": ours, "theirs": theirs}
    for paths in groups.values():
        if len(paths) % len(data):
            raise InputError(
                f"{len(paths)} weights for {len(data)} folds: give those of all folds, seed by seed"
            )
        models = [load_checkpoint(path).model for path in paths]
        if len({(tuple(model.heads), model.dedup_iou > 0) for model in models}) > 1:
            given = ", ".join(map(str, paths))
            raise InputError(f"{given} have other heads or filters: compare them as two groups")
    folds = cycle(data)  # each group has all of them
    found = {
        title: [outputs(path, next(folds), choose, split) for path in paths]
        for title, paths in groups.items()
        if paths
    }
    names = ", ".join(one.resolve().name for one in data)
    made: dict[str, Any] = {"data": names, "choose": choose, "split": split}
    made["files"] = {title: [str(path) for path in paths] for title, paths in groups.items()}
    made["networks"] = {title: _means(networks, len(data)) for title, networks in found.items()}
    free = ("o2o", "o2o, τ for F1")
    made["differences"] = {
        f"{mine} less {name}": _json(
            intervals(
                [n[mine] for n in found["ours"]], [n[name] for n in found["theirs"]], len(data)
            )
        )
        for mine in found["ours"][0]
        if mine in free or free[0] not in found["ours"][0]
        for name in (found["theirs"][0] if theirs else {})
    }
    return made


def _means(networks: Sequence[dict[str, Output]], folds: int) -> dict[str, Any]:
    made = dict[str, Any]()
    for name in networks[0]:
        own = [network[name] for network in networks]
        figures = [output.figures() for output in own]
        made[name] = {key: [figure.pop(key) for figure in figures] for key in ("nms", "tau")}
        made[name] |= {
            k: round(float(np.mean([f[k] for f in figures])), DIGITS) for k in figures[0]
        }
        made[name] |= _json(intervals(own, folds=folds))
    return made


def _json(found: dict[str, Interval]) -> dict[str, Any]:
    return {name: vars(interval) for name, interval in found.items()}


COLUMNS = {  # of the table, by the name of the figure: title, factor, decimals
    "AP50": ("AP50", 100, 1),
    "F1_best_here": ("best F1 here", 100, 1),
    "duplicates_per_image_iou50": ("duplicates IoU > 0.5", 1, 2),
    "duplicates_per_image": ("IoU > 0.7", 1, 2),
    "nested_pairs_per_image": ("nested pairs", 1, 2),
}


def print_comparison(found: dict[str, Any], console: "Console") -> None:
    """Print what `compare` returns as two tables."""
    from rich import box
    from rich.table import Table

    def cell(interval: dict[str, float], sign: str = "") -> str:
        mean, low, high = (100 * interval[key] for key in ("mean", "low", "high"))
        return f"{mean:{sign}.1f} ({low:{sign}.1f} … {high:{sign}.1f})".replace("-", "−")

    title = f"{found['data']} {found['split']}; thresholds chosen on {found['choose']}"
    names = ("weights", "output", "NMS, τ", "AP", "F1", *(c[0] for c in COLUMNS.values()))
    table = Table(*names, box=box.SIMPLE, title=title)
    for group, networks in found["networks"].items():
        for name, own in networks.items():
            ious = own["nms" if own["tau"][0] is None else "tau"]
            nms = ", ".join("–" if iou is None else f"{iou:.2f}" for iou in ious)
            rest = (f"{factor * own[k]:.{n}f}" for k, (_, factor, n) in COLUMNS.items())
            table.add_row(group, name, nms, cell(own["AP"]), cell(own["F1"]), *rest)
    console.print(table)
    if found["differences"]:
        table = Table("ours − theirs", "AP", "F1", box=box.SIMPLE)
        for name, own in found["differences"].items():
            table.add_row(name, cell(own["AP"], "+"), cell(own["F1"], "+"))
        console.print(table)
