"""What the frontier is drawn of: precision × engine at the deployed size, and other sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nmsfree.spec import Target
from nmsfree_benchmarks.common.engines import DEPLOYED, ENGINES
from nmsfree_benchmarks.common.exported import Wanted
from nmsfree_benchmarks.table.eager import Source
from nmsfree_export.options import PRECISIONS, Precision

SCALES = (0.75, 1.0, 1.25, 1.5)  # of the deployed side: 192, 256, 320 and 384 of 256 pixels
STEP = 32  # pixels, of an input's sides


@dataclass(frozen=True, eq=False)
class Variant:
    """A file in an engine; `engine` is a key of `ENGINES`."""

    wanted: Wanted
    engine: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        return self.wanted.size or self.wanted.source.checkpoint.input_size

    @property
    def name(self) -> str:
        height, width = self.size
        return f"{self.wanted.source.name} {self.engine} {self.wanted.precision} {height}x{width}"


def variants(
    sources: Sequence[Source], engines: Sequence[str], sizes: Sequence[float] = SCALES
) -> list[Variant]:
    """Every precision in every engine at the deployed size, and FP32 in ONNX Runtime in all sizes.

    Args:
        engines: keys of `ENGINES` that work here.
        sizes: factors of the deployed size.
    """
    found = {v.name: v for source in sources for v in _of(source, engines, sizes)}
    return list(found.values())


def _of(source: Source, engines: Sequence[str], sizes: Sequence[float]) -> Iterator[Variant]:
    files: dict[str, Wanted] = {}

    def wanted(
        precision: Precision, target: Target | None = None, size: tuple[int, int] | None = None
    ) -> Wanted:
        new = Wanted(source, precision, target, size)
        return files.setdefault(new.name, new)  # one export serves several engines

    for precision in PRECISIONS:
        for engine in engines:
            target = ENGINES[engine].target if precision == "int8" else None
            yield Variant(wanted(precision, target), engine)
    if DEPLOYED in engines:
        for size in scaled(source.checkpoint.input_size, sizes):
            yield Variant(wanted("fp32", size=size), DEPLOYED)


def scaled(size: tuple[int, int], factors: Sequence[float]) -> list[tuple[int, int]]:
    """Sizes near the factors of `size`, in whole steps of 32 pixels, none twice."""
    height, width = size
    sides = [(max(1, round(height * f / STEP)), max(1, round(width * f / STEP))) for f in factors]
    return list(dict.fromkeys((h * STEP, w * STEP) for h, w in sides))
