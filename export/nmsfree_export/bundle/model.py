"""A model file as a host sees it: its real inputs and outputs, and its description."""

from dataclasses import dataclass
from pathlib import Path

import onnx

from nmsfree.backends.contract import MAX_ONNX, image_port, output_shapes
from nmsfree.backends.tensorrt.sidecar import read_sidecar
from nmsfree.errors import InputError, ModelError
from nmsfree.machine import sha256
from nmsfree.parsing import read_bytes
from nmsfree.spec import ModelSpec
from nmsfree_export.graph.contract import port_of
from nmsfree_export.tensorrt.network import Tensor, read_source

OPEN = -1  # a side of any size


@dataclass(frozen=True)
class Model:
    """A file of the contract: an ONNX file, or an engine of full TensorRT."""

    path: Path
    spec: ModelSpec
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    largest: int  # batch; of an open one without a bound 0

    @property
    def is_engine(self) -> bool:
        return self.path.suffix == ".engine"

    @property
    def has_open_batch(self) -> bool:
        return self.inputs[0].shape[0] == OPEN


def read_model(path: Path) -> Model:
    """Read what a file takes and gives.

    Raises:
        ModelError: it is no file of this project.
        InputError: an engine that only this project's runtime runs.
    """
    if path.suffix == ".engine":
        return _read_engine(path)
    source = read_source(path)
    graph = onnx.load_from_string(source.content).graph
    inputs, outputs = (
        tuple(
            Tensor(name, kind, tuple(_size(s) for s in sizes))
            for name, kind, sizes in map(port_of, v)
        )
        for v in (graph.input, graph.output)
    )
    return Model(path, source.spec, inputs, outputs, source.spec.batch or 0)


def _size(side: int | str) -> int:
    return side if isinstance(side, int) else OPEN


def _read_engine(path: Path) -> Model:
    read_bytes(path, MAX_ONNX, ModelError)
    sidecar = read_sidecar(path, sha256(path))
    if sidecar.builder != "tensorrt":
        raise InputError(
            f"{path}: an engine of {sidecar.builder}, which hosts with full TensorRT cannot load:"
            " build it with `nmsfree build --with tensorrt`, or give the ONNX file"
        )
    spec, (low, _, high) = sidecar.spec, sidecar.batch
    n = high if low == high else OPEN
    kind, (_, *size) = image_port(spec)
    images = Tensor("images", kind, (n, *(side or OPEN for side in size)))
    outputs = output_shapes(spec.top_k).items()
    ports = tuple(Tensor(name, kind, (n, *sizes)) for name, (kind, sizes) in outputs)
    return Model(path, spec, (images,), ports, high)
