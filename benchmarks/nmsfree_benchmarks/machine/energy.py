"""Energy of one picture, from the GPU's own counter."""

import time
from collections.abc import Callable, Sequence
from itertools import cycle

from nmsfree_benchmarks.machine.gpu import gpu_state
from nmsfree_benchmarks.machine.measure import Call, Image

SECONDS = 2.0  # the counter moves every 20 to 100 ms: long enough for 5 % of that

Counter = Callable[[], float | None]


def gpu_joules() -> float | None:
    """Joules since the driver was loaded; None where the GPU has no counter."""
    return gpu_state().energy_j


def joules_per_image(
    call: Call, pictures: Sequence[Image], counter: Counter = gpu_joules, seconds: float = SECONDS
) -> float | None:
    """Run a call again and again, by itself, and divide what the counter says by the pictures.

    The whole board counts, idle power and other programs included.

    Args:
        call: takes BGR uint8 [h, w, 3] and returns when its result is there.
        pictures: shown in turn.
        counter: in joules.
        seconds: at least.

    Returns:
        Joules, or None where nothing counts them.
    """
    before = counter()
    if before is None:
        return None
    end = time.monotonic() + seconds
    done, shown = 0, cycle(pictures)
    while done == 0 or time.monotonic() < end:
        call(next(shown))
        done += 1
    after = counter()
    return None if after is None else (after - before) / done
