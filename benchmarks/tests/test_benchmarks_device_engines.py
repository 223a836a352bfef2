"""Engines of a device: opened as applications do, left out with the runtime's own reason."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks_sample import record_of
from numpy.typing import NDArray

from nmsfree.backends.tensorrt.context import Timings
from nmsfree.datasets.digits.scenes import make_scene
from nmsfree.doctor.model import write_model
from nmsfree.errors import EngineError
from nmsfree.machine import Gpu, Gpus, computes_bf16, find_gpus, sha256
from nmsfree_benchmarks.harness.engines import BF16_MISSING, ENGINES, build_here
from nmsfree_benchmarks.harness.gpu import GpuState, GpuWatch
from nmsfree_benchmarks.harness.records import Record
from nmsfree_benchmarks.harness.run import Run
from nmsfree_benchmarks.harness.subject import Subject, TimedBackend
from nmsfree_benchmarks.harness.timer import Plan, Stopwatch, take_turns
from nmsfree_benchmarks.harness.weights import Weights, open_weights
from nmsfree_benchmarks.questions.models import Options, eager
from nmsfree_benchmarks.questions.models.eager import CompiledBackend
from nmsfree_benchmarks.questions.models.question import (
    Group,
    Row,
    eager_rows,
    open_rows,
    others_of,
    records_of,
    torch_rows,
)
from nmsfree_benchmarks.questions.models.summary import NAMES, OTHERS
from nmsfree_export.verify.parity import compare, load_images
from nmsfree_training.loop.probe import use_threads
from nmsfree_training.model.detector import Prediction

WEIGHTS = Path(__file__).parents[2] / "weights"
SCENES = [make_scene("val", i).image for i in range(3)]
NO_GPU = pytest.mark.skipif(not find_gpus().problem, reason="this machine has a GPU")


@pytest.fixture(scope="module")
def weights() -> Weights:
    return open_weights(WEIGHTS / "fcos_rt_nano.safetensors", "digits")


@pytest.fixture(scope="module")
def file(weights: Weights, exported: Callable[..., Path]) -> Path:
    return exported(weights)


class Opened(Run):
    """A run whose files are all the one that is there."""

    def __init__(self, options: Options, file: Path, stack: ExitStack) -> None:
        self.options, self.stack, self.skipped = options, stack, {}
        self.there = file

    def export(self, subjects: Any, what: str = "export") -> list[Subject]:
        for subject in subjects:
            subject.file = self.there
        return [subject for subject in subjects if subject.precision == "fp32"]


@pytest.fixture(scope="module")
def made(weights: Weights, file: Path) -> Iterator[tuple[list[Row], Run]]:
    """INT8 is left out: here no file is made for it."""
    with ExitStack() as stack:
        options = Options(threads=1)
        run = Opened(options, file, stack)
        group = Group("nano", [weights], SCENES, None, ("onnxruntime",))
        yield open_rows(group, run), run


def test_what_runs_is_opened_and_the_rest_is_explained(
    made: tuple[list[Row], Run], file: Path
) -> None:
    rows, run = made
    keys = [row.subject.engine.key for row in rows]
    if computes_bf16():
        assert keys == ["onnxruntime", "openvino", "openvino_bf16"] and run.skipped == {}
        assert rows[2].subject.state().precision == "bf16"
    else:
        assert keys == ["onnxruntime", "openvino"]
        assert run.skipped == {"openvino_bf16": BF16_MISSING}
    state = rows[1].subject.state()
    assert state.provider.startswith("OpenVINO") and state.precision == "fp32"
    assert state.sha256 == sha256(file) and rows[1].name == "fcos_rt_nano openvino"


def test_they_are_timed_whole_bare_and_in_parts(made: tuple[list[Row], Run]) -> None:
    first, second = made[0][:2]
    calls = first.calls() | second.calls()
    names = ("onnxruntime", "onnxruntime in graph", "onnxruntime bare", "openvino", "openvino bare")
    assert list(calls) == [f"fcos_rt_nano {name}" for name in names]
    times = take_turns(calls, SCENES, Plan(seconds=0, min_rounds=2, pause=0))
    assert [t.shape for t in times.values()] == [(2, 3), (2, 1), (2, 1), (2, 3), (2, 1)]
    assert all((t > 0).any(axis=0).all() for t in times.values())
    record, alone = records_of(second, times, lambda graph, precision: 1e-3)
    assert record.parts == ("preprocess", "graph", "to_source")
    assert alone.name == "fcos_rt_nano openvino bare"
    share = 1e-3 / alone.summary.p50
    assert record.figures["share_of_limit"] == pytest.approx(share, abs=1e-4)
    assert record.figures["limit_ms"] == 0.001
    beaten = next(records_of(second, times, lambda graph, precision: 1e6)).figures
    assert beaten["share_of_limit"] is None and "faster than" in beaten["share_of_limit_is_empty"]
    assert "limit_ms" not in next(records_of(second, times, lambda *_: None)).figures


def test_eager_rows_count_what_enters_nms(made: tuple[list[Row], Run]) -> None:
    rows, run = made
    group = Group("nano", [], SCENES, None, ())
    found = eager_rows(rows[0].subject, group, run, "cpu")
    loads = {row.subject.engine.key: row.figures["nms_candidates"] for row in found}
    assert list(loads) == ["eager_timing", "eager_evaluation", "eager_two_stage"]
    # The timing settings let less through: a higher floor, fewer of each level.
    assert 0 < loads["eager_timing"] < loads["eager_evaluation"] == loads["eager_two_stage"]
    assert rows[0].figures["nms_candidates"] == loads["eager_evaluation"]


def test_a_compiled_network_says_the_same(weights: Weights) -> None:
    """With dynamo, but without a C++ compiler: graphs are captured, and run as they are."""
    watch = Stopwatch()
    compiled = CompiledBackend(weights, watch, "cpu", compiler="eager")
    plain = CompiledBackend(weights, Stopwatch(), "cpu", compiler="eager")
    plain._compiled = weights.checkpoint.build()
    watch.start()
    assert compare(plain, compiled, load_images(None)[:2]).passed
    assert len(watch.laps()) == 4  # two marks in each of two runs
    assert "torch.compile (eager)" in compiled.describe()


@NO_GPU
def test_without_a_gpu_every_engine_says_so(weights: Weights, file: Path) -> None:
    group = Group("nano", [weights], SCENES, None, ())
    with ExitStack() as stack:
        options = Options(threads=1, device="cuda")
        run = Opened(options, file, stack)
        assert open_rows(group, run) == []
    wanted = [key for key, precision in OTHERS["cuda"] if precision == "fp32"]
    assert list(run.skipped) == ["eager", "compiled", *wanted]
    for reason in run.skipped.values():
        assert "driver" in reason or "GPU" in reason or "pip install" in reason


def test_a_gpus_state_is_told() -> None:
    class Described:
        said = "ONNX Runtime 1 CUDA, TF32 off, no CUDA graph"

        def describe(self) -> str:
            return self.said

    def state(key: str, precision: str = "fp32") -> dict[str, Any]:
        return ENGINES[key].state(Described(), precision)  # type: ignore[arg-type]

    off = {"tf32": False, "transfers": "in and out", "cuda_graph": False}
    assert state("onnxruntime_cuda") == {"engine": "onnxruntime_cuda"} | off
    Described.said = "TensorRT-RTX 1 on a GPU, CUDA graph"
    assert state("tensorrt_rtx")["cuda_graph"] is True
    Described.said = "ONNX Runtime 1 TensorRT-RTX"
    assert state("tensorrt_rtx")["cuda_graph"] is None
    assert state("openvino_bf16", "fp16")["precision"] == "bf16"
    assert "precision" not in state("openvino_bf16", "int8")


def test_every_row_has_names_of_its_own() -> None:
    assert all(len(set(names)) == len(NAMES) for names in zip(*NAMES.values(), strict=True))


def test_files_are_exported_in_every_precision_that_is_run(weights: Weights) -> None:
    def kinds(options: Options) -> list[tuple[str, str | None]]:
        subjects = [Subject(weights, e, 1, precision) for e, precision in others_of(options)]
        return list(dict.fromkeys((s.precision, s.target) for s in subjects))

    assert kinds(Options(quick=True)) == []
    assert kinds(Options()) == [("fp32", None), ("int8", "cpu")]
    cuda = [("fp32", None), ("fp16", None), ("int8", "tensorrt")]
    assert kinds(Options(device="cuda")) == kinds(Options(device="cuda", quick=True)) == cuda


def test_bf16_is_not_emulated(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr("nmsfree_benchmarks.harness.engines.computes_bf16", lambda: False)
    with pytest.raises(EngineError, match=r"^the processor has no bfloat16 arithmetic"):
        ENGINES["openvino_bf16"].open(file, 1)


def test_every_throttling_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [(("temperature",), 2400), (("power cap",), 1800), ((), 2100)]
    states = iter([GpuState(throttled=why, clock_mhz=clock) for why, clock in seen])
    monkeypatch.setattr("nmsfree_benchmarks.harness.gpu.gpu_state", lambda _: next(states))
    gpu = GpuWatch(on=True)
    assert gpu.to_json() == {}
    for _ in range(3):
        gpu.look()
    found = gpu.to_json()
    assert found["gpu_throttled"] == ["power cap", "temperature"]
    assert found["gpu_clock_mhz"] == {"lowest": 1800, "median": 2100}
    assert found["gpu_state"]["throttled"] == []
    idle = GpuWatch(on=False)
    idle.look()
    assert idle.to_json() == {}


def test_what_the_gpu_did_meanwhile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though records are measured one by one, while the results are put together."""
    hot = GpuState(throttled=("temperature",))
    monkeypatch.setattr("nmsfree_benchmarks.harness.gpu.gpu_state", lambda _: hot)
    with use_threads(1), ExitStack() as stack:
        run = Run(Options(threads=1), lambda *_: None, stack)
        run.gpu = GpuWatch(on=True)

        def measure() -> Iterator[Record]:
            run.gpu.look()
            yield record_of("a", 1)

        found = run.results("table", "nmsfree bench", measure())
    assert found.environment["gpu_throttled"] == ["temperature"]


