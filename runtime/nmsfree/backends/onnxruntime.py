"""ONNX Runtime on processors."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections
from nmsfree.errors import InputError, MissingExtraError, ModelError
from nmsfree.spec import METADATA_KEY, ModelSpec

PROVIDERS = {"cpu": "CPUExecutionProvider"}


class OnnxRuntimeBackend:
    """Runs an ONNX file of this project.

    Args:
        path: the ONNX file.
        device: "cpu".
        threads: threads of one run; None lets ONNX Runtime take one per physical core.

    Raises:
        InputError: the device is not supported, or threads is below 1.
        MissingExtraError: onnxruntime is not installed.
        ModelError: the file is missing, not ONNX, or not written by this project.
    """

    def __init__(self, path: str | Path, device: str = "cpu", threads: int | None = None) -> None:
        path = Path(path)
        if device not in PROVIDERS:
            raise InputError(
                f"device is {device!r}, ONNX Runtime here runs on: {', '.join(PROVIDERS)}"
            )
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}, expected 1 or more, or None to let it choose")
        if not path.is_file():
            raise ModelError(f"{path}: no such file, expected an exported ONNX model")
        self._vendor_errors = _vendor_errors()
        self._session = _open_session(path, PROVIDERS[device], threads, self._vendor_errors)
        self.spec = _read_spec(self._session, path)
        self.description = _describe(self._session, threads)

    def run(self, images: NDArray[np.uint8]) -> RawDetections:
        """Run the model on uint8 [N, H, W, 3], BGR.

        Raises:
            ModelError: the detector is closed, or the model refuses these images.
        """
        session = self._session  # another thread may close it meanwhile
        if session is None:
            raise ModelError("the detector is closed: open it again")
        try:
            outputs = session.run(list(RawDetections._fields), {"images": images})
        except self._vendor_errors as error:
            shape = " × ".join(map(str, images.shape))
            raise ModelError(
                f"the model refused images of {shape}, {images.dtype} ({_reason(error)})"
            ) from None
        return RawDetections(*outputs)

    def close(self) -> None:
        self._session = None


def _vendor_errors() -> tuple[type[Exception], ...]:
    """Exceptions of ONNX Runtime: they share no base class, and versions differ in their set."""
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError:
        raise MissingExtraError("running an ONNX file", "nmsfree[cpu]") from None
    found = vars(state).values()
    return tuple(v for v in found if isinstance(v, type) and issubclass(v, Exception))


def _open_session(
    path: Path, provider: str, threads: int | None, vendor_errors: tuple[type[Exception], ...]
) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # fatal only: errors are raised, and told in our own words
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(str(path), options, providers=[provider])
    except vendor_errors as error:
        raise ModelError(
            f"{path}: not an ONNX model that can be loaded ({_reason(error)})"
        ) from None
    if session.get_providers()[0] != provider:
        raise ModelError(f"{path}: runs on {session.get_providers()[0]}, asked for {provider}")
    return session


def _reason(error: Exception) -> str:
    """The vendor's message as one short line."""
    return " ".join(str(error).split())[:200]


def _read_spec(session: Any, path: Path) -> ModelSpec:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ModelError(
            f"{path}: no '{METADATA_KEY}' metadata, so this is not a model exported by nmsfree: "
            "export the checkpoint with `nmsfree export`"
        )
    names = [output.name for output in session.get_outputs()]
    missing = [name for name in RawDetections._fields if name not in names]
    if missing:
        raise ModelError(
            f"{path}: outputs {', '.join(missing)} are missing, found {', '.join(names)}"
        )
    try:
        spec = ModelSpec.from_json(text)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    _check_input(session, spec, path)
    _check_outputs(session, spec, path)
    return spec


def _check_outputs(session: Any, spec: ModelSpec, path: Path) -> None:
    """Compare the number of rows and box corners with the description."""
    shapes = {output.name: output.shape for output in session.get_outputs()}
    found = shapes["detection_boxes"][1:], shapes["detection_scores"][1:]
    if found != ([spec.top_k, 4], [spec.top_k]):
        raise ModelError(
            f"{path}: outputs are {shapes}, but its description says {spec.top_k} rows: "
            "export the model again"
        )


def _check_input(session: Any, spec: ModelSpec, path: Path) -> None:
    """Compare the graph's input with the description; names stand for sizes left open."""
    inputs = session.get_inputs()
    found = [(i.name, i.type, [d if isinstance(d, int) else None for d in i.shape]) for i in inputs]
    expected = ("images", "tensor(uint8)", [spec.batch, spec.height, spec.width, 3])
    if found != [expected]:
        shown = "; ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise ModelError(
            f"{path}: input is {shown}, but its description says images tensor(uint8) "
            f"[{spec.batch or 'N'}, {spec.height}, {spec.width}, 3]: export the model again"
        )


def _describe(session: Any, threads: int | None) -> str:
    import onnxruntime as ort

    provider = session.get_providers()[0].removesuffix("ExecutionProvider")
    return f"ONNX Runtime {ort.__version__} {provider}, threads {threads or 'automatic'}"
