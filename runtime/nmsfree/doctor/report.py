"""Which engines run on this machine, what is missing, and what stands in whose way.

Nothing is ever installed: the lines to do that are told.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Literal

from nmsfree.doctor.probe import Outcome, look
from nmsfree.doctor.system import System, look_at_system
from nmsfree.errors import how_to_install

State = Literal["runs", "fails", "no device", "missing"]
AT_ONCE = 4  # processes


@dataclass(frozen=True)
class Engine:
    """Something that may be installed."""

    name: str
    probe: str  # how it is tried, see `PROBES`
    packages: tuple[str, ...]  # distributions that bring it, any of them
    install: str  # what `how_to_install` is asked for
    runs_models: bool = True  # False for what engines need besides
    nvidia: bool = True  # of no use without NVIDIA's driver


ENGINES = (
    Engine(
        "ONNX Runtime, processor",
        "onnxruntime-cpu",
        ("onnxruntime", "onnxruntime-gpu"),
        "nmsfree[cpu]",
        nvidia=False,
    ),
    Engine("ONNX Runtime, CUDA", "onnxruntime-cuda", ("onnxruntime-gpu",), "nmsfree[cuda]"),
    Engine(
        "ONNX Runtime, TensorRT-RTX",
        "onnxruntime-tensorrt-rtx",
        ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime-ep-nv-tensorrt-rtx-cu12"),
        "nmsfree[tensorrt-rtx-ort]",
    ),
    Engine(
        "TensorRT-RTX engines",
        "tensorrt-rtx",
        ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
        "nmsfree[tensorrt-rtx]",
    ),
    Engine(
        "TensorRT engines",
        "tensorrt",
        ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "nmsfree[tensorrt]",
    ),
    Engine("OpenVINO, processor", "openvino-cpu", ("openvino",), "nmsfree[openvino]", nvidia=False),
    Engine("OpenVINO, Intel GPU", "openvino-gpu", ("openvino",), "nmsfree[openvino]", nvidia=False),
    Engine("PyTorch checkpoints", "torch", ("torch",), "nmsfree-training", nvidia=False),
    Engine("cuda-python", "cuda-python", ("cuda-bindings",), "nmsfree[tensorrt-rtx]", False),
    Engine("pycuda", "pycuda", ("pycuda",), "nmsfree[pycuda]", False),
)


@dataclass(frozen=True)
class Check:
    """One engine on this machine.

    It "runs" only after the tiny model's answer was right; there is "no device" where nothing is
    broken, but this machine has no GPU for it.
    """

    engine: str
    version: str | None  # of the package; None where it is missing
    state: State
    detail: str  # what runs where, or why not
    install: tuple[str, ...]  # lines for the shell that bring it; empty where it is there
    runs_models: bool


@dataclass(frozen=True)
class Report:
    """What `nmsfree doctor` found."""

    system: System
    checks: tuple[Check, ...]
    conflicts: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether at least one engine runs."""
        return any(check.state == "runs" and check.runs_models for check in self.checks)

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"healthy": self.healthy}


def examine(progress: Callable[[str], None] = lambda name: None) -> Report:
    """Look at the machine and try every engine on it.

    `progress` is told the name of each engine that is done, maybe by other threads.
    """
    system = look_at_system()

    def check(engine: Engine) -> Check:
        outcome = check_engine(engine, system.gpus.problem)
        progress(engine.name)
        return outcome

    with ThreadPoolExecutor(AT_ONCE) as pool:
        checks = tuple(pool.map(check, ENGINES))
    return Report(system, checks, tuple(find_conflicts(packages_distributions())))


def check_engine(engine: Engine, no_gpu: str, look: Callable[[str], Outcome] = look) -> Check:
    """Try one engine, unless it is not installed; `no_gpu` says why there is no NVIDIA GPU."""
    found = _first_version(engine.packages)
    if found is None:
        state, detail, lines = _absent(engine, no_gpu)
        return Check(engine.name, None, state, detail, lines, engine.runs_models)
    outcome = look(engine.probe)
    state = "runs" if outcome.runs else "no device" if outcome.absent else "fails"
    return Check(engine.name, found, state, outcome.detail, (), engine.runs_models)


def _absent(engine: Engine, no_gpu: str) -> tuple[State, str, tuple[str, ...]]:
    """State, detail and lines to install of an engine that is not installed."""
    if engine.nvidia and no_gpu:
        return "no device", f"not installed; {no_gpu}", ()
    line = how_to_install(engine.install)
    # The two write to one folder, and the last one installed breaks the other.
    if engine.probe == "onnxruntime-cuda" and _first_version(("onnxruntime",)):
        line = f"pip uninstall -y onnxruntime && {line}"
        return "missing", "not installed; replaces the processor build, runs there too", (line,)
    return "missing", "not installed", (line,)


def _first_version(packages: Iterable[str]) -> str | None:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None


# Module → how to put it right where several distributions bring it.
EXCLUSIVE = {"onnxruntime": "nmsfree[cpu] or nmsfree[cuda]", "cv2": "opencv-python-headless"}


def find_conflicts(modules: Mapping[str, Iterable[str]]) -> list[str]:
    """Name packages that overwrite one another's files, of what `packages_distributions` tells."""
    conflicts = []
    for module, keep in EXCLUSIVE.items():
        names = sorted({re.sub(r"[-_.]+", "-", n).lower() for n in modules.get(module, ())})
        if len(names) > 1:
            conflicts.append(
                f"{' and '.join(names)} overwrite one another's files: pip uninstall -y"
                f" {' '.join(names)}, then pip install one of them again ({keep})"
            )
    return conflicts
