"""OpenVINO on processors and Intel GPUs."""

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections
from nmsfree.backends.contract import check_images, one_line
from nmsfree.backends.forks import watch
from nmsfree.backends.openvino_model import (
    check_request,
    compile_model,
    describe,
    import_openvino,
    output_indices,
    read_model,
    vendor_errors,
)
from nmsfree.backends.openvino_requests import Requests
from nmsfree.backends.options import Options
from nmsfree.errors import EngineError, ModelError
from nmsfree.made_for import check_made_for
from nmsfree.paths import FilePath, as_path


class OpenVinoBackend:
    """Runs an ONNX file of this project in OpenVINO.

    Threads may share it: the compiled network is one, and every run has an infer request with
    buffers of its own, so results are those of one thread. Of processes, only the one that opened
    it may use it: OpenVINO does not survive a fork.

    Args:
        path: the ONNX file.
        plugin: OpenVINO's name of the device, "CPU", "GPU" or "GPU.1".
        threads: processor threads of one run; None lets OpenVINO choose.
        precision: "f32", or "bf16" where the device computes it.

    Raises:
        InputError: the processor has no bf16, or an option cannot be used.
        MissingExtraError: openvino is not installed.
        ModelError: the file is missing, not ONNX, or not written by this project.
        EngineError: the device is not there, or runs something else than was asked for.
    """

    def __init__(
        self,
        path: FilePath,
        plugin: str = "CPU",
        threads: int | None = None,
        precision: str = "f32",
    ) -> None:
        path, options = as_path(path, "model"), Options(threads, precision=precision)
        check_request(plugin, options.threads, precision)
        openvino = import_openvino()
        if not path.is_file():
            raise ModelError(f"{path}: no such file, expected an exported ONNX model")
        model, self.spec = read_model(openvino, path)
        check_made_for(path, self.spec, "openvino")
        compiled = compile_model(openvino, model, plugin, options.threads, precision)
        self.description = describe(openvino, compiled, plugin, options.threads, precision)
        self._errors = vendor_errors(openvino)
        self._indices = output_indices(compiled)
        self._requests = Requests(compiled)
        watch(self)

    def run(self, images: NDArray[np.uint8]) -> RawDetections:
        """Run the model on uint8 [N, H, W, 3], BGR.

        Raises:
            ModelError: the detector is closed, or these are no images for the model.
            EngineError: OpenVINO fails, or was in use before this process was forked.
        """
        check_images(images, self.spec)
        shared = np.ascontiguousarray(images)  # read in place, so held until the end
        with self._requests.take() as request:
            try:
                # Not `infer`, which works in this very thread and leaves there a stream that ends
                # with it: a model closed in that moment, by another thread, aborts the process.
                request.start_async([shared], share_inputs=True)
                request.wait()
            except self._errors as error:
                raise EngineError(f"OpenVINO failed while running ({one_line(error)})") from None
            outputs = [np.array(request.get_output_tensor(i).data) for i in self._indices]
        return RawDetections(*outputs)

    def after_fork(self) -> None:
        """In a forked child: OpenVINO's threads stayed in the parent."""
        self._requests.after_fork()

    def close(self) -> None:
        self._requests.close()
