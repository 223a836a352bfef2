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

from nmsfree.datasets.digits.scenes import make_scene
from nmsfree.errors import InputError
from nmsfree.options import Option
from nmsfree_benchmarks.harness.engines import engine_of
from nmsfree_benchmarks.harness.graphs import open_session, without_nms
from nmsfree_benchmarks.harness.options import CPU, Files, OnDevice, RunOptions
from nmsfree_benchmarks.harness.pictures import TILES, full_hd, make_crowd
from nmsfree_benchmarks.harness.records import Record
from nmsfree_benchmarks.harness.run import Case, Run
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
from nmsfree_benchmarks.questions.nms.plot import draw
from nmsfree_benchmarks.questions.nms.prices import (
    AXES,
    UNFILTERED,
    conclusions,
    facts,
    notes,
    ratios,
    tables,
)

__all__ = ["conclusions", "draw", "facts", "notes", "ratios", "tables"]
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
    large: Annotated[
        bool, Option("Also the published architecture at 512 × 736.", flags=("--large",))
    ] = False
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
        if self.files and (self.large or self.implementation is not None):
            raise InputError(
                "--large and --implementation are of the bundled models: no files then"
            )
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
