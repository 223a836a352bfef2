"""ONNX Runtime on GPUs: never the processor instead, unless that was allowed, and then said."""

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import runtime_helpers as helpers
from onnxruntime.capi import onnxruntime_pybind11_state as vendor
from runtime_helpers import Noise

from nmsfree import Detector, EngineError, InputError, MissingExtraError, ModelError
from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.backends.onnxruntime import gpu as onnxruntime_gpu
from nmsfree.backends.onnxruntime.gpu import GraphRun, bound_run, choose
from nmsfree.backends.onnxruntime.session import check_placement, make_session
from nmsfree.backends.options import parse_device
from nmsfree.machine import Gpu, Gpus, find_gpus

refused = helpers.refusing(EngineError)
VERSION = ort.__version__
RTX = Gpu("NVIDIA GeForce RTX 4060", (8, 9), 8 << 30)
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
needs_gpu = pytest.mark.skipif(not find_gpus().found, reason=find_gpus().problem or "GPU found")
needs_cuda = pytest.mark.skipif(
    CUDA not in ort.get_available_providers(), reason="this onnxruntime is built without CUDA"
)


@pytest.fixture
def tiny(tmp_path: Path, make_spec: Any, make_onnx: Any) -> Path:
    return make_onnx(tmp_path / "tiny.onnx", make_spec(batch=1))


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_gpu, "find_gpus", lambda: Gpus((RTX,), "13.1", ""))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = "no NVIDIA driver was found (libcuda.so.1)"
    monkeypatch.setattr(onnxruntime_gpu, "find_gpus", lambda: Gpus((), None, problem))


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime says that it has the CUDA provider, without its libraries."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)


def without_cuda(device: str = "cuda") -> str:
    return (
        f"device is '{device}', but the installed onnxruntime {VERSION} is built without CUDA, and"
        " it and onnxruntime-gpu exclude one another: pip uninstall -y onnxruntime"
        ' && pip install "nmsfree[cuda]"'
    )


@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this onnxruntime has CUDA")
def test_the_wrong_onnxruntime_is_told(tiny: Path, one_gpu: None) -> None:
    assert refused(lambda: Detector(tiny, device="cuda")) == without_cuda()
    assert refused(lambda: Detector(tiny, device="cuda:0", tf32=True)) == without_cuda("cuda")


def test_without_a_driver_nothing_is_to_be_installed(tiny: Path, no_gpu: None) -> None:
    said = refused(lambda: Detector(tiny, device="cuda"))
    assert "no NVIDIA driver" in said and "pip" not in said


def test_a_gpu_that_is_not_there(tiny: Path, cuda_build: None, one_gpu: None) -> None:
    assert refused(lambda: Detector(tiny, device="cuda:1")) == (
        "device is 'cuda:1', but the NVIDIA GPUs here are:"
        " 0 = NVIDIA GeForce RTX 4060 (compute capability 8.9)"
    )


ON_PROCESSOR = (
    "device is 'cuda', but ONNX Runtime put the network on CPUExecutionProvider:"
    " see `nmsfree doctor`, or allow the processor (allow_cpu=True, --allow-cpu)"
)


