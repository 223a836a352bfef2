"""A configuration of nvinfer, the inference element of NVIDIA's DeepStream.

Every key is one that nvinfer's parser reads: `gstnvinfer_property_parser.h` in DeepStream's SDK
reference (docs.nvidia.com/metropolis/deepstream), whose names they are. The boxes are read by
`NvDsInferParseCustomEfficientNMS` of `libnvds_infercustomparser.so`, which is part of DeepStream:
it takes four outputs by their order, corners in pixels of the network's input, and classes as
integers. None of this was run: it needs a GPU and DeepStream.
"""

from pathlib import Path

from nmsfree.backends.contract import MAX_ONNX
from nmsfree.errors import InputError
from nmsfree.files import write_atomic
from nmsfree.parsing import read_bytes
from nmsfree_export.bundle.model import Model

PARSER = "NvDsInferParseCustomEfficientNMS"
LIBRARY = "/opt/nvidia/deepstream/deepstream/lib/libnvds_infercustomparser.so"
CONFIG, LABELS = "nvinfer.txt", "labels.txt"
MODES = {"fp32": 0, "int8": 1, "fp16": 2}  # network-mode


def bundle_deepstream(model: Model, out: Path) -> Path:
    """Write model, labels and configuration; return that.

    InputError: the file does not take planar floats, or pictures as DeepStream cannot make them.
    """
    spec, path = model.spec, model.path
    if model.is_engine or spec.input != "nchw-float":
        found = "is an engine" if model.is_engine else f"its input is {spec.input}"
        raise InputError(
            f"{path}: {found}, DeepStream gives planar floats: make the file again, with"
            " `nmsfree convert MODEL --input nchw-float` or the same option of export"
        )
    resize = spec.resize
    if resize.kind == "letterbox" and not resize.enlarge:
        raise InputError(f"{path}: leaves small pictures as they are, DeepStream enlarges them")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "model.onnx", read_bytes(path, MAX_ONNX))
    write_atomic(out / LABELS, ("\n".join(spec.class_names) + "\n").encode())
    write_atomic(out / CONFIG, config_of(model).encode())
    return out / CONFIG


def config_of(model: Model) -> str:
    """The configuration, in GLib's key files' form."""
    spec = model.spec
    letterbox = spec.resize.kind == "letterbox"
    keys = {
        "gpu-id": 0,
        "onnx-file": "model.onnx",
        "labelfile-path": LABELS,
        "batch-size": spec.batch or 1,
        "infer-dims": f"3;{spec.height};{spec.width}",
        "network-input-order": 0,  # NCHW
        "model-color-format": 0,  # RGB
        "net-scale-factor": repr(1 / 255),
        "network-mode": MODES[spec.precision],
        "network-type": 0,  # detector
        "process-mode": 1,  # whole frames
        "num-detected-classes": len(spec.class_names),
        "maintain-aspect-ratio": int(letterbox),
        "symmetric-padding": int(letterbox and spec.resize.place == "center"),
        "scaling-filter": 1,  # bilinear
        "cluster-mode": 4,  # none: there are no duplicates to merge
        "parse-bbox-func-name": PARSER,
        "custom-lib-path": LIBRARY,
    }
    lines = ["[property]", *(f"{key}={value}" for key, value in keys.items())]
    lines += ["", "[class-attrs-all]", f"pre-cluster-threshold={spec.threshold:g}"]
    return "\n".join(lines) + "\n"
