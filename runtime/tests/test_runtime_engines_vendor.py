"""The two vendor modules: what is done differently, on the real one and on small fakes."""

import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from runtime_helpers import refused

from nmsfree import EngineError, InputError, MissingExtraError
from nmsfree.backends.tensorrt import vendor as vendor_module
from nmsfree.backends.tensorrt.log import LONGEST_REASON, Message, VendorLog, reason
from nmsfree.backends.tensorrt.vendor import (
    RuntimeConfig,
    VendorApi,
    is_installed,
    load_vendor,
    same_platform,
)

# Without the wheel there is nothing to test here; constraints and CI install it.
trt: Any = pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def rtx() -> VendorApi:
    return load_vendor("tensorrt-rtx")


@pytest.fixture
def fresh() -> Any:
    """Forget what was loaded, before and after."""
    load_vendor.cache_clear()
    yield
    load_vendor.cache_clear()


def test_the_real_module(rtx: VendorApi) -> None:
    assert rtx.module is trt
    assert str(rtx) == f"tensorrt-rtx {trt.__version__}"
    assert rtx is load_vendor("tensorrt-rtx")
    assert is_installed("tensorrt-rtx")
    assert isinstance(rtx.logger, trt.ILogger)
    assert rtx.logger is rtx.logger
    assert {75, 86, 89, 120} <= {*rtx.buildable()}
    assert 90 not in rtx.buildable()


