"""`nmsfree adopt`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from nmsfree.cli.options import command
from nmsfree.errors import InputError
from nmsfree.options import Option
from nmsfree.text import shown
from nmsfree_export.adopt.foreign import AdoptOptions, as_options
from nmsfree_export.cli.convert import about_input
from nmsfree_export.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from nmsfree_export.adopt.adopt import AdoptReport
    from nmsfree_export.adopt.find import Trial


@dataclass(frozen=True, kw_only=True)
class AdoptCommand:
    """What is adopted, and where it goes."""

    file: Annotated[Path, Option("An ONNX file of another project.", argument=True)]
    out: Annotated[Path | None, Option("Default: runs/adopt/NAME.onnx.", flags=("-o", "--out"))] = (
        None
    )
    options: AdoptOptions
    images: Annotated[
        Path | None, Option("Folder of pictures for the comparison; else bundled ones.")
    ] = None
    find: Annotated[
        Path | None,
        Option(
            "Labelled pictures: try every preprocessing and take the one with the best AP.",
            flags=("--find-preprocessing",),
            metavar="DATA",
        ),
    ] = None
    check_data: Annotated[
        Path | None,
        Option("Labelled pictures: AP and duplicates without --nms and with it.", metavar="DATA"),
    ] = None
    split: Annotated[str, Option("Which split of them.")] = "val"
    json_out: JsonOption = None


def run_adopt(asked: AdoptCommand) -> None:
    """Another project's NMS-free detector → a file for every engine and command here.

    Recognised are YOLO26 and YOLOv10 of Ultralytics, RT-DETR, D-FINE, DEIM, RF-DETR and their like.
    The file appears only if it answers like the original on the same pictures; otherwise the exit
    status is 1, and no file is left.

    Examples:

    nmsfree adopt yolo26n.onnx -o model.onnx

    nmsfree adopt dfine.onnx --names coco --classes person,car

    nmsfree adopt rfdetr.onnx --names names.txt --background last

    nmsfree adopt unknown.onnx --find-preprocessing data/mine

    nmsfree adopt yolo11n.onnx --nms plain --check-data data/mine
    """
    from rich.console import Console

    from nmsfree.cli.progress import told_steps
    from nmsfree.datasets.formats.folder import load_dataset
    from nmsfree.datasets.image_files import images_below
    from nmsfree.files import check_outputs, write_json
    from nmsfree_export.adopt.adopt import adopt_onnx

    out = asked.out or Path("runs/adopt") / f"{asked.file.stem}.onnx"
    if out.suffix != ".onnx":
        raise InputError(f"output is {out}, expected a name that ends in .onnx")
    inputs = [asked.file, *(images_below(asked.images) if asked.images else [])]
    check_outputs([out, asked.json_out], inputs)
    labelled, check = (
        load_dataset(data, asked.split) if data else None for data in (asked.find, asked.check_data)
    )
    console = Console(stderr=True)
    with told_steps("adopting", console) as tell:
        report = adopt_onnx(asked.file, out, asked.options, asked.images, labelled, tell, check)
    _show(report, console)
    write_json(asked.json_out, report.to_json())


def _show(report: "AdoptReport", console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    spec = report.spec
    if report.trials:
        _show_trials(report.trials, console)
    title = Text(f"Adopted: {shown(report.foreign.family)}")
    table = Table(title=title, show_header=False)
    for what, found in report.foreign.concluded:
        table.add_row("", what, Text(shown(found)))
    table.add_row("", "fed and read", as_options(report.foreign))
    nms = spec.nms
    if nms is None:
        table.add_row("✓", "NMS-free", "no NMS, loop or branch in the graph")
    else:
        form = f"plain operators, {nms.steps} steps" if nms.steps else "the operator"
        form += ", the file's own" if report.foreign.own_nms else ""
        table.add_row("", "NMS baseline", f"{form}, IoU {nms.iou:g}")
    table.add_row("✓", "same detections as the original", Text(str(report.adoption)))
    if report.nms_effect is not None:
        table.add_row("", "without NMS → with it", Text(shown(report.nms_effect, 400)))
    if report.input is not None:
        table.add_row("✓", f"input {spec.input} says the same", Text(str(report.input)))
    console.print(table)
    usual = ", the project's usual one" if spec.threshold == report.foreign.threshold else ""
    licence = spec.provenance.get("license", "not said by the file: see its project")
    size = f"{spec.height} × {spec.width}{' or other' if spec.size_step else ''}"
    for line in (
        f"{shown(report.path)}: {len(spec.class_names)} class{'es' * (len(spec.class_names) != 1)},"
        f" {spec.top_k} rows,"
        f" {size}{about_input(spec)}, batch {spec.batch or 'dynamic'},"
        f" {report.size / 1e6:.1f} MB, sha256 {report.sha256[:12]}",
        f"licence of the weights: {shown(licence)}",
        f"threshold {spec.threshold:g}{usual}; `nmsfree eval` measures yours",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _show_trials(trials: "Sequence[Trial]", console: "Console") -> None:
    from rich.table import Table

    from nmsfree_export.adopt.find import FOUND

    asked = [name for name in FOUND if len({getattr(t.options, name) for t in trials}) > 1]
    table = Table(title=f"Preprocessing, by AP on {trials[0].images} labelled pictures")
    for column in (*asked, "AP", "behind the best"):
        table.add_column(column, justify="left" if column in asked else "right")
    for trial in trials:
        behind = "–"
        if trial.behind is not None:
            low, high = (100 * bound for bound in trial.behind)
            behind = "as good" if trial.as_good else f"{low:.1f} … {high:.1f}"
        words = [str(getattr(trial.options, name) or "–") for name in asked]
        table.add_row(*words, f"{100 * trial.ap:.1f}", behind)
    console.print(table)
    equal = sum(trial.as_good for trial in trials)
    if trials[0].behind is None:
        console.print("too few pictures to say how sure that is: 40 or more tell it")
    elif equal > 1:
        console.print(f"{equal} are as good on these pictures: the family's usual one is taken")


adopt = command(run_adopt, AdoptCommand)
