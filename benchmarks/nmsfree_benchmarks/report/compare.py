"""What became faster or slower between two runs.

With 95 % intervals; exit status 1 if something is surely slower than tolerated. Runs of
different settings, or on different devices, are refused; versions and model files may differ and
are named.

Example: nmsfree bench compare before.json after.json

On another machine: nmsfree bench compare before.json after.json --ratios --tolerance 1.2
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from nmsfree.errors import GateError, InputError
from nmsfree.files import check_outputs, write_json
from nmsfree.options import Option
from nmsfree.text import shown
from nmsfree_benchmarks.harness.options import Json
from nmsfree_benchmarks.harness.records import Ratio, Record, Results, read
from nmsfree_benchmarks.harness.run import console_for, print_table
from nmsfree_benchmarks.harness.statistics import FEWEST_ROUNDS, Interval, ratio_of_medians
from nmsfree_benchmarks.harness.table import Table, percent

# What may differ between two runs without making them incomparable: that is what is compared.
MEASURED = ("sha256", "file_bytes", "ap", "ap50", "ap_images", "provider", "training")


@dataclass(frozen=True, kw_only=True)
class Options:
    before: Annotated[Path, Option("A result file of `nmsfree bench`.", argument=True)]
    after: Annotated[Path, Option("A later one of the same benchmark.", argument=True)]
    ratios: Annotated[
        bool, Option("Compare ratios within the runs; devices may differ.", flags=("--ratios",))
    ] = False
    tolerance: Annotated[float, Option("How many times slower is still no regression.", min=1)] = (
        1.05
    )
    only: Annotated[str, Option("Only what has this in its name.", metavar="TEXT")] = ""
    json_file: Json = None


@dataclass(frozen=True)
class Change:
    """A record (or, with `ratios`, a ratio) of both files."""

    name: str  # of the record, or what the ratio means
    before: float  # milliseconds (median), or the ratio's value
    after: float
    # after / before of times and of ratios of times, before / after of speeds: above 1 is slower.
    interval: Interval
    ap_before: float | None = None  # 0-1; None where it was not measured
    ap_after: float | None = None

    def slower_than(self, tolerance: float) -> bool:
        """Whether it surely takes more than `tolerance` times as long."""
        return self.interval.low > tolerance

    def meaning(self, tolerance: float) -> str:
        if self.slower_than(tolerance):
            return "slower"
        if not self.interval.known:
            return f"undecided: under {FEWEST_ROUNDS} rounds"
        if not self.interval.decides:
            return "same or unsure"
        return "faster" if self.interval.value < 1 else "slower, tolerated"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"interval": self.interval.to_json()}


@dataclass(frozen=True)
class Comparison:
    """What two result files of one benchmark have in common, and what not."""

    kind: str
    by_ratios: bool
    changes: tuple[Change, ...]
    differences: tuple[str, ...]  # what may differ and does: "onnxruntime 1.31 → 1.32", files
    only_before: tuple[str, ...]  # names of records that the other file does not have
    only_after: tuple[str, ...]
    doubts: tuple[str, ...]  # why times of either run are wider than they need be

    def regressions(self, tolerance: float) -> list[Change]:
        return [change for change in self.changes if change.slower_than(tolerance)]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "changes": [change.to_json() for change in self.changes]}

    def table(self, tolerance: float) -> Table:
        """Every row of both files: before, after, their ratio, and what that means."""
        unit = "" if self.by_ratios else " ms"
        columns = {
            "row": lambda c: c.name,
            f"before{unit}": lambda c: f"{c.before:.3f}",
            f"after{unit}": lambda c: f"{c.after:.3f}",
            "after / before (95 %)": lambda c: str(c.interval),
            "AP": lambda c: (
                "–"
                if None in (c.ap_before, c.ap_after)
                else f"{percent(c.ap_before, '.1f')} → {percent(c.ap_after, '.1f')}"
            ),
            "": lambda c: c.meaning(tolerance),
        }
        return Table.of(f"{self.kind}: before → after", columns, self.changes)

    def lines(self) -> list[str]:
        """What else to know of the two files."""
        return [
            *(f"differs: {text}" for text in self.differences),
            *(f"only before: {name}" for name in self.only_before),
            *(f"only after: {name}" for name in self.only_after),
            *self.doubts,
        ]


def compare_runs(
    before: Results, after: Results, *, by_ratios: bool = False, only: str = ""
) -> Comparison:
    """Compare two runs record by record, those that have a text in their name.

    By ratios: those within each run. They carry over between machines, times do not; so devices
    may then differ. InputError: the runs differ in a setting, or have nothing in common.
    """
    refuse_different(before, after, same_device=not by_ratios)
    found = _ratio_changes(before, after) if by_ratios else _changes(before, after)
    changes = tuple(change for change in found if only in change.name)
    if not changes:
        wanted = f" whose name contains {only!r}" if only else ""
        raise InputError(
            f"the files have no row in common{wanted}, expected two runs of one benchmark"
        )
    names = [{r.name for r in results.records} for results in (before, after)]
    return Comparison(
        before.kind,
        by_ratios,
        changes,
        tuple(_differences(before, after)),
        tuple(sorted(names[0] - names[1])),
        tuple(sorted(names[1] - names[0])),
        tuple(
            f"{which}: {results.verdict_text()}"
            for which, results in (("before", before), ("after", after))
            if results.doubts()
        ),
    )


def refuse_different(before: Results, after: Results, *, same_device: bool) -> None:
    """Raise InputError that names the first setting in which two runs differ."""
    pairs: list[tuple[str, Any, Any]] = [
        ("kind", before.kind, after.kind),
        ("quick", before.quick, after.quick),
    ]
    if same_device:
        a, b = before.environment, after.environment
        names = ("device", "processor", "cores", "memory_gib", "system", "gpu", "threads")
        pairs += [(name, a.get(name), b.get(name)) for name in names]
    # How many calls a turn has follows from the machine's speed.
    settings = sorted({*before.settings, *after.settings} - {"burst", "bursts"})
    pairs += [(name, before.settings.get(name), after.settings.get(name)) for name in settings]
    for old, new in _both(before, after):
        pairs += _states(old, new, same_device)
    for name, one, other in pairs:
        if one != other:
            raise InputError(
                f"the runs cannot be compared: {name} is {one!r} before and {other!r} after"
            )


def _both(before: Results, after: Results) -> Iterator[tuple[Record, Record]]:
    known = {record.name: record for record in before.records}
    return ((known[record.name], record) for record in after.records if record.name in known)


def _states(before: Record, after: Record, same_device: bool) -> Iterator[tuple[str, Any, Any]]:
    name = after.name
    yield f"{name}: parameters", dict(before.parameters), dict(after.parameters)
    if before.subject is None or after.subject is None:
        models = [None if r.subject is None else r.subject.model for r in (before, after)]
        yield f"{name}: model", models[0], models[1]
        return
    one, other = before.subject.to_json(), after.subject.to_json()
    free = (*MEASURED, *(() if same_device else ("threads",)))
    for key in one:
        if key not in free:
            yield f"{name}: {key}", one[key], other[key]


def _changes(before: Results, after: Results) -> Iterator[Change]:
    for old, new in _both(before, after):
        burst = max(before.burst(old), after.burst(new))
        yield Change(
            new.name,
            old.summary.p50,
            new.summary.p50,
            ratio_of_medians(new.times, old.times, burst),
            None if old.subject is None else old.subject.ap,
            None if new.subject is None else new.subject.ap,
        )


def _common_ratios(before: Results, after: Results) -> Iterator[tuple[Ratio, Ratio]]:
    known = {(r.meaning, r.of, r.to): r for r in before.ratios}
    for ratio in after.ratios:
        old = known.get((ratio.meaning, ratio.of, ratio.to))
        if old is not None:
            yield old, ratio


def _ratio_changes(before: Results, after: Results) -> Iterator[Change]:
    for one, other in _common_ratios(before, after):
        old, new = one.interval, other.interval
        quotient = old.by(new) if other.is_speed else new.by(old)
        yield Change(_name(other), old.value, new.value, quotient)


def _name(ratio: Ratio) -> str:
    return f"{ratio.meaning}: {ratio.of} / {ratio.to}"


def agreement(before: Results, after: Results, only: str = "") -> tuple[int, int]:
    """How many ratios of both runs have intervals that overlap, of how many that have intervals.

    `only`: ratios with this in their name.
    """
    both = [
        (old.interval, new.interval)
        for old, new in _common_ratios(before, after)
        if only in _name(new) and old.interval.known and new.interval.known
    ]
    return sum(a.overlaps(b) for a, b in both), len(both)


def _differences(before: Results, after: Results) -> Iterator[str]:
    a, b = before.environment["versions"], after.environment["versions"]
    for name in sorted({*a, *b}):
        if a.get(name) != b.get(name):
            yield f"{name} {a.get(name, 'missing')} → {b.get(name, 'missing')}"
    for old, new in _both(before, after):
        if old.subject and new.subject and old.subject.sha256 != new.subject.sha256:
            yield f"{new.name}: another file"


def main(options: Options) -> None:
    check_outputs([options.json_file], [options.before, options.after])
    before, after = read(options.before), read(options.after)
    found = compare_runs(before, after, by_ratios=options.ratios, only=options.only)
    overlapping, both = agreement(before, after, options.only)
    console = console_for(options.json_file)
    print_table(console, found.table(options.tolerance))
    for line in found.lines():
        console.print(shown(f"• {line}", 1000), markup=False)
    if both:
        console.print(f"• {overlapping} of {both} ratios have intervals that overlap")
    said = {"ratios_overlapping": overlapping, "ratios_in_both": both}
    write_json(options.json_file, found.to_json() | said)
    slower = found.regressions(options.tolerance)
    if slower:
        worst = max(slower, key=lambda change: change.interval.low)
        raise GateError(
            f"{len(slower)} of {len(found.changes)} rows are slower than {options.tolerance:g} ×, "
            f"the worst {shown(worst.name)}: {worst.interval}"
        )
