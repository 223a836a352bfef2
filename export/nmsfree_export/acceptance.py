"""The gates after the certificate: the same detections as PyTorch, and the AP of FP32."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from onnx import ModelProto

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.datasets.dataset import DetectionDataset
from nmsfree.errors import GateError
from nmsfree.spec import ModelSpec
from nmsfree_export.candidate import Candidate, Say, Workshop
from nmsfree_export.graph.write import content_of, full_spec
from nmsfree_export.options import ExportOptions
from nmsfree_export.verify.accuracy import Accuracy, Score, score
from nmsfree_export.verify.compare import Gate, gate_for, gate_for_seeded
from nmsfree_export.verify.layer_errors import LayerError, measure_layers, prepare
from nmsfree_export.verify.parity import Parity, Pictures, compare, seeded_images
from nmsfree_training.weights.predict import TorchBackend

ADVICE = {
    "fp16": "keep fp32",
    "int8": "calibrate with more pictures, or keep fp16 or fp32",
}


class FragileError(GateError):
    """A lower precision did not pass; `layers` says which layers make most error, worst first."""

    def __init__(self, message: str, layers: Sequence[LayerError]) -> None:
        super().__init__(message)
        self.layers = list(layers)


@dataclass(frozen=True)
class Proof:
    """What a candidate has proved.

    Attributes:
        seeded: parity on pictures of a seed.
        accuracy: None where no split was given.
    """

    parity: Parity
    seeded: Parity
    accuracy: Accuracy | None


class Gates:
    """Holds candidates of one workshop against the network, and against their FP32 version.

    Args:
        pictures: named BGR images for parity.
        measured: split for the comparison of AP; None leaves it out.
        folder: for files that ONNX Runtime opens.
    """

    def __init__(
        self,
        workshop: Workshop,
        options: ExportOptions,
        pictures: Pictures,
        measured: DetectionDataset | None,
        folder: Path,
        progress: Say,
    ) -> None:
        self._workshop, self._options = workshop, options
        self._pictures, self._measured = pictures, measured
        self._folder, self._progress = folder, progress
        self.seed = secrets.randbits(32) if options.seed is None else options.seed

    def prove(self, candidate: Candidate) -> Proof:
        """Run the candidate.

        Raises:
            GateError: it differs too much, or loses too much AP.
        """
        backend = self._open(candidate.model, candidate.spec)
        try:
            return Proof(
                self._compare(backend), self._compare_seeded(backend), self._measure(backend)
            )
        finally:
            backend.close()

    def layers(self, candidate: Candidate) -> list[LayerError]:
        """Return the error of every layer beside FP32, those that add most first."""
        return measure_layers(
            self._workshop.full,
            candidate.model,
            prepare(self._pictures, candidate.spec),
            lambda done, total: self._progress(f"comparing layers: {done} of {total}"),
        )

    def check_full(self) -> None:
        """Make sure that precision is to blame.

        Raises:
            GateError: the FP32 version differs from the network, too.
        """
        backend = self._open(self._workshop.full, full_spec(self._workshop.spec))
        try:
            parity = self._parity(backend, gate_for(backend.spec, "fp32"), self._pictures)
        finally:
            backend.close()
        if not parity.passed:
            raise GateError(
                f"parity of the same file in fp32: {parity}: the precision is not to blame"
            )

    def _open(self, model: ModelProto, spec: ModelSpec) -> OnnxRuntimeBackend:
        part = self._folder / "candidate.part"  # no model by its name, should this be killed
        # The same graph, which a processor may run whatever it was made for.
        part.write_bytes(content_of(model, replace(spec, made_for=None)))
        return OnnxRuntimeBackend(part)

    def _compare(self, backend: OnnxRuntimeBackend) -> Parity:
        int8, spec = self._options.int8, backend.spec
        gate = gate_for(spec, spec.precision, unmatched=None if int8 is None else int8.unmatched)
        if self._options.tolerance is not None:
            gate = replace(gate, tolerance=self._options.tolerance)
        parity = self._parity(backend, gate, self._pictures)
        parity.enforce()
        return parity

    def _compare_seeded(self, backend: OnnxRuntimeBackend) -> Parity:
        spec = backend.spec
        gate = gate_for_seeded(spec, spec.precision)
        parity = self._parity(backend, gate, seeded_images(self.seed, spec))
        if parity.rows:  # an NMS baseline may find nothing there
            parity.enforce()
        return parity

    def _parity(self, backend: OnnxRuntimeBackend, gate: Gate, pictures: Pictures) -> Parity:
        return gate.judge(
            compare(
                TorchBackend(self._workshop.network, replace(backend.spec, batch=None)),
                backend,
                pictures,
                gate.tolerance,
                self._counting("comparing with PyTorch"),
            )
        )

    def _measure(self, backend: OnnxRuntimeBackend) -> Accuracy | None:
        check = self._options.check
        if self._measured is None or check is None:
            return None
        full = self._full_score
        judged = score(backend, self._measured, self._counting("measuring AP"))
        found = Accuracy.of(full, judged, self._measured, check.max_drop / 100)
        found.enforce(ADVICE[backend.spec.precision])
        return found

    @cached_property
    def _full_score(self) -> Score:
        assert self._measured is not None
        path = self._folder / "fp32.part"
        path.write_bytes(content_of(self._workshop.full, full_spec(self._workshop.spec)))
        backend = OnnxRuntimeBackend(path)
        try:
            return score(backend, self._measured, self._counting("measuring AP of FP32"))
        finally:
            backend.close()

    def _counting(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self._progress(f"{what}: image {done} of {total}")
