"""`nmsfree data check`: what is wrong with a dataset, before it is trained on."""

import shlex
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nmsfree.cli.options import command, end_with, json_option
from nmsfree.cli.progress import progress_bar
from nmsfree.datasets.check.check import check_dataset
from nmsfree.datasets.check.fix import Fixed, default_folder, needs_fixing, write_fixed
from nmsfree.datasets.check.pictures import sheet_paths, write_charts, write_sheets
from nmsfree.datasets.check.report import Check, Finding, by_name
from nmsfree.datasets.faults import Fault, Kind, Level
from nmsfree.datasets.formats.folder import find_layout
from nmsfree.datasets.rows import relative_name
from nmsfree.datasets.sizes import STEP, HeightWidth, count_small
from nmsfree.errors import InputError
from nmsfree.files import check_outputs, problems_in, write_json
from nmsfree.images import quiet_opencv
from nmsfree.options import Option
from nmsfree.plotting import import_figure
from nmsfree.text import shorten, shown


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `nmsfree data check` is asked."""

    directory: Annotated[
        Path,
        Option("Folder of a COCO, YOLO or VOC set, or a data.yaml.", argument=True, metavar="DIR"),
    ]
    split: Annotated[
        tuple[str, ...] | None, Option("Split to check, may be repeated; all if not given.")
    ] = None
    size: Annotated[
        tuple[int, int] | None,
        Option(
            "Input at which small objects are counted, the proposed one if not given.",
            metavar="H W",
        ),
    ] = None
    out: Annotated[Path | None, Option("Folder for the pictures; runs/data-check/NAME.")] = None
    json_file: Annotated[str | None, json_option('Write everything as JSON; "-" is stdout.')] = None
    fix: Annotated[
        bool, Option("Write cleaned annotations; originals stay untouched.", ("--fix",))
    ] = False
    out_fixed: Annotated[Path | None, Option("Folder for the cleaned annotations; DIR-clean.")] = (
        None
    )

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < STEP:
            raise InputError(f"size is {self.size}, expected a height and width of {STEP} or more")


def _check(request: Request) -> None:
    """Report what would stop a training or teach it wrong things; every image is read.

    Finds unreadable, missing and duplicate images, boxes without area, outside their image or
    there twice, dangling ids, images shared by two splits, and more. Draws a labelled batch of
    every split, the problems, and histograms of classes and box sizes.

    Exit status: 0 no errors (with --fix: none left), 1 errors, 2 wrong usage or no dataset.

    Example: nmsfree data check data/digits --json report.json
    """
    json_file = request.json_file
    import_figure("drawing histograms of a dataset")  # fail before the work, not after it
    quiet_opencv()
    check_outputs([json_file], find_layout(request.directory).files())
    found = _run(request.directory, request.split or ())
    folder = request.out or Path("runs/data-check") / found.layout.root.resolve().name
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
    size = request.size or found.propose_size()
    if json_file != "-":
        print_check(found, pictures, size)
    fixed = None
    if request.fix:
        with problems_in(problems):
            if needs_fixing(found):
                fixed = write_fixed(found, request.out_fixed or default_folder(found))
        if json_file != "-":
            print_fixed(found, fixed)
    written = {"pictures": [str(path) for path in pictures], "fixed": fixed and fixed.to_json()}
    with problems_in(problems):
        write_json(json_file, found.to_json(size) | written)
    left = bool(fixed.unfixed) if fixed else bool(found.count(Level.ERROR))
    end_with(problems, int(left))


check = command(_check, Request)


def _run(directory: Path, splits: tuple[str, ...]) -> Check:
    """Check with a progress bar."""
    find_layout(directory).splits()  # a wrong folder is refused before there is a bar
    with progress_bar() as bar:
        task = bar.add_task("reading annotations", total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, description="reading images", completed=done, total=total)

        return check_dataset(directory, splits, advance)


COMMONEST, RAREST = 8, 6  # classes shown when there are more than both together, and one more
LONGEST = 24  # characters of a name


def class_table(check: Check) -> Table:
    """Return objects and images of the classes in every split, the commonest first."""
    columns = [
        by_name(split.rows, counts)
        for split in check.splits.values()
        for counts in (split.stats.by_class, split.stats.images_by_class)
    ]
    table = Table(
        title="classes, objects and images with them", title_justify="left", box=box.SIMPLE_HEAD
    )
    table.add_column("class", no_wrap=True)
    for name in check.splits:
        table.add_column(Text(f"{shown(name)}\nobjects"), justify="right")
        table.add_column("\nimages", justify="right")
    found = dict.fromkeys(chain.from_iterable(columns))
    order = sorted(found, key=lambda name: -sum(objects[name] for objects in columns[::2]))
    cut = len(order) - COMMONEST - RAREST
    for place, name in enumerate(order):
        if cut > 1 and place == COMMONEST:
            table.add_row(f"… {cut} more", *[""] * len(columns))
        if cut <= 1 or not COMMONEST <= place < COMMONEST + cut:
            counts = [column[name] for column in columns]
            cells = [Text(f"{n:,}", style="" if n else "bold red") for n in counts]
            table.add_row(Text(shorten(name, LONGEST)), *cells)
    return table


EXAMPLES = 3  # of every finding; the JSON report has all
COLOURS = {Level.ERROR: "bold red", Level.WARNING: "yellow", Level.INFO: "cyan"}


def print_check(check: Check, pictures: list[Path], size: HeightWidth) -> None:
    """Print what each split holds, what was found, and where the pictures are."""
    console = Console()
    console.print(_splits(check, size), class_table(check))
    if findings := check.findings():
        console.print(_findings(check, findings))
    proposed = "{} × {}".format(*check.propose_size())
    console.print(
        f"input that suits these objects (height × width): {proposed}; those with a side below 8 "
        "pixels there are not trained on"
    )
    console.print(_verdict(check))
    for path in pictures:
        console.print(Text(f"picture: {shown(path)}"), soft_wrap=True)


def _splits(check: Check, size: HeightWidth) -> Table:
    name = shown(check.layout.config or check.layout.root)
    table = Table(title=Text(f"{name}, {check.layout.format}"), title_justify="left")
    table.add_column("split")
    for split in check.splits:
        table.add_column(Text(shown(split)), justify="right")
    stats = [found.stats for found in check.splits.values()]
    areas = [each.by_area() for each in stats]
    small = [count_small(*each.objects_and_pictures, size) for each in stats]
    shape = f"{size[0]} × {size[1]}"
    rows = {
        "images": [each.images for each in stats],
        "  without objects": [each.images_without_objects for each in stats],
        "classes": [len(each.by_class) for each in stats],
        "objects": [each.objects for each in stats],
        "  small, area below 32²": [area["small"] for area in areas],
        "  medium": [area["medium"] for area in areas],
        "  large, area above 96²": [area["large"] for area in areas],
        "  with a side below 8 px": [each.below_8px for each in stats],
        f"  below 8 px at {shape}": [lost for lost, _ in small],
        f"  below 16 px at {shape}": [hard for _, hard in small],
        "crowd regions": [each.crowd for each in stats],
    }
    for title, numbers in rows.items():
        table.add_row(title, *(f"{number:,}" for number in numbers))
    return table


def _findings(check: Check, findings: list[Finding]) -> Table:
    table = Table(title="found", title_justify="left", show_lines=True)
    table.add_column("level")
    table.add_column("split")
    table.add_column("count", justify="right")
    table.add_column("what, and the first of them", overflow="fold")
    for finding in findings:
        about = finding.kind
        what = Text(f"{about.title}: {about.advice}")
        for fault in finding.faults[:EXAMPLES]:
            what.append(f"\n{shown(_place(check, fault))}: {shown(fault.detail)}", style="dim")
        level = Text(about.level.value, style=COLOURS[about.level])
        table.add_row(level, Text(shown(finding.split or "–")), f"{len(finding.faults):,}", what)
    return table


def _place(check: Check, fault: Fault) -> str:
    """Return the file to open: the image, or what annotates that image alone."""
    of_many = check.layout.format == "COCO" or fault.kind is Kind.IMAGE_UNANNOTATED
    path = fault.image if fault.image is not None and of_many else fault.source
    return relative_name(path, check.layout.root)


def _verdict(check: Check) -> Text:
    errors, warnings = check.count(Level.ERROR), check.count(Level.WARNING)
    warned = f"{warnings:,} warning{'s' * (warnings != 1)}"
    if errors:
        hint = ": --fix writes a cleaned set" if needs_fixing(check) else ""
        return Text(f"{errors:,} error{'s' * (errors != 1)}, {warned}{hint}", "bold red")
    return Text(f"no errors, {warned}", "bold green")


def print_fixed(check: Check, fixed: Fixed | None) -> None:
    """Print what was removed, clipped or left, and how to train on the result."""
    console = Console()
    if fixed is None:
        if check.count(Level.ERROR):
            console.print("nothing that --fix can fix: see the errors above")
        else:
            console.print("nothing to fix: train on the dataset as it is")
            _print_command(console, check.layout.config or check.layout.root, list(check.splits))
        return
    table = Table(title=Text(f"cleaned: {shown(fixed.folder)}"), title_justify="left")
    table.add_column("split")
    table.add_column("images", justify="right")
    table.add_column("objects", justify="right")
    table.add_column("what was done")
    for name, split in fixed.splits.items():
        before = check.splits[name].rows
        done = "\n".join(
            f"{count:,} {kind.title}: {kind.fix}" for kind, count in split.changes.items()
        )
        table.add_row(
            Text(shown(name)),
            f"{len(before.images):,} → {split.images:,}",
            f"{len(before.objects):,} → {split.objects:,}",
            Text(done or "copied as it was"),
        )
    console.print(table)
    for line in fixed.unfixed:
        console.print(Text(f"not fixed: {shown(line, 1000)}", style="bold red"))
    if fixed.splits:
        _print_command(console, fixed.folder, list(fixed.splits))


def _print_command(console: Console, data: Path, splits: list[str]) -> None:
    """Print the command that trains on a dataset."""
    words = ["nmsfree", "train", "--data", str(data)]
    train = "train" if "train" in splits else splits[0]
    others = [name for name in splits if name != train]
    if train != "train":
        words += ["--split", train]
    if "val" not in others:
        words += ["--val", others[0] if others else ""]
    console.print(Text(f"train with: {shown(shlex.join(words), 2000)}"), soft_wrap=True)
