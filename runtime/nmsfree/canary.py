"""Canary: a picture that anybody can compute, and what the file answered to it when it was written.

An engine, driver or machine that answers it differently would answer every picture differently.
"""

from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import Backend, RawDetections
from nmsfree.backends.rows import Rows, match, raw_rows
from nmsfree.errors import ModelError
from nmsfree.spec import LEAST_ROWS, Canary, ModelSpec, Tolerance

FAINT = 1e-4  # scores below count as this one: they tell too little
CUT = 1e-3  # of ln(score): rows this near to the end of the list may be cut off
FAR = 10  # tolerances: up to here a row is a partner that differs, beyond it is another object


def canary_picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return a BGR picture of coloured squares, uint8 [height, width, 3].

    Unsigned 32-bit arithmetic, which wraps, and nothing else. Channel c of pixel (x, y) is
    v = (3 · h(32) + h(8)) / 4, rounded down, where of the square of side s that the pixel is in

        h(s) = the upper 8 bits of k · 2246822519, k = i xor (i / 2^15),
        i = (seed + s + 3 · (x / s) + 12288 · (y / s) + c) · 2654435761.

    An odd seed halves the contrast: the channel is v / 2 + 64 there, rounded down.
    """
    y, x, c = (axis.astype(np.uint32) for axis in np.ogrid[:height, :width, :3])
    picture = np.zeros((height, width, 3), np.uint32)
    for side, weight in ((32, 3), (8, 1)):
        number: NDArray[Any] = np.uint32(seed + side) + 3 * (x // side) + 12288 * (y // side) + c
        number = number * np.uint32(2654435761)
        number = (number ^ (number >> 15)) * np.uint32(2246822519)
        picture += weight * (number >> 24)
    picture //= 4
    return (picture // 2 + 64 if seed % 2 else picture).astype(np.uint8)


def canary_input(spec: ModelSpec, seed: int) -> NDArray[np.uint8]:
    """The picture as `images`, uint8 [N, H, W, 3]: in every place of a fixed batch, or once."""
    picture = canary_picture(*spec.canary_size, seed)
    return np.repeat(picture[None], spec.batch or 1, axis=0)


@dataclass(frozen=True)
class SelfCheck:
    """How an engine answered the canary.

    Attributes:
        engine: what ran, and where.
        rows: of the file, times the batch.
        missing: rows that the engine gives otherwise, or not at all; those at the end of the list,
            where it is cut, are forgiven.
        score_difference: by how much ln(score) differs, about the relative difference of scores:
            the largest of rows that have a partner, without the share that may differ by more.
        box_difference: the same of a corner, in input pixels.
        tolerance: what may differ on such an engine.
        problem: why it failed, in words; "" if it did not.
    """

    engine: str
    rows: int
    missing: int
    score_difference: float
    box_difference: float
    tolerance: Tolerance
    problem: str

    @property
    def ok(self) -> bool:
        return not self.problem

    def __str__(self) -> str:
        return (
            f"{self.engine}: {'answers as the file did' if self.ok else self.problem}"
            f" ({self.rows - self.missing} of {self.rows} rows, scores within"
            f" {self.score_difference:.1e} (allowed {self.tolerance.score:g}), boxes within"
            f" {self.box_difference:.1e} px (allowed {self.tolerance.box:g}))"
        )

    def to_json(self) -> dict[str, object]:
        return {"ok": self.ok} | asdict(self)


def check_canary(backend: Backend, where: object = "the model") -> SelfCheck:
    """Run the canary once and compare; `where` is the file, which begins messages.

    ModelError: the file has no canary, or a damaged one.
    """
    spec, canary = backend.spec, backend.spec.canary
    if canary is None and spec.top_k < LEAST_ROWS:
        raise ModelError(
            f"{where}: has no canary to compare with, since its {spec.top_k} rows are too few:"
            f" write it again with --top-k {LEAST_ROWS} or more, and build its engines again"
        )
    if canary is None:
        command = "adopt" if "adopted" in spec.provenance else "export"
        raise ModelError(
            f"{where}: has no canary to compare with: write it again with `nmsfree {command}`,"
            " which adds one; then build its engines again"
        )
    images = canary_input(spec, canary.seed)
    if sha256(images[0].tobytes()).hexdigest() != canary.sha256:
        raise ModelError(
            f"{where}: its canary is of another picture than seed {canary.seed} makes: damaged, or"
            " of a newer version: update nmsfree, or write the file again"
        )
    tolerance = canary.tolerances.get(getattr(backend, "arithmetic", "cpu"))
    if tolerance is None:
        raise ModelError(
            f"{where}: its canary does not say what may differ on {backend.describe()}, only on"
            f" {', '.join(canary.tolerances)}: update nmsfree, or write the file again"
        )
    raw = backend.run(images)
    problem = _nonsense(raw, spec, tolerance)
    missing, score, box = len(images) * len(canary.values()), 0.0, 0.0
    rows = missing
    if not problem:
        found = [_compare(canary, raw, i, spec, tolerance) for i in range(len(images))]
        missing = sum(one[0] for one in found)
        score, box = (max(one[i] for one in found) for i in (1, 2))
        if missing > tolerance.missing * rows:
            problem = "answers otherwise than the file did when it was written"
    return SelfCheck(backend.describe(), rows, missing, score, box, tolerance, problem)


def _nonsense(raw: RawDetections, spec: ModelSpec, tolerance: Tolerance) -> str:
    """What no engine may answer, whatever the file; "" if it is none of that."""
    finite = np.isfinite(raw.detection_scores) & np.isfinite(raw.detection_boxes).all(axis=-1)
    if not finite.all():
        return f"answers NaN or infinity, in {finite.size - finite.sum()} of {finite.size} rows"
    scores, floor = _log(raw.detection_scores), _log(spec.score_floor)
    low = (scores > floor + tolerance.score).sum(axis=1)
    high = (scores > floor - tolerance.score).sum(axis=1)
    count = raw.num_detections[:, 0]
    if ((count < low) | (count > high)).any():
        return f"counts {count.tolist()} detections where {low.tolist()} scores are above the floor"
    return ""


def _log(scores: Any) -> Any:
    return np.log(np.maximum(scores, FAINT))


def _compare(
    canary: Canary, raw: RawDetections, i: int, spec: ModelSpec, tolerance: Tolerance
) -> tuple[int, float, float]:
    """Rows that are missing, and the largest differences of score and box."""
    given = canary.values()
    full = len(given) == spec.top_k
    theirs = Rows(
        given[:, :4],
        given[:, 4],
        given[:, 5].astype(np.int32),
        float(given[:, 4].min()) if full else spec.score_floor,
    )
    a, b = (
        rows._replace(scores=_log(rows.scores), cut=float(_log(rows.cut)))
        for rows in (theirs, raw_rows(raw, i, spec))
    )
    ours, other = match(a, b, FAR * tolerance.score, FAR * tolerance.box)
    scores = np.abs(a.scores[ours] - b.scores[other])
    boxes = np.abs(a.boxes[ours] - b.boxes[other]).max(axis=1, initial=0)
    same = (scores <= tolerance.score) & (boxes <= tolerance.box)
    most = 1 - tolerance.missing
    alone = a.alone(ours[same], b, CUT), b.alone(other[same], a, CUT)
    score, box = (
        float(np.quantile(found, most)) if len(found) else 0.0 for found in (scores, boxes)
    )
    return max(alone), score, box
