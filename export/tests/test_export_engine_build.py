"""What `nmsfree build` does with options, files that do not fit, interrupts, and rebuilds.

On a tiny model of the contract's shape, made by hand: every build takes a fraction of a second.
"""

import hashlib
import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from rich.console import Console
from rich.progress import Progress

from nmsfree import EngineError, InputError, MissingExtraError, ModelError, ModelSpec
from nmsfree.backends.tensorrt import sidecar as sidecar_module
from nmsfree.backends.tensorrt.load import load_plan
from nmsfree.backends.tensorrt.sidecar import read_sidecar, sidecar_path, write_sidecar
from nmsfree.backends.tensorrt.vendor import VendorApi, is_installed, load_vendor
from nmsfree.files import write_atomic
from nmsfree.machine import Gpu, Gpus, find_gpus
from nmsfree.spec import METADATA_KEY
from nmsfree_export.tensorrt import build as engine_module
from nmsfree_export.tensorrt.build import BuildOptions, build_engine, rebuild_engine
from nmsfree_export.tensorrt.network import Layer, parse_inspection, read_layers
from nmsfree_export.tensorrt.progress import Bars, Lines, Silent, make_monitor, stoppable

trt: Any = pytest.importorskip("tensorrt_rtx")

VERSION: str = trt.__version__
HEIGHT, WIDTH, CELL, ROWS = 32, 64, 8, 5


def tiny(batch: int | None = 1) -> ModelProto:
    """A 1 × 1 convolution and a pool: every cell is a box, its brightest channel the class."""
    node, info = helper.make_node, helper.make_tensor_value_info
    y, x = np.mgrid[0:HEIGHT:CELL, 0:WIDTH:CELL].reshape(2, -1)
    values = {
        "cells": np.stack([x, y, x + CELL, y + CELL], axis=1).astype(np.float32),
        "kernel": np.eye(3, dtype=np.float32)[..., None, None] / 255,
        "flat": np.array([0, 3, -1], np.int64),
        "floor": np.float32(0.5),
        "k": np.array([ROWS], np.int64),
        "one": np.array([1], np.int64),
    }
    nodes = [
        node("Cast", ["images"], ["float"], "cast", to=TensorProto.FLOAT),
        node("Transpose", ["float"], ["nchw"], "transpose", perm=[0, 3, 1, 2]),
        node("Conv", ["nchw", "kernel"], ["scaled"], "conv"),
        node("AveragePool", ["scaled"], ["grid"], kernel_shape=[CELL] * 2, strides=[CELL] * 2),
        node("Reshape", ["grid", "flat"], ["means"]),
        node("ReduceMax", ["means", "one"], ["best"], keepdims=0),
        node("ArgMax", ["means"], ["channel"], axis=1, keepdims=0),
        node("TopK", ["best", "k"], ["detection_scores", "order"], axis=1),
        node("Gather", ["cells", "order"], ["detection_boxes"], axis=0),
        node("GatherElements", ["channel", "order"], ["class64"], axis=1),
        node("Cast", ["class64"], ["detection_classes"], to=TensorProto.INT32),
        node("Greater", ["detection_scores", "floor"], ["above"]),
        node("Cast", ["above"], ["ones"], to=TensorProto.INT32),
        node("ReduceSum", ["ones", "one"], ["num_detections"], keepdims=1),
    ]
    n = batch or "N"
    outputs = [
        info("num_detections", TensorProto.INT32, [n, 1]),
        info("detection_boxes", TensorProto.FLOAT, [n, ROWS, 4]),
        info("detection_scores", TensorProto.FLOAT, [n, ROWS]),
        info("detection_classes", TensorProto.INT32, [n, ROWS]),
    ]
    images = info("images", TensorProto.UINT8, [n, HEIGHT, WIDTH, 3])
    weights = [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items()]
    graph = helper.make_graph(nodes, "tiny", [images], outputs, weights)
    opset = helper.make_opsetid("", 20)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    names = ("blue", "green", "red")
    spec = ModelSpec("tiny", "o2o", HEIGHT, WIDTH, batch, names, (1, 2, 4), top_k=ROWS)
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.checker.check_model(model, full_check=True)
    return model


