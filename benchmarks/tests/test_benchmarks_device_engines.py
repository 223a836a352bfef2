"""Engines of a device: opened as applications do, left out with the runtime's own reason."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nmsfree.data.digits import make_scene
from nmsfree.errors import EngineError
from nmsfree.gpus import find_gpus
from nmsfree.identity import computes_bf16, sha256
from nmsfree_benchmarks.machine.gpu import GpuState
from nmsfree_benchmarks.machine.measure import Plan, Stopwatch, take_turns
from nmsfree_benchmarks.table.device_engines import ALL, BF16_MISSING, DEVICES
from nmsfree_benchmarks.table.eager import CompiledBackend, Source, open_source
from nmsfree_benchmarks.table.entries import Entry, all_calls, device_entries, eager_entries
from nmsfree_benchmarks.table.group import Group
from nmsfree_benchmarks.table.rows import ENGINES, Row
from nmsfree_benchmarks.table.suite import gpu_after
from nmsfree_benchmarks.table.tables import SHORT_ENGINES
from nmsfree_export.export import ExportOptions, export_onnx
from nmsfree_export.parity import compare, load_images

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
    watch = Stopwatch()
    entries, refused = device_entries(source, DEVICES["cpu"], lambda s, p: file, watch, 1)
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
    entries, refused = device_entries(source, DEVICES["cuda"], lambda s, p: file, Stopwatch(), 1)
    assert entries == []
    assert list(refused) == [engine.key for engine in DEVICES["cuda"]]
    for reason in refused.values():
        assert "driver" in reason or "GPU" in reason or "pip install" in reason


def test_a_gpus_state_is_told() -> None:
    class Opened:
        description = "ONNX Runtime 1 CUDA, TF32 off, no CUDA graph"

    state = ALL["onnxruntime_cuda"].state(Opened())  # type: ignore[arg-type]
    assert state == {"tf32": False, "transfers": "in and out", "cuda_graph": False}
    Opened.description = "TensorRT-RTX 1 on a GPU, CUDA graph"
    assert ALL["tensorrt_rtx"].state(Opened())["cuda_graph"] is True  # type: ignore[arg-type]


def test_every_engine_has_its_names() -> None:
    assert set(SHORT_ENGINES) == set(ENGINES)
    assert max(map(len, SHORT_ENGINES.values())) <= 17
    assert len(set(ENGINES.values())) == len(ENGINES)


def test_files_are_exported_in_every_precision_that_is_run() -> None:
    plain = Group("nano", [], [], None, ())
    assert plain.precisions == ["fp32"]
    gpu = Group("nano", [], [], None, (), DEVICES["cuda"])
    assert gpu.precisions == ["fp32", "fp16"]


def test_bf16_is_not_emulated(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr("nmsfree_benchmarks.table.device_engines.computes_bf16", lambda: False)
    with pytest.raises(EngineError, match=r"^the processor has no bfloat16 arithmetic"):
        ALL["openvino_bf16"].open(file, 1)


def test_every_throttling_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter([GpuState(throttled=("temperature",)), GpuState(throttled=("power cap",))])
    monkeypatch.setattr("nmsfree_benchmarks.table.suite.gpu_state", lambda: next(states))
    first = gpu_after({})
    both = gpu_after(first)
    assert first["gpu_throttled"] == ["temperature"]
    assert both["gpu_throttled"] == ["power cap", "temperature"]
    assert both["gpu_state"]["throttled"] == ["power cap"]