def test_a_library_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    class Builder:
        def __init__(self, logger: Any) -> None:
            logger.log(1, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    module = SimpleNamespace(ILogger=trt.ILogger, Builder=Builder)
    assert refused(
        lambda: VendorApi("tensorrt", module, "11.4.0").create_builder(), EngineError
    ) == (
        "tensorrt 11.4.0 does not start (CUDA initialization failure with error: 35): "
        "`nmsfree doctor` says what this machine lacks"
    )


def test_targets_and_tf32_reach_the_builder(rtx: VendorApi) -> None:
    config = rtx.create_builder().create_builder_config()
    assert config.get_flag(trt.BuilderFlag.TF32)  # the vendor's default
    rtx.set_tf32(config, on=False)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert not rtx.allows_tf32(config)
    rtx.set_tf32(config, on=True)
    assert rtx.allows_tf32(config)
    rtx.set_targets(config, (86, 120))
    assert config.num_compute_capabilities == 2
    kinds = [config.get_compute_capability(i) for i in range(2)]
    assert kinds == [trt.ComputeCapability.SM86, trt.ComputeCapability.SM120]


def test_what_is_no_plan_is_objected_to(rtx: VendorApi) -> None:
    """Seen without a driver, too."""
    assert rtx.engine_problem(rtx.create_runtime(), b"no plan" * 100) == "malformed engine"


def test_what_the_library_objects_to_is_named(rtx: VendorApi) -> None:
    kinds = trt.EngineInvalidityDiagnostics
    both = int(kinds.VERSION_MISMATCH) | int(kinds.UNSUPPORTED_CC)
    answer = (trt.EngineValidity.INVALID, both)
    runtime = SimpleNamespace(get_engine_validity=lambda plan: answer)
    assert rtx.engine_problem(runtime, b"") == "version mismatch, unsupported cc"
    answer = (trt.EngineValidity.INVALID, 0)
    assert rtx.engine_problem(runtime, b"") == "no reason given"
    answer = (trt.EngineValidity.SUBOPTIMAL, 0)
    assert rtx.engine_problem(runtime, b"") is None


class FakeCache:
    def __init__(self) -> None:
        self.content = b"compiled"

    def deserialize(self, blob: bytes) -> bool:
        return blob == b"fits"

    def serialize(self) -> bytes:
        return self.content


class FakeRuntimeConfig:
    takes_caches = True

    def __init__(self) -> None:
        self.cuda_graph_strategy: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self.kept: Any = None

    def create_runtime_cache(self) -> FakeCache:
        return FakeCache()

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        self.kept = cache
        return self.takes_caches


class FakeEngine:
    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()

    def create_execution_context(self, config: Any = "none given") -> tuple[str, Any]:
        return "context", config


@pytest.mark.parametrize(
    ("cache", "loaded"), [(b"fits", True), (b"stale", False), (b"", False), (None, False)]
)
def test_contexts_of_rtx_share_a_cache(rtx: VendorApi, cache: bytes | None, loaded: bool) -> None:
    made = rtx.create_runtime_config(FakeEngine(), cache)
    assert made.cache_loaded is loaded
    assert made.config.kept is made.cache
    assert made.config.cuda_graph_strategy == trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    kernels = made.config.dynamic_shapes_kernel_specialization_strategy
    assert kernels == trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert rtx.create_context(FakeEngine(), made) == ("context", made.config)
    assert rtx.cache_bytes(made) == b"compiled"


def test_a_cache_that_is_not_taken_is_done_without(
    rtx: VendorApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FakeRuntimeConfig, "takes_caches", False)
    made = rtx.create_runtime_config(FakeEngine(), b"fits")
    assert (made.cache, made.cache_loaded) == (None, False)
    assert rtx.cache_bytes(made) is None
    assert caplog.messages == [f"{rtx} takes no cache: kernels are compiled again at each start"]


def full(version: str) -> VendorApi:
    flags = SimpleNamespace(STRONGLY_TYPED=3)
    return VendorApi("tensorrt", SimpleNamespace(NetworkDefinitionCreationFlag=flags), version)


def test_full_tensorrt_has_none_of_that() -> None:
    vendor = full("11.4.0")
    assert vendor.buildable() == ()
    assert vendor.create_runtime_config(FakeEngine()) == RuntimeConfig()
    assert vendor.create_context(FakeEngine(), RuntimeConfig()) == ("context", "none given")
    assert vendor.cache_bytes(RuntimeConfig()) is None
    assert vendor.engine_problem(object(), b"") is None


@pytest.mark.parametrize(("version", "flags"), [("10.16.1", 8), ("11.4.0", 0)])
def test_tensorrt_10_is_asked_for_the_types_of_the_graph(version: str, flags: int) -> None:
    builder = SimpleNamespace(create_network=lambda flags: flags)
    assert full(version).create_network(builder) == flags


def test_an_unknown_name() -> None:
    assert (
        refused(lambda: load_vendor("trt"), InputError)
        == "builder is 'trt', expected one of: tensorrt-rtx, tensorrt"
    )


@pytest.mark.parametrize(
    ("name", "called"), [("tensorrt-rtx", "TensorRT-RTX"), ("tensorrt", "TensorRT")]
)
def test_not_installed(
    fresh: None, monkeypatch: pytest.MonkeyPatch, name: str, called: str
) -> None:
    monkeypatch.setattr(vendor_module, "find_spec", lambda name: None)
    assert refused(lambda: load_vendor(name), MissingExtraError) == (
        f'a {called} engine needs a package that is not installed: pip install "nmsfree[{name}]"'
    )


def test_installed_but_broken(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError("libnvinfer.so.11: cannot open\n shared object file")

    monkeypatch.setattr(vendor_module, "find_spec", lambda name: object())
    monkeypatch.setattr("importlib.import_module", fail)
    assert refused(lambda: load_vendor("tensorrt"), EngineError) == (
        "tensorrt is installed but cannot be loaded (libnvinfer.so.11: cannot open shared object "
        'file): install it again with pip install --force-reinstall "nmsfree[tensorrt]"'
    )


def test_too_old(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vendor_module, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))  # type: ignore[arg-type]
    assert refused(lambda: load_vendor("tensorrt"), EngineError) == (
        'tensorrt 8.6.1 found, 10 or newer expected: pip install "nmsfree[tensorrt]"'
    )


def test_plans_and_platforms() -> None:
    """TensorRT-RTX's plans go from Linux to Windows, TensorRT's do not."""
    assert same_platform("tensorrt-rtx", "Linux x86_64", "Windows x86_64")
    assert not same_platform("tensorrt-rtx", "Linux x86_64", "Linux aarch64")
    assert not same_platform("tensorrt", "Linux x86_64", "Windows x86_64")
    assert same_platform("tensorrt", "Linux x86_64", "Linux x86_64")


def test_the_real_logger_is_heard(rtx: VendorApi) -> None:
    severity = trt.ILogger.Severity
    with rtx.log.collect() as messages:
        rtx.logger.log(severity.WARNING, "w")
        rtx.logger.log(severity.ERROR, "e")
        rtx.logger.log(severity.INTERNAL_ERROR, "i")
        rtx.logger.log(severity.INFO, "not kept")
    assert [m.level for m in messages] == [logging.WARNING, logging.ERROR, logging.ERROR]
    assert reason(messages) == "e"


def test_an_error_that_nobody_waits_for_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    log = VendorLog()
    caplog.set_level(logging.DEBUG)
    log.add(1, "alone")
    log.add(2, "a warning to developers")
    with log.collect() as outer, log.collect() as inner:
        log.add(1, "awaited")
    levels = {record.message: record.levelno for record in caplog.records}
    assert levels == {
        "alone": logging.ERROR,
        "a warning to developers": logging.DEBUG,
        "awaited": logging.DEBUG,
    }
    assert outer == inner == [Message(logging.ERROR, "awaited")]


def test_reasons_are_one_short_line() -> None:
    said = (
        "[tacticSupply.cpp::getSupportedFormats::48] Error Code 2: Internal Error (Assertion "
        "!layerImpls.empty() failed. nms/nms_selected_147 has no runners that implement it In "
        "getSupportedFormats at /_src/optimizer/builder/tacticSupply.cpp:48)"
    )
    assert reason([Message(logging.WARNING, "w"), Message(logging.ERROR, said)]) == (
        "Internal Error (Assertion !layerImpls.empty() failed. nms/nms_selected_147 has no runners "
        "that implement it)"
    )
    said = (  # on a machine without a GPU
        "IRuntime::deserializeCudaEngine: Error Code 1: Cuda Runtime (In ScopedCudaStream at "
        "/_src/common/dispatch/cudaResources.cpp:25 (cudaError 35: CUDA driver version is "
        "insufficient for CUDA runtime version))"
    )
    assert reason([Message(logging.ERROR, said)]) == (
        "IRuntime::deserializeCudaEngine: Cuda Runtime (cudaError 35: CUDA driver version is "
        "insufficient for CUDA runtime version)"
    )
    assert reason([Message(logging.WARNING, "w")]) == "no reason given"
    assert len(reason([Message(logging.ERROR, "long " * 100)])) == LONGEST_REASON
