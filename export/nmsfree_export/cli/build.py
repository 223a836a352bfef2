"""`nmsfree build`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from nmsfree.cli.options import command
from nmsfree.errors import InputError
from nmsfree.options import Option
from nmsfree.text import shown
from nmsfree_export.options import BuildOptions, JsonOption

if TYPE_CHECKING:
    from rich.console import Console

    from nmsfree_export.tensorrt.build import BuildReport
    from nmsfree_export.tensorrt.network import LayerTable


@dataclass(frozen=True, kw_only=True)
class BuildCommand:
    """What is built, and where it goes."""

    onnx: Annotated[Path, Option("An ONNX file of `nmsfree export`.", argument=True)]
    out: Annotated[
        Path | None, Option("Default: MODEL.engine beside the file.", flags=("-o", "--out"))
    ] = None
    options: BuildOptions
    json_out: JsonOption = None


def run_build(asked: BuildCommand) -> None:
    """ONNX → TensorRT engine, with what it was built from and for in a JSON file beside it.

    TensorRT-RTX builds for the GPUs named here, RTX 4060 if none is, without one being there; the
    precision is the file's.

    Example: nmsfree build model.onnx --gpu rtx3060 --gpu rtx4060
    """
    from rich.console import Console

    from nmsfree.backends.tensorrt.sidecar import sidecar_path
    from nmsfree.files import check_outputs, write_json
    from nmsfree_export.tensorrt.build import build_engine
    from nmsfree_export.tensorrt.progress import show_phases

    onnx, out = asked.onnx, asked.out or asked.onnx.with_suffix(".engine")
    if out.suffix != ".engine":
        raise InputError(f"output is {out}, expected a name that ends in .engine")
    check_outputs([out, sidecar_path(out), asked.json_out], [onnx])
    console = Console(stderr=True)
    with show_phases(console) as phases:
        report = build_engine(onnx, out, asked.options, phases)
    if report.layers is not None:
        _show_layers(report.layers, console)
    _show(report, onnx, console)
    write_json(asked.json_out, report.to_json())


def _show_layers(table: "LayerTable", console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table("layer", "kind", "precision", "output", title=f"layers of the {table.source}")
    for layer in table.layers:
        shape = " × ".join(map(str, layer.shape))
        grid.add_row(*(Text(shown(t)) for t in (layer.name, layer.kind, layer.precision, shape)))
    console.print(grid)
    if table.note:
        console.print(shown(table.note), highlight=False, markup=False, soft_wrap=True)


def _show(report: "BuildReport", onnx: Path, console: "Console") -> None:
    from nmsfree.backends.tensorrt.targets import sms_text

    sidecar, spec = report.sidecar, report.sidecar.spec
    low, best, high = sidecar.batch
    batch = str(best) if low == high else f"{low} to {high}, best {best}"
    lines = [
        f"{report.engine}: {spec.name}, {spec.head} head, {spec.height} × {spec.width}, batch "
        f"{batch}, {report.size / 1e6:.1f} MB, sha256 {sidecar.engine_sha256[:12]}",
        f"built by {sidecar.builder} {sidecar.builder_version} for {sms_text(sidecar.targets)} "
        f"in {sidecar.build_seconds:.1f} s; {sidecar.precision}, TF32 "
        + ("allowed" if sidecar.tf32 else "off"),
    ]
    if report.engine.parent.resolve() != onnx.parent.resolve():
        lines.append(f"keep {onnx.name} beside it, so that it can be built again where it must be")
    for line in lines:
        console.print(shown(line, 1000), highlight=False, markup=False, soft_wrap=True)


build = command(run_build, BuildCommand)
