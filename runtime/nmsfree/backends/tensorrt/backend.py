"""TensorRT and TensorRT-RTX engines, run natively."""

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections, never_free, watch
from nmsfree.backends.contract import refusal
from nmsfree.backends.options import parse_device
from nmsfree.backends.tensorrt.context import Lane, Outputs, Timings
from nmsfree.backends.tensorrt.engine import LoadedEngine
from nmsfree.backends.tensorrt.nms import suppress_candidates
from nmsfree.backends.tensorrt.pool import Lanes
from nmsfree.backends.tensorrt.sidecar import read_sidecar
from nmsfree.backends.tensorrt.targets import sm_text
from nmsfree.backends.tensorrt.vendor import VendorApi, load_vendor
from nmsfree.cuda import Cuda, Layer, open_cuda
from nmsfree.cuda.arrays import DeviceImages, is_device_array
from nmsfree.cuda.base import Stream
from nmsfree.errors import InputError, ModelError
from nmsfree.text import FilePath, as_path

ALIGNMENT = 256  # bytes, asked for by IExecutionContext.set_tensor_address
Images = NDArray[np.uint8] | DeviceImages


def check_host(images: Any, engine: LoadedEngine) -> NDArray[np.uint8]:
    """Refuse what is not a NumPy array of the engine's images.

    Raises:
        InputError: no NumPy array.
        ModelError: another type or shape.
    """
    if not isinstance(images, np.ndarray):
        raise InputError(
            f"images are a {type(images).__name__}, expected a NumPy array or an array on the"
            " GPU (__dlpack__ or __cuda_array_interface__)"
        )
    if images.dtype != np.uint8 or not _fits(images.shape, engine):
        raise refusal(images, _expected(engine))
    return images


def check_device(images: DeviceImages, engine: LoadedEngine) -> None:
    """Refuse images on the GPU whose shape or address is none that the engine takes.

    Raises:
        InputError: another shape, or an address that is not aligned.
    """
    if not _fits(images.shape, engine):
        shape = " × ".join(map(str, images.shape))
        raise InputError(f"the model refused images of {shape} on the GPU ({_expected(engine)})")
    if any(piece.address % ALIGNMENT for piece in pieces(images, engine)):  # type: ignore[union-attr]
        raise InputError(
            f"images on the GPU start at an address that is no multiple of {ALIGNMENT}, which "
            "TensorRT does not take: copy them first, as in images.clone()"
        )


def _fits(shape: tuple[int, ...], engine: LoadedEngine) -> bool:
    if len(shape) != 4 or shape[0] < 1 or shape[1:] != engine.input.shape[1:]:
        return False
    last = shape[0] % engine.largest or engine.largest  # size of the last batch
    return last >= engine.smallest


def _expected(engine: LoadedEngine) -> str:
    _, h, w, c = engine.input.shape
    least = f", in batches of {engine.smallest} to {engine.largest}" if engine.dynamic else ""
    return f"expected {'N' if engine.dynamic else engine.largest} × {h} × {w} × {c}, uint8{least}"


def pieces(images: Images, engine: LoadedEngine) -> Iterator[Images]:
    """Cut images into batches that the engine takes."""
    count = images.shape[0]
    for first in range(0, count, engine.largest):
        last = min(first + engine.largest, count)
        if isinstance(images, DeviceImages):
            address = images.address + engine.input.nbytes(first)
            yield DeviceImages(address, (last - first, *images.shape[1:]), images.owner)
        else:
            yield images[first:last]


DEFAULT_STREAMS = (0, 1, 2)  # CUDA's numbers: default, legacy default, per thread


