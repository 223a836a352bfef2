"""Probes of an NVIDIA GPU: matrix products with cuBLAS and copies in its memory, by PyTorch."""

from collections.abc import Callable
from functools import partial

import torch

from nmsfree.errors import EngineError
from nmsfree_benchmarks.roofline.peaks import GPU_COPIED_MIB, GPU_SIDE, Probe, product_flop, timed

PRODUCTS = (  # precision, type of the factors, whether TF32 is allowed
    ("fp32", torch.float32, False),
    ("tf32", torch.float32, True),
    ("fp16", torch.float16, False),
    ("bf16", torch.bfloat16, False),
)


def cuda_probes(index: int = 0) -> tuple[list[Probe], dict[str, str]]:
    """All probes at once; FP32 with TF32 off, and TF32 by itself.

    Raises:
        EngineError: PyTorch finds no such GPU.
    """
    skipped = {"int8": "PyTorch has no plain INT8 matrix product to measure on a GPU"}
    return [make() for make in cuda_makers(index)], skipped


def cuda_makers(index: int = 0) -> list[Callable[[], Probe]]:
    """Return what makes the probes: each takes hundreds of megabytes once it is made.

    Raises:
        EngineError: PyTorch finds no such GPU.
    """
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise EngineError(
            f"device is 'cuda:{index}', but PyTorch finds no such GPU: see `nmsfree doctor`"
        )
    device = torch.device("cuda", index)
    products = [partial(_product_probe, device, *product) for product in PRODUCTS]
    return [*products, *(partial(_copy_probe, device, mib) for mib in GPU_COPIED_MIB)]


def _product_probe(device: torch.device, precision: str, kind: torch.dtype, tf32: bool) -> Probe:
    a = torch.ones(GPU_SIDE, GPU_SIDE, dtype=kind, device=device)
    b, c = torch.ones_like(a), torch.empty_like(a)

    def run() -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.mm(a, b, out=c)
        torch.backends.cuda.matmul.allow_tf32 = before

    return Probe(
        f"matrix product {precision} {GPU_SIDE}, cuBLAS",
        timed(run, lambda: torch.cuda.synchronize(device)),
        product_flop(GPU_SIDE),
        precision,
        {
            "call": "matrix product",
            "precision": precision,
            "engine": "cublas",
            "side": GPU_SIDE,
            "tf32": tf32,
        },
    )


def _copy_probe(device: torch.device, mib: int) -> Probe:
    moved = mib * 2**20
    # To start a copy and to wait for it takes as long as a small copy itself.
    repeats = max(1, GPU_COPIED_MIB[-1] // mib)
    source = torch.ones(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def run() -> None:
        for _ in range(repeats):
            target.copy_(source)

    return Probe(
        f"copy {mib} MiB on the GPU",
        timed(run, lambda: torch.cuda.synchronize(device)),
        moved,
        parameters={"call": "copy", "mib_read_and_written": mib, "engine": "cuda"},
        repeats=repeats,
    )
