"""Names at the right end of lines, in place of a legend, none over another."""

from collections.abc import Sequence
from typing import NamedTuple


class End(NamedTuple):
    """Where a line ends, what it is called, and its colour."""

    value: float
    text: str
    colour: str


def spread(ends: Sequence[End], apart: float, top: float) -> list[tuple[float, End]]:
    """Return a place for each label: near its line, `apart` from the others, at most `top`.

    From the lowest up, each moves up as far as it must; then from the highest, each that is above
    `top` or too near to the next moves down.
    """
    ordered = sorted(ends)
    places: list[float] = []
    for end in ordered:
        places.append(max(end.value, places[-1] + apart) if places else end.value)
    for i in reversed(range(len(places))):
        most = places[i + 1] - apart if i + 1 < len(places) else top
        places[i] = min(places[i], most)
    return list(zip(places, ordered, strict=True))
