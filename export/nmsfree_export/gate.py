"""Which differences between two models are allowed: what the lower of their precisions needs."""

from dataclasses import dataclass

from nmsfree.spec import ModelSpec
from nmsfree_export.parity import Parity, Tolerance, tolerance_for
from nmsfree_export.quantise_parity import UNMATCHED, Int8Parity, int8_tolerance

EIGHT_BITS = ("int8", "bf16")  # a bfloat16 has 8 bits of mantissa


@dataclass(frozen=True)
class Gate:
    """How a comparison is judged.

    Attributes:
        tolerance: how far matched rows may differ.
        unmatched: share of rows that may have no partner, whatever the others differ by, see
            `Int8Parity`; None where every row needs one and its difference counts.
    """

    tolerance: Tolerance
    unmatched: float | None = None

    def judge(self, parity: Parity) -> Parity:
        """Return the outcome of `compare` in the words of this gate."""
        return parity if self.unmatched is None else Int8Parity.of(parity, self.unmatched)


def gate_for(spec: ModelSpec, *precisions: str, unmatched: float | None = None) -> Gate:
    """Return the gate of models that compute in these precisions: "fp32", "fp16", "int8", "bf16".

    Args:
        spec: of either model, for the size of the input.
        unmatched: share of rows that may have no partner; None takes the usual one of eight bits.
    """
    if unmatched is None and not set(EIGHT_BITS).intersection(precisions):
        return Gate(tolerance_for(*precisions))
    return Gate(int8_tolerance(spec), UNMATCHED if unmatched is None else unmatched)


def gate_for_seeded(spec: ModelSpec, *precisions: str) -> Gate:
    """Return the gate of pictures that nobody chose, see `parity.seeded_images`.

    A wider one: it tells a file that is right by chance from one that is right, for any seed. Seen
    without a partner on such pictures: no row in FP32 and FP16, in INT8 13 % of the canary's.
    """
    if set(precisions) == {"fp32"}:
        return Gate(Tolerance(0.01, 0.5))
    return Gate(int8_tolerance(spec), 0.5)
