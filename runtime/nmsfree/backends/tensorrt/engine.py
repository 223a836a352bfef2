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

from nmsfree.backends.tensorrt.graph import GraphUse, falls_back
from nmsfree.backends.tensorrt.load import load_plan
from nmsfree.backends.tensorrt.log import Message, reason
from nmsfree.backends.tensorrt.sidecar import AGAIN, Sidecar
from nmsfree.backends.tensorrt.vendor import VendorApi
from nmsfree.cuda.base import Cuda
from nmsfree.decode import read_bytes
from nmsfree.errors import EngineError, InputError, ModelError
from nmsfree.files import write_atomic

INPUT = "images"


@dataclass(frozen=True)
class Binding:
    """An input or output of the engine; `shape` is of the largest batch."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def nbytes(self, images: int) -> int:
        """Bytes of this many images."""
        return int(np.prod(self.shape[1:])) * self.dtype.itemsize * images


def expected_bindings(
    sidecar: Sidecar, batch: int, found: dict[str, Binding]
) -> dict[str, Binding]:
    """What the description of an engine promises, by name."""
    spec, k = sidecar.spec, sidecar.spec.top_k
    float32, int32 = np.dtype(np.float32), np.dtype(np.int32)
    bindings = [Binding(INPUT, np.dtype(np.uint8), (batch, spec.height, spec.width, 3))]
    if sidecar.nms_on_host:
        scores = found.get("candidate_scores")
        t = scores.shape[-1] if scores else k  # how many is the engine's own affair
        bindings += [
            Binding("candidate_boxes", float32, (batch, t, 4)),
            Binding("candidate_scores", float32, (batch, t)),
            Binding("candidate_classes", int32, (batch, t)),
        ]
    else:
        bindings += [
            Binding("num_detections", int32, (batch, 1)),
            Binding("detection_boxes", float32, (batch, k, 4)),
            Binding("detection_scores", float32, (batch, k)),
            Binding("detection_classes", int32, (batch, k)),
        ]
    return {binding.name: binding for binding in bindings}


def shown(bindings: dict[str, Binding]) -> str:
    return ", ".join(f"{b.name} {b.dtype} {list(b.shape)}" for b in bindings.values())


_logger = logging.getLogger(__name__)
MAGIC = b"nmsfree kernels 2\n"
MAX_CACHE = 1 << 30  # bytes
_HEAD = len(MAGIC) + hashlib.sha256().digest_size


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
    """Keep the vendor's bytes; a folder that cannot be written to costs a warning only."""
    try:
        write_atomic(cache_path(engine), _head(engine_sha256, payload) + payload)
    except InputError as error:
        _logger.warning("kernels will be compiled again at the next start: %s", error)


def _head(engine_sha256: str, payload: bytes) -> bytes:
    return MAGIC + hashlib.sha256(bytes.fromhex(engine_sha256) + payload).digest()


DYNAMIC = -1  # TensorRT's size of an open dimension


