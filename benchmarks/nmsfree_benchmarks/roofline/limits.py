"""How fast a model could be at most on a device: the roofline model.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52(4), 2009: a layer takes at least as long as its
arithmetic at the peak rate, and at least as long as its bytes at the rate of memory.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from onnx import ModelProto

from nmsfree.errors import ModelError
from nmsfree_benchmarks.harness.graphs import load_model
from nmsfree_benchmarks.harness.records import State
from nmsfree_benchmarks.harness.statistics import median_ms, summarize
from nmsfree_benchmarks.harness.timer import Times
from nmsfree_benchmarks.roofline.graph import Layer, count_layers, with_constants
from nmsfree_benchmarks.roofline.peaks import Peaks

EXCEEDED = "the engine was faster than what was counted as the limit, so it is none"
HEAVIEST = 8  # layers that are listed
KINDS = 4  # kinds of layers that are named for their time beyond the limit
WHOLE = 1 << 62  # bytes: one bandwidth for copies of any size
# The published speed, and the GPU that it was measured on as its maker states it. A CUDA core does
# one multiply-add a clock, which is two operations.
PUBLISHED, PUBLISHED_SIZE = ("fcos_rt_r18_3x", "fcos_o2o_r18_3x", "fcos_e2e_r18_3x"), (512, 736)
PUBLISHED_FPS = 56
RTX_4060_FLOPS, RTX_4060_BYTES = 3072 * 2 * 2.46e9, 272e9  # FP32 FLOP/s; bytes/s of its memory
RTX_4060_SOURCE = (
    "NVIDIA, specifications of the GeForce RTX 4060 (desktop): 3072 CUDA cores, boost clock "
    "2.46 GHz, 128 bit GDDR6 at 17 Gbit/s = 272 GB/s"
)


@dataclass(frozen=True)
class Limit:
    """What the layers of a graph take at least with the peaks of a device."""

    layers: tuple[Layer, ...]
    peaks: Peaks

    def layer_ms(self, layer: Layer) -> float:
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
        return 2 * self.macs / self.bytes


def limit_of(graph: Path | ModelProto, peaks: Peaks, batch: int = 1) -> Limit:
    """How fast an ONNX graph could be at most with these peaks, see `count_layers`."""
    model = load_model(graph) if isinstance(graph, Path) else graph
    try:
        return Limit(count_layers(model, batch), peaks)
    except ModelError:  # other projects' files compute shapes
        return Limit(count_layers(with_constants(model, batch), batch), peaks)


def share_figures(share: float) -> dict[str, Any]:
    """What part of a call its limit is, 0-1, as figures; above 1 None and the reason.

    An engine does better than the counting allows where it keeps values in caches between layers or
    computes a convolution with fewer multiplications (Winograd).
    """
    if share > 1:
        return {"share_of_limit": None, "share_of_limit_is_empty": EXCEEDED}
    return {"share_of_limit": round(share, 4)}


def limit_figures(
    state: State, times: Times, limit: Limit, profiled: Mapping[str, float], burst: int = 1
) -> dict[str, Any]:
    """What a roofline run says of a model, by [timed calls, 1] ns of its bare call.

    `profiled` is layer name → milliseconds; it may lack any.
    """
    p50 = summarize(times).p50
    took, share = median_ms(times, burst), limit.ms / p50  # the limit is a constant here
    known = took.known and share <= 1
    return {
        "gmac": round(limit.macs / 1e9, 4),
        "weights_mb": round(limit.weight_bytes / 1e6, 3),
        "activations_mb": round((limit.bytes - limit.weight_bytes) / 1e6, 3),
        "flop_per_byte": round(limit.intensity, 2),
        "gflop_per_s": round(2 * limit.macs / p50 / 1e6, 2),
        "limit_ms": round(limit.ms, 4),
        "limit_whole_ms": round(limit.whole_ms, 4),
        "limit_by_arithmetic_share": round(limit.computing, 4),
        **share_figures(share),
        "share_low": round(limit.ms / took.high, 4) if known else None,
        "share_high": round(limit.ms / took.low, 4) if known else None,
        "datasheet": _by_datasheet(limit, state),
        "beyond_limit_ms": _beyond(limit, profiled),
        "layers": _heaviest(limit, profiled),
    }


def _heaviest(limit: Limit, profiled: Mapping[str, float]) -> list[dict[str, Any]]:
    """The layers that take longest; where nothing was profiled, those with the highest limit."""

    def weight(layer: Layer) -> float:
        return profiled.get(layer.name, 0.0) if profiled else limit.layer_ms(layer)

    found = []
    for layer in sorted(limit.layers, key=weight, reverse=True)[:HEAVIEST]:
        ms = profiled.get(layer.name)
        found.append(
            {
                "name": layer.name,
                "kind": layer.kind,
                "gmac": round(layer.macs / 1e9, 5),
                "mb": round(layer.bytes / 1e6, 4),
                "flop_per_byte": round(layer.intensity, 2),
                "limit_ms": round(limit.layer_ms(layer), 4),
                "profiled_ms": None if ms is None else round(ms, 4),
                "gflop_per_s": round(layer.flop / ms / 1e6, 2) if ms else None,
            }
        )
    return found


def _beyond(limit: Limit, profiled: Mapping[str, float]) -> dict[str, float]:
    """Kind of layer → milliseconds that such layers took beyond their limit; the largest few."""
    lost: Counter[str] = Counter()
    for layer in limit.layers:
        if layer.name in profiled:
            lost[layer.kind] += profiled[layer.name] - limit.layer_ms(layer)  # type: ignore[assignment]
    return {kind: round(ms, 4) for kind, ms in lost.most_common(KINDS) if ms > 0}


def _by_datasheet(limit: Limit, state: State) -> dict[str, Any] | None:
    """What the same graph allows on the device of a published speed; None = not that model."""
    same = state.model in PUBLISHED and state.size == PUBLISHED_SIZE
    if not same or state.precision != "fp32" or state.batch != 1:
        return None
    there = Limit(limit.layers, Peaks({"fp32": RTX_4060_FLOPS}, ((WHOLE, RTX_4060_BYTES),)))
    by_arithmetic = 2 * limit.macs / RTX_4060_FLOPS * 1e3
    return {
        "computed_not_measured": True,
        "device": "GeForce RTX 4060",
        "source": RTX_4060_SOURCE,
        "peak_tflop_per_s": round(RTX_4060_FLOPS / 1e12, 2),
        "memory_gb_per_s": RTX_4060_BYTES / 1e9,
        "gflop": round(2 * limit.macs / 1e9, 1),
        "arithmetic_ms": round(by_arithmetic, 2),
        "fps_at_most": round(1000 / by_arithmetic, 1),
        "limit_ms": round(there.ms, 2),
        "published_fps": PUBLISHED_FPS,
        "published_how": "E2E_FCOS: FP32 in eager PyTorch, post-processing included",
        "published_share": round(PUBLISHED_FPS * by_arithmetic / 1000, 3),
        "published_share_of_limit": round(PUBLISHED_FPS * there.ms / 1000, 3),
    }
