"""What `nmsfree build` does with options, files that do not fit, interrupts, and rebuilds.

On the doctor's tiny model: every build takes a fraction of a second.
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
from nmsfree.doctor.model import CELLS, FILE, SIDE, SPEC
from nmsfree.files import write_atomic
from nmsfree.machine import Gpu, Gpus, find_gpus
from nmsfree.spec import METADATA_KEY
from nmsfree_export.graph.contract import describe
from nmsfree_export.options import BuildOptions
from nmsfree_export.tensorrt import build as engine_module
from nmsfree_export.tensorrt.build import BuildReport, build_engine, rebuild_engine
from nmsfree_export.tensorrt.network import Layer, parse_inspection, read_layers
from nmsfree_export.tensorrt.progress import Bars, Lines, Phases, make_monitor, stoppable

trt: Any = pytest.importorskip("tensorrt_rtx")

VERSION: str = trt.__version__
EXTERNAL = TensorProto.EXTERNAL


def tiny(batch: int | None = 1) -> ModelProto:
    """The doctor's model, also for batches of any size: a convolution, a pool, the best cells."""
    model = onnx.load_from_string(FILE.read_bytes())
    graph = model.graph
    for kind in ("Cast", "Conv"):
        next(node for node in graph.node if node.op_type == kind).name = kind.lower()
    flat = next(tensor for tensor in graph.initializer if tensor.name == "flat")
    flat.raw_data = np.array([batch or 0, 3, CELLS * CELLS]).tobytes()
    sizes = [value.type.tensor_type.shape.dim[0] for value in [*graph.input, *graph.output]]
    for size in sizes:
        if batch is None:
            size.dim_param = "N"
        else:
            size.dim_value = batch
    describe(model, replace(SPEC, name="tiny", batch=batch))
    onnx.checker.check_model(model, full_check=True)
    return model


def save(model: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build(model: ModelProto, folder: Path, **options: Any) -> BuildReport:
    return build_engine(save(model, folder), folder / "model.engine", BuildOptions(**options))


def refused(error: type[Exception], model: ModelProto, folder: Path, **options: Any) -> str:
    """Return why a model cannot be built, without its path; nothing may be left."""
    with pytest.raises(error) as caught:
        build(model, folder, **options)
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    return str(caught.value).removeprefix(f"{folder / 'model.onnx'}: ")


def test_a_small_network_leaves_engine_sidecar_and_lock_only(tmp_path: Path) -> None:
    engine = tmp_path / "made" / "model.engine"
    report = build_engine(save(tiny(), tmp_path), engine)
    names = {"model.engine", "model.engine.json", "model.engine.lock"}
    assert {path.name for path in engine.parent.iterdir()} == names
    text = sidecar_path(engine).read_text("utf-8")
    assert json.loads(text) == json.loads(json.dumps(report.to_json()["sidecar"]))
    write_sidecar(engine, read_sidecar(engine))
    assert sidecar_path(engine).read_text("utf-8") == text


def test_options_are_as_asked_and_recorded(tmp_path: Path) -> None:
    for tf32 in (False, True):
        assert build(tiny(), tmp_path, tf32=tf32).sidecar.tf32 is tf32
    sidecar = build(tiny(), tmp_path, gpus=("RTX 5090", "rtx4070"), sms=(75,)).sidecar
    assert sidecar.targets == (75, 89, 120)
    report = build(tiny(batch=None), tmp_path, batch=(1, 4, 8))
    assert report.sidecar.batch == (1, 4, 8)
    assert report.inputs[0].shape == (-1, SIDE, SIDE, 3)
    assert str(report.outputs[1]) == "detection_boxes float32 [N, 4, 4]"


def test_a_quantized_graph_is_called_int8(tmp_path: Path) -> None:
    """One convolution with a symmetric scale before it is enough."""
    model = tiny()
    graph = model.graph
    at, conv = next((i, node) for i, node in enumerate(graph.node) if node.op_type == "Conv")
    steps = {"step": np.float32(0.02), "zero": np.int8(0)}
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in steps.items())
    quantize = helper.make_node("QuantizeLinear", [conv.input[0], *steps], ["q"])
    conv.input[0] = "dq"
    graph.node.insert(at, helper.make_node("DequantizeLinear", ["q", *steps], ["dq"]))
    graph.node.insert(at, quantize)
    assert build(model, tmp_path).sidecar.precision == "int8"


