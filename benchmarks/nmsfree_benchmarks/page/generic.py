"""What every kind of result file has: its rows, ratios and facts as tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any

from nmsfree_benchmarks.common.sheets import Sheet
from nmsfree_benchmarks.record.intervals import Interval
from nmsfree_benchmarks.record.records import Ratio, Record, Results

MOST_FACTS = 80
DIGITS = 12  # of a hash
INTERVAL = {field.name for field in fields(Interval)}
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
    above = sum(ratio.interval.low > 1 for ratio in ratios)
    below = sum(ratio.interval.high < 1 for ratio in ratios)
    return (
        f"{meaning}: {min(values):.2f} to {max(values):.2f} × over {len(ratios)} pairs; "
        f"surely above 1 in {above}, surely below in {below}, undecided in "
        f"{len(ratios) - above - below}."
    )


def rows_sheet(results: Results) -> Sheet:
    """Every record: where it differs from its neighbours, its times, and its plain figures."""
    records = results.records
    state = _differing([_state(record) for record in records])
    figures = _plain([record.figures for record in records])
    header = ("row", *state, "FPS", "p50 ms", "p90 ms", "p99 ms", "calls", *figures)
    rows = tuple(
        (
            record.name + ("" if record.summary.trusted else " !"),
            *(_cell(_state(record).get(key)) for key in state),
            record.summary.fps_text,
            *(_ms(ms) for ms in record.summary.percentiles),
            str(len(record.times)),
            *(_cell(record.figures.get(key)) for key in figures),
        )
        for record in records
    )
    return Sheet("Every row", header, rows, words=1 + len(state))


def _state(record: Record) -> dict[str, Any]:
    subject = {} if record.subject is None else record.subject.to_json()
    subject = {key: value for key, value in subject.items() if key not in ELSEWHERE}
    if record.subject is not None:
        subject["file"] = record.subject.sha256[:DIGITS]
        subject["size"] = "×".join(map(str, record.subject.size))
    return {**subject, **record.parameters}


def _differing(states: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys with more than one value, that are plain."""
    keys = dict.fromkeys(key for state in states for key in state)
    return [
        key
        for key in keys
        if len({str(state.get(key)) for state in states}) > 1
        and not any(isinstance(state.get(key), dict | list) for state in states)
    ]


def _plain(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for each in figures for key in each)
    return [
        key
        for key in keys
        if not any(isinstance(each.get(key), dict | list | tuple) for each in figures)
    ]


def ratios_sheet(results: Results) -> Sheet:
    """Every ratio with its interval."""
    rows = tuple(
        (
            r.meaning,
            r.of,
            r.to,
            f"{r.interval.value:.3f}",
            f"{r.interval.low:.3f} – {r.interval.high:.3f}" if r.interval.known else "–",
            "yes" if r.interval.decides else "no",
        )
        for r in results.ratios
    )
    header = ("ratio", "time of", "by time of", "value", "95 % interval", "decided")
    return Sheet("Ratios within the run", header, rows, words=3)


def facts_sheet(results: Results) -> Sheet:
    """What the benchmark read from its times, one line each."""
    rows = [(name, _cell(value)) for name, value in _flat("", results.facts)]
    return Sheet("Facts", ("fact", "value"), tuple(rows[:MOST_FACTS]))


def settings_sheet(results: Results) -> Sheet:
    rows = tuple((name, _cell(value)) for name, value in _flat("", results.settings))
    return Sheet("Settings", ("setting", "value"), rows)


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
