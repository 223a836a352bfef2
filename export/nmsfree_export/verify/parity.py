"""Parity: do two models say the same about the same pictures?

Rows are matched by class and nearest box, since rows of nearly equal score may swap. A row may
stay without a partner only where the list is cut: its score is within the tolerance of the cut
(the floor, or the last row).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import Backend, RawDetections
from nmsfree.datasets.digits.scenes import make_scene
from nmsfree.detector import IMAGES_PER_RUN, Detector
from nmsfree.errors import GateError, InputError, ModelError
from nmsfree.images import read_image
from nmsfree.spec import ModelSpec, canary
from nmsfree.streams.sources import IMAGE_SUFFIXES

MAX_IMAGES = 64
Pictures = Sequence[tuple[str, NDArray[np.uint8]]]  # names and BGR images

ROUNDING = 1e-6  # rows are sorted by logit; sigmoids of equal ones may differ in the last bit


@dataclass(frozen=True)
class Tolerance:
    """Largest differences allowed: of scores (0-1) and of box corners (input pixels)."""

    score: float = 1e-4
    box: float = 0.05


def tolerance_for(*precisions: str) -> Tolerance:
    """What may differ between models that compute in these: that of the lower, "fp32" or "fp16".

    A half has 11 bits: seen are 1e-3 and 0.06 pixels, with batch norm and with GroupNorm. For
    eight bits see `gate.gate_for`.
    """
    return Tolerance(0.01, 0.5) if "fp16" in precisions else Tolerance()


@dataclass(frozen=True)
class Parity:
    """Outcome of a comparison.

    Attributes:
        images, rows: what was compared.
        unmatched: rows of either model without a partner, those at the cut left out.
        score_difference, box_difference: the largest of matched rows.
        worst_image: name of the image with the largest box difference.
    """

    images: int
    rows: int
    unmatched: int
    score_difference: float
    box_difference: float
    worst_image: str
    tolerance: Tolerance

    @property
    def passed(self) -> bool:
        return (
            self.rows > 0
            and self.unmatched == 0
            and self.score_difference <= self.tolerance.score
            and self.box_difference <= self.tolerance.box
        )

    def __str__(self) -> str:
        if self.rows == 0:
            return (
                f"{self.images} images, no detection above the floor, so nothing was compared: "
                "give pictures the model finds something in with --images DIR, or a lower "
                "--score-floor"
            )
        return (
            f"{self.images} images, {self.rows} rows, {self.unmatched} unmatched, "
            f"largest difference: score {self.score_difference:.1e} "
            f"(allowed {self.tolerance.score:.0e}), box {self.box_difference:.1e} px "
            f"(allowed {self.tolerance.box:g}; {self.worst_image})"
        )

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"passed": self.passed}

    def enforce(self) -> None:
        """Raise GateError unless the comparison passed."""
        if not self.passed:
            raise GateError(f"parity: {self}")


def load_images(folder: Path | None) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return named BGR images: a folder's first 64, or the bundled scenes.

    Raises:
        InputError: the folder is missing, holds no image, or one that cannot be read.
    """
    if folder is None:
        return [
            (f"bundled {split} scene {i}", make_scene(split, i).image)
            for split, i in (("val", 0), ("val", 1), ("val", 2), ("crowd", 0), ("crowd", 1))
        ]
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected one with images")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"{folder}: no images in it ({', '.join(IMAGE_SUFFIXES)})")
    return [(p.name, read_image(p)) for p in files[:MAX_IMAGES]]


def seeded_images(seed: int, spec: ModelSpec) -> Pictures:
    """Return pictures that no file can have been made for: a scene, noise, and the canary.

    Args:
        seed: of the first two; the same seed gives the same pictures.
        spec: of a model, for the size of its input.
    """
    size = (spec.height, spec.width, 3)
    blocks = np.random.default_rng(seed).integers(0, 256, size, np.uint8)[::16, ::16]
    noise = blocks.repeat(16, axis=0).repeat(16, axis=1)[: size[0], : size[1]]
    return [
        (f"scene of seed {seed}", make_scene("val", 0, seed).image),
        (f"noise of seed {seed}", np.ascontiguousarray(noise)),
        ("canary", canary(spec.height, spec.width)),
    ]


