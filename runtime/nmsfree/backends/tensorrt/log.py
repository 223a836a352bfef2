"""The vendor's log messages: kept for the error that explains them, passed on to `logging`."""

import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_logger = logging.getLogger(__name__)
# Severities of both modules: INTERNAL_ERROR 0, ERROR 1, WARNING 2, INFO 3, VERBOSE 4.
_LEVELS = (logging.ERROR, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
LONGEST_REASON = 300  # characters


@dataclass(frozen=True)
class Message:
    """One line of the vendor's log; `level` is one of `logging`'s."""

    level: int
    text: str


class VendorLog:
    """Takes the messages of one vendor module; safe to call from its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._collectors: list[list[Message]] = []

    def add(self, severity: int, text: str) -> None:
        """Keep a warning or an error for whoever collects, and pass every message to `logging`.

        An error is one there only if nobody collects: who collects will raise it. All else goes
        there for debugging: the vendor's warnings are harmless and read as failure.
        """
        message = Message(_LEVELS[severity], text)
        with self._lock:
            awaited = bool(self._collectors)
            if message.level >= logging.WARNING:  # of the rest a build says thousands
                for collector in self._collectors:
                    collector.append(message)
        shown = message.level if message.level >= logging.ERROR and not awaited else logging.DEBUG
        _logger.log(shown, "%s", text)

    @contextmanager
    def collect(self) -> Iterator[list[Message]]:
        """Gather what is said meanwhile, by whatever thread."""
        messages: list[Message] = []
        with self._lock:
            self._collectors.append(messages)
        try:
            yield messages
        finally:
            with self._lock:
                self._collectors = [c for c in self._collectors if c is not messages]


def make_logger(module: Any, log: VendorLog) -> Any:
    """A logger object of a vendor module that hands everything to `log`."""

    class Logger(module.ILogger):  # type: ignore[misc]  # the module is known at run time only
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            log.add(int(severity), msg)

    return Logger()


def reason(messages: list[Message]) -> str:
    """The first error as one line, without the vendor's source files; "no reason given"."""
    errors = [message.text for message in messages if message.level >= logging.ERROR]
    return shorten(errors[0]) if errors else "no reason given"


def shorten(text: str) -> str:
    """One line of the vendor's, without the places in its own source files."""
    line = " ".join(text.split())
    line = re.sub(r"\[\w+\.(?:cpp|h)::\w+::\d+\]\s*", "", line)  # where it was said
    line = re.sub(r"In \w+ at \S+?:\d+", "", line)
    line = re.sub(r"Error Code \d+: ", "", line)
    line = re.sub(r"\( *\((.*)\)\)", r"(\1)", line)  # what is left of "(In f at x:1 (why))"
    line = " ".join(line.split()).replace(" )", ")")
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 1] + "…"
