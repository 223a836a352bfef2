"""One network on pictures of every size: how it is timed, and the records."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from nmsfree_benchmarks.common.exported import Wanted
from nmsfree_benchmarks.common.on_device import CPU, DeviceOptions, open_on, subject_on
from nmsfree_benchmarks.machine.measure import Call, Image, Plan, Stopwatch, Times, take_turns
from nmsfree_benchmarks.overhead.calls import decode_calls, from_scene, preprocess_call
from nmsfree_benchmarks.overhead.rules import OVERHEAD, PREPROCESS_SOURCE
from nmsfree_benchmarks.overhead.sources import Scene, label
from nmsfree_benchmarks.overhead.stages import PARTS, StagedDetector, staged_call
from nmsfree_benchmarks.record.records import Ratio, Record, Subject
from nmsfree_benchmarks.table.onnx_engine import bare_call, engine_call

Scenes = Mapping[tuple[int, int], list[Scene]]  # by size: the same scenes, in the same order


def measure_network(
    wanted: Wanted,
    file: Path,
    options: DeviceOptions,
    bases: Sequence[Image],
    scenes: Scenes,
    plan: Plan,
    alone: bool,
    progress: Callable[[int, int], None],
) -> list[Record]:
    """Time one network on every size.

    The bare call is `session.run` in ONNX Runtime on the processor; other engines are called
    through their backends, which know how.

    Args:
        bases: the scenes in their own size, which name those of every other size.
        alone: time beside it what needs no network: decoding files, and preprocessing.
    """
    watch, name = Stopwatch(), wanted.source.name
    calls: dict[str, Call] = {}
    device, threads = options.device, options.threads
    backend = open_on(file, device, threads)
    with closing(StagedDetector(backend, watch)) as detector:

        def prepare(image: Image) -> Image:
            return detector.preprocess([image])[0]

        on_cpu = device == CPU
        bare = bare_call(file, threads, prepare) if on_cpu else engine_call(backend, prepare)
        for size, made in scenes.items():
            images = [scene.image for scene in made]
            calls[f"{name} {label(size)}"] = from_scene(staged_call(detector), bases, images)
            calls[f"{name} {label(size)} bare"] = from_scene(bare, bases, images)
        if alone:
            calls |= _without_network(bases, scenes)
        times = take_turns(calls, bases, plan, progress)
        training = wanted.source.training
        subject = subject_on(device, backend, file, training=training, threads=threads)
    return [r for size in scenes for r in _records(size, scenes[size], times, subject)]


def _without_network(bases: Sequence[Image], scenes: Scenes) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    for size, made in scenes.items():
        calls |= decode_calls(label(size), bases, made)
        if label(size) == PREPROCESS_SOURCE:
            images = [scene.image for scene in made]
            calls[f"preprocess {label(size)}"] = from_scene(preprocess_call(), bases, images)
    return calls


def _records(
    size: tuple[int, int], made: Sequence[Scene], times: Mapping[str, Times], subject: Subject
) -> list[Record]:
    """The records of one size of picture."""
    source, name = label(size), f"{subject.model} {label(size)}"
    bare = f"{name} bare"
    records = [
        Record(name, {"call": "detector", "source": source}, times[name], PARTS, subject=subject),
        Record(bare, {"call": "bare", "source": source}, times[bare], subject=subject),
    ]
    for suffix in made[0].files:
        decode = f"decode {source}{suffix}"
        if decode in times:
            megabytes = sum(scene.files[suffix].stat().st_size for scene in made) / len(made) / 1e6
            parameters = {"call": "decode", "source": source, "format": suffix[1:]}
            figures = {"file_mb": round(megabytes, 4)}
            records.append(Record(decode, parameters, times[decode], figures=figures))
    preprocess = f"preprocess {source}"
    if preprocess in times:
        parameters = {"call": "preprocess", "source": source}
        records.append(Record(preprocess, parameters, times[preprocess]))
    return records


def ratios_of(records: Sequence[Record], bursts: Mapping[str, int]) -> list[Ratio]:
    """Every Detector by the bare call on the same picture; `bursts` by model."""
    found = {record.name: record for record in records}
    ratios = []
    for record in records:
        if record.parameters["call"] == "detector" and record.subject is not None:
            bare, burst = found[f"{record.name} bare"], bursts[record.subject.model]
            ratios.append(Ratio.between(record, bare, OVERHEAD, burst))
    return ratios
