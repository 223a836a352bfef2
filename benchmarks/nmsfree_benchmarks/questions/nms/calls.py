"""What `nmsfree bench nms` times: NMS alone in several libraries, and whole calls.

NMS alone: every implementation of one and the same class-aware greedy NMS on the same real
candidates. All take the candidates of a batch as the exported graph has them and say which rows
they keep; what a library needs first (corners to width and height, scores spread over classes, the
floor) belongs to its time. Beside it, the whole post-processing of the NMS-free head: from the raw
maps of its last convolutions to detections, which is more than the others do.

Whole calls: `Detector(image)` of the o2m head with NMS, at each score floor; the same graph cut
before its NMS; that NMS tail alone, on the candidates of the same scenes; `Detector(image)` of the
NMS-free head; and of that without the filter that does the work of NMS in it. With NMS minus
without is what NMS costs in the call, with the filter minus without what the filter does. The tail
alone says the same as the former without the network's noise, but with warmer caches. Cut graph and
tail run in ONNX Runtime on the processor; on other devices there are the whole calls alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from nmsfree.errors import GateError, InputError
from nmsfree.nms import Nms as OneClass
from nmsfree.nms import greedy_nms, suppress
from nmsfree.spec import ModelSpec, NmsSpec
from nmsfree.text import one_of
from nmsfree_benchmarks.harness.graphs import (
    DETECTIONS,
    nms_alone,
    nms_tail,
    open_session,
    split_at_raw_maps,
    without_nms,
)
from nmsfree_benchmarks.harness.run import Case
from nmsfree_benchmarks.harness.statistics import STAGES
from nmsfree_benchmarks.harness.subject import Subject
from nmsfree_benchmarks.harness.timer import Call, Image, Laps, Stopwatch, on_slots, timed
from nmsfree_benchmarks.questions.nms.crowd import FOUND_ABOVE
from nmsfree_benchmarks.questions.nms.prices import HEAD, REFERENCE
from nmsfree_export.graph.nms import CANDIDATES
from nmsfree_export.options import NmsOptions

AGREE = 0.995  # of the kept rows; an IoU within rounding of the threshold may fall either way
IN = [f"in_{name}" for name in CANDIDATES]
PLAIN_NMS = NmsOptions(nms="plain").spec(NmsSpec())
Kept = list[NDArray[np.int64]]  # of each image the rows that stay, in any order


class Candidates(NamedTuple):
    """What enters NMS, of N images."""

    boxes: NDArray[np.float32]  # [N, T, 4], xyxy in input pixels
    scores: NDArray[np.float32]  # [N, T]
    classes: NDArray[np.int64]  # [N, T]

    def of(self, images: Sequence[int]) -> "Candidates":
        rows = list(images)  # a list copies
        return Candidates(self.boxes[rows], self.scores[rows], self.classes[rows])

    def above(self, floor: float) -> float:
        return float((self.scores > np.float32(floor)).sum(axis=1).mean())


Nms = Callable[[Candidates], Kept]
Best = Callable[[Any, Any, Any], Any]  # boxes, scores, classes of an image → rows


@dataclass(frozen=True)
class Setting:
    """What an implementation is made for."""

    spec: ModelSpec  # of the o2m model
    candidates: int  # of each image
    floor: float  # scores above it take part
    iou: float  # boxes overlapping by more go
    threads: int  # of engines that use several


def onnx_nms(setting: Setting) -> Nms:
    """`NonMaxSuppression` of ONNX Runtime, as in this project's exported files."""
    model = nms_alone(setting.spec, setting.candidates, setting.floor, setting.iou)
    session = open_session(model, setting.threads)

    def run(found: Candidates) -> Kept:
        (selected,) = session.run(None, dict(zip(IN, found, strict=True)))
        return [selected[selected[:, 0] == image, 2] for image in range(len(found.scores))]

    return run


