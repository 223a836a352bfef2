"""The whole call: a detector with NMS in its graph beside the NMS-free one, and where time goes.

Five things take turns for every number of objects: `Detector(image)` of the o2m head with NMS, at
each score floor; the same graph cut before its NMS; that NMS tail alone, on the candidates of the
same scenes; `Detector(image)` of the NMS-free head; and of that without the filter that does the
work of NMS in it. With NMS minus without is what NMS costs in the call, with the filter minus
without what the filter does. The tail alone says the same as the former without the network's
noise, but with warmer caches.

The second and the third run in ONNX Runtime on the processor; on other devices there are the whole
calls alone. A native engine has NMS behind it, on the host: the runtime's own clock then tells what
it took in each of the very calls.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nmsfree.backends import RawDetections
from nmsfree_benchmarks.crowd.models import IOU, Opened
from nmsfree_benchmarks.crowd.timed import Timed, on_inputs, slot_of
from nmsfree_benchmarks.machine.measure import Call, Image, Stopwatch
from nmsfree_benchmarks.nms.alone import find_candidates
from nmsfree_benchmarks.nms.graphs import nms_tail, open_session, without_nms
from nmsfree_benchmarks.nms.implementations import Candidates, Setting, numpy_nms
from nmsfree_benchmarks.table.entries import timed_call
from nmsfree_export.graph.nms import CANDIDATES

FOUND_ABOVE = 0.3  # a detection with this score counts as found
UNFILTERED = "NMS-free, filter taken out"
PARTS = ("preprocess", "network", "postprocess")
ON_HOST = "nms"  # the part of a call in which the runtime does NMS behind a native engine
PARTS_ON_HOST = ("preprocess", "network", ON_HOST, "postprocess")


@dataclass(frozen=True, eq=False)
class Contest:
    """The detectors that are timed against each other on one set of scenes.

    Attributes:
        with_nms: the o2m detector at each score floor.
        nms_free: None where there is none to compare with.
        unfiltered: the same weights without their filter; None where they have none.
        watch: that their backends mark.
        in_parts: time the graph's parts, too: they run in ONNX Runtime on the processor.
        measured: what the records are filed under.
    """

    with_nms: Sequence[Opened]
    nms_free: Opened | None
    unfiltered: Opened | None
    watch: Stopwatch
    threads: int
    in_parts: bool = True
    measured: str = "call"

    def timed(self, scenes: Mapping[int | None, Sequence[Image]]) -> list[Timed]:
        """Make everything that takes turns.

        Args:
            scenes: by the number of objects; None where it is not known.
        """
        cut = open_session(without_nms(self.with_nms[0].file), self.threads)
        made = []
        for objects, pictures in scenes.items():
            made += self._of(objects, pictures, cut)
        return made

    def _of(self, objects: int | None, pictures: Sequence[Image], cut: Any) -> list[Timed]:
        detector = self.with_nms[0].detector
        pixels = [detector.preprocess([picture])[0][0] for picture in pictures]
        found = find_candidates(cut, pixels)
        made = [self._without(objects, pictures, cut)] if self.in_parts else []
        for opened in self.with_nms:
            load = _load(opened, found)
            made.append(self._whole("with NMS", opened, objects, pictures, load))
            if self.in_parts:
                made.append(self._tail(opened, objects, found))
        for what, free in (("NMS-free", self.nms_free), (UNFILTERED, self.unfiltered)):
            if free is not None:
                made.append(self._whole(what, free, objects, pictures, {}))
        return made

    def _parameters(self, what: str, objects: int | None, floor: float | None) -> dict[str, Any]:
        return {"measured": self.measured, "what": what, "objects": objects, "floor": floor}

    def _name(self, what: str, objects: int | None, floor: float | None = None) -> str:
        at = "" if floor is None else f", floor {floor:g}"
        return f"{self.measured} {what}, objects {'unknown' if objects is None else objects}{at}"

    def _whole(
        self,
        what: str,
        opened: Opened,
        objects: int | None,
        pictures: Sequence[Image],
        load: Mapping[str, float],
    ) -> Timed:
        detector, floor = opened.detector, opened.floor
        run, parts = split_host_nms(opened, timed_call(detector, self.watch))
        threshold = max(FOUND_ABOVE, floor)
        found = [len(detector(picture, threshold=threshold)) for picture in pictures]
        return Timed(
            self._name(what, objects, floor),
            lambda image: run(pictures[slot_of(image)]),
            self._parameters(what, objects, floor),
            {"found": round(float(np.mean(found)), 1), **load},
            parts,
            opened.subject,
        )

    def _without(self, objects: int | None, pictures: Sequence[Image], cut: Any) -> Timed:
        detector = self.with_nms[0].detector
        return Timed(
            self._name("without its NMS", objects),
            _cut_call(detector, cut, pictures),
            self._parameters("without its NMS", objects, None),
            parts=PARTS[:2],
        )

    def _tail(self, opened: Opened, objects: int | None, found: Candidates) -> Timed:
        spec, count = opened.detector.spec, found.scores.shape[1]
        tail = nms_tail(spec, count, opened.floor, IOU).SerializeToString()
        session = open_session(tail, self.threads)
        names = [f"in_{name}" for name in CANDIDATES]
        inputs = [
            dict(zip(names, found.of([image]), strict=True)) for image in range(len(found.scores))
        ]
        outputs = list(RawDetections._fields)
        return Timed(
            self._name("NMS tail alone", objects, opened.floor),
            on_inputs(lambda own: session.run(outputs, own), inputs),
            self._parameters("NMS tail alone", objects, opened.floor),
            _load(opened, found),
        )


def split_host_nms(opened: Opened, call: Call) -> tuple[Call, tuple[str, ...]]:
    """Return the call with NMS on the host as a part of its own, and its parts' names.

    Engines that have NMS inside, or none, keep the parts that they have.
    """
    if "NMS on the host" not in opened.backend.description:
        return call, PARTS
    timings = opened.backend.timings  # type: ignore[attr-defined]  # of this thread's last run

    def split(image: Image) -> Sequence[int]:
        preprocess, run, postprocess = call(image)
        nms = round(1e6 * timings().nms)
        return preprocess, run - nms, nms, postprocess

    return split, PARTS_ON_HOST


def _load(opened: Opened, found: Candidates) -> dict[str, float]:
    """Return how many candidates an image has above the floor, and how many boxes NMS keeps."""
    spec, count = opened.detector.spec, found.scores.shape[1]
    kept = numpy_nms(Setting(spec, count, opened.floor, IOU, 1))(found)
    return {
        "candidates": round(found.above(opened.floor), 1),
        "kept": round(float(np.mean([len(rows) for rows in kept])), 1),
    }


def _cut_call(detector: Any, cut: Any, pictures: Sequence[Image]) -> Call:
    """Return a call that prepares a picture as the detector does and runs the cut graph."""

    def call(image: Image) -> Sequence[int]:
        start = time.perf_counter_ns()
        pixels = detector.preprocess([pictures[slot_of(image)]])[0]
        prepared = time.perf_counter_ns()
        cut.run(list(CANDIDATES), {"images": pixels})
        return prepared - start, time.perf_counter_ns() - prepared

    return call
