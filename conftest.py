"""Marks as slow the files whose tests all wait for exports, trainings or measurements.

Files with slow tests run first, so that at the end no process waits for a long one of another.
"""

import signal
from collections.abc import Iterator

import pytest

SLOW = {
    "benchmarks": "eager frontier fuzz jitter kills memory nms on_device overhead roofline suite"
    " throughput training",
    "export": "auto_mixed bundle certificate deploy engine examples inputs int8 lowered parity"
    " precision verify",
    "runtime": "digits",
    "training": "continue distributed published_eval resume study_runner train_cli",
}


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        _, room, *rest = item.path.stem.split("_")
        if "_".join(rest) in SLOW.get(room, "").split():
            item.add_marker("slow")
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def _same_signals() -> Iterator[None]:
    """The command line's `main` leaves handlers that end the process at once, without a word.

    xdist sends its worker SIGINT when it lost the connection or is slow to end.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
