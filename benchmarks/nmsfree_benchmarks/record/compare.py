"""Two result files of one benchmark: what became faster or slower, and whether that is sure."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from nmsfree.errors import InputError
from nmsfree_benchmarks.record.intervals import Interval, ratio_interval
from nmsfree_benchmarks.record.records import Ratio, Record, Results
from nmsfree_benchmarks.record.verdict import judge

# What may differ between two runs without making them incomparable: that is what is compared.
MEASURED = ("sha256", "file_bytes", "ap", "ap50", "ap_images", "provider", "training")


@dataclass(frozen=True)
class Change:
    """A record (or, with `ratios`, a ratio) of both files.

    Attributes:
        name: of the record, or what the ratio means.
        before, after: milliseconds (median), or the ratio's value.
        interval: after / before, of times and of ratios of times; before / after of speeds, so that
            above 1 is slower.
        ap_before, ap_after: 0-1; None where it was not measured.
    """

    name: str
    before: float
    after: float
    interval: Interval
    ap_before: float | None = None
    ap_after: float | None = None

    def slower_than(self, tolerance: float) -> bool:
        """Whether it surely takes more than `tolerance` times as long."""
        return self.interval.low > tolerance

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"interval": self.interval.to_json()}


@dataclass(frozen=True)
class Comparison:
    """Attributes:
    differences: settings that may differ and do: versions, files; "onnxruntime 1.31 → 1.32".
    only_before, only_after: names of records that the other file does not have.
    doubts: why either run may not be believed.
    """

    kind: str
    by_ratios: bool
    changes: tuple[Change, ...]
    differences: tuple[str, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    doubts: tuple[str, ...]

    def regressions(self, tolerance: float) -> list[Change]:
        return [change for change in self.changes if change.slower_than(tolerance)]

    def to_json(self) -> dict[str, Any]:
        changes = [change.to_json() for change in self.changes]
        return {**asdict(self), "changes": changes}


def compare(
    before: Results, after: Results, *, by_ratios: bool = False, only: str = ""
) -> Comparison:
    """Compare two runs record by record.

    Args:
        by_ratios: compare the ratios within each run instead of its times. They carry over
            between machines, times do not; so the devices may then differ.
        only: text that the names of what is compared contain.

    Raises:
        InputError: the runs differ in a setting, or have nothing in common.
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
            f"{which}: {judge(results)}"
            for which, results in (("before", before), ("after", after))
            if not judge(results).ranks
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
    settings = sorted({*before.settings, *after.settings})
    pairs += [(name, before.settings.get(name), after.settings.get(name)) for name in settings]
    for record in after.records:
        other = _find(before, record.name)
        if other is not None:
            pairs += _states(other, record, same_device)
    for name, one, other in pairs:
        if one != other:
            raise InputError(
                f"the runs cannot be compared: {name} is {one!r} before and {other!r} after"
            )


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
    for record in after.records:
        other = _find(before, record.name)
        if other is None:
            continue
        yield Change(
            record.name,
            other.summary.p50,
            record.summary.p50,
            ratio_interval(record.times, other.times, after.burst(record), paired=False),
            None if other.subject is None else other.subject.ap,
            None if record.subject is None else record.subject.ap,
        )


def _ratio_changes(before: Results, after: Results) -> Iterator[Change]:
    known = {_key(ratio): ratio.interval for ratio in before.ratios}
    for ratio in after.ratios:
        old, new = known.get(_key(ratio)), ratio.interval
        if old is None:
            continue
        quotient = old.by(new) if ratio.is_speed else new.by(old)
        yield Change(_name(ratio), old.value, new.value, quotient)


def agreement(before: Results, after: Results, only: str = "") -> tuple[int, int]:
    """How many ratios of both runs have intervals that overlap, of how many that have intervals.

    Args:
        only: ratios with this in their name.
    """
    known = {_key(ratio): ratio.interval for ratio in before.ratios}
    named = [ratio for ratio in after.ratios if only in _name(ratio)]
    both = [(known[_key(r)], r.interval) for r in named if _key(r) in known]
    both = [(a, b) for a, b in both if a.known and b.known]
    return sum(a.overlaps(b) for a, b in both), len(both)


def _name(ratio: Ratio) -> str:
    return f"{ratio.meaning}: {ratio.of} / {ratio.to}"


def _key(ratio: Ratio) -> tuple[str, str, str]:
    return ratio.meaning, ratio.of, ratio.to


def _find(results: Results, name: str) -> Record | None:
    return next((record for record in results.records if record.name == name), None)


def _differences(before: Results, after: Results) -> Iterator[str]:
    a, b = before.environment["versions"], after.environment["versions"]
    for name in sorted({*a, *b}):
        if a.get(name) != b.get(name):
            yield f"{name} {a.get(name, 'missing')} → {b.get(name, 'missing')}"
    for record in after.records:
        other = _find(before, record.name)
        if other is None or other.subject is None or record.subject is None:
            continue
        if other.subject.sha256 != record.subject.sha256:
            yield f"{record.name}: another file"
