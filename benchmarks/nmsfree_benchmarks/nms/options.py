"""What `nmsfree bench nms` varies and for how long it is timed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nmsfree.errors import InputError
from nmsfree_benchmarks.common.on_device import CPU, DeviceOptions, engine_of
from nmsfree_benchmarks.crowd.models import IOU, LOWEST_FLOOR
from nmsfree_benchmarks.crowd.scenes import TILES
from nmsfree_benchmarks.machine.measure import Plan
from nmsfree_benchmarks.nms.alone import Point, points

BASE_FLOOR = 0.05


@dataclass(frozen=True)
class Range:
    """What is varied, and for how long it is timed.

    Attributes:
        objects, floors, ious, batches: values of each axis; the last number of objects, the
            default floor and IoU, and batch 1 are the base point.
        scenes: with each number of objects.
        alone, call: plans of the two measurements.
    """

    objects: tuple[int, ...]
    floors: tuple[float, ...]
    ious: tuple[float, ...]
    batches: tuple[int, ...]
    scenes: int
    alone: Plan
    call: Plan

    @property
    def points(self) -> list[Point]:
        base = Point(self.objects[-1], BASE_FLOOR, IOU, 1)
        axes: dict[str, Sequence[Any]] = {
            "objects": self.objects,
            "floor": self.floors,
            "iou": self.ious,
            "batch": self.batches,
        }
        # An empty picture at the lowest floor: weak candidates are everywhere and do not overlap.
        dearest = replace(base, objects=self.objects[0], floor=min(self.floors))
        return list(dict.fromkeys([*points(base, axes), dearest]))


FULL = Range(
    (0, 10, 50, 100, 200, 500),
    (0.3, BASE_FLOOR, LOWEST_FLOOR),
    (0.45, IOU, 0.8),
    (1, 4, 8),
    4,
    Plan(seconds=90, min_rounds=10, lead_in=1, burst=2, pause=0.002),
    Plan(seconds=120, min_rounds=10, lead_in=1, burst=2),
)
QUICK = Range(
    (0, 100, 500),
    (BASE_FLOOR, LOWEST_FLOOR),
    (0.45, IOU),
    (1, 4),
    2,
    Plan(seconds=6, min_rounds=10, pause=0.002),
    Plan(seconds=8, min_rounds=10),
)
LARGE_PLAN = Plan(seconds=60, min_rounds=10, lead_in=1, burst=2)


@dataclass(frozen=True, kw_only=True)
class Options(DeviceOptions):
    """What to run.

    Attributes:
        implementations: of NMS, see `implementations.NAMES`; None takes all. They run on the
            processor.
        large: also measure the published architecture.
        range: None takes `FULL` or `QUICK`.
        tiles: to a side of a scene, 256 pixels each.
    """

    implementations: tuple[str, ...] | None = None
    large: bool = False
    range: Range | None = None
    tiles: int = TILES

    @property
    def chosen(self) -> Range:
        return self.range or (QUICK if self.quick else FULL)

    def left_out(self) -> dict[str, str]:
        """What cannot be measured on the device, and why.

        Raises:
            InputError: implementations were asked for on a device that has none of them.
        """
        if self.device == CPU:
            return {}
        if self.implementations is not None:
            raise InputError(
                f"device is {self.device!r}, but the implementations of NMS run on the processor: "
                "leave --implementation or --device out"
            )
        engine = engine_of(self.device)
        inside = "NMS is behind its engine, on the host" if engine.builds else "NMS is in its graph"
        return {
            "NMS alone": "its implementations run on the processor, measure them with --device cpu",
            "the graph without its NMS, and its NMS alone": f"{engine.label} runs whole files; "
            + inside,
        }
