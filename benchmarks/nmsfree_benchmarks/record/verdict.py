"""Whether a run may be believed: was the machine quiet enough to tell its rows apart?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nmsfree_benchmarks.machine.measure import WIDE_SPREAD
from nmsfree_benchmarks.record.intervals import FEWEST_ROUNDS

if TYPE_CHECKING:
    from nmsfree_benchmarks.record.records import Results

BUSY = 0.3  # cores kept busy by other work from which times are those of a shared machine
WIDE_DRIFT = 0.10  # of the median between the first and the last third of the rounds
DOUBTFUL = 0.5  # share of records that distrust themselves from which the whole run does


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    reasons: why not to rank; empty = the run may be believed.
    """

    reasons: tuple[str, ...]

    @property
    def ranks(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        if self.ranks:
            return "quiet enough to compare"
        return "too noisy to rank: " + "; ".join(self.reasons)

    def to_json(self) -> dict[str, Any]:
        return {"ranks": self.ranks, "reasons": list(self.reasons)}


def judge(results: "Results") -> Verdict:
    """Look at the load, the spread and the drift of the times, and at the GPU's throttling."""
    return Verdict(tuple(_reasons(results)))


def _reasons(results: "Results") -> Iterator[str]:
    if results.other_load is not None and results.other_load > BUSY:
        yield (
            f"other work kept {results.other_load:.1f} cores busy (at most {BUSY}): "
            "stop it and measure again"
        )
    few = sum(results.rounds(record) < FEWEST_ROUNDS for record in results.records)
    if few:
        yield (
            f"{few} of {len(results.records)} rows have under {FEWEST_ROUNDS} rounds: measure "
            "longer"
        )
    summaries = [record.summary for record in results.records]
    scattered = sum(not s.trusted for s in summaries)
    if scattered > DOUBTFUL * len(summaries):
        yield (
            f"{scattered} of {len(summaries)} rows have an interquartile range above "
            f"{WIDE_SPREAD:.0%} of their median: close other programs, or measure longer"
        )
    drifting = sum(abs(s.drift) > WIDE_DRIFT for s in summaries)
    if drifting > DOUBTFUL * len(summaries):
        yield (
            f"{drifting} of {len(summaries)} rows became faster or slower by more than "
            f"{WIDE_DRIFT:.0%} during the run: let the machine reach a steady temperature"
        )
    for reason in results.environment.get("gpu_throttled", ()):
        yield f"the GPU throttled itself ({reason}): cool it, or lower its power limit"