@pytest.mark.parametrize(
    ("fixed", "options", "message"),
    [
        (
            1,
            {"gpus": ("h100",)},
            "target is h100 (SM 9.0), the builder can do SM 7.5, 8.0, 8.6, 8.9, 12.0, 12.1: choose "
            "one of these, or run the ONNX file itself with --device cuda",
        ),
        (
            1,
            {"batch": (1, 4, 8)},
            "takes batches of 1 only: leave out --batch, or export it again with `nmsfree export "
            "--batch dynamic`",
        ),
        (
            None,
            {},
            "takes batches of any size, an engine needs a range: give --batch MIN OPT MAX, for "
            "example --batch 1 4 8",
        ),
        (None, {"batch": (4, 2, 8)}, "batch is 4 2 8, expected three numbers from 1 up, ascending"),
        (None, {"batch": (0, 2, 8)}, "batch is 0 2 8, expected three numbers from 1 up, ascending"),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, fixed: int | None, options: dict[str, Any], message: str
) -> None:
    assert refused(InputError, tiny(batch=fixed), tmp_path, **options) == message


def described(**fields: Any) -> Callable[[ModelProto], None]:
    """Return what changes the description of a model."""

    def spoil(model: ModelProto) -> None:
        spec = ModelSpec.from_json(model.metadata_props[0].value)
        describe(model, replace(spec, **fields))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda model: model.ClearField("metadata_props"),
            f"no '{METADATA_KEY}' metadata, so this is not a model exported by nmsfree: export "
            "the checkpoint with `nmsfree export`, or let `nmsfree adopt` make a model of another"
            " project's file",
        ),
        (
            lambda model: setattr(model.metadata_props[0], "value", "[]"),
            "model description: expected object, got array: export the model again",
        ),
        (
            lambda model: setattr(model.graph.initializer[0], "data_location", EXTERNAL),
            "its weights lie in another file, expected one file: export the model again",
        ),
        (
            described(height=96),
            "found images uint8 [1, 32, 32, 3]; num_detections int32 [1, 1]; detection_boxes "
            "float32 [1, 4, 4]; detection_scores float32 [1, 4]; detection_classes int32 [1, 4]; "
            "its description says images uint8 [1, 96, 32, 3]: export the model again",
        ),
        (
            described(int8_target="cpu"),
            "made for cpu, not for tensorrt-rtx: TensorRT-RTX has no asymmetric zero points;"
            " export with --precision int8 --for tensorrt",
        ),
    ],
)
def test_files_that_are_not_ours(
    tmp_path: Path, spoil: Callable[[ModelProto], None], message: str
) -> None:
    model = tiny()
    spoil(model)
    assert refused(ModelError, model, tmp_path) == message


def test_no_onnx_and_no_file(tmp_path: Path) -> None:
    source, words = tmp_path / "model.onnx", "not an ONNX file: export the checkpoint with"
    source.write_bytes(b"\x08not ONNX")
    with pytest.raises(ModelError, match=f"^{source}: {words} `nmsfree export`$"):
        build_engine(source, tmp_path / "model.engine")
    source.unlink()
    with pytest.raises(ModelError, match=f"^{source}: no such file$"):
        build_engine(source, tmp_path / "model.engine")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=f"^{tmp_path}: is a folder, expected the name of a file"):
        build_engine(source, tmp_path)


def test_an_operator_that_the_parser_lacks(tmp_path: Path) -> None:
    model = tiny()
    next(node for node in model.graph.node if node.op_type == "Conv").op_type = "NoSuchOperator"
    message = refused(ModelError, model, tmp_path)
    assert message.startswith(
        f"tensorrt-rtx {VERSION} cannot read the graph (NoSuchOperator 'conv': "
    )
    assert message.endswith("): export the model again, or run the ONNX file itself")
    assert "\n" not in message