class TensorRtBackend:
    """Runs an engine made by `nmsfree build`. Safe to call from several threads.

    Threads share the engine and its weights. Each run has an execution context, a stream and
    buffers to itself, taken from a pool and given back; there are as many as runs went on at once,
    each allocated and warmed up when it is first needed. Results do not depend on how many threads
    there are. `close` frees everything; runs that still go on finish first, later ones are refused.

    Args:
        path: the engine, its sidecar beside it.
        device: "tensorrt-rtx", "tensorrt", or "cuda" (what the engine was built with), each with
            the number of the GPU behind a colon if it is not the first; None is "cuda".
        rebuild: build the engine again from the ONNX file beside it where it does not fit.
        trust: take an engine whose hash is not the recorded one; an engine runs native code.
        sha256: take the engine with this hash alone, build none in its place, and keep no kernels
            beside it.
        stream: a CUDA stream of the application's that all runs go through, in turns; None:
            streams of our own. It is waited for at the end of a run, must live until `close`, and
            nothing else may be put into it during a run.
        cuda: "cuda-python", "pycuda", or an object like them; None takes pycuda where the
            application has imported it.
        vendor: the vendor module, for tests.

    Raises:
        InputError: a device, stream or layer that cannot be used.
        MissingExtraError: TensorRT or the CUDA layer is not installed.
        ModelError: the file is missing, or is not what its description says.
        EngineError: no GPU, or the engine does not fit this machine and may not be rebuilt.
    """

    def __init__(
        self,
        path: FilePath,
        device: str | None = None,
        *,
        rebuild: bool = True,
        trust: bool = False,
        sha256: str | None = None,
        stream: object = None,
        cuda: Layer | Cuda | None = None,
        vendor: VendorApi | None = None,
    ) -> None:
        path = as_path(path, "model")
        kind, index = _place(device)
        if not path.is_file():
            raise ModelError(f"{path}: no such file, expected an engine made by `nmsfree build`")
        vendor = vendor or load_vendor(kind or read_sidecar(path).builder)
        ours = open_cuda(cuda, index) if cuda is None or isinstance(cuda, str) else None
        layer: Cuda = ours or cuda  # type: ignore[assignment]  # one of them is a layer
        try:
            adopted = None if stream is None else _adopt(layer, stream)
            self._gpu = _gpu(layer)
            self._engine = LoadedEngine(
                path, vendor, layer, rebuild=rebuild, trust=trust, sha256=sha256
            )
        except BaseException:
            if ours:
                ours.close()
            raise
        self.spec = self._engine.sidecar.spec
        if not self._engine.dynamic:
            self.spec = replace(self.spec, batch=self._engine.largest)
        self._last = threading.local()
        # In one stream, runs take turns: a graph that records would take in another thread's work.
        self._turn: AbstractContextManager[object] = threading.Lock() if adopted else nullcontext()
        self._lanes = Lanes(
            partial(Lane, self._engine, adopted), partial(_finish, self._engine, ours)
        )
        self._finalizer = weakref.finalize(self, self._lanes.close)  # for those who never close
        watch(self)

    @property
    def description(self) -> str:
        """What runs where. Whether a CUDA graph does, only a run can tell.

        Asked before the first run, it therefore prepares that run, which takes as long here as it
        would there. Of an engine that was closed before any run it says "no CUDA graph".

        Raises:
            EngineError: that run cannot be prepared.
        """
        if self._engine.graph.used is None:
            with suppress(ModelError), self._turn, self._lanes.take(from_device=False):
                pass  # a lane warms up when it is made; ModelError: all is closed
        return _describe(self._engine, self._gpu)

    @property
    def uses_cached_kernels(self) -> bool:
        """Whether kernels that an earlier start compiled fit this GPU, and are used."""
        return self._engine.cache_loaded

    uses_kept_kernels = uses_cached_kernels  # its old name

    def run(self, images: Any) -> RawDetections:
        """Run the model on uint8 [N, H, W, 3], BGR: a NumPy array, or an array on the GPU.

        Arrays on the GPU (`__dlpack__` or `__cuda_array_interface__`) are read where they are. More
        images than the engine's largest batch run in several batches. Returns when all is done.

        Raises:
            InputError: an array that is neither, or on another GPU, of another type or layout.
            ModelError: the detector is closed, or the images do not fit the model.
            EngineError: the GPU or the engine failed, or was opened before this process was forked.
        """
        engine, from_device = self._engine, is_device_array(images)
        if not from_device:
            images = check_host(images, engine)
        with self._turn, self._lanes.take(from_device) as lane:
            if from_device:
                images = lane.take(images)
                check_device(images, engine)
            outputs = [lane.run(piece) for piece in pieces(images, engine)]
        # The outputs are copies, so other threads need not wait for the rest.
        done = [self._finish_piece(*output) for output in outputs]
        self._last.timings = _total([timings for _, timings in done])
        if len(done) == 1:
            return done[0][0]
        columns = zip(*(raw for raw, _ in done), strict=True)
        return RawDetections(*(np.concatenate(column) for column in columns))

    def timings(self) -> Timings | None:
        """How long the stages of this thread's last run took; None before the first."""
        return getattr(self._last, "timings", None)

    def _finish_piece(self, outputs: Outputs, timings: Timings) -> tuple[RawDetections, Timings]:
        """Outputs of a lane → the contract's, after NMS where the engine has none inside."""
        if not self._engine.sidecar.nms_on_host:
            return RawDetections(**outputs), timings
        start = time.perf_counter()
        raw = suppress_candidates(outputs, self.spec)
        return raw, replace(timings, nms=(time.perf_counter() - start) * 1000)

    def after_fork(self) -> None:
        """In a forked child: CUDA stayed in the parent."""
        self._finalizer.detach()
        never_free(self._engine, self._lanes)
        self._lanes.after_fork(str(self._engine.vendor))

    def close(self) -> None:
        """Free everything; runs that still go on finish first.

        Raises:
            EngineError: the GPU failed; all that could be freed has been.
        """
        self._lanes.close()


