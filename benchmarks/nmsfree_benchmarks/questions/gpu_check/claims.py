"""What is said of GPUs, as claims that a user's own machine confirms or refutes.

Each is tried on the detectors of `gpu_check.prepare`. A claim's function returns what it saw; it
raises `CannotTry` or `MissingExtraError` where the claim is not about this machine, and any other
`NmsfreeError` where it does not hold. What they compare with needs no GPU itself.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from nmsfree.backends import Backend, OnnxRuntimeBackend, RawDetections, open_backend
from nmsfree.backends.onnxruntime.gpu import CUDA
from nmsfree.backends.tensorrt.backend import TensorRtBackend
from nmsfree.backends.tensorrt.vendor import load_vendor
from nmsfree.canary import check_canary
from nmsfree.datasets.digits.scenes import make_scene
from nmsfree.detector import Detector
from nmsfree.errors import GateError, InputError, MissingExtraError, NmsfreeError
from nmsfree_benchmarks.harness.engines import build_here, has_graph, the_gpu, without_tf32
from nmsfree_benchmarks.harness.gpu import gpu_state
from nmsfree_benchmarks.harness.timer import Image

FREE, WITH_NMS = "fcos_e2e_nano", "fcos_rt_nano"
FREE_FP16 = f"{FREE}.fp16"
SUFFIX = {FREE: "", FREE_FP16: "-fp16", WITH_NMS: "-nms"}  # of a claim's key
THREADS, PICTURES = 8, 200
RUNS = 5000  # after which memory must be what it was
OPENED = 10  # engines, one after another
LEAK = 8.0  # MiB that the driver may take for itself meanwhile
TRIES = 3  # another program may take memory once; a leak goes on
REPLAYED = 4  # pictures
TESTS = ("runtime/tests", "training/tests", "export/tests", "benchmarks/tests")
TESTS_S = 840  # less than a claim has, so that nothing is left behind that uses the GPU
SHOWN = 3

Used = Callable[[], float | None]  # MiB in use now; None where it is not told


class CannotTry(NmsfreeError):
    """The claim is not about this machine."""


@dataclass(frozen=True)
class Claim:
    key: str  # on the command line
    text: str
    check: Callable[[Path], str]  # tries it on the files of a folder


def same_answers(reference: Path, other: Backend) -> str:
    """Compare a backend with ONNX Runtime on the processor, on the bundled pictures; closes it.

    Then with its file's canary, which says how far such an engine may be off.

    GateError: scores, boxes or the number of objects differ.
    """
    from nmsfree_export.verify.parity import compare, load_images, tolerance_for

    with closing(other), closing(OnnxRuntimeBackend(reference)) as expected:
        allowed = tolerance_for(expected.spec, expected.spec.precision, other.spec.precision)
        parity = compare(expected, other, load_images(None), allowed)
        canary = check_canary(other)
    parity.enforce()
    if not canary.ok:
        raise GateError(f"canary: {canary}")
    return f"{canary}; {parity}"


def threads_agree(backend: Backend, threads: int = THREADS, pictures: int = PICTURES) -> str:
    """Run different pictures in many threads at once, and in one: bit for bit the same.

    GateError: some thread got another result.
    """
    images = scenes(backend, pictures)

    def run(image: Image) -> bytes:
        return b"".join(np.ascontiguousarray(a).tobytes() for a in backend.run(image))

    serial = [run(image) for image in images]
    if len(set(serial)) < 2:
        raise GateError("all pictures gave one answer, so threads cannot be told apart")
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(run, images * threads))
    wrong = sum(a != b for a, b in zip(found, serial * threads, strict=True))
    if wrong:
        raise GateError(f"{wrong} of {len(found)} results differ from those of one thread")
    return f"{threads} threads × {pictures} pictures, bit for bit the same"


def memory_is_flat(backend: Backend, used: Used, runs: int = RUNS) -> str:
    """Run many times; memory must not go on growing."""
    images = scenes(backend, 4)
    for image in images:
        backend.run(image)  # contexts, buffers and kernels come with the first runs

    def work() -> None:
        for index in range(runs):
            backend.run(images[index % len(images)])

    return _settles(work, used, f"{runs} runs")


def closing_frees(opened: Callable[[], Backend], used: Used, times: int = OPENED) -> str:
    """Open, run and close many times; memory must not go on growing."""

    def work(times: int = times) -> None:
        for _ in range(times):
            with closing(opened()) as backend:
                backend.run(scenes(backend, 1)[0])

    work(1)  # loaded code and the context's own memory stay
    return _settles(work, used, f"{times} engines were opened, run and closed")


def _settles(work: Callable[[], None], used: Used, what: str) -> str:
    """By how much memory grew (GateError: over `LEAK` each time; CannotTry: it is not told)."""
    for _ in range(TRIES):
        before = used()
        if before is None:
            raise CannotTry("the driver does not tell how much memory is in use")
        work()
        grown = (used() or 0.0) - before
        if grown <= LEAK:
            return f"{grown:+.1f} MiB after {what}"
    raise GateError(f"{grown:+.1f} MiB after {what}, {TRIES} times, at most {LEAK:g} allowed")


def replays_graph(backend: Backend) -> str:
    """Run the same pictures again and again, the first time to capture a graph.

    GateError: no graph was captured, or a replay gives other results.
    """
    images = scenes(backend, REPLAYED)
    first = [backend.run(image) for image in images]
    if has_graph(backend) is not True:  # whether one was captured only a run can tell
        raise GateError(f"no CUDA graph was captured: {backend.describe()}")
    for image, expected in zip(images, first, strict=True):
        same_bytes(expected, backend.run(image), "a replay by the first run")
    return f"{backend.describe()}; {REPLAYED} pictures, replays bit for bit the same"


def same_bytes(expected: RawDetections, found: RawDetections, what: str) -> str:
    """Raise GateError unless two raw outputs are equal bit for bit."""
    for name, a, b in zip(RawDetections._fields, expected, found, strict=True):
        if not np.array_equal(a, b):
            raise GateError(f"{what}: {name} differs")
    return f"{what}: bit for bit the same"


def scenes(backend: Backend, count: int) -> list[Image]:
    """Letterboxed digits scenes that differ, uint8 [1, H, W, 3] BGR."""
    detector = Detector(backend)
    images = [make_scene("overlap" if i % 2 else "val", i).image for i in range(count)]
    return [detector.preprocess([image])[0][:1] for image in images]


def run_marked_tests(root: Path, record: Path, folders: Sequence[str] = TESTS) -> str:
    """Let pytest run the tests that need a GPU, and say how many passed.

    `record` is the JUnit XML that it writes. GateError: a test failed, or they do not end.
    CannotTry: every one was skipped, or there is none.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", "gpu"]
    command += [f"--junit-xml={record}", *(f for f in folders if (root / f).exists())]
    record.unlink(missing_ok=True)
    try:
        run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=TESTS_S)
    except subprocess.TimeoutExpired:
        raise GateError(f"the tests did not end within {TESTS_S} s") from None
    if not record.is_file():
        said = (run.stderr.strip() or run.stdout.strip() or "no output").splitlines()[-1]
        raise GateError(f"pytest did not get as far as the tests: {said}")
    cases = list(ElementTree.parse(record).iter("testcase"))
    failed = [c for kind in ("failure", "error") for c in cases if c.find(kind) is not None]
    skipped = [found for case in cases if (found := case.find("skipped")) is not None]
    passed = len(cases) - len(failed) - len(skipped)
    if failed:
        names = ", ".join(str(case.get("name")) for case in failed[:SHOWN])
        raise GateError(f"{len(failed)} of {len(cases)} failed: {names}")
    reasons = sorted({str(one.get("message")) for one in skipped})
    why = f" ({'; '.join(reasons)})" if reasons else ""
    if not passed:
        raise CannotTry(f"none of {len(cases)} tests ran{why}")
    return f"{passed} passed" + (f", {len(skipped)} skipped{why}" if skipped else "")


