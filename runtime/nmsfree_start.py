"""The first lines of the `nmsfree` command: signals have an answer before the slow imports."""

import os
import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Import the command line and run it."""
    answer_with(leave)
    from nmsfree.cli.main import main as run

    run()


def answer_with(handler: "signal._HANDLER") -> None:
    """Handle Ctrl-C and SIGTERM, where whoever started this process did not ignore them."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def leave(number: int, _: object) -> None:
    """End at once: nothing is there to tidy up yet, or somebody asked twice."""
    os._exit(128 + number)
