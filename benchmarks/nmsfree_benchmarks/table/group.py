"""Models of one size: exported, opened in every engine of the device, evaluated, timed in turn."""

from collections.abc import Sequence
from dataclasses import dataclass

from nmsfree.data.coco import DetectionDataset
from nmsfree.detector import Detector
from nmsfree.evaluate import Metrics, evaluate
from nmsfree_benchmarks.common.exporting import exporter
from nmsfree_benchmarks.common.run_options import Progress
from nmsfree_benchmarks.machine.energy import joules_per_image
from nmsfree_benchmarks.machine.gpu_watch import GpuWatch
from nmsfree_benchmarks.machine.measure import Image, Stopwatch, take_turns
from nmsfree_benchmarks.table.device_engines import DeviceEngine
from nmsfree_benchmarks.table.eager import Source
from nmsfree_benchmarks.table.entries import (
    Entry,
    all_calls,
    cpu_entries,
    device_entries,
    timed_call,
    torch_entries,
)
from nmsfree_benchmarks.table.options import Options
from nmsfree_benchmarks.table.rows import Row
from nmsfree_export.export import ExportOptions
from nmsfree_export.precision import Precision


@dataclass(frozen=True, eq=False)
class Group:
    """Models of one size, whose rows take turns.

    Attributes:
        size: one of `SIZES`.
        pictures: BGR uint8, what the times are measured on.
        judged: images for AP; None where the weights mean nothing on them.
        engines: keys of `CPU_ENGINES` to time, where the device is the processor.
        others: further engines of the device.
    """

    size: str
    sources: Sequence[Source]
    pictures: list[Image]
    judged: DetectionDataset | None
    engines: Sequence[str]
    others: tuple[DeviceEngine, ...] = ()

    @property
    def precisions(self) -> list[Precision]:
        """Of the files that the engines take; FP32 first, which all others come from."""
        return list(dict.fromkeys(["fp32", *(engine.precision for engine in self.others)]))


def run_group(
    group: Group, options: Options, progress: Progress, gpu: GpuWatch
) -> tuple[list[Row], dict[str, str]]:
    """Export, evaluate and time the models of one size; also what does not run here, and why."""

    def after_round(done: int, total: int) -> None:
        gpu.look()
        progress(f"rounds {group.size}", done, total)

    watch = Stopwatch()
    entries: list[Entry] = []
    skipped: dict[str, str] = {}
    export_files(group, options, progress)
    for source in group.sources:
        made, refused = make_entries(source, group, watch, options)
        entries += made
        skipped |= refused
    if not entries:
        return [], skipped
    metrics = evaluate_all(entries, group, progress)
    progress(f"rounds {group.size}", 0, options.plan(group.size).min_rounds)
    times = take_turns(
        all_calls(entries, watch),
        group.pictures,
        options.plan(group.size),
        after_round,
    )
    stages = {entry.name: entry.stages() for entry in entries}
    joules = energy_of_all(entries, group, options, watch, progress)
    for entry in entries:
        entry.detector.close()
    rows = [
        Row(
            engine=entry.engine,
            training=entry.source.training,
            spec=entry.detector.spec,
            sha256=entry.sha256,
            times=times[entry.name],
            in_graph=times.get(f"{entry.name} in graph"),
            bare=times.get(f"{entry.name} bare"),
            nms_candidates=entry.nms_candidates,
            metrics=metrics.get(entry.name),
            ap_images=len(group.judged) if group.judged is not None else 0,
            provider=entry.provider,
            file_bytes=entry.file.stat().st_size,
            threads=options.threads,
            state=entry.state,
            joules=joules.get(entry.name),
            device_ms=stages[entry.name],
        )
        for entry in entries
    ]
    return rows, skipped


def export_files(group: Group, options: Options, progress: Progress) -> None:
    """Export every model in every precision that its engines take."""
    jobs = [(s, p) for s in group.sources for p in group.precisions]
    progress(f"export {group.size}", 0, len(jobs))
    with exporter() as other:
        for done, (source, precision) in enumerate(jobs, start=1):
            out = options.onnx(source, precision)
            other.export(source.file, source.name, out, ExportOptions(precision=precision))
            progress(f"export {group.size}", done, len(jobs))


def make_entries(
    source: Source, group: Group, watch: Stopwatch, options: Options
) -> tuple[list[Entry], dict[str, str]]:
    """Put a model into every engine of the device; also what does not run here, and why."""
    refused: dict[str, str] = {}
    if options.device == "cpu":
        made = cpu_entries(source, options.onnx(source), group.pictures, watch, options.threads)
        entries = [entry for entry in made if entry.engine in group.engines]
    else:
        with Detector(options.onnx(source)) as onnx:
            entries, refused = torch_entries(source, onnx, group.pictures, watch, options.device)
    others, missing = device_entries(source, group.others, options.onnx, watch, options.threads)
    return [*entries, *others], refused | missing


def energy_of_all(
    entries: list[Entry], group: Group, options: Options, watch: Stopwatch, progress: Progress
) -> dict[str, float | None]:
    """Joules a picture on a GPU, one detector after another: a counter cannot tell turns apart."""
    if options.device != "cuda":
        return {}
    joules = {}
    progress(f"energy {group.size}", 0, len(entries))
    for done, entry in enumerate(entries, start=1):
        call = timed_call(entry.detector, watch)
        joules[entry.name] = joules_per_image(call, group.pictures)
        progress(f"energy {group.size}", done, len(entries))
    return joules


def evaluate_all(entries: list[Entry], group: Group, progress: Progress) -> dict[str, Metrics]:
    """Measure AP with the very detectors that are timed."""
    if group.judged is None:
        return {}
    metrics = {}
    progress(f"AP {group.size}", 0, len(entries))
    for done, entry in enumerate(entries, start=1):
        metrics[entry.name] = evaluate(entry.detector, group.judged)
        progress(f"AP {group.size}", done, len(entries))
    return metrics
