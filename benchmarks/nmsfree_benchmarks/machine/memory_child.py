"""The other process of `memory.py`: call one function, tell the most memory it ever held.

`python -m nmsfree_benchmarks.machine.memory_child MODULE:FUNCTION '[arguments as JSON]'`
"""

import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from nmsfree.doctor.model import write_model
from nmsfree.errors import NmsfreeError

RUNS = 3  # engines take more memory in their first runs

_STATUS = Path("/proc/self/status")


def peak_rss_mb() -> float:
    """Return the most memory that this process ever held, in MB (10⁶ bytes)."""
    if _STATUS.is_file():
        # Not getrusage: Linux hands its maximum on through fork and exec, so that a child of a
        # process of 500 MB begins with 500 MB.
        entries = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(entries["VmHWM"].split()[0]) * 1024 / 1e6
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset / 1e6)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def run_nothing(device: str, built: bool) -> object:
    """Take what an engine takes without a model: its library, and on a GPU its context.

    Args:
        built: whether a file that was built for the device is run there, and no ONNX file.

    Returns:
        What must stay alive until the memory is read.
    """
    from nmsfree.backends.openvino import import_openvino
    from nmsfree.backends.options import parse_device

    place = parse_device(device)
    if place.kind in ("cpu", "openvino"):
        return import_openvino() if place.kind == "openvino" else import_module("onnxruntime")
    with tempfile.TemporaryDirectory(prefix="nmsfree-memory-") as folder:
        tiny = write_model(Path(folder))
        return run_model(str(build_tiny(tiny, place.index) if built else tiny), device, None, None)


def run_model(model: str, device: str, threads: int | None, precision: str | None) -> object:
    """Open a model and run it a few times.

    Returns:
        What must stay alive until the memory is read.
    """
    import numpy as np

    from nmsfree.backends import Options, open_backend

    # An engine for a GPU has its precision in it, and no threads to be given.
    engine = Path(model).suffix == ".engine"
    options = Options() if engine else Options(threads=threads, precision=precision)
    backend = open_backend(model, device, options)
    spec = backend.spec
    pixels = np.zeros((spec.batch or 1, spec.height, spec.width, 3), np.uint8)
    for _ in range(RUNS):
        backend.run(pixels)
    return backend


def build_tiny(onnx: Path, index: int) -> Path:
    """Build the runtime's own tiny model for a GPU; returns the engine's path."""
    from nmsfree.backends.tensorrt.vendor import load_vendor
    from nmsfree.doctor.model import build
    from nmsfree.machine import find_gpus

    major, minor = find_gpus().found[index].capability
    return build(onnx, load_vendor("tensorrt-rtx"), 10 * major + minor)


def main(target: str, arguments: str) -> None:
    """Call the function and print what it took, or its error, as JSON."""
    module, _, name = target.partition(":")
    answer: dict[str, Any]
    try:
        kept = getattr(import_module(module), name)(*json.loads(arguments))
        answer = {"peak_rss_mb": peak_rss_mb()}
        del kept
    except NmsfreeError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
