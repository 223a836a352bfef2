"""Engines for the fake TensorRT: files that say what goes in and comes out."""

import hashlib
import json
from pathlib import Path
from typing import Any

from nmsfree.backends.tensorrt_bindings import INPUT
from nmsfree.backends.tensorrt_fake import VERSIONS
from nmsfree.engines.sidecar import Sidecar, this_platform, write_sidecar
from nmsfree.spec import ModelSpec


def write_fake_engine(
    path: Path,
    spec: ModelSpec,
    *,
    batch: tuple[int, int, int],
    builder: str = "tensorrt-rtx",
    candidates: int | None = None,
    **fields: Any,
) -> Sidecar:
    """Write an engine for the fake, and its sidecar.

    Args:
        candidates: how many of them the engine ends in; None: it ends in detections.
        fields: of the sidecar, in place of what belongs there.
    """
    n = batch[2] if batch[0] == batch[2] else -1
    t, k = candidates, spec.top_k
    if t is None:
        outputs = {
            "num_detections": ("int32", [n, 1]),
            "detection_boxes": ("float32", [n, k, 4]),
            "detection_scores": ("float32", [n, k]),
            "detection_classes": ("int32", [n, k]),
        }
    else:
        outputs = {
            "candidate_boxes": ("float32", [n, t, 4]),
            "candidate_scores": ("float32", [n, t]),
            "candidate_classes": ("int32", [n, t]),
        }
    tensors = {INPUT: ("uint8", [n, spec.height, spec.width, 3])} | outputs
    plan = json.dumps({"tensors": tensors, "batch": batch}).encode()
    path.write_bytes(plan)
    values: dict[str, Any] = {
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "onnx": path.with_suffix(".onnx").name,
        "onnx_sha256": "0" * 64,
        "spec": spec,
        "builder": builder,
        "builder_version": VERSIONS[builder],
        "targets": (89,),
        "platform": this_platform(),
        "precision": "fp32",
        "tf32": False,
        "batch": batch,
        "nms_on_host": candidates is not None,
        "build_seconds": 1.0,
        "created": "2026-01-01T00:00:00+00:00",
    }
    sidecar = Sidecar(**(values | fields))
    write_sidecar(path, sidecar)
    return sidecar
