"""An engine file, deserialised and checked: what all threads share."""

import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nmsfree.backends.contract import image_port, output_shapes
from nmsfree.backends.options import MOST_CONTEXTS, Options
from nmsfree.backends.tensorrt.load import load_plan
from nmsfree.backends.tensorrt.log import Message, reason
from nmsfree.backends.tensorrt.sidecar import AGAIN
from nmsfree.backends.tensorrt.vendor import VendorApi, has_nms_operator
from nmsfree.cuda.base import Cuda
from nmsfree.errors import EngineError, InputError, ModelError
from nmsfree.files import write_atomic
from nmsfree.parsing import read_bytes
from nmsfree.spec import ModelSpec

_logger = logging.getLogger(__name__)
INPUT = "images"
DYNAMIC = -1  # TensorRT's size of an open dimension
# "The engine is not graph capturable. Falling back to not using CUDA graphs.", a warning.
FALLS_BACK = "not graph capturable"
MAGIC = b"nmsfree kernels 2\n"
MAX_CACHE = 1 << 30  # bytes
_HEAD = len(MAGIC) + hashlib.sha256().digest_size


@dataclass(frozen=True)
class Binding:
    """An input or output of the engine; `shape` is of the largest batch."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)}"

    def nbytes(self, images: int) -> int:
        """Bytes of this many images."""
        return int(np.prod(self.shape[1:])) * self.dtype.itemsize * images


def expected_bindings(spec: ModelSpec, batch: int) -> list[Binding]:
    """What the description of an engine promises."""
    form, (_, *size) = image_port(spec)
    shapes: dict[str, Any] = {INPUT: (form, size)} | output_shapes(spec.top_k)
    return [Binding(name, np.dtype(kind), (batch, *s)) for name, (kind, s) in shapes.items()]


def cache_path(engine: Path) -> Path:
    """`model.engine` → `model.engine.cache`."""
    return engine.with_name(engine.name + ".cache")


def read_cache(engine: Path, engine_sha256: str) -> bytes | None:
    """Return the vendor's bytes; None where there are none for this engine."""
    path = cache_path(engine)
    if not path.exists():
        return None
    try:
        content = read_bytes(path, limit=MAX_CACHE)
    except InputError as error:
        _logger.warning("%s: kernels are compiled again", error)
        return None
    payload = content[_HEAD:]
    if content[:_HEAD] != _head(engine_sha256, payload) or not payload:
        _logger.warning("%s: damaged or of another engine, kernels are compiled again", path)
        return None
    return payload


def write_cache(engine: Path, engine_sha256: str, payload: bytes) -> None:
    write_atomic(cache_path(engine), _head(engine_sha256, payload) + payload)


def _head(engine_sha256: str, payload: bytes) -> bytes:
    return MAGIC + hashlib.sha256(bytes.fromhex(engine_sha256) + payload).digest()


def demand(success: Any) -> None:
    """Refuse what a call of the vendor's returned if it is False or None, within `failures`."""
    if not success:
        raise RuntimeError("no reason given")


class GraphUse:
    """What the threads that run an engine found out about its CUDA graph.

    TensorRT-RTX records by itself, and goes on without a graph where it cannot; with full TensorRT
    the recording is ours. Either way it is known once a run has warmed up, not before. One that
    failed counts for all: nobody is promised a graph that some runs do without.
    """

    def __init__(self, possible: bool) -> None:
        self._lock = threading.Lock()
        # Whether runs replay a graph; None: nothing has been run yet.
        self.used: bool | None = None if possible else False

    def works(self) -> None:
        """A graph is there."""
        with self._lock:
            if self.used is None:
                self.used = True

    def fails(self, why: object) -> None:
        """There is none; the first to notice warns of it."""
        with self._lock:
            news = self.used is not False
            self.used = False
        if news:
            _logger.warning("no CUDA graph, runs take a little longer: %s", why)


