"""`nmsfree bench compare`: two result files, and what changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmsfree.text import shown

if TYPE_CHECKING:
    from rich.table import Table

    from nmsfree_benchmarks.record.compare import Change, Comparison


def compare(
    before: Annotated[Path, typer.Argument(help="A result file of `nmsfree bench`.")],
    after: Annotated[Path, typer.Argument(help="A later one of the same benchmark.")],
    ratios: Annotated[
        bool, typer.Option("--ratios", help="Compare ratios within the runs; devices may differ.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=1, help="How many times slower is still no regression.")
    ] = 1.05,
    only: Annotated[str, typer.Option(metavar="TEXT", help="Only what has this in its name.")] = "",
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help='Write JSON; "-" is stdout.')
    ] = None,
) -> None:
    """What became faster or slower between two runs, with 95 % intervals.

    Exit status 1 if something is surely slower than tolerated. Runs of different settings, or on
    different devices, are refused; versions and model files may differ and are named.

    Example: nmsfree bench compare before.json after.json

    On another machine: nmsfree bench compare before.json after.json --ratios --tolerance 1.2
    """
    from rich.console import Console

    from nmsfree.errors import GateError
    from nmsfree.files import check_outputs, write_json
    from nmsfree_benchmarks.common.publishing import MIN_WIDTH
    from nmsfree_benchmarks.record import file as results_file
    from nmsfree_benchmarks.record.compare import agreement, compare

    check_outputs([json_file], [before, after])
    first, second = results_file.read(before), results_file.read(after)
    found = compare(first, second, by_ratios=ratios, only=only)
    overlapping, both = agreement(first, second, only)
    report = found.to_json() | {"ratios_overlapping": overlapping, "ratios_in_both": both}
    console = Console(stderr=json_file == "-", highlight=False)
    console.width = max(console.width, MIN_WIDTH)
    console.print(table(found, tolerance))
    for line in lines(found):
        console.print(shown(f"• {line}", 1000), markup=False)
    if both:
        console.print(f"• {overlapping} of {both} ratios have intervals that overlap")
    write_json(json_file, report)
    slower = found.regressions(tolerance)
    if slower:
        worst = max(slower, key=lambda change: change.interval.low)
        raise GateError(
            f"{len(slower)} of {len(found.changes)} rows are slower than {tolerance:g} ×, the "
            f"worst {shown(worst.name)}: {worst.interval}"
        )


def table(found: "Comparison", tolerance: float) -> "Table":
    """Every row of both files: before, after, their ratio, and what that means."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    unit = "" if found.by_ratios else " ms"
    rows = Table(title=f"{found.kind}: before → after", box=SIMPLE_HEAD, pad_edge=False)
    rows.add_column("row", overflow="fold")
    for name in (f"before{unit}", f"after{unit}", "after / before (95 %)", "AP"):
        rows.add_column(name, justify="right")
    rows.add_column("")
    for c in found.changes:
        numbers = (f"{c.before:.3f}", f"{c.after:.3f}", str(c.interval))
        rows.add_row(Text(shown(c.name)), *numbers, _ap(c), _meaning(c, tolerance))
    return rows


def _ap(change: "Change") -> str:
    if change.ap_before is None or change.ap_after is None:
        return "–"
    return f"{100 * change.ap_before:.1f} → {100 * change.ap_after:.1f}"


def _meaning(change: "Change", tolerance: float) -> str:
    from nmsfree_benchmarks.record.intervals import FEWEST_ROUNDS

    if change.slower_than(tolerance):
        return "[red]slower[/]"
    if not change.interval.known:
        return f"undecided: under {FEWEST_ROUNDS} rounds"
    if not change.interval.decides:
        return "same or unsure"
    return "faster" if change.interval.value < 1 else "slower, tolerated"


def lines(found: "Comparison") -> list[str]:
    """What else to know of the two files."""
    notes = [f"differs: {text}" for text in found.differences]
    notes += [f"only before: {name}" for name in found.only_before]
    notes += [f"only after: {name}" for name in found.only_after]
    return notes + list(found.doubts)
