"""How much memory an engine takes: the peak of a process that does nothing else.

A process of its own opens one file in one engine and runs it; another one has the same engine and
no model: its library, and on a GPU a tiny one for the sake of its context. Their difference is what
the model costs an application that has the engine already.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nmsfree.backends.options import parse_device
from nmsfree.errors import EngineError
from nmsfree_benchmarks.machine.gpu import gpu_state

LONGEST = 300  # seconds; an engine may compile its kernels first
LOOK = 0.02  # seconds between two looks at the GPU's memory
CHILD = "nmsfree_benchmarks.machine.memory_child"
MIB = 2**20 / 1e6


def peak_of(target: str, *arguments: object, look: Callable[[], None] = lambda: None) -> float:
    """Call a function in a process of its own; returns the most memory that held, in MB.

    Args:
        target: "module:function".
        arguments: as JSON takes them.
        look: called again and again while the process runs.

    Raises:
        EngineError: the function failed, or took longer than `LONGEST`.
    """
    command = [sys.executable, "-m", CHILD, target, json.dumps(arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    ) as child:
        started = time.monotonic()
        while child.poll() is None:
            look()
            time.sleep(LOOK)
            if time.monotonic() - started > LONGEST:
                child.kill()
                raise EngineError(f"memory of {target}: no answer within {LONGEST} s")
        stdout, stderr = child.communicate()
    if child.returncode != 0:
        lines = stderr.strip().splitlines() or ["it said nothing"]
        raise EngineError(
            f"memory of {target}: the process ended with status {child.returncode} ({lines[-1]})"
        )
    answer = json.loads(stdout.splitlines()[-1])
    if "error" in answer:
        raise EngineError(f"memory of {target}: {answer['error']}")
    return float(answer["peak_rss_mb"])


class MemoryMeter:
    """Measures files; what an engine takes without a model is measured once and kept."""

    def __init__(self) -> None:
        self._without: dict[tuple[str, bool], float] = {}

    def measure(
        self, model: Path, device: str, threads: int, precision: str | None = None
    ) -> dict[str, float]:
        """Return the figures of one file in one engine.

        Returns:
            "peak_rss_mb": the whole process; "engine_rss_mb": more than without a model. On an
            NVIDIA GPU that tells it also "peak_device_mb": more than before, of its own memory.

        Raises:
            EngineError: the file does not run there.
        """
        target = f"{CHILD}:run_model"
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
        peak = peak_of(target, str(model), device, threads, precision, look=look)
        figures = {"peak_rss_mb": peak, "engine_rss_mb": peak - self._without[kind]}
        if seen:
            figures["peak_device_mb"] = (max(seen) - seen[0]) * MIB
        return {name: round(value, 1) for name, value in figures.items()}
