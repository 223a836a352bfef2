"""Tensors of the Open Inference Protocol (KServe v2, REST), in JSON and in its binary extension.

Source: https://github.com/kserve/open-inference-protocol, and for binary tensors Triton's
"binary tensor data extension". `images` goes in, the four outputs of the file come out.
"""

from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections
from nmsfree.backends.contract import output_shapes
from nmsfree.errors import InputError
from nmsfree.parsing import decode_json
from nmsfree.spec import ModelSpec
from nmsfree.text import shown

DATATYPES = {"int32": "INT32", "float32": "FP32"}
Parameters = dict[str, Any]


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: Parameters = {}


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    outputs: list[_Output] = []
    parameters: Parameters = {}


class Asked(NamedTuple):
    """A request that was read."""

    images: NDArray[np.uint8]  # [N, H, W, 3], BGR
    id: str
    outputs: dict[str, bool]  # names, in the order asked for → whether its values come as bytes


def metadata(name: str, spec: ModelSpec) -> dict[str, Any]:
    """What the model takes and gives; an open batch is -1."""
    batch = spec.batch or -1
    image = {"name": "images", "datatype": "UINT8", "shape": [batch, spec.height, spec.width, 3]}
    outputs = [
        {"name": output, "datatype": DATATYPES[kind], "shape": [batch, *shape]}
        for output, (kind, shape) in output_shapes(spec.top_k).items()
    ]
    return {"name": name, "platform": "nmsfree", "inputs": [image], "outputs": outputs}


def read_request(body: bytes, json_bytes: int | None, spec: ModelSpec) -> Asked:
    """Read an inference request.

    Args:
        json_bytes: where binary values begin; None if all of it is JSON.

    Raises:
        InputError: it does not fit the protocol or the model.
    """
    end = len(body) if json_bytes is None else json_bytes
    if not 0 <= end <= len(body):
        raise InputError(f"Inference-Header-Content-Length is {end}, the body has {len(body)}")
    asked = decode_json(body[:end], _Request, "inference request", InputError)
    names = [given.name for given in asked.inputs]
    if names != ["images"]:
        raise InputError(f"inputs are {shown(names)}, expected one: images")
    images = _read_images(asked.inputs[0], body[end:])
    expected = (spec.batch or len(images), spec.height, spec.width, 3)
    if images.shape != expected or not len(images):
        shape = [spec.batch or "N", *expected[1:]]
        raise InputError(f"images has shape {list(images.shape)}, expected {shape}")
    wanted = asked.outputs or [_Output(name) for name in RawDetections._fields]
    unknown = [output.name for output in wanted if output.name not in RawDetections._fields]
    if unknown:
        raise InputError(
            f"outputs {shown(unknown)} are unknown, expected {', '.join(RawDetections._fields)}"
        )
    usual = bool(asked.parameters.get("binary_data_output", False))
    binary = {o.name: bool(o.parameters.get("binary_data", usual)) for o in wanted}
    return Asked(images, asked.id, binary)


def _read_images(given: _Input, rest: bytes) -> NDArray[np.uint8]:
    if given.datatype != "UINT8":
        raise InputError(f"images has datatype {shown(given.datatype)}, expected UINT8")
    if min(given.shape, default=0) < 1 or len(given.shape) != 4:
        raise InputError(f"images has shape {shown(given.shape)}, expected [N, H, W, 3]")
    if "shared_memory_region" in given.parameters:
        raise InputError("images is in shared memory, which is not supported: send its values")
    size = given.parameters.get("binary_data_size")
    if size is not None:
        if given.data is not None or size != len(rest):
            raise InputError(f"images has binary_data_size {shown(size)}, but {len(rest)} follow")
        values = np.frombuffer(rest, np.uint8)
    else:
        values = _numbers(given.data)
    count = 1
    for side in given.shape:
        count *= side
    if len(values) != count:
        raise InputError(f"images has {len(values)} values, expected {count} of its shape")
    return values.reshape(given.shape)


def _numbers(data: list[Any] | None) -> NDArray[np.uint8]:
    """Values in JSON, flat or nested."""
    try:
        values = np.array(data if data is not None else [])
    except ValueError:
        raise InputError("images has lists of several lengths") from None
    if values.dtype.kind != "i" or values.min(initial=0) < 0 or values.max(initial=0) > 255:
        raise InputError("images has other values than whole numbers 0 … 255")
    return values.astype(np.uint8).ravel()


def write_answer(name: str, raw: RawDetections, asked: Asked) -> tuple[bytes, int | None]:
    """Return the answer's body, and how many of its bytes are JSON where values follow it."""
    outputs, values = [], []
    for output, binary in asked.outputs.items():
        array = getattr(raw, output)
        kind = DATATYPES[str(array.dtype)]
        entry: Parameters = {"name": output, "datatype": kind, "shape": list(array.shape)}
        if binary:
            values.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
            entry["parameters"] = {"binary_data_size": len(values[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        outputs.append(entry)
    answer: Parameters = {"model_name": name, "outputs": outputs}
    if asked.id:
        answer["id"] = asked.id
    head = msgspec.json.encode(answer)
    return b"".join([head, *values]), len(head) if values else None