class LoadedEngine:
    """A deserialised engine whose inputs and outputs are those of its description.

    Of the options, see `load_plan`. With a hash, no kernels are cached beside the engine: the file
    that holds them is native code, too.

    Raises:
        ModelError: the file is missing, or is not what its description says.
        EngineError: it may not be loaded, or does not fit this machine.
    """

    def __init__(self, path: Path, vendor: VendorApi, cuda: Cuda, options: Options) -> None:
        self.path, self.vendor, self.cuda = path, vendor, cuda
        self.cache_loaded = False  # the kernels that were cached beside it fit, and were taken
        self._caches_kernels = options.sha256 is None
        self._cache: bytes | None = None
        self._making = threading.Lock()
        self._sizes: set[int] = set()  # numbers of images that have been run
        self._runtime: Any = None
        self._engine: Any = None
        self._config: Any = None
        with cuda.active():
            plan, self.sidecar = load_plan(path, vendor=vendor, sm=cuda.sm(), options=options)
            try:
                self._deserialise(plan)
                self._read_bindings()
                if self._caches_kernels:
                    self._cache = read_cache(path, self.sidecar.engine_sha256)
                self._configure()
                self.most_contexts = options.max_contexts or self._contexts_that_fit()
                self.graph = GraphUse(self.capturable or vendor.captures_graphs)
            except BaseException:
                self.close()
                raise

    def _deserialise(self, plan: bytes) -> None:
        with self.failures("refuses this plan"):
            self._runtime = runtime = self.vendor.create_runtime()
            problem = self.vendor.engine_problem(runtime, plan)
            if problem is not None:
                raise EngineError(
                    f"{self.path}: {self.vendor} refuses this plan ({problem}): {AGAIN}"
                )
            self._engine = runtime.deserialize_cuda_engine(plan)
            demand(self._engine is not None)

    @contextmanager
    def failures(self, what: str, advice: str = AGAIN) -> Iterator[list[Message]]:
        """Collect the vendor's messages; its exceptions become EngineError, quoting them."""
        with self.vendor.log.collect() as messages:
            try:
                yield messages
            except (RuntimeError, TypeError, ValueError) as error:  # what its bindings raise
                said = reason(messages) if messages else " ".join(str(error).split())[:200]
                raise EngineError(f"{self.path}: {self.vendor} {what} ({said}): {advice}") from None

    def _read_bindings(self) -> None:
        """Take batch sizes, inputs and outputs; hold them against the description."""
        module = self.vendor.module
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        if INPUT not in names:
            raise ModelError(
                f"{self.path}: the engine has {', '.join(names)}, no '{INPUT}': {AGAIN}"
            )
        self.smallest = self.largest = int(self._engine.get_tensor_shape(INPUT)[0])
        self.dynamic = self.largest == DYNAMIC
        if self.dynamic:
            profile = self._engine.get_tensor_profile_shape(INPUT, 0)
            self.smallest, self.largest = int(profile[0][0]), int(profile[2][0])
        inputs: list[str] = []
        found: dict[str, Binding] = {}
        for name in names:
            dtype = np.dtype(module.nptype(self._engine.get_tensor_dtype(name)))
            shape = tuple(self._engine.get_tensor_shape(name))
            found[name] = Binding(name, dtype, (self.largest, *shape[1:]))
            if self._engine.get_tensor_mode(name) == module.TensorIOMode.INPUT:
                inputs.append(name)
        expected = expected_bindings(self.sidecar.spec, self.largest)
        if found != {binding.name: binding for binding in expected} or inputs != [INPUT]:
            raise ModelError(
                f"{self.path}: the engine has {', '.join(map(str, found.values()))}, but its"
                f" description says {', '.join(map(str, expected))}: {AGAIN}"
            )
        self.input = found.pop(INPUT)
        self.outputs = tuple(found.values())

    def _configure(self) -> None:
        """Prepare execution contexts, with the kernels that were cached."""
        with self.failures("cannot prepare execution contexts"):
            self._config = self.vendor.create_runtime_config(self._engine, self._cache)
        self.cache_loaded = self._config.cache_loaded
        if self._cache and self._config.cache is not None and not self.cache_loaded:
            _logger.info(
                "%s: of another GPU, driver or release, kernels are compiled again",
                cache_path(self.path),
            )
            self._cache = None

    @property
    def capturable(self) -> bool:
        """Whether we record a CUDA graph: of fixed shapes, where the library does not do so itself.

        The operator NonMaxSuppression has shapes that depend on the data, which no graph can have.
        """
        ours = self.cuda.can_capture and not self.vendor.captures_graphs
        return ours and not self.dynamic and not has_nms_operator(self.sidecar.spec)

    def _contexts_that_fit(self) -> int:
        """How many contexts half of the free memory holds; the rest is for graphs and others."""
        buffers = sum(b.nbytes(self.largest) for b in (self.input, *self.outputs))
        # Of a context beside its buffers; TensorRT 10.0 does not tell.
        need = int(getattr(self._engine, "device_memory_size_v2", 0)) + buffers
        found = max(self.cuda.free_memory() // 2 // need, 1)
        if found < MOST_CONTEXTS:
            _logger.info("%s: little GPU memory is free: runs at once: %d", self.path, found)
        return min(found, MOST_CONTEXTS)

    def create_context(self) -> Any:
        """A new execution context; may compile kernels, which takes seconds."""
        with self._making, self.failures("cannot make an execution context") as messages:
            context = self.vendor.create_context(self._engine, self._config)
            demand(context is not None)
            self.notice_graph(messages)
        return context

    def notice_graph(self, messages: list[Message], able: bool = True) -> None:
        """Notice where the library says, or told when asked, that it does without a CUDA graph.

        It does not say of which engine.
        """
        if not able or any(FALLS_BACK in message.text for message in messages):
            self.graph.fails(f"{self.path}: {self.vendor} says that it cannot be captured")

    def cache_kernels_of(self, images: int) -> None:
        """Cache the kernels after the first run of so many images, which may have compiled some.

        At once, not in `close`: a server is killed more often than closed.
        """
        if images in self._sizes:  # no lock: another thread may be making a context for seconds
            return
        with self._making:
            new = images not in self._sizes
            self._sizes.add(images)
        if new:
            self.cache_kernels()

    def cache_kernels(self) -> None:
        """Write the kernels compiled so far beside the engine, if there are new ones.

        It costs a warning where that fails: the next start takes seconds longer, no more.
        """
        if not self._caches_kernels:
            return
        try:
            with self._making, self.failures("cannot give its compiled kernels"):
                kernels = self.vendor.cache_bytes(self._config)
                if kernels and kernels != self._cache:
                    self._cache = kernels
                    write_cache(self.path, self.sidecar.engine_sha256, kernels)
        except (EngineError, InputError) as error:  # InputError: the folder is protected
            _logger.warning("kernels will be compiled again at the next start: %s", error)

    def close(self) -> None:
        """Free the engine; every context made from it must be gone."""
        self._config = self._engine = self._runtime = None
