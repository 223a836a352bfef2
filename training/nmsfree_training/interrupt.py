"""Ctrl-C and SIGTERM ask a run to stop at the next step, where it can save."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody asked the run to stop, and the exit status that answers the signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_status(self) -> int:
        return 128 + (self.signal or signal.SIGINT)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:  # asked twice: do not wait for the step
            if number == signal.SIGTERM:
                sys.exit(128 + number)
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request, until the block ends.

    Raises:
        KeyboardInterrupt, SystemExit: it is the second SIGINT, or SIGTERM.
    """
    request = StopRequest()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request._take) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
