"""A run on the console: bars while it goes on, and one line that stays for each epoch."""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from nmsfree.text import shown
from nmsfree_training.console_status import Status
from nmsfree_training.epoch_table import BEST, EpochTable
from nmsfree_training.events import EpochEvent, StepEvent
from nmsfree_training.memory import MemoryMeter
from nmsfree_training.pace import Pace

REFRESH = 0.5  # seconds between two drawings of the bars; one takes about 4 ms
WAIT_SHARE = 0.3  # of the time spent waiting for data: above it loading is the limit
WAIT_STEPS, WAIT_SECONDS = 30, 20.0  # watched before this is said


class ConsoleWatcher:
    """Shows a run on a console, in whatever form it can take.

    On a terminal: bars of the epoch and of the whole run, steps a second, remaining time, losses,
    learning rate, memory, and the share of time spent waiting for data; above them a table with
    one line for each epoch. What does not fit into the width is left out, the least important
    first. Elsewhere (a file, a CI log): the table, and one line of the present state every
    `log_every` seconds, without control characters.

    All drawing is done in the thread that trains: a second one would have its locks copied into
    the loader's forked workers.

    Args:
        console: where to, usually on stderr.
        live: draw bars; None: if the console is a terminal. (rich takes a log for a terminal
            when FORCE_COLOR is set, so the file itself is asked.)
        log_every: seconds between two lines of the state where there are no bars.
        clock: seconds from some moment on.
    """

    def __init__(
        self,
        console: Console,
        *,
        live: bool | None = None,
        log_every: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._clock = console, clock
        self._is_live = _is_screen(console) if live is None else live
        self._every = REFRESH if self._is_live else log_every
        self._pace, self._table = Pace(clock), EpochTable()
        self._status = Status(self._pace)
        self._memory = MemoryMeter(clock=clock)
        self._live: Live | None = None
        self._shown = clock() if not self._is_live else -float("inf")
        self._hinted = False

    def on_step(self, event: StepEvent) -> None:
        """Move the bars on."""
        self._pace.step(event)
        self._status.evaluated = None
        self._show()
        share = self._pace.steady_wait_share(WAIT_STEPS, WAIT_SECONDS)
        if share > WAIT_SHARE and not self._hinted:
            self._hinted = True
            self.message(
                f"loading images is the limit: {100 * share:.0f} % of the training time is spent "
                "waiting for them; more --workers would help"
            )

    def on_epoch(self, event: EpochEvent) -> None:
        """Add a line to the table."""
        self._status.evaluated = None
        last = self._pace.last
        epochs = last.epochs if last is not None else int(event.record["epoch"])
        width = self._console.width - 1 if self._is_live else None
        for line in self._table.lines(event, epochs, width):
            text = Text(line)
            text.highlight_regex(rf"{BEST}$", "bold green")
            if line.lstrip().startswith("epoch"):
                text.stylize("dim")
            self._console.print(text, soft_wrap=True)
        self._show(at_once=self._is_live)

    def on_evaluate(self, done: int, total: int) -> None:
        """Move the bar of the evaluation on."""
        self._status.evaluated = (done, total)
        self._show(at_once=self._is_live and done == total)

    def message(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(shown(text, 2000), soft_wrap=True, markup=False, highlight=False)

    def close(self) -> None:
        """Take the bars off the screen; the table stays."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, at_once: bool = False) -> None:
        """Draw the state, or log it, if it is time."""
        now = self._clock()
        if not at_once and now - self._shown < self._every:
            return
        self._shown = now
        self._status.memory = self._memory.read()
        if not self._is_live:
            self.message(self._status.plain())
            return
        if self._live is None:
            self._live = Live(
                self._status,
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),  # a pipe must get what is printed for it
            )
            self._live.start()
        self._live.refresh()


def _is_screen(console: Console) -> bool:
    return console.is_interactive and console.file.isatty()
