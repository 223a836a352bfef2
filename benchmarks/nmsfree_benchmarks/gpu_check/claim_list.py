"""The claims, in the order in which they are tried. Files are those of `gpu_check.prepare`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nmsfree.backends import Backend
from nmsfree.backends.onnxruntime.gpu import CUDA, TF32_VARIABLE
from nmsfree.backends.tensorrt.backend import TensorRtBackend
from nmsfree.backends.tensorrt.vendor import load_vendor
from nmsfree.errors import GateError, InputError, MissingExtraError
from nmsfree_benchmarks.gpu_check.checks import (
    closing_frees,
    memory_is_flat,
    replays_graph,
    same_answers,
    same_bytes,
    scenes,
    threads_agree,
)
from nmsfree_benchmarks.gpu_check.claims import CannotTry, Claim, on, the_gpu
from nmsfree_benchmarks.gpu_check.marked_tests import run_marked_tests
from nmsfree_benchmarks.machine.gpu import gpu_state

FREE, WITH_NMS = "fcos_e2e_nano", "fcos_rt_nano"
FREE_FP16 = f"{FREE}.fp16"


def _onnx(folder: Path, name: str = FREE) -> Path:
    return folder / f"{name}.onnx"


def _engine(folder: Path, name: str = FREE) -> Path:
    """Build an engine for this GPU, once.

    Raises:
        CannotTry: the builder does not know this GPU.
        MissingExtraError: there is no builder.
        EngineError: there is no GPU.
    """
    from nmsfree_export.tensorrt.build import BuildOptions, build_engine

    engine = _onnx(folder, name).with_suffix(".engine")
    if not engine.is_file():
        major, minor = the_gpu().capability
        try:
            build_engine(_onnx(folder, name), engine, BuildOptions(sms=(10 * major + minor,)))
        except InputError as error:  # TensorRT-RTX builds for GeForce RTX only
            raise CannotTry(str(error)) from None
    return engine


@contextmanager
def _opened(folder: Path, name: str = FREE, cuda: str | None = None) -> Iterator[TensorRtBackend]:
    backend = TensorRtBackend(_engine(folder, name), cuda=cuda)  # type: ignore[arg-type]
    try:
        yield backend
    finally:
        backend.close()


def _driver(folder: Path) -> str:
    state = gpu_state()
    return f"{the_gpu()}, driver {state.driver or 'unknown'}"


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


def _cuda(name: str) -> Claim:
    fp16 = name == FREE_FP16
    return Claim(
        f"onnxruntime-cuda{'-fp16' if fp16 else ''}{'-nms' if name == WITH_NMS else ''}",
        f"ONNX Runtime CUDA finds what the processor finds: {name}"
        + ("" if fp16 else ", FP32 with TF32 off"),
        lambda folder: same_answers(_onnx(folder, name), _needing_gpu("cuda", folder, name)),
    )


def _needing_gpu(device: str, folder: Path, name: str) -> Backend:
    """Open a file in ONNX Runtime on the GPU.

    Raises:
        EngineError: there is no GPU, or it does not start there.
        CannotTry: the ONNX Runtime that is installed is the one for processors.
    """
    the_gpu()  # without one, that is the reason to give
    import onnxruntime

    if device == "cuda" and CUDA not in onnxruntime.get_available_providers():
        raise CannotTry(
            "the installed onnxruntime is built without CUDA: pip uninstall -y onnxruntime, then "
            'pip install "nmsfree[cuda]"'
        )
    if device == "tensorrt-rtx":
        os.environ.setdefault(TF32_VARIABLE, "0")  # of this claim's own process
    return on(device, _onnx(folder, name))


def _native(name: str) -> Claim:
    kind = {FREE: "", FREE_FP16: "-fp16", WITH_NMS: "-nms"}[name]
    return Claim(
        f"engine{kind}",
        f"a TensorRT engine built for this GPU finds what the processor finds: {name}",
        lambda folder: same_answers(_onnx(folder, name), TensorRtBackend(_engine(folder, name))),
    )


def _pycuda(folder: Path) -> str:
    with _opened(folder, cuda="cuda-python") as one, _opened(folder, cuda="pycuda") as other:
        image = scenes(one, 1)[0]
        return same_bytes(one.run(image), other.run(image), "pycuda by cuda-python")


def _threads(folder: Path) -> str:
    with _opened(folder) as backend:
        return threads_agree(backend)


def _cuda_threads(folder: Path) -> str:
    """Of the file with NMS: without, runs replay one CUDA graph and take turns."""
    backend = _needing_gpu("cuda", folder, WITH_NMS)
    try:
        return threads_agree(backend)
    finally:
        backend.close()


def _cuda_graph(folder: Path) -> str:
    """A replayed graph; whether one was captured only a run can tell."""
    with _opened(folder) as backend:
        return replays_graph(backend)


def _closing(folder: Path) -> str:
    engine = _engine(folder)
    return closing_frees(lambda: TensorRtBackend(engine), lambda: gpu_state().memory_used_mib)


def _memory(folder: Path) -> str:
    with _opened(folder) as backend:
        return memory_is_flat(backend, lambda: gpu_state().memory_used_mib)


def _device_arrays(folder: Path) -> str:
    the_gpu()
    try:
        import torch
    except ModuleNotFoundError:
        raise MissingExtraError("an image on the GPU", "nmsfree-training") from None
    if not torch.cuda.is_available():
        raise CannotTry("this build of PyTorch has no CUDA, so no image can lie on the GPU")
    with _opened(folder) as backend:
        image = scenes(backend, 1)[0]
        expected = backend.run(image)
        found = backend.run(torch.from_numpy(image).cuda())
        return same_bytes(expected, found, "an image of PyTorch on the GPU by one of numpy")


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
    import torch

    from nmsfree_training.weights.predict import open_checkpoint

    the_gpu()
    if not torch.cuda.is_available():
        raise CannotTry("this build of PyTorch has no CUDA")
    onnx = _onnx(folder)
    spec = on("cpu", onnx).spec
    weights = folder / f"{FREE}.safetensors"
    return same_answers(onnx, open_checkpoint(weights, device="cuda", like=spec))


def _marked_tests(folder: Path) -> str:
    """The tests that are marked `gpu`, where the project's own folder is at hand."""
    the_gpu()
    root = Path(__file__).parents[3]
    if not (root / "runtime" / "tests").is_dir():
        raise CannotTry("installed without its tests: run this in a copy of the project")
    return run_marked_tests(root, folder / "gpu-tests.xml")


