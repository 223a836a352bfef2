"""Models in engines, ready to be timed: what `nmsfree bench` puts into its table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.backends.contract import one_line
from nmsfree.detector import Detector
from nmsfree.errors import NmsfreeError
from nmsfree.machine import sha256
from nmsfree_benchmarks.common.engines import DEPLOYED, ENGINES, Engine
from nmsfree_benchmarks.machine.measure import Call, Image, Stopwatch
from nmsfree_benchmarks.table.device_engines import DeviceEngine
from nmsfree_benchmarks.table.eager import CompiledBackend, Source, eager_backends, nms_load
from nmsfree_benchmarks.table.onnx_engine import (
    TimedBackend,
    bare_call,
    engine_call,
    postprocess_call,
    prepare_of,
)
from nmsfree_benchmarks.table.rows import COMPILED, HASH_DIGITS

LOAD_PICTURES = 4


@dataclass(frozen=True, eq=False)
class Entry:
    """A model in an engine.

    Attributes:
        file, sha256: what runs, or what it was built from.
        provider: how the backend describes itself, and which engine was built for it.
        ran: the engine of an exported file; None in PyTorch.
        nms_candidates: pairs above the floor that enter NMS, mean of a few images; None = no NMS.
        in_graph, bare: the part of an ONNX graph behind its raw maps, and the engine alone.
        state: further attributes of `records.Subject`.
        stages: tells the engine's own stages in the runs just made, see `TimedBackend.stages`.
    """

    engine: str
    source: Source
    detector: Detector
    file: Path
    sha256: str
    provider: str
    ran: Engine | None = None
    nms_candidates: float | None = None
    in_graph: Call | None = None
    bare: Call | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    stages: Callable[[], Mapping[str, float]] = dict

    @property
    def name(self) -> str:
        return f"{self.source.name} {self.engine}"


def cpu_entries(
    source: Source, path: Path, pictures: list[Image], watch: Stopwatch, threads: int
) -> list[Entry]:
    """A model eagerly, with three kinds of post-processing, and its exported file on the CPU."""
    runtime = OnnxRuntimeBackend(path, threads=threads)
    onnx = Detector(TimedBackend(runtime, watch))

    def prepare(image: Image) -> Image:
        return onnx.preprocess([image])[0]

    eager = eager_entries(source, onnx, pictures, watch)
    load = {entry.engine: entry.nms_candidates for entry in eager}
    deployed = Entry(
        DEPLOYED,
        source,
        onnx,
        path,
        sha256(path),
        runtime.description,
        ENGINES[DEPLOYED],
        load["eager_evaluation"],  # the same floor and selection
        postprocess_call(path, threads, prepare, pictures),
        bare_call(path, threads, prepare),
    )
    return [*eager, deployed]


def eager_entries(
    source: Source, onnx: Detector, pictures: list[Image], watch: Stopwatch, device: str = "cpu"
) -> list[Entry]:
    """A checkpoint in eager PyTorch, with each kind of post-processing.

    Args:
        onnx: the exported file, which knows how pictures become inputs.
    """
    backends = eager_backends(source, watch, device)
    load: dict[str, float] = {}
    if onnx.spec.nms is not None:
        inputs = [onnx.preprocess([image])[0] for image in pictures[:LOAD_PICTURES]]
        load = nms_load(backends, inputs)
    state = {} if device == "cpu" else _eager_state()
    return [
        Entry(
            key,
            source,
            Detector(backend),
            source.file,
            source.sha256,
            backend.description,
            nms_candidates=load.get(key),
            state=state,
        )
        for key, backend in backends.items()
    ]


def _eager_state() -> dict[str, Any]:
    """What is true of PyTorch on a GPU; `predict.open_network` has switched TF32 off."""
    return {"tf32": False, "cuda_graph": False, "transfers": "in and out"}


def torch_entries(
    source: Source, onnx: Detector, pictures: list[Image], watch: Stopwatch, device: str
) -> tuple[list[Entry], dict[str, str]]:
    """A checkpoint in PyTorch, eager and compiled; and what of that does not run here, and why."""
    entries: list[Entry] = []
    refused: dict[str, str] = {}
    try:
        entries += eager_entries(source, onnx, pictures, watch, device)
    except NmsfreeError as error:  # a build of PyTorch without CUDA
        return [], {"eager": str(error), COMPILED: str(error)}
    try:
        entries.append(compiled_entry(source, onnx.preprocess([pictures[0]])[0], watch, device))
    except Exception as error:  # noqa: BLE001 (compilers and Triton raise whatever they like)
        refused[COMPILED] = f"{type(error).__name__}: {one_line(error)}"
    return entries, refused


def compiled_entry(
    source: Source, pixels: NDArray[np.uint8], watch: Stopwatch, device: str
) -> Entry:
    """A checkpoint under `torch.compile`, compiled before anything is timed.

    Args:
        pixels: uint8 [1, H, W, 3], BGR, which the compiled network is tried on.
    """
    backend = CompiledBackend(source, watch, device)
    watch.start()
    backend.run(pixels)
    return Entry(
        COMPILED,
        source,
        Detector(backend),
        source.file,
        source.sha256,
        backend.description,
        state={} if device == "cpu" else _eager_state(),
    )


def device_entries(
    source: Source,
    engines: Sequence[DeviceEngine],
    files: Mapping[str, Path],
    watch: Stopwatch,
    threads: int,
) -> tuple[list[Entry], dict[str, str]]:
    """A model in every engine that runs it here; and of the others, why not.

    Args:
        files: by `Wanted.name`; an engine whose file could not be made is passed over.
    """
    entries: list[Entry] = []
    refused: dict[str, str] = {}
    for engine in engines:
        file = files.get(engine.wanted(source).name)
        if file is None:
            continue
        try:
            entries.append(_device_entry(source, engine, file, watch, threads))
        except NmsfreeError as error:
            refused[engine.key] = str(error)
    return entries, refused


def _device_entry(
    source: Source, how: DeviceEngine, file: Path, watch: Stopwatch, threads: int
) -> Entry:
    engine = how.engine
    backend = engine.open(file, threads)
    timed = TimedBackend(backend, watch)
    detector = Detector(timed)
    provider, ran = backend.description, engine.ran(file)
    if ran != file:
        provider += f"; engine {sha256(ran)[:HASH_DIGITS]} of {ran.stat().st_size:,} bytes"
    return Entry(
        how.key,
        source,
        detector,
        file,
        sha256(file),
        provider,
        engine,
        bare=engine_call(backend, prepare_of(detector)),
        state=engine.state(backend, how.precision),
        stages=timed.stages,
    )


def all_calls(entries: Sequence[Entry], watch: Stopwatch) -> dict[str, Call]:
    """Name what takes turns: every entry, its engine alone, the graph's part behind the maps."""
    calls: dict[str, Call] = {}
    for entry in entries:
        calls[entry.name] = timed_call(entry.detector, watch)
        parts = (("in graph", entry.in_graph), ("bare", entry.bare))
        calls |= {f"{entry.name} {part}": call for part, call in parts if call is not None}
    return calls


def timed_call(detector: Detector, watch: Stopwatch) -> Call:
    """Return a call that runs a detector as its users do; its backend marks the stages."""

    def call(image: Image) -> Sequence[int]:
        watch.start()
        detector(image, threshold=detector.spec.score_floor)
        watch.mark()
        return watch.laps()

    return call
