"""Latency over a stream, from empty to 500 objects and back.

The NMS-free detector beside the one with NMS at score floors 0.05 and 0.001, in turn on the
same frames, then shuffled: p99 and the worst case by the median, and milliseconds for 100 further
objects. On the processor a constant piece of work before and after every call tells the
undisturbed ones; p99 by the median is given of these, too.

Example: nmsfree bench jitter

A network of yours, adopted with NMS and without: nmsfree bench jitter free.onnx nms.onnx

A first look: nmsfree bench jitter --quick

On a GPU: nmsfree bench jitter --device tensorrt-rtx
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from nmsfree.options import Option
from nmsfree_benchmarks.harness import plots
from nmsfree_benchmarks.harness.engines import on_gpu, ran_in
from nmsfree_benchmarks.harness.options import CPU, Files, OnDevice, RunOptions
from nmsfree_benchmarks.harness.pictures import TILES, Crowd, make_crowd
from nmsfree_benchmarks.harness.records import Ratio, Record, Results, grouped
from nmsfree_benchmarks.harness.run import Run
from nmsfree_benchmarks.harness.statistics import (
    AIM,
    CALLS_FOR,
    FEWEST_ROUNDS,
    STAGES,
    Interval,
    milliseconds,
    slope,
    tail,
    undisturbed,
)
from nmsfree_benchmarks.harness.subject import Subject
from nmsfree_benchmarks.harness.table import Table, number
from nmsfree_benchmarks.harness.timer import Plan, Times, between_probes
from nmsfree_benchmarks.questions.nms.crowd import (
    FOUND_ABOVE,
    LOWEST_FLOOR,
    crowd_subjects,
)

KIND, TITLE, SHORT = "jitter", "Latency over a stream whose crowding changes", "Steadiness"
ASKS = "How much does the time of one picture differ from that of the next, with NMS and without?"
# All detectors take turns on the same few consecutive frames, again and again: what slows the
# machine for a while slows all of them. Before and after every call on a processor is a matrix
# product, always the same: on a shared machine a p99 says what the neighbours did. Of the calls
# between two products of the usual length the machine can have moved p99 / p50 by little more than
# `TOLERATED`. (What a detector does to itself for longer than one call shows in the products, too:
# all calls are reported beside.)
FLOORS = (0.05, LOWEST_FLOOR)
ORDERS = {"ramp": "empty → crowded → empty", "shuffled": "the same frames, shuffled"}
LEVELS = (0, 10, 25, 50, 100, 150, 200, 300, 400, 500)  # objects; up, then down again
QUICK_LEVELS = (0, 50, 100, 300, 500)
PASSES, QUICK_PASSES = 30, 10  # of the whole stream, in each order: 600 calls and 100
SIDE = 512  # px of the networks' input: short calls are told from the machine's moods
BURST = 5  # frames of a turn
ENOUGH = CALLS_FOR[99]  # undisturbed calls, below which nothing is said of their tail
WITH_BY_FREE = "call with NMS by the NMS-free call, same frames"
FLAT = 0.01  # of the median: so little for the whole stream's change of objects is no dependence
AIM_RATIO = 1.10  # p99 / p50 of the NMS-free detector, from empty to 500 objects


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """Rounds follow from frames and passes, not from seconds; a tile has 256 pixels."""

    files: Files = ()
    data: Path = Path("data/digits")
    seconds: float | None = None
    passes: Annotated[
        int | None, Option("Of the stream, in each order; 30, quick 10.", min=1, max=100_000)
    ] = None
    side: Annotated[
        int, Option("Input of the networks, in pixels; frames have 1024.", min=64, max=4096)
    ] = SIDE
    device: OnDevice = CPU
    levels: tuple[int, ...] | None = None
    tiles: int = TILES

    @property
    def chosen_levels(self) -> tuple[int, ...]:
        return self.levels or (QUICK_LEVELS if self.quick else LEVELS)

    @property
    def chosen_passes(self) -> int:
        return self.passes or (QUICK_PASSES if self.quick else PASSES)


def ramp(levels: Sequence[int], tiles: int) -> Iterator[Crowd]:
    """Draw the stream: up the levels and down again, every frame another scene."""
    for n, index in [(n, 0) for n in levels] + [(n, 1) for n in reversed(levels)]:
        yield make_crowd(n, index, tiles)


def in_order(frames: Sequence[Crowd], order: str) -> list[Crowd]:
    """The frames in one of the `ORDERS`; "shuffled" is the same in every run."""
    ordered = list(frames)
    if order == "shuffled":
        random.Random(0).shuffle(ordered)
    return ordered


def stream_plan(frames: int, passes: int) -> Plan:
    """So many passes over the stream, whatever time they take; it is a whole number of turns."""
    burst = max(n for n in range(1, BURST + 1) if frames % n == 0)
    rounds = passes * frames // burst
    return Plan(seconds=0, min_rounds=rounds, max_rounds=rounds, lead_in=1, burst=burst, fixed=True)


def measure(options: Options, run: Run) -> Iterator[Record]:
    """Let all detectors take turns over the stream, in both orders."""
    with_nms, nms_free = crowd_subjects(options, run, options.side)
    step, levels = run.step("frames"), options.chosen_levels
    frames = []
    for frame in ramp(levels, options.tiles):
        frames.append(frame)
        step(len(frames), 2 * len(levels))
    subjects = [nms_free, *with_nms(FLOORS)]
    for subject in subjects:
        subject.open(run.stack)
    plan = options.timed(stream_plan(len(frames), options.chosen_passes))
    run.settings |= {
        "burst": plan.burst,
        "frames": len(frames),
        "passes": options.chosen_passes,
        "size": [256 * options.tiles] * 2,
        "input": list(nms_free.input_size),
        "iou": next(s.detector.spec.nms.iou for s in subjects if s.detector.spec.nms),
        "top_k": nms_free.detector.spec.top_k,
    }
    found = [_found(subject, frames) for subject in subjects]
    calls = {subject.file.name: subject.call() for subject in subjects}
    probed = not on_gpu(options.device)  # a GPU has moods of its own
    if probed:
        from nmsfree_benchmarks.roofline.peaks import constant_work

        work = constant_work(options.cores)
        calls = {name: between_probes(call, work) for name, call in calls.items()}
    for order in ORDERS:
        shown = in_order(frames, order)
        rounds = run.time(calls, [frame.image for frame in shown], plan, f"stream: {order}")
        for subject, counts in zip(subjects, found, strict=True):
            yield _record(subject, shown, rounds[subject.file.name], probed, order, counts)


def _found(subject: Subject, frames: Sequence[Crowd]) -> dict[int, float]:
    """How many detections score above 0.3, by objects of a frame, mean."""
    found: dict[int, list[int]] = {}
    for frame in frames:
        count = len(subject.detector(frame.image, threshold=FOUND_ABOVE))
        found.setdefault(len(frame.labels), []).append(count)
    return {objects: float(np.mean(counts)) for objects, counts in found.items()}


def _record(
    subject: Subject,
    frames: Sequence[Crowd],
    times: Times,
    probed: bool,
    order: str,
    found: Mapping[int, float],
) -> Record:
    objects = [len(frames[call % len(frames)].labels) for call in range(len(times))]
    spec = subject.detector.spec
    parameters = {
        "order": order,
        "floor": spec.score_floor,
        "iou": None if spec.nms is None else spec.nms.iou,
    }
    figures: dict[str, Any] = {
        "objects": objects,
        "found_empty": found[min(objects)],
        "found_fullest": found[max(objects)],
    }
    if probed:
        figures["probes_ns"] = times[:, -2:].tolist()
        times = times[:, :-2]
    name = f"{order} {subject.model}, floor {spec.score_floor:g}"
    return Record(name, parameters, times, STAGES, figures, subject.state(batch=1))


def by_order(results: Results) -> dict[str, list[Record]]:
    return grouped(results.records, lambda record: str(record.parameters["order"]))


def label(record: Record) -> str:
    """Short name of a detector: "NMS, floor 0.05"."""
    if record.state.nms is None:
        return "NMS-free"
    return f"NMS, floor {record.parameters['floor']:g}"


def ratios(results: Results) -> Iterator[Ratio]:
    for own in by_order(results).values():
        free = next(r for r in own if label(r) == "NMS-free")
        for record in own:
            if record is not free:
                yield Ratio.between(record, free, WITH_BY_FREE, results.settings["burst"])


def facts(results: Results) -> dict[str, Any]:
    found = {record.name: _facts(record, results.settings) for record in results.records}
    for own in by_order(results).values():
        for name, more in _undisturbed_facts(own, results.settings["burst"]).items():
            found[name] |= more
    return found


def _facts(record: Record, settings: Mapping[str, Any]) -> dict[str, Any]:
    summary, times = record.summary, milliseconds(record.times)
    objects = np.array(record.figures["objects"])
    levels = [float(np.median(times[objects == n])) for n in np.unique(objects)]
    # What happens to the machine during one pass is not in it; what a frame costs is.
    frames = np.median(times.reshape(-1, settings["frames"]), axis=0)
    return {
        "p99_by_p50": None if summary.p99 is None else round(summary.p99 / summary.p50, 4),
        "worst_frame_by_median": round(float(frames.max() / np.median(frames)), 4),
        "worst_by_p50": round(float(times.max()) / summary.p50, 4),
        "slowest_level_by_fastest": round(max(levels) / min(levels), 4),
        "ms_per_100_objects": slope(times, record.figures["objects"], settings["burst"]).to_json(),
    }


def _undisturbed_facts(own: Sequence[Record], burst: int) -> dict[str, dict[str, Any]]:
    """What the probes say of the records of one order; nothing where there are none.

    "probe_p99_by_p50" is the machine's own tail, of constant work; what begins with "undisturbed"
    is of those calls; None of too few.
    """
    probes = [np.array(r.figures["probes_ns"]) for r in own if "probes_ns" in r.figures]
    if len(probes) < len(own):
        return {}
    # Two products of each call of each detector lie together in a turn.
    turns = [work.reshape(-1, 2 * burst) for work in probes]
    machine = tail(np.concatenate(turns, axis=1).ravel() / 1e6, 2 * burst * len(own))
    found = {}
    for record, work, chosen in zip(own, probes, undisturbed(probes), strict=True):
        calls = tail(milliseconds(record.times), burst, chosen)
        beside = tail(work.ravel() / 1e6, 2 * burst, np.repeat(chosen, 2))
        found[record.name] = {
            "probe_p99_by_p50": machine and round(machine.value, 4),
            "undisturbed_calls": int(chosen.sum()),
            "undisturbed_levels": len(set(np.array(record.figures["objects"])[chosen].tolist())),
            "undisturbed_p99_by_p50": calls and calls.to_json(),
            "undisturbed_probe_p99_by_p50": beside and round(beside.value, 4),
        }
    return found


def tables(results: Results) -> list[Table]:
    facts = results.facts
    columns = {
        "order": lambda r: r.parameters["order"],
        "detector": label,
        "p50": lambda r: f"{r.summary.p50:.1f}{r.summary.doubt}",
        "p99": lambda r: number(r.summary.p99),
        "worst": lambda r: f"{milliseconds(r.times).max():.1f}",
        "p99/p50": lambda r: number(facts[r.name]["p99_by_p50"], ".2f"),
        "undisturbed": lambda r: _tail(facts[r.name]),
        "frame": lambda r: f"{facts[r.name]['worst_frame_by_median']:.2f}",
        "ms/100 obj. (95 %)": lambda r: rise(r, facts).text(sign="+", dash="–"),
    }
    title = "A stream whose crowding changes, ms a frame"
    return [Table.of(title, columns, results.records, words=2)]


def rise(record: Record, found: Mapping[str, Any]) -> Interval:
    return Interval.from_json(found[record.name]["ms_per_100_objects"])


def _tail(found: Mapping[str, Any]) -> str:
    of_calls = found.get("undisturbed_p99_by_p50")
    return number(None if of_calls is None else of_calls["value"], ".2f")


def conclusions(results: Results) -> Iterator[str]:
    yield _aim(results)
    for order, own in by_order(results).items():
        yield from _scatter(order, own, results.facts)
    yield from (_dependence(results, record) for record in results.records)


def _scatter(order: str, own: Sequence[Record], found: Mapping[str, Any]) -> Iterator[str]:
    """p99 by p50 of every detector, of constant work, and of the undisturbed calls."""
    said = [
        f"{label(r)} {number(found[r.name]['p99_by_p50'], '.2f')} (slowest frame by the median one "
        f"{found[r.name]['worst_frame_by_median']:.2f})"
        for r in own
    ]
    yield f"p99 / p50, {order}: {', '.join(said)}."
    if all("undisturbed_calls" in found[r.name] for r in own):
        machine = number(found[own[0].name]["probe_p99_by_p50"], ".2f")
        said = [
            f"{label(r)} {_tail(f)} in {f['undisturbed_calls']} of {len(r.times)} calls (the "
            f"product {number(f['undisturbed_probe_p99_by_p50'], '.2f')})"
            for r, f in ((r, found[r.name]) for r in own)
        ]
        yield (
            f"The machine itself, {order}: p99 / p50 of a constant matrix product is {machine}. "
            f"Between two products of usual length: {', '.join(said)}."
        )


def _aim(results: Results) -> str:
    """Whether the NMS-free detector is as steady as it should be, where that can be told."""
    free = [r for r in results.records if label(r) == "NMS-free"]
    found = [results.facts[r.name] for r in free]
    which = "undisturbed calls"
    if all("undisturbed_calls" in f for f in found):
        levels = len(set(free[0].figures["objects"]))
        if any(
            f["undisturbed_p99_by_p50"] is None or f["undisturbed_levels"] < levels for f in found
        ):
            return (
                f"Whether p99 / p50 of the NMS-free detector is at most {AIM_RATIO:.2f} is open: "
                f"fewer than {ENOUGH} calls of an order were undisturbed, or none of some number "
                "of objects; run it for longer, or on a machine that does nothing else."
            )
        tails = [Interval.from_json(f["undisturbed_p99_by_p50"]) for f in found]
    else:
        burst, which = results.settings["burst"], "all calls"
        of_all = [tail(milliseconds(record.times), burst) for record in free]
        tails = [interval for interval in of_all if interval is not None]
        if len(tails) < len(free):
            return f"Whether p99 / p50 is at most {AIM_RATIO:.2f} is open: under {ENOUGH} calls."
    held = {interval.within(AIM_RATIO) for interval in tails}  # one order that misses is enough
    verdict = AIM[False if False in held else None if None in held else True]
    worst = max(tails, key=lambda interval: interval.value)
    return f"NMS-free, {which}: p99 / p50 at most {worst.text()}; aim {AIM_RATIO:.2f}: {verdict}."


def _dependence(results: Results, record: Record) -> str:
    interval = rise(record, results.facts)
    objects = record.figures["objects"]
    change = abs(interval.value) * (max(objects) - min(objects)) / 100
    if not interval.known:
        verdict = f"under {FEWEST_ROUNDS} rounds, whether it depends on content is open"
    elif interval.low <= 0 <= interval.high:
        verdict = "no dependence on content is seen"
    elif change <= FLAT * record.summary.p50:
        verdict = f"at most {FLAT:.0%} of a call depends on content"
    else:
        verdict = "depends on content"
    said = f"{interval.text(sign='+')} ms per 100 objects"
    return f"{record.parameters['order']}, {label(record)}: {said}: {verdict}."


def notes(results: Results) -> Iterator[str]:
    s = results.settings
    height, width = s["size"]
    yield (
        f"{s['frames']} frames of {height} × {width} pixels, seen by networks of "
        f"{' × '.join(map(str, s['input']))}, {s['passes']} passes in each order, turns of "
        f"{s['burst']} frames; NMS with IoU {s['iou']:g} within a class, {s['top_k']} "
        "rows of output; from the picture in memory to boxes in its pixels."
    )
    yield from ran_in(results)
    for record in next(iter(by_order(results).values())):
        objects, f = record.figures["objects"], record.figures
        yield (
            f"{label(record)} finds {f['found_empty']:.0f} with a score above {FOUND_ABOVE} in "
            f"frames of {min(objects)} objects, {f['found_fullest']:.0f} in frames of "
            f"{max(objects)}."
        )


def draw(results: Results, path: Path) -> None:
    """A panel for each order: latency over the stream, and the crowding behind it."""
    orders = by_order(results)
    figure = plots.new_figure(11, 1.2 + 3.1 * len(orders))
    panels = figure.subplots(len(orders), 1, squeeze=False)[:, 0]
    for panel, (order, own) in zip(panels, orders.items(), strict=True):
        _panel(panel, own, results)
        panel.set_title(ORDERS.get(order, order), loc="left", fontsize=10)
    panels[-1].set_xlabel("frame of the stream", fontsize=9)
    plots.finish(figure, results, TITLE, path)


def _panel(panel: "plots.Axes", records: list[Record], results: Results) -> None:
    frames = results.settings["frames"]
    objects = records[0].figures["objects"][:frames]
    crowd = panel.twinx()
    crowd.bar(range(frames), objects, width=1, color="#e4e4e4", linewidth=0)
    crowd.set_ylim(0, 1.05 * max(objects))
    crowd.set_ylabel("objects in the frame (grey)", fontsize=9, color=plots.FAINT)
    crowd.tick_params(labelsize=9, colors=plots.FAINT)
    crowd.spines[["top", "left", "bottom"]].set_visible(False)
    panel.set_zorder(crowd.get_zorder() + 1)  # lines before the grey area
    panel.patch.set_visible(False)
    ends = []
    for record, colour in zip(records, plots.SERIES, strict=False):
        passes = milliseconds(record.times).reshape(-1, frames)
        low, middle, high = np.percentile(passes, (25, 50, 75), axis=0)
        panel.fill_between(range(frames), low, high, color=colour, alpha=0.18, linewidth=0)
        panel.plot(range(frames), middle, "o-", color=colour, linewidth=1.5, markersize=3.5)
        found = results.facts[record.name]
        more = f"worst/p50 {found['worst_by_p50']:.2f}"
        if found.get("undisturbed_p99_by_p50") is not None:
            more = f"undisturbed {_tail(found)}"
        text = f"{label(record)}\np99/p50 {number(found['p99_by_p50'], '.2f')}, {more}"
        ends.append((float(frames - 1), float(middle[-1]), text, colour))
    panel.margins(y=0.12)
    panel.set_xlim(-0.7, frames * 1.34)  # room for the labels at the right
    panel.set_xticks(range(0, frames, max(1, frames // 10)))
    plots.bare_axes(panel, "y")
    panel.set_ylabel("ms, median of the passes\n(not from 0); band: quartiles", fontsize=9)
    plots.label_points(panel, ends, right=True)
