"""What a float32 file becomes: a graph with its certificate, and what it shows when it runs.

It must give the same detections as its reference, and keep the AP of FP32. The reference of an
export is the network in PyTorch; that of a conversion is the file.
"""

import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from onnx import ModelProto

from nmsfree.backends import Backend, OnnxRuntimeBackend
from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.errors import GateError, InputError
from nmsfree.spec import ModelSpec
from nmsfree_export.graph.contract import full_spec
from nmsfree_export.graph.half import to_half
from nmsfree_export.graph.layers import read_layers
from nmsfree_export.graph.values import PRODUCTS
from nmsfree_export.options import MAX_DROP, STRICT, PrecisionOptions, Tolerance
from nmsfree_export.quantize import Calibration, quantize, quantized_nodes
from nmsfree_export.verify.accuracy import Accuracy, Score, score
from nmsfree_export.verify.allowed import ADOPTED
from nmsfree_export.verify.canary import with_canary
from nmsfree_export.verify.certificate import Certificate
from nmsfree_export.verify.layer_errors import LayerError, measure_layers, prepare
from nmsfree_export.verify.lowered import certify_lowered
from nmsfree_export.verify.parity import (
    FAR,
    Parity,
    Pictures,
    compare,
    on_processor,
    seeded_images,
    seeded_tolerance,
    tolerance_for,
)

FLOAT_LAYERS = "float_layers"  # entry of a file's provenance
SHOW = ": it is judged by pictures that show what it finds: give some with --images DIR"
LEAST_ROWS = 20  # of an adopted file, with scores that can be told from 0
ADVICE = {"fp16": "keep fp32", "int8": "calibrate with more pictures, or keep fp16 or fp32"}


@dataclass(frozen=True)
class Original:
    """A float32 file, and what all that is made of it is held against."""

    model: ModelProto  # without a description
    certificate: Certificate
    reference: Backend
    opset: int | None = None  # that was asked for


@dataclass(frozen=True)
class Candidate:
    """A certified graph that is yet to be verified."""

    model: ModelProto
    spec: ModelSpec  # of the file that it becomes
    certificate: Certificate
    float_layers: tuple[str, ...] = ()  # that --auto-mixed left in float


@dataclass
class Builder:
    """Makes candidates of one file in one precision, with more or fewer layers in float."""

    original: Original
    spec: ModelSpec  # of the file that is wanted
    calibration: Calibration | None  # for INT8
    folder: Path  # for temporary files, and for what is of use to the next candidate
    progress: Callable[[str], None] = lambda _: None

    def movable(self) -> dict[str, str]:
        """Return the layers that a candidate may keep in float, as name → operator."""
        layers = read_layers(self.original.model)
        if self.spec.int8_target is None:
            return {x.name: x.op for x in layers if x.op in PRODUCTS and not x.is_mean}
        nodes = set(quantized_nodes(self.original.model, self.spec.int8_target))
        return {layer.name: layer.op for layer in layers if layer.node in nodes}

    def build(self, float_layers: Collection[str] = ()) -> Candidate:
        """Build and certify a candidate with these layers in float.

        GateError: the certificate refused. InputError: a picture of the calibration is unreadable.
        """
        names, spec, original = tuple(float_layers), self.spec, self.original
        if names:
            spec = replace(spec, provenance={**spec.provenance, FLOAT_LAYERS: ", ".join(names)})
        if spec.precision == "fp32":
            return Candidate(original.model, spec, original.certificate)
        if self.calibration is None:
            model = to_half(original.model, names)
        else:
            assert spec.int8_target is not None
            model = quantize(
                original.model,
                spec.int8_target,
                self.calibration,
                self.counting("calibrating"),
                float_layers=names,
                cache=self.folder / "ranges.json",
            )
        self.progress("checking the certificate")
        before = original.certificate
        certificate = certify_lowered(model, original.model, before, spec, original.opset, names)
        return Candidate(model, spec, certificate, names)

    def counting(self, what: str, each: str = "image ") -> Callable[[int, int], None]:
        """What tells `progress` how many are done."""
        return lambda done, total: self.progress(f"{what}: {each}{done} of {total}")


class FragileError(GateError):
    """A lower precision did not pass; `layers` says which layers make most error, worst first."""

    def __init__(self, message: str, layers: Sequence[LayerError]) -> None:
        super().__init__(message)
        self.layers = list(layers)


@dataclass(frozen=True)
class Verification:
    """What a candidate has shown, see `convert.Report`."""

    spec: ModelSpec  # with its canary
    parity: Parity
    seed: int
    seeded: Parity
    accuracy: Accuracy | None


class Verifier:
    """Holds candidates of one builder against the reference, and against their FP32 version.

    Parity is that of the named pictures, AP that of the split `measured`, if one is given.
    """

    def __init__(
        self,
        builder: Builder,
        options: PrecisionOptions,
        pictures: Pictures,
        measured: DetectionDataset | None,
    ) -> None:
        self._builder, self._options = builder, options
        self._pictures, self._measured = pictures, measured
        self.seed = secrets.randbits(32) if options.seed is None else options.seed

    def verify(self, candidate: Candidate) -> Verification:
        """Run the candidate.

        Raises:
            GateError: it differs too much, or loses too much AP.
            InputError: the pictures mean too little to another project's network.
        """
        options = self._options
        with self._opened(candidate.model, candidate.spec) as backend:
            spec = backend.spec
            usual = tolerance_for(spec, spec.precision, unmatched=options.max_unmatched)
            if options.tolerance is not None:
                usual = replace(options.tolerance, unmatched=usual.unmatched)
            parity = self._parity(backend, self._pictures, usual)
            foreign = ADOPTED in spec.provenance
            parity.enforce(SHOW if foreign and options.images is None else "")
            if foreign and parity.confident < LEAST_ROWS:
                raise InputError(
                    f"parity: {parity.confident} rows with scores above {FAR}, expected"
                    f" {LEAST_ROWS} to judge by: give pictures it was made for with --images"
                )
            pictures = seeded_images(self.seed, spec)
            seeded = self._parity(backend, pictures, seeded_tolerance(spec))
            if seeded.rows:  # an NMS baseline may find nothing there
                seeded.enforce()
            accuracy = self._accuracy(backend)
            described = with_canary(candidate.spec, backend)
            return Verification(described, parity, self.seed, seeded, accuracy)

    def layers(self, candidate: Candidate) -> list[LayerError]:
        """Return the error of every layer beside FP32, those that add most first."""
        return measure_layers(
            self._builder.original.model,
            candidate.model,
            prepare(self._pictures, candidate.spec),
            self._builder.counting("comparing layers", each=""),
        )

    def check_full(self) -> None:
        """Make sure that precision is to blame: GateError where FP32 differs, too."""
        with self._opened(self._builder.original.model, full_spec(self._builder.spec)) as backend:
            parity = self._parity(backend, self._pictures, STRICT)
        if not parity.passed:
            raise GateError(
                f"parity of the same file in fp32: {parity}: the precision is not to blame"
            )

    def _opened(self, model: ModelProto, spec: ModelSpec) -> closing[OnnxRuntimeBackend]:
        return closing(on_processor(model, spec, self._builder.folder))

    def _parity(
        self, backend: OnnxRuntimeBackend, pictures: Pictures, tolerance: Tolerance
    ) -> Parity:
        counting = self._builder.counting("comparing")
        return compare(self._builder.original.reference, backend, pictures, tolerance, counting)

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
        with self._opened(self._builder.original.model, full_spec(self._builder.spec)) as backend:
            return score(backend, self._measured, self._builder.counting("measuring AP of FP32"))
