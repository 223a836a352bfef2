"""`nmsfree build`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmsfree.text import shown

if TYPE_CHECKING:
    from rich.console import Console

    from nmsfree_export.tensorrt.build import BuildReport
    from nmsfree_export.tensorrt.network import LayerTable


def build(
    onnx: Annotated[Path, typer.Argument(help="An ONNX file of `nmsfree export`.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Default: MODEL.engine beside the file.")
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(help="GPU that shall run it, such as rtx3060; may be repeated. [rtx4060]"),
    ] = None,
    sm: Annotated[
        list[int] | None,
        typer.Option(
            min=10, max=999, help="The same by compute capability, 89 for 8.9; may be repeated."
        ),
    ] = None,
    batch: Annotated[
        tuple[int, int, int] | None,
        typer.Option(metavar="MIN OPT MAX", help="Images at once, for a file of dynamic batch."),
    ] = None,
    builder: Annotated[
        str, typer.Option("--with", metavar="NAME", help="tensorrt-rtx, or tensorrt.")
    ] = "tensorrt-rtx",
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Faster float32 with 10 bits of mantissa.")
    ] = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show every layer with its precision.")
    ] = False,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the report; - for stdout.")
    ] = None,
) -> None:
    """ONNX → TensorRT engine, with what it was built from and for in a JSON file beside it.

    TensorRT-RTX builds for the GPUs named here, RTX 4060 if none is, without one being there; the
    precision is the file's.

    Example: nmsfree build model.onnx --gpu rtx3060 --gpu rtx4060
    """
    from rich.console import Console

    from nmsfree.backends.tensorrt.sidecar import sidecar_path
    from nmsfree.errors import InputError
    from nmsfree.files import check_outputs, write_json
    from nmsfree_export.tensorrt.build import BuildOptions, build_engine
    from nmsfree_export.tensorrt.progress import show_phases

    out = out or onnx.with_suffix(".engine")
    if out.suffix != ".engine":
        raise InputError(f"output is {out}, expected a name that ends in .engine")
    check_outputs([out, sidecar_path(out), json_out], [onnx])
    options = BuildOptions(builder, tuple(gpu or ()), tuple(sm or ()), batch, tf32, layers)
    console = Console(stderr=True)
    with show_phases(console) as phases:
        report = build_engine(onnx, out, options, phases)
    if report.layers is not None:
        _show_layers(report.layers, console)
    _show(report, onnx, console)
    write_json(json_out, report.to_json())


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
    if sidecar.nms_on_host:
        lines.append("the engine ends before NMS, which the runtime does on the processor")
    if report.engine.parent.resolve() != onnx.parent.resolve():
        lines.append(f"keep {onnx.name} beside it, so that it can be built again where it must be")
    for line in lines:
        console.print(shown(line, 1000), highlight=False, markup=False, soft_wrap=True)
