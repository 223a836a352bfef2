"""A model repository for NVIDIA's Triton Inference Server.

    DIR/NAME/config.pbtxt   types, sizes, batching, warm-up
    DIR/NAME/labels.txt     a class name a line
    DIR/NAME/1/model.onnx   or model.plan
    DIR/NAME/warmup/canary  a picture that runs before the first request
    DIR/client.py           asks the server

The configuration's fields are those of `model_config.proto` of Triton's own repository; `check`
reads it with that definition, from the package tritonclient, and holds it against the file.
"""

import json
import re
from pathlib import Path

import numpy as np

from nmsfree.backends.contract import MAX_ONNX
from nmsfree.canary import canary_picture
from nmsfree.errors import GateError, import_extra
from nmsfree.files import write_atomic
from nmsfree.parsing import read_bytes
from nmsfree.text import shown
from nmsfree_export.bundle.model import OPEN, Model
from nmsfree_export.tensorrt.network import Tensor

TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32"}
LARGEST = 64  # batch of a file of any
QUEUE = 500  # microseconds that a request may wait for others to join it
CONFIG, CANARY = "config.pbtxt", "canary"

CLIENT = '''"""Detections of a picture from the server: python client.py PICTURE [HOST:PORT]."""

import sys

import cv2
import numpy as np
import tritonclient.http as triton

NAMES = {names}
picture = cv2.imread(sys.argv[1])
{prepare}
server = triton.InferenceServerClient(sys.argv[2] if len(sys.argv) > 2 else "localhost:8000")
images = triton.InferInput("images", list(pixels.shape), "{kind}")
images.set_data_from_numpy(np.ascontiguousarray(pixels))
answer = server.infer("{model}", [images])
count, boxes, scores, classes = (answer.as_numpy(name)[0] for name in {outputs})
for box, score, label in zip({back}, scores, classes):
    if score > {threshold}:
        print(NAMES[label], round(float(score), 3), box.round(1).tolist())
'''


def bundle_triton(model: Model, out: Path, *, gpu: bool, instances: int) -> Path:
    """Write the repository; return the model's folder.

    Args:
        gpu: on which the model runs; an engine runs on none else.
        instances: of the model, each with requests of its own.
    """
    spec = model.spec
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", spec.name)
    folder = out / name
    for inner in ("1", "warmup"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    file = "model.plan" if model.is_engine else "model.onnx"
    write_atomic(folder / "1" / file, read_bytes(model.path, MAX_ONNX))
    write_atomic(folder / "labels.txt", ("\n".join(spec.class_names) + "\n").encode())
    picture = canary_picture(*spec.canary_size)
    if spec.input == "nchw-float":
        planes = picture[..., ::-1].transpose(2, 0, 1).astype("<f4") / np.float32(255)
        content = planes.tobytes()
    else:
        content = picture.tobytes()
    if not model.has_open_batch:
        content *= model.inputs[0].shape[0]
    write_atomic(folder / "warmup" / CANARY, content)
    text = config_of(model, name, gpu or model.is_engine, instances)
    write_atomic(folder / CONFIG, text.encode())
    write_atomic(out / "client.py", client_of(model, name).encode())
    return folder


def config_of(model: Model, name: str, gpu: bool, instances: int) -> str:
    """The configuration, as protobuf's text.

    With an open batch the server joins requests, and sizes are given without it. A fixed one is a
    size like any other.
    """
    batches = model.has_open_batch
    images = model.inputs[0]
    canary = list(images.shape[1:] if batches else images.shape)
    if model.spec.input == "any":
        canary[1:3] = model.spec.canary_size
    lines = [
        f"name: {json.dumps(name)}",
        f'platform: "{"tensorrt_plan" if model.is_engine else "onnxruntime_onnx"}"',
        f"max_batch_size: {(model.largest or LARGEST) if batches else 0}",
        *(_port("input", port, batches) for port in model.inputs),
        *(_port("output", port, batches) for port in model.outputs),
        f"instance_group [{{ count: {instances} kind: {'KIND_GPU' if gpu else 'KIND_CPU'} }}]",
        f'parameters {{ key: "threshold" value {{ string_value: "{model.spec.threshold:g}" }} }}',
        "model_warmup [{",
        f'  name: "{CANARY}"',
        "  batch_size: 1",
        f'  inputs {{ key: "images" value {{ data_type: {TYPES[images.dtype]} dims: {canary}'
        f' input_data_file: "{CANARY}" }} }}',
        "}]",
    ]
    if batches:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE} }}")
    return "\n".join(lines) + "\n"


