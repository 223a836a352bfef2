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
        InputError: the device is not supported.
        MissingExtraError: onnxruntime is not installed.
        ModelError: the file is missing, not ONNX, or not written by this project.
    """

    def __init__(self, path: str | Path, device: str = "cpu", threads: int | None = None) -> None:
        path = Path(path)
        if device not in PROVIDERS:
            raise InputError(
                f"device is {device!r}, ONNX Runtime here runs on: {', '.join(PROVIDERS)}"
            )
        if not path.is_file():
            raise ModelError(f"{path}: no such file, expected an exported ONNX model")
        self._session = _open_session(path, PROVIDERS[device], threads)
        self.spec = _read_spec(self._session, path)
        self.description = _describe(self._session, threads)

    def run(self, images: NDArray[np.uint8]) -> RawDetections:
        if self._session is None:
            raise ModelError("the detector is closed: open it again")
        return RawDetections(*self._session.run(list(RawDetections._fields), {"images": images}))

    def close(self) -> None:
        self._session = None


def _open_session(path: Path, provider: str, threads: int | None) -> Any:
    try:
        import onnxruntime as ort
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError:
        raise MissingExtraError("running an ONNX file", "nmsfree[cpu]") from None
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(str(path), options, providers=[provider])
    except (
        state.Fail,
        state.InvalidProtobuf,
        state.InvalidGraph,
        state.InvalidArgument,
        state.NotImplemented,
        state.RuntimeException,
        state.NoSuchFile,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: not an ONNX model that can be loaded ({reason})") from None
    if session.get_providers()[0] != provider:
        raise ModelError(f"{path}: runs on {session.get_providers()[0]}, asked for {provider}")
    return session


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
    return ModelSpec.from_json(text)


def _describe(session: Any, threads: int | None) -> str:
    import onnxruntime as ort

    provider = session.get_providers()[0].removesuffix("ExecutionProvider")
    return f"ONNX Runtime {ort.__version__} {provider}, threads {threads or 'automatic'}"