def test_a_compiler_that_fails_is_left_out(
    made: tuple[list[Row], Run], monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    class Broken(CompiledBackend):
        def predict(self, images: NDArray[np.uint8]) -> Prediction:
            raise RuntimeError("no C compiler\n found")

    monkeypatch.setattr(eager, "CompiledBackend", Broken)
    group = Group("nano", [], SCENES, None, ())
    with ExitStack() as stack:
        run = Opened(Options(threads=1), file, stack)
        subject = Subject(made[0][0].subject.weights, ENGINES["onnxruntime"], 1, file=file)
        rows = torch_rows(subject, group, run, "cpu")
    keys = [row.subject.engine.key for row in rows]
    assert keys == ["eager_timing", "eager_evaluation", "eager_two_stage"]
    assert run.skipped == {"compiled": "RuntimeError: no C compiler found"}


def test_a_native_engine_tells_its_stages(made: tuple[list[Row], Run]) -> None:
    class Native:
        """A backend that times its own stages, as TensorRT's does."""

        spec = made[0][0].subject.detector.spec

        def describe(self) -> str:
            return "native"

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
    assert timed.stages() == {"h2d_ms": 0.2, "network_ms": 2.0, "d2h_ms": 0.05}
    assert made[0][1].subject.stages() == {}  # OpenVINO tells none


def test_an_engine_is_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the real builder, which needs no GPU; another file or GPU gets an engine of its own."""
    pytest.importorskip("tensorrt_rtx")

    def gpu(*capability: int) -> Gpus:
        return Gpus((Gpu("of a test", (capability[0], capability[1]), 0),), "13.1", "")

    monkeypatch.setattr("nmsfree_benchmarks.harness.engines.find_gpus", lambda: gpu(8, 9))
    onnx = write_model(tmp_path)
    engine = build_here(onnx)
    first = engine.stat().st_mtime_ns
    assert build_here(onnx).stat().st_mtime_ns == first
    monkeypatch.setattr("nmsfree_benchmarks.harness.engines.find_gpus", lambda: gpu(8, 6))
    second = build_here(onnx).stat().st_mtime_ns
    assert second > first
    onnx.write_bytes(onnx.read_bytes() + b"\x72\x00")  # an empty metadata entry
    assert build_here(onnx).stat().st_mtime_ns > second
    with pytest.raises(EngineError, match=r"^GPU 1 was asked for, but the NVIDIA GPUs here are: "):
        build_here(onnx, 1)
