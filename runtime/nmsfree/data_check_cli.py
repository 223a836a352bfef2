"""`nmsfree data check`: what is wrong with a dataset, before it is trained on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmsfree.files import check_outputs, problems_in, write_json

if TYPE_CHECKING:
    from nmsfree.data.check_report import Check


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
    from nmsfree.data.check_sheets import sheet_paths, write_sheets
    from nmsfree.data.faults import Level
    from nmsfree.data.fix import default_folder, needs_fixing, write_fixed
    from nmsfree.data.formats import find_layout
    from nmsfree.data_check_print import print_check, print_fixed
    from nmsfree.evaluation.plot_style import import_figure

    import_figure()  # fail before the work, not after it
    _quiet_opencv()
    check_outputs([json_file], find_layout(directory).files())
    found = _run(directory, split or [])
    folder = out or Path("runs/data-check") / found.layout.root.resolve().name
    check_outputs([json_file], found.files())
    charts = folder / "histograms.png"
    sheet, sheets = sheet_paths(found, folder)
    pictures: list[Path] = []
    problems: list[str] = []
    with problems_in(problems):
        check_outputs([charts, sheet, *sheets.values()], found.files())
        pictures += write_sheets(found, folder)
        write_charts(found, charts)
        pictures.append(charts)
    if json_file != "-":
        print_check(found, pictures)
    fixed = None
    if fix and needs_fixing(found):
        with problems_in(problems):
            fixed = write_fixed(found, out_fixed or default_folder(found))
    if fix and json_file != "-":
        print_fixed(found, fixed)
    written = {"pictures": [str(path) for path in pictures], "fixed": fixed and fixed.to_json()}
    with problems_in(problems):
        write_json(json_file, found.to_json() | written)
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    left = bool(fixed.unfixed) if fixed else bool(found.count(Level.ERROR))
    raise typer.Exit(1 if left or problems else 0)


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
