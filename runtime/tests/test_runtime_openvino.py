"""The OpenVINO backend: the contract, files and requests that are refused, agreement."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import runtime_helpers as helpers
from runtime_helpers import Noise

from nmsfree import Detector, EngineError, InputError, MissingExtraError, ModelError
from nmsfree import machine as identity
from nmsfree.backends import OnnxRuntimeBackend, OpenVinoBackend
from nmsfree.backends import openvino as openvino_model

refused = helpers.refusing(ModelError)
openvino = pytest.importorskip("openvino")

VERSION = openvino.__version__.partition("-")[0]
WEIGHTS = Path(__file__).parents[2] / "weights"


def test_the_description_says_what_runs(tiny: Path) -> None:
    assert " threads 2" in Detector(tiny, device="openvino", threads=2).backend.describe()
    said = f"OpenVINO {VERSION} CPU, f32, threads automatic"
    assert OpenVinoBackend(tiny).describe() == said


def test_an_opset_that_no_onnx_has_is_refused(tiny: Path) -> None:
    """OpenVINO counts up to the number, for minutes."""
    content = tiny.read_bytes()
    opset = content.rindex(b"\x0a\x00\x10")  # domain "", version
    tiny.write_bytes(
        content[: opset - 1] + b"\x08\x0a\x00\x10\xff\xff\xff\xff\x07" + content[opset + 4 :]
    )
    assert "opset 2147483647 found" in refused(lambda: OpenVinoBackend(tiny))


def test_no_images_are_refused(tiny: Path) -> None:
    assert refused(lambda: OpenVinoBackend(tiny).run(np.zeros((0, 64, 96, 3), np.uint8))) == (
        "the model refused images of 0 × 64 × 96 × 3, uint8 (expected N × 64 × 96 × 3, uint8)"
    )


def test_images_need_not_be_contiguous_or_writable(tiny: Path, noise: Noise) -> None:
    backend = OpenVinoBackend(tiny)
    wide = np.stack([noise(0, 64, 192)])
    expected = backend.run(wide[:, :, ::2].copy())
    every_second = wide[:, :, ::2]
    fixed = wide[:, :, ::2].copy()
    fixed.setflags(write=False)
    for images in (every_second, fixed):
        for value, other in zip(backend.run(images), expected, strict=True):
            np.testing.assert_array_equal(value, other)


def test_a_gpu_that_is_not_there(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = openvino.Core
    fake = type("Core", (), {"available_devices": ["CPU"], "compile_model": core.compile_model})
    monkeypatch.setattr(openvino, "Core", fake)
    for plugin in ("GPU", "GPU.1"):
        assert refused(
            lambda p=plugin: Detector(tiny, device=f"openvino:{p}"), kind=EngineError
        ) == (
            f"device is 'openvino:{plugin}', but OpenVINO finds CPU here: an Intel GPU needs its"
            " OpenCL driver"
        )


def test_a_model_that_the_device_does_not_take(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Exception from core.cpp:117:\nno kernel for TopK")

    fake = type("Core", (), {"available_devices": ["CPU", "GPU"], "compile_model": fail})
    monkeypatch.setattr(openvino, "Core", fake)
    assert refused(lambda: Detector(tiny, device="openvino:GPU"), EngineError) == (
        "device is 'openvino:GPU', but OpenVINO cannot compile the model for it"
        " (Exception from core.cpp:117: no kernel for TopK)"
    )


def test_a_missing_openvino(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert refused(lambda: Detector(tiny, device="openvino"), MissingExtraError) == (
        "running a model in OpenVINO needs a package that is not installed:"
        ' pip install "nmsfree[openvino]"'
    )


def test_threads_are_for_processors(tiny: Path) -> None:
    assert refused(lambda: Detector(tiny, device="openvino:GPU", threads=2), InputError) == (
        "threads is 2, but does not apply to openvino:GPU: it is for processors, leave it out here"
    )


def test_bf16_is_refused_where_it_would_be_emulated(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_model, "computes_bf16", lambda: False)
    monkeypatch.setattr(openvino_model, "processor_name", lambda: "Z80")
    assert refused(
        lambda: Detector(tiny, device="openvino", precision="bf16"), kind=InputError
    ) == (
        "precision is 'bf16', but this processor (Z80) has no bfloat16 arithmetic:"
        " use precision='f32'"
    )


@pytest.mark.skipif(identity.computes_bf16() is not False, reason="this processor may have bf16")
def test_bf16_that_openvino_does_not_give_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system tells nothing, what OpenVINO took is read back.

    It silently takes f32, or emulates bf16 with the AVX-512 of older processors.
    """
    monkeypatch.setattr(openvino_model, "computes_bf16", lambda: None)
    try:
        with Detector(tiny, device="openvino", precision="bf16") as detector:
            description = detector.backend.describe()
    except EngineError as error:
        assert str(error) == (
            "asked OpenVINO for bf16 on CPU, but it runs f32 on CPU: ask for that,"
            " or for another device"
        )
    else:
        assert "bf16" in description