def not_started(why: str, extra: str = "cuda") -> str:
    return (
        f"device is '{'cuda' if extra == 'cuda' else 'tensorrt-rtx'}', but ONNX Runtime could not"
        f' start there ({why}): pip install "nmsfree[{extra}]" brings what it needs,'
        " `nmsfree doctor` tells more"
    )


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="this onnxruntime has CUDA")
def test_a_silent_fallback_of_onnxruntime_is_caught_and_missing_libraries_are_named(
    tiny: Path, cuda_build: None, one_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The real session: asked for a provider that it lacks, ONNX Runtime takes the processor."""
    assert refused(lambda: Detector(tiny, device="cuda")) == ON_PROCESSOR
    lacking = "libcublasLt.so.13: cannot open shared object file"

    def preload() -> None:
        ort.print(f"Failed to load libcublasLt.so.13: {lacking}")  # `print` in that module
        sys.stdout.write("of another thread\n")

    monkeypatch.setattr(ort, "preload_dlls", preload)
    assert refused(lambda: Detector(tiny, device="cuda")) == not_started(lacking)
    assert capsys.readouterr().out == "of another thread\n"
    assert not hasattr(ort, "print")


def test_a_vendor_error_is_one_line(
    tiny: Path, cuda_build: None, one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fail(path: Path, *, settings: dict[str, str], **_: Any) -> None:
        asked.append(settings)
        raise RuntimeError("CUDA failure 100:\n no CUDA-capable device is detected")

    monkeypatch.setattr(onnxruntime_gpu, "make_session", fail)
    why = "CUDA failure 100: no CUDA-capable device is detected"
    assert refused(lambda: Detector(tiny, device="cuda")) == not_started(why)
    # A graph first, for a fixed batch; then without, as not all that fails is the GPU's fault.
    base = {"device_id": "0", "use_tf32": "0"}
    assert asked == [base | {"enable_cuda_graph": flag} for flag in ("1", "0")]


@pytest.mark.parametrize(
    ("fields", "tf32", "expected"),
    [
        ({"batch": 4}, False, {"use_tf32": "0", "enable_cuda_graph": "1"}),
        ({"batch": None}, False, {"use_tf32": "0", "enable_cuda_graph": "0"}),
        ({"batch": 4}, True, {"use_tf32": "1", "enable_cuda_graph": "1"}),
    ],
)
def test_settings_of_the_cuda_provider(
    tmp_path: Path, make_spec: Any, make_onnx: Any, cuda_build: None, one_gpu: None,
    monkeypatch: pytest.MonkeyPatch, fields: Any, tf32: bool, expected: dict[str, str],
) -> None:  # fmt: skip
    """FP32 is FP32 unless asked otherwise; a graph only where shapes are fixed."""
    asked: list[dict[str, str]] = []

    def session(path: Path, *, threads: int, provider: str, settings: dict[str, str]) -> Any:
        asked.append(settings)
        assert (threads, provider) == (2, CUDA)
        return make_session(path, threads=threads)

    monkeypatch.setattr(onnxruntime_gpu, "make_session", session)
    monkeypatch.setattr(onnxruntime_gpu, "check_placement", lambda *_: ", 1 of 9 nodes elsewhere")
    monkeypatch.setattr(
        onnxruntime_gpu, "GraphRun", lambda session, spec, *_: GraphRun(session, spec, "cpu", 0)
    )
    path = make_onnx(tmp_path / "tiny.onnx", make_spec(**fields))
    with Detector(path, device="cuda", threads=2, tf32=tf32) as detector:
        image = np.full((64, 96, 3), 200, np.uint8)
        assert len(detector(image)) == len(Detector(path)(image)) > 0
    graph = "CUDA graph" if fields["batch"] else "no CUDA graph"
    assert detector.backend.describe() == (
        f"ONNX Runtime {VERSION} CUDA, NVIDIA GeForce RTX 4060,"
        f" {'TF32 allowed' if tf32 else 'TF32 off'}, {graph}, 1 of 9 nodes elsewhere"
    )
    assert asked == [{"device_id": "0"} | expected]


def test_the_processor_instead_is_said_and_warned_of(
    tiny: Path, cuda_build: None, no_gpu: None, caplog: pytest.LogCaptureFixture, noise: Noise
) -> None:
    with caplog.at_level(logging.WARNING), Detector(tiny, device="cuda", allow_cpu=True) as found:
        assert found.backend.describe() == (
            f"ONNX Runtime {VERSION} CPU, threads automatic (in place of cuda)"
        )
        assert caplog.messages == [
            "device is 'cuda', but no NVIDIA driver was found (libcuda.so.1): see `nmsfree doctor`,"
            " or use device cpu; it runs on the processor, as allowed"
        ]
        assert len(found(noise(0))) > 0


def test_a_fault_of_the_file_is_not_blamed_on_the_gpu(
    tmp_path: Path, cuda_build: None, one_gpu: None
) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    for allow in (False, True):
        message = refused(
            lambda a=allow: Detector(tmp_path / "text.onnx", device="cuda", allow_cpu=a), ModelError
        )
        assert "not an ONNX model that can be loaded" in message


def fake_session(providers: list[str], *placed: tuple[str, str]) -> Any:
    parts = [
        SimpleNamespace(ep_name=owner, get_nodes=lambda k=kind: [SimpleNamespace(op_type=k)])
        for owner, kind in placed
    ]
    return SimpleNamespace(
        get_providers=lambda: providers, get_provider_graph_assignment_info=lambda: parts
    )


def test_where_the_nodes_are(tiny: Path) -> None:
    real = make_session(tiny, threads=1)  # tells of each node, the convolution among them
    assert "put the network on CPU" in refused(lambda: check_placement(real, CPU, "cpu"))
    assert real._enable_fallback is False, "`run` would start anew on the processor"
    silent = SimpleNamespace(get_providers=lambda: [CUDA, CPU])  # an older one does not tell
    assert check_placement(silent, CUDA, "cuda") == ""
    for shapes in ((), ((CPU, "Shape"), (CPU, "Gather"))):
        session = fake_session([CUDA, CPU], (CUDA, "Conv"), *shapes, (CUDA, "TopK"))
        said = ", compute nodes left on the processor: 0"
        assert check_placement(session, CUDA, "cuda") == said
    left = [(CPU, "TopK"), (CPU, "Resize"), (CPU, "Resize"), (CPU, "Shape")]
    session = fake_session([CUDA, CPU], (CUDA, "Conv"), *left)
    found = "3 of 5 (2 Resize, 1 TopK)"
    assert refused(lambda: check_placement(session, CUDA, "cuda")) == (
        f"device is 'cuda', but ONNX Runtime has {found} nodes run on the processor: take another"
        " release of it; see `nmsfree doctor`, or allow the processor (allow_cpu=True, --allow-cpu)"
    )
    said = f", compute nodes left on the processor: {found}"
    assert check_placement(session, CUDA, "cuda", allow_cpu=True) == said
    for session in (
        fake_session([CPU]),
        fake_session([CUDA, CPU], (CPU, "Cast"), (CPU, "TopK")),
        fake_session([CUDA, CPU], (CUDA, "Cast"), (CPU, "FusedConv")),
    ):
        assert refused(lambda s=session: check_placement(s, CUDA, "cuda")) == ON_PROCESSOR


@pytest.fixture
def fake_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin's package, without its library."""
    plugin: Any = type(sys)("onnxruntime_ep_nv_tensorrt_rtx")
    plugin.get_ep_name = lambda: "NvTensorRTRTXExecutionProvider"
    plugin.get_library_path = lambda: "/absent.so"
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)