def compare(
    a: Backend,
    b: Backend,
    images: Pictures,
    tolerance: Tolerance = Tolerance(),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Run both models on the same letterboxed pixels and compare all rows.

    Every row counts for the NMS-free head, also those below the floor; those above it for NMS.

    The first picture runs alone and the others together, so that both batch sizes are seen.

    Raises:
        ModelError: the models differ in input size, classes, rows or floor.
        GateError: one of them breaks the output contract.
    """
    _check_comparable(a.spec, b.spec)
    detector = Detector(a)
    rows = unmatched = 0
    score, box, worst = 0.0, 0.0, "–"
    step = min(s.batch or IMAGES_PER_RUN for s in (a.spec, b.spec))
    starts = [0, *range(1, len(images), step)]
    for start, end in zip(starts, [*starts[1:], len(images)], strict=True):
        chunk = images[start:end]
        pixels = np.concatenate([detector.preprocess([image])[0][:1] for _, image in chunk])
        raw_a, raw_b = run_any_batch(a, pixels), run_any_batch(b, pixels)
        for backend, raw in ((a, raw_a), (b, raw_b)):
            _check_contract(raw, backend, tolerance)
        for i, (name, _) in enumerate(chunk):
            outcome = _compare_image(
                _rows(raw_a, i, a.spec), _rows(raw_b, i, b.spec), a.spec, tolerance
            )
            rows += outcome.rows
            unmatched += outcome.unmatched
            score = max(score, outcome.score)
            if outcome.box >= box:
                box, worst = outcome.box, name
        progress(end, len(images))
    return Parity(len(images), rows, unmatched, score, box, worst, tolerance)


def _check_comparable(a: ModelSpec, b: ModelSpec) -> None:
    for name in ("height", "width", "top_k", "score_floor", "class_names", "category_ids"):
        if getattr(a, name) != getattr(b, name):
            raise ModelError(
                f"the models cannot be compared: {name} {getattr(a, name)} and {getattr(b, name)}"
            )


def _check_contract(raw: RawDetections, backend: Backend, tolerance: Tolerance) -> None:
    """Refuse an output that a runtime would misread, however well its rows match.

    Raises:
        GateError: says what is wrong with which engine's output.
    """
    spec, scores, boxes = backend.spec, raw.detection_scores, raw.detection_boxes
    n, k = len(scores), spec.top_k
    form = {
        "num_detections": ("int32", (n, 1)),
        "detection_boxes": ("float32", (n, k, 4)),
        "detection_scores": ("float32", (n, k)),
        "detection_classes": ("int32", (n, k)),
    }
    for name, value in raw._asdict().items():
        if (str(value.dtype), value.shape) != form[name]:
            raise GateError(
                f"parity: {backend.description} gives {name} {value.dtype} {list(value.shape)},"
                f" expected {form[name][0]} {list(form[name][1])}"
            )
    limit = np.array([spec.width, spec.height] * 2)
    low = (scores > spec.score_floor + tolerance.score).sum(axis=1)
    high = (scores > spec.score_floor - tolerance.score).sum(axis=1)
    counts = raw.num_detections[:, 0]
    faults = {
        "values that are not finite": not (np.isfinite(scores).all() and np.isfinite(boxes).all()),
        "scores that do not descend": (np.diff(scores, axis=1) > ROUNDING).any(),
        "scores outside 0 … 1": (scores < 0).any() or (scores > 1 + ROUNDING).any(),
        "inverted boxes": (boxes[..., 2:] < boxes[..., :2]).any(),
        "boxes outside the input": (boxes < 0).any() or (boxes > limit).any(),
        "class ids out of range": not np.isin(
            raw.detection_classes, np.arange(len(spec.class_names))
        ).all(),
        "num_detections that is not the count of scores above the floor": (
            (counts < low) | (counts > high)
        ).any(),
    }
    found = [fault for fault, present in faults.items() if present]
    if found:
        raise GateError(f"parity: {backend.description} gives {', '.join(found)}")


def run_any_batch(backend: Backend, pixels: NDArray[np.uint8]) -> RawDetections:
    """Run uint8 [N, H, W, 3] whatever the model's own batch: a last chunk is filled up."""
    step = backend.spec.batch or len(pixels)
    parts = []
    for start in range(0, len(pixels), step):
        chunk = pixels[start : start + step]
        filled = np.zeros((step, *pixels.shape[1:]), np.uint8)
        filled[: len(chunk)] = chunk
        parts.append([output[: len(chunk)] for output in backend.run(filled)])
    return RawDetections(*(np.concatenate(p) for p in zip(*parts, strict=True)))


@dataclass(frozen=True)
class _Rows:
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int32]
    cut: float  # rows near this score may be missing


