"""Roofline: what is counted in a graph, limits, peaks, a datasheet, and a whole run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from benchmarks_sample import record_of, subject_of, times_of
from onnx import ModelProto, TensorProto, helper

from nmsfree.errors import EngineError, InputError, ModelError
from nmsfree_benchmarks.harness.graphs import load_model
from nmsfree_benchmarks.harness.records import State
from nmsfree_benchmarks.harness.timer import Plan, Times, slots, take_turns
from nmsfree_benchmarks.questions.roofline import layer_times, share_text
from nmsfree_benchmarks.roofline import peaks
from nmsfree_benchmarks.roofline.graph import Layer, count_layers
from nmsfree_benchmarks.roofline.limits import (
    PUBLISHED_SIZE,
    RTX_4060_FLOPS,
    Limit,
    limit_figures,
    limit_of,
)
from nmsfree_benchmarks.roofline.peaks import Peaks, Probe, read_peaks
from nmsfree_training.config import preset
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.card import gmac

Run = Callable[..., tuple[Path, dict[str, Any]]]
PEAKS = Peaks({"fp32": 100e9, "int8": 400e9}, ((1000, 50e9), (10**9, 10e9)))


def weights(name: str, *shape: int, kind: Any = np.float32) -> TensorProto:
    return onnx.numpy_helper.from_array(np.ones(shape, kind), name)


def model_of(nodes: list[Any], initialisers: list[TensorProto], batch: Any = 1) -> ModelProto:
    """A graph from x float32 [batch, 4, 8, 8] to y."""
    info = helper.make_tensor_value_info
    x = info("x", TensorProto.FLOAT, [batch, 4, 8, 8])
    graph = helper.make_graph(nodes, "g", [x], [info("y", TensorProto.FLOAT, None)], initialisers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def conv(a: str, w: str, b: str, **attributes: Any) -> Any:
    return helper.make_node("Conv", [a, w], [b], name=f"to_{b}", pads=[1, 1, 1, 1], **attributes)


def test_a_convolution_is_counted_by_its_shapes() -> None:
    (layer,) = count_layers(model_of([conv("x", "w", "y")], [weights("w", 16, 4, 3, 3)]))
    assert layer.macs == 16 * 8 * 8 * 4 * 3 * 3
    assert layer.flop == 2 * layer.macs
    assert layer.weight_bytes == 4 * 16 * 4 * 9
    assert (layer.read_bytes, layer.written_bytes) == (4 * 4 * 64, 4 * 16 * 64)
    assert layer.intensity == layer.flop / layer.bytes
    assert (layer.name, layer.kind, layer.precision) == ("to_y", "Conv", "fp32")


def test_groups_strides_and_batches_are_counted() -> None:
    grouped = model_of([conv("x", "w", "y", group=4, strides=[2, 2])], [weights("w", 4, 1, 3, 3)])
    assert count_layers(grouped)[0].macs == 4 * 4 * 4 * 9
    free = model_of([conv("x", "w", "y")], [weights("w", 16, 4, 3, 3)], batch="N")
    one, five = (count_layers(free, batch)[0] for batch in (1, 5))
    assert five.macs == 5 * one.macs
    assert five.weight_bytes == one.weight_bytes


def test_shapes_that_are_computed_of_constants_are_known() -> None:
    pads = onnx.numpy_helper.from_array(np.array([[0, 0], [0, 0], [1, 1], [1, 1]]), "pairs")
    nodes = [
        helper.make_node("Transpose", ["pairs"], ["sides"], perm=[1, 0]),
        helper.make_node("Reshape", ["sides", "flat"], ["pads"]),
        helper.make_node("Pad", ["x", "pads"], ["a"]),
        conv("a", "w", "y"),
    ]
    flat = onnx.numpy_helper.from_array(np.array([8]), "flat")
    model = model_of(nodes, [weights("w", 16, 4, 3, 3), pads, flat], batch="N")
    with pytest.raises(ModelError, match="its shape is not known"):
        count_layers(model)
    limit = limit_of(model, PEAKS, batch=2)
    assert limit.macs == 2 * 16 * 10 * 10 * 4 * 3 * 3


def test_what_works_element_by_element_joins_its_convolution() -> None:
    nodes = [
        conv("x", "w", "a"),
        helper.make_node("Add", ["a", "x"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    (layer,) = count_layers(model_of(nodes, [weights("w", 4, 4, 3, 3)]))
    assert (layer.read_bytes, layer.written_bytes) == (4 * 4 * 64, 4 * 4 * 64)  # x once
    assert {"to_a", "a", "b", "y"} <= layer.names


def test_a_result_with_two_readers_is_written() -> None:
    nodes = [
        conv("x", "w", "a"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    first, *others = count_layers(model_of(nodes, [weights("w", 4, 4, 3, 3)]))
    assert first.written_bytes == 4 * 4 * 64
    assert len(others) == 1  # the two elementwise ones join each other
    assert others[0].read_bytes == 4 * 4 * 64


def test_views_cost_nothing_and_picking_only_what_is_picked() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["a"]),
        helper.make_node("Gather", ["a", "index"], ["y"], axis=1),
    ]
    shape = onnx.numpy_helper.from_array(np.array([1, 256]), "shape")
    index = onnx.numpy_helper.from_array(np.array([0, 1]), "index")
    (layer,) = count_layers(model_of(nodes, [shape, index]))
    assert layer.kind == "Gather"
    assert (layer.read_bytes, layer.written_bytes) == (8, 8)
    assert layer.weight_bytes == 16  # the index, int64
    assert layer.macs == 0 and layer.intensity == 0


def test_products_are_counted() -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Gemm", ["b", "v"], ["y"], transB=1),
    ]
    found = count_layers(model_of(nodes, [weights("w", 256, 10), weights("v", 3, 10)]))
    assert [layer.macs for layer in found] == [256 * 10, 10 * 3]


def test_quantized_layers_are_those_of_one_byte() -> None:
    scale = weights("s")
    zero = onnx.numpy_helper.from_array(np.array(0, np.int8), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["dw"]),
        conv("d", "dw", "a"),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"]),
    ]
    initialisers = [scale, zero, weights("w", 16, 4, 3, 3, kind=np.int8)]
    _, layer = count_layers(model_of(nodes, initialisers))
    assert layer.precision == "int8"
    assert layer.macs == 16 * 64 * 36
    assert layer.weight_bytes == 16 * 36 + 5  # and the scale and zero point of its output
    assert (layer.read_bytes, layer.written_bytes) == (4 * 64, 16 * 64)


def test_a_convolution_of_unknown_shape_is_refused(tmp_path: Path) -> None:
    model = model_of([conv("x", "w", "y")], [weights("w", 16, 4, 3, 3)])
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    with pytest.raises(ModelError, match="Conv to_y: its shape is not known, expected fixed ones"):
        count_layers(model)
    (tmp_path / "a.onnx").write_bytes(b"no model at all")
    for name, reason in (("a.onnx", "not ONNX"), ("b.onnx", "No such file")):
        with pytest.raises(ModelError, match=f"{reason}.*expected an ONNX file"):
            load_model(tmp_path / name)


def layer_of(macs: int, moved: int, precision: str = "fp32") -> Layer:
    return Layer("a", "Conv", precision, macs, 0, moved, 0)


def test_a_layer_takes_as_long_as_the_slower_of_arithmetic_and_memory() -> None:
    computing, moving = layer_of(50_000_000, 1000), layer_of(1000, 10_000_000)
    limit = Limit((computing, moving), PEAKS)
    assert limit.layer_ms(computing) == pytest.approx(1.0)  # 100 MFLOP at 100 GFLOP/s
    assert limit.layer_ms(moving) == pytest.approx(1.0)  # 10 MB at 10 GB/s
    assert limit.ms == pytest.approx(2.0)
    assert limit.computing == pytest.approx(0.5)
    assert limit.whole_ms == pytest.approx(1.0, rel=0.01)  # both at once
    assert limit.whole_ms <= limit.ms


def test_small_copies_and_int8_have_peaks_of_their_own() -> None:
    assert PEAKS.bandwidth(1000) == 50e9
    assert PEAKS.bandwidth(1001) == 10e9
    assert PEAKS.bandwidth(10**12) == 10e9
    assert PEAKS.flops_of("int8") == 400e9
    assert PEAKS.flops_of("fp16") == 100e9  # computed in FP32 where there is nothing else


def test_a_peak_is_the_fastest_call_of_the_fastest_probe() -> None:
    probes = [
        Probe("slow", lambda _: (1,), 10**9, "fp32"),
        Probe("fast", lambda _: (1,), 10**9, "fp32"),
        Probe("copy", lambda _: (1,), 10**6, repeats=3),
    ]
    ms = np.array([[4], [2], [9]]) * 1_000_000
    found = read_peaks(probes, {"slow": ms * 2, "fast": ms, "copy": ms})
    assert found.flops == {"fp32": pytest.approx(500e9)}
    ((moved, rate),) = found.copies
    assert moved == 10**6
    assert rate == pytest.approx(1.5e9)
    assert probes[1].record(ms).figures == {"gflop_per_s": 500}
    assert probes[2].record(ms).figures == {"gb_per_s": 1.5}


def test_the_faster_of_two_measurements_counts() -> None:
    slow = Peaks({"fp32": 1e9, "int8": 9e9}, ((1, 5e9), (8, 2e9)))
    fast = Peaks({"fp32": 2e9, "bf16": 3e9}, ((8, 1e9), (64, 7e9)))
    assert slow.or_faster(fast) == Peaks(
        {"fp32": 2e9, "int8": 9e9, "bf16": 3e9}, ((1, 5e9), (8, 2e9), (64, 7e9))
    )
    assert slow.or_faster(fast) == fast.or_faster(slow)


def test_the_processor_has_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "SIDES", (256,))
    monkeypatch.setattr(peaks, "COPIED_MIB", (1,))
    probes, skipped = peaks.cpu_probes(1)
    plan = Plan(seconds=0, min_rounds=2, pause=0)
    calls = {probe.name: probe.call for probe in probes}
    found = read_peaks(probes, take_turns(calls, slots(1), plan))
    assert set(found.flops) - {"bf16"} == {"fp32", "int8"}
    assert all(rate > 1e6 for rate in found.flops.values())
    assert found.copies[0][0] == 2**20
    kinds = {probe.precision for probe in probes}
    assert ("bf16" in kinds) != ("bf16" in skipped)


def figures_of(state: State, times: Times, limit: Limit, **profiled: float) -> dict[str, Any]:
    return limit_figures(state, times.sum(axis=1, keepdims=True), limit, profiled)


def test_the_rtx_4060_by_its_datasheet() -> None:
    """56.5 GMAC are 113 GFLOP: 7.5 ms, 134 FPS at most, of which 56 FPS are 42 %."""
    assert pytest.approx(15.1e12, rel=0.002) == RTX_4060_FLOPS
    chosen = preset("fcos_e2e_r18_3x")
    macs = round(1e9 * gmac(Fcos(chosen.model), PUBLISHED_SIZE))
    assert macs / 1e9 == pytest.approx(56.5, abs=0.05)
    limit = Limit((layer_of(macs, 1000),), PEAKS)
    subject = subject_of("fcos_e2e_r18_3x", size=(512, 736))
    there = figures_of(subject, times_of(300), limit)["datasheet"]
    assert there["computed_not_measured"] is True
    assert there["gflop"] == pytest.approx(113, abs=0.1)
    assert there["arithmetic_ms"] == pytest.approx(7.5, abs=0.05)
    assert round(there["fps_at_most"]) == 134
    assert there["published_share"] == pytest.approx(0.42, abs=0.005)
    assert "NVIDIA" in there["source"]
    for other in (subject_of(), subject_of("fcos_e2e_r18_3x", size=(256, 256))):
        assert figures_of(other, times_of(300), limit)["datasheet"] is None


def test_the_share_has_the_interval_of_the_median() -> None:
    limit = Limit((layer_of(50_000_000, 1000),), PEAKS)
    figures = figures_of(subject_of(), times_of(4, spread=0.1), limit)
    assert figures["share_of_limit"] == pytest.approx(0.25, rel=0.05)
    assert figures["share_low"] < figures["share_of_limit"] < figures["share_high"]
    assert figures["beyond_limit_ms"] == {}
    beaten = figures_of(subject_of(), times_of(0.5), limit)
    assert beaten["limit_ms"] == 1 and share_text(record_of("a", 1, figures=beaten)) == "–"
    empty = [beaten[key] for key in ("share_of_limit", "share_low", "share_high")]
    assert empty == [None] * 3 and "it is none" in beaten["share_of_limit_is_empty"]
    few = figures_of(subject_of(), times_of(4, calls=9), limit)
    assert share_text(record_of("a", 1, figures=few)) == "25 % (–)"
    profiled = figures_of(subject_of(), times_of(4), limit, a=3.0)
    assert profiled["beyond_limit_ms"] == {"Conv": pytest.approx(2.0)}
    (layer,) = profiled["layers"]
    assert layer["gflop_per_s"] == pytest.approx(100e6 / 3e-3 / 1e9, abs=0.01)


@pytest.fixture(scope="module")
def run(pair: Path, ask: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the command on small networks; returns where it wrote and what it printed."""
    folder = tmp_path_factory.mktemp("roofline")
    options = [f"--{name}={pair / name}" for name in ("weights", "data", "work")]
    options += ["--quick", "--seconds=0", "--threads=1"]

    def command(out: str, *more: str) -> tuple[Path, dict[str, Any]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(peaks, "SIDES", (256,))
            return folder / out, ask("roofline", *options, f"--out={folder / out}", *more)

    return command


@pytest.fixture(scope="module")
def made(run: Run) -> tuple[Path, dict[str, Any]]:
    return run("out")


def test_a_run_leaves_json_picture_and_words(made: tuple[Path, dict[str, Any]], left: Any) -> None:
    read, said = left(*made)
    assert "share" not in read.skipped and "fcos_o2o_nano" in read.skipped
    assert "of the limit" in said
    assert read.command == "nmsfree bench roofline --quick --threads 1 --seconds 0"


def test_models_and_peaks_are_measured_in_one_run(
    made: tuple[Path, dict[str, Any]], small: Any
) -> None:
    _, content = made
    records = {record["name"]: record for record in content["records"]}
    models = [r for r in records.values() if r["subject"] is not None]
    assert [m["subject"]["model"] for m in models] == ["fcos_rt_nano", "fcos_e2e_nano"]
    assert len({record["timed_calls"] for record in records.values()}) == 1
    for model in models:
        figures = model["figures"]
        network = Fcos(small(model["subject"]["model"]))
        assert figures["gmac"] == pytest.approx(gmac(network, (64, 64)), abs=1e-4)
        assert figures["limit_whole_ms"] <= figures["limit_ms"] + 1e-4
        share = figures["limit_ms"] / model["p50_ms"]
        assert figures["share_of_limit"] == pytest.approx(share, rel=0.01)
        assert content["facts"]["share_of_limit"][model["subject"]["model"]] > 0
        assert figures["layers"][0]["profiled_ms"] > 0
    assert len(content["ratios"]) == 2


@pytest.fixture(scope="module")
def file(pair: Path, exported: Callable[..., Path]) -> Path:
    return exported(pair / "weights" / "fcos_e2e_nano.safetensors")


def test_layers_are_found_in_the_profile(file: Path) -> None:
    limit = limit_of(file, PEAKS)
    found = layer_times(file, 1, np.zeros((1, 64, 64, 3), np.uint8), limit.layers)
    convolutions = [layer.name for layer in limit.layers if layer.kind == "Conv"]
    assert set(convolutions) <= set(found)
    assert len(found) > 0.7 * len(limit.layers)


def test_named_files_are_measured_and_twins_refused(run: Run, file: Path) -> None:
    _, found = run("named", f"--onnx={file}")
    assert found["records"][-1]["name"] == "fcos_e2e_nano fp32 64x64 bare"
    assert found["records"][-1]["subject"]["training"] == "not stated"
    assert found["command"].endswith(f"--onnx {file.name}")
    with pytest.raises(InputError, match="another file holds fcos_e2e_nano fp32 64x64 too"):
        run("twice", f"--onnx={file}", f"--onnx={file}")


def test_an_unknown_model_is_told(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model is 'yolo', expected one of: fcos_rt_nano"):
        run("none", "--model=yolo", f"--out={tmp_path / 'none'}")
    assert not (tmp_path / "none").exists()


def test_a_gpu_that_is_not_there_is_told(run: Run) -> None:
    with pytest.raises(EngineError, match=r"driver|GPU"):
        run("none", "--device=cuda:99")
    with pytest.raises(EngineError, match="PyTorch finds no such GPU"):
        peaks.cuda_probes(99)
