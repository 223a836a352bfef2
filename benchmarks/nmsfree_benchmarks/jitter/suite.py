"""`nmsfree bench jitter`: does the time of a frame depend on what is in it?

A stream of frames grows from empty to crowded and back, then the same frames come in a shuffled
order. The NMS-free detector and the detector with NMS, at two score floors, take turns on the same
few consecutive frames, again and again: what slows the machine for a while slows all of them.
"""

import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from nmsfree_benchmarks.common.publishing import now
from nmsfree_benchmarks.common.run_options import Progress, RunOptions, silent
from nmsfree_benchmarks.crowd.models import (
    IOU,
    LOWEST_FLOOR,
    TOP_K,
    Opened,
    export_all,
    nano_jobs,
    open_timed,
    use_threads,
    with_floor,
)
from nmsfree_benchmarks.crowd.scenes import TILES, make_crowd
from nmsfree_benchmarks.jitter.facts import facts_of, ratios_of
from nmsfree_benchmarks.machine.environment import describe
from nmsfree_benchmarks.machine.load import LoadMeter
from nmsfree_benchmarks.machine.measure import Image, Plan, Stopwatch, Times, take_turns
from nmsfree_benchmarks.nms.calls import FOUND_ABOVE, PARTS
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.table.entries import timed_call

FLOORS = (0.05, LOWEST_FLOOR)
ORDERS = ("ramp", "shuffled")
LEVELS = (0, 10, 25, 50, 100, 150, 200, 300, 400, 500)  # objects; up, then down again
QUICK_LEVELS = (0, 50, 100, 300, 500)
PASSES, QUICK_PASSES = 10, 2  # of the whole stream, in each order
BURST = 5  # frames of a turn


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """What to run; rounds follow from frames and passes, not from seconds.

    Attributes:
        passes: of the stream in each order; None takes `PASSES` or `QUICK_PASSES`.
        levels: objects of the frames on the way up; None takes `LEVELS` or `QUICK_LEVELS`.
        tiles: to a side of a frame, 256 pixels each.
    """

    passes: int | None = None
    levels: tuple[int, ...] | None = None
    tiles: int = TILES

    @property
    def chosen_levels(self) -> tuple[int, ...]:
        return self.levels or (QUICK_LEVELS if self.quick else LEVELS)

    @property
    def chosen_passes(self) -> int:
        return self.passes or (QUICK_PASSES if self.quick else PASSES)


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture of the stream, BGR uint8, and how many objects are in it."""

    image: Image
    objects: int


def ramp(levels: Sequence[int], tiles: int, progress: Progress) -> list[Frame]:
    """Draw the stream: up the levels and down again, every frame another scene."""
    wanted = [(n, 0) for n in levels] + [(n, 1) for n in reversed(levels)]
    frames = []
    for n, index in wanted:
        frames.append(Frame(make_crowd(n, index, tiles).image, n))
        progress("frames", len(frames), len(wanted))
    return frames


def in_order(frames: Sequence[Frame], order: str) -> list[Frame]:
    """Return the frames in one of the `ORDERS`; "shuffled" is the same in every run."""
    ordered = list(frames)
    if order == "shuffled":
        random.Random(0).shuffle(ordered)
    return ordered


def run_jitter(options: Options, progress: Progress = silent) -> Results:
    """Measure everything.

    Raises:
        InputError: the weights are not there.
        GateError: an exported file differs from its checkpoint.
    """
    started, stamp = time.monotonic(), now()
    use_threads(options.threads)
    jobs = nano_jobs(options.weights, 256 * options.tiles)
    environment = describe(options.threads)
    with_nms, nms_free = export_all(jobs, options.work, progress)
    frames = ramp(options.chosen_levels, options.tiles, progress)
    watch = Stopwatch()
    records, loads = [], []
    with ExitStack() as stack:
        files = [nms_free, *(with_floor(with_nms, floor) for floor in FLOORS)]
        opened = [open_timed(file, jobs[0].training, options.threads, watch) for file in files]
        for one in opened:
            stack.enter_context(one.detector)
        found = [_found(one, frames) for one in opened]
        for order in ORDERS:
            with LoadMeter() as meter:
                times = _stream(opened, in_order(frames, order), options, watch, order, progress)
            loads += [] if meter.others is None else [meter.others]
            records += [
                _record(one, in_order(frames, order), times[one.file.name], order, counts)
                for one, counts in zip(opened, found, strict=True)
            ]
    results = Results(
        "jitter",
        stamp,
        options.command,
        options.quick,
        environment,
        tuple(records),
        max(loads, default=None),
        _settings(options, frames),
        seconds=time.monotonic() - started,
    )
    results = replace(results, ratios=tuple(ratios_of(results)))
    return replace(results, facts=facts_of(results))


def _settings(options: Options, frames: Sequence[Frame]) -> dict[str, Any]:
    return {
        "burst": burst_of(len(frames)),
        "frames": len(frames),
        "passes": options.chosen_passes,
        "size": [256 * options.tiles] * 2,
        "iou": IOU,
        "top_k": TOP_K,
    }


def burst_of(frames: int) -> int:
    """Return the frames of a turn: at most `BURST`, and the stream is a whole number of turns."""
    return max(n for n in range(1, BURST + 1) if frames % n == 0)


def _stream(
    opened: Sequence[Opened],
    frames: Sequence[Frame],
    options: Options,
    watch: Stopwatch,
    order: str,
    progress: Progress,
) -> dict[str, Times]:
    """Let all detectors take turns over the stream, as many passes as wanted."""
    burst = burst_of(len(frames))
    rounds = options.chosen_passes * len(frames) // burst
    return take_turns(
        {one.file.name: timed_call(one.detector, watch) for one in opened},
        [frame.image for frame in frames],
        Plan(seconds=0, min_rounds=rounds, max_rounds=rounds, lead_in=1, burst=burst),
        partial(progress, f"stream: {order}"),
    )


def _found(opened: Opened, frames: Sequence[Frame]) -> dict[int, float]:
    """Return how many detections score above 0.3, mean over the frames with so many objects."""
    found: dict[int, list[int]] = {}
    for frame in frames:
        count = len(opened.detector(frame.image, threshold=FOUND_ABOVE))
        found.setdefault(frame.objects, []).append(count)
    return {objects: float(np.mean(counts)) for objects, counts in found.items()}


def _record(
    opened: Opened,
    frames: Sequence[Frame],
    times: Times,
    order: str,
    found: dict[int, float],
) -> Record:
    """Say of every timed call how many objects were in its frame."""
    objects = [frames[call % len(frames)].objects for call in range(len(times))]
    spec = opened.detector.spec
    iou = None if spec.nms is None else spec.nms.iou
    parameters = {"order": order, "floor": spec.score_floor, "iou": iou}
    most = max(objects)
    figures = {"objects": objects, "found_empty": found[min(objects)], "found_fullest": found[most]}
    name = f"{order} {spec.name}, floor {spec.score_floor:g}"
    return Record(name, parameters, times, PARTS, figures, opened.subject)
