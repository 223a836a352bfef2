"""The ONNX Runtime side: a backend with a stopwatch, and the same file bare and split."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.utils import Extractor

from nmsfree.backends import Backend, RawDetections
from nmsfree.detector import Detector
from nmsfree.errors import ModelError
from nmsfree.spec import ModelSpec
from nmsfree_benchmarks.machine.measure import Call, Image, Stopwatch

STAGES_KEPT = 400

Prepare = Callable[[Image], NDArray[np.uint8]]  # any picture → uint8 [1, H, W, 3]


class TimedBackend:
    """A backend that marks a stopwatch before and after each run.

    What a native engine says of its own stages (copies, network, NMS on the host) is kept, too.
    """

    def __init__(self, backend: Backend, watch: Stopwatch) -> None:
        self._backend = backend
        self._watch = watch
        self._timings = getattr(backend, "timings", None)
        self._stages: deque[Mapping[str, float]] = deque(maxlen=STAGES_KEPT)

    def stages(self) -> dict[str, float]:
        """Median ms of the stages in the latest runs, "h2d_ms" …; empty where it tells none."""
        if not self._stages:
            return {}
        return {f"{k}_ms": round(median(s[k] for s in self._stages), 4) for k in self._stages[0]}

    @property
    def spec(self) -> ModelSpec:
        return self._backend.spec

    @property
    def description(self) -> str:
        return self._backend.description

    def run(self, images: NDArray[np.uint8]) -> RawDetections:
        self._watch.mark()
        raw = self._backend.run(images)
        self._watch.mark()
        found = None if self._timings is None else self._timings()
        if found is not None:
            self._stages.append(vars(found))
        return raw

    def close(self) -> None:
        self._backend.close()


def raw_maps(model: ModelProto) -> list[str]:
    """Name the head's raw maps: outputs of the convolutions that feed no further one.

    Raises:
        ModelError: the graph has no convolution.
    """
    fed: set[str] = set()  # values that some convolution depends on
    maps = []
    for node in reversed(model.graph.node):  # sorted topologically, by ONNX's rules
        if node.op_type == "Conv" and node.output[0] not in fed:
            maps.append(node.output[0])
        if node.op_type == "Conv" or fed.intersection(node.output):
            fed.update(node.input)
    if not maps:
        raise ModelError("the model has no convolution, so it has no raw maps to cut at")
    return maps[::-1]


def split_at_raw_maps(path: Path) -> tuple[ModelProto, ModelProto]:
    """Return a file's graph up to its raw maps, and from there to its outputs."""
    model = onnx.load(path)
    maps = raw_maps(model)
    parts = Extractor(model)
    outputs = list(RawDetections._fields)
    return parts.extract_model(["images"], maps), parts.extract_model(maps, outputs)


def prepare_of(detector: Detector) -> Prepare:
    """Return what makes one input of any picture, as a detector does."""
    return lambda image: detector.preprocess([image])[0]


def bare_call(path: Path, threads: int, prepare: Prepare) -> Call:
    """Return a call that times `session.run` of a file and nothing around it."""
    session = _session(str(path), threads)

    def call(image: Image) -> Sequence[int]:
        return _timed_run(session, {"images": prepare(image)})

    return call


def engine_call(backend: Backend, prepare: Prepare) -> Call:
    """Return a call that times an engine as its backend calls it, copies to its device included."""

    def call(image: Image) -> Sequence[int]:
        pixels = prepare(image)
        start = time.perf_counter_ns()
        backend.run(pixels)
        return (time.perf_counter_ns() - start,)

    return call


def postprocess_call(path: Path, threads: int, prepare: Prepare, pictures: list[Image]) -> Call:
    """Return a call that times what a file's graph does after its raw maps.

    The maps of every picture are computed beforehand; only those pictures can be timed.
    """
    network, rest = (_session(m.SerializeToString(), threads) for m in split_at_raw_maps(path))
    names = [output.name for output in network.get_outputs()]
    maps = {
        id(picture): dict(zip(names, network.run(names, {"images": prepare(picture)}), strict=True))
        for picture in pictures
    }

    def call(image: Image) -> Sequence[int]:
        return _timed_run(rest, maps[id(image)])

    return call


def _timed_run(session: Any, inputs: dict[str, NDArray[Any]]) -> Sequence[int]:
    names = list(RawDetections._fields)
    start = time.perf_counter_ns()
    session.run(names, inputs)
    return (time.perf_counter_ns() - start,)


def _session(model: str | bytes, threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # warnings are about the parts' unused initialisers
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