def plain_nms(setting: Setting) -> Nms:
    """Plain operators in ONNX Runtime, as `nmsfree export --nms plain` writes them."""
    spec = replace(setting.spec, nms=PLAIN_NMS)
    model = nms_alone(spec, setting.candidates, setting.floor, setting.iou)
    session, floor = open_session(model, setting.threads), np.float32(setting.floor)

    def run(found: Candidates) -> Kept:
        scores, rows = session.run(None, dict(zip(IN, found, strict=True)))
        return [own[left > floor] for own, left in zip(rows, scores, strict=True)]

    return run


def _by_image(best: Best, setting: Setting) -> Nms:
    """Of each image the candidates above the floor, which comes before anything is converted."""

    def one(boxes: Any, scores: Any, classes: Any) -> NDArray[np.int64]:
        rows = np.flatnonzero(scores > np.float32(setting.floor))
        return rows[np.asarray(best(boxes[rows], scores[rows], classes[rows]), dtype=np.int64)]

    return lambda found: [one(*own) for own in zip(*found, strict=True)]


def opencv_nms(setting: Setting) -> Nms:
    """`cv2.dnn.NMSBoxesBatched`, image by image."""

    def run(corners: Any, scores: Any, classes: Any) -> Any:
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        kinds = classes.astype(np.int32)  # arrays are taken as well, and are faster
        return cv2.dnn.NMSBoxesBatched(sides, scores, kinds, setting.floor, setting.iou)  # type: ignore[arg-type]

    return _by_image(run, setting)


def numpy_nms(setting: Setting, nms: OneClass = greedy_nms) -> Nms:
    """The loop of the published post-processing, or another NMS of the boxes of a class."""

    def run(boxes: Any, scores: Any, classes: Any) -> Any:
        return suppress(boxes, scores, classes, setting.iou, nms=nms)

    return _by_image(run, setting)


def matrix_nms(boxes: Any, scores: Any, iou: float) -> NDArray[np.int64]:
    """As `greedy_nms` and its arithmetic, from a matrix of all overlaps of a class."""
    order = np.argsort(-scores, kind="stable")
    x1, y1, x2, y2 = boxes[order].T
    areas = (x2 - x1) * (y2 - y1)
    w = np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1)
    h = np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1)
    overlap = np.maximum(w, 0) * np.maximum(h, 0)
    union = areas[:, None] + areas - overlap
    leaves = overlap <= iou * np.maximum(union, 1e-12)  # [n, n]: whether a row leaves a column
    alive, kept = np.ones(len(order), bool), list[int]()
    for row, others in enumerate(leaves):
        if alive[row]:
            kept.append(row)
            alive &= others
    return order[kept]


def torchvision_nms(setting: Setting) -> Nms:
    """`torchvision.ops.batched_nms`, image by image."""
    import torch

    batched_nms = import_module("torchvision.ops").batched_nms
    return _by_image(
        lambda *found: batched_nms(*map(torch.from_numpy, found), setting.iou), setting
    )


# The first is what the others are held against: the published post-processing, a greedy loop over
# the boxes of each class.
MAKERS: dict[str, Callable[[Setting], Nms]] = {
    REFERENCE: numpy_nms,
    "matrix": partial(numpy_nms, nms=matrix_nms),
    "onnx": onnx_nms,
    "plain": plain_nms,
    "opencv": opencv_nms,
    "torchvision": torchvision_nms,
}


