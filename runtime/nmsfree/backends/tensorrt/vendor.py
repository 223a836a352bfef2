"""The one place that knows how `tensorrt_rtx` and `tensorrt` differ.

| | tensorrt-rtx 1.x | tensorrt 10.x | tensorrt 11 |
|---|---|---|---|
| builds without a GPU, for named targets | yes | no | no |
| network types | always from the graph | with a flag | always from the graph |
| kernels | compiled at load, kept in a runtime cache | in the plan | in the plan |
| CUDA graph | by the library | captured by us | captured by us |
| NonMaxSuppression | parses, does not build | own layer | own layer |
| a plan runs on | Windows and Linux | its own system | its own system |
"""

import importlib
import logging
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

from nmsfree.backends.tensorrt.log import VendorLog, make_logger, reason
from nmsfree.errors import EngineError, InputError, MissingExtraError
from nmsfree.spec import ModelSpec
from nmsfree.text import one_of

_logger = logging.getLogger(__name__)
VendorName = Literal["tensorrt-rtx", "tensorrt"]
# Name → (module, what it is called in messages, the extra that brings it).
_MODULES: dict[str, tuple[str, str, str]] = {
    "tensorrt-rtx": ("tensorrt_rtx", "a TensorRT-RTX engine", "nmsfree[tensorrt-rtx]"),
    "tensorrt": ("tensorrt", "a TensorRT engine", "nmsfree[tensorrt]"),
}
OLDEST_TENSORRT = 10  # before it: no strongly typed networks, no execute_async_v3


@dataclass(frozen=True)
class RuntimeConfig:
    """How execution contexts of one engine are made; shared by all of them."""

    config: Any = None  # TensorRT-RTX's own object
    cache: Any = None  # TensorRT-RTX's compiled kernels; None where the module has or takes none
    cache_loaded: bool = False  # the bytes that were given fitted this GPU and driver


