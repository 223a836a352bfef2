"""The layers of two models that are compared, as far as their files show them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto

from nmsfree.spec import ModelSpec
from nmsfree_export.layer_errors import LayerError, measure_layers, prepare
from nmsfree_export.parity import Pictures
from nmsfree_export.verify import Side

EXACTNESS = {"int8": 0, "bf16": 1, "fp16": 2, "fp32": 3}


@dataclass(frozen=True)
class LayerComparison:
    """Errors of the layers of one file beside another.

    Attributes:
        errors: those that add most first; empty where they cannot be had.
        exact, judged: names of the files.
        note: why there are none, or "".
    """

    errors: tuple[LayerError, ...]
    exact: str = ""
    judged: str = ""
    note: str = ""

    def to_json(self) -> dict[str, object]:
        layers = [error.to_json() for error in self.errors]
        return {"exact": self.exact, "judged": self.judged, "errors": layers, "note": self.note}


def compare_layers(
    a: Side,
    b: Side,
    specs: tuple[ModelSpec, ModelSpec],
    pictures: Pictures,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LayerComparison:
    """Compare the layers of two models in ONNX Runtime on the processor, wherever they ran before.

    The more precise one is taken as exact, the first of equals. Of a checkpoint its FP32 export
    is compared.

    Args:
        specs: of both, as they were opened.
        pictures: named BGR images; the first few are used.
    """
    sides = list(zip((a, b), specs, strict=True))
    sides.sort(key=lambda pair: -EXACTNESS.get(pair[1].precision, 0))
    graphs = []
    for side, spec in sides:
        if side.path.suffix.lower() != ".onnx" and not side.is_checkpoint:
            return LayerComparison(
                (), note=f"{side.path}: an engine hides its layers: compare those of its ONNX file"
            )
        graphs.append(_graph(side, spec))
    exact, judged = graphs
    if exact.graph.SerializeToString() == judged.graph.SerializeToString():
        return LayerComparison(
            (), note="both run the same graph, so what differs is the engines' own arithmetic"
        )
    errors = measure_layers(exact, judged, prepare(pictures, specs[0]), progress)
    exact_name, judged_name = (side.path.name for side, _ in sides)
    note = "" if errors else "the files have no layer in common"
    return LayerComparison(tuple(errors), exact_name, judged_name, note)


def _graph(side: Side, spec: ModelSpec) -> ModelProto:
    return _exported(side.path, spec) if side.is_checkpoint else onnx.load(side.path)


def _exported(path: Path, spec: ModelSpec) -> ModelProto:
    """The FP32 export of a checkpoint, as the model that it was opened as."""
    from nmsfree_export.export_bytes import full_version
    from nmsfree_training.checkpoint import load_checkpoint
    from nmsfree_training.deployed_filter import deployed_like

    return full_version(deployed_like(load_checkpoint(path), spec).build(), spec)
