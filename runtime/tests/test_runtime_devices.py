"""Which device a model runs on: names, options that do not apply, files that do not fit."""

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoints
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import pytest
from runtime_helpers import refused

from nmsfree import CallableBackend, Detector, InputError, MissingExtraError, ModelError, backends
from nmsfree import machine as gpus
from nmsfree.backends import OnnxRuntimeBackend, Options, open_backend
from nmsfree.backends.options import Device, parse_device
from nmsfree.cli import eval as eval_cli
from nmsfree.machine import sha256


@pytest.mark.parametrize(
    ("text", "device", "shown"),
    [
        ("cpu", Device("cpu"), "cpu"),
        ("cuda", Device("cuda"), "cuda"),
        ("cuda:0", Device("cuda"), "cuda"),
        ("cuda:12", Device("cuda", 12), "cuda:12"),
        ("tensorrt-rtx", Device("tensorrt-rtx"), "tensorrt-rtx"),
        ("tensorrt:1", Device("tensorrt", 1), "tensorrt:1"),
        ("openvino", Device("openvino", plugin="CPU"), "openvino:CPU"),
        ("openvino:GPU.1", Device("openvino", plugin="GPU.1"), "openvino:GPU.1"),
    ],
)
def test_names_of_devices(text: str, device: Device, shown: str) -> None:
    assert parse_device(text) == device
    assert str(device) == shown
    assert parse_device(shown) == device


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tpx",
        "CPU",
        "tensrt",
        "cpu:0",
        "cuda:",
        "cuda:-1",
        "cuda:one",
        "openvino:NPU",
        "gpu",
        "npu",
    ],
)
def test_other_names_are_refused(tiny: Path, text: str) -> None:
    known = {"CPU": "cpu", "tensrt": "tensorrt", "gpu": "cuda"}
    meant = f"; did you mean {known[text]}?" if text in known else ""
    assert refused(lambda: Detector(tiny, device=text), InputError) == (
        f"device is {text!r}, expected one of: cpu, cuda, tensorrt-rtx, tensorrt, openvino;"
        " cuda:1 is the second GPU, openvino:GPU an Intel GPU" + meant
    )


WRONG_OPTIONS = [
    ("cpu", {"tf32": True}, "ONNX Runtime on cpu", "ONNX files on cuda and tensorrt-rtx"),
    ("cpu", {"precision": "bf16"}, "ONNX Runtime on cpu", "openvino"),
    ("cuda", {"precision": "f32"}, "ONNX Runtime on cuda", "openvino"),
    ("tensorrt-rtx", {"trust": True}, "ONNX Runtime on tensorrt-rtx", "engines"),
    ("openvino", {"tf32": True}, "OpenVINO", "ONNX files on cuda and tensorrt-rtx"),
]


@pytest.mark.parametrize(("device", "option", "what", "meant"), WRONG_OPTIONS)
def test_options_that_do_not_apply_are_refused(
    tiny: Path, device: str, option: dict[str, Any], what: str, meant: str
) -> None:
    [(name, value)] = option.items()
    assert refused(lambda: Detector(tiny, device=device, **option), InputError) == (
        f"{name} is {value!r}, but does not apply to {what}: it is for {meant}, leave it out here"
    )


@pytest.mark.parametrize("option", ["threads", "allow_cpu", "tf32", "precision"])
def test_an_engine_takes_no_options_of_onnx_files(tmp_path: Path, option: str) -> None:
    value = {"threads": 2, "precision": "f32"}.get(option, True)
    message = refused(lambda: Detector(tmp_path / "a.engine", **{option: value}), InputError)
    assert message.startswith(f"{option} is {value!r}, but does not apply to an engine: it is for ")


