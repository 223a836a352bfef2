"""Numbers as people read them: durations, rates, losses, bytes."""

import math

HOUR, DAY = 3600, 86400  # seconds


def clock_text(seconds: float) -> str:
    """Remaining time: "4:07", "1:02:03" from an hour on, "2 d 03 h" from two days on."""
    whole = max(0, round(seconds))
    if whole >= 2 * DAY:
        return f"{whole // DAY} d {whole % DAY // HOUR:02d} h"
    minutes, rest = divmod(whole, 60)
    if whole < HOUR:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def duration_text(seconds: float) -> str:
    """Time that something took: "8.4 s" below a minute, then as `clock_text`."""
    return f"{seconds:.1f} s" if seconds < 59.95 else clock_text(seconds)


def rate_text(per_second: float) -> str:
    """Steps in a second, "4.2 it/s", or seconds of a step where one takes longer, "3.1 s/it"."""
    if 0 < per_second < 1:
        return f"{number_text(1 / per_second)} s/it"
    return f"{number_text(per_second)} it/s"


def number_text(value: float) -> str:
    """About three digits: "0.31", "4.2", "67"."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 20 else f"{value:.{1 if abs(value) >= 1 else 2}f}"


def loss_text(value: float) -> str:
    """Three decimals, so that columns align; large losses in powers of ten."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.1e}"


def gigabytes_text(count: int) -> str:
    """Bytes as "1.4" gigabytes."""
    return f"{count / 1e9:.1f}"
