"""ONNX Runtime on processors and NVIDIA GPUs."""

import logging
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections, forked, never_free, watched
from nmsfree.backends.contract import (
    as_input,
    check_images,
    check_model_file,
    one_line,
    refusal,
)
from nmsfree.backends.onnxruntime.gpu import gpu_errors, open_gpu, run_failed
from nmsfree.backends.onnxruntime.session import OUTPUTS, Opened, open_file, vendor_errors
from nmsfree.backends.options import DEFAULTS, PROCESSOR, Device, Options
from nmsfree.errors import EngineError, MissingExtraError, ModelError
from nmsfree.files import version_of
from nmsfree.spec import ModelSpec, check_int8_target

logger = logging.getLogger(__name__)


class OnnxRuntimeBackend:
    """Runs an ONNX file of this project. Threads may share it: results are those of one thread.

    A forked process opens the file again at its first run, if it is still the same; on a GPU it
    cannot.

    Args:
        path: the ONNX file.
        device: of kind "cpu", "cuda" or "tensorrt-rtx".
        options: `threads`, where None takes one per physical core, and `sha256`; on a GPU also
            `allow_cpu` and `tf32`.

    Raises:
        InputError: an option does not apply there.
        MissingExtraError: what runs such a file there is not installed.
        ModelError: the file is missing, not ONNX, or not written by this project.
        EngineError: the GPU cannot run it, and `allow_cpu` was not given.
    """

    def __init__(
        self,
        path: Path,
        device: Device = PROCESSOR,
        options: Options = DEFAULTS,
    ) -> None:
        gpu = () if device.kind == "cpu" else ("allow_cpu", "tf32")
        options.check(f"ONNX Runtime on {device}", "threads", "sha256", *gpu)
        check_model_file(path, options.sha256)
        self._errors = vendor_errors()
        self._opened: Opened | None
        self._what = path.absolute(), device, options  # a fork may have another working folder
        self._version = version_of(path)
        self.spec, self._opened = _open(path, device, options)
        if self._opened.gpu:
            self._errors = gpu_errors()
        self._description = self._opened.description
        on_gpu = "tf32" if options.tf32 else device.kind
        self.arithmetic = on_gpu if self._opened.gpu else "cpu"
        self._opening = threading.Lock()
        self._forked = False
        watched.add(self)

    def describe(self) -> str:
        return self._description

    def run(self, images: NDArray[np.uint8]) -> RawDetections:
        """Run the model on uint8 [N, H, W, 3], BGR.

        Raises:
            ModelError: the detector is closed, the model refuses these images, or its file changed
                before a forked process could open it.
            EngineError: the GPU failed, or was in use before this process was forked.
        """
        opened = self._opened or self._open_after_fork()  # another thread may close it meanwhile
        if opened.gpu or self.spec.size_step:
            check_images(images, self.spec)  # so that what fails then is not the images' fault
        try:
            return RawDetections(*opened.run(as_input(images, self.spec)))
        except self._errors as error:
            if opened.gpu:
                raise run_failed(opened.gpu, error) from None
            raise refusal(images, one_line(error)) from None

    def after_fork(self) -> None:
        """In a forked child: the session's threads stayed in the parent."""
        if self._opened is not None:
            never_free(self._opened)
            self._opened, self._forked = None, True
        self._opening = threading.Lock()

    def _open_after_fork(self) -> Opened:
        """Open the file again, for this process."""
        path, place, _ = self._what
        with self._opening:
            if self._opened is None:
                if not self._forked:
                    raise ModelError("the detector is closed: open it again")
                if place.kind != "cpu":
                    raise forked(f"ONNX Runtime on {place}")
                if version_of(path) != self._version:
                    raise ModelError(
                        f"{path}: has changed since the detector was opened, before this process"
                        " was forked: open it again"
                    )
                _, self._opened = _open(*self._what)
                self._forked = False
            return self._opened

    def close(self) -> None:
        self._forked = False
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()


def _open(path: Path, device: Device, options: Options) -> tuple[ModelSpec, Opened]:
    """Open the file on the device, or on the processor where the user allowed that."""
    import onnxruntime as ort

    instead = ""
    if device.kind != "cpu":
        # Before the GPU comes in, so that a fault of the file is not blamed on it.
        _, spec = open_file(path, 1, optimize=False)
        check_int8_target(path, spec, device.kind)
        try:
            return spec, open_gpu(path, spec, device, options)
        except (EngineError, MissingExtraError) as error:
            if not options.allow_cpu:
                raise
            logger.warning("%s; it runs on the processor, as allowed", error)
        instead = f" (in place of {device})"
    session, spec = open_file(path, options.threads)
    check_int8_target(path, spec, "cpu")
    text = f"ONNX Runtime {ort.__version__} CPU, threads {options.threads or 'automatic'}{instead}"
    return spec, Opened(lambda images: session.run(OUTPUTS, {"images": images}), text)
