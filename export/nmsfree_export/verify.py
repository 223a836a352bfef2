"""Open two models, wherever each runs, so that they can be compared."""

from dataclasses import dataclass, replace
from pathlib import Path

from nmsfree.backends import CHECKPOINT_SUFFIXES, Backend, Options, open_backend
from nmsfree.backends.devices import parse_device
from nmsfree.errors import InputError, MissingExtraError
from nmsfree.spec import ModelSpec


@dataclass(frozen=True)
class Side:
    """One model of a comparison.

    Attributes:
        path: checkpoint, ONNX file or engine.
        device: where it runs, as for `Detector`; None takes the usual one.
        arithmetic: of OpenVINO, "f32" or "bf16"; None takes its default, and is all that other
            engines know.
    """

    path: Path
    device: str | None = None
    arithmetic: str | None = None

    @property
    def is_checkpoint(self) -> bool:
        return self.path.suffix.lower() in CHECKPOINT_SUFFIXES

    def precision(self, spec: ModelSpec) -> str:
        """Return what it computes in: "fp32", "fp16", "int8" or "bf16"."""
        return "bf16" if self.arithmetic == "bf16" else spec.precision

    def to_json(self, backend: Backend) -> dict[str, object]:
        """Return what was really compared."""
        return {
            "file": str(self.path),
            "precision": self.precision(backend.spec),
            "made_for": backend.spec.made_for,
            "engine": backend.description,
        }

    def describe(self, backend: Backend) -> str:
        """Return the same in words."""
        target = f" for {backend.spec.made_for}" if backend.spec.made_for else ""
        return f"{self.path}: {self.precision(backend.spec)}{target}, {backend.description}"


def open_pair(a: Side, b: Side) -> tuple[Backend, Backend]:
    """Open two models; a checkpoint runs as the exported file it is compared with.

    That is: the same head, input size, floor and NMS.

    Raises:
        InputError, ModelError, EngineError: as `open_backend`.
    """
    if a.is_checkpoint and not b.is_checkpoint:
        second = _open(b)
        return _open_like(a, second.spec), second
    first = _open(a)
    return first, _open_like(b, first.spec) if b.is_checkpoint else _open(b)


def _open(side: Side) -> Backend:
    return open_backend(side.path, side.device, Options(precision=side.arithmetic))


def _open_like(side: Side, spec: ModelSpec) -> Backend:
    try:
        from nmsfree_training.predict import open_checkpoint
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "nmsfree_training"):
            raise
        raise MissingExtraError("reading a checkpoint", "nmsfree-export[torch]") from None
    Options(precision=side.arithmetic).check("a checkpoint")
    device = parse_device(side.device or "cpu")
    if device.kind not in ("cpu", "cuda"):
        raise InputError(
            f"{side.path}: device is {side.device!r}, but a checkpoint runs in PyTorch, on cpu or"
            " cuda: give the device of the other model alone, with --device-a or --device-b"
        )
    whole = replace(spec, precision="fp32", made_for=None)  # whatever the other one computes in
    return open_checkpoint(side.path, device=str(device), like=whole)