def test_a_missing_plugin(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    assert refused(lambda: Detector(tiny, device="tensorrt-rtx"), MissingExtraError) == (
        "running an ONNX file on TensorRT-RTX needs a package that is not installed:"
        ' pip install "nmsfree[tensorrt-rtx-ort]"'
    )


def test_the_plugin_cannot_promise_fp32(
    tiny: Path, fake_plugin: None, no_gpu: None, monkeypatch: pytest.MonkeyPatch,
    make_spec: Any, make_onnx: Any,
) -> None:  # fmt: skip
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    assert refused(lambda: Detector(tiny, device="tensorrt-rtx"), InputError) == (
        "device is 'tensorrt-rtx', but ONNX Runtime's TensorRT-RTX plugin computes FP32 files in"
        " TF32: set NVIDIA_TF32_OVERRIDE=0 in the environment, allow it (tf32=True, --tf32), or"
        " make an engine with `nmsfree build`"
    )
    no_gpu_message = (
        "device is 'tensorrt-rtx', but no NVIDIA driver was found (libcuda.so.1):"
        " see `nmsfree doctor`, or use device cpu"
    )
    half = make_onnx(tiny.with_name("half.onnx"), make_spec(precision="fp16"))
    assert refused(lambda: Detector(half, device="tensorrt-rtx")) == no_gpu_message
    assert refused(lambda: Detector(tiny, device="tensorrt-rtx", tf32=True)) == no_gpu_message
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert refused(lambda: Detector(tiny, device="tensorrt-rtx")) == no_gpu_message


def test_a_plugin_that_cannot_be_used(
    tiny: Path, fake_plugin: None, one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be loaded; it takes none of the GPUs; ONNX Runtime is too old for it."""
    why = (
        "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /absent.so with error: /absent.so:"
        " cannot open shared object file"
    )
    found = refused(lambda: Detector(tiny, device="tensorrt-rtx", tf32=True))
    start, end = not_started(f"{why}|", "tensorrt-rtx-ort").split("|")
    assert found.startswith(start) and found.endswith(end)
    registered: list[tuple[str, str]] = []
    monkeypatch.setattr(
        ort, "register_execution_provider_library", lambda *what: registered.append(what)
    )
    assert refused(lambda: Detector(tiny, device="tensorrt-rtx", tf32=True)) == (
        "device is 'tensorrt-rtx', but ONNX Runtime's TensorRT-RTX plugin takes 0 of the GPUs here:"
        " it needs an RTX 30 or newer, found NVIDIA GeForce RTX 4060 (compute capability 8.9)"
    )
    assert registered == [("NvTensorRTRTXExecutionProvider", "/absent.so")]
    calls = ("add_provider_for_devices", "of_a_later_version")
    monkeypatch.setattr(onnxruntime_gpu, "PLUGIN_CALLS", calls)
    assert refused(lambda: Detector(tiny, device="tensorrt-rtx", tf32=True)) == (
        f"device is 'tensorrt-rtx', but onnxruntime {VERSION} takes no plugins, expected 1.24 or"
        ' newer: pip install -U "onnxruntime>=1.24"'
    )


def test_devices_of_the_plugin_are_given_to_the_session(
    tiny: Path, fake_plugin: None, one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the processor's own device in the plugin's place, through the real calls."""
    monkeypatch.setattr(sys.modules["onnxruntime_ep_nv_tensorrt_rtx"], "get_ep_name", lambda: CPU)
    monkeypatch.setattr(onnxruntime_gpu, "check_placement", lambda *_: "")
    with Detector(tiny, device="tensorrt-rtx", tf32=True) as detector:
        assert len(detector(np.full((64, 96, 3), 200, np.uint8))) > 0
    assert detector.backend.describe() == (
        f"ONNX Runtime {VERSION} TensorRT-RTX, NVIDIA GeForce RTX 4060, TF32 allowed"
    )


FIRST = Gpu("NVIDIA GeForce RTX 4060", (8, 9), 8 << 30, "00000000:65:00.0")
SECOND = Gpu("NVIDIA GeForce RTX 3060", (8, 6), 12 << 30, "00000000:01:00.0")
OLD = Gpu("NVIDIA GeForce GTX 1080", (6, 1), 8 << 30, "00000000:02:00.0")


def plugin_found(*devices: tuple[str | None, str | None]) -> list[Any]:
    """Devices of the plugin, by address and number; None is not told."""
    return [
        SimpleNamespace(
            device=SimpleNamespace(metadata={"pci_bus_id": address} if address else {}),
            ep_options={"device_id": number} if number else {},
        )
        for address, number in devices
    ]


at_first, at_second = "0000:65:00.0", "0000:01:00.0"
COUNTS = (
    "device is 'tensorrt-rtx:1', but ONNX Runtime's TensorRT-RTX plugin counts the 2 GPUs here in"
    " another way and may take another: set CUDA_VISIBLE_DEVICES=1 and use tensorrt-rtx, or make an"
    " engine with `nmsfree build`"
)
TAKES = (
    "device is 'tensorrt-rtx:1', but ONNX Runtime's TensorRT-RTX plugin takes {} of the GPUs here:"
    " it needs an RTX 30 or newer, found {}"
)
# It runs on CUDA's GPU of its number, whatever address ONNX Runtime says that this is.
CHOSEN: list[tuple[tuple[Gpu, ...], str, list[tuple[str | None, str | None]], int | str]] = [
    ((FIRST,), "tensorrt-rtx", [(None, None)], 0),
    ((FIRST,), "tensorrt-rtx", [(at_second, "7")], 0),  # one is one
    ((FIRST, SECOND), "tensorrt-rtx", [(at_first, "0"), (at_second, "1")], 0),
    ((FIRST, SECOND), "tensorrt-rtx:1", [(at_second, "1"), (at_first, "0")], 0),
    ((FIRST, SECOND), "tensorrt-rtx:1", [(at_second, None), (at_first, None)], 0),
    ((FIRST, OLD), "tensorrt-rtx", [(at_first, "0")], 0),
    ((FIRST, SECOND), "tensorrt-rtx:1", [(None, None), (None, None)], 1),
    ((FIRST, SECOND), "tensorrt-rtx:1", [(None, "1"), (None, "0")], 0),
    ((FIRST, SECOND), "tensorrt-rtx:1", [(at_second, "0"), (at_first, "1")], COUNTS),
    ((OLD, SECOND), "tensorrt-rtx:1", [(at_second, "0")], COUNTS),
    ((OLD, SECOND), "tensorrt-rtx:1", [(None, "0")], COUNTS),  # on Windows, no address is told
    ((FIRST, OLD), "tensorrt-rtx:1", [(at_first, "0")], TAKES.format(1, OLD)),
    ((FIRST, OLD), "tensorrt-rtx:1", [], TAKES.format(0, OLD)),
]


@pytest.mark.parametrize(("gpus", "device", "found", "expected"), CHOSEN)
def test_the_plugins_device_of_a_gpu(
    gpus: tuple[Gpu, ...], device: str, found: Any, expected: int | str
) -> None:
    devices, asked = plugin_found(*found), parse_device(device)
    if isinstance(expected, str):
        assert refused(lambda: choose(devices, asked, gpus)) == expected
    else:
        assert choose(devices, asked, gpus) is devices[expected]
    real = ort.get_ep_devices()[:1] * 2  # the processor's, without address and number
    assert choose(real, parse_device("tensorrt-rtx:1"), (FIRST, SECOND)) is real[1]


MEMORY = "CUDA failure 2: out of\n memory"
NO_MEMORY = (
    "device is 'cuda', but ONNX Runtime failed there (CUDA failure 2: out of memory): close other"
    " programs on the GPU, or run smaller batches"
)
BROKEN = (
    "device is 'cuda', but ONNX Runtime failed there (CUDA failure 719): `nmsfree doctor` says what"
    " is missing"
)


@pytest.mark.parametrize(("said", "message"), [(MEMORY, NO_MEMORY), ("CUDA failure 719", BROKEN)])
@pytest.mark.parametrize("batch", [1, None])
def test_a_run_that_fails_on_the_gpu_is_not_the_images_fault(
    tmp_path: Path, make_spec: Any, make_onnx: Any, cuda_build: None, one_gpu: None,
    monkeypatch: pytest.MonkeyPatch, batch: int | None, said: str, message: str,
) -> None:  # fmt: skip
    """On the processor's session: copying into fixed buffers fails, or a run with others."""

    def fail(*_: Any) -> None:
        raise (RuntimeError if batch else vendor.RuntimeException)(said)

    def fixed(session: Any, spec: Any, *_: Any) -> GraphRun:
        run = GraphRun(session, spec, "cpu", 0)
        run._buffers = (SimpleNamespace(update_inplace=fail), *run._buffers[1:])
        return run

    monkeypatch.setattr(
        onnxruntime_gpu, "make_session", lambda *_, **__: make_session(path, threads=1)
    )
    monkeypatch.setattr(onnxruntime_gpu, "check_placement", lambda *_: "")
    monkeypatch.setattr(onnxruntime_gpu, "GraphRun", fixed)
    if batch is None:
        monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", fail)
    path = make_onnx(tmp_path / "tiny.onnx", make_spec(batch=batch))
    backend = OnnxRuntimeBackend(path, parse_device("cuda"))
    assert refused(lambda: backend.run(np.zeros((1, 64, 96, 3), np.uint8))) == message
    wrong = np.zeros((1, 32, 96, 3), np.uint8)
    assert refused(lambda: backend.run(wrong), ModelError) == (
        f"the model refused images of 1 × 32 × 96 × 3, uint8 (expected {batch or 'N'} × 64 × 96 ×"
        " 3, uint8)"
    )
    backend.close()


@pytest.mark.parametrize("batch", [1, 3])
def test_fixed_buffers_give_the_same_as_a_plain_run(
    tmp_path: Path, make_spec: Any, make_onnx: Any, noise: Noise, batch: int
) -> None:
    spec = make_spec(batch=batch)
    path = make_onnx(tmp_path / "tiny.onnx", spec)
    session = make_session(path, threads=1)
    plain, bound = OnnxRuntimeBackend(path), bound_run(session)
    fixed = GraphRun(session, spec, "cpu", 0)
    several = [np.stack([noise(9 * i + j) for j in range(batch)]) for i in range(20)]
    with ThreadPoolExecutor(4) as pool:
        found = [list(pool.map(run, several)) for run in (fixed, bound)]
    for index, images in enumerate(several):
        expected = [value.tobytes() for value in plain.run(images)]
        for outputs in found:
            assert [value.tobytes() for value in outputs[index]] == expected
    said = refused(lambda: fixed(several[0][:, :32]), ModelError)
    assert said.startswith(f"the model refused images of {batch} × 32 × 96 × 3, uint8 (")
    fixed.close()
    assert refused(lambda: fixed(several[0]), ModelError) == (
        "the detector is closed: open it again"
    )


@pytest.mark.gpu
@needs_gpu
@needs_cuda
@pytest.mark.parametrize("batch", [1, None])
def test_cuda_equals_the_processor(
    tmp_path: Path, make_spec: Any, make_onnx: Any, noise: Noise, batch: int | None
) -> None:
    path = make_onnx(tmp_path / "tiny.onnx", make_spec(batch=batch))
    images = [noise(seed) for seed in range(200)]
    with Detector(path) as processor, Detector(path, device="cuda") as gpu:
        assert "CUDA" in gpu.backend.describe()
        assert ("no CUDA graph" in gpu.backend.describe()) == (batch is None)
        serial = [gpu(image) for image in images]
        for image, found in zip(images, serial, strict=True):
            expected = processor(image)
            np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.05)
            np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-4)
        with ThreadPoolExecutor(8) as pool:
            for found, again in zip(serial, pool.map(gpu, images), strict=True):
                assert found.xyxy.tobytes() == again.xyxy.tobytes()
                assert found.confidence.tobytes() == again.confidence.tobytes()


@pytest.mark.gpu
@needs_gpu
def test_the_plugin_runs(tiny: Path, noise: Noise) -> None:
    pytest.importorskip("onnxruntime_ep_nv_tensorrt_rtx")
    with Detector(tiny, device="tensorrt-rtx", tf32=True) as gpu, Detector(tiny) as processor:
        found, expected = gpu(noise(0)), processor(noise(0))
        np.testing.assert_allclose(found.confidence, expected.confidence, atol=2e-3)
