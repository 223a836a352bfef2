"""The worst layers as a table for the terminal."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nmsfree_export.layer_errors import LayerError

ROWS = 8


def print_layers(errors: Sequence[LayerError], title: str, console: Console) -> None:
    """Print the layers that add most error.

    Args:
        errors: worst first.
        title: which files are compared.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for name in ("op", "in"):
        table.add_column(name, no_wrap=True)
    for name in ("added", "in all", "largest"):
        table.add_column(name, justify="right", no_wrap=True)
    for error in errors[:ROWS]:
        largest = "∞" if math.isinf(error.largest) else f"{error.largest:.3g}"
        shares = percent(error.added), percent(error.total)
        table.add_row(Text(error.name), error.op, error.precision, *shares, largest)
    console.print(Text(title, style="bold"))
    console.print(Text(explained(len(errors))), table)


def explained(count: int) -> str:
    """Say what the columns are."""
    shown = f"worst {ROWS} of {count}" if count > ROWS else f"all {count}"
    return (
        f"{shown} layers, ‖a − b‖ / ‖a‖; added: fed with exact values; in all: with what it"
        " inherits; largest: difference of one value"
    )


def percent(error: float) -> str:
    """Write a relative error: "12 %", "0.043 %", "overflow"."""
    if math.isinf(error):
        return "overflow"
    return f"{100 * error:.0f} %" if error >= 0.1 else f"{100 * error:.2g} %"
