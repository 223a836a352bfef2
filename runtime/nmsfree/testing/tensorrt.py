"""A TensorRT module without TensorRT, for tests: it computes with a NumPy function.

It has what the backend uses of the real modules and nothing more, so that a call the fake lacks
fails. Work goes into streams of `nmsfree.testing.cuda`, reads and writes that memory, and happens
when the stream is waited for. It refuses what the real one refuses, and logs why as it does.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntFlag
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.contract import output_shapes
from nmsfree.backends.tensorrt.engine import INPUT
from nmsfree.backends.tensorrt.sidecar import Sidecar, this_platform, write_sidecar
from nmsfree.backends.tensorrt.vendor import VendorApi
from nmsfree.spec import ModelSpec
from nmsfree.testing.cuda import FakeCuda

Function = Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]
VERSIONS = {"tensorrt-rtx": "1.7.1.116", "tensorrt": "11.4.0"}
ERROR, WARNING = 1, 2  # severities
CONTEXT_BYTES = 1 << 24  # of an execution context
FALLBACK = "The engine is not graph capturable. Falling back to not using CUDA graphs."


_Mode = Enum("_Mode", "INPUT OUTPUT")
_Validity = Enum("_Validity", "VALID INVALID")
_Diagnostics = IntFlag("_Diagnostics", "VERSION_MISMATCH")
_GraphStrategy = Enum("_GraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
_KernelStrategy = Enum("_KernelStrategy", "LAZY EAGER")


class _Logger:
    def __init__(self) -> None: ...

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


@dataclass
class FakeTensorRt:
    """The module. Methods named in `fail` fail from now on as the real ones do, with a log line."""

    cuda: FakeCuda
    function: Function  # images uint8 [N, H, W, 3] → outputs by name
    kernels: bytes = b"kernels"  # what it "compiles"; another value is another release
    fail: set[str] = field(default_factory=set)
    falls_back: str = ""  # the method that says that runs do without a CUDA graph
    alive: int = 0  # execution contexts
    compiled: int = 0  # how often kernels were: for an engine, and for a batch size of it
    ILogger: type = _Logger
    TensorIOMode: type = _Mode
    EngineValidity: type = _Validity
    EngineInvalidityDiagnostics: type = _Diagnostics
    CudaGraphStrategy: type = _GraphStrategy
    DynamicShapesKernelSpecializationStrategy: type = _KernelStrategy

    def nptype(self, dtype: Any) -> Any:
        return dtype

    def Runtime(self, logger: Any) -> "_Runtime":
        return _Runtime(self, logger)


class _Runtime:
    def __init__(self, module: FakeTensorRt, logger: Any) -> None:
        self.module, self.logger = module, logger

    def fails(self, method: str) -> bool:
        if method in self.module.fail:
            self.logger.log(ERROR, f"IFake::{method}: Error Code 1: Internal Error (as asked)")
        return method in self.module.fail

    def falls_back(self, method: str) -> None:
        if method == self.module.falls_back:
            self.logger.log(WARNING, FALLBACK)

    def get_engine_validity(self, buffer: bytes) -> tuple[_Validity, _Diagnostics]:
        if "get_engine_validity" in self.module.fail:
            return _Validity.INVALID, _Diagnostics.VERSION_MISMATCH
        return _Validity.VALID, _Diagnostics(0)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "_Engine | None":
        if self.fails("deserialize_cuda_engine") or not serialized_engine.startswith(b"{"):
            return None
        return _Engine(self, json.loads(serialized_engine))


class _Engine:
    def __init__(self, runtime: _Runtime, plan: dict[str, Any]) -> None:
        self.runtime, self.module = runtime, runtime.module
        self.tensors: dict[str, tuple[str, list[int]]] = plan["tensors"]
        self.profile: list[int] = plan["batch"]
        self.num_io_tensors = len(self.tensors)
        self.device_memory_size_v2 = CONTEXT_BYTES

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> _Mode:
        return _Mode.INPUT if name == INPUT else _Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return np.dtype(self.tensors[name][0]).type

    def get_tensor_shape(self, name: str) -> list[int]:
        return self.tensors[name][1]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return [[size, *self.tensors[name][1][1:]] for size in self.profile]

    def create_runtime_config(self) -> "_Config":
        return _Config(self.runtime)

    def create_execution_context(self, runtime_config: "_Config | None" = None) -> Any:
        if self.runtime.fails("create_execution_context"):
            return None
        cache = _Cache(self.module) if runtime_config is None else runtime_config.cache
        cache.compile("engine")
        self.runtime.falls_back("create_execution_context")
        return _Context(self, cache)


class _Cache:
    """Kernels as a text: the release's, and after a bar what they were compiled for."""

    def __init__(self, module: FakeTensorRt) -> None:
        self.module = module
        self.parts: list[str] = []

    def compile(self, part: str) -> None:
        if part not in self.parts:
            self.module.compiled += 1
            self.parts.append(part)

    def deserialize(self, blob: bytes) -> bool:
        release, _, parts = blob.partition(b"|")
        fits = release == self.module.kernels
        self.parts = parts.decode().split(",") if fits else []
        return fits

    def serialize(self) -> bytes:
        return self.module.kernels + b"|" + ",".join(self.parts).encode() if self.parts else b""


