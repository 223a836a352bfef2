"""The price of NMS: over objects, settings and implementations.

First the NMS alone, on the candidates that a trained detector finds in scenes of 0 to 500
digits, one setting varied at a time; implementations that keep different boxes are refused.
Then whole calls: Detector(image) with NMS beside the NMS-free one, and what NMS takes of it.
On another device than the processor whole calls alone; a TensorRT-RTX engine has NMS in plain
operators.

Example: nmsfree bench nms

A network of yours, adopted with NMS and without: nmsfree bench nms free.onnx nms.onnx

A first look: nmsfree bench nms --quick

Only one implementation: nmsfree bench nms --implementation onnx --seconds 30

On a GPU: nmsfree bench nms --device tensorrt-rtx
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np

from nmsfree.datasets.digits.scenes import make_scene
from nmsfree.errors import InputError
from nmsfree.options import Option
from nmsfree_benchmarks.harness import plots
from nmsfree_benchmarks.harness.engines import engine_of
from nmsfree_benchmarks.harness.graphs import open_session, without_nms
from nmsfree_benchmarks.harness.options import CPU, Files, Large, OnDevice, RunOptions
from nmsfree_benchmarks.harness.pictures import TILES, full_hd, make_crowd
from nmsfree_benchmarks.harness.records import Record, Results
from nmsfree_benchmarks.harness.run import Case, Run
from nmsfree_benchmarks.harness.statistics import Interval, milliseconds
from nmsfree_benchmarks.harness.timer import Image, Plan, slots
from nmsfree_benchmarks.harness.weights import published
from nmsfree_benchmarks.questions.nms.calls import (
    PLAIN_NMS,
    Contest,
    HeadParts,
    Point,
    Setting,
    choose,
    find_candidates,
    nms_cases,
    points,
)
from nmsfree_benchmarks.questions.nms.crowd import (
    IOU,
    LOWEST_FLOOR,
    at_floors,
    crowd_subject,
    crowd_subjects,
    without_filter,
)
from nmsfree_benchmarks.questions.nms.prices import (
    AXES,
    HEAD,
    NAMES,
    UNFILTERED,
    conclusions,
    fact,
    facts,
    key,
    notes,
    price_of,
    ratios,
    tables,
)

__all__ = ["conclusions", "facts", "notes", "ratios", "tables"]
KIND, TITLE, SHORT = "nms", "The price of NMS", "The price of NMS"
ASKS = "What does non-maximum suppression cost, and how does it grow with what is in the picture?"
BASE_FLOOR = 0.05
LARGE = "fcos_rt_r18_3x"
LARGE_PLAN = Plan(seconds=60, min_rounds=10, lead_in=1, burst=2)


@dataclass(frozen=True)
class Range:
    """What is varied, and for how long it is timed.

    The last number of objects, `BASE_FLOOR`, the default IoU and batch 1 are the base point.
    """

    objects: tuple[int, ...]
    floors: tuple[float, ...]
    ious: tuple[float, ...]
    batches: tuple[int, ...]
    scenes: int  # with each number of objects
    alone: Plan
    call: Plan

    @property
    def points(self) -> list[Point]:
        base = Point(self.objects[-1], BASE_FLOOR, IOU, 1)
        values = (self.objects, self.floors, self.ious, self.batches)
        # An empty picture at the lowest floor: weak candidates are everywhere, without overlap.
        slowest = replace(base, objects=self.objects[0], floor=min(self.floors))
        return list(dict.fromkeys([*points(base, dict(zip(AXES, values, strict=True))), slowest]))


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


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    files: Files = ()
    data: Path = Path("data/digits")
    implementation: Annotated[
        tuple[str, ...] | None,
        Option("Only this NMS, beside numpy: onnx, plain, opencv, torchvision; repeatable."),
    ] = None
    large: Large = False
    device: OnDevice = CPU
    range: Range | None = None  # None takes `FULL` or `QUICK`
    tiles: int = TILES  # to a side of a scene, 256 pixels each

    @property
    def chosen(self) -> Range:
        return self.range or (QUICK if self.quick else FULL)

    def left_out(self) -> dict[str, str]:
        """What cannot be measured on the device, and why.

        InputError: implementations were asked for on a device that has none of them.
        """
        if self.files:
            alone = "its candidates are those of the bundled models, measure it without files"
            return {"NMS alone": alone}
        if self.device == CPU:
            return {}
        if self.implementation is not None:
            raise InputError(
                f"device is {self.device!r}, but the implementations of NMS run on the processor: "
                "leave --implementation or --device out"
            )
        engine = engine_of(self.device)
        return {
            "NMS alone": "its implementations run on the processor, measure them with --device cpu",
            "the graph without its NMS, and its NMS alone": f"{engine.label} runs whole files",
        }


def measure(options: Options, run: Run) -> Iterator[Record]:
    """Time NMS alone, whole calls, and those of the published architecture.

    GateError: implementations keep different boxes.
    """
    run.skipped = options.left_out()
    names: list[str] = []
    if not run.skipped:
        names, run.skipped = choose(options.implementation)
    with_nms, free = crowd_subjects(options, run, 256 * options.tiles)
    others = {"NMS-free": free}
    bare = without_filter(free, options.work)
    if bare is not None:
        run.export_whole([bare])
        others[UNFILTERED] = bare
    chosen = options.chosen
    scenes: dict[int | None, list[Image]] = {}
    step = run.step("scenes")
    for done, objects in enumerate(chosen.objects, start=1):
        scenes[objects] = [
            make_crowd(objects, i, options.tiles).image for i in range(chosen.scenes)
        ]
        step(done, len(chosen.objects))
    contest = Contest(with_nms(chosen.floors), others, options.device == CPU)
    for subject in (*contest.with_nms, *others.values()):
        subject.open(run.stack)
    nms = contest.with_nms[0].detector.spec.nms
    assert nms is not None
    run.settings |= {
        "burst": {},
        "base": vars(chosen.points[0]) | {"iou": nms.iou},
        "scenes": chosen.scenes,
        "size": [256 * options.tiles] * 2,
        "top_k": free.detector.spec.top_k,
        "candidates_per_level": nms.candidates or nms.candidates_per_level,
        "plain": {"steps": PLAIN_NMS.steps, "candidates": PLAIN_NMS.candidates},
    }
    rounds = partial(_rounds, options, run)
    if names:
        yield from rounds("alone", _alone(contest, scenes, names, options), chosen.alone)
    yield from rounds("call", list(contest.cases(scenes)), chosen.call)
    if options.large:
        yield from rounds("large", _large(options, run), LARGE_PLAN)


def _rounds(
    options: Options, run: Run, what: str, cases: Sequence[Case], plan: Plan
) -> Iterator[Record]:
    images = slots(options.chosen.scenes)
    records, burst = run.records(cases, images, options.timed(plan), f"rounds: {what}")
    run.settings["burst"][what] = burst
    yield from records


def _alone(
    contest: Contest,
    scenes: dict[int | None, list[Image]],
    names: Sequence[str],
    options: Options,
) -> list[Case]:
    """Every implementation at every point, and the NMS-free head beside them."""
    subject, free, count = contest.with_nms[0], contest.others["NMS-free"], options.chosen.scenes
    cut = open_session(without_nms(subject.file), options.cores)
    head = HeadParts(free.file, options.cores)
    found = {objects: find_candidates(cut, own) for objects, own in scenes.items()}
    maps = {objects: head.maps(own) for objects, own in scenes.items()}
    made: dict[str, Case] = {}
    for point in options.chosen.points:
        own = found[point.objects]
        spec, candidates = subject.detector.spec, own.scores.shape[1]
        setting = Setting(spec, candidates, point.floor, point.iou, options.cores)
        for case in nms_cases(point, names, own, setting, count):
            made[case.name] = case
        case = head.case(point, maps[point.objects], count, free.floor)
        made[case.name] = case
    return list(made.values())


def _large(options: Options, run: Run) -> list[Case]:
    """The published architecture at its size, with random weights where there are none."""
    weights = published(LARGE, options.weights, options.work)
    subject = crowd_subject(weights, options, None)
    run.export_whole([subject], "export large")
    found = at_floors(subject, options.chosen.floors)
    for one in found:
        one.open(run.stack)
    digits = [make_scene("val", index).image for index in range(32)]
    contest = Contest(found, {}, options.device == CPU, "large")
    return list(contest.cases({None: full_hd(digits, options.chosen.scenes)}))


def draw(results: Results, path: Path) -> None:
    """NMS alone over each axis, whole calls over objects, and what NMS takes of these."""
    alone = bool(results.where(measured="alone"))
    figure = plots.new_figure(11, 8 if alone else 4.4)
    rows = figure.subfigures(1 + alone, 1, squeeze=False, height_ratios=(1, 1.05)[-1 - alone :])
    if alone:
        base = results.settings["base"]
        panels = rows[0, 0].subplots(1, 4, sharey=True, width_ratios=(1.9, 1, 1, 1))
        for panel, axis in zip(panels, AXES, strict=True):
            _alone_panel(panel, results, axis)
        panels[0].set_ylabel("ms a call, median")
        panels[0].set_title("NMS alone, one setting varied at a time", loc="left", fontsize=10)
        panels[1].set_title(
            f"else: {base['objects']} objects, floor {base['floor']:g}, IoU {base['iou']:g}, "
            f"batch {base['batch']}",
            loc="left",
            fontsize=9,
            color=plots.FAINT,
        )
    shared = any("_share_of_call_" in name for name in results.facts)
    ratios_ = (1.35, 1)[: 1 + shared]
    panels = rows[-1, 0].subplots(1, 1 + shared, squeeze=False, width_ratios=ratios_)[0]
    _calls_panel(panels[0], results)
    if shared:
        _shares_panel(panels[1], results)
    plots.finish(figure, results, "The price of NMS", path)


def _alone_panel(panel: "plots.Axes", results: Results, axis: str) -> None:
    """One line for each implementation over one axis; values are evenly spaced."""
    base = results.settings["base"]
    others = {name: value for name, value in base.items() if name != axis}
    records = results.where(measured="alone", **others)
    values = sorted({r.parameters[axis] for r in records}, reverse=axis == "floor")
    series = *plots.SERIES[1:3], plots.INK, *plots.SERIES[3:], plots.SERIES[0]
    colour = dict(zip(NAMES, series, strict=True))
    ends = []
    for name in NAMES:
        own = [r for r in records if r.parameters["implementation"] == name]
        if name == HEAD:
            fixed = {k: v for k, v in others.items() if k in ("objects", "batch")}
            own = results.where(implementation=HEAD, **fixed)
        if not own:
            continue
        y = {r.parameters[axis]: r.summary.p50 for r in own}
        if name == HEAD and axis in ("floor", "iou"):  # depends on neither: a level
            y = dict.fromkeys(values, own[0].summary.p50)
        style = "-" if name == HEAD and axis in ("floor", "iou") else "o-"
        x = [i for i, value in enumerate(values) if value in y]
        line = [y[values[i]] for i in x]
        panel.plot(x, line, style, color=colour[name], linewidth=1.6, markersize=4)
        ends.append((float(x[-1]), line[-1], NAMES[name][2], colour[name]))
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    panel.set_xlim(-0.3, len(values) - (0.7 if axis != "objects" else -1.9))
    panel.set_xlabel(AXES[axis], fontsize=9)
    plots.bare_axes(panel, "y")
    if axis == "objects":
        # The point that differs from the base in two settings: empty, at the lowest floor.
        for r in results.where(measured="alone", iou=base["iou"], batch=base["batch"]):
            p = r.parameters
            if p["objects"] != base["objects"] and p["floor"] != base["floor"]:
                mark = colour[p["implementation"]]
                panel.plot(0, r.summary.p50, "D", color=mark, markersize=6, mfc="white", zorder=3)
                text = f"◇ empty, floor {p['floor']:g}"
                place = panel.transAxes
                panel.text(0.03, 0.97, text, transform=place, fontsize=9, color=plots.INK, va="top")
        plots.label_points(panel, ends, right=True)


def _floors(results: Results, what: str) -> list[float]:
    """The score floors at which whole calls were timed, lowest first."""
    found = results.where(measured="call", what=what)
    return sorted({float(r.parameters["floor"]) for r in found})


def _calls_panel(panel: "plots.Axes", results: Results) -> None:
    """Whole calls over the number of objects: one line for each floor, and the NMS-free one."""
    lines = [("NMS-free", f, plots.SERIES[0], "NMS-free") for f in _floors(results, "NMS-free")]
    lines += [
        ("with NMS", floor, plots.SERIES[i], f"NMS, floor {floor:g}")
        for floor, i in zip(_floors(results, "with NMS"), (1, 4, 3), strict=False)
    ]
    ends, own = [], []
    for what, floor, colour, label in lines:
        own = results.where(measured="call", what=what, floor=floor)
        quartiles = [np.percentile(milliseconds(r.times), (25, 50, 75)) for r in own]
        low, y, high = np.array(quartiles).T
        panel.fill_between(range(len(own)), low, high, color=colour, alpha=0.13, linewidth=0)
        panel.plot(range(len(own)), y, "o-", color=colour, linewidth=1.6, markersize=4)
        ends.append((float(len(own) - 1), float(y[-1]), label, colour))
    panel.set_ylim(0, 1.08 * panel.get_ylim()[1])
    panel.set_xlim(-0.1, 1.32 * (len(own) - 1) + 0.1)
    panel.set_xticks(range(len(own)), [str(r.parameters["objects"]) for r in own])
    panel.set_xlabel("objects in the scene", fontsize=9)
    panel.set_ylabel("ms a call, median; band: quartiles")
    panel.set_title("Whole call, Detector(image)", loc="left", fontsize=10)
    plots.bare_axes(panel, "y")
    plots.label_points(panel, ends, right=True)


def _shares_panel(panel: "plots.Axes", results: Results) -> None:
    """Shares of the call with their intervals, over objects and floors."""

    def mark(x: float, share: Interval, marker: str, colour: str) -> None:
        if share.known:
            panel.plot([x, x], [100 * share.low, 100 * share.high], color=colour, linewidth=1.4)
        panel.plot(x, 100 * share.value, marker, color=colour, markersize=5)

    wholes, floors = results.where(measured="call", what="with NMS"), _floors(results, "with NMS")
    objects = sorted({r.parameters["objects"] for r in wholes})
    told_apart = False
    for record in wholes:
        i = floors.index(record.parameters["floor"])
        x = objects.index(record.parameters["objects"]) + 0.16 * (i - (len(floors) - 1) / 2)
        colour, price = plots.SERIES[(1, 4, 3)[i % 3]], price_of(results, record)
        if price is not None:
            told_apart = True
            mark(x, price[1], "o", colour)
        tail = fact(results, f"nms_tail_share_of_call_{key(record)}")
        if tail is not None:
            at = 100 * tail.value
            panel.plot(x + 0.06, at, "D", color=colour, markersize=4, mfc="white")
    for place, count in enumerate(objects):
        share = fact(results, f"filter_share_of_call_{count}")
        if share is not None:
            mark(place + 0.34 * told_apart, share, "s", plots.SERIES[0])  # right of those of NMS
    panel.axhline(0, color=plots.INK, linewidth=0.8)
    panel.set_xticks(range(len(objects)), [str(n) for n in objects])
    panel.set_xlabel("objects in the scene", fontsize=9)
    panel.set_ylabel("% of the call, 95 % interval")
    title = "NMS: ● with − without, ◇ alone; ■ the filter in its place"
    if not told_apart:
        title = "What the filter takes of the NMS-free call"
    panel.set_title(title, loc="left", fontsize=10)
    plots.bare_axes(panel, "y")
