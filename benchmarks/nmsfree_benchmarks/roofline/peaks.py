"""What a device reaches at best, measured: matrix products in each precision, and memory copies.

A peak is the fastest call of the fastest implementation found here: ONNX Runtime's own matrix
product and PyTorch's on a processor, cuBLAS (through PyTorch) on an NVIDIA GPU. (The fastest and
not the median, as in the STREAM benchmark: what the device can do when nothing disturbs it.)
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from nmsfree.errors import EngineError
from nmsfree_benchmarks.harness.graphs import open_session
from nmsfree_benchmarks.harness.records import Record
from nmsfree_benchmarks.harness.timer import Call, Plan, Times, slots, take_turns, timed

SIDES, GPU_SIDE = (512, 1024), 8192  # of the square matrices
COPIED_MIB = (1, 8, 64)  # read and written together; the largest is beyond most caches
GPU_COPIED_MIB = (8, 64, 1024)
FALLBACK = "fp32"  # a processor computes a precision that it has no instructions for in this one
QUICK = Plan(seconds=0.5, min_rounds=4, pause=0.001, lead_in=1, burst=2, fixed=True)
OPSET, IR_VERSION = 20, 10
TRIAL = 256  # side of the matrices that show whether bf16 has instructions of its own
CPU = torch.device("cpu")
GPU_PRODUCTS = (  # precision, type of the factors, whether TF32 is allowed
    ("fp32", torch.float32, False),
    ("tf32", torch.float32, True),
    ("fp16", torch.float16, False),
    ("bf16", torch.bfloat16, False),
)


@dataclass(frozen=True)
class Peaks:
    """The best that a device was seen to do."""

    flops: Mapping[str, float]  # precision → FLOP/s of the largest matrix product
    # (bytes read and written, bytes/s), ascending: small copies stay in a cache.
    copies: tuple[tuple[int, float], ...]

    def flops_of(self, precision: str) -> float:
        """FLOP/s in a precision, or in FP32 where it was not measured."""
        return self.flops.get(precision, self.flops[FALLBACK])

    def bandwidth(self, moved: int) -> float:
        """Bytes/s of the smallest copy that moves as much, or of the largest."""
        return next((rate for size, rate in self.copies if moved <= size), self.copies[-1][1])

    def or_faster(self, other: "Peaks") -> "Peaks":
        flops = {
            key: max(self.flops.get(key, 0.0), other.flops.get(key, 0.0))
            for key in (*self.flops, *other.flops)
        }
        copies = dict(self.copies)
        for size, rate in other.copies:
            copies[size] = max(rate, copies.get(size, 0.0))
        return Peaks(flops, tuple(sorted(copies.items())))


@dataclass(frozen=True, eq=False)
class Probe:
    """A call that shows a peak."""

    name: str  # of its record
    call: Call  # takes any picture and ignores it
    work: int  # FLOP of a matrix product, or bytes that a copy reads and writes
    precision: str = ""  # of a matrix product; "" is a copy
    parameters: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1  # within a call

    def rate(self, times: Times) -> float:
        """FLOP/s or bytes/s of the fastest call."""
        return self.work * self.repeats / (float(times.sum(axis=1).min()) / 1e9)

    def record(self, times: Times) -> Record:
        what = "gb_per_s" if not self.precision else "gflop_per_s"
        figures = {what: round(self.rate(times) / 1e9, 2)}
        return Record(self.name, self.parameters, times, figures=figures)


def read_peaks(probes: Sequence[Probe], times: Mapping[str, Times]) -> Peaks:
    """Take the fastest probe of each precision, and the copies."""
    found = Peaks({}, ())
    for probe in probes:
        rate = probe.rate(times[probe.name])
        one = (
            Peaks({probe.precision: rate}, ())
            if probe.precision
            else Peaks({}, ((probe.work, rate),))
        )
        found = found.or_faster(one)
    return found


def gpu_peaks(index: int = 0) -> Peaks:
    """Measure a GPU's peaks in about a second; none where PyTorch does not run on it.

    One probe after another: a GPU with engines on it has no room for all at once.
    """
    found = Peaks({}, ())
    try:
        for make in cuda_makers(index):
            probe = make()
            times = take_turns({probe.name: probe.call}, slots(1), QUICK)
            found = found.or_faster(read_peaks([probe], times))
            del probe
            torch.cuda.empty_cache()  # PyTorch would keep the memory from the other engines
    except (EngineError, RuntimeError):  # no CUDA in this PyTorch, or no room
        return Peaks({}, ())
    return found


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
        for precision, operator, a, b in (
            ("fp32", "MatMul", f32, f32),
            ("int8", "MatMulInteger", u8, s8),
        ):
            session = product_session(threads, operator, a, b)
            run = partial(session.run, None, {"a": a})
            made.append(_product_probe("onnxruntime", "ONNX Runtime", precision, side, run))
    return made


def _product_probe(
    engine: str, label: str, precision: str, side: int, run: Callable[[], object], **more: Any
) -> Probe:
    about = {"call": "matrix product", "precision": precision, "engine": engine, "side": side}
    name = f"matrix product {precision} {side}, {label}"
    flop = 2 * side**3  # a multiply-add is two
    return Probe(name, timed(lambda _: run()), flop, precision, about | more)


def product_session(threads: int, operator: str, a: NDArray[Any], b: NDArray[Any]) -> Any:
    """Open a session that multiplies "a" with `b`, which the engine may pack as it packs weights.

    "MatMul" is of float32, "MatMulInteger" of uint8 by int8; `a` is like what will be fed.
    """
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
    return open_session(model, threads)


def constant_work(threads: int) -> Call:
    """An FP32 matrix product in ONNX Runtime, whose time tells how undisturbed a processor is."""
    shape = (SIDES[0], SIDES[0])  # 3 ms on a slow core
    factor = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    session = product_session(threads, "MatMul", factor, factor)
    return timed(lambda _: session.run(None, {"a": factor}))


def _torch_probe(threads: int, kind: torch.dtype, precision: str, side: int) -> Probe:
    return _product_probe("torch", "PyTorch", precision, side, _product(threads, kind, side))


def _product(
    threads: int, kind: torch.dtype, side: int, device: torch.device = CPU
) -> Callable[[], object]:
    a = torch.ones(side, side, dtype=kind, device=device)
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
    return [_copy_probe(threads, CPU, mib) for mib in COPIED_MIB]


def _copy_probe(threads: int, device: torch.device, mib: int) -> Probe:
    moved, on_gpu = mib * 2**20, device.type == "cuda"
    # On a GPU to start a copy and to wait for it takes as long as a small copy itself.
    repeats = max(1, GPU_COPIED_MIB[-1] // mib) if on_gpu else 1
    source = torch.ones(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def run(_: object) -> None:
        torch.set_num_threads(threads)
        for _ in range(repeats):
            target.copy_(source)
        if on_gpu:
            torch.cuda.synchronize(device)

    engine = "cuda" if on_gpu else "torch"
    about = {"call": "copy", "mib_read_and_written": mib, "engine": engine}
    name = f"copy {mib} MiB" + " on the GPU" * on_gpu
    return Probe(name, timed(run), moved, "", about, repeats)


def cuda_probes(index: int = 0) -> tuple[list[Probe], dict[str, str]]:
    """All probes of an NVIDIA GPU at once; FP32 with TF32 off, and TF32 by itself.

    EngineError: PyTorch finds no such GPU.
    """
    skipped = {"int8": "PyTorch has no plain INT8 matrix product to measure on a GPU"}
    return [make() for make in cuda_makers(index)], skipped


def cuda_makers(index: int = 0) -> list[Callable[[], Probe]]:
    """What makes the probes: each takes hundreds of megabytes once it is made.

    EngineError: PyTorch finds no such GPU.
    """
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise EngineError(
            f"device is 'cuda:{index}', but PyTorch finds no such GPU: see `nmsfree doctor`"
        )
    device = torch.device("cuda", index)
    products = [partial(_cublas_probe, device, *product) for product in GPU_PRODUCTS]
    threads = torch.get_num_threads()
    return [*products, *(partial(_copy_probe, threads, device, mib) for mib in GPU_COPIED_MIB)]


def _cublas_probe(device: torch.device, precision: str, kind: torch.dtype, tf32: bool) -> Probe:
    multiply = _product(torch.get_num_threads(), kind, GPU_SIDE, device)

    def run() -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        multiply()
        torch.backends.cuda.matmul.allow_tf32 = before
        torch.cuda.synchronize(device)  # a GPU works on its own

    return _product_probe("cublas", "cuBLAS", precision, GPU_SIDE, run, tf32=tf32)
