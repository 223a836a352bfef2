"""Which engines the table of `nmsfree bench` has besides ONNX Runtime on the processor.

Every one is opened as an application opens it; one that does not run on this machine is left out
with the reason that the runtime gives.
"""

from dataclasses import dataclass

from nmsfree_benchmarks.common.engines import DEPLOYED, ENGINES, Engine
from nmsfree_benchmarks.common.exported import Wanted
from nmsfree_benchmarks.table.eager import Source
from nmsfree_export.options import Precision


@dataclass(frozen=True)
class DeviceEngine:
    """An engine, and the precision of the files it runs here."""

    engine: Engine
    precision: Precision = "fp32"

    @property
    def key(self) -> str:
        """In result files: "openvino", "openvino_int8"."""
        return self.engine.key + self._of_precision("_{}")

    @property
    def label(self) -> str:
        return self.engine.label + self._of_precision(", {}").upper()

    @property
    def short(self) -> str:
        return self.engine.short + self._of_precision(" {}")

    def _of_precision(self, form: str) -> str:
        return "" if self.precision == "fp32" else form.format(self.precision)

    def wanted(self, source: Source) -> Wanted:
        """The file that it runs of a model."""
        target = self.engine.target if self.precision == "int8" else None
        return Wanted(source, self.precision, target)


DEVICES: dict[str, tuple[DeviceEngine, ...]] = {
    "cpu": (
        DeviceEngine(ENGINES["openvino"]),
        DeviceEngine(ENGINES["openvino_bf16"]),
        DeviceEngine(ENGINES[DEPLOYED], "int8"),
        DeviceEngine(ENGINES["openvino"], "int8"),
    ),
    "cuda": (
        DeviceEngine(ENGINES["onnxruntime_cuda"]),
        DeviceEngine(ENGINES["onnxruntime_cuda"], "fp16"),
        DeviceEngine(ENGINES["tensorrt_rtx"]),
        DeviceEngine(ENGINES["tensorrt_rtx"], "fp16"),
        DeviceEngine(ENGINES["tensorrt_rtx"], "int8"),
    ),
}
ALL = {engine.key: engine for engines in DEVICES.values() for engine in engines}
