"""Probes of a processor: matrix products in ONNX Runtime and PyTorch, and copies."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from nmsfree_benchmarks.roofline.peaks import COPIED_MIB, SIDES, Probe, product_flop, timed

OPSET, IR_VERSION = 20, 10
TRIAL = 256  # side of the matrices that show whether bf16 has instructions of its own


def cpu_probes(threads: int) -> tuple[list[Probe], dict[str, str]]:
    """All probes; and of the precisions that would say nothing here, why."""
    probes = onnxruntime_probes(threads)
    probes += [_torch_probe(threads, torch.float32, "fp32", side) for side in SIDES]
    skipped = {}
    if bf16_pays():
        probes += [_torch_probe(threads, torch.bfloat16, "bf16", side) for side in SIDES]
    else:
        skipped["bf16"] = "slower than FP32 here: the processor has no instructions for it"
    return [*probes, *copy_probes(threads)], skipped


def onnxruntime_probes(threads: int) -> list[Probe]:
    """FP32, and INT8 (unsigned by signed, as in the INT8 files for processors)."""
    draw = np.random.default_rng(0)
    made = []
    for side in SIDES:
        f32 = draw.standard_normal((side, side), dtype=np.float32)
        u8 = draw.integers(0, 256, (side, side), dtype=np.uint8)
        s8 = draw.integers(-128, 128, (side, side), dtype=np.int8)
        made += [
            _onnxruntime_probe(threads, "fp32", "MatMul", f32, f32),
            _onnxruntime_probe(threads, "int8", "MatMulInteger", u8, s8),
        ]
    return made


def _onnxruntime_probe(
    threads: int, precision: str, operator: str, a: NDArray[Any], b: NDArray[Any]
) -> Probe:
    side = len(a)
    session = product_session(threads, operator, a, b)
    return Probe(
        f"matrix product {precision} {side}, ONNX Runtime",
        timed(lambda: session.run(None, {"a": a})),
        product_flop(side),
        precision,
        {"call": "matrix product", "precision": precision, "engine": "onnxruntime", "side": side},
    )


def product_session(
    threads: int, operator: str, a: NDArray[Any], b: NDArray[Any], *, spinning: bool = True
) -> Any:
    """Open a session that multiplies "a" with `b`, which the engine may pack as it packs weights.

    Args:
        operator: "MatMul" of float32, or "MatMulInteger" of uint8 by int8.
        a: of the shape and type that will be fed.
        spinning: whether its threads wait for the next run without sleeping.
    """
    import onnxruntime as ort

    result = TensorProto.FLOAT if operator == "MatMul" else TensorProto.INT32
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"])],
        "product",
        [info("a", helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)],
        [info("c", result, a.shape)],
        [onnx.numpy_helper.from_array(b, "b")],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _torch_probe(threads: int, kind: torch.dtype, precision: str, side: int) -> Probe:
    return Probe(
        f"matrix product {precision} {side}, PyTorch",
        timed(_product(threads, kind, side)),
        product_flop(side),
        precision,
        {"call": "matrix product", "precision": precision, "engine": "torch", "side": side},
    )


def _product(threads: int, kind: torch.dtype, side: int) -> Callable[[], object]:
    a = torch.ones(side, side, dtype=kind)
    b, c = torch.ones_like(a), torch.empty_like(a)

    def run() -> None:
        torch.set_num_threads(threads)
        torch.mm(a, b, out=c)

    return run


def bf16_pays() -> bool:
    """Whether PyTorch multiplies bf16 faster than FP32; it can be a hundred times slower."""
    best = []
    for kind in (torch.bfloat16, torch.float32):
        run = _product(1, kind, TRIAL)
        took = []
        for _ in range(3):
            start = time.perf_counter_ns()
            run()
            took.append(time.perf_counter_ns() - start)
        best.append(min(took))
    return best[0] < best[1]


def copy_probes(threads: int) -> list[Probe]:
    """Copies with PyTorch, which shares them among its threads."""
    return [_copy_probe(threads, mib) for mib in COPIED_MIB]


def _copy_probe(threads: int, mib: int) -> Probe:
    moved = mib * 2**20
    source = torch.ones(moved // 2, dtype=torch.uint8)
    target = torch.empty_like(source)

    def run() -> None:
        torch.set_num_threads(threads)
        target.copy_(source)

    return Probe(
        f"copy {mib} MiB",
        timed(run),
        moved,
        parameters={"call": "copy", "mib_read_and_written": mib, "engine": "torch"},
    )
