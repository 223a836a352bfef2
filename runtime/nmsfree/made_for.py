"""INT8 files are made for one kind of engine; any other is told why it cannot have this one.

What each needs excludes the other: a processor's INT8 convolution wants unsigned activations with
a zero point and a bias in int32, TensorRT takes signed ones whose zero points are 0 and a bias in
float. A file of the other kind is refused there, or runs with no gain.
"""

from pathlib import Path

from nmsfree.errors import ModelError
from nmsfree.spec import ModelSpec

# What runs a file → why a file made for the key does not fit it. What is not named here fits.
_REASONS = {
    "cpu": {
        "cuda": "ONNX Runtime's CUDA provider has no INT8 convolutions, so nothing is gained",
        "tensorrt-rtx": "TensorRT-RTX has no asymmetric zero points",
        "tensorrt": "TensorRT has no asymmetric zero points",
    },
    "tensorrt": {
        "cpu": "ONNX Runtime on processors runs signed activations with a bias in float at half"
        " the speed of a file made for cpu",
        "cuda": "ONNX Runtime's CUDA provider has no INT8 convolutions, so nothing is gained",
        "openvino": "its weights of 8 bits saturate in OpenVINO where the processor has no VNNI",
    },
}
_INSTEAD = {
    "cpu": "--precision int8 --for cpu",
    "cuda": "--precision fp16",
    "openvino": "--precision int8 --for cpu",
    "tensorrt-rtx": "--precision int8 --for tensorrt",
    "tensorrt": "--precision int8 --for tensorrt",
}


def check_made_for(path: Path, spec: ModelSpec, device: str) -> None:
    """Refuse a file that was made for another kind of engine.

    Args:
        path: the file, for the message.
        device: kind of device as in `backends.devices`, also what an engine is built with: "cpu",
            "cuda", "tensorrt-rtx", "tensorrt", "openvino".

    Raises:
        ModelError: it does not fit; says why, and what to export instead.
    """
    reason = _REASONS.get(spec.made_for or "", {}).get(device)
    if reason is not None:
        raise ModelError(
            f"{path}: made for {spec.made_for}, not for {device}: {reason};"
            f" export with {_INSTEAD[device]}"
        )
