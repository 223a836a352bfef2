"""What every kind of result file has: its rows, ratios and facts as tables."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from nmsfree_benchmarks.harness.records import Ratio, Record, Results
from nmsfree_benchmarks.harness.table import Table

MOST_ROWS = 80
DIGITS = 12  # of a hash
INTERVAL = {"value", "low", "high"}
# Of a subject: too long for a column, or said otherwise.
ELSEWHERE = ("sha256", "nms", "provider", "file_bytes", "ap_images")


def said_of_ratios(results: Results) -> list[str]:
    """One sentence for each meaning of the ratios."""
    by_meaning = sorted(results.ratios, key=lambda ratio: ratio.meaning)
    groups = groupby(by_meaning, key=lambda ratio: ratio.meaning)
    return [_said(meaning, list(ratios)) for meaning, ratios in groups]


def _said(meaning: str, ratios: Sequence[Ratio]) -> str:
    if len(ratios) == 1:
        (only,) = ratios
        return f"{meaning}: {only.of} takes {only.interval.text(unit=' ×')} the time of {only.to}."
    values = [ratio.interval.value for ratio in ratios]
    sides = [ratio.interval.side for ratio in ratios]
    return (
        f"{meaning}: {min(values):.2f} to {max(values):.2f} × over {len(ratios)} pairs; surely "
        f"above 1 in {sides.count(1)}, surely below in {sides.count(-1)}, undecided in "
        f"{sides.count(0)}."
    )


def rows_table(results: Results) -> Table:
    """Every record: where it differs from its neighbours, its times, and its plain figures."""
    states = [_state(record) for record in results.records]
    keys = _plain(states)
    keys = [key for key in keys if len({str(state.get(key)) for state in states}) > 1]
    figures = _plain([record.figures for record in results.records])
    header = ("row", *keys, "FPS", "p50 ms", "p90 ms", "p99 ms", "calls", *figures)
    rows = tuple(
        (
            record.name + ("" if record.summary.trusted else " !"),
            *(_cell(state.get(key)) for key in keys),
            record.summary.fps_text,
            *map(_ms, record.summary.percentiles),
            str(len(record.times)),
            *(_cell(record.figures.get(key)) for key in figures),
        )
        for record, state in zip(results.records, states, strict=True)
    )
    return Table("Every row", header, rows, words=1 + len(keys))


def _state(record: Record) -> dict[str, Any]:
    if record.subject is None:
        return dict(record.parameters)
    subject = {k: v for k, v in record.subject.to_json().items() if k not in ELSEWHERE}
    size = "×".join(map(str, record.subject.size))
    same = {"file": record.subject.sha256[:DIGITS], "size": size}
    return {**subject, **same, **record.parameters}


def _plain(each: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are no lists or dictionaries."""
    keys = dict.fromkeys(key for one in each for key in one)
    nested = (dict, list, tuple)
    return [key for key in keys if not any(isinstance(one.get(key), nested) for one in each)]


RATIOS = {
    "ratio": lambda r: r.meaning,
    "time of": lambda r: r.of,
    "by time of": lambda r: r.to,
    "value": lambda r: f"{r.interval.value:.3f}",
    "95 % interval": lambda r: (
        f"{r.interval.low:.3f} – {r.interval.high:.3f}" if r.interval.known else "–"
    ),
    "decided": lambda r: _cell(r.interval.decides),
}


def ratios_table(results: Results) -> Table:
    return Table.of("Ratios within the run", RATIOS, results.ratios, words=3)


def listed_table(title: str, values: Mapping[str, Any]) -> Table:
    """Facts or settings, one line each."""
    rows = [(name, _cell(value)) for name, value in _flat("", values)]
    return Table(title, ("name", "value"), tuple(rows[:MOST_ROWS]))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value.keys() == INTERVAL:
        low, high = _cell(value["low"]), _cell(value["high"])
        bounds = "–" if value["low"] is None else f"95 %: {low} – {high}"
        yield prefix.replace("_", " "), f"{_cell(value['value'])} ({bounds})"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{prefix} · {key}" if prefix else str(key), inner)
    elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
        for number, inner in enumerate(value, start=1):
            yield from _flat(f"{prefix} · {number}", inner)
    else:
        yield prefix.replace("_", " "), value


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    return str(value)


def _ms(ms: float | None) -> str:
    if ms is None:
        return "–"
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}"
