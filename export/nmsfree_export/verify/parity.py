"""Parity: do two models say the same about the same pictures?

Rows are matched by class and nearest box, since rows of nearly equal score may swap. A row may
stay without a partner only where the list is cut: its score is within the tolerance of the cut
(the floor, or the last row).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.backends.base import Backend, RawDetections
from nmsfree.backends.rows import Rows, match, raw_rows
from nmsfree.canary import canary_picture
from nmsfree.datasets.digits.scenes import make_scene
from nmsfree.detector import IMAGES_PER_RUN, Detector
from nmsfree.errors import GateError, InputError, ModelError
from nmsfree.images import read_image
from nmsfree.nms import overlapping
from nmsfree.spec import ModelSpec
from nmsfree.streams.sources import IMAGE_SUFFIXES
from nmsfree_export.graph.contract import content_of, outputs_of
from nmsfree_export.options import HALF_UNMATCHED, STRICT, UNMATCHED, Tolerance
from nmsfree_export.verify.allowed import ADOPTED

MAX_IMAGES = 64
Pictures = Sequence[tuple[str, NDArray[np.uint8]]]  # names and BGR images

EIGHT_BITS = {"int8", "bf16"}  # a bfloat16 has 8 bits of mantissa
ROUNDING = 1e-6  # rows are sorted by logit; sigmoids of equal ones may differ in the last bit
FAR = 0.05  # of the score, and of the input's longer side: farther than this is no partner


def tolerance_for(spec: ModelSpec, *precisions: str, unmatched: float | None = None) -> Tolerance:
    """What may differ between models that compute in these: "fp32", "fp16", "int8", "bf16".

    `spec`, of either, tells the size of the input. `unmatched`, a share of rows that may have no
    partner, takes the place of all other limits.

    A half has 11 bits: seen are 1e-3 and 0.06 pixels, with batch norm and with GroupNorm. Eight
    bits move every score a little, so of cells that compete for an object, or at the end of the
    list, another may win: on trained weights 0.4 % of the rows (for a processor) and none (for
    TensorRT) had no partner; a network that quantization broke loses most of them.

    An adopted file gives hundreds of rows, most of them unsure, and a transformer chooses its
    queries by scores that are rounded: in a half a few rows are of another one.

    Partners may lie far apart, so that rows that moved a little are told from lost ones; what all
    rows do is seen in their medians. Seen: 0.0008 and 0.17 pixels in a half (random weights), 0.002
    and 0.1 in INT8.
    """
    side = max(spec.height, spec.width)
    if unmatched is not None:
        return Tolerance(FAR, FAR * side, unmatched)
    if EIGHT_BITS.intersection(precisions):
        return Tolerance(FAR, FAR * side, UNMATCHED, FAR, side / 100)
    if "fp16" in precisions and ADOPTED in spec.provenance:
        return Tolerance(FAR, FAR * side, HALF_UNMATCHED, 0.01, 0.5)
    return Tolerance(0.01, 0.5) if "fp16" in precisions else STRICT


def seeded_tolerance(spec: ModelSpec) -> Tolerance:
    """What may differ on pictures that nobody chose, see `seeded_images`.

    A wider one: it tells a file that is right by chance from one that is right, for any seed. Seen
    without a partner on such pictures: no row in FP32 and FP16, in INT8 13 % of the canary's.
    """
    if spec.precision == "fp32":
        return Tolerance(0.01, 0.5)
    return tolerance_for(spec, unmatched=0.5)


@dataclass(frozen=True)
class Parity:
    """Outcome of a comparison; differences are the largest of matched rows."""

    images: int
    rows: int
    unmatched: int  # rows of either model without a partner, those at the cut left out
    score_difference: float
    box_difference: float
    worst_image: str  # name of the image with the largest box difference
    tolerance: Tolerance
    longer_chains: int | None = None  # images, see `overlapping`; None: no NMS of so many steps
    confident: int = 0  # of the rows, those with scores that nothing could take for 0
    score_median: float = 0.0  # of the differences of matched rows
    box_median: float = 0.0

    @property
    def passed(self) -> bool:
        allowed = self.tolerance
        if allowed.unmatched is not None:
            return (
                self.rows > 0
                and self.unmatched <= allowed.unmatched * self.rows
                and self.score_median <= (allowed.median_score or math.inf)
                and self.box_median <= (allowed.median_box or math.inf)
            )
        return (
            self.rows > 0
            and self.unmatched == 0
            and self.score_difference <= allowed.score
            and self.box_difference <= allowed.box
        )

    @property
    def verdict(self) -> str:
        """What a comparison that passed shows."""
        return "same detections" if self.tolerance.unmatched is None else "most detections the same"

    def __str__(self) -> str:
        allowed = self.tolerance
        if self.rows == 0:
            return (
                f"{self.images} images, no detection above the floor, so nothing was compared: "
                "give pictures the model finds something in with --images DIR, or a lower "
                "--score-floor"
            )
        found = f"{self.images} images, {self.rows} rows, {self.unmatched} unmatched"
        if self.longer_chains is not None:
            found += f", chains of overlaps may be longer than the steps in {self.longer_chains}"
        if allowed.unmatched is not None:
            return (
                f"{found} ({self.unmatched / self.rows:.1%}, allowed {100 * allowed.unmatched:.3g}"
                f"%), of the others largest difference: score {self.score_difference:.1e}, "
                f"box {self.box_difference:.1e} px; median: score {self.score_median:.1e}"
                f"{_allowed(allowed.median_score)}, box {self.box_median:.1e} px"
                f"{_allowed(allowed.median_box)}"
            )
        return (
            f"{found}, largest difference: score {self.score_difference:.1e} "
            f"(allowed {allowed.score:.0e}), box {self.box_difference:.1e} px "
            f"(allowed {allowed.box:g}; {self.worst_image})"
        )

    def to_json(self) -> dict[str, object]:
        found = asdict(self) | {"passed": self.passed}
        medians = [found["tolerance"].pop(name) for name in ("median_score", "median_box")]
        allowed = found["tolerance"].pop("unmatched")
        if allowed is None:
            return found
        return found | {"allowed": allowed, "allowed_medians": medians}

    def enforce(self, advice: str = "") -> None:
        """Raise GateError unless the comparison passed."""
        if not self.passed:
            raise GateError(f"parity: {self}{advice}")


def _allowed(most: float | None) -> str:
    return "" if most is None else f" (allowed {most:g})"


def load_images(folder: Path | None) -> list[tuple[str, NDArray[np.uint8]]]:
    """Return named BGR images: a folder's first 64, or the bundled scenes.

    InputError: the folder is missing, holds no image, or one that cannot be read.
    """
    if folder is None:
        return [
            (f"bundled {split} scene {i}", make_scene(split, i).image)
            for split, i in (("val", 0), ("val", 1), ("val", 2), ("overlap", 0), ("overlap", 1))
        ]
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected one with images")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"{folder}: no images in it ({', '.join(IMAGE_SUFFIXES)})")
    return [(p.name, read_image(p)) for p in files[:MAX_IMAGES]]


def bundled_pictures() -> Pictures:
    """Scenes of digits, and clouds of the spectrum that photographs have, in several shapes."""
    shapes = ((480, 640), (720, 405), (256, 256), (333, 1000))
    return [
        *load_images(None)[:2],
        *((f"clouds {h} × {w}", clouds(h, w, seed)) for seed, (h, w) in enumerate(shapes)),
    ]


def pictures_for(spec: ModelSpec, folder: Path | None) -> Pictures:
    """A folder's pictures, or bundled ones in which such a model sees something.

    InputError: see `load_images`.
    """
    if folder is None and ADOPTED in spec.provenance:
        return bundled_pictures()
    return load_images(folder)


def clouds(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return noise whose power falls with the third power of frequency, BGR uint8 [h, w, 3].

    A detector that was trained on photographs answers it with spread scores, as it does not answer
    white noise or plain squares.
    """
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1 / max(height, width)

    def plane() -> NDArray[np.float64]:
        waves = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**1.5
        found = np.fft.irfft2(waves, (height, width))
        return np.asarray((found - found.mean()) / found.std(), np.float64)

    grey = plane()
    colored = np.stack([grey + 0.3 * plane() for _ in range(3)], axis=-1)
    return np.clip(128 + 55 * colored, 0, 255).astype(np.uint8)