@pytest.mark.skipif(is_installed("tensorrt"), reason="the full TensorRT is installed")
def test_the_other_builder_is_named_with_its_extra(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r'pip install "nmsfree\[tensorrt\]"$'):
        build(tiny(), tmp_path, builder="tensorrt")


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """As in a terminal; a shell has its background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class PressCtrlC(Phases):
    """Presses it when the first step is done; notes what the builder still does."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def start(self, name: str, depth: int, steps: int) -> None:
        self.phases.append(name)

    def step(self, name: str, done: int) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_stops_the_build_and_leaves_nothing(tmp_path: Path) -> None:
    pressed = PressCtrlC()
    with pytest.raises(KeyboardInterrupt):
        build_engine(save(tiny(), tmp_path), tmp_path / "model.engine", phases=pressed)
    assert pressed.phases
    assert "Determining refit engines" not in pressed.phases  # where an undisturbed build is long
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_rebuilt_as_it_was(tmp_path: Path) -> None:
    """Through the installed entry point: same batch, TF32 and targets, and this GPU's besides."""
    engine = tmp_path / "model.engine"
    before = build(tiny(batch=None), tmp_path, sms=(86,), batch=(1, 2, 4), tf32=True).sidecar
    plan, after = load_plan(engine, vendor=load_vendor("tensorrt-rtx"), sm=120)
    assert after.targets == (86, 120)
    assert (after.batch, after.tf32, after.onnx) == (before.batch, True, "model.onnx")
    assert hashlib.sha256(plan).hexdigest() == after.engine_sha256 == digest(engine)
    names = ["model.engine", "model.engine.json", "model.engine.lock", "model.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_retrained_model_is_rebuilt(tmp_path: Path) -> None:
    engine, retrained = build(tiny(), tmp_path).engine, tiny()
    scale = next(t for t in retrained.graph.initializer if t.name == "scale")
    scale.raw_data = bytes(len(scale.raw_data))
    source = save(retrained, tmp_path)
    _, sidecar = load_plan(engine, vendor=load_vendor("tensorrt-rtx"), sm=89)
    assert sidecar.onnx_sha256 == digest(source)


def test_full_tensorrt_builds_for_the_gpu_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed builder, whose interface is the same, passes for the full TensorRT."""
    vendor = VendorApi("tensorrt", trt, "11.4.0")
    monkeypatch.setattr(engine_module, "load_vendor", lambda name: vendor)
    nothing = Gpus((), None, "no NVIDIA driver was found (libcuda.so.1)")
    monkeypatch.setattr(engine_module, "find_gpus", lambda: nothing)
    with pytest.raises(EngineError) as refusal:
        build(tiny(), tmp_path, builder="tensorrt")
    assert str(refusal.value) == (
        "tensorrt 11.4.0 builds on the GPU that will run the engine, and no NVIDIA driver was "
        "found (libcuda.so.1): build there, or with --with tensorrt-rtx, which needs none"
    )
    one = Gpus((Gpu("NVIDIA A100", (8, 0), 1),), "13.1", "")
    monkeypatch.setattr(engine_module, "find_gpus", lambda: one)
    report = build(tiny(), tmp_path, builder="tensorrt")
    sidecar, engine = report.sidecar, report.engine
    found = sidecar.builder, sidecar.builder_version, sidecar.targets
    assert found == ("tensorrt", "11.4.0", (80,))
    for sm in (80, 89):  # the second GPU
        rebuild_engine(engine, sidecar, builder="tensorrt", sm=sm)
        assert read_sidecar(engine).targets == (sm,)
    words = r"^tensorrt 11\.4\.0 builds for the GPU of this machine only: leave out --gpu and --sm$"
    with pytest.raises(InputError, match=words):
        build(tiny(), tmp_path, sms=(89,))


@pytest.mark.skipif(bool(find_gpus().found), reason="with a GPU the engine's own layers show")
def test_without_a_gpu_the_layers_are_the_networks(tmp_path: Path) -> None:
    table = build(tiny(), tmp_path, layers=True).layers
    assert table is not None
    assert table.source == "network"
    assert table.note.startswith("the engine's own layers show on a GPU it was built for (")
    kinds = {layer.name: (layer.kind, layer.precision, layer.shape) for layer in table.layers}
    assert kinds["cast"] == ("cast", "float32", (1, SIDE, SIDE, 3))
    assert kinds["conv"] == ("convolution", "float32", (1, 3, CELLS, CELLS))


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
    module = SimpleNamespace(LayerInformationFormat=trt.LayerInformationFormat)
    vendor = VendorApi("tensorrt", module, "11.4.0")
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
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    progress = Progress(console=console)
    bars = Bars(progress)
    for name, depth, steps in (("all", 0, 4), ("part", 1, 2), ("deep", 3, 2)):
        bars.start(name, depth, steps)
    for name in ("part", "deep"):
        bars.step(name, 1)
    tasks = [(t.description, t.completed, t.total) for t in progress.tasks]
    assert tasks == [("all", 0, 4), ("  part", 1, 2)]
    for name, depth in (("deep", 3), ("part", 1), ("all", 0)):
        bars.finish(name, depth)
    assert not progress.tasks


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
        build(tiny(), tmp_path)
    assert read_sidecar(engine).engine_sha256 == digest(engine)


def nmsfree(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process without PyTorch, which building does not need."""
    code = "import sys; sys.modules |= dict.fromkeys(['torch', 'nmsfree_training'])\n"
    code += "from nmsfree.cli.main import main; main()"
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
    images = {"name": "images", "dtype": "uint8", "shape": [-1, SIDE, SIDE, 3]}
    assert report["inputs"] == [images]
    assert report["layers"]["layers"][0]["kind"] == "cast"
    said = done.stderr
    assert f"{out}: tiny, o2o head, {SIDE} × {SIDE}, batch 1 to 4, best 2, " in said
    assert f"built by tensorrt-rtx {VERSION} for SM 8.6 and 8.9 in " in said
    assert "fp32, TF32 off" in said
    assert "keep model.onnx beside it, so that it can be built again where it must be" in said
    assert " s  Building engine\n" in said
    done = nmsfree(save(tiny(), tmp_path), "--tf32")  # beside its file, unless told otherwise
    assert done.returncode == 0, done.stderr
    assert read_sidecar(tmp_path / "model.engine").tf32
    assert "TF32 allowed" in done.stderr and "keep model.onnx" not in done.stderr


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