class LoadedEngine:
    """A deserialised engine whose inputs and outputs are those of its description.

    Args:
        path: the engine, its sidecar beside it.
        vendor: the vendor module that runs it.
        cuda: the GPU that runs it.
        rebuild, trust, sha256: see `nmsfree.backends.tensorrt.load.load_plan`. With a hash, no
            kernels are kept beside the engine: the file that holds them is native code, too.

    Attributes:
        graph: whether runs replay a CUDA graph.
        cache_loaded: the kernels that were kept beside it fit, and were taken.

    Raises:
        ModelError: the file is missing, or is not what its description says.
        EngineError: it may not be loaded, or does not fit this machine.
    """

    def __init__(
        self,
        path: Path,
        vendor: VendorApi,
        cuda: Cuda,
        *,
        rebuild: bool,
        trust: bool,
        sha256: str | None = None,
    ) -> None:
        self.path, self.vendor, self.cuda = path, vendor, cuda
        self.cache_loaded = False
        self._keeps_kernels = sha256 is None
        self._making = threading.Lock()
        self._sizes: set[int] = set()  # numbers of images that have been run
        self._runtime: Any = None
        self._engine: Any = None
        self._config: Any = None
        with cuda.active():
            plan, self.sidecar = load_plan(
                path, vendor=vendor, sm=cuda.sm(), rebuild=rebuild, trust=trust, sha256=sha256
            )
            try:
                self._runtime, self._engine = self._deserialise(plan)
                self.dynamic, self.smallest, self.largest = self._batch()
                self.input, self.outputs = self._check(self._read_bindings())
                self._cache = (
                    read_cache(path, self.sidecar.engine_sha256) if self._keeps_kernels else None
                )
                self._config = self._configure()
                self.graph = GraphUse(self.capturable or vendor.captures_graphs)
            except BaseException:
                self.close()
                raise

    def _deserialise(self, plan: bytes) -> tuple[Any, Any]:
        with self.failures("refuses this plan", AGAIN) as messages:
            runtime = self.vendor.create_runtime()
            problem = self.vendor.engine_problem(runtime, plan)
            if problem is not None:
                raise EngineError(
                    f"{self.path}: {self.vendor} refuses this plan ({problem}): {AGAIN}"
                )
            engine = runtime.deserialize_cuda_engine(plan)
            self.demand(engine is not None, "refuses this plan", messages, AGAIN)
        return runtime, engine

    @contextmanager
    def failures(self, what: str, advice: str = AGAIN) -> Iterator[list[Message]]:
        """Collect the vendor's messages; its exceptions become EngineError, quoting them."""
        with self.vendor.log.collect() as messages:
            try:
                yield messages
            except (RuntimeError, TypeError, ValueError) as error:  # what its bindings raise
                said = reason(messages) if messages else " ".join(str(error).split())[:200]
                raise EngineError(f"{self.path}: {self.vendor} {what} ({said}): {advice}") from None

    def demand(self, success: Any, what: str, messages: list[Message], advice: str = AGAIN) -> None:
        """Turn a call of the vendor's that returned False or None into EngineError."""
        if not success:
            said = reason(messages)
            raise EngineError(f"{self.path}: {self.vendor} {what} ({said}): {advice}")

    def _batch(self) -> tuple[bool, int, int]:
        """Whether the batch is open, and its smallest and largest size."""
        names = self._names()
        if INPUT not in names:
            raise ModelError(
                f"{self.path}: the engine has {', '.join(names)}, no '{INPUT}': {AGAIN}"
            )
        size = int(self._engine.get_tensor_shape(INPUT)[0])
        if size != DYNAMIC:
            return False, size, size
        smallest, _, largest = self._engine.get_tensor_profile_shape(INPUT, 0)
        return True, int(smallest[0]), int(largest[0])

    def _names(self) -> list[str]:
        return [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]

    def _read_bindings(self) -> list[Binding]:
        """Inputs, then outputs."""
        module = self.vendor.module
        inputs: list[Binding] = []
        outputs: list[Binding] = []
        for name in self._names():
            dtype = np.dtype(module.nptype(self._engine.get_tensor_dtype(name)))
            shape = tuple(self._engine.get_tensor_shape(name))
            binding = Binding(name, dtype, (self.largest, *shape[1:]))
            is_input = self._engine.get_tensor_mode(name) == module.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(binding)
        return inputs + outputs

    def _check(self, bindings: list[Binding]) -> tuple[Binding, tuple[Binding, ...]]:
        """Hold inputs and outputs against the description.

        Raises:
            ModelError: they differ.
        """
        found = {binding.name: binding for binding in bindings}
        expected = expected_bindings(self.sidecar, self.largest, found)
        if found != expected or bindings[0].name != INPUT:
            raise ModelError(
                f"{self.path}: the engine has {shown(found)}, but its description says"
                f" {shown(expected)}: {AGAIN}"
            )
        return found[INPUT], tuple(bindings[1:])

    def _configure(self) -> Any:
        """Prepare execution contexts, with the kernels that were kept."""
        with self.failures("cannot prepare execution contexts"):
            config = self.vendor.create_runtime_config(
                self._engine, cuda_graph=True, cache=self._cache
            )
        self.cache_loaded = config.cache_loaded
        if self._cache is not None and config.cache is not None and not config.cache_loaded:
            _logger.info(
                "%s: of another GPU, driver or release, kernels are compiled again",
                cache_path(self.path),
            )
            self._cache = None
        return config

    @property
    def capturable(self) -> bool:
        """Whether we record a CUDA graph: of fixed shapes, where the library does not do so itself.

        NMS within the engine has shapes that depend on the data, which no graph can have.
        """
        nms_inside = self.sidecar.spec.nms is not None and not self.sidecar.nms_on_host
        ours = self.cuda.can_capture and not self.vendor.captures_graphs
        return ours and not self.dynamic and not nms_inside

    @property
    def warmup_runs(self) -> int:
        """Runs after which one is as fast as the next."""
        return 2 if self.vendor.captures_graphs else 1

    def create_context(self) -> Any:
        """A new execution context; may compile kernels, which takes seconds."""
        what = "cannot make an execution context"
        with self._making, self.failures(what) as messages:
            context = self.vendor.create_context(self._engine, self._config)
            self.demand(context is not None, what, messages)
            self.notice_graph(messages)
        return context

    def notice_graph(self, messages: list[Message], able: bool = True) -> None:
        """Notice where the library says, or told when asked, that it does without a CUDA graph."""
        if not able or falls_back(messages):
            self.graph.fails(f"{self.path}: {self.vendor} says that it cannot be captured")

    def keep_kernels_of(self, images: int) -> None:
        """Keep the kernels after the first run of so many images, which may have compiled some.

        At once, not in `close`: a server is killed more often than closed.
        """
        if images in self._sizes:  # no lock: another thread may be making a context for seconds
            return
        with self._making:
            new = images not in self._sizes
            self._sizes.add(images)
        if new:
            self.keep_kernels()

    def keep_kernels(self) -> None:
        """Write the kernels compiled so far beside the engine, if there are new ones.

        It costs a warning where that fails: the next start takes seconds longer, no more.
        """
        if not self._keeps_kernels:
            return
        try:
            with self._making, self.failures("cannot give its compiled kernels"):
                kernels = self.vendor.cache_bytes(self._config)
                if kernels and kernels != self._cache:
                    self._cache = kernels
                    write_cache(self.path, self.sidecar.engine_sha256, kernels)
        except EngineError as error:
            _logger.warning("kernels will be compiled again at the next start: %s", error)

    def close(self) -> None:
        """Free the engine; every context made from it must be gone."""
        self._config = self._engine = self._runtime = None