def _place(device: str | None) -> tuple[str | None, int]:
    """Which vendor module, None for the one that built the engine, and which GPU."""
    if device is None:
        return None, 0
    place = parse_device(device)
    if place.kind not in ("cuda", "tensorrt-rtx", "tensorrt"):
        raise InputError(
            f"device is {device!r}, an engine runs on: cuda, tensorrt-rtx, tensorrt, or a further"
            " GPU as cuda:1"
        )
    return (None if place.kind == "cuda" else place.kind), place.index


def _adopt(cuda: Cuda, stream: object) -> Stream:
    """Take a stream of the application's.

    Raises:
        InputError: it is none, or a default stream.
    """
    adopted = cuda.adopt_stream(stream)
    if adopted.handle in DEFAULT_STREAMS:
        raise InputError(
            "stream is CUDA's default stream, in which engines run badly and CUDA graphs not at"
            " all: make a stream, or leave it out"
        )
    return adopted


def _finish(engine: LoadedEngine, cuda: Cuda | None) -> None:
    """Free what the lanes shared; `cuda` if it is ours."""
    try:
        with engine.cuda.active():
            engine.keep_kernels()
            engine.close()
    finally:
        engine.close()  # even where the context cannot be made current: it outlives no engine
        if cuda:
            cuda.close()


def _gpu(cuda: Cuda) -> str:
    with cuda.active():
        return f"{cuda.device_name()} (SM {sm_text(cuda.sm())})"


def _describe(engine: LoadedEngine, gpu: str) -> str:
    sidecar = engine.sidecar
    parts = (
        f"{engine.vendor} on {gpu}",
        f"{sidecar.precision}, TF32 {'on' if sidecar.tf32 else 'off'}",
        engine.cuda.name,
        "CUDA graph" if engine.graph.used else "no CUDA graph",
        *(["NMS on the host"] if sidecar.nms_on_host else []),
    )
    return ", ".join(parts)


def _total(timings: list[Timings]) -> Timings:
    columns = zip(*((t.h2d, t.network, t.d2h, t.nms) for t in timings), strict=True)
    return Timings(*(sum(column) for column in columns))
