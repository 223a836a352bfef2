"""How a model is opened, and which of these wishes mean something to which engine."""

from dataclasses import dataclass, fields
from typing import Literal

from nmsfree.errors import InputError

Precision = Literal["f32", "bf16"]

# What each option is for, as an error names it.
MEANT_FOR = {
    "threads": "ONNX files and checkpoints",
    "allow_cpu": "ONNX files on cuda and tensorrt-rtx",
    "tf32": "ONNX files on cuda and tensorrt-rtx",
    "precision": "openvino",
    "rebuild": "engines",
    "trust": "engines",
}


@dataclass(frozen=True)
class Options:
    """How a model is opened.

    Attributes:
        threads: processor threads of one run; None leaves it to the engine.
        allow_cpu: run on the processor, with a warning, where the GPU that was asked for cannot.
        tf32: let a GPU round float32 factors to TF32 (10 bits); False computes real FP32.
        precision: arithmetic of OpenVINO, "f32" or "bf16"; None means "f32".
        rebuild: an engine that does not fit this machine is built again from its ONNX file.
        trust: open an engine whose hash is not the recorded one; an engine runs native code.
    """

    threads: int | None = None
    allow_cpu: bool = False
    tf32: bool = False
    precision: str | None = None
    rebuild: bool = True
    trust: bool = False

    def check(self, what: str, *allowed: str) -> None:
        """Refuse every option that was set and is not in `allowed`.

        Args:
            what: the thing to open, as the message names it.

        Raises:
            InputError: an option does not apply, or has a value that it cannot have.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default and field.name not in allowed:
                raise InputError(
                    f"{field.name} is {value!r}, but does not apply to {what}: it is for"
                    f" {MEANT_FOR[field.name]}, leave it out here"
                )
        if self.threads is not None and self.threads < 1:
            raise InputError(
                f"threads is {self.threads}, expected 1 or more, or None to let it choose"
            )
        if self.precision not in (None, "f32", "bf16"):
            raise InputError(f"precision is {self.precision!r}, expected 'f32' or 'bf16'")


DEFAULTS = Options()
