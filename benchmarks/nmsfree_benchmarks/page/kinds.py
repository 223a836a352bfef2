"""What each kind of benchmark asks, and who puts its results into words."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nmsfree_benchmarks.common.sheets import Sheet
from nmsfree_benchmarks.harness.records import Results as HarnessResults
from nmsfree_benchmarks.page.generic import said_of_ratios
from nmsfree_benchmarks.record.records import Results

Words = tuple[list[str], list[Sheet]]  # conclusions, tables


@dataclass(frozen=True)
class Kind:
    """Attributes:
    title, question: of its section.
    words: what the results say; None takes what every kind has.
    """

    title: str
    question: str
    words: Callable[[Results], Words] | None = None


def words_of(results: Results) -> Words:
    """Conclusions and tables of a run, of its kind's own where there are any."""
    kind = KINDS.get(results.kind)
    if kind is None or kind.words is None:
        return said_of_ratios(results), []
    try:
        said, sheets = kind.words(results)
    except KeyError:  # an older minor version lacks a figure that is put into words today
        return said_of_ratios(results), []
    return said or said_of_ratios(results), sheets


def _table(results: Results) -> Words:
    from nmsfree_benchmarks.page.table import conclusions, sheets

    return _both(conclusions(results), sheets(results))


def _nms(results: Results) -> Words:
    from nmsfree_benchmarks.nms.facts import conclusions
    from nmsfree_benchmarks.nms.tables import sheets

    return _both(conclusions(results), sheets(results))


def _jitter(results: Results) -> Words:
    from nmsfree_benchmarks.jitter.words import conclusions, sheet

    return _both(conclusions(results), [sheet(results)])


def _frontier(results: Results) -> Words:
    from nmsfree_benchmarks.frontier.rules import conclusions
    from nmsfree_benchmarks.frontier.tables import sheets

    return _both(conclusions(results), sheets(results))


def _throughput(results: Results) -> Words:
    from nmsfree_benchmarks.questions.throughput import QUESTION

    again: Any = HarnessResults.from_json(results.to_json())
    return list(QUESTION.conclusions(again)), list(QUESTION.tables(again))  # type: ignore[arg-type]


def _overhead(results: Results) -> Words:
    from nmsfree_benchmarks.overhead.rules import conclusions
    from nmsfree_benchmarks.overhead.tables import sheets

    return _both(conclusions(results), sheets(results))


def _roofline(results: Results) -> Words:
    from nmsfree_benchmarks.roofline.tables import conclusions, sheets

    return _both(conclusions(results), sheets(results))


def _both(said: Iterable[str], sheets: Iterable[Sheet]) -> Words:
    return list(said), list(sheets)


KINDS = {
    "table": Kind(
        "Speed and accuracy",
        "How fast is each detector from a picture in memory to its boxes, with NMS and without, "
        "and how right is the very file that was timed?",
        _table,
    ),
    "nms": Kind(
        "The price of NMS",
        "What does non-maximum suppression cost, and how does it grow with what is in the picture?",
        _nms,
    ),
    "jitter": Kind(
        "Steadiness",
        "How much does the time of one picture differ from that of the next, with NMS and without?",
        _jitter,
    ),
    "frontier": Kind(
        "Accuracy against latency",
        "Which precision, engine and input size are worth their time?",
        _frontier,
    ),
    "throughput": Kind(
        "Throughput",
        "How many images a second, when several are under way at once?",
        _throughput,
    ),
    "overhead": Kind(
        "Overhead",
        "What does the library add to the bare call of the engine?",
        _overhead,
    ),
    "roofline": Kind(
        "How far from the limit",
        "How fast could each model be at most on this device, and how much of that is reached?",
        _roofline,
    ),
}