def save(model: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_small_network_leaves_engine_sidecar_and_lock_only(tmp_path: Path) -> None:
    engine = tmp_path / "made" / "model.engine"
    build_engine(save(tiny(), tmp_path), engine)
    assert {path.name for path in engine.parent.iterdir()} == {
        "model.engine",
        "model.engine.json",
        "model.engine.lock",
    }


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_as_asked_and_recorded(tmp_path: Path, tf32: bool) -> None:
    options = BuildOptions(tf32=tf32)
    report = build_engine(save(tiny(), tmp_path), tmp_path / "model.engine", options)
    assert report.sidecar.tf32 is tf32


def test_several_targets(tmp_path: Path) -> None:
    options = BuildOptions(gpus=("RTX 5090", "rtx4070"), sms=(75,))
    report = build_engine(save(tiny(), tmp_path), tmp_path / "model.engine", options)
    assert report.sidecar.targets == (75, 89, 120)


def test_a_gpu_that_the_builder_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        build_engine(save(tiny(), tmp_path), tmp_path / "m.engine", BuildOptions(gpus=("h100",)))
    assert str(error.value) == (
        "target is h100 (SM 9.0), the builder can do SM 7.5, 8.0, 8.6, 8.9, 12.0, 12.1: choose "
        "one of these, or run the ONNX file itself with --device cuda"
    )


def test_dynamic_batch(tmp_path: Path) -> None:
    source = save(tiny(batch=None), tmp_path)
    report = build_engine(source, tmp_path / "model.engine", BuildOptions(batch=(1, 4, 8)))
    assert report.sidecar.batch == (1, 4, 8)
    assert report.inputs[0].shape == (-1, HEIGHT, WIDTH, 3)
    assert str(report.outputs[1]) == "detection_boxes float32 [N, 5, 4]"


@pytest.mark.parametrize(
    ("fixed", "asked", "message"),
    [
        (
            1,
            (1, 4, 8),
            "takes batches of 1 only: leave out --batch, or export it again with `nmsfree export "
            "--batch dynamic`",
        ),
        (
            None,
            None,
            "takes batches of any size, an engine needs a range: give --batch MIN OPT MAX, for "
            "example --batch 1 4 8",
        ),
        (None, (4, 2, 8), "batch is 4 2 8, expected three numbers from 1 up, ascending"),
        (None, (0, 2, 8), "batch is 0 2 8, expected three numbers from 1 up, ascending"),
    ],
)
def test_batches_that_do_not_fit(
    tmp_path: Path,
    fixed: int | None,
    asked: tuple[int, int, int] | None,
    message: str,
) -> None:
    source = save(tiny(batch=fixed), tmp_path)
    with pytest.raises(InputError) as error:
        build_engine(source, tmp_path / "model.engine", BuildOptions(batch=asked))
    assert str(error.value).removeprefix(f"{source}: ") == message
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def no_onnx(model: ModelProto) -> bytes:
    return b"\x08not ONNX"


def no_metadata(model: ModelProto) -> bytes:
    del model.metadata_props[:]
    return model.SerializeToString()


def bad_metadata(model: ModelProto) -> bytes:
    model.metadata_props[0].value = "[]"
    return model.SerializeToString()


def external_weights(model: ModelProto) -> bytes:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    return model.SerializeToString()


def other_size(model: ModelProto) -> bytes:
    text = model.metadata_props[0].value
    model.metadata_props[0].value = text.replace('"height": 32', '"height": 96')
    return model.SerializeToString()


def unknown_operator(model: ModelProto) -> bytes:
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.op_type = "NoSuchOperator"
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_onnx, "not an ONNX file: export the checkpoint with `nmsfree export`"),
        (
            no_metadata,
            f"no '{METADATA_KEY}' metadata, so this is not a model exported by nmsfree: export "
            "the checkpoint with `nmsfree export`",
        ),
        (bad_metadata, "model description: expected object, got array: export the model again"),
        (
            external_weights,
            "its weights lie in another file, expected one file: export the model again",
        ),
        (
            other_size,
            "found images uint8 [1, 32, 64, 3]; num_detections int32 [1, 1]; detection_boxes "
            "float32 [1, 5, 4]; detection_scores float32 [1, 5]; detection_classes int32 [1, 5]; "
            "its description says images uint8 [1, 96, 64, 3]: export the model again",
        ),
    ],
)
def test_files_that_are_not_ours(
    tmp_path: Path,
    spoil: Callable[[ModelProto], bytes],
    message: str,
) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(spoil(tiny()))
    with pytest.raises(ModelError) as error:
        build_engine(source, tmp_path / "model.engine")
    assert str(error.value) == f"{source}: {message}"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_no_file(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    with pytest.raises(ModelError) as error:
        build_engine(source, tmp_path / "model.engine")
    assert str(error.value) == f"{source}: no such file"


def test_an_operator_that_the_parser_lacks(tmp_path: Path) -> None:
    model = tiny()
    source = tmp_path / "model.onnx"
    source.write_bytes(unknown_operator(model))
    with pytest.raises(ModelError) as error:
        build_engine(source, tmp_path / "model.engine")
    message = str(error.value)
    assert message.startswith(
        f"{source}: tensorrt-rtx {VERSION} cannot read the graph (NoSuchOperator 'conv': "
    )
    assert message.endswith("): export the model again, or run the ONNX file itself")
    assert "\n" not in message


def test_an_int8_file_for_processors_is_refused(tmp_path: Path) -> None:
    model = tiny()
    spec = ModelSpec.from_json(model.metadata_props[0].value)
    helper.set_model_props(model, {METADATA_KEY: replace(spec, made_for="cpu").to_json()})
    with pytest.raises(ModelError) as caught:
        build_engine(save(model, tmp_path), tmp_path / "model.engine")
    assert str(caught.value) == (
        f"{tmp_path}/model.onnx: made for cpu, not for tensorrt-rtx: TensorRT-RTX has no asymmetric"
        " zero points; export with --precision int8 --for tensorrt"
    )
    assert not (tmp_path / "model.engine").exists()


def test_a_folder_is_no_name_for_an_engine(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        build_engine(tmp_path / "model.onnx", tmp_path)
    assert str(error.value) == f"{tmp_path}: is a folder, expected the name of a file to write"


@pytest.mark.skipif(is_installed("tensorrt"), reason="the full TensorRT is installed")
def test_the_other_builder_is_named_with_its_extra(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError) as error:
        build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", BuildOptions("tensorrt"))
    assert str(error.value) == (
        'a TensorRT engine needs a package that is not installed: pip install "nmsfree[tensorrt]"'
    )


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """As in a terminal; a shell has its background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class PressCtrlC(Silent):
    """Presses it when the first step is done; notes what the builder still does."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def start(self, name: str, depth: int, steps: int) -> None:
        self.phases.append(name)

    def step(self, name: str, done: int) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_stops_the_build_and_leaves_nothing(tmp_path: Path) -> None:
    source, pressed = save(tiny(), tmp_path), PressCtrlC()
    with pytest.raises(KeyboardInterrupt):
        build_engine(source, tmp_path / "model.engine", phases=pressed)
    assert pressed.phases
    assert "Determining refit engines" not in pressed.phases  # where an undisturbed build is long
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_rebuilt_as_it_was(tmp_path: Path) -> None:
    """Through the installed entry point: same batch, TF32 and targets, and this GPU's besides."""
    engine = tmp_path / "model.engine"
    options = BuildOptions(sms=(86,), batch=(1, 2, 4), tf32=True)
    before = build_engine(save(tiny(batch=None), tmp_path), engine, options).sidecar
    plan, after = load_plan(engine, vendor=load_vendor("tensorrt-rtx"), sm=120)
    assert after.targets == (86, 120)
    assert (after.batch, after.tf32, after.onnx) == (before.batch, True, "model.onnx")
    assert hashlib.sha256(plan).hexdigest() == after.engine_sha256 == digest(engine)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.engine",
        "model.engine.json",
        "model.engine.lock",
        "model.onnx",
    ]


def test_a_retrained_model_is_rebuilt(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    build_engine(save(tiny(), tmp_path), engine)
    retrained = tiny()
    kernel = next(t for t in retrained.graph.initializer if t.name == "kernel")
    kernel.raw_data = bytes(len(kernel.raw_data))
    source = save(retrained, tmp_path)
    _, sidecar = load_plan(engine, vendor=load_vendor("tensorrt-rtx"), sm=89)
    assert sidecar.onnx_sha256 == digest(source)


def test_sidecars_of_real_builds_survive(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    report = build_engine(save(tiny(), tmp_path), engine)
    text = sidecar_path(engine).read_text("utf-8")
    write_sidecar(engine, read_sidecar(engine))
    assert sidecar_path(engine).read_text("utf-8") == text
    assert json.loads(text) == json.loads(json.dumps(report.to_json()["sidecar"]))


def full_tensorrt(monkeypatch: pytest.MonkeyPatch, gpus: Gpus) -> None:
    """Let the installed builder, whose interface is the same, pass for the full TensorRT."""
    vendor = VendorApi("tensorrt", trt, "11.4.0")
    monkeypatch.setattr(engine_module, "load_vendor", lambda name: vendor)
    monkeypatch.setattr(engine_module, "find_gpus", lambda: gpus)


def test_full_tensorrt_builds_for_the_gpu_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_tensorrt(monkeypatch, Gpus((Gpu("NVIDIA A100", (8, 0), 1),), "13.1", ""))
    options = BuildOptions("tensorrt")
    sidecar = build_engine(save(tiny(), tmp_path), tmp_path / "m.engine", options).sidecar
    assert (sidecar.builder, sidecar.builder_version, sidecar.targets) == (
        "tensorrt",
        "11.4.0",
        (80,),
    )
    rebuild_engine(tmp_path / "m.engine", sidecar, builder="tensorrt", sm=80)
    assert read_sidecar(tmp_path / "m.engine").targets == (80,)
    rebuild_engine(tmp_path / "m.engine", sidecar, builder="tensorrt", sm=89)  # the second GPU
    assert read_sidecar(tmp_path / "m.engine").targets == (89,)
    with pytest.raises(InputError) as error:
        build_engine(tmp_path / "model.onnx", tmp_path / "m.engine", BuildOptions(sms=(89,)))
    assert str(error.value) == (
        "tensorrt 11.4.0 builds for the GPU of this machine only: leave out --gpu and --sm"
    )


def test_full_tensorrt_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_tensorrt(monkeypatch, Gpus((), None, "no NVIDIA driver was found (libcuda.so.1)"))
    with pytest.raises(EngineError) as error:
        build_engine(save(tiny(), tmp_path), tmp_path / "m.engine", BuildOptions("tensorrt"))
    assert str(error.value) == (
        "tensorrt 11.4.0 builds on the GPU that will run the engine, and no NVIDIA driver was "
        "found (libcuda.so.1): build there, or with --with tensorrt-rtx, which needs none"
    )


@pytest.mark.skipif(bool(find_gpus().found), reason="with a GPU the engine's own layers show")
def test_without_a_gpu_the_layers_are_the_networks(tmp_path: Path) -> None:
    options = BuildOptions(layers=True)
    table = build_engine(save(tiny(), tmp_path), tmp_path / "m.engine", options).layers
    assert table is not None
    assert table.source == "network"
    assert table.note.startswith("the engine's own layers show on a GPU it was built for (")
    kinds = {layer.name: (layer.kind, layer.precision, layer.shape) for layer in table.layers}
    assert kinds["cast"] == ("cast", "float32", (1, HEIGHT, WIDTH, 3))
    assert kinds["conv"] == ("convolution", "float32", (1, 3, HEIGHT, WIDTH))


def test_layers_of_an_engine() -> None:
    """As the vendor's documentation shows the inspector's JSON; names only without details."""
    output = {"Name": "out", "Dimensions": [1, 64, 8, 8], "Format/Datatype": "Half"}
    entry = {"Name": "conv + relu", "LayerType": "CaskConvolution", "Outputs": [output]}
    conv, other = parse_inspection(json.dumps({"Layers": [entry, "a name"], "Bindings": []}))
    assert conv == Layer("conv + relu", "caskconvolution", "Half", (1, 64, 8, 8))
    assert other == Layer("a name", "", "", ())


@pytest.mark.parametrize("told", [None, "no JSON", "[]"])
def test_layers_that_cannot_be_read_cost_no_engine(
    told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector = SimpleNamespace(get_engine_information=lambda form: told)
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
    vendor = VendorApi(
        "tensorrt", SimpleNamespace(LayerInformationFormat=trt.LayerInformationFormat), "11.4.0"
    )
    monkeypatch.setattr(VendorApi, "create_runtime", lambda self: runtime)
    own = (Layer("conv", "convolution", "float32", (1, 3)),)
    table = read_layers(vendor, b"plan", own)
    assert (table.layers, table.source) == (own, "network")
    assert table.note.startswith("the engine's own cannot be read (")


def test_phases_as_lines() -> None:
    """The whole and its parts; what is nested deeper goes by too fast."""
    lines: list[str] = []
    phases = Lines(lines.append)
    with stoppable() as stop:
        monitor = make_monitor(trt, phases, stop)
        monitor.phase_start("all", None, 2)
        monitor.phase_start("part", "all", 1)
        monitor.phase_start("detail", "part", 1)
        assert monitor.step_complete("detail", 0)
        for name in ("detail", "part", "all"):
            monitor.phase_finish(name)
    assert [line.split(" s  ")[1] for line in lines] == ["part", "all"]


def test_phases_as_bars() -> None:
    shown = io.StringIO()
    progress = Progress(console=Console(file=shown, force_terminal=True, width=80))
    bars = Bars(progress)
    bars.start("all", 0, 4)
    bars.start("part", 1, 2)
    bars.start("deep", 3, 2)
    bars.step("part", 1)
    bars.step("deep", 1)
    tasks = [(t.description, t.completed, t.total) for t in progress.tasks]
    assert tasks == [("all", 0, 4), ("  part", 1, 2)]
    for name, depth in (("deep", 3), ("part", 1), ("all", 0)):
        bars.finish(name, depth)
    assert not progress.tasks


def test_building_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'nmsfree_training'])\n"
        "import pathlib, nmsfree_export.cli.build\n"
        "from nmsfree_export.tensorrt.build import build_engine\n"
        "build_engine(*map(pathlib.Path, sys.argv[1:]))"
    )
    engine = tmp_path / "m.engine"
    command = [sys.executable, "-c", code, str(save(tiny(), tmp_path)), str(engine)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert engine.is_file()


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_while_writing_leaves_engine_and_sidecar_of_one_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_press(path: Path, data: bytes) -> None:
        write_atomic(path, data)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sidecar_module, "write_atomic", write_and_press)
    engine = tmp_path / "model.engine"
    with pytest.raises(KeyboardInterrupt):
        build_engine(save(tiny(), tmp_path), engine)
    assert read_sidecar(engine).engine_sha256 == digest(engine)


def nmsfree(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    code = "from nmsfree.cli.main import main; main()"
    command = [sys.executable, "-c", code, "build", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_line(tmp_path: Path) -> None:
    source = save(tiny(batch=None), tmp_path)
    out = tmp_path / "elsewhere" / "rtx.engine"
    options = ["--gpu", "rtx3060", "--sm", "89", "--batch", "1", "2", "4", "--json", "-"]
    done = nmsfree(source, "-o", out, *options, "--layers")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["sidecar"] == json.loads(sidecar_path(out).read_text("utf-8"))
    assert report["sidecar"]["targets"] == [86, 89]
    assert report["inputs"] == [
        {"name": "images", "dtype": "uint8", "shape": [-1, HEIGHT, WIDTH, 3]}
    ]
    assert report["layers"]["layers"][0]["kind"] == "cast"
    said = done.stderr
    assert f"{out}: tiny, o2o head, {HEIGHT} × {WIDTH}, batch 1 to 4, best 2, " in said
    assert f"built by tensorrt-rtx {VERSION} for SM 8.6 and 8.9 in " in said
    assert "fp32, TF32 off" in said
    assert "keep model.onnx beside it, so that it can be built again where it must be" in said
    assert " s  Building engine\n" in said


def test_the_engine_lies_beside_its_file_unless_told_otherwise(tmp_path: Path) -> None:
    done = nmsfree(save(tiny(), tmp_path), "--tf32")
    assert done.returncode == 0, done.stderr
    assert read_sidecar(tmp_path / "model.engine").tf32
    assert "TF32 allowed" in done.stderr
    assert "keep model.onnx" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "m.plan"], "output is m.plan, expected a name that ends in .engine"),
        (["--with", "trt"], "builder is 'trt', expected one of: tensorrt-rtx, tensorrt"),
        (["--sm", "61"], "target is SM 6.1, the builder can do SM 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    done = nmsfree(save(tiny(), tmp_path), *options)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