def seeded_images(seed: int, spec: ModelSpec) -> Pictures:
    """Pictures that no file can have been made for: a scene and noise of a seed, and the canary."""
    size = (spec.height, spec.width, 3)
    blocks = np.random.default_rng(seed).integers(0, 256, size, np.uint8)[::16, ::16]
    noise = blocks.repeat(16, axis=0).repeat(16, axis=1)[: size[0], : size[1]]
    return [
        (f"scene of seed {seed}", make_scene("val", 0, seed).image),
        (f"noise of seed {seed}", np.ascontiguousarray(noise)),
        ("canary", canary_picture(spec.height, spec.width)),
    ]


def on_processor(model: ModelProto, spec: ModelSpec, folder: Path) -> OnnxRuntimeBackend:
    """Open a graph that is described so, by way of a file in this folder.

    A processor runs it whatever it was made for.
    """
    part = folder / f"{spec.precision}.{spec.input}.part"  # no model by its name
    part.write_bytes(content_of(model, replace(spec, int8_target=None)))
    return OnnxRuntimeBackend(part)


def compare(
    a: Backend,
    b: Backend,
    images: Pictures,
    tolerance: Tolerance = STRICT,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Run both models on the same letterboxed pixels and compare all rows.

    Every row counts for the NMS-free head, also those below the floor; those above it for NMS.
    The first picture runs alone and the others together, so that both batch sizes are seen.

    Raises:
        ModelError: the models differ in input size, classes, rows or floor.
        GateError: one of them breaks the output contract.
    """
    for name in ("height", "width", "top_k", "score_floor", "class_names", "category_ids"):
        ours, theirs = getattr(a.spec, name), getattr(b.spec, name)
        if ours != theirs:
            raise ModelError(f"the models cannot be compared: {name} {ours} and {theirs}")
    detector = Detector(a)
    in_steps = [(i, s.nms) for i, s in enumerate((a.spec, b.spec)) if s.nms and s.nms.steps]
    rows = unmatched = longer = confident = 0
    score, box, worst = 0.0, 0.0, "–"
    apart = []
    step = min(s.batch or IMAGES_PER_RUN for s in (a.spec, b.spec))
    starts = [0, *range(1, len(images), step)]
    for start, end in zip(starts, [*starts[1:], len(images)], strict=True):
        chunk = images[start:end]
        pixels = np.concatenate([detector.preprocess([image])[0][:1] for _, image in chunk])
        raws = [run_any_batch(backend, pixels) for backend in (a, b)]
        for backend, raw in zip((a, b), raws, strict=True):
            _check_contract(raw, backend, tolerance)
        for i, (name, _) in enumerate(chunk):
            both = ours, theirs = tuple(raw_rows(raw, i, a.spec) for raw in raws)
            found, other = match(ours, theirs, FAR, FAR * max(a.spec.height, a.spec.width))
            lonely = ours.alone(found, theirs, tolerance.score)
            lonely += theirs.alone(other, ours, tolerance.score)
            rows, unmatched = rows + len(found) + lonely, unmatched + lonely
            longer += any(
                overlapping(both[k].boxes, both[k].classes, nms.iou, nms.class_aware)
                for k, nms in in_steps
            )
            confident += int((ours.scores > FAR).sum())
            apart.append(differences(ours, theirs, found, other))
            score = max(score, float(apart[-1][:, 0].max(initial=0)))
            if (farthest := apart[-1][:, 1:].max(initial=0)) >= box:
                box, worst = float(farthest), name
        progress(end, len(images))
    chains = longer if in_steps else None
    seen = len(images), rows, unmatched, score, box, worst, tolerance, chains, confident
    return Parity(*seen, *medians(apart))


def differences(
    ours: Rows, theirs: Rows, found: NDArray[np.intp], other: NDArray[np.intp]
) -> NDArray[np.floating]:
    """Of rows and their partners [n, 5]: score, four corners."""
    a: NDArray[np.floating] = np.column_stack([ours.scores[found], ours.boxes[found]])
    b: NDArray[np.floating] = np.column_stack([theirs.scores[other], theirs.boxes[other]])
    return np.asarray(np.abs(a - b))


def medians(apart: Sequence[NDArray[np.floating]]) -> tuple[float, float]:
    """Of the `differences` in all pictures: of scores, and of corners."""
    every = np.concatenate([*apart, np.zeros((0, 5))])
    score, box = (
        float(np.median(part)) if part.size else 0.0 for part in (every[:, 0], every[:, 1:])
    )
    return score, box


def _check_contract(raw: RawDetections, backend: Backend, tolerance: Tolerance) -> None:
    """Refuse an output that a runtime would misread, however well its rows match."""
    spec, scores, boxes = backend.spec, raw.detection_scores, raw.detection_boxes
    form = outputs_of(spec, len(scores))
    for name, value in raw._asdict().items():
        kind, shape = form[name]
        if (str(value.dtype), value.shape) != (kind, shape):
            raise GateError(
                f"parity: {backend.describe()} gives {name} {value.dtype} {list(value.shape)},"
                f" expected {kind} {list(shape)}"
            )
    limit = np.array([spec.width, spec.height] * 2)
    low = (scores > spec.score_floor + tolerance.score).sum(axis=1)
    high = (scores > spec.score_floor - tolerance.score).sum(axis=1)
    counts = raw.num_detections[:, 0]
    faults = {
        "values that are not finite": not (np.isfinite(scores).all() and np.isfinite(boxes).all()),
        "scores that do not descend": (np.diff(scores, axis=1) > ROUNDING).any(),
        "scores outside 0 … 1": (scores < 0).any() or (scores > 1 + ROUNDING).any(),
        # Another project's network may make them of cells where it sees nothing.
        "inverted boxes": ADOPTED not in spec.provenance
        and (boxes[..., 2:] < boxes[..., :2]).any(),
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
        raise GateError(f"parity: {backend.describe()} gives {', '.join(found)}")


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
