"""Two models, wherever each runs: opened, compared in rows and AP, and layer by layer."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import ModelProto

from nmsfree.backends import CHECKPOINT_SUFFIXES, Backend, Options, open_backend
from nmsfree.backends.options import parse_device
from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.errors import GateError, InputError, MissingExtraError
from nmsfree.evaluation.evaluate import category_ids_of
from nmsfree.spec import ModelSpec
from nmsfree_export.graph.contract import full_spec
from nmsfree_export.options import MAX_DROP, STRICT, Tolerance, VerifyOptions
from nmsfree_export.verify.accuracy import Accuracy, measure
from nmsfree_export.verify.inputs import WHOLE, compare_pictures, many_sizes
from nmsfree_export.verify.layer_errors import LayerError, measure_layers, prepare
from nmsfree_export.verify.parity import Parity, Pictures, compare, tolerance_for

EXACTNESS = {"int8": 0, "bf16": 1, "fp16": 2, "fp32": 3}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Side:
    """One model of a comparison."""

    path: Path  # checkpoint, ONNX file or engine
    device: str | None = None  # as for `Detector`
    arithmetic: str | None = None  # of OpenVINO, "f32" or "bf16"; None takes its default

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
            "int8_target": backend.spec.int8_target,
            "engine": backend.describe(),
        }

    def describe(self, backend: Backend) -> str:
        """Return the same in words."""
        target = f" for {backend.spec.int8_target}" if backend.spec.int8_target else ""
        return f"{self.path}: {self.precision(backend.spec)}{target}, {backend.describe()}"

    def open(self, like: ModelSpec | None = None) -> Backend:
        """Open it, as `open_backend`; a checkpoint as the exported file of this description."""
        if like is None or not self.is_checkpoint:
            return open_backend(self.path, self.device, Options(precision=self.arithmetic))
        try:
            from nmsfree_training.weights.predict import open_checkpoint
        except ModuleNotFoundError as error:
            if error.name not in ("torch", "nmsfree_training"):
                raise
            raise MissingExtraError("reading a checkpoint", "nmsfree-export[torch]") from None
        Options(precision=self.arithmetic).check("a checkpoint")
        device = parse_device(self.device or "cpu")
        if device.kind not in ("cpu", "cuda"):
            raise InputError(
                f"{self.path}: device is {self.device!r}, but a checkpoint runs in PyTorch, on cpu"
                " or cuda: give the device of the other model alone, with --device-a or --device-b"
            )
        whole = full_spec(like)  # whatever the other computes in
        return open_checkpoint(self.path, device=str(device), like=whole)

    def graph(self, spec: ModelSpec) -> ModelProto:
        """Read the graph of a file; of a checkpoint, export it in FP32 as it was opened."""
        if not self.is_checkpoint:
            return onnx.load(self.path)
        from nmsfree_export.graph.write import build_onnx, deploy_module
        from nmsfree_training.weights.checkpoint import deployed_like, load_checkpoint

        full = replace(full_spec(spec), batch=1)  # a larger one takes longer to trace
        network = deployed_like(load_checkpoint(self.path), spec).build()
        return build_onnx(deploy_module(network, full), full)


def sides_of(options: VerifyOptions) -> tuple[Side, Side]:
    assert options.b is not None
    return (
        Side(options.a, options.device_a or options.device, options.precision_a),
        Side(options.b, options.device_b or options.device, options.precision_b),
    )


@contextmanager
def open_pair(a: Side, b: Side) -> Iterator[tuple[Backend, Backend]]:
    """Open two models; a checkpoint runs with head, size, floor and NMS of the other's file."""
    if a.is_checkpoint and not b.is_checkpoint:
        with closing(b.open()) as second, closing(a.open(second.spec)) as first:
            yield first, second
    else:
        with closing(a.open()) as first, closing(b.open(first.spec)) as second:
            yield first, second


@dataclass(frozen=True)
class LayerComparison:
    """Errors of the layers of one file beside another; the names are of the files."""

    errors: tuple[LayerError, ...] = ()  # those that add most first
    exact: str = ""
    judged: str = ""
    note: str = ""  # why there are no errors

    def to_json(self) -> dict[str, object]:
        return vars(self) | {"errors": [error.to_json() for error in self.errors]}


