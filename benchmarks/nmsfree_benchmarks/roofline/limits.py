"""How fast a model could be at most on a device: the roofline model.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52(4), 2009: a layer takes at least as long as its
arithmetic at the peak rate, and at least as long as its bytes at the rate of memory.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from onnx import ModelProto

from nmsfree_benchmarks.roofline.onnx_cost import Layer, count_layers
from nmsfree_benchmarks.roofline.onnx_values import load_model
from nmsfree_benchmarks.roofline.peaks import Peaks

EXCEEDED = "the engine was faster than what was counted as the limit, so it is none"


@dataclass(frozen=True)
class Limit:
    """Attributes:
    layers: of the graph, one after another.
    peaks: of the device.
    """

    layers: tuple[Layer, ...]
    peaks: Peaks

    def layer_ms(self, layer: Layer) -> float:
        """Milliseconds one layer takes at least."""
        return max(self.compute_ms(layer), self.memory_ms(layer))

    def compute_ms(self, layer: Layer) -> float:
        return layer.flop / self.peaks.flops_of(layer.precision) * 1e3 if layer.flop else 0.0

    def memory_ms(self, layer: Layer) -> float:
        return layer.bytes / self.peaks.bandwidth(layer.bytes) * 1e3

    @cached_property
    def ms(self) -> float:
        """The limit: that of all layers, one after another."""
        return sum(map(self.layer_ms, self.layers))

    @cached_property
    def whole_ms(self) -> float:
        """A lower limit: arithmetic and memory of different layers overlap perfectly."""
        compute = sum(map(self.compute_ms, self.layers))
        return max(compute, self.bytes / self.peaks.bandwidth(self.bytes) * 1e3)

    @property
    def computing(self) -> float:
        """Share of the limit spent in layers that arithmetic limits, 0-1."""
        bound = [x for x in self.layers if self.compute_ms(x) >= self.memory_ms(x)]
        return sum(map(self.layer_ms, bound)) / self.ms

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Weights, and activations read and written."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def intensity(self) -> float:
        """FLOP for each byte."""
        return 2 * self.macs / self.bytes

    def share(self, ms: float) -> float | None:
        """What part of `ms` the limit is, 0-1: 1 = as fast as can be.

        None where the engine was faster, see `reached`.
        """
        return reached(self.ms / ms)


def reached(share: float | None) -> float | None:
    """Return a share of a limit, or None above 1: what was exceeded is no limit.

    An engine does better than the counting allows where it keeps values in caches between layers or
    computes a convolution with fewer multiplications (Winograd), and where the peaks were measured
    in a slower moment.
    """
    return None if share is None or share > 1 else share


def limit_of(onnx: Path | ModelProto, peaks: Peaks, batch: int = 1) -> Limit:
    """Return how fast an ONNX graph could be at most with these peaks.

    Args:
        batch: images of a call, where the file leaves that open.

    Raises:
        ModelError: the file cannot be read, or a convolution's shape is not known.
    """
    model = load_model(onnx) if isinstance(onnx, Path) else onnx
    return Limit(count_layers(model, batch), peaks)
