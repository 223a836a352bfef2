"""Calls on inputs that were prepared before the clock runs, ready for `measure.take_turns`."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nmsfree_benchmarks.machine.measure import Call, Image, Times
from nmsfree_benchmarks.record.records import Record, Subject


@dataclass(frozen=True, eq=False)
class Timed:
    """Something to time, and what becomes of its times.

    Attributes:
        name: of the record.
        call: takes one of the `slots` for an image.
        parameters, figures, parts, subject: of the record.
    """

    name: str
    call: Call
    parameters: Mapping[str, Any]
    figures: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ("total",)
    subject: Subject | None = None

    def record(self, times: Times) -> Record:
        """Return the record of these times; the median of NMS, where it is a part, is a figure."""
        figures = dict(self.figures)
        if "nms" in self.parts:
            figures["nms_ms"] = round(float(np.median(times[:, self.parts.index("nms")])) / 1e6, 4)
        return Record(self.name, self.parameters, times, self.parts, figures, self.subject)


def slots(count: int) -> list[Image]:
    """Return stand-ins for pictures: tiny arrays that say which prepared input to take."""
    return [np.full((1, 1, 3), number, dtype=np.uint8) for number in range(count)]


def slot_of(image: Image) -> int:
    """Return which prepared input a stand-in means."""
    return int(image[0, 0, 0])


def on_inputs(run: Callable[[Any], object], inputs: Sequence[Any]) -> Call:
    """Return a call that times `run` on one of the inputs, and nothing around it."""

    def call(image: Image) -> Sequence[int]:
        own = inputs[slot_of(image)]
        start = time.perf_counter_ns()
        run(own)
        return (time.perf_counter_ns() - start,)

    return call
