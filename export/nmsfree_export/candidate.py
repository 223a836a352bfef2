"""What a network becomes: a graph with its certificate, and what it shows when it runs.

It must give the same detections as PyTorch, and keep the AP of FP32.
"""

import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from onnx import ModelProto

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.errors import GateError
from nmsfree.spec import ModelSpec
from nmsfree_export.graph.layers import read_layers
from nmsfree_export.graph.write import (
    OPSET,
    build_onnx,
    content_of,
    deploy_module,
    deployed_tensors,
    full_spec,
)
from nmsfree_export.options import MAX_DROP, STRICT, ExportOptions, Tolerance
from nmsfree_export.quantize import Calibration, quantize, quantized_nodes
from nmsfree_export.verify.accuracy import Accuracy, Score, score
from nmsfree_export.verify.canary import with_canary
from nmsfree_export.verify.certificate import Certificate, Tensors, certify
from nmsfree_export.verify.int8_certificate import certify_int8
from nmsfree_export.verify.layer_errors import LayerError, measure_layers, prepare
from nmsfree_export.verify.parity import (
    Parity,
    Pictures,
    compare,
    seeded_images,
    seeded_tolerance,
    tolerance_for,
)
from nmsfree_training.model.detector import Fcos
from nmsfree_training.weights.predict import TorchBackend

FLOAT_LAYERS = "float_layers"  # entry of a file's provenance
ADVICE = {"fp16": "keep fp32", "int8": "calibrate with more pictures, or keep fp16 or fp32"}


@dataclass(frozen=True)
class Candidate:
    """A certified graph that is yet to be verified."""

    model: ModelProto
    spec: ModelSpec  # of the file that it becomes
    certificate: Certificate
    float_layers: tuple[str, ...] = ()  # that --auto-mixed left in float


@dataclass
class Builder:
    """Makes candidates of one network in one precision, with more or fewer layers in float."""

    network: Fcos  # it is left as it is
    spec: ModelSpec  # of the file that is wanted
    calibration: Calibration | None  # for INT8
    folder: Path  # for temporary files, and for what is of use to the next candidate
    progress: Callable[[str], None] = lambda _: None

    @cached_property
    def _full(self) -> tuple[ModelProto, Tensors]:
        """The graph in FP32, and the tensors that it is made of."""
        return self._trace(full_spec(self.spec))

    @property
    def full(self) -> ModelProto:
        """The FP32 version of every candidate."""
        return self._full[0]

    def movable(self) -> dict[str, str]:
        """Return the layers that a candidate may keep in float, as name → operator."""
        model, tensors = self._full
        layers = read_layers(model)
        if self.spec.int8_target is None:
            return {layer.name: layer.op for layer in layers if layer.op == "Conv"}
        nodes = set(quantized_nodes(model, tensors, self.spec.int8_target))
        return {layer.name: layer.op for layer in layers if layer.node in nodes}

    def build(self, float_layers: Collection[str] = ()) -> Candidate:
        """Build and certify a candidate with these layers in float.

        GateError: the certificate refused. InputError: a picture of the calibration is unreadable.
        """
        names, spec = tuple(float_layers), self.spec
        if names:
            spec = replace(spec, provenance={**spec.provenance, FLOAT_LAYERS: ", ".join(names)})
        if self.calibration is None:
            full = spec.precision == "fp32"
            model, tensors = self._full if full else self._trace(spec, names)
            self.progress("checking the certificate")
            return Candidate(model, spec, certify(model, spec, tensors, OPSET, names), names)
        original, tensors = self._full
        assert spec.int8_target is not None
        model = quantize(
            original,
            tensors,
            spec.int8_target,
            self.calibration,
            self.counting("calibrating"),
            float_layers=names,
            cache=self.folder / "ranges.json",
        )
        self.progress("checking the certificate")
        certificate = certify_int8(model, original, spec, tensors, OPSET, names)
        return Candidate(model, spec, certificate, names)

    def counting(self, what: str, each: str = "image ") -> Callable[[int, int], None]:
        """What tells `progress` how many are done."""
        return lambda done, total: self.progress(f"{what}: {each}{done} of {total}")

    def _trace(
        self, spec: ModelSpec, float_layers: Collection[str] = ()
    ) -> tuple[ModelProto, Tensors]:
        self.progress("tracing the deployed graph")
        module = deploy_module(self.network, spec, float_layers)
        return build_onnx(module, spec), deployed_tensors(module)


