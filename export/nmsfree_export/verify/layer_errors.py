"""Where a file of a lower precision goes wrong: the error of every layer, and who is the culprit.

The error of a layer, ‖a − b‖ / ‖a‖ over all its values, is taken twice:

- in all: both files see the picture. That is what the rest of the network gets, but errors add up
  on the way, so the last layers show the largest whoever made them.
- added: the layer of the second file alone, fed with the exact values of the first. That is what
  it does itself, by rounding what it reads, its weights, and its sum. This one decides which layer
  to blame; subtracting the error of the inputs from that of the output would not do, since a layer
  may well shrink the errors that it inherits, and after an overflow there is nothing to subtract.

A layer owns the rounding of what it reads, see `layers.py`. Both run on the processor, which
computes in float32 between the roundings of the file.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nmsfree.spec import ModelSpec
from nmsfree_export.graph.layers import EXACT, Graph, Layer, pair_layers, read_layers
from nmsfree_export.quantize import placed
from nmsfree_export.verify.parity import Pictures

IMAGES = 3  # pictures that are enough to see a broken layer
BUDGET = 128 << 20  # bytes of values held at a time, of each kind

Pairs = list[tuple[Layer, Layer]]


@dataclass(frozen=True)
class LayerError:
    """How wrong one layer of the second file is, levels that share weights together."""

    name: str
    op: str
    precision: str  # of a convolution's weights in the second file; "" for others
    added: float  # relative error that the layer makes itself, see above; infinite: an overflow
    total: float  # relative error with what it inherits
    largest: float  # absolute difference of a value, inherited ones included

    def to_json(self) -> dict[str, object]:
        """The fields; None stands for what is infinite, which JSON does not know."""
        found = asdict(self)
        return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in found.items()}


def measure_layers(
    a: ModelProto,
    b: ModelProto,
    images: Sequence[NDArray[np.uint8]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[LayerError]:
    """Compare the layers of two files of one network, those that add the largest error first.

    One entry for every name, none if they have no layer in common. Memory is bounded: the values
    of some layers at a time.

    Args:
        a, b: the exact one, and the one that is judged.
        images: uint8 [1, H, W, 3], BGR, as the files take them.
        progress: told (layers done, layers in all).
    """
    pairs = pair_layers(read_layers(a), read_layers(b))
    first, second = Graph(a), Graph(b)
    cut = {theirs.output: ours.output for ours, theirs in pairs}
    sums: dict[str, _Sums] = {}
    done = 0
    for chunk in _chunks(pairs, first):
        theirs = [layer.output for _, layer in chunk]
        alone, given = second.part(theirs, cut)
        both, _ = second.part(theirs)
        wanted = [*(ours.output for ours, _ in chunk), *(cut[name] for name in given)]
        exact, _ = first.part(dict.fromkeys(wanted))
        for image in images:
            values = exact({"images": np.repeat(image, first.batch, axis=0)})
            pixels = {"images": np.repeat(image, second.batch, axis=0)}
            fed = {
                name + EXACT: second.as_given(name, values[cut[name]], first.batch)
                for name in given
            }
            own, total = alone(pixels | fed), both(pixels)
            for ours, layer in chunk:
                entry = sums.setdefault(ours.name, _Sums(layer.op, layer.precision))
                seen = values[ours.output], own[layer.output], total[layer.output]
                same = first.batch == second.batch
                entry.see(*(value if same else value[:1] for value in seen))
        done += len(chunk)
        progress(done, len(pairs))
    found = [s.error(name) for name, s in sums.items()]
    return sorted(found, key=lambda e: -e.added)


def prepare(pictures: Pictures, spec: ModelSpec) -> list[NDArray[np.uint8]]:
    """Return the first few pictures as uint8 [1, H, W, 3], placed as a model takes them."""
    return [placed(picture, spec) for _, picture in pictures[:IMAGES]]


def _chunks(pairs: Pairs, graph: Graph) -> Iterator[Pairs]:
    """Layers one after another, as many as the budget allows."""
    chunk: Pairs = []
    size = 0
    for pair in pairs:
        own = graph.sizes.get(pair[0].output, 0)
        if chunk and size + own > BUDGET:
            yield chunk
            chunk, size = [], 0
        chunk.append(pair)
        size += own
    if chunk:
        yield chunk


class _Sums:
    """Squares of the values of the layers of one name, and of what is wrong with them."""

    def __init__(self, op: str, precision: str) -> None:
        self.op, self.precision = op, precision
        self.square = self.added = self.total = self.largest = 0.0

    def see(self, exact: NDArray[Any], own: NDArray[Any], total: NDArray[Any]) -> None:
        want = exact.astype(np.float64)
        with np.errstate(invalid="ignore"):
            wrong = [np.abs(want - value.astype(np.float64)) for value in (own, total)]
        # NaN, which infinities turn into, is as wrong as they are.
        added, inherited = (np.nan_to_num(w, nan=np.inf, posinf=np.inf) for w in wrong)
        self.square += float(np.square(want).sum())
        self.added += float(np.square(added).sum())
        self.total += float(np.square(inherited).sum())
        self.largest = max(self.largest, float(inherited.max(initial=0)))

    def error(self, name: str) -> LayerError:
        added, total = (self._relative(part) for part in (self.added, self.total))
        return LayerError(name, self.op, self.precision, added, total, self.largest)

    def _relative(self, wrong: float) -> float:
        if wrong == 0:
            return 0.0
        return math.sqrt(wrong / self.square) if 0 < self.square < math.inf else math.inf


ROWS = 8


def print_layers(errors: Sequence[LayerError], title: str, console: Console) -> None:
    """Print the layers that add most error; they come worst first."""
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
    count = len(errors)
    explained = (
        f"{f'worst {ROWS} of {count}' if count > ROWS else f'all {count}'} layers, ‖a − b‖ / ‖a‖;"
        " added: fed with exact values; in all: with what it inherits; largest: difference of one"
        " value"
    )
    console.print(Text(title, style="bold"))
    console.print(Text(explained), table)


def percent(error: float) -> str:
    """Write a relative error: "12 %", "0.043 %", "overflow"."""
    if math.isinf(error):
        return "overflow"
    return f"{100 * error:.0f} %" if error >= 0.1 else f"{100 * error:.2g} %"
