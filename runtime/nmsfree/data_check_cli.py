"""`nmsfree data check`: what is wrong with a dataset, before it is trained on."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nmsfree.files import write_atomic

if TYPE_CHECKING:
    from nmsfree.data.check_report import Check
    from nmsfree.data.fix import Fixed


def check(
    directory: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder of a COCO, YOLO or VOC set, or a data.yaml."),
    ],
    split: Annotated[
        list[str] | None, typer.Option(help="Split to check, may be repeated; all if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures; runs/data-check/NAME.")
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help='Write everything as JSON; "-" is stdout.'),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write cleaned annotations; originals stay untouched.")
    ] = False,
    out_fixed: Annotated[
        Path | None, typer.Option(help="Folder for the cleaned annotations; DIR-clean.")
    ] = None,
) -> None:
    """Report what would stop a training or teach it wrong things; every image is read.

    Finds unreadable, missing and duplicate images, boxes without area, outside their image or
    there twice, dangling ids, images shared by two splits, and more. Draws a labelled batch of
    every split, the problems, and histograms of classes and box sizes.

    Exit status: 0 no errors (with --fix: none left), 1 errors, 2 wrong usage or no dataset.

    Example: nmsfree data check data/digits --json report.json
    """
    from nmsfree.data.check_charts import write_charts
    from nmsfree.data.check_sheets import write_sheets
    from nmsfree.data.faults import Level
    from nmsfree.data.fix import default_folder, needs_fixing, write_fixed
    from nmsfree.data_check_print import print_check, print_fixed
    from nmsfree.evaluation.plot_style import import_figure

    import_figure()  # fail before the work, not after it
    _quiet_opencv()
    found = _run(directory, split or [])
    folder = out or Path("runs/data-check") / found.layout.root.resolve().name
    pictures = write_sheets(found, folder)
    write_charts(found, folder / "histograms.png")
    pictures.append(folder / "histograms.png")
    fixed = None
    if fix and needs_fixing(found):
        fixed = write_fixed(found, out_fixed or default_folder(found))
    if json_file != "-":
        print_check(found, pictures)
        if fix:
            print_fixed(found, fixed)
    if json_file is not None:
        _write_json(json_file, found, pictures, fixed)
    left = bool(fixed.unfixed) if fixed else bool(found.count(Level.ERROR))
    raise typer.Exit(1 if left else 0)


def _run(directory: Path, splits: list[str]) -> "Check":
    """Check with a progress bar."""
    from nmsfree.data.check import check_dataset
    from nmsfree.data.formats import find_layout
    from nmsfree.progress import progress_bar

    find_layout(directory).splits()  # a wrong folder is refused before there is a bar
    with progress_bar() as bar:
        task = bar.add_task("reading annotations", total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, description="reading images", completed=done, total=total)

        return check_dataset(directory, splits, advance)


def _quiet_opencv() -> None:
    """Keep OpenCV's own chatter about unreadable files off the terminal: the report names them."""
    import cv2

    if hasattr(cv2, "setLogLevel"):  # OpenCV 4
        cv2.setLogLevel(0)
    else:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _write_json(target: str, found: "Check", pictures: list[Path], fixed: "Fixed | None") -> None:
    report: dict[str, Any] = found.to_json()
    report["pictures"] = [str(path) for path in pictures]
    report["fixed"] = fixed and fixed.to_json()
    text = json.dumps(report, indent=2)
    if target == "-":
        typer.echo(text)
    else:
        write_atomic(Path(target), (text + "\n").encode())