def _rows(raw: RawDetections, i: int, spec: ModelSpec) -> _Rows:
    scores = raw.detection_scores[i]
    count = int(raw.num_detections[i, 0]) if spec.nms is not None else len(scores)
    full = count == len(scores)
    cut = float(scores[-1]) if full else spec.score_floor
    return _Rows(
        raw.detection_boxes[i, :count], scores[:count], raw.detection_classes[i, :count], cut
    )


@dataclass(frozen=True)
class _Outcome:
    rows: int
    unmatched: int
    score: float
    box: float


def _compare_image(a: _Rows, b: _Rows, spec: ModelSpec, tolerance: Tolerance) -> _Outcome:
    partner = _match(a, b, spec)
    found = np.flatnonzero(partner >= 0)
    other = partner[found]
    alone_a = a.scores[partner < 0]
    alone_b = b.scores[np.setdiff1d(np.arange(len(b.scores)), other)]
    score = np.abs(a.scores[found] - b.scores[other]).max(initial=0)
    box = np.abs(a.boxes[found] - b.boxes[other]).max(initial=0)
    # A row may be alone only where the other list is cut.
    unmatched = int((alone_a > b.cut + tolerance.score).sum())
    unmatched += int((alone_b > a.cut + tolerance.score).sum())
    return _Outcome(len(found) + unmatched, unmatched, float(score), float(box))


def _match(a: _Rows, b: _Rows, spec: ModelSpec) -> NDArray[np.int64]:
    """Partner in `b` of every row of `a`, −1 for none; closest pairs first.

    Closeness counts score and box together, so that of two equal boxes (two classes' worth of one
    cell, or twins) the one with the right score is taken. Farther than this is no partner.
    """
    limit = 0.05  # of the score, and of the input's longer side
    side = max(spec.height, spec.width)
    distance = np.abs(a.boxes[:, None] - b.boxes[None]).max(axis=-1) / side
    distance = np.maximum(distance, np.abs(a.scores[:, None] - b.scores[None]))
    distance[a.classes[:, None] != b.classes[None]] = np.inf
    partner = np.full(len(a.scores), -1, np.int64)
    taken = np.zeros(len(b.scores), bool)
    for flat in np.argsort(distance, axis=None, kind="stable"):
        i, j = divmod(int(flat), len(b.scores))
        if distance[i, j] > limit:
            break
        if partner[i] < 0 and not taken[j]:
            partner[i], taken[j] = j, True
    return partner


UNMATCHED = 0.1  # share of rows that may have no partner, unless asked otherwise


def int8_tolerance(spec: ModelSpec) -> Tolerance:
    """How far rows may differ and still be partners: 0.05 of the score and of the longer side."""
    return Tolerance(0.05, 0.05 * max(spec.height, spec.width))


@dataclass(frozen=True)
class Int8Parity(Parity):
    """Parity that allows some rows to have no partner.

    Eight bits move every score a little, so of cells that compete for an object, or at the end of
    the list, another may win. On trained weights 0.4 % of the rows (for a processor) and none (for
    TensorRT) had no partner; a network that quantisation broke loses most of them.

    Attributes:
        allowed: share of the rows that may have none.
    """

    allowed: float = 0.0

    @classmethod
    def of(cls, parity: Parity, allowed: float) -> "Int8Parity":
        """Judge an outcome of `compare` by the share of unmatched rows."""
        return cls(**vars(parity), allowed=allowed)

    @property
    def passed(self) -> bool:
        return self.rows > 0 and self.unmatched <= self.allowed * self.rows

    def __str__(self) -> str:
        if self.rows == 0:
            return super().__str__()
        return (
            f"{self.images} images, {self.rows} rows, {self.unmatched} unmatched "
            f"({self.unmatched / self.rows:.1%}, allowed {100 * self.allowed:.3g}%), of the others "
            f"largest difference: score {self.score_difference:.1e}, "
            f"box {self.box_difference:.1e} px"
        )

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"passed": self.passed}