def test_threads_and_precision_have_values() -> None:
    assert refused(lambda: Options(threads=0), InputError) == (
        "threads is 0, expected 1 or more, or None to let it choose"
    )
    assert "threads is 1000000000, expected " in refused(lambda: Options(10**9), InputError)
    assert type(Options(threads=np.int16(3)).threads) is int  # type: ignore[arg-type]
    assert refused(lambda: Options(precision="f16"), InputError) == (
        "precision is 'f16', expected 'f32' or 'bf16'"
    )
    assert refused(lambda: Options(sha256="abc"), InputError) == (
        "sha256 is 'abc', expected 64 hexadecimal digits"
    )


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_a_file_of_another_hash_is_refused(tiny: Path, device: str) -> None:
    digest = sha256(tiny)
    with Detector(tiny, device=device, sha256=digest.upper()) as detector:
        assert len(detector.names) == 3
    assert refused(lambda: Detector(tiny, device=device, sha256="0" * 64), ModelError) == (
        f"{tiny}: its sha256 is {digest}, expected {'0' * 64}: this is another file than was meant"
    )


def test_a_backend_is_open_already(make_spec: Any) -> None:
    backend = CallableBackend(lambda images: None, make_spec())  # type: ignore[arg-type,return-value]
    assert Detector(backend).backend is backend
    assert refused(lambda: Detector(backend, device="cpu"), InputError) == (
        "device is 'cpu', but a backend is open on its own: leave it out"
    )
    assert refused(lambda: Detector(backend, threads=2), InputError) == (
        "threads is 2, but does not apply to a backend, which is open on its own:"
        " it is for ONNX files and checkpoints, leave it out here"
    )


def test_a_file_picks_its_engine(tiny: Path) -> None:
    assert isinstance(open_backend(tiny), OnnxRuntimeBackend)
    assert isinstance(open_backend(tiny, "cpu", Options(threads=1)), OnnxRuntimeBackend)
    assert refused(lambda: open_backend(tiny, "tensorrt"), InputError) == (
        f"{tiny}: device is 'tensorrt', which runs engines only: make one with"
        " `nmsfree build --with tensorrt`"
    )


def test_engines_run_on_nvidia_gpus(tmp_path: Path) -> None:
    engine = tmp_path / "a.engine"
    for device in ("cpu", "openvino:CPU"):
        assert refused(lambda d=device: open_backend(engine, d), InputError) == (
            f"{engine}: device is '{device}', but an engine runs on an NVIDIA GPU: give the ONNX"
            " file, or leave the device out"
        )
    assert refused(lambda: open_backend(engine), ModelError) == (
        f"{engine}: no such file, expected an engine made by `nmsfree build`"
    )


class FakeEngines:
    """Stands in for the backend of engines, and keeps what it was opened with."""

    def __init__(self, path: Path, device: Any, *options: Any, **named: Any) -> None:
        self.opened = (path, device and str(device), *options, named)


@pytest.mark.parametrize("device", [None, "cuda:1", "tensorrt-rtx", "tensorrt:2"])
def test_an_engine_is_opened_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str | None
) -> None:
    engine = tmp_path / "a.engine"
    engine.touch()
    fake: Any = type(sys)("nmsfree.backends.tensorrt.backend")
    fake.TensorRtBackend = FakeEngines
    monkeypatch.setitem(sys.modules, "nmsfree.backends.tensorrt.backend", fake)
    backend: Any = open_backend(engine, device, Options(rebuild=False, trust=True))
    assert backend.opened == (engine, device, Options(rebuild=False, trust=True), {})


def test_checkpoints_run_in_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    entry = type("Entry", (), {"load": lambda self: FakeEngines})()
    monkeypatch.setattr(backends, "entry_points", lambda **_: [entry])
    for device in ("openvino:CPU", "tensorrt-rtx"):
        assert refused(lambda d=device: open_backend(path, d), InputError) == (
            f"{path}: device is '{device}', but a checkpoint runs in PyTorch, on cpu or cuda:"
            " export it with `nmsfree export`"
        )
    assert refused(lambda: open_backend(path, "cuda", Options(tf32=True)), InputError) == (
        "tf32 is True, but does not apply to a checkpoint:"
        " it is for ONNX files on cuda and tensorrt-rtx, leave it out here"
    )
    backend: Any = open_backend(path, None, Options(threads=3))
    assert backend.opened == (path, "cpu", {"threads": 3})


def test_a_checkpoint_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "entry_points", lambda **_: EntryPoints())
    assert refused(lambda: open_backend(tmp_path / "a.pth"), MissingExtraError) == (
        "running a checkpoint needs a package that is not installed:"
        " in your copy of the repository: make setup"
    )


