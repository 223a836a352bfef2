"""FP32 graph → INT8 graph: QuantizeLinear and DequantizeLinear around what computes in integers.

INT8 are the convolutions, but for the last ones: a step of an 8-bit logit or of an 8-bit logarithm
of a box side would be seen in the result. Norms, matrix products (what a LayerNorm gives them has
channels that take the range of all others), and everything after the network stay in float32. What
is between the quantized convolutions is different by engine:

- cpu: unsigned activations with a zero point, bias in int32, which the processor's kernels want.
  They also want their results in integers, so these are quantized as well, and what adds, joins,
  pools or bends nothing but such results: a float step in between costs more than it saves.
  Weights have 7 bits: with 8, processors without VNNI saturate (seen: rows without partner from
  0.4 to 4 %).
- tensorrt: signed activations, zero points 0, bias in float. Only what goes into a convolution (or
  into the pooling) is quantized: the engine fuses what follows, and rounds once instead of twice.
"""

import copy
import inspect
import logging
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.datasets.image_files import images_in
from nmsfree.errors import InputError
from nmsfree.evaluation.analysis import folder_name
from nmsfree.files import temporary_folder
from nmsfree.images import read_image
from nmsfree.preprocess import resize_into
from nmsfree.spec import ModelSpec, Target
from nmsfree.text import shown
from nmsfree_export.graph.contract import batch_of, made_of
from nmsfree_export.graph.layers import read_layers
from nmsfree_export.graph.values import find_places

# val, val2017, valid, test-dev, minival …; trainval is for training.
_MEASURES = re.compile(r"(mini)?(val|test|dev|eval)", re.IGNORECASE)


@dataclass(frozen=True)
class Calibration:
    """What an INT8 file is calibrated with."""

    paths: tuple[Path, ...]  # of pictures, evenly spread over the split
    spec: ModelSpec  # says how they are placed in the model's input
    description: str  # "digits train, 128 images"

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one picture as the deployed model sees it, uint8 [1, H, W, 3], BGR."""
        return placed(read_image(self.paths[index]), self.spec)


def placed(picture: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.uint8]:
    """Return a BGR picture as a model takes it: uint8 [1, H, W, 3]."""
    pixels = np.empty((1, spec.height, spec.width, 3), np.uint8)
    resize_into(picture, pixels[0], spec.resize)
    return pixels


def load_calibration(
    data: Path,
    split: str | None,
    images: int,
    spec: ModelSpec,
    measured: DetectionDataset | None = None,
) -> Calibration:
    """Choose training pictures; annotations are not used.

    Args:
        data: a dataset, or a folder of pictures.
        split: None takes all of such a folder, or a dataset's "train".
        images: how many at most.
        measured: the split that the result will be measured on; none of it may be used here.

    Raises:
        InputError: the split is not for training, shares pictures with `measured`, or is empty.
        DataError: there is no such dataset or split.
    """
    if _MEASURES.match(split or ""):
        raise InputError(
            f"calibration split is {split!r}: pictures that a model is measured on would make its"
            " figures look better than they are: use a training split, --calibrate-split train"
        )
    if images < 1:
        raise InputError(f"calibration images are {images}, expected 1 or more")
    paths = sorted(images_in(data)) if split is None else []
    name = data.resolve().name
    if not paths:
        split = split or "train"
        dataset = load_dataset(data, split)
        paths = [sample.path for sample in dataset.samples]
        name = f"{folder_name(dataset)} {split}"
    if not paths:
        raise InputError(f"{data}: split {split!r} has no images to calibrate with")
    if measured is not None:
        own = {path.resolve() for path in paths}
        shared = [s.path.resolve() for s in measured.samples if s.path.resolve() in own]
        if shared:
            raise InputError(
                f"{len(shared)} images of the calibration split {split or name!r} are also in the"
                f" split {measured.name!r} that the file is measured on, first {shared[0].name}:"
                " the figures would look better than they are; use another split for one of them"
            )
    count = min(images, len(paths))
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    return Calibration(tuple(chosen), spec, f"{shown(name)}, {count} images")


INTEGER_PRODUCTS = ("Conv",)
OPERATORS: dict[Target, tuple[str, ...]] = {
    "cpu": ("Conv", "Add", "MaxPool", "Sigmoid", "Mul", "Concat", "Split"),
    "tensorrt": ("Conv", "MaxPool"),
}
PASSING = ("Clip", "LeakyRelu", "Relu", "Resize")  # between two of them, in float


def quantize(
    model: ModelProto,
    target: Target,
    calibration: Calibration,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    float_layers: Collection[str] = (),
    cache: Path | None = None,
) -> ModelProto:
    """Return an INT8 version of a float model, without metadata.

    Args:
        model: in float32; it is left as it is.
        progress: told (pictures seen, pictures in all).
        float_layers: names of the layers that stay in float, see `quantized_nodes`.
        cache: file that ONNX Runtime keeps the ranges of the calibration in, for the next call.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = copy.deepcopy(model)
    nodes = quantized_nodes(model, target, float_layers)
    _own_biases(model, set(nodes))
    signed = target == "tensorrt"
    # Versions of ONNX Runtime that know no cache calibrate every time.
    known = inspect.signature(quantize_static).parameters
    name = "calibration_cache_path"
    more = {name: cache} if cache is not None and name in known else {}
    with temporary_folder() as folder, _without_advice():
        out = folder / "quantized.part"
        quantize_static(
            model,
            out,
            _Reader(calibration, batch_of(model), progress),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATORS[target]),
            nodes_to_quantize=nodes,
            per_channel=True,
            reduce_range=not signed,
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "WeightSymmetric": True,
                "ActivationSymmetric": signed,
                "QuantizeBias": not signed,
                "QDQKeepRemovableActivations": True,
                "OpTypesToExcludeOutputQuantization": ["Conv"] if signed else [],
            },
            **more,
        )
        quantized = onnx.load(out)
    _tidy(quantized, model.producer_name)
    return quantized


