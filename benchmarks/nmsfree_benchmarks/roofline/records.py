"""What a roofline run says of each model: limit, share of it, heaviest layers, and on paper."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nmsfree_benchmarks.machine.measure import Times
from nmsfree_benchmarks.record.intervals import ratio_interval
from nmsfree_benchmarks.record.records import Ratio, Record, Subject
from nmsfree_benchmarks.roofline.limits import EXCEEDED, Limit
from nmsfree_benchmarks.roofline.onnx_cost import Layer
from nmsfree_benchmarks.roofline.paper import E2E_FCOS, Published

HEAVIEST = 8  # layers that are kept
KINDS = 4  # kinds of layers that are named for their time beyond the limit


def model_record(
    name: str,
    subject: Subject,
    times: Times,
    limit: Limit,
    profiled: Mapping[str, float],
    burst: int = 1,
) -> Record:
    """Make the record of a model.

    Args:
        times: [timed calls, 1] ns of the bare call.
        profiled: layer name → milliseconds; may lack any.
    """
    p50 = float(np.median(times.sum(axis=1))) / 1e6
    # The limit is a constant here: the interval is that of the median alone.
    constant = np.full((len(times), 1), max(1, round(limit.ms * 1e6)))
    took = ratio_interval(times, constant, burst)
    share = limit.share(p50)
    bounds = (1 / took.high, 1 / took.low) if took.known and share is not None else (None, None)
    figures = {
        "gmac": round(limit.macs / 1e9, 4),
        "weights_mb": round(limit.weight_bytes / 1e6, 3),
        "activations_mb": round((limit.bytes - limit.weight_bytes) / 1e6, 3),
        "flop_per_byte": round(limit.intensity, 2),
        "gflop_per_s": round(2 * limit.macs / p50 / 1e6, 2),
        "limit_ms": round(limit.ms, 4),
        "limit_whole_ms": round(limit.whole_ms, 4),
        "limit_by_arithmetic_share": round(limit.computing, 4),
        **share_figures(share),
        "share_low": None if bounds[0] is None else round(bounds[0], 4),
        "share_high": None if bounds[1] is None else round(bounds[1], 4),
        "paper": _paper(limit, subject, E2E_FCOS),
        "beyond_limit_ms": _beyond(limit, profiled),
        "layers": _heaviest(limit, profiled),
    }
    return Record(name, {"call": "bare"}, times, figures=figures, subject=subject)


def share_figures(share: float | None) -> dict[str, Any]:
    """A share of the limit as figures; of none the reason."""
    if share is None:
        return {"share_of_limit": None, "share_of_limit_is_empty": EXCEEDED}
    return {"share_of_limit": round(share, 4)}


def _heaviest(limit: Limit, profiled: Mapping[str, float]) -> list[dict[str, Any]]:
    """The layers that take longest; where nothing was profiled, those with the highest limit."""

    def weight(layer: Layer) -> float:
        return profiled.get(layer.name, 0.0) if profiled else limit.layer_ms(layer)

    found = sorted(limit.layers, key=weight, reverse=True)[:HEAVIEST]
    return [_layer(layer, limit, profiled.get(layer.name)) for layer in found]


def _layer(layer: Layer, limit: Limit, ms: float | None) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "gmac": round(layer.macs / 1e9, 5),
        "mb": round(layer.bytes / 1e6, 4),
        "flop_per_byte": round(layer.intensity, 2),
        "limit_ms": round(limit.layer_ms(layer), 4),
        "profiled_ms": None if ms is None else round(ms, 4),
        "gflop_per_s": round(layer.flop / ms / 1e6, 2) if ms else None,
    }


def _beyond(limit: Limit, profiled: Mapping[str, float]) -> dict[str, float]:
    """Kind of layer → milliseconds that such layers took beyond their limit; the largest few."""
    lost: Counter[str] = Counter()
    for layer in limit.layers:
        if layer.name in profiled:
            lost[layer.kind] += profiled[layer.name] - limit.layer_ms(layer)  # type: ignore[assignment]
    return {kind: round(ms, 4) for kind, ms in lost.most_common(KINDS) if ms > 0}


def _paper(limit: Limit, subject: Subject, published: Published) -> dict[str, Any] | None:
    """What the same graph allows on the device of a published speed; None = not that model."""
    same = (subject.model in published.models, subject.size == published.size)
    if not all(same) or subject.precision != "fp32" or subject.batch != 1:
        return None
    device = published.device
    there = Limit(limit.layers, device.peaks)
    by_arithmetic = 2 * limit.macs / device.flops * 1e3
    return {
        "computed_not_measured": True,
        "device": device.name,
        "source": device.source,
        "peak_tflop_per_s": round(device.flops / 1e12, 2),
        "memory_gb_per_s": device.memory_gb_per_s,
        "gflop": round(2 * limit.macs / 1e9, 1),
        "arithmetic_ms": round(by_arithmetic, 2),
        "fps_at_most": round(1000 / by_arithmetic, 1),
        "limit_ms": round(there.ms, 2),
        "published_fps": published.fps,
        "published_how": published.how,
        "published_share": round(published.fps * by_arithmetic / 1000, 3),
        "published_share_of_limit": round(published.fps * there.ms / 1000, 3),
    }


def models(records: Sequence[Record]) -> list[Record]:
    """Those records that are models, in order."""
    return [record for record in records if record.subject is not None]


def ratios(records: Sequence[Record], burst: int) -> tuple[Ratio, ...]:
    """Each model by the matrix product of FP32: what carries over to another machine."""
    product = [r for r in records if r.parameters.get("precision") == "fp32" and not r.subject]
    return tuple(
        Ratio.between(record, product[0], "bare call by matrix product", burst)
        for record in models(records)
        if product
    )


def facts(records: Sequence[Record]) -> dict[str, Any]:
    """The peaks by name with their unit, and each model's share of its limit."""
    return {
        "peaks": {
            f"{r.name}, {unit}": r.figures[key]
            for r in records
            for key, unit in (("gflop_per_s", "GFLOP/s"), ("gb_per_s", "GB/s"))
            if r.subject is None and key in r.figures
        },
        "share_of_limit": {
            r.subject.model: r.figures["share_of_limit"] for r in records if r.subject is not None
        },
    }
