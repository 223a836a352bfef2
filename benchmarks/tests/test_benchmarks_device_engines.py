"""Engines of a device: opened as applications do, left out with the runtime's own reason."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nmsfree.backends.tensorrt.context import Timings
from nmsfree.datasets.digits.scenes import make_scene
from nmsfree.doctor.model import write_model
from nmsfree.errors import EngineError
from nmsfree.machine import Gpu, Gpus, computes_bf16, find_gpus, sha256
from nmsfree_benchmarks.common.engines import BF16_MISSING, build_here
from nmsfree_benchmarks.common.engines import ENGINES as OPENED
from nmsfree_benchmarks.machine.gpu import GpuState
from nmsfree_benchmarks.machine.gpu_watch import GpuWatch
from nmsfree_benchmarks.machine.measure import Plan, Stopwatch, take_turns
from nmsfree_benchmarks.table import entries as entries_module
from nmsfree_benchmarks.table.device_engines import DEVICES, DeviceEngine
from nmsfree_benchmarks.table.eager import CompiledBackend, Source, open_source
from nmsfree_benchmarks.table.entries import (
    Entry,
    all_calls,
    device_entries,
    eager_entries,
    torch_entries,
)
from nmsfree_benchmarks.table.group import Group
from nmsfree_benchmarks.table.onnx_engine import TimedBackend
from nmsfree_benchmarks.table.rows import ENGINES, SHORT_ENGINES, Row
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_export.verify.parity import compare, load_images
from nmsfree_training.model.detector import Prediction

WEIGHTS = Path(__file__).parents[2] / "weights"
SCENES = [make_scene("val", i).image for i in range(3)]
NO_GPU = pytest.mark.skipif(not find_gpus().problem, reason="this machine has a GPU")


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source(WEIGHTS / "fcos_rt_nano.safetensors", "digits")


@pytest.fixture(scope="module")
def file(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines") / "rt.onnx"
    export_onnx(source.checkpoint, path, ExportOptions())
    return path


@pytest.fixture(scope="module")
def made(source: Source, file: Path) -> Iterator[tuple[list[Entry], dict[str, str], Stopwatch]]:
    """INT8 is left out: here no file is made for it."""
    watch = Stopwatch()
    wanted = [e.wanted(source) for e in DEVICES["cpu"] if e.precision == "fp32"]
    entries, refused = device_entries(
        source, DEVICES["cpu"], {w.name: file for w in wanted}, watch, 1
    )
    yield entries, refused, watch
    for entry in entries:
        entry.detector.close()


def test_what_runs_is_opened_and_the_rest_is_explained(
    made: tuple[list[Entry], dict[str, str], Stopwatch], file: Path
) -> None:
    entries, refused, _ = made
    keys = [entry.engine for entry in entries]
    if computes_bf16():
        assert keys == ["openvino", "openvino_bf16"] and refused == {}
        assert entries[1].state == {"precision": "bf16"}
    else:
        assert keys == ["openvino"] and refused == {"openvino_bf16": BF16_MISSING}
    assert entries[0].provider.startswith("OpenVINO") and entries[0].state == {}
    assert entries[0].sha256 == sha256(file) and entries[0].name == "fcos_rt_nano openvino"


def test_they_are_timed_whole_and_bare(
    made: tuple[list[Entry], dict[str, str], Stopwatch],
) -> None:
    entries, _, watch = made
    calls = all_calls(entries[:1], watch)
    assert list(calls) == ["fcos_rt_nano openvino", "fcos_rt_nano openvino bare"]
    times = take_turns(calls, SCENES, Plan(seconds=0, min_rounds=2, pause=0))
    assert [t.shape for t in times.values()] == [(2, 3), (2, 1)]
    assert all((t > 0).any(axis=0).all() for t in times.values())
    entry, (whole, bare) = entries[0], times.values()
    row = Row(
        entry.engine,
        "digits",
        entry.detector.spec,
        entry.sha256,
        whole,
        bare=bare,
        provider=entry.provider,
        state={"precision": "bf16", "tf32": False},
    )
    record, alone = row.records()
    assert record.parts == ("preprocess", "graph", "to_source")
    assert alone.name == "fcos_rt_nano openvino bare"
    assert record.subject is not None
    assert (record.subject.precision, record.subject.tf32) == ("bf16", False)


def test_eager_rows_count_what_enters_nms(
    source: Source, made: tuple[list[Entry], dict[str, str], Stopwatch]
) -> None:
    entries = eager_entries(source, made[0][0].detector, SCENES, Stopwatch())
    loads = {entry.engine: entry.nms_candidates or 0 for entry in entries}
    assert list(loads) == ["eager_timing", "eager_evaluation", "eager_two_stage"]
    # The timing settings let less through: a higher floor, fewer of each level.
    assert 0 < loads["eager_timing"] < loads["eager_evaluation"] == loads["eager_two_stage"]


def test_a_compiled_network_says_the_same(source: Source) -> None:
    """With dynamo, but without a C++ compiler: graphs are captured, and run as they are."""
    watch = Stopwatch()
    compiled = CompiledBackend(source, watch, "cpu", compiler="eager")
    eager = eager_backend(source)
    watch.start()
    assert compare(eager, compiled, load_images(None)[:2]).passed
    assert len(watch.laps()) == 4  # two marks in each of two runs
    assert "torch.compile (eager)" in compiled.description


def eager_backend(source: Source) -> CompiledBackend:
    """The same backend around a network that is not compiled."""
    backend = CompiledBackend(source, Stopwatch(), "cpu", compiler="eager")
    backend._compiled = source.checkpoint.build()
    return backend


@NO_GPU
def test_without_a_gpu_every_engine_says_so(source: Source, file: Path) -> None:
    files = {engine.wanted(source).name: file for engine in DEVICES["cuda"]}
    entries, refused = device_entries(source, DEVICES["cuda"], files, Stopwatch(), 1)
    assert entries == []
    assert list(refused) == [engine.key for engine in DEVICES["cuda"]]
    for reason in refused.values():
        assert "driver" in reason or "GPU" in reason or "pip install" in reason


def test_a_gpus_state_is_told() -> None:
    class Opened:
        description = "ONNX Runtime 1 CUDA, TF32 off, no CUDA graph"

    def state(key: str, precision: str = "fp32") -> dict[str, Any]:
        return OPENED[key].state(Opened(), precision)  # type: ignore[arg-type]

    off = {"tf32": False, "transfers": "in and out", "cuda_graph": False}
    assert state("onnxruntime_cuda") == off
    Opened.description = "TensorRT-RTX 1 on a GPU, CUDA graph"
    assert state("tensorrt_rtx")["cuda_graph"] is True
    Opened.description = "ONNX Runtime 1 TensorRT-RTX"
    assert state("tensorrt_rtx")["cuda_graph"] is None
    assert state("openvino_bf16", "fp16") == {"precision": "bf16"}
    assert state("openvino_bf16", "int8") == {}


def test_every_engine_has_its_names() -> None:
    assert set(SHORT_ENGINES) == set(ENGINES)
    assert max(map(len, SHORT_ENGINES.values())) <= 17
    assert len(set(ENGINES.values())) == len(ENGINES)


def test_files_are_exported_in_every_precision_that_is_run(source: Source) -> None:
    def kinds(engines: tuple[DeviceEngine, ...]) -> list[tuple[str, str | None]]:
        group = Group("nano", [source], [], None, (), engines)
        return [(wanted.precision, wanted.target) for wanted in group.wanted]

    assert kinds(()) == [("fp32", None)]
    assert kinds(DEVICES["cpu"]) == [("fp32", None), ("int8", "cpu")]
    assert kinds(DEVICES["cuda"]) == [("fp32", None), ("fp16", None), ("int8", "tensorrt")]


def test_bf16_is_not_emulated(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr("nmsfree_benchmarks.common.engines.computes_bf16", lambda: False)
    with pytest.raises(EngineError, match=r"^the processor has no bfloat16 arithmetic"):
        OPENED["openvino_bf16"].open(file, 1)


def test_every_throttling_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(
        [
            GpuState(throttled=("temperature",), clock_mhz=2400),
            GpuState(throttled=("power cap",), clock_mhz=1800),
            GpuState(clock_mhz=2100),
        ]
    )
    monkeypatch.setattr("nmsfree_benchmarks.machine.gpu_watch.gpu_state", lambda _: next(states))
    gpu = GpuWatch(on=True)
    assert gpu.to_json() == {}
    for _ in range(3):
        gpu.look()
    found = gpu.to_json()
    assert found["gpu_throttled"] == ["power cap", "temperature"]
    assert found["gpu_clock_mhz"] == {"lowest": 1800, "median": 2100}
    assert found["gpu_state"]["throttled"] == []


def test_without_a_gpu_nobody_looks() -> None:
    idle = GpuWatch(on=False)
    idle.look()
    assert idle.to_json() == {}


@NO_GPU
def test_pytorch_without_cuda_leaves_the_other_engines_their_turn(
    source: Source, made: tuple[list[Entry], dict[str, str], Stopwatch]
) -> None:
    onnx = made[0][0].detector
    entries, refused = torch_entries(source, onnx, SCENES, Stopwatch(), "cuda")
    assert entries == []
    assert list(refused) == ["eager", "compiled"]
    assert all("PyTorch sees no GPU" in reason for reason in refused.values())


def test_a_compiler_that_fails_is_left_out(
    source: Source,
    made: tuple[list[Entry], dict[str, str], Stopwatch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(CompiledBackend):
        def predict(self, images: NDArray[np.uint8]) -> Prediction:
            raise RuntimeError("no C compiler\n found")

    monkeypatch.setattr(entries_module, "CompiledBackend", Broken)
    onnx = made[0][0].detector
    entries, refused = torch_entries(source, onnx, SCENES, Stopwatch(), "cpu")
    assert [entry.engine for entry in entries] == [
        "eager_timing",
        "eager_evaluation",
        "eager_two_stage",
    ]
    assert refused == {"compiled": "RuntimeError: no C compiler found"}


def test_a_native_engine_tells_its_stages(
    made: tuple[list[Entry], dict[str, str], Stopwatch],
) -> None:
    class Native:
        """A backend that times its own stages, as TensorRT's does."""

        spec = made[0][0].detector.spec
        description = "native"
        runs = 0

        def run(self, images: object) -> object:
            self.runs += 1
            return images

        def timings(self) -> Timings | None:
            return Timings(h2d=0.1 * self.runs, network=2.0, d2h=0.05)

    watch = Stopwatch()
    timed = TimedBackend(Native(), watch)  # type: ignore[arg-type]
    assert timed.stages() == {}
    watch.start()
    for _ in range(3):
        timed.run(np.zeros((1, 8, 8, 3), np.uint8))
    assert timed.stages() == {"h2d_ms": 0.2, "network_ms": 2.0, "d2h_ms": 0.05, "nms_ms": 0.0}
    assert made[0][0].stages() == {}  # OpenVINO tells none


def test_an_engine_is_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the real builder, which needs no GPU; another file or GPU gets an engine of its own."""
    pytest.importorskip("tensorrt_rtx")

    def gpu(*capability: int) -> Gpus:
        return Gpus((Gpu("of a test", (capability[0], capability[1]), 0),), "13.1", "")

    monkeypatch.setattr("nmsfree_benchmarks.common.engines.find_gpus", lambda: gpu(8, 9))
    onnx = write_model(tmp_path)
    engine = build_here(onnx)
    first = engine.stat().st_mtime_ns
    assert build_here(onnx).stat().st_mtime_ns == first
    monkeypatch.setattr("nmsfree_benchmarks.common.engines.find_gpus", lambda: gpu(8, 6))
    second = build_here(onnx).stat().st_mtime_ns
    assert second > first
    onnx.write_bytes(onnx.read_bytes() + b"\x72\x00")  # an empty metadata entry
    assert build_here(onnx).stat().st_mtime_ns > second
    with pytest.raises(EngineError, match=r"^GPU 1 was asked for, this machine has 1$"):
        build_here(onnx, 1)
