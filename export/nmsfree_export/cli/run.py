"""What `nmsfree export` does once its options are read."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nmsfree.datasets.formats.folder import find_layout
from nmsfree.datasets.image_files import images_below
from nmsfree.errors import InputError
from nmsfree.files import check_outputs, write_json
from nmsfree.spec import ModelSpec
from nmsfree.text import shown
from nmsfree_export.acceptance import FragileError
from nmsfree_export.export import ExportReport, export_onnx
from nmsfree_export.options import CheckOptions, ExportOptions, Int8Options
from nmsfree_export.verify.layer_errors import print_layers
from nmsfree_training.weights.checkpoint import KEY as RIVAL_IOU
from nmsfree_training.weights.checkpoint import load_checkpoint


@dataclass(frozen=True)
class ExportRequest:
    """The options of `nmsfree export`, see there."""

    checkpoint: Path
    out: Path
    head: str | None
    size: tuple[int, int] | None
    batch: int | None
    top_k: int
    score_floor: float
    threshold: float | None
    thresholds: Path | None
    interpolation: str
    rival_iou: float | None
    precision: str
    target: str | None
    calibrate: Path | None
    calibrate_split: str | None
    calibration_images: int | None
    max_unmatched: float | None
    check_data: Path | None
    check_split: str | None
    max_ap_drop: float | None
    auto_mixed: bool
    images: Path | None
    model: str | None
    json_out: str | None

    def options(self) -> ExportOptions:
        """Check what typer cannot."""
        if self.head not in (None, "o2o", "o2m"):
            raise InputError(f"head is {self.head!r}, expected o2o or o2m")
        if self.interpolation not in ("linear", "area"):
            raise InputError(f"interpolation is {self.interpolation!r}, expected linear or area")
        if self.out.suffix != ".onnx":
            raise InputError(f"output is {self.out}, expected a name that ends in .onnx")
        return ExportOptions(
            head=self.head,  # type: ignore[arg-type]
            input_size=self.size,
            batch=self.batch,
            top_k=self.top_k,
            score_floor=self.score_floor,
            threshold=self.threshold,
            thresholds=self.thresholds,
            interpolation=self.interpolation,  # type: ignore[arg-type]
            rival_iou=self.rival_iou,
            precision=self.precision,  # type: ignore[arg-type]
            images=self.images,
            int8=self._int8(),
            check=self._check(),
            auto_mixed=self.auto_mixed,
        )

    def _int8(self) -> Int8Options | None:
        """What calibration is asked for; half of it is refused."""
        details = {
            "split": self.calibrate_split,
            "images": self.calibration_images,
            "unmatched": self.max_unmatched,
        }
        given = {key: value for key, value in details.items() if value is not None}
        if self.target is None and self.calibrate is None and not given:
            return None
        if self.target is None or self.calibrate is None:
            raise InputError(
                "int8 needs the engine it is for and training pictures: give both --for cpu or"
                " --for tensorrt, and --calibrate DIR"
            )
        return Int8Options(self.target, self.calibrate, **given)  # type: ignore[arg-type]

    def _check(self) -> CheckOptions | None:
        details = {"split": self.check_split, "max_drop": self.max_ap_drop}
        given = {key: value for key, value in details.items() if value is not None}
        if self.check_data is None and given:
            raise InputError("checking AP needs a labelled dataset: give --check-data DIR")
        return None if self.check_data is None else CheckOptions(self.check_data, **given)  # type: ignore[arg-type]


def run_export(request: ExportRequest) -> None:
    """Export and show the proofs."""
    console = Console(stderr=True)
    options = request.options()
    inputs = [request.checkpoint, request.thresholds]
    inputs += images_below(request.images) if request.images else []
    for data in (request.calibrate, request.check_data):
        inputs += find_layout(data).files() if data else []
    check_outputs([request.out, request.json_out], inputs)
    checkpoint = load_checkpoint(request.checkpoint, request.model)
    try:
        with console.status("exporting") as status:
            report = export_onnx(
                checkpoint,
                request.out,
                options,
                lambda step: status.update(f"{step} …"),
                lambda line: console.print(line, highlight=False, markup=False),
            )
    except FragileError as error:
        print_layers(error.layers, f"layers in {options.precision} beside FP32", console)
        raise
    _show(report, console)
    write_json(request.json_out, report.to_json())


def _show(report: ExportReport, console: Console) -> None:
    spec = report.spec
    title = "NMS-free: certificate" if spec.nms is None else "NMS baseline: contract"
    table = Table(title=title, show_header=False)
    for check, found in report.certificate.lines:
        table.add_row("✓", check, Text(shown(found)))
    table.add_row("✓", "same detections as PyTorch", Text(shown(report.parity)))
    if report.accuracy is not None:
        table.add_row("✓", "accuracy of FP32 kept", Text(shown(report.accuracy)))
    console.print(table)
    console.print(
        f"{shown(report.path)}: {shown(spec.name)}, {spec.head} head, "
        f"{spec.height} × {spec.width}, "
        f"batch {spec.batch or 'dynamic'}, {_precision(spec)}{_filter(spec)}, "
        f"{report.size / 1e6:.1f} MB, "
        f"sha256 {report.sha256[:12]}",
        highlight=False,
        markup=False,
    )
    console.print(shown(_about_threshold(spec)), highlight=False, markup=False)


def _precision(spec: ModelSpec) -> str:
    return spec.precision if spec.made_for is None else f"{spec.precision} for {spec.made_for}"


def _filter(spec: ModelSpec) -> str:
    iou = spec.provenance.get(RIVAL_IOU)
    return "" if iou is None else f", rival IoU {iou}"


def _about_threshold(spec: ModelSpec) -> str:
    line, measured = f"threshold {spec.threshold:.3f}", spec.thresholds
    if measured is None:
        return f"{line}; none was measured, `nmsfree eval` recommends one"
    if spec.threshold == measured.best_f1:
        return f"{line}: best F1 on {measured.measured_on}"
    return f"{line}; the best F1 is at {measured.best_f1:.3f} ({measured.measured_on})"
