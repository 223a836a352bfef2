"""A panel of the picture of `nmsfree bench nms`: what NMS and the filter take of a call."""

from matplotlib.axes import Axes

from nmsfree_benchmarks.common.plot_style import INK, SERIES, bare_axes
from nmsfree_benchmarks.nms.price import key, of_kind, price_of
from nmsfree_benchmarks.record.intervals import Interval
from nmsfree_benchmarks.record.records import Results

FLOORS = (SERIES[1], SERIES[4], SERIES[3])  # colours, the lowest floor first
BESIDE = 0.34  # of the way to the next number of objects: right of the shares of NMS


def floors_of(results: Results, what: str) -> list[float]:
    """Return the score floors at which whole calls were timed, lowest first."""
    found = of_kind(results, measured="call", what=what)
    return sorted({float(r.parameters["floor"]) for r in found})


def draw_shares(panel: Axes, results: Results) -> None:
    """Draw shares of the call with their intervals, over objects and floors."""
    wholes = of_kind(results, measured="call", what="with NMS")
    objects = sorted({r.parameters["objects"] for r in wholes})
    floors = floors_of(results, "with NMS")
    told_apart = False
    for i, (floor, colour) in enumerate(zip(floors, FLOORS, strict=False)):
        for record in (r for r in wholes if r.parameters["floor"] == floor):
            x = objects.index(record.parameters["objects"]) + 0.16 * (i - (len(floors) - 1) / 2)
            price = price_of(results, record)
            if price is not None:
                told_apart = True
                _mark(panel, x, price[1], "o", colour)
            tail = results.facts.get(f"nms_tail_share_of_call_{key(record)}")
            if tail is not None:
                at = 100 * Interval.from_json(tail).value
                panel.plot(x + 0.06, at, "D", color=colour, markersize=4, mfc="white")
    for place, count in enumerate(objects):
        share = results.facts.get(f"filter_share_of_call_{count}")
        if share is not None:  # older results do not have it
            _mark(panel, place + BESIDE * told_apart, Interval.from_json(share), "s", SERIES[0])
    panel.axhline(0, color=INK, linewidth=0.8)
    panel.set_xticks(range(len(objects)), [str(n) for n in objects])
    panel.set_xlabel("objects in the scene", fontsize=9)
    panel.set_ylabel("% of the call, 95 % interval")
    panel.set_title(_title(results, told_apart), loc="left", fontsize=10)
    bare_axes(panel, "y")


def _mark(panel: Axes, x: float, share: Interval, marker: str, colour: str) -> None:
    if share.known:
        panel.plot([x, x], [100 * share.low, 100 * share.high], color=colour, linewidth=1.4)
    panel.plot(x, 100 * share.value, marker, color=colour, markersize=5)


def _title(results: Results, told_apart: bool) -> str:
    """What the marks stand for, of those that there are."""
    if not told_apart:
        return "What the filter takes of the NMS-free call"
    on_host = any(fact.startswith("host_nms_") for fact in results.facts)
    nms = "● on the host" if on_host else "● with − without, ◇ alone"
    return f"NMS: {nms}; ■ the filter in its place"