def choose(names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Which of `MAKERS` run here, the reference first and always, and why others do not.

    InputError: there is no such implementation.
    """
    for name in names or ():
        if name not in MAKERS:
            raise InputError(f"implementation is {name!r}, expected {one_of(MAKERS, name)}")
    wanted = [name for name in MAKERS if names is None or name in (*names, REFERENCE)]
    if "torchvision" not in wanted or find_spec("torchvision") is not None:
        return wanted, {}
    wanted.remove("torchvision")
    reason = "torchvision is not installed, and nothing of this project needs it"
    return wanted, {"torchvision": reason}


def expected_of(name: str, reference: Kept, found: Candidates) -> Kept:
    """What an implementation keeps that does what the reference does.

    Plain NMS takes the best candidates alone; worse ones remove none of these.
    """
    if name != "plain":
        return reference
    best = np.argsort(-found.scores, axis=1, kind="stable")[:, : PLAIN_NMS.candidates]
    return [np.intersect1d(a, b) for a, b in zip(reference, best, strict=True)]


def agreement(kept: Kept, reference: Kept) -> float:
    """The share of rows that both keep, of those that either keeps; 1 where none does."""
    both = either = 0
    for ours, theirs in zip(kept, reference, strict=True):
        a, b = set(ours.tolist()), set(theirs.tolist())
        both += len(a & b)
        either += len(a | b)
    return both / either if either else 1.0


@dataclass(frozen=True)
class Point:
    """What is varied: objects in a scene, score floor, IoU threshold, images of a call."""

    objects: int
    floor: float
    iou: float
    batch: int

    def __str__(self) -> str:
        return f"objects {self.objects}, floor {self.floor:g}, IoU {self.iou:g}, batch {self.batch}"


def points(base: Point, axes: Mapping[str, Sequence[Any]]) -> list[Point]:
    """The base and its variations along one axis at a time, each once."""
    varied = [replace(base, **{name: value}) for name, values in axes.items() for value in values]
    return list(dict.fromkeys([base, *varied]))


def images_of(slot: int, batch: int, scenes: int) -> list[int]:
    """Which scenes a call takes; they start over where there are fewer."""
    return [(slot * batch + image) % scenes for image in range(batch)]


def find_candidates(session: Any, scenes: Sequence[Image]) -> Candidates:
    """Run a graph that ends in candidates (see `without_nms`) on scenes of the input's size."""
    found = [session.run(list(CANDIDATES), {"images": scene[None]}) for scene in scenes]
    return Candidates(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def nms_cases(
    point: Point, names: Sequence[str], found: Candidates, setting: Setting, count: int
) -> Iterator[Case]:
    """Every implementation at a point, the reference first, which the others are held against.

    `found` are candidates of the scenes with so many objects; `count` prepared inputs take turns.
    GateError: one keeps other boxes, so its time would say nothing.
    """
    inputs = [found.of(images_of(slot, point.batch, len(found.scores))) for slot in range(count)]
    reference: list[Kept] = []
    for name in names:
        run = MAKERS[name](setting)
        kept = [run(own) for own in inputs]
        reference = reference or kept
        expected = [expected_of(name, *both) for both in zip(reference, inputs, strict=True)]
        same = min(agreement(a, b) for a, b in zip(kept, expected, strict=True))
        if same < AGREE:
            raise GateError(
                f"{name} {point}: keeps other boxes than {REFERENCE}, {same:.1%} the same, "
                f"expected {AGREE:.1%}: times of different results cannot be compared"
            )
        figures = {
            "candidates": round(float(np.mean([one.above(point.floor) for one in inputs])), 1),
            "kept": round(float(np.mean([len(rows) for call in kept for rows in call])), 1),
            "same_as_reference": round(same, 5),
        }
        about = {"measured": "alone", "implementation": name, **vars(point)}
        yield Case(f"{name} {point}", on_slots(timed(run), inputs), about, figures)


class HeadParts:
    """The NMS-free file (for any batch), cut at its raw maps."""

    def __init__(self, path: Path, threads: int) -> None:
        self._network, self._rest = (open_session(p, threads) for p in split_at_raw_maps(path))
        self._names = [output.name for output in self._network.get_outputs()]

    def maps(self, scenes: Sequence[Image]) -> list[NDArray[np.float32]]:
        found = [self._network.run(self._names, {"images": scene[None]}) for scene in scenes]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def case(
        self, point: Point, maps: Sequence[NDArray[np.float32]], count: int, floor: float
    ) -> Case:
        """The whole post-processing for the scenes of a point; `floor` is the file's."""
        inputs = []
        for slot in range(count):
            images = images_of(slot, point.batch, len(maps[0]))
            chosen = [np.ascontiguousarray(part[images]) for part in maps]
            inputs.append(dict(zip(self._names, chosen, strict=True)))
        kept = [self._rest.run(DETECTIONS[:1], own)[0].mean() for own in inputs]
        about = vars(point) | {"floor": floor, "iou": None}
        return Case(
            f"{HEAD} objects {point.objects}, batch {point.batch}",
            on_slots(timed(lambda own: self._rest.run(DETECTIONS, own)), inputs),
            {"measured": "alone", "implementation": HEAD, **about},
            {"kept": round(float(np.mean(kept)), 1)},
        )


@dataclass(frozen=True, eq=False)
class Contest:
    """The detectors that are timed against each other on one set of scenes."""

    with_nms: Sequence[Subject]  # the o2m detector at each score floor
    others: Mapping[str, Subject]  # the NMS-free one, and without its filter, if there are any
    in_parts: bool = True  # time the graph's parts, too: they run in ONNX Runtime on the processor
    measured: str = "call"  # what the records are filed under

    def cases(self, scenes: Mapping[int | None, Sequence[Image]]) -> Iterator[Case]:
        """Everything that takes turns; scenes are by their objects, None where not known."""
        subject = self.with_nms[0]
        cut = open_session(without_nms(subject.file), subject.threads)
        for objects, images in scenes.items():
            found = find_candidates(cut, [subject.prepare(image)[0] for image in images])
            if self.in_parts:
                name, about = self._about("without its NMS", objects)
                yield Case(name, _cut_call(subject, cut, images), about, parts=STAGES[:2])
            for own in self.with_nms:
                load = _load(own, found)
                yield self._whole("with NMS", own, objects, images, load)
                if self.in_parts:
                    name, about = self._about("NMS tail alone", objects, own.floor)
                    yield Case(name, _tail_call(own, found), about, load)
            for what, other in self.others.items():
                yield self._whole(what, other, objects, images, {})

    def _about(
        self, what: str, objects: int | None, floor: float | None = None
    ) -> tuple[str, dict[str, Any]]:
        at = "" if floor is None else f", floor {floor:g}"
        name = f"{self.measured} {what}, objects {'unknown' if objects is None else objects}{at}"
        return name, {"measured": self.measured, "what": what, "objects": objects, "floor": floor}

    def _whole(
        self,
        what: str,
        subject: Subject,
        objects: int | None,
        images: Sequence[Image],
        load: Mapping[str, float],
    ) -> Case:
        threshold = max(FOUND_ABOVE, subject.floor)
        found = [len(subject.detector(image, threshold=threshold)) for image in images]
        figures = {"found": round(float(np.mean(found)), 1), **load}
        name, about = self._about(what, objects, subject.floor)
        call = on_slots(subject.call(), images)
        return Case(name, call, about, figures, STAGES, subject.state(batch=1))


def _load(subject: Subject, found: Candidates) -> dict[str, float]:
    """How many candidates an image has above the floor, and how many boxes NMS keeps."""
    spec = subject.detector.spec
    assert spec.nms is not None
    setting = Setting(spec, found.scores.shape[1], subject.floor, spec.nms.iou, 1)
    kept = MAKERS[REFERENCE](setting)(found)
    return {
        "candidates": round(found.above(subject.floor), 1),
        "kept": round(float(np.mean([len(rows) for rows in kept])), 1),
    }


def _tail_call(subject: Subject, found: Candidates) -> Call:
    spec = subject.detector.spec
    assert spec.nms is not None
    tail = nms_tail(spec, found.scores.shape[1], subject.floor, spec.nms.iou)
    session = open_session(tail, subject.threads)
    inputs = [dict(zip(IN, found.of([i]), strict=True)) for i in range(len(found.scores))]
    return on_slots(timed(lambda own: session.run(DETECTIONS, own)), inputs)


def _cut_call(subject: Subject, cut: Any, images: Sequence[Image]) -> Call:
    """Prepare a picture as the detector does, and run the cut graph."""

    watch = Stopwatch()

    def call(image: Image) -> Laps:
        watch.start()
        pixels = subject.prepare(image)
        watch.mark()
        cut.run(list(CANDIDATES), {"images": pixels})
        watch.mark()
        return watch.laps()

    return on_slots(call, images)