@pytest.mark.skipif(not identity.computes_bf16(), reason="this processor has no bf16")
def test_bf16_runs_where_the_processor_has_it(tiny: Path, noise: Noise) -> None:
    with Detector(tiny, device="openvino", precision="bf16") as half, Detector(tiny) as full:
        assert ", bf16, " in half.backend.describe()
        found, expected = half(noise(0)), full(noise(0))
        np.testing.assert_allclose(found.confidence, expected.confidence, atol=0.01)


def test_a_failure_while_running_is_one_line(tiny: Path, noise: Noise) -> None:
    backend = OpenVinoBackend(tiny)

    class Request:
        def start_async(self, *_: object, **__: object) -> None:
            pass

        def wait(self) -> None:
            raise RuntimeError("Exception from infer.cpp:1:\nout of memory")

    backend._idle.append(Request())
    assert refused(lambda: backend.run(noise(0)[None]), EngineError) == (
        "OpenVINO failed while running (Exception from infer.cpp:1: out of memory)"
    )
    assert backend._idle == []  # nobody knows in what state it is
    backend.run(noise(0)[None])


@pytest.mark.slow
def test_a_trained_detector_with_nms_agrees_with_onnxruntime(tmp_path: Path) -> None:
    """On the bundled scenes, alone and in a batch; tests of `nmsfree verify` do it without NMS."""
    export = pytest.importorskip("nmsfree_export.export")
    checkpoint = pytest.importorskip("nmsfree_training.weights.checkpoint")
    parity = pytest.importorskip("nmsfree_export.verify.parity")
    nano, path = (
        checkpoint.load_checkpoint(WEIGHTS / "fcos_e2e_nano.safetensors"),
        tmp_path / "a.onnx",
    )
    export.export_onnx(nano, path, export.ExportOptions(head="o2m", batch=None))
    tolerance = parity.Tolerance(score=1e-4, box=0.05)  # pixels
    outcome = parity.compare(
        OnnxRuntimeBackend(path), OpenVinoBackend(path), parity.load_images(None), tolerance
    )
    assert outcome.rows > 10
    assert outcome.passed, str(outcome)


def test_signals_are_handled_after_models_were_closed_in_any_order(
    tiny: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_python(
        "import signal, sys, threading\n"
        "from nmsfree import Detector\n"
        "signal.signal(signal.SIGINT, lambda *_: print('handled'))\n"
        "first, second = (Detector(sys.argv[1], device='openvino') for _ in range(2))\n"
        "first.close()\n"
        "second.close()\n"
        "signal.raise_signal(signal.SIGINT)\n"
        "third = Detector(sys.argv[1], device='openvino')\n"
        "thread = threading.Thread(target=third.close)\n"
        "thread.start()\n"
        "thread.join()\n"
        "signal.raise_signal(signal.SIGINT)",
        tiny,
    )
    assert (done.returncode, done.stdout) == (0, "handled\nhandled\n"), done.stderr
