"""What a network becomes before its gates: graphs with their certificates."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from nmsfree.spec import ModelSpec
from nmsfree_export.graph.layers import read_layers
from nmsfree_export.graph.write import OPSET, build_onnx, deploy_module, deployed_tensors, full_spec
from nmsfree_export.quantize import Calibration, quantise, quantised_nodes
from nmsfree_export.verify.certificate import Certificate, certify
from nmsfree_export.verify.int8_certificate import certify_int8
from nmsfree_training.model.detector import Fcos

KEPT = "kept_in_float"  # entry of a file's provenance

Say = Callable[[str], None]
Deployed = tuple[ModelProto, dict[str, NDArray[np.floating]]]


@dataclass(frozen=True)
class Candidate:
    """A certified graph that has yet to prove itself.

    Attributes:
        model: the graph.
        spec: of the file that it becomes.
        certificate: what was read from it.
        kept: names of the layers that `--auto-mixed` kept in float.
    """

    model: ModelProto
    spec: ModelSpec
    certificate: Certificate
    kept: tuple[str, ...] = ()


class Workshop:
    """Makes candidates of one network in one precision, with more or fewer layers in float.

    Args:
        network: from the checkpoint; it is left as it is.
        spec: of the file that is wanted.
        calibration: for INT8; None for other precisions.
        folder: for what is of use to the next candidate.
        progress: told what is being done.
    """

    def __init__(
        self,
        network: Fcos,
        spec: ModelSpec,
        calibration: Calibration | None,
        folder: Path,
        progress: Say,
    ) -> None:
        self.network, self.spec = network, spec
        self._calibration, self._cache = calibration, folder / "ranges.json"
        self._progress = progress

    @cached_property
    def _full(self) -> Deployed:
        """The graph in FP32, and the tensors that it is made of."""
        self._progress("tracing the deployed graph")
        spec = full_spec(self.spec)
        module = deploy_module(self.network, spec)
        return build_onnx(module, spec), deployed_tensors(module)

    @property
    def full(self) -> ModelProto:
        """The FP32 version of every candidate."""
        return self._full[0]

    def movable(self) -> dict[str, str]:
        """Return the layers that a candidate may keep in float, as name → operator."""
        model, tensors = self._full
        layers = read_layers(model)
        if self.spec.made_for is None:
            return {layer.name: layer.op for layer in layers if layer.op == "Conv"}
        nodes = set(quantised_nodes(model, tensors, self.spec.made_for))
        return {layer.name: layer.op for layer in layers if layer.node in nodes}

    def make(self, kept: Collection[str] = ()) -> Candidate:
        """Build and certify a candidate.

        Args:
            kept: names of the layers that stay in float.

        Raises:
            GateError: the certificate refused.
            InputError: a picture of the calibration cannot be read.
        """
        kept, spec = tuple(kept), self.spec
        if kept:
            spec = replace(spec, provenance={**spec.provenance, KEPT: ", ".join(kept)})
        if self._calibration is not None:
            return self._quantised(self._calibration, spec, kept)
        if spec.precision == "fp32":
            model, tensors = self._full
        else:
            self._progress("tracing the deployed graph")
            module = deploy_module(self.network, spec, kept)
            model, tensors = build_onnx(module, spec), deployed_tensors(module)
        self._progress("checking the certificate")
        return Candidate(model, spec, certify(model, spec, tensors, OPSET, kept), kept)

    def _quantised(
        self, calibration: Calibration, spec: ModelSpec, kept: tuple[str, ...]
    ) -> Candidate:
        model, tensors = self._full
        assert spec.made_for is not None
        quantised = quantise(
            model,
            tensors,
            spec.made_for,
            calibration,
            lambda done, total: self._progress(f"calibrating: image {done} of {total}"),
            kept=kept,
            cache=self._cache,
        )
        self._progress("checking the certificate")
        certificate = certify_int8(quantised, model, spec, tensors, OPSET, kept)
        return Candidate(quantised, spec, certificate, kept)
