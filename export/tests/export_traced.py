"""Tracing a network, which takes most of an export's time, once for all tests and processes."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from inspect import unwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from filelock import FileLock
from onnx import ModelProto

from nmsfree.files import write_atomic
from nmsfree.spec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

LATE = 240  # seconds that another process may take


def shared_folder(config: pytest.Config, factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder of all processes of a run that outlives it, where pytest keeps a cache."""
    cache = getattr(config, "cache", None)
    if cache is not None:
        return Path(cache.mkdir(name))
    base = factory.getbasetemp()
    folder = (base.parent if hasattr(config, "workerinput") else base) / name
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def traced_once(folder: Path) -> Iterator[None]:
    """Let equal modules be traced once, and their graphs be read from this folder after that.

    Only where some test has loaded what traces: it brings PyTorch's exporter.
    """
    write = sys.modules.get("nmsfree_export.graph.write")
    if write is None:
        yield
        return
    trace = unwrap(write.traced)  # another folder's tests may be in the same process

    def once(module: "nn.Module", spec: ModelSpec) -> ModelProto:
        where = f"{spec.head} {spec.batch} {spec.height} {spec.width}"
        digest = hashlib.sha256(f"{fingerprint(module)} {where} {code()}".encode())
        file = folder / f"{digest.hexdigest()[:20]}.onnx"
        with FileLock(file.with_suffix(".lock"), timeout=LATE):
            if not file.is_file():
                write_atomic(file, trace(module, spec).SerializeToString())
        return ModelProto.FromString(file.read_bytes())

    once.__wrapped__ = trace  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "traced", once)
        yield


@cache
def code() -> str:
    """Of what a graph is made with, beside the module."""
    import nmsfree_export.graph
    import nmsfree_training.model

    folders = [
        Path(p) for room in (nmsfree_export.graph, nmsfree_training.model) for p in room.__path__
    ]
    found = hashlib.sha256()
    for file in sorted(file for folder in folders for file in folder.glob("*.py")):
        found.update(file.read_bytes())
    return f"{found.hexdigest()} {[version(name) for name in ('torch', 'onnx', 'onnxscript')]}"


def fingerprint(module: "nn.Module") -> str:
    """Of all that a graph is made of: structure, values, and what is one object in two places."""
    from torch import nn

    found = hashlib.sha256(repr(module).encode())
    usual = vars(nn.Module()).keys()
    for part in module.modules():
        own = {name: value for name, value in vars(part).items() if name not in usual}
        found.update(f"{type(part)} {sorted(own.items())}".encode())
    seen: dict[int, int] = {}
    for tensors in (module.named_parameters, module.named_buffers):
        for name, tensor in tensors(remove_duplicate=False):
            number = seen.setdefault(id(tensor), len(seen))
            found.update(f"{name} {number} {tensor.dtype}".encode())
            found.update(np.ascontiguousarray(tensor.numpy(force=True)).tobytes())
    return found.hexdigest()