def _onnx(folder: Path, name: str = FREE) -> Path:
    return folder / f"{name}.onnx"


def _engine(folder: Path, name: str = FREE) -> Path:
    """Build an engine for this GPU, once."""
    try:
        return build_here(_onnx(folder, name))
    except InputError as error:  # TensorRT-RTX builds for GeForce RTX only
        raise CannotTry(str(error)) from None


def _opened(folder: Path, cuda: Any = None) -> "closing[TensorRtBackend]":
    return closing(TensorRtBackend(_engine(folder), cuda=cuda))


def _on_engine(check: Callable[[Backend], str]) -> Callable[[Path], str]:
    """A check of the engine that is built of the NMS-free file."""

    def opened(folder: Path) -> str:
        with _opened(folder) as backend:
            return check(backend)

    return opened


def _in_onnxruntime(device: str, folder: Path, name: str) -> Backend:
    """Open a file in ONNX Runtime on the GPU."""
    the_gpu()  # without one, that is the reason to give
    import onnxruntime

    if device == "cuda" and CUDA not in onnxruntime.get_available_providers():
        raise CannotTry(
            "the installed onnxruntime is built without CUDA: pip uninstall -y onnxruntime && "
            'pip install "nmsfree[cuda]"'
        )
    if device == "tensorrt-rtx":
        without_tf32()  # in this claim's own process
    return open_backend(_onnx(folder, name), device)