def _tidy(model: ModelProto, producer: str) -> None:
    """Leave only what the exporter writes, in place: the quantizer leaves types of lost values."""
    graph = model.graph
    for tensor in graph.initializer:  # all in raw bytes
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    known = {t.name for t in graph.initializer}.union(*(node.output for node in graph.node))
    for value in [value for value in graph.value_info if value.name not in known]:
        graph.value_info.remove(value)
    model.ClearField("metadata_props")
    model.ClearField("producer_version")
    model.producer_name = producer


def quantized_nodes(
    model: ModelProto, target: Target, float_layers: Collection[str] = ()
) -> list[str]:
    """Return the names of the nodes that compute in integers.

    All convolutions but the last, and other operators that are fed by such nodes alone and feed
    one, so that a GroupNorm's sum cannot be among them. Left out are the layers named in
    `float_layers`, see `layers.py`. What they read is still rounded where another one rounds it.
    """
    nodes, places, spared = model.graph.node, find_places(model), set(float_layers)
    names = {layer.node: layer.name for layer in read_layers(model)}
    products = {
        place
        for place in places.weighted - places.last - places.means
        if nodes[place].op_type in INTEGER_PRODUCTS
    }
    _, feeding = made_of(nodes, [name for place in products for name in nodes[place].input])
    found: list[str] = []
    integers: set[str] = set()  # values that such nodes give, also by way of others
    for place, node in enumerate(nodes):
        read = [name for name in node.input if name and name not in places.constants]
        fed = integers.issuperset(read) and not feeding.isdisjoint(node.output)
        scaled = len(read) < 2 and node.op_type in ("Add", "Mul")
        own = place in products or (node.op_type in OPERATORS[target] and fed and not scaled)
        if own or (fed and node.op_type in PASSING):
            integers.update(node.output)
        if own and names.get(node.name) not in spared:
            found.append(node.name)
    return found


def _own_biases(model: ModelProto, names: set[str]) -> None:
    """Give every quantized convolution a bias of its own, in place.

    Levels may share one. In integers its unit is that of the convolution's input times that of its
    weights, and every level's input has another.
    """
    biases = {t.name: t for t in model.graph.initializer}
    seen: set[str] = set()
    for node in model.graph.node:
        if node.name not in names or node.op_type != "Conv" or len(node.input) < 3:
            continue
        name = node.input[2]
        if name in seen:
            own = copy.deepcopy(biases[name])
            own.name = node.input[2] = f"{name}.{node.name}"
            model.graph.initializer.append(own)
        seen.add(name)


class _Reader:
    """Hands the pictures to ONNX Runtime, one at a time; a fixed batch is filled with copies."""

    def __init__(
        self, calibration: Calibration, batch: int, progress: Callable[[int, int], None]
    ) -> None:
        self.calibration, self.batch, self.progress = calibration, batch, progress
        self.done = 0

    def get_next(self) -> dict[str, Any] | None:
        count = len(self.calibration.paths)
        if self.done == count:
            return None
        pixels = self.calibration.read(self.done)
        self.done += 1
        self.progress(self.done, count)
        return {"images": np.repeat(pixels, self.batch, axis=0)}


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep the quantizer's advice, to optimise the graph first, from the root logger.

    The graph is certified as it is, and must come out as it went in.
    """

    def is_no_advice(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(is_no_advice)
    try:
        yield
    finally:
        root.removeFilter(is_no_advice)
