"""TensorRT and TensorRT-RTX engines, run natively."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from nmsfree.backends.base import RawDetections, never_free, watched
from nmsfree.backends.contract import refusal
from nmsfree.backends.options import DEFAULTS, Device, Options, parse_device
from nmsfree.backends.tensorrt.context import ExecutionContext, Timings
from nmsfree.backends.tensorrt.engine import LoadedEngine
from nmsfree.backends.tensorrt.pool import ContextPool
from nmsfree.backends.tensorrt.sidecar import read_sidecar
from nmsfree.backends.tensorrt.targets import sm_text
from nmsfree.backends.tensorrt.vendor import VendorApi, load_vendor
from nmsfree.cuda import Cuda, Layer, open_cuda
from nmsfree.cuda.arrays import DeviceImages, is_device_array
from nmsfree.errors import InputError, ModelError
from nmsfree.text import FilePath, as_path

ALIGNMENT = 256  # bytes, asked for by IExecutionContext.set_tensor_address
DEFAULT_STREAMS = (0, 1, 2)  # CUDA's numbers: default, legacy default, per thread


class TensorRtBackend:
    """Runs an engine made by `nmsfree build`. Safe to call from several threads.

    Threads share the engine and its weights. Each run has an execution context, a stream and
    buffers to itself, taken from a pool and given back; there are as many as runs went on at once,
    `max_contexts` at most, each allocated and warmed up when it is first needed. Results do not
    depend on how many threads there are. `close` frees everything; runs that still go on finish
    first, later ones are refused.

    Args:
        path: the engine, its sidecar beside it.
        device: "tensorrt-rtx", "tensorrt", or "cuda" (what the engine was built with), each with
            the number of the GPU behind a colon if it is not the first; None is "cuda".
        options: `rebuild`, which builds the engine again from the ONNX file beside it where it
            does not fit; `trust`, which takes one whose hash is not the recorded one; `sha256`,
            which takes the one with this hash alone, builds none in its place, and caches no
            kernels beside it; `max_contexts`.
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
        device: str | Device | None = None,
        options: Options = DEFAULTS,
        *,
        stream: object = None,
        cuda: Layer | Cuda | None = None,
        vendor: VendorApi | None = None,
    ) -> None:
        path, place = as_path(path, "model"), parse_device(device or "cuda")
        options.check("an engine", "rebuild", "trust", "sha256", "max_contexts")
        if place.kind in ("cpu", "openvino"):
            raise InputError(
                f"{path}: device is '{place}', but an engine runs on an NVIDIA GPU: give the ONNX"
                " file, or leave the device out"
            )
        if not path.is_file():
            raise ModelError(f"{path}: no such file, expected an engine made by `nmsfree build`")
        if vendor is None:
            built = place.kind == "cuda"
            vendor = load_vendor(read_sidecar(path).builder if built else place.kind)
        ours = open_cuda(cuda, place.index) if cuda is None or isinstance(cuda, str) else None
        layer: Cuda = ours or cuda  # type: ignore[assignment]  # one of them is a layer
        try:
            adopted = None if stream is None else layer.adopt_stream(stream)
            if adopted and adopted.handle in DEFAULT_STREAMS:
                raise InputError(
                    "stream is CUDA's default stream, in which engines run badly and CUDA graphs"
                    " not at all: make a stream, or leave it out"
                )
            with layer.active():
                self._gpu = f"{layer.device_name()} (SM {sm_text(layer.sm())})"
            self._engine = LoadedEngine(path, vendor, layer, options)
        except BaseException:
            if ours:
                ours.close()
            raise
        self.spec = self._engine.sidecar.spec
        if not self._engine.dynamic:
            self.spec = replace(self.spec, batch=self._engine.largest)
        self.arithmetic = "tf32" if self._engine.sidecar.tf32 else vendor.name
        self._last = threading.local()
        # In one stream, runs take turns: a graph that records would take in another thread's work.
        self._turn: AbstractContextManager[object] = threading.Lock() if adopted else nullcontext()
        self._pool = ContextPool(
            partial(ExecutionContext, self._engine, adopted),
            partial(_finish, self._engine, ours),
            self._engine.most_contexts,
        )
        self._finalizer = weakref.finalize(self, self._pool.close)  # for those who never close
        watched.add(self)

    def describe(self) -> str:
        """What runs where. Whether a CUDA graph does, only a run can tell.

        Asked before the first run, it therefore prepares that run, which takes as long here as it
        would there. Of an engine that was closed before any run it says "no CUDA graph".

        Raises:
            EngineError: that run cannot be prepared.
        """
        engine, sidecar = self._engine, self._engine.sidecar
        if engine.graph.used is None:
            with suppress(ModelError), self._turn, self._pool.take(from_device=False):
                pass  # a context warms up when it is made; ModelError: all is closed
        parts = (
            f"{engine.vendor} on {self._gpu}",
            f"{sidecar.precision}, TF32 {'on' if sidecar.tf32 else 'off'}",
            engine.cuda.name,
            "CUDA graph" if engine.graph.used else "no CUDA graph",
        )
        return ", ".join(parts)

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
        from_device = is_device_array(images)
        if not from_device:
            self._check(images)
        with self._turn, self._pool.take(from_device) as context:
            if from_device:
                images = context.take(images)
                self._check(images)
            done = [context.run(piece) for piece in self._pieces(images)]
        stages = zip(*((t.h2d, t.network, t.d2h) for _, t in done), strict=True)
        self._last.timings = Timings(*map(sum, stages))
        if len(done) == 1:
            return done[0][0]
        columns = zip(*(raw for raw, _ in done), strict=True)
        return RawDetections(*(np.concatenate(column) for column in columns))

    def timings(self) -> Timings | None:
        """How long the stages of this thread's last run took; None before the first."""
        return getattr(self._last, "timings", None)

    def _check(self, images: Any) -> None:
        """Refuse images whose type, shape or address is none that the engine takes."""
        engine, on_gpu = self._engine, isinstance(images, DeviceImages)
        if not on_gpu and not isinstance(images, np.ndarray):
            raise InputError(
                f"images are a {type(images).__name__}, expected a NumPy array or an array on the"
                " GPU (__dlpack__ or __cuda_array_interface__)"
            )
        count, *size = images.shape or (0,)
        _, h, w, c = engine.input.shape
        last = count % engine.largest or engine.largest  # size of the last batch
        fits = size == [h, w, c] and count >= 1 and last >= engine.smallest
        batches = f", in batches of {engine.smallest} to {engine.largest}" if engine.dynamic else ""
        rows = "N" if engine.dynamic else engine.largest
        expected = f"expected {rows} × {h} × {w} × {c}, uint8{batches}"
        if not on_gpu and (not fits or images.dtype != np.uint8):
            raise refusal(images, expected)
        if not fits:
            shape = " × ".join(map(str, images.shape))
            raise InputError(f"the model refused images of {shape} on the GPU ({expected})")
        if on_gpu and any(piece.address % ALIGNMENT for piece in self._pieces(images)):
            raise InputError(
                f"images on the GPU start at an address that is no multiple of {ALIGNMENT}, which "
                "TensorRT does not take: copy them first, as in images.clone()"
            )

    def _pieces(self, images: Any) -> Iterator[Any]:
        """Cut images into batches that the engine takes."""
        count, largest = images.shape[0], self._engine.largest
        for first in range(0, count, largest):
            last = min(first + largest, count)
            if isinstance(images, DeviceImages):
                address = images.address + self._engine.input.nbytes(first)
                yield DeviceImages(address, (last - first, *images.shape[1:]), images.owner)
            else:
                yield images[first:last]

    def after_fork(self) -> None:
        """In a forked child: CUDA stayed in the parent."""
        self._finalizer.detach()
        never_free(self._engine, self._pool)
        self._pool.after_fork(str(self._engine.vendor))

    def close(self) -> None:
        """Free everything; runs that still go on finish first.

        Raises:
            EngineError: the GPU failed; all that could be freed has been.
        """
        self._pool.close()


def _finish(engine: LoadedEngine, cuda: Cuda | None) -> None:
    """Free what the contexts shared; `cuda` if it is ours."""
    try:
        with engine.cuda.active():
            engine.cache_kernels()
            engine.close()
    finally:
        engine.close()  # even where the context cannot be made current: it outlives no engine
        if cuda:
            cuda.close()
