"""What a lower precision costs: AP and the best threshold of a file beside its FP32 version."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.data.dataset import DetectionDataset
from nmsfree.detector import Detector
from nmsfree.errors import GateError
from nmsfree.evaluate import predict
from nmsfree.evaluation.analysis import analyse, folder_name


@dataclass(frozen=True)
class Accuracy:
    """COCO AP, 0-1, and the threshold of the best F1, of both files on one split.

    Both ran in ONNX Runtime on the processor. For FP16 that shows the rounding of weights and
    activations, not a GPU's arithmetic.

    Attributes:
        measured_on: "digits val, 300 images".
        max_drop: AP, 0-1, that may be lost.
    """

    measured_on: str
    ap_fp32: float
    ap: float
    threshold_fp32: float
    threshold: float
    max_drop: float

    def __str__(self) -> str:
        return (
            f"{100 * self.ap_fp32:.1f} → {100 * self.ap:.1f} AP on {self.measured_on} (at most "
            f"{100 * self.max_drop:.1f} lost), threshold of the best F1 {self.threshold_fp32:.3f} "
            f"→ {self.threshold:.3f}"
        )

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    def enforce(self) -> None:
        """Raise GateError if too much is lost."""
        if self.ap_fp32 - self.ap > self.max_drop:
            raise GateError(f"accuracy: {self}: calibrate with more pictures, or keep fp16 or fp32")


def measure(
    full: Path,
    lower: Path,
    dataset: DetectionDataset,
    max_drop: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Run both files over a labelled split.

    Args:
        full: the FP32 file.
        lower: the same network in a lower precision.
        max_drop: AP, 0-1, that may be lost.
        progress: called as (done, total), images of both.

    Raises:
        DataError: no objects, or classes that are not the model's.
    """
    found = []
    for number, file in enumerate((full, lower)):
        offset = number * len(dataset)
        with Detector(OnnxRuntimeBackend(file)) as detector:
            results = predict(
                detector,
                dataset,
                lambda done, total, offset=offset: progress(offset + done, 2 * total),  # type: ignore[misc]
            )
            found.append(analyse(dataset, results, detector.spec))
    a, b = found
    return Accuracy(
        f"{folder_name(dataset)} {dataset.name}, {len(dataset)} images",
        a.metrics.ap,
        b.metrics.ap,
        a.thresholds.best_f1,
        b.thresholds.best_f1,
        max_drop,
    )
