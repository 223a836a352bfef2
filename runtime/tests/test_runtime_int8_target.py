"""An INT8 file is refused by the engines that it was not made for, in one line that says why."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from nmsfree import Detector, ModelError, ModelSpec
from nmsfree.spec import check_int8_target

MakeSpec = Callable[..., ModelSpec]
FILE = Path("model.onnx")
DEVICES = ("cpu", "cuda", "tensorrt-rtx", "tensorrt", "openvino")
REFUSED = {
    ("tensorrt", "cpu"): "model.onnx: made for tensorrt, not for cpu: ONNX Runtime on processors"
    " runs signed activations with a bias in float at half the speed of a file made for cpu;"
    " export with --precision int8 --for cpu",
    ("tensorrt", "cuda"): "model.onnx: made for tensorrt, not for cuda: ONNX Runtime's CUDA"
    " provider has no INT8 convolutions, so nothing is gained; export with"
    " --precision fp16",
    ("tensorrt", "openvino"): "model.onnx: made for tensorrt, not for openvino: its weights of 8"
    " bits saturate in OpenVINO where the processor has no VNNI; export with --precision int8"
    " --for cpu",
    ("cpu", "cuda"): "model.onnx: made for cpu, not for cuda: ONNX Runtime's CUDA provider has no"
    " INT8 convolutions, so nothing is gained; export with --precision fp16",
    ("cpu", "tensorrt-rtx"): "model.onnx: made for cpu, not for tensorrt-rtx: TensorRT-RTX has no"
    " asymmetric zero points; export with --precision int8 --for tensorrt",
    ("cpu", "tensorrt"): "model.onnx: made for cpu, not for tensorrt: TensorRT has no asymmetric"
    " zero points; export with --precision int8 --for tensorrt",
}


@pytest.mark.parametrize(("target", "device"), REFUSED)
def test_the_wrong_engine_is_refused(make_spec: MakeSpec, target: str, device: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_int8_target(FILE, make_spec(precision="int8", made_for=target), device)
    assert str(caught.value) == REFUSED[target, device]


@pytest.mark.parametrize(
    ("target", "device"),
    sorted({*product((None, "cpu", "tensorrt"), DEVICES)} - {*REFUSED}, key=str),
)
def test_every_other_pair_is_taken(make_spec: MakeSpec, target: str | None, device: str) -> None:
    assert check_int8_target(FILE, make_spec(made_for=target), device) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize("device", ["cpu", "cuda", "openvino"])
def test_detectors_refuse_before_anything_runs(
    tmp_path: Path, make_spec: MakeSpec, make_onnx: Callable[..., Path], device: str
) -> None:
    if device == "openvino":
        pytest.importorskip("openvino")
    path = make_onnx(tmp_path / "model.onnx", make_spec(made_for="tensorrt"))
    with pytest.raises(ModelError) as caught:
        Detector(path, device=device)
    assert str(caught.value) == f"{tmp_path}/{REFUSED['tensorrt', device]}"


def test_a_file_for_processors_opens_there(
    tmp_path: Path, make_spec: MakeSpec, make_onnx: Callable[..., Path]
) -> None:
    path = make_onnx(tmp_path / "model.onnx", make_spec(made_for="cpu"))
    with Detector(path) as detector:
        assert detector.spec.made_for == "cpu"