def _port(kind: str, port: Tensor, batches: bool) -> str:
    sizes = list(port.shape[1:] if batches else port.shape)
    return (
        f"{kind} [{{ name: {json.dumps(port.name)} data_type: {TYPES[port.dtype]} dims: {sizes} }}]"
    )


def client_of(model: Model, name: str) -> str:
    """A program that sends a picture and prints what is found."""
    spec = model.spec
    prepare, back = "pixels = picture[None]", "boxes"
    if spec.input != "any":
        prepare = (
            "from nmsfree.preprocess import resize_into\n"
            "from nmsfree.spec import Resize\n\n"
            f"pixels = np.empty((1, {spec.height}, {spec.width}, 3), np.uint8)\n"
            f"geometry = resize_into(picture, pixels[0], {spec.resize!r})"
        )
        back = "geometry.to_source(boxes)"
    if spec.input == "nchw-float":
        prepare += "\npixels = pixels[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255"
    return CLIENT.format(
        names=list(spec.class_names),
        prepare=prepare,
        kind={"uint8": "UINT8", "float32": "FP32"}[model.inputs[0].dtype],
        model=name,
        outputs=[port.name for port in model.outputs],
        back=back,
        threshold=spec.threshold,
    )


def check(folder: Path, model: Model) -> None:
    """Read a configuration by Triton's own definition, and hold it against the model's file.

    Raises:
        MissingExtraError: the package tritonclient is not installed.
        GateError: the configuration is none, or not of this file.
    """
    pb = import_extra(
        "tritonclient.grpc.model_config_pb2",
        "checking a configuration of Triton",
        "nmsfree-export[triton]",
    )
    from google.protobuf import text_format  # type: ignore[import-untyped]

    path = folder / CONFIG
    try:
        config = text_format.Parse(read_bytes(path).decode(), pb.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise GateError(f"{path}: no configuration of Triton ({shown(error)})") from None
    batches = model.has_open_batch
    if config.name != folder.name:
        raise GateError(f"{path}: names {shown(config.name)}, its folder is {folder.name}")
    if (config.max_batch_size > 0) != batches or (
        model.largest and config.max_batch_size > model.largest
    ):
        raise GateError(
            f"{path}: max_batch_size is {config.max_batch_size}, the file takes"
            f" {'any' if batches else model.inputs[0].shape[0]}"
        )
    for kind, given, real in (
        ("input", config.input, model.inputs),
        ("output", config.output, model.outputs),
    ):
        found = [
            (p.name, pb.DataType.Name(p.data_type), (*([OPEN] if batches else []), *p.dims))
            for p in given
        ]
        wanted = [(p.name, TYPES[p.dtype], p.shape) for p in real]
        if found != wanted:
            raise GateError(f"{path}: {kind} is {found}, the file's is {wanted}")
    for warmup in config.model_warmup:
        for sample in warmup.inputs.values():
            size = (folder / "warmup" / sample.input_data_file).stat().st_size
            width = {"TYPE_UINT8": 1, "TYPE_FP32": 4}[pb.DataType.Name(sample.data_type)]
            if size != width * int(np.prod(sample.dims)):
                raise GateError(
                    f"{path}: its warm-up is {size} bytes, expected {list(sample.dims)}"
                )
