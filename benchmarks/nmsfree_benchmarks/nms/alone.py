"""The NMS alone: every implementation on the same real candidates, one setting varied at a time.

Inside the timer: from the candidates as arrays in memory to the rows that are kept. Beside it, the
whole post-processing of the NMS-free head: from the raw maps of its last convolutions to
detections, which is more than the others do (they start from chosen and decoded candidates).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends import RawDetections
from nmsfree.errors import GateError
from nmsfree_benchmarks.crowd.timed import Timed, on_inputs
from nmsfree_benchmarks.machine.measure import Image
from nmsfree_benchmarks.nms.graphs import open_session
from nmsfree_benchmarks.nms.implementations import (
    MAKERS,
    REFERENCE,
    Candidates,
    Kept,
    Setting,
    agreement,
)
from nmsfree_benchmarks.table.onnx_engine import split_at_raw_maps
from nmsfree_export.graph.nms import CANDIDATES

AGREE = 0.995  # of the kept rows; an IoU within rounding of the threshold may fall either way
HEAD = "NMS-free head"


@dataclass(frozen=True)
class Point:
    """What is varied: objects in a scene, score floor, IoU threshold, images of a call."""

    objects: int
    floor: float
    iou: float
    batch: int

    def name(self, implementation: str) -> str:
        return (
            f"{implementation} objects {self.objects}, floor {self.floor:g}, IoU {self.iou:g}, "
            f"batch {self.batch}"
        )


def points(base: Point, axes: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Return the base and its variations along one axis at a time, each once."""
    varied = [replace(base, **{name: value}) for name, values in axes.items() for value in values]
    return list(dict.fromkeys([base, *varied]))


def find_candidates(session: Any, scenes: Sequence[Image]) -> Candidates:
    """Run a graph that ends in candidates (see `without_nms`) on scenes of the input's size."""
    found = [session.run(list(CANDIDATES), {"images": scene[None]}) for scene in scenes]
    return Candidates(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def timed_nms(
    point: Point, names: Sequence[str], found: Candidates, setting: Setting, count: int
) -> list[Timed]:
    """Make every implementation for a point, and hold what each keeps against the reference.

    Args:
        point: what the setting is made for.
        names: of `MAKERS`, the reference among them.
        found: candidates of the scenes with so many objects.
        count: prepared inputs of a call, which take turns.

    Raises:
        GateError: one keeps other boxes, so its time would say nothing.
    """
    inputs = [found.of(images_of(slot, point.batch, len(found.scores))) for slot in range(count)]
    runs = {name: MAKERS[name](setting) for name in names}
    kept = {name: [run(one) for one in inputs] for name, run in runs.items()}
    return [
        Timed(
            point.name(name),
            on_inputs(run, inputs),
            _parameters(name, point),
            _figures(name, point, inputs, kept[name], kept[REFERENCE]),
        )
        for name, run in runs.items()
    ]


def images_of(slot: int, batch: int, scenes: int) -> list[int]:
    """Return which scenes a call takes; they start over where there are fewer."""
    return [(slot * batch + image) % scenes for image in range(batch)]


def _parameters(implementation: str, point: Point) -> dict[str, Any]:
    return {"measured": "alone", "implementation": implementation, **vars(point)}


def _figures(
    name: str, point: Point, inputs: Sequence[Candidates], kept: list[Kept], reference: list[Kept]
) -> dict[str, Any]:
    same = min(agreement(a, b) for a, b in zip(kept, reference, strict=True))
    if same < AGREE:
        raise GateError(
            f"{point.name(name)}: keeps other boxes than {REFERENCE}, {same:.1%} the same, "
            f"expected {AGREE:.1%}: times of different results cannot be compared"
        )
    return {
        "candidates": round(float(np.mean([one.above(point.floor) for one in inputs])), 1),
        "kept": round(float(np.mean([len(rows) for call in kept for rows in call])), 1),
        "same_as_reference": round(same, 5),
    }


class HeadParts:
    """The NMS-free file, cut at its raw maps.

    Args:
        path: of the exported file, for any batch.
        threads: of ONNX Runtime.
    """

    def __init__(self, path: Path, threads: int) -> None:
        network, rest = (p.SerializeToString() for p in split_at_raw_maps(path))
        self._network, self._rest = open_session(network, threads), open_session(rest, threads)
        self._names = [output.name for output in self._network.get_outputs()]

    def maps(self, scenes: Sequence[Image]) -> list[NDArray[np.float32]]:
        """Return every raw map of all scenes, float32 [scenes, …]."""
        found = [self._network.run(self._names, {"images": scene[None]}) for scene in scenes]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def timed(
        self, point: Point, maps: Sequence[NDArray[np.float32]], count: int, floor: float
    ) -> Timed:
        """Return the whole post-processing for the scenes of a point; `floor` is the file's."""
        inputs = []
        for slot in range(count):
            images = images_of(slot, point.batch, len(maps[0]))
            chosen = [np.ascontiguousarray(part[images]) for part in maps]
            inputs.append(dict(zip(self._names, chosen, strict=True)))
        names, rest = list(RawDetections._fields), self._rest
        kept = [rest.run(names[:1], own)[0].mean() for own in inputs]
        parameters = {"objects": point.objects, "floor": floor, "iou": None, "batch": point.batch}
        return Timed(
            f"{HEAD} objects {point.objects}, batch {point.batch}",
            on_inputs(lambda own: rest.run(names, own), inputs),
            {"measured": "alone", "implementation": HEAD, **parameters},
            {"kept": round(float(np.mean(kept)), 1)},
        )