class _Config:
    def __init__(self, runtime: _Runtime) -> None:
        self.runtime, self.cache = runtime, _Cache(runtime.module)
        self.cuda_graph_strategy = _GraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = _KernelStrategy.LAZY

    def create_runtime_cache(self) -> _Cache:
        return self.cache

    def set_runtime_cache(self, cache: _Cache) -> bool:
        return cache is self.cache and not self.runtime.fails("set_runtime_cache")


class _Context:
    def __init__(self, engine: _Engine, cache: _Cache) -> None:
        self.engine, self.module, self.cache = engine, engine.module, cache
        self.addresses: dict[str, int] = {}
        size = engine.tensors[INPUT][1][0]
        self.rows: int | None = None if size < 0 else size
        self.module.alive += 1

    def __del__(self) -> None:
        self.module.alive -= 1

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return not self.engine.runtime.fails("set_tensor_address")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.engine.profile
        if not smallest <= shape[0] <= largest or self.engine.runtime.fails("set_input_shape"):
            return False
        self.rows = shape[0]
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return not self.engine.runtime.fails("is_stream_capturable")

    def execute_async_v3(self, stream_handle: int) -> bool:
        unset = set(self.engine.tensors) - set(self.addresses)
        if self.rows is None or unset or self.engine.runtime.fails("execute_async_v3"):
            return False
        if self.engine.tensors[INPUT][1][0] < 0:
            self.cache.compile(f"batch of {self.rows}")
        self.engine.runtime.falls_back("execute_async_v3")
        rows, addresses = self.rows, dict(self.addresses)
        work = lambda: self._compute(rows, addresses)  # noqa: E731
        self.module.cuda.enqueue(stream_handle, work, "executions")
        return True

    def _compute(self, rows: int, addresses: dict[str, int]) -> None:
        arrays = {name: self._view(name, rows, address) for name, address in addresses.items()}
        for name, value in self.module.function(arrays[INPUT].copy()).items():
            assert arrays[name].dtype == value.dtype, name
            np.copyto(arrays[name], value)

    def _view(self, name: str, rows: int, address: int) -> NDArray[Any]:
        dtype, shape = self.engine.tensors[name]
        nbytes = rows * int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        return self.module.cuda.memory(address, nbytes).view(dtype).reshape(rows, *shape[1:])


def fake_vendor(
    cuda: FakeCuda, function: Function, name: Literal["tensorrt-rtx", "tensorrt"] = "tensorrt-rtx"
) -> VendorApi:
    """A vendor whose module computes with `function`."""
    return VendorApi(name, FakeTensorRt(cuda, function), VERSIONS[name])


def write_fake_engine(
    path: Path,
    spec: ModelSpec,
    *,
    batch: tuple[int, int, int],
    builder: str = "tensorrt-rtx",
    **fields: Any,
) -> Sidecar:
    """Write an engine for the fake, and its sidecar, of which `fields` replace what is usual."""
    n = batch[2] if batch[0] == batch[2] else -1
    shapes = {INPUT: ("uint8", (spec.height, spec.width, 3))} | output_shapes(spec.top_k)
    tensors = {name: (kind, [n, *shape]) for name, (kind, shape) in shapes.items()}
    plan = json.dumps({"tensors": tensors, "batch": batch}).encode()
    path.write_bytes(plan)
    digest = hashlib.sha256(plan).hexdigest()
    own = {"batch": batch, "builder": builder, "engine_sha256": digest}
    sidecar = fake_sidecar(spec, **(own | {"onnx": path.with_suffix(".onnx").name} | fields))
    write_sidecar(path, sidecar)
    return sidecar


def fake_sidecar(spec: ModelSpec, **fields: Any) -> Sidecar:
    """A description of an engine, `fields` replaced as asked."""
    values: dict[str, Any] = {
        "engine_sha256": "e" * 64,
        "onnx": "model.onnx",
        "onnx_sha256": "0" * 64,
        "builder": "tensorrt-rtx",
        "builder_version": VERSIONS[fields.get("builder", "tensorrt-rtx")],
        "targets": (89,),
        "platform": this_platform(),
        "precision": "fp32",
        "tf32": False,
        "batch": (1, 1, 1),
        "build_seconds": 1.0,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Sidecar(spec=spec, **(values | fields))