class FakeDriver:
    """libcuda as `ctypes` would call it: results are written to where pointers point."""

    def __init__(self, status: int = 0, count: int = 2) -> None:
        self.status, self.count = status, count

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13020
        return 0

    def cuGetErrorName(self, status: int, name: Any) -> int:
        if status == 100:
            name._obj.value = b"CUDA_ERROR_NO_DEVICE"
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"NVIDIA GeForce RTX 4060" if device.value == 0 else b"NVIDIA H100"
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = (8 + device.value) << 30
        return 0

    def cuDeviceGetPCIBusId(self, bus: Any, size: int, device: Any) -> int:
        bus.value = f"0000:{device.value + 1:02d}:00.0".encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {(0, 75): 8, (0, 76): 9, (1, 75): 9}.get((device.value, attribute), 0)
        return 0


def test_gpus_as_the_driver_tells_them() -> None:
    found = gpus.ask(FakeDriver())
    assert [str(gpu) for gpu in found.found] == [
        "NVIDIA GeForce RTX 4060 (compute capability 8.9)",
        "NVIDIA H100 (compute capability 9.0)",
    ]
    assert [gpu.memory >> 30 for gpu in found.found] == [8, 9]
    assert [gpu.bus for gpu in found.found] == ["0000:01:00.0", "0000:02:00.0"]
    assert (found.cuda, found.problem) == ("13.2", "")


@pytest.mark.parametrize(
    ("driver", "problem"),
    [
        (FakeDriver(status=100), "the NVIDIA driver does not start (CUDA_ERROR_NO_DEVICE)"),
        (FakeDriver(status=7), "the NVIDIA driver does not start (error 7)"),
        (FakeDriver(count=0), "the NVIDIA driver sees no GPU"),
    ],
)
def test_a_driver_without_a_gpu(driver: FakeDriver, problem: str) -> None:
    assert gpus.ask(driver) == gpus.Gpus((), "13.2", problem)


def test_numbers_of_attributes_are_those_of_cuda() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    attributes = driver.CUdevice_attribute
    assert attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == gpus.CAPABILITY_MAJOR
    assert attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == gpus.CAPABILITY_MINOR


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "LIBRARY", "libcuda-is-absent.so.1")
    problem = "no NVIDIA driver was found (libcuda-is-absent.so.1)"
    assert gpus.find_gpus() == gpus.Gpus((), None, problem)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, nmsfree_command: Any, tiny: Path, tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """Run `nmsfree detect` on one picture: exit status and stderr."""
    cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 96, 3), 200, np.uint8))
    monkeypatch.chdir(tmp_path)

    def run(*options: str, model: str = "tiny.onnx") -> tuple[int, str]:
        status, _, err = nmsfree_command("detect", "a.png", "-m", model, *options)
        return status, err

    return run


def test_the_command_says_what_really_runs(command: Callable[..., tuple[int, str]]) -> None:
    status, err = command("--threads", "1")
    assert status == 0
    assert err.startswith(f"engine: ONNX Runtime {ort.__version__} CPU, threads 1\n")
    status, err = command("--device", "cuda:7")
    assert status == 3
    assert err.startswith("error: device is 'cuda:7', but ")
    assert err.count("\n") == 1
    status, err = command("--device", "cuda:7", "--allow-cpu")  # no machine has eight
    assert status == 0
    assert (
        f"engine: ONNX Runtime {ort.__version__} CPU, threads automatic (in place of cuda:7)" in err
    )


def test_the_published_protocol_takes_checkpoints_on_their_devices(make_dataset: Any) -> None:
    def request(file: str) -> eval_cli.Request:
        engine = Options(threads=2, tf32=True)
        return eval_cli.Request(file=Path(file), data=Path(), protocol="published", engine=engine)

    assert refused(lambda: eval_cli._run(request("a.pth"), make_dataset()), InputError) == (
        "tf32 is True, but does not apply to the published protocol:"
        " it is for ONNX files on cuda and tensorrt-rtx, leave it out here"
    )
    assert refused(lambda: request("a.engine"), InputError) == (
        "a.engine: an engine has one input size, the published protocol feeds every image at its"
        " own: give the checkpoint, or use --protocol deployed"
    )