def _torch_with_cuda() -> Any:
    the_gpu()
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingExtraError("an image on the GPU", "nmsfree-training") from None
    if not torch.cuda.is_available():
        raise CannotTry("this build of PyTorch has no CUDA, so nothing of it can lie on the GPU")
    return torch


def _cuda(name: str) -> Claim:
    return Claim(
        f"onnxruntime-cuda{SUFFIX[name]}",
        f"ONNX Runtime CUDA finds what the processor finds and leaves it no computing: {name}"
        + ("" if name == FREE_FP16 else ", FP32 with TF32 off"),
        lambda folder: same_answers(_onnx(folder, name), _in_onnxruntime("cuda", folder, name)),
    )


def _native(name: str) -> Claim:
    return Claim(
        f"engine{SUFFIX[name]}",
        f"a TensorRT engine built for this GPU finds what the processor finds: {name}",
        lambda folder: same_answers(_onnx(folder, name), TensorRtBackend(_engine(folder, name))),
    )


def _driver(folder: Path) -> str:
    return f"{the_gpu()}, driver {gpu_state().driver or 'unknown'}"


def _plugin(folder: Path) -> str:
    return same_answers(_onnx(folder), _in_onnxruntime("tensorrt-rtx", folder, FREE))


def _accepted(folder: Path) -> str:
    """What TensorRT-RTX itself says of this GPU, whatever its builder has a name for."""
    from nmsfree_export.tensorrt.build import BuildOptions, build_engine

    gpu, vendor = the_gpu(), load_vendor("tensorrt-rtx")
    engine = folder / "everywhere.engine"
    build_engine(_onnx(folder), engine, BuildOptions(sms=vendor.buildable()))
    problem = vendor.engine_problem(vendor.create_runtime(), engine.read_bytes())
    if problem is not None:
        said = f"{vendor} refuses its engines on {gpu}: {problem}"
        major, minor = gpu.capability
        # A GPU that it builds for must take what it built; of others nothing is claimed.
        raise (GateError if 10 * major + minor in vendor.buildable() else CannotTry)(said)
    return f"{vendor} takes its engines on {gpu}"


def _pycuda(folder: Path) -> str:
    with _opened(folder, "cuda-python") as one, _opened(folder, "pycuda") as other:
        image = scenes(one, 1)[0]
        return same_bytes(one.run(image), other.run(image), "pycuda by cuda-python")


