"""The ONNX Runtime side: a backend with a stopwatch, and the same file bare and cut."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.utils import Extractor

from nmsfree.backends import Backend, RawDetections
from nmsfree.errors import ModelError
from nmsfree.spec import ModelSpec
from nmsfree_benchmarks.measure import Image, Stopwatch

Prepare = Callable[[Image], NDArray[np.uint8]]  # any picture → uint8 [1, H, W, 3]


class TimedBackend:
    """A backend that marks a stopwatch before and after each run."""

    def __init__(self, backend: Backend, watch: Stopwatch) -> None:
        self._backend = backend
        self._watch = watch

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


def cut_at_raw_maps(path: Path) -> bytes:
    """Return the model up to and including its last convolutions, as ONNX bytes."""
    model = onnx.load(path)
    cut = Extractor(model).extract_model(["images"], raw_maps(model))
    content: bytes = cut.SerializeToString()
    return content


def bare_call(path: Path, threads: int, prepare: Prepare) -> Callable[[Image], Sequence[int]]:
    """Return a call that times `session.run` of a file and nothing around it."""
    session = _session(str(path), threads)
    names = list(RawDetections._fields)

    def call(image: Image) -> Sequence[int]:
        inputs = {"images": prepare(image)}
        start = time.perf_counter_ns()
        session.run(names, inputs)
        return (time.perf_counter_ns() - start,)

    return call


def network_call(path: Path, threads: int, prepare: Prepare) -> Callable[[Image], Sequence[int]]:
    """Return a call that times a file's graph up to the raw maps.

    Outputs stay inside ONNX Runtime: copying the maps out is no part of the whole graph's work.
    """
    session = _session(cut_at_raw_maps(path), threads)
    binding = session.io_binding()
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")

    def call(image: Image) -> Sequence[int]:
        inputs = prepare(image)
        start = time.perf_counter_ns()
        binding.bind_cpu_input("images", inputs)
        session.run_with_iobinding(binding)
        return (time.perf_counter_ns() - start,)

    return call


def _session(model: str | bytes, threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # warnings are about the cut's unused initialisers
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