class FragileError(GateError):
    """A lower precision did not pass; `layers` says which layers make most error, worst first."""

    def __init__(self, message: str, layers: Sequence[LayerError]) -> None:
        super().__init__(message)
        self.layers = list(layers)


@dataclass(frozen=True)
class Verification:
    """What a candidate has shown, see `ExportReport`."""

    parity: Parity
    seed: int
    seeded: Parity
    accuracy: Accuracy | None


class Verifier:
    """Holds candidates of one builder against the network, and against their FP32 version.

    Parity is that of the named pictures, AP that of the split `measured`, if one is given.
    """

    def __init__(
        self,
        builder: Builder,
        options: ExportOptions,
        pictures: Pictures,
        measured: DetectionDataset | None,
    ) -> None:
        self._builder, self._options = builder, options
        self._pictures, self._measured = pictures, measured
        self.seed = secrets.randbits(32) if options.seed is None else options.seed

    def verify(self, candidate: Candidate) -> Verification:
        """Run the candidate; GateError: it differs too much, or loses too much AP."""
        options = self._options
        with self._opened(candidate.model, candidate.spec) as backend:
            spec = backend.spec
            usual = tolerance_for(spec, spec.precision, unmatched=options.max_unmatched)
            if options.tolerance is not None:
                usual = replace(options.tolerance, unmatched=usual.unmatched)
            parity = self._parity(backend, self._pictures, usual)
            parity.enforce()
            pictures = seeded_images(self.seed, spec)
            seeded = self._parity(backend, pictures, seeded_tolerance(spec))
            if seeded.rows:  # an NMS baseline may find nothing there
                seeded.enforce()
            return Verification(parity, self.seed, seeded, self._accuracy(backend))

    def with_canary(self, candidate: Candidate) -> ModelSpec:
        """Describe a candidate together with what it answers to the canary."""
        with self._opened(candidate.model, candidate.spec) as backend:
            return with_canary(candidate.spec, backend)

    def layers(self, candidate: Candidate) -> list[LayerError]:
        """Return the error of every layer beside FP32, those that add most first."""
        return measure_layers(
            self._builder.full,
            candidate.model,
            prepare(self._pictures, candidate.spec),
            self._builder.counting("comparing layers", each=""),
        )

    def check_full(self) -> None:
        """Make sure that precision is to blame: GateError where FP32 differs, too."""
        with self._opened(self._builder.full, full_spec(self._builder.spec)) as backend:
            parity = self._parity(backend, self._pictures, STRICT)
        if not parity.passed:
            raise GateError(
                f"parity of the same file in fp32: {parity}: the precision is not to blame"
            )

    def _opened(self, model: ModelProto, spec: ModelSpec) -> closing[OnnxRuntimeBackend]:
        part = self._builder.folder / f"{spec.precision}.part"  # no model by its name
        # The same graph, which a processor may run whatever it was made for.
        part.write_bytes(content_of(model, replace(spec, int8_target=None)))
        return closing(OnnxRuntimeBackend(part))

    def _parity(
        self, backend: OnnxRuntimeBackend, pictures: Pictures, tolerance: Tolerance
    ) -> Parity:
        network = TorchBackend(self._builder.network, replace(backend.spec, batch=None))
        counting = self._builder.counting("comparing with PyTorch")
        return compare(network, backend, pictures, tolerance, counting)

    def _accuracy(self, backend: OnnxRuntimeBackend) -> Accuracy | None:
        if self._measured is None:
            return None
        full = self._full_score
        judged = score(backend, self._measured, self._builder.counting("measuring AP"))
        drop = self._options.max_ap_drop
        most = (MAX_DROP if drop is None else drop) / 100
        found = Accuracy.of(full, judged, self._measured, most)
        found.enforce(ADVICE[backend.spec.precision])
        return found

    @cached_property
    def _full_score(self) -> Score:
        assert self._measured is not None
        with self._opened(self._builder.full, full_spec(self._builder.spec)) as backend:
            return score(backend, self._measured, self._builder.counting("measuring AP of FP32"))
