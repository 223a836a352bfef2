"""Parity of an INT8 file: most of what it finds is what the network finds."""

from dataclasses import asdict, dataclass

from nmsfree.spec import ModelSpec
from nmsfree_export.parity import Parity, Tolerance

UNMATCHED = 0.1  # share of rows that may have no partner, unless asked otherwise


def int8_tolerance(spec: ModelSpec) -> Tolerance:
    """How far rows may differ and still be partners: 0.05 of the score and of the longer side."""
    return Tolerance(0.05, 0.05 * max(spec.height, spec.width))


@dataclass(frozen=True)
class Int8Parity(Parity):
    """Parity that allows some rows to have no partner.

    Eight bits move every score a little, so of cells that compete for an object, or at the end of
    the list, another may win. On trained weights 0.4 % of the rows (for a processor) and none (for
    TensorRT) had no partner; a network that quantisation broke loses most of them.

    Attributes:
        allowed: share of the rows that may have none.
    """

    allowed: float = 0.0

    @classmethod
    def of(cls, parity: Parity, allowed: float) -> "Int8Parity":
        """Judge an outcome of `compare` by the share of unmatched rows."""
        return cls(**vars(parity), allowed=allowed)

    @property
    def passed(self) -> bool:
        return self.rows > 0 and self.unmatched <= self.allowed * self.rows

    def __str__(self) -> str:
        if self.rows == 0:
            return super().__str__()
        return (
            f"{self.images} images, {self.rows} rows, {self.unmatched} unmatched "
            f"({self.unmatched / self.rows:.1%}, allowed {100 * self.allowed:.3g}%), of the others "
            f"largest difference: score {self.score_difference:.1e}, "
            f"box {self.box_difference:.1e} px"
        )

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"passed": self.passed}
