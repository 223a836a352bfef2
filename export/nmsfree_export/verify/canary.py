"""The canary of a finished file: what it answers on the processor, see `nmsfree.canary`."""

from base64 import b64encode
from dataclasses import replace
from hashlib import sha256

import numpy as np

from nmsfree.backends.base import Backend
from nmsfree.backends.rows import raw_rows
from nmsfree.canary import FAINT, canary_input
from nmsfree.spec import LEAST_ROWS, Canary, ModelSpec, Tolerance

SEEDS = 16  # pictures that are tried
ENGINES = ("openvino", "cuda", "tensorrt-rtx", "tensorrt")


def with_canary(spec: ModelSpec, backend: Backend) -> ModelSpec:
    """Describe a file together with what it answers in `backend`, which runs it on the processor.

    A picture that gives fewer than ten different scores, or no numbers, is not taken, and the
    next seed is tried; without a canary where all of them do.
    """
    for seed in range(SEEDS):
        images = canary_input(spec, seed)
        found = raw_rows(backend.run(images), 0, spec)
        rows = np.column_stack([found.boxes, found.scores, found.classes]).astype("<f4")
        digits = {f"{max(score, FAINT):.2e}" for score in found.scores.tolist()}
        if np.isfinite(rows).all() and len(digits) >= LEAST_ROWS:
            canary = Canary(
                seed,
                sha256(images[0].tobytes()).hexdigest(),
                b64encode(rows.tobytes()).decode(),
                tolerances(spec),
            )
            return replace(spec, canary=canary)
    return replace(spec, canary=None)


def tolerances(spec: ModelSpec) -> dict[str, Tolerance]:
    """What may differ from the file's rows on each kind of engine.

    Seen on five networks, trained and random, scores as ln(score): in float32, OpenVINO beside ONNX
    Runtime 2e-5 and 0.001 pixels. Factors rounded to TF32, which has the digits of a half: one row
    in a hundred beyond `half`. To bfloat16: one in twenty beyond `bfloat`. INT8 files without their
    fused kernels, and in OpenVINO: up to one in four beyond `int8`, since a row that rounds the
    other way moves its neighbours. Swapped channels: at least every second row beyond `int8`. On a
    processor a half-precision file computes in float32. None of it was seen on a GPU.
    """
    side = max(spec.height, spec.width)
    exact = Tolerance(1e-3, 0.05, 0)
    half = Tolerance(0.03, side / 500, 0.05)
    bfloat = Tolerance(0.1, side / 100, 0.3)
    int8 = Tolerance(0.35, side / 100, 0.4)
    if spec.precision == "int8":
        return dict.fromkeys(("cpu", *ENGINES, "tf32", "bf16"), int8)
    usual = exact if spec.precision == "fp32" else half
    return {"cpu": exact, **dict.fromkeys(ENGINES, usual), "tf32": half, "bf16": bfloat}
