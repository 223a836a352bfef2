"""How much memory an engine takes: the peak of a process that does nothing else.

A process of its own opens one file in one engine and runs it; another one has the same engine and
no model: its library, and on a GPU a tiny one for the sake of its context. Their difference is what
the model costs an application that has the engine already.

`python -m nmsfree_benchmarks.harness.memory MODULE:FUNCTION '[arguments as JSON]'` is that process.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Event, Thread
from typing import Any

from nmsfree.doctor.model import write_model
from nmsfree.doctor.probe import ask_child, module_command
from nmsfree.errors import EngineError, NmsfreeError

LONGEST = 300  # seconds; an engine may compile its kernels first
LOOK = 0.02  # seconds between two looks at the GPU's memory
RUNS = 3  # engines take more memory in their first runs
CHILD = "nmsfree_benchmarks.harness.memory"
MIB = 2**20 / 1e6
_STATUS = Path("/proc/self/status")


class MemoryMeter:
    """Measures files; what an engine takes without a model is measured once and cached."""

    def __init__(self) -> None:
        self._without: dict[tuple[str, bool], float] = {}

    def measure(
        self, model: Path, device: str, threads: int, precision: str | None = None
    ) -> dict[str, float]:
        """The figures of one file in one engine (EngineError: it does not run there).

        "peak_rss_mb": the whole process; "engine_rss_mb": more than without a model. On an NVIDIA
        GPU that tells it also "peak_device_mb": more than before, of its own memory.
        """
        from nmsfree.backends.options import parse_device
        from nmsfree_benchmarks.harness.gpu import gpu_state

        kind = device, model.suffix == ".engine"
        if kind not in self._without:
            self._without[kind] = peak_of(f"{CHILD}:run_nothing", *kind)
        seen: list[float] = []
        place = parse_device(device)
        on_gpu = place.kind not in ("cpu", "openvino")

        def look() -> None:
            used = gpu_state(place.index).memory_used_mib if on_gpu else None
            seen.extend([] if used is None else [used])

        look()
        peak = peak_of(f"{CHILD}:run_model", str(model), device, threads, precision, look=look)
        figures = {"peak_rss_mb": peak, "engine_rss_mb": peak - self._without[kind]}
        if seen:
            figures["peak_device_mb"] = (max(seen) - seen[0]) * MIB
        return {name: round(value, 1) for name, value in figures.items()}


def peak_of(target: str, *arguments: object, look: Callable[[], None] = lambda: None) -> float:
    """Call "module:function" in a process of its own; returns the most memory that held, in MB.

    Arguments are as JSON takes them; `look` is called again and again meanwhile. EngineError: the
    function failed, or took longer than `LONGEST`.
    """
    with repeated(look, LOOK):
        answer, problem = ask_child(module_command(CHILD, target, json.dumps(arguments)), LONGEST)
    if answer is None or "error" in answer:
        raise EngineError(f"memory of {target}: {answer['error'] if answer else problem}")
    return float(answer["peak_rss_mb"])


@contextmanager
def repeated(look: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function every so many seconds in a thread of its own, until the block ends."""
    done = Event()

    def watch() -> None:
        while not done.wait(seconds):
            look()

    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def peak_rss_mb() -> float:
    """The most memory that this process ever held, in MB (10⁶ bytes)."""
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
    """Take what an engine takes without a model; returns what must stay alive meanwhile.

    `built` tells that a file built for the device is run there, and no ONNX file.
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
    """Open a model and run it a few times; returns what must stay alive meanwhile."""
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
        alive = getattr(import_module(module), name)(*json.loads(arguments))
        answer = {"peak_rss_mb": peak_rss_mb()}
        del alive
    except NmsfreeError as error:
        answer = {"error": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
