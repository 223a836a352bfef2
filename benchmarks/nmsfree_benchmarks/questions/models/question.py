"""`nmsfree bench`: every model in every engine, timed in turn, and AP of the very files."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from nmsfree.errors import InputError
from nmsfree.options import Option
from nmsfree_benchmarks.harness import pictures
from nmsfree_benchmarks.harness.engines import CPU, DEPLOYED, ENGINES, Engine, the_gpu, without_tf32
from nmsfree_benchmarks.harness.gpu import joules_per_image
from nmsfree_benchmarks.harness.records import Record
from nmsfree_benchmarks.harness.run import Question, Run, RunOptions, answer
from nmsfree_benchmarks.harness.timer import Plan

if TYPE_CHECKING:
    from nmsfree_export.options import Precision

from nmsfree_benchmarks.questions.models.plot import draw, page_pictures
from nmsfree_benchmarks.questions.models.rows import (
    Group,
    judge,
    open_rows,
    records_of,
    time_with_peaks,
    weigh,
)
from nmsfree_benchmarks.questions.models.words import (
    BASELINE,
    CPU_ENGINES,
    OTHERS,
    conclusions,
    facts,
    in_precision,
    notes,
    ratios,
    tables,
)

SIZES = ("nano", "large")
# By size, quick; seconds are aimed at, min_rounds are met: ten for an interval, a hundred calls of
# the small models for a p99. Calls of the large ones are so long that no lead-in is needed.
PLANS = {
    ("nano", False): Plan(seconds=60, min_rounds=20, lead_in=3, burst=5),
    ("nano", True): Plan(seconds=6, min_rounds=10, lead_in=1, burst=3),
    ("large", False): Plan(seconds=180, min_rounds=10, burst=2),
    ("large", True): Plan(seconds=8, min_rounds=10),
}
QUICK_AP_IMAGES = 40
NANO_PICTURES, HD_PICTURES = 32, 4


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """A quick run has of the large models only the rows that the ratios need."""

    quick: Annotated[
        bool, Option("Two minutes on a processor: fewer rounds and rows.", flags=("--quick",))
    ] = False
    weights: Annotated[Path, Option("Trained checkpoints; published ones in its published/.")] = (
        Path("weights")
    )
    data: Annotated[
        Path, Option("Digits set: val for AP, train for INT8; made elsewhere when missing.")
    ] = Path("data/digits")
    out: Annotated[Path, Option("Where the report is written: JSON, Markdown, picture.")] = Path(
        "runs/bench"
    )
    seconds: Annotated[
        float | None, Option("Time for the rounds of each input size.", min=0, max=86400)
    ] = None
    size: Annotated[str | None, Option("Only nano (digits) or only large (512 × 736).")] = None
    device: Annotated[str, Option("Where the models run: cpu or cuda.")] = CPU

    @property
    def others(self) -> "list[tuple[Engine, Precision]]":
        """Further engines, each with the precision of its file."""
        if self.quick and self.device == CPU:
            return []
        return [(in_precision(ENGINES[key], kind), kind) for key, kind in OTHERS[self.device]]


def measure(options: Options, run: Run) -> Iterator[Record]:
    """Export, evaluate and time the models of each size, the peaks of the device among them."""
    run.settings["bursts"] = {}
    rows = 0
    if options.device != CPU:
        without_tf32()
    for group in make_groups(options, run):
        with ExitStack() as run.stack:
            for record in measure_group(group, options, run):
                rows += 1
                yield record
    if not rows:
        raise InputError("nothing to measure: " + "; ".join(run.skipped.values()))


def make_groups(options: Options, run: Run) -> Iterator[Group]:
    from nmsfree_benchmarks.harness.weights import all_published, trained

    dataset = run.digits_val()
    images = pictures.read_first(dataset, NANO_PICTURES)
    if options.size != "large":
        found, missing = trained(options.weights)
        run.skipped |= missing
        judged = pictures.first(dataset, QUICK_AP_IMAGES if options.quick else None)
        yield Group("nano", found, images, judged, CPU_ENGINES)
    if options.size != "nano":
        large = all_published(options.weights, options.work, run.step("weights"))
        engines = (BASELINE, DEPLOYED) if options.quick else CPU_ENGINES
        full_hd = pictures.full_hd(images, HD_PICTURES)
        yield Group("large", large, full_hd, None, engines)


def measure_group(group: Group, options: Options, run: Run) -> Iterator[Record]:
    rows = open_rows(group, options.others, run)
    if not rows:
        return
    if group.judged is not None:
        judge(rows, group.judged, run.step(f"AP {group.size}"))
    if not options.quick:
        weigh(rows, run, run.step(f"memory {group.size}"))
    calls = {name: call for row in rows for name, call in row.calls().items()}
    plan = options.timed(PLANS[group.size, options.quick])
    times, limit_of_file = time_with_peaks(calls, group, plan, run)
    stages = {row.name: row.subject.stages() for row in rows}
    if options.device == "cuda":
        # One detector after another: a counter of energy cannot tell turns apart.
        for row in rows:
            joules = joules_per_image(row.subject.call(), group.images)
            if joules is not None:
                row.figures["joules_per_image"] = round(joules, 4)
    for row in rows:
        height, width = row.subject.input_size
        run.settings["bursts"][f"{height}x{width}"] = times.burst
        row.figures |= stages[row.name] | row.subject.figures
        yield from records_of(row, times, limit_of_file)


QUESTION = Question(
    "table",
    "Benchmark",
    "Speed and accuracy",
    "How fast is each detector from a picture in memory to its boxes, with NMS and without, and "
    "how right is the very file that was timed?",
    measure,
    ratios,
    facts,
    tables,
    conclusions,
    notes,
    draw,
    page_pictures,
    tries_device=False,  # an engine that is not there is skipped
)


def models(options: Options) -> None:
    """Measure NMS-free against NMS: latency by stage, and AP of the very files that are timed.

    All models of a size run in turn: in eager PyTorch as published, and as files exported here in
    ONNX Runtime and OpenVINO, FP32 and INT8 (bf16 where the processor has it); on a GPU in
    PyTorch, ONNX Runtime and TensorRT-RTX, FP32, FP16 and INT8. Models at 512 × 736 without
    published weights get random weights and no AP.

    A first look: nmsfree bench --quick

    On a GPU: nmsfree bench --device cuda
    """
    if options.device not in OTHERS:
        raise InputError(f"device is {options.device!r}, the benchmark runs on: cpu, cuda")
    if options.device == "cuda":
        the_gpu()  # without one, that is the reason to give
    if options.size not in (None, *SIZES):
        raise InputError(f"size is {options.size!r}, expected one of: {', '.join(SIZES)}")
    answer(QUESTION, options)