def _device_arrays(folder: Path) -> str:
    torch = _torch_with_cuda()
    with _opened(folder) as backend:
        image = scenes(backend, 1)[0]
        expected = backend.run(image)
        found = backend.run(torch.from_numpy(image).cuda())
    return same_bytes(expected, found, "an image of PyTorch on the GPU by one of numpy")


def _cuda_threads(folder: Path) -> str:
    """Of the file with NMS: without, runs replay one CUDA graph and take turns."""
    with closing(_in_onnxruntime("cuda", folder, WITH_NMS)) as backend:
        return threads_agree(backend)


def _used() -> float | None:
    return gpu_state().memory_used_mib


def _closing(folder: Path) -> str:
    engine = _engine(folder)
    return closing_frees(lambda: TensorRtBackend(engine), _used)


def _kernel_cache(folder: Path) -> str:
    engine = _engine(folder)
    cache = engine.with_name(engine.name + ".cache")
    with _opened(folder) as backend:
        expected = backend.run(scenes(backend, 1)[0])
    if not cache.is_file():
        raise GateError(f"{cache.name} is not beside the engine after a run")
    with _opened(folder) as backend:
        found = backend.run(scenes(backend, 1)[0])
        if not backend.uses_cached_kernels:
            raise GateError(f"{cache.name} was not used by the second start")
    return f"{cache.stat().st_size / 1e6:.1f} MB; {same_bytes(expected, found, 'opened again')}"


def _eager(folder: Path) -> str:
    _torch_with_cuda()
    from nmsfree_training.weights.predict import open_checkpoint

    with closing(open_backend(_onnx(folder), "cpu")) as onnx:
        checkpoint = folder / f"{FREE}.safetensors"
        eager = open_checkpoint(checkpoint, device="cuda", like=onnx.spec)
    return same_answers(_onnx(folder), eager)


def _marked_tests(folder: Path) -> str:
    """The tests that are marked `gpu`, where the project's own folder is at hand."""
    the_gpu()
    root = Path(__file__).parents[4]
    if not (root / TESTS[0]).is_dir():
        raise CannotTry("installed without its tests: run this in a copy of the project")
    return run_marked_tests(root, folder / "gpu-tests.xml")


CLAIMS = (  # in the order in which they are tried
    Claim("driver", "there is an NVIDIA GPU with a driver that answers", _driver),
    _cuda(FREE),
    _cuda(FREE_FP16),
    _cuda(WITH_NMS),
    Claim(
        "onnxruntime-tensorrt-rtx",
        "TensorRT-RTX in ONNX Runtime finds what the processor finds",
        _plugin,
    ),
    Claim("accepted", "TensorRT-RTX takes engines on this GPU", _accepted),
    _native(FREE),
    _native(FREE_FP16),
    _native(WITH_NMS),
    Claim("pycuda", "pycuda and cuda-python give the same results", _pycuda),
    Claim("device-arrays", "an image on the GPU is taken as it is", _device_arrays),
    Claim(
        "threads",
        "threads share an engine, with the results of one thread",
        _on_engine(threads_agree),
    ),
    Claim("threads-cuda", "threads share a session of ONNX Runtime CUDA, too", _cuda_threads),
    Claim(
        "cuda-graph",
        "an engine's runs replay a CUDA graph, and stay the same",
        _on_engine(replays_graph),
    ),
    Claim("memory", "memory does not grow", _on_engine(lambda b: memory_is_flat(b, _used))),
    Claim("closing", "closing an engine frees its memory", _closing),
    Claim("kernel-cache", "compiled kernels are cached beside the engine", _kernel_cache),
    Claim("eager", "PyTorch on the GPU finds what the processor finds (TF32 off)", _eager),
    Claim("tests", "the tests that need a GPU pass", _marked_tests),
)
BY_KEY = {claim.key: claim for claim in CLAIMS}
