"""The stream: frames from empty to crowded and back, and the turns that detectors take over it."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nmsfree_benchmarks.common.run_options import Progress
from nmsfree_benchmarks.crowd.scenes import make_crowd
from nmsfree_benchmarks.machine.measure import Call, Image, Plan, Times, take_turns
from nmsfree_benchmarks.machine.quiet import between_probes, split_probes

BURST = 5  # frames of a turn


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


def burst_of(frames: int) -> int:
    """Return the frames of a turn: at most `BURST`, and the stream is a whole number of turns."""
    return max(n for n in range(1, BURST + 1) if frames % n == 0)


def stream_plan(frames: int, passes: int) -> Plan:
    """Return a plan of so many passes over the stream, whatever time they take."""
    burst = burst_of(frames)
    rounds = passes * frames // burst
    return Plan(seconds=0, min_rounds=rounds, max_rounds=rounds, lead_in=1, burst=burst)


def time_stream(
    calls: Mapping[str, Call],
    frames: Sequence[Frame],
    plan: Plan,
    probe: Call | None,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, Times], dict[str, Times]]:
    """Let all detectors take turns over the stream.

    Args:
        probe: constant work that is timed before and after every call; None leaves it out.

    Returns:
        By name the times of the calls, and those of the probes, [calls, 2] or nothing.
    """
    images = [frame.image for frame in frames]
    if probe is None:
        return take_turns(calls, images, plan, progress), {}
    probed = {name: between_probes(call, probe) for name, call in calls.items()}
    found = {
        name: split_probes(t) for name, t in take_turns(probed, images, plan, progress).items()
    }
    return {name: t for name, (t, _) in found.items()}, {name: t for name, (_, t) in found.items()}
