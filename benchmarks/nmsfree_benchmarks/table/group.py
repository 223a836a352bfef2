"""Models of one size: exported, opened in every engine of the device, evaluated, timed in turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.detector import Detector
from nmsfree.errors import GateError, NmsfreeError
from nmsfree.evaluation.evaluate import Metrics, evaluate
from nmsfree_benchmarks.common.exported import Wanted, digits_train, export_all
from nmsfree_benchmarks.common.on_device import after_round
from nmsfree_benchmarks.common.run_options import Progress
from nmsfree_benchmarks.machine.energy import joules_per_image
from nmsfree_benchmarks.machine.gpu_watch import GpuWatch
from nmsfree_benchmarks.machine.measure import Image, Stopwatch, take_turns
from nmsfree_benchmarks.machine.memory import MemoryMeter
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
    def wanted(self) -> list[Wanted]:
        """The files that the engines take; FP32 of every model first."""
        plain = [Wanted(source) for source in self.sources]
        others = [engine.wanted(source) for source in self.sources for engine in self.others]
        return list({wanted.name: wanted for wanted in (*plain, *others)}.values())


def run_group(
    group: Group, options: Options, progress: Progress, gpu: GpuWatch
) -> tuple[list[Row], dict[str, str]]:
    """Export, evaluate and time the models of one size; also what does not run here, and why."""
    watch = Stopwatch()
    entries: list[Entry] = []
    files, skipped = export_files(group, options, progress)
    for source in group.sources:
        made, refused = make_entries(source, group, files, watch, options)
        entries += made
        skipped |= refused
    if not entries:
        return [], skipped
    metrics = evaluate_all(entries, group, progress)
    memory = {} if options.quick else memory_of_all(entries, group, options, skipped, progress)
    progress(f"rounds {group.size}", 0, options.plan(group.size).min_rounds)
    times = take_turns(
        all_calls(entries, watch),
        group.pictures,
        options.plan(group.size),
        after_round(gpu, partial(progress, f"rounds {group.size}")),
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
            memory=memory.get(entry.name, {}),
            graph=files[Wanted(entry.source).name] if entry.ran is None else entry.file,
        )
        for entry in entries
    ]
    return rows, skipped


def export_files(
    group: Group, options: Options, progress: Progress
) -> tuple[dict[str, Path], dict[str, str]]:
    """Export every model in every precision that its engines take.

    Returns:
        The files by `Wanted.name`; and of those that could not be made, why.

    Raises:
        GateError: an FP32 file, which all else is held against, could not be made.
    """
    calibration = None
    if any(wanted.precision == "int8" for wanted in group.wanted):
        calibration = digits_train(
            options.data, options.work, lambda done, total: progress("digits train", done, total)
        )
    files, refused = export_all(
        group.wanted,
        options.work,
        calibration,
        lambda done, total: progress(f"export {group.size}", done, total),
    )
    for source in group.sources:
        if Wanted(source).name in refused:
            raise GateError(refused[Wanted(source).name])
    return files, refused


def make_entries(
    source: Source,
    group: Group,
    files: Mapping[str, Path],
    watch: Stopwatch,
    options: Options,
) -> tuple[list[Entry], dict[str, str]]:
    """Put a model into every engine of the device; also what does not run here, and why."""
    refused: dict[str, str] = {}
    plain = files[Wanted(source).name]
    if options.device == "cpu":
        made = cpu_entries(source, plain, group.pictures, watch, options.threads)
        entries = [entry for entry in made if entry.engine in group.engines]
    else:
        with Detector(plain) as onnx:
            entries, refused = torch_entries(source, onnx, group.pictures, watch, options.device)
    others, missing = device_entries(source, group.others, files, watch, options.threads)
    return [*entries, *others], refused | missing


def memory_of_all(
    entries: Sequence[Entry],
    group: Group,
    options: Options,
    skipped: dict[str, str],
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """What each engine takes with its file; why one could not be weighed goes to `skipped`."""
    meter, found = MemoryMeter(), {}
    weighed = [entry for entry in entries if entry.ran is not None]
    for done, entry in enumerate(weighed):
        progress(f"memory {group.size}", done, len(weighed))
        assert entry.ran is not None
        engine, file = entry.ran, entry.ran.ran(entry.file)
        try:
            found[entry.name] = meter.measure(
                file, engine.device, options.threads, engine.arithmetic
            )
        except NmsfreeError as error:
            skipped[f"memory of {entry.name}"] = str(error).replace(str(file), file.name)
    progress(f"memory {group.size}", len(weighed), len(weighed))
    return found


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