@dataclass(frozen=True)
class VendorApi:
    """One of the two vendor modules, and what is done differently with it.

    Everything that both have alike is called on `module` directly. `with vendor.log.collect() as
    messages` gathers those that belong to a call, so that an error can quote them (`log.reason`).
    """

    name: VendorName
    module: Any
    version: str
    log: VendorLog = field(default_factory=VendorLog, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @cached_property
    def logger(self) -> Any:
        """The logger that every builder, parser and runtime is made with."""
        return make_logger(self.module, self.log)

    @property
    def builds_without_gpu(self) -> bool:
        return self.name == "tensorrt-rtx"

    @property
    def captures_graphs(self) -> bool:
        """Whether the library itself captures and replays a CUDA graph."""
        return self.name == "tensorrt-rtx"

    def buildable(self) -> tuple[int, ...]:
        """SMs that the builder has, ascending; none where it builds for this machine's GPU."""
        if not self.builds_without_gpu:
            return ()
        names = vars(self.module.ComputeCapability)
        return tuple(sorted(int(n[2:]) for n in names if n[:2] == "SM" and n[2:].isdigit()))

    def create_builder(self) -> Any:
        """EngineError where the library does not start, as of `create_runtime`."""
        return self._start(self.module.Builder)

    def create_network(self, builder: Any) -> Any:
        """Return an empty network whose types are those of the graph, never the builder's choice.

        TensorRT 11 and TensorRT-RTX have no other kind; TensorRT 10 must be asked for it.
        """
        flags = 0
        if self.name == "tensorrt" and _major(self.version) < 11:
            flags = 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return builder.create_network(flags)

    def set_targets(self, config: Any, sms: tuple[int, ...]) -> None:
        """Let a builder configuration build for these SMs, which it has."""
        assert self.builds_without_gpu
        config.num_compute_capabilities = len(sms)
        for index, sm in enumerate(sms):
            capability = getattr(self.module.ComputeCapability, f"SM{sm}")
            if not config.set_compute_capability(capability, index):
                raise InputError(f"{self} refuses SM {sm} as a target")

    def set_tf32(self, config: Any, on: bool) -> None:
        """Allow or forbid TF32, which both modules turn on by themselves: 10 bits of mantissa."""
        (config.set_flag if on else config.clear_flag)(self.module.BuilderFlag.TF32)

    def allows_tf32(self, config: Any) -> bool:
        return bool(config.get_flag(self.module.BuilderFlag.TF32))

    def create_runtime(self) -> Any:
        """What deserialises plans."""
        return self._start(self.module.Runtime)

    def _start(self, kind: Any) -> Any:
        with self.log.collect() as messages:
            try:
                return kind(self.logger)
            except (TypeError, RuntimeError):  # how its bindings say that they got nothing
                raise EngineError(
                    f"{self} does not start ({reason(messages)}): "
                    "`nmsfree doctor` says what this machine lacks"
                ) from None

    def engine_problem(self, runtime: Any, plan: bytes) -> str | None:
        """Say why the library would refuse a plan, before it is deserialised; None: no objection.

        Only TensorRT-RTX can tell, and only with a driver; without one it objects to every plan.
        """
        if self.name != "tensorrt-rtx":
            return None
        with self.log.collect() as messages:
            validity, diagnostics = runtime.get_engine_validity(plan)
        if validity != self.module.EngineValidity.INVALID:
            return None
        kinds = self.module.EngineInvalidityDiagnostics.__members__.values()
        named = [kind.name for kind in kinds if int(diagnostics) & int(kind)]
        return ", ".join(named).lower().replace("_", " ") or reason(messages)

    def create_runtime_config(self, engine: Any, cache: bytes | None = None) -> RuntimeConfig:
        """Prepare execution contexts of an engine, with a CUDA graph of the library's.

        `cache` is what `cache_bytes` gave once; one that does not fit any more is not used.
        """
        if self.name != "tensorrt-rtx":
            return RuntimeConfig()
        config = engine.create_runtime_config()
        kernels = config.create_runtime_cache()
        loaded = bool(cache) and bool(kernels.deserialize(cache))
        if not config.set_runtime_cache(kernels):
            _logger.warning("%s takes no cache: kernels are compiled again at each start", self)
            kernels, loaded = None, False
        config.cuda_graph_strategy = self.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # By itself it would run a generic kernel at first and change to another in the background,
        # so that one image has two answers: a batch size that is new is compiled for at once.
        kinds = self.module.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
        return RuntimeConfig(config, kernels, loaded)

    def create_context(self, engine: Any, runtime_config: RuntimeConfig) -> Any:
        """Return an execution context; None where the library fails (its messages say why)."""
        if runtime_config.config is None:
            return engine.create_execution_context()
        return engine.create_execution_context(runtime_config.config)

    def cache_bytes(self, runtime_config: RuntimeConfig) -> bytes | None:
        """The kernels compiled so far, to be kept for the next start; None: nothing to keep."""
        if runtime_config.cache is None:
            return None
        return bytes(memoryview(runtime_config.cache.serialize()))


def is_installed(name: str) -> bool:
    """Whether the module of a vendor is installed; it is not imported."""
    return find_spec(_MODULES[name][0]) is not None


@cache
def load_vendor(name: str) -> VendorApi:
    """Import "tensorrt-rtx" or "tensorrt"; once, since a process can have one vendor logger only.

    EngineError: it is installed but cannot be loaded, or is too old.
    """
    if name not in _MODULES:
        raise InputError(f"builder is {name!r}, expected {one_of(_MODULES, name)}")
    module_name, feature, extra = _MODULES[name]
    if not is_installed(name):
        raise MissingExtraError(feature, extra)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, OSError) as error:  # its libraries are missing, or do not fit the system
        raise EngineError(
            f"{module_name} is installed but cannot be loaded ({' '.join(str(error).split())}): "
            f'install it again with pip install --force-reinstall "{extra}"'
        ) from None
    version = str(module.__version__)
    if name == "tensorrt" and _major(version) < OLDEST_TENSORRT:
        raise EngineError(
            f'tensorrt {version} found, {OLDEST_TENSORRT} or newer expected: pip install "{extra}"'
        )
    return VendorApi(cast(VendorName, name), module, version)


def _major(version: str) -> int:
    return int(version.split(".")[0])


def has_nms_operator(spec: ModelSpec) -> bool:
    """Whether a model ends in the operator NonMaxSuppression."""
    return spec.nms is not None and spec.nms.steps is None


def check_nms(path: Path, spec: ModelSpec, builder: str) -> None:
    """Refuse a file whose NMS the builder lacks, and an engine that was built without it.

    EngineError: says how to make one that has it.
    """
    if builder == "tensorrt-rtx" and has_nms_operator(spec):
        onnx, adopted = path.with_suffix(".onnx"), "adopted" in spec.provenance
        make = "adopt ORIGINAL" if adopted else "export CHECKPOINT --head o2m"
        raise EngineError(
            f"{path}: NMS is the operator NonMaxSuppression, which {builder} does not build: make"
            f" it of plain operators, with `nmsfree {make} --nms plain -o {onnx}`, then"
            f" `nmsfree build {onnx}`"
        )


def same_platform(builder: str, built: str, found: str) -> bool:
    """Whether a plan may run on a platform ("Linux x86_64") when it was built on another.

    TensorRT-RTX's plans are portable between Linux and Windows of one processor architecture.
    """
    if builder == "tensorrt-rtx":
        return built.split()[-1] == found.split()[-1]
    return built == found
