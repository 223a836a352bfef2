"""The benchmark command; the measurement follows."""


def bench() -> None:
    """Bench."""
