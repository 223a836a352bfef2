"""What `nmsfree data check` prints."""

import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nmsfree.data.check_report import Check, Finding
from nmsfree.data.faults import DESCRIPTIONS, Fault, Kind, Level
from nmsfree.data.fix import Fixed
from nmsfree.data.rows import relative_name
from nmsfree.data_check_classes import class_table
from nmsfree.text import shown

EXAMPLES = 3  # of every finding; the JSON report has all
COLOURS = {Level.ERROR: "bold red", Level.WARNING: "yellow", Level.INFO: "cyan"}


def print_check(check: Check, pictures: list[Path]) -> None:
    """Print what each split holds, what was found, and where the pictures are."""
    console = Console()
    console.print(_splits(check))
    console.print(class_table(check))
    findings = check.findings()
    if findings:
        console.print(_findings(check, findings))
    console.print(_verdict(check))
    for path in pictures:
        console.print(Text(f"picture: {shown(path)}"), soft_wrap=True)


def _splits(check: Check) -> Table:
    name = str(check.layout.config or check.layout.root)
    table = Table(title=Text(f"{shown(name)}, {check.layout.format}"), title_justify="left")
    table.add_column("split")
    for split in check.splits:
        table.add_column(Text(shown(split)), justify="right")
    stats = [found.stats for found in check.splits.values()]
    areas = [each.by_area() for each in stats]
    rows = {
        "images": [each.images for each in stats],
        "  without objects": [each.images_without_objects for each in stats],
        "classes": [len(each.by_class) for each in stats],
        "objects": [each.objects for each in stats],
        "  small, area below 32²": [area["small"] for area in areas],
        "  medium": [area["medium"] for area in areas],
        "  large, area above 96²": [area["large"] for area in areas],
        "  with a side below 8 px": [each.below_8px for each in stats],
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
        about = DESCRIPTIONS[finding.kind]
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
    if errors:
        mend = any(DESCRIPTIONS[finding.kind].fix for finding in check.findings())
        hint = ": --fix writes a cleaned set" if mend else ""
        return Text(f"{_count(errors, 'error')}, {_count(warnings, 'warning')}{hint}", "bold red")
    return Text(f"no errors, {_count(warnings, 'warning')}", "bold green")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def print_fixed(check: Check, fixed: Fixed | None) -> None:
    """Print what was removed, clipped or left, and how to train on the result."""
    console = Console()
    if fixed is None:
        if check.count(Level.ERROR):
            console.print("nothing that --fix can mend: see the errors above")
            return
        console.print("nothing to fix: train on the dataset as it is")
        _print_command(console, check.layout.config or check.layout.root, list(check.splits))
        return
    table = Table(title=Text(f"cleaned: {shown(fixed.folder)}"), title_justify="left")
    for column in ("split", "images", "objects", "what was done"):
        table.add_column(
            column, justify="left" if column in ("split", "what was done") else "right"
        )
    for name, split in fixed.splits.items():
        before = check.splits[name].rows
        done = "\n".join(
            f"{count:,} {DESCRIPTIONS[kind].title}: {DESCRIPTIONS[kind].fix}"
            for kind, count in split.changes.items()
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
