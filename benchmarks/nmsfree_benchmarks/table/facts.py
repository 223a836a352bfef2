"""Facts read from the rows of the table: each engine beside another, and the models' APs."""

from collections.abc import Iterable

from nmsfree_benchmarks.common.engines import DEPLOYED, REFERENCES
from nmsfree_benchmarks.machine.measure import ratio
from nmsfree_benchmarks.table.rows import BASELINE, EAGER, Row


def size_of(row: Row) -> tuple[int, int, int]:
    return row.spec.height, row.spec.width, len(row.spec.class_names)


def speedups(rows: Iterable[Row]) -> dict[str, float]:
    """Model → median of the eager baseline (published timing settings) by that of ONNX Runtime."""
    by_key = {(row.spec.name, row.engine): row for row in rows}
    return {
        name: round(ratio(by_key[name, BASELINE].times, row.times), 3)
        for (name, engine), row in by_key.items()
        if engine in REFERENCES and (name, BASELINE) in by_key
    }


def overheads(rows: Iterable[Row]) -> dict[str, float]:
    """Model → median of `Detector(image)` by that of `session.run` alone, in ONNX Runtime."""
    return {
        row.spec.name: round(ratio(row.times, row.bare), 3)
        for row in rows
        if row.engine in REFERENCES and row.bare is not None
    }


def beside_fp32(rows: Iterable[Row]) -> dict[str, float]:
    """Row of another exported file or engine → how many times the speed of FP32 in ONNX Runtime."""
    rows = [row for row in rows if row.engine not in EAGER]
    plain = {row.spec.name: row.times for row in rows if row.engine in REFERENCES}
    return {
        row.name: round(ratio(plain[row.spec.name], row.times), 3)
        for row in rows
        if row.engine not in REFERENCES and row.spec.name in plain
    }


def limit_shares(rows: Iterable[Row]) -> dict[str, float]:
    """Row → what part of its time is the least that this device needs, 0-1."""
    shares = ((row.name, row.share_of_limit) for row in rows)
    return {name: round(share, 3) for name, share in shares if share is not None}


def postprocess_ms(rows: Iterable[Row]) -> dict[str, float]:
    """Model → milliseconds of post-processing, with NMS where there is one, in ONNX Runtime."""
    return {
        row.spec.name: round(row.stage_ms("postprocess"), 3)
        for row in rows
        if row.engine == DEPLOYED
    }


def ap_gaps(rows: Iterable[Row]) -> dict[str, float]:
    """NMS-free model → its AP minus that of the NMS model of its size, both in ONNX Runtime."""
    deployed = [r for r in rows if r.engine in REFERENCES and r.metrics is not None]
    with_nms = {size_of(r): r.metrics.ap for r in deployed if r.spec.nms and r.metrics}
    return {
        r.spec.name: round(r.metrics.ap - with_nms[size_of(r)], 5)
        for r in deployed
        if r.metrics is not None and r.spec.nms is None and size_of(r) in with_nms
    }
