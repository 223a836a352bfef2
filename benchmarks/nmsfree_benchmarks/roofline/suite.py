"""`nmsfree bench roofline`: each model beside what the device could do at most, in one run."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nmsfree.backends.options import parse_device
from nmsfree.errors import InputError
from nmsfree_benchmarks.common import inputs
from nmsfree_benchmarks.common.publishing import now
from nmsfree_benchmarks.common.run_options import Progress, RunOptions, silent
from nmsfree_benchmarks.machine.environment import describe
from nmsfree_benchmarks.machine.load import LoadMeter
from nmsfree_benchmarks.machine.measure import Image, Plan, Times, take_turns
from nmsfree_benchmarks.record.records import Record, Results
from nmsfree_benchmarks.roofline.limits import limit_of
from nmsfree_benchmarks.roofline.models import Entry, find_files, open_entry, refuse_doubles
from nmsfree_benchmarks.roofline.peaks import Probe, read_peaks
from nmsfree_benchmarks.roofline.records import facts, model_record, ratios
from nmsfree_benchmarks.table.eager import use_threads

PICTURES = 4
PLAN = Plan(seconds=60, min_rounds=10, lead_in=1, burst=2)
QUICK_PLAN = Plan(seconds=6, min_rounds=10, lead_in=1, burst=2)


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """What to run; the probes get as many threads as the engine.

    Attributes:
        onnx: files to measure in place of the bundled models.
        models: of the bundled ones and `LARGE` only these; None takes all, or `NANO` when quick.
        device: "cpu", or "cuda" with an ONNX Runtime that has it.
    """

    onnx: tuple[Path, ...] = ()
    models: tuple[str, ...] | None = None
    device: str = "cpu"

    def inputs(self) -> Iterator[Path]:
        yield from self.onnx
        yield from super().inputs()

    @property
    def plan(self) -> Plan:
        return self.timed(QUICK_PLAN if self.quick else PLAN)


def run_roofline(options: Options, progress: Progress = silent) -> Results:
    """Measure the peaks of the device and the models in turn.

    Raises:
        InputError: an unknown model or device.
        ModelError: a file cannot be used.
        EngineError: there is no such GPU.
    """
    started, stamp = time.monotonic(), now()
    probes, skipped = _probes(options)
    use_threads(options.threads)
    environment = describe(options.threads, options.device)
    pictures = _pictures(options, progress)
    files, missing = find_files(options, progress)
    entries = [open_entry(file, training, options) for file, training in files]
    refuse_doubles(entries)
    calls = {probe.name: probe.call for probe in probes} | {e.name: e.call for e in entries}
    progress("rounds", 0, options.plan.min_rounds)
    with LoadMeter() as meter:
        times = take_turns(
            calls, pictures, options.plan, lambda done, total: progress("rounds", done, total)
        )
    records = _records(probes, entries, times, pictures, options, progress)
    for entry in entries:
        entry.detector.close()
    return Results(
        kind="roofline",
        stamp=stamp,
        command=options.command,
        quick=options.quick,
        environment=environment,
        records=records,
        other_load=meter.others,
        settings={"burst": options.plan.burst},
        ratios=ratios(records, options.plan.burst),
        facts=facts(records),
        skipped=skipped | missing,
        seconds=time.monotonic() - started,
    )


def _probes(options: Options) -> tuple[list[Probe], dict[str, str]]:
    place = parse_device(options.device)
    if place.kind == "cpu":
        from nmsfree_benchmarks.roofline.peaks_cpu import cpu_probes

        return cpu_probes(options.threads)
    if place.kind == "cuda":
        from nmsfree_benchmarks.roofline.peaks_cuda import cuda_probes

        return cuda_probes(place.index)
    raise InputError(f"device is {options.device!r}, peaks are measured on: cpu, cuda")


def _pictures(options: Options, progress: Progress) -> list[Image]:
    """Digits scenes: what NMS costs depends on what is in the picture."""
    dataset = inputs.digits_val(
        options.data, options.work, lambda done, total: progress("digits scenes", done, total)
    )
    return inputs.pictures(dataset, PICTURES)


def _records(
    probes: Sequence[Probe],
    entries: Sequence[Entry],
    times: dict[str, Times],
    pictures: list[Image],
    options: Options,
    progress: Progress,
) -> tuple[Record, ...]:
    peaks = read_peaks(probes, times)
    records = [probe.record(times[probe.name]) for probe in probes]
    for done, entry in enumerate(entries):
        progress("layers", done, len(entries))
        limit = limit_of(entry.file, peaks)
        profiled: dict[str, float] = {}
        if options.device == "cpu":
            from nmsfree_benchmarks.roofline.layer_times import layer_times

            pixels, _ = entry.detector.preprocess(pictures[:1])
            profiled = layer_times(entry.file, options.threads, pixels, limit.layers)
        burst = options.plan.burst
        records.append(
            model_record(entry.name, entry.subject, times[entry.name], limit, profiled, burst)
        )
    progress("layers", len(entries), len(entries))
    return tuple(records)
