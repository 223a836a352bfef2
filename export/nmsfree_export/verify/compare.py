"""Open two models, wherever each runs, so that they can be compared."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import ModelProto

from nmsfree.backends import CHECKPOINT_SUFFIXES, Backend, Options, open_backend
from nmsfree.backends.options import parse_device
from nmsfree.errors import InputError, MissingExtraError
from nmsfree.spec import ModelSpec
from nmsfree_export.verify.layer_errors import LayerError, measure_layers, prepare
from nmsfree_export.verify.parity import (
    UNMATCHED,
    Int8Parity,
    Parity,
    Pictures,
    Tolerance,
    int8_tolerance,
    tolerance_for,
)


@dataclass(frozen=True)
class Side:
    """One model of a comparison.

    Attributes:
        path: checkpoint, ONNX file or engine.
        device: where it runs, as for `Detector`; None takes the usual one.
        arithmetic: of OpenVINO, "f32" or "bf16"; None takes its default, and is all that other
            engines know.
    """

    path: Path
    device: str | None = None
    arithmetic: str | None = None

    @property
    def is_checkpoint(self) -> bool:
        return self.path.suffix.lower() in CHECKPOINT_SUFFIXES

    def precision(self, spec: ModelSpec) -> str:
        """Return what it computes in: "fp32", "fp16", "int8" or "bf16"."""
        return "bf16" if self.arithmetic == "bf16" else spec.precision

    def to_json(self, backend: Backend) -> dict[str, object]:
        """Return what was really compared."""
        return {
            "file": str(self.path),
            "precision": self.precision(backend.spec),
            "made_for": backend.spec.made_for,
            "engine": backend.description,
        }

    def describe(self, backend: Backend) -> str:
        """Return the same in words."""
        target = f" for {backend.spec.made_for}" if backend.spec.made_for else ""
        return f"{self.path}: {self.precision(backend.spec)}{target}, {backend.description}"


def open_pair(a: Side, b: Side) -> tuple[Backend, Backend]:
    """Open two models; a checkpoint runs as the exported file it is compared with.

    That is: the same head, input size, floor and NMS.

    Raises:
        InputError, ModelError, EngineError: as `open_backend`.
    """
    if a.is_checkpoint and not b.is_checkpoint:
        second = _open(b)
        return _open_like(a, second.spec), second
    first = _open(a)
    return first, _open_like(b, first.spec) if b.is_checkpoint else _open(b)


def _open(side: Side) -> Backend:
    return open_backend(side.path, side.device, Options(precision=side.arithmetic))


def _open_like(side: Side, spec: ModelSpec) -> Backend:
    try:
        from nmsfree_training.weights.predict import open_checkpoint
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "nmsfree_training"):
            raise
        raise MissingExtraError("reading a checkpoint", "nmsfree-export[torch]") from None
    Options(precision=side.arithmetic).check("a checkpoint")
    device = parse_device(side.device or "cpu")
    if device.kind not in ("cpu", "cuda"):
        raise InputError(
            f"{side.path}: device is {side.device!r}, but a checkpoint runs in PyTorch, on cpu or"
            " cuda: give the device of the other model alone, with --device-a or --device-b"
        )
    whole = replace(spec, precision="fp32", made_for=None)  # whatever the other one computes in
    return open_checkpoint(side.path, device=str(device), like=whole)


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
    from nmsfree_export.graph.write import full_version
    from nmsfree_training.weights.checkpoint import deployed_like, load_checkpoint

    return full_version(deployed_like(load_checkpoint(path), spec).build(), spec)


EIGHT_BITS = ("int8", "bf16")  # a bfloat16 has 8 bits of mantissa


@dataclass(frozen=True)
class Gate:
    """How a comparison is judged.

    Attributes:
        tolerance: how far matched rows may differ.
        unmatched: share of rows that may have no partner, whatever the others differ by, see
            `Int8Parity`; None where every row needs one and its difference counts.
    """

    tolerance: Tolerance
    unmatched: float | None = None

    def judge(self, parity: Parity) -> Parity:
        """Return the outcome of `compare` in the words of this gate."""
        return parity if self.unmatched is None else Int8Parity.of(parity, self.unmatched)


def gate_for(spec: ModelSpec, *precisions: str, unmatched: float | None = None) -> Gate:
    """Return the gate of models that compute in these precisions: "fp32", "fp16", "int8", "bf16".

    Args:
        spec: of either model, for the size of the input.
        unmatched: share of rows that may have no partner; None takes the usual one of eight bits.
    """
    if unmatched is None and not set(EIGHT_BITS).intersection(precisions):
        return Gate(tolerance_for(*precisions))
    return Gate(int8_tolerance(spec), UNMATCHED if unmatched is None else unmatched)


def gate_for_seeded(spec: ModelSpec, *precisions: str) -> Gate:
    """Return the gate of pictures that nobody chose, see `parity.seeded_images`.

    A wider one: it tells a file that is right by chance from one that is right, for any seed. Seen
    without a partner on such pictures: no row in FP32 and FP16, in INT8 13 % of the canary's.
    """
    if set(precisions) == {"fp32"}:
        return Gate(Tolerance(0.01, 0.5))
    return Gate(int8_tolerance(spec), 0.5)