def compare_layers(
    sides: tuple[Side, Side],
    specs: tuple[ModelSpec, ModelSpec],
    pictures: Pictures,
    progress: Progress = lambda done, total: None,
) -> LayerComparison:
    """Compare the layers of two models in ONNX Runtime on the processor, wherever they ran before.

    The more precise one is taken as exact, the first of equals. Of a checkpoint its FP32 export
    is compared. `specs` are those of the opened models; the first few pictures are used.
    """
    pairs = list(zip(sides, specs, strict=True))
    pairs.sort(key=lambda pair: -EXACTNESS.get(pair[1].precision, 0))
    for side, spec in zip(sides, specs, strict=True):
        if spec.input != "model":
            return LayerComparison(
                note=f"{side.path}: takes {spec.input}: compare the layers of the file that it was"
                " made from"
            )
        if side.path.suffix.lower() != ".onnx" and not side.is_checkpoint:
            return LayerComparison(
                note=f"{side.path}: an engine hides its layers: compare those of its ONNX file"
            )
    exact, judged = (side.graph(spec) for side, spec in pairs)
    if exact.graph.SerializeToString() == judged.graph.SerializeToString():
        return LayerComparison(
            note="both run the same graph, so what differs is the engines' own arithmetic"
        )
    errors = measure_layers(exact, judged, prepare(pictures, specs[0]), progress)
    exact_name, judged_name = (side.path.name for side, _ in pairs)
    note = "" if errors else "the files have no layer in common"
    return LayerComparison(tuple(errors), exact_name, judged_name, note)


@dataclass(frozen=True)
class Outcome:
    """What was found; None is what was not asked for, or could not be had."""

    sides: tuple[dict[str, object], dict[str, object]]
    parity: Parity | None
    failure: GateError | None  # why the detections are not the same
    accuracy: Accuracy | None
    layers: LayerComparison | None

    def to_json(self) -> dict[str, object]:
        refused = {"passed": False, "failure": str(self.failure)}
        return {
            "a": self.sides[0],
            "b": self.sides[1],
            "parity": refused if self.parity is None else self.parity.to_json(),
            "accuracy": self.accuracy and self.accuracy.to_json(),
            "layers": self.layers and self.layers.to_json(),
        }


def compare_models(
    options: VerifyOptions,
    opened: tuple[Backend, Backend],
    pictures: Pictures,
    dataset: DetectionDataset | None,
    progress: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Compare detections, then AP if asked for, then layers if asked for or something failed."""

    def counting(what: str) -> Progress:
        return lambda done, total: progress(f"{what} {done} of {total}")

    first, second = opened
    a, b = sides_of(options)
    specs = first.spec, second.spec
    if dataset is not None:
        category_ids_of(first.spec.class_names, dataset)  # other classes are told before the work
    tolerance = tolerance_for(
        specs[0], a.precision(specs[0]), b.precision(specs[1]), unmatched=options.max_unmatched
    )
    whole = "any" in (specs[0].input, specs[1].input)
    if whole and tolerance == STRICT:
        tolerance = WHOLE
    score, box = options.score_tolerance, options.box_tolerance
    if (score, box) != (None, None):
        tolerance = Tolerance(
            tolerance.score if score is None else score, tolerance.box if box is None else box
        )
    if whole and options.images is None:
        pictures = many_sizes(specs)
    parity, failure, accuracy, layers = None, None, None, None
    try:
        judge = compare_pictures if whole else compare
        parity = judge(first, second, pictures, tolerance, counting("image"))
        parity.enforce()
    except GateError as error:
        failure = error
    if dataset is not None and parity is not None:  # an output against the contract has no AP
        drop = MAX_DROP if options.max_ap_drop is None else options.max_ap_drop
        accuracy = measure(first, second, dataset, drop / 100, counting("measuring AP: image"))
    if options.layers or failure is not None or (accuracy is not None and not accuracy.passed):
        layers = compare_layers((a, b), specs, pictures, counting("comparing layers:"))
    return Outcome((a.to_json(first), b.to_json(second)), parity, failure, accuracy, layers)