CLAIMS = (
    Claim("driver", "there is an NVIDIA GPU with a driver that answers", _driver),
    _cuda(FREE),
    _cuda(FREE_FP16),
    _cuda(WITH_NMS),
    Claim(
        "onnxruntime-tensorrt-rtx",
        "TensorRT-RTX in ONNX Runtime finds what the processor finds",
        lambda folder: same_answers(_onnx(folder), _needing_gpu("tensorrt-rtx", folder, FREE)),
    ),
    Claim("accepted", "TensorRT-RTX takes engines on this GPU", _accepted),
    _native(FREE),
    _native(FREE_FP16),
    _native(WITH_NMS),
    Claim("pycuda", "pycuda and cuda-python give the same results", _pycuda),
    Claim("device-arrays", "an image on the GPU is taken as it is", _device_arrays),
    Claim("threads", "threads share an engine, with the results of one thread", _threads),
    Claim("threads-cuda", "threads share a session of ONNX Runtime CUDA, too", _cuda_threads),
    Claim("cuda-graph", "an engine's runs replay a CUDA graph, and stay the same", _cuda_graph),
    Claim("memory", "memory does not grow", _memory),
    Claim("closing", "closing an engine frees its memory", _closing),
    Claim("kernel-cache", "compiled kernels are kept beside the engine", _kernel_cache),
    Claim("eager", "PyTorch on the GPU finds what the processor finds (TF32 off)", _eager),
    Claim("tests", "the tests that need a GPU pass", _marked_tests),
)
BY_KEY = {claim.key: claim for claim in CLAIMS}
