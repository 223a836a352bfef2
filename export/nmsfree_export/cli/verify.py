"""`nmsfree verify`."""

from typing import TYPE_CHECKING

from nmsfree.cli.options import command
from nmsfree.errors import GateError
from nmsfree.text import shown
from nmsfree_export.options import VerifyOptions

if TYPE_CHECKING:
    from rich.console import Console

    from nmsfree_export.verify.compare import Outcome


def run_verify(options: VerifyOptions) -> None:
    """Compare two models, whatever runs them; exit status 1 if they differ.

    The detections may differ by what the lower of both precisions needs.
    With a dataset, B may not lose more AP than allowed, either.
    If something differs, the layers that add most error are shown.

    Examples:

    nmsfree verify weights/fcos_e2e_nano.safetensors model.onnx

    nmsfree verify model.onnx model.onnx --device-b openvino

    nmsfree verify model.onnx int8.onnx --data data/digits --layers

    nmsfree verify --matrix model.onnx
    """
    from rich.console import Console

    from nmsfree.datasets.formats.folder import load_dataset
    from nmsfree.datasets.image_files import images_below
    from nmsfree.files import check_outputs, write_json
    from nmsfree_export.verify.compare import compare_models, open_pair, sides_of
    from nmsfree_export.verify.parity import pictures_for

    console = Console(stderr=True)
    if options.matrix:
        _matrix(options, console)
        return
    dataset = None if options.data is None else load_dataset(options.data, options.split or "val")
    inputs = [options.a, options.b, *(dataset.files() if dataset else ())]
    inputs += images_below(options.images) if options.images else []
    check_outputs([options.json_out], inputs)
    sides = sides_of(options)
    with console.status("opening") as status, open_pair(*sides) as opened:
        for name, side, backend in zip("ab", sides, opened, strict=True):
            line = f"{name}  {side.describe(backend)}"
            console.print(shown(line), highlight=False, markup=False, soft_wrap=True)
        pictures = pictures_for(opened[1].spec, options.images)
        outcome = compare_models(options, opened, pictures, dataset, status.update)
    try:
        _show(outcome, console)
    finally:  # also of models that differ
        write_json(options.json_out, outcome.to_json())


def _matrix(options: VerifyOptions, console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    from nmsfree.files import check_outputs, write_json
    from nmsfree_export.matrix import measure_matrix

    check_outputs([options.json_out], [options.a])
    with console.status("comparing") as status:
        cells = measure_matrix(options.a, options.images, lambda name: status.update(f"{name} …"))
    columns = ("", "engine", "rows", "alone", "score", "box, px", "layer that adds most error")
    table = Table(*columns, title=f"{shown(options.a)} beside itself in ONNX Runtime")
    for cell in cells:
        found = cell.parity
        if found is None:
            continue
        numbers = f"{found.score_difference:.1e}", f"{found.box_difference:.3f}"
        rows = str(found.rows), str(found.unmatched), *numbers
        mark = "✓" if found.passed else "✗"
        table.add_row(mark, f"{cell.name}: {cell.engine}", *rows, Text(shown(cell.layer)))
    console.print(table)
    for cell in cells:
        if cell.missing:
            line = f"{'✗' if cell.engine else '–'} {cell.name}: {shown(cell.missing, 400)}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    write_json(options.json_out, {"file": str(options.a), "cells": [c.to_json() for c in cells]})
    worse = [cell.name for cell in cells if not cell.passed]
    if worse:
        raise GateError(f"parity: {', '.join(worse)} differ from the file")


def _show(outcome: "Outcome", console: "Console") -> None:
    """Print what was found, and raise what was refused."""
    from nmsfree_export.verify.layer_errors import print_layers

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    layers, accuracy = outcome.layers, outcome.accuracy
    if layers is not None and layers.errors:
        print_layers(layers.errors, f"layers of {layers.judged} beside {layers.exact}", console)
    if layers is not None and layers.note:
        say(f"layers: {layers.note}")
    if outcome.failure is None and outcome.parity is not None:
        say(f"{outcome.parity.verdict}: {outcome.parity}")
    if accuracy is not None and outcome.failure is None:
        accuracy.enforce()
    if accuracy is not None:
        say(f"AP {'kept' if accuracy.passed else 'lost'}: {shown(accuracy)}")
    if outcome.failure is not None:
        raise outcome.failure


verify = command(run_verify, VerifyOptions)
