"""One look at one engine, in a process of its own.

`python -m nmsfree.doctor.probe NAME` ends its output with a line of JSON, see `Outcome`.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from nmsfree.backends import open_backend
from nmsfree.backends.openvino import import_openvino
from nmsfree.backends.options import DEFAULTS, Options
from nmsfree.doctor import model as doctor_model
from nmsfree.errors import EngineError, MissingExtraError, NmsfreeError
from nmsfree.files import temporary_folder
from nmsfree.machine import find_gpus

LIMIT_SECONDS = 120


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours, without what lies in the current folder."""
    return [sys.executable, "-P", "-m", module, *arguments]


def ask_child(
    command: list[str], limit: float = LIMIT_SECONDS
) -> tuple[dict[str, Any] | None, str]:
    """Run a command whose last line of output is a JSON object; end it after `limit` seconds.

    Returns the object and "", or None and what went wrong in words.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"gave no answer within {limit:g} seconds"
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        answer = None
    if done.returncode == 0 and isinstance(answer, dict):
        return answer, ""
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    by_signal = -done.returncode in set(signal.Signals)
    end = signal.Signals(-done.returncode).name if by_signal else f"status {done.returncode}"
    return None, f"crashed ({end})" + (f": {said[-1]}" if said else "")


SHOWN = 400  # characters of a message
# What messages advise elsewhere, and would be odd in this command's own output.
ADVICE = (
    ", `nmsfree doctor` tells more",
    ": `nmsfree doctor` says what is missing",
    "see `nmsfree doctor`, or ",
)


@dataclass(frozen=True)
class Outcome:
    """What a look at an engine gave."""

    runs: bool  # the model's answer was right
    detail: str  # what runs where, or why not
    absent: bool = False  # it cannot run because this machine has no such device


def look(name: str) -> Outcome:
    """Try one of `PROBES` in a child process; never raises for what the engine does."""
    answer, problem = ask_child(module_command(__name__, name))
    return Outcome(False, problem) if answer is None else Outcome(**answer)


def _run_onnx(device: str, options: Options = DEFAULTS, nvidia: bool = False) -> Outcome:
    if nvidia and (problem := find_gpus().problem):
        return Outcome(False, problem, absent=True)
    with temporary_folder() as folder:
        return _run(doctor_model.write_model(folder), device, options)


def _run(path: Path, device: str, options: Options) -> Outcome:
    backend = open_backend(path, device, options)
    try:
        wrong = doctor_model.difference(backend)
    finally:
        backend.close()
    return Outcome(not wrong, wrong or backend.describe())


def _run_on_intel_gpu() -> Outcome:
    devices = import_openvino().Core().available_devices
    if not any(device.startswith("GPU") for device in devices):
        return Outcome(False, "no Intel GPU was found (it needs its OpenCL driver)", absent=True)
    return _run_onnx("openvino:GPU")


def _run_engine(builder: str) -> Outcome:
    """Build an engine of the model and run it; the first needs no GPU in TensorRT-RTX."""
    from nmsfree.backends.tensorrt.vendor import load_vendor

    vendor, gpus = load_vendor(builder), find_gpus()
    if gpus.problem and not vendor.builds_without_gpu:
        return Outcome(False, gpus.problem, absent=True)
    major, minor = gpus.found[0].capability if gpus.found else (8, 9)  # an RTX 4060
    with temporary_folder() as folder:
        engine = doctor_model.build(doctor_model.write_model(folder), vendor, 10 * major + minor)
        if gpus.problem:
            return Outcome(False, f"builds engines; {gpus.problem}", absent=True)
        return _run(engine, builder, Options(rebuild=False))


def _run_cuda(layer: Any) -> Outcome:
    """Copy bytes to the GPU and back."""
    from nmsfree.backends.tensorrt.targets import sm_text
    from nmsfree.cuda import open_cuda

    if problem := find_gpus().problem:
        return Outcome(False, problem, absent=True)
    cuda = open_cuda(layer)
    try:
        with cuda.active():
            stream, memory = cuda.create_stream(), cuda.allocate(1024)
            sent, received = cuda.allocate_pinned(1024), cuda.allocate_pinned(1024)
            sent[:], received[:] = 77, 0
            cuda.copy_in(memory.address, sent, stream)
            cuda.copy_out(received, memory.address, stream)
            cuda.synchronize(stream)
            wrong = "" if (received == 77).all() else "bytes came back changed"
            name = f"{cuda.name}, {cuda.device_name()} (SM {sm_text(cuda.sm())})"
    finally:
        cuda.close()
    return Outcome(not wrong, wrong or name)


def _run_torch() -> Outcome:
    """Load what opens checkpoints, and compute a convolution."""
    found = entry_points(group="nmsfree.backends", name="checkpoint")
    if not found:
        raise MissingExtraError("running a checkpoint", "nmsfree-training")
    next(iter(found)).load()
    torch: Any = sys.modules["torch"]
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        ones = torch.ones(1, 3, 8, 8, device=device)
        if torch.nn.functional.conv2d(ones, ones).item() != ones.numel():
            raise EngineError(f"a convolution on {device} is wrong")
    return Outcome(True, f"PyTorch {torch.__version__} on {', '.join(devices)}")


PROBES: dict[str, Callable[[], Outcome]] = {
    "onnxruntime-cpu": partial(_run_onnx, "cpu"),
    "onnxruntime-cuda": partial(_run_onnx, "cuda", nvidia=True),
    "onnxruntime-tensorrt-rtx": partial(_run_onnx, "tensorrt-rtx", Options(tf32=True), nvidia=True),
    "tensorrt-rtx": partial(_run_engine, "tensorrt-rtx"),
    "tensorrt": partial(_run_engine, "tensorrt"),
    "openvino-cpu": partial(_run_onnx, "openvino:CPU"),
    "openvino-gpu": _run_on_intel_gpu,
    "torch": _run_torch,
    "cuda-python": partial(_run_cuda, "cuda-python"),
    "pycuda": partial(_run_cuda, "pycuda"),
}


def main() -> None:
    """Try the engine that the command line names, and print the outcome."""
    try:
        outcome = PROBES[sys.argv[1]]()
    except NmsfreeError as error:
        message = str(error)
        for advice in ADVICE:
            message = message.replace(advice, "")
        outcome = Outcome(False, message)
    except Exception as error:  # noqa: BLE001 (whatever a broken installation raises is the answer)
        outcome = Outcome(False, f"{type(error).__name__}: {' '.join(str(error).split())[:SHOWN]}")
    print(json.dumps(asdict(outcome)))  # noqa: T201 (for the parent process)


if __name__ == "__main__":
    main()
