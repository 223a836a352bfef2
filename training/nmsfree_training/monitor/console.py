"""A run on the console: bars while it goes on, and one line that stays for each epoch."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from nmsfree.text import shown
from nmsfree_training.monitor.callbacks import EpochEvent, StepEvent, is_loss
from nmsfree_training.monitor.pace import (
    MemoryMeter,
    MemoryUse,
    Pace,
    clock_text,
    duration_text,
    gigabytes_text,
    loss_text,
    number_text,
    rate_text,
)

SHORTEST_BAR = 16  # characters; below it the text beside the bar gets shorter
EVALUATING = "evaluating"  # label of the bar during an evaluation
STEADY = 18  # characters reserved beside the bars, so that they seldom change their length
GAP = "  "  # between two fields


class Status:
    """What is shown now, drawn by rich at the width of the screen.

    Attributes:
        evaluated: (images done, images in all) while an evaluation runs, else None.
        memory: as last measured.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.evaluated: tuple[int, int] | None = None
        self.memory = MemoryUse(0, None, None)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        last, width = self._pace.last, options.max_width - 1  # the last column may wrap
        if last is None:
            return
        yield from self._bars(last, width, options.ascii_only)
        for fields in (self.loss_fields(), self.machine_fields(last)):
            yield Text(join_fields(fields, width), no_wrap=True, overflow="crop")

    def _bars(self, last: StepEvent, width: int, ascii_only: bool) -> list[Text]:
        """The upper bar for the epoch or the evaluation, the lower one for the run."""
        label, done, total, count, rate = self._first_bar(last)
        run_done = last.epoch * last.steps + last.step
        run_total = last.epochs * last.steps
        share = f"{100 * run_done // run_total} %"
        left = clock_text(self._pace.remaining())
        size = max(len(EVALUATING), len(_epoch_label(last)))  # the same in both phases
        long, short = (f"{count}  {rate}", f"{share}  ETA {left}"), (count, left)
        for (upper, lower), least in ((long, STEADY), (short, 0)):
            room = max(0, width - size - max(len(upper), len(lower), least) - 2)
            if room >= SHORTEST_BAR:
                break
        return [
            _bar_line(f"{label:<{size}}", done, total, upper, room, ascii_only),
            _bar_line(f"{'run':<{size}}", run_done, run_total, lower, room, ascii_only),
        ]

    def _first_bar(self, last: StepEvent) -> tuple[str, int, int, str, str]:
        if self.evaluated is not None:
            done, total = self.evaluated
            return EVALUATING, done, total, _count(done, total), "images"
        rate = rate_text(self._pace.steps_per_second)
        return _epoch_label(last), last.step, last.steps, _count(last.step, last.steps), rate

    def loss_fields(self) -> list[tuple[int, str]]:
        """(importance, text): the total, then its parts; the deployed head matters more."""
        losses = self._pace.losses
        fields = [(100, f"loss {loss_text(losses['loss'])}")] if "loss" in losses else []
        for name, value in losses.items():
            if name != "loss":
                keep = 90 if name.startswith("o2o") else 80
                fields.append((keep, f"{name.replace('_', ' ')} {loss_text(value)}"))
        return fields

    def machine_fields(self, last: StepEvent) -> list[tuple[int, str]]:
        """(importance, text): learning rate, images a second, waiting, memory, gradient."""
        pace, memory = self._pace, self.memory
        fields = [
            (90, f"lr {last.learning_rate:.3g}"),
            (70, f"{number_text(pace.images_per_second)} img/s"),
            (80, f"waiting {100 * pace.wait_share:.0f} %"),
        ]
        if memory.gpu is not None and memory.gpu_total is not None:
            used, total = gigabytes_text(memory.gpu), gigabytes_text(memory.gpu_total)
            fields.append((75, f"GPU {used} of {total} GB"))
        fields.append((60, f"RAM {gigabytes_text(memory.ram)} GB"))
        if last.grad_norm is not None:
            fields.append((50, f"grad {number_text(last.grad_norm)}"))
        return fields

    def plain(self) -> str:
        """One line for a log; the parts of the loss are left to the line of the epoch."""
        last, parts = self._pace.last, list[str]()
        if last is not None:
            parts.append(_epoch_label(last))
        if self.evaluated is not None:
            parts.append("evaluating {}/{} images".format(*self.evaluated))
        elif last is not None:
            parts.append(f"step {last.step}/{last.steps}")
            parts.append(rate_text(self._pace.steps_per_second))
        if last is not None:
            parts.append(f"ETA {clock_text(self._pace.remaining())}")
        if last is not None and self.evaluated is None:
            parts += [text for _, text in (*self.loss_fields()[:1], *self.machine_fields(last))]
        return GAP.join(parts)


def _epoch_label(last: StepEvent) -> str:
    return f"epoch {last.epoch + 1}/{last.epochs}"


def _count(done: int, total: int) -> str:
    return f"{done:>{len(str(total))}}/{total}"


def _bar_line(label: str, done: int, total: int, text: str, room: int, ascii_only: bool) -> Text:
    """Label, bar of `room` characters, text.

    Not rich's bar: that one shows on a screen without colours only how much is done, not how
    much there is.
    """
    filled = min(room, room * done // max(total, 1))
    full, rest = ("=", "-") if ascii_only else ("━", "─")
    line = Text(f"{label} ", style="bold", no_wrap=True, overflow="crop")
    line.append(full * filled, style="bar.finished" if done >= total else "bar.complete")
    line.append(rest * (room - filled), style="bar.back")
    return line.append(f" {text}", style="not bold")


def join_fields(fields: list[tuple[int, str]], width: int) -> str:
    """Join texts, in their order, without the least important ones where not all fit.

    Args:
        fields: (importance, text); those of one importance stay or go together.
        width: characters there are.
    """
    kept = list(fields)
    while kept and len(GAP.join(text for _, text in kept)) > width:
        least = min(keep for keep, _ in kept)
        kept = [field for field in kept if field[0] > least]
    return GAP.join(text for _, text in kept)


NOTHING = "-"  # in a column without a value
BEST = "best"  # at the end of a line whose weights are the best so far
LOST = {"skipped": "steps skipped", "left_out": "images left out"}  # after a line
REPEAT = 20  # lines after which the header comes again

Format = Callable[[float], str]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: of the record shown.
        head: its title.
        width: characters, title and values.
        keep: columns of a smaller number are dropped first where not all fit; those of one
            number go together.
        text: how a value is written.
    """

    key: str
    head: str
    width: int
    keep: int
    text: Format


def columns_of(names: list[str]) -> list[Column]:
    """All columns for the losses of this network, from left to right."""
    columns = [Column("loss", "loss", 7, 100, loss_text)]
    parts = [name for name in names if is_loss(name) and name != "loss"]
    # With two heads the one that is not deployed (o2m) matters less.
    lesser = "o2m" if any(name.startswith("o2o") for name in parts) else ""
    for name in parts:
        keep = 10 if lesser and name.startswith(lesser) else 30
        head = name.replace("_", " ")
        columns.append(Column(name, head, max(7, len(head)), keep, loss_text))
    return [
        *columns,
        Column("AP", "AP", 5, 90, _percent),
        Column("AP50", "AP50", 5, 60, _percent),
        Column("seconds", "time", 8, 50, duration_text),
        Column("images_per_second", "img/s", 6, 20, number_text),
    ]


def fit(columns: list[Column], width: int | None) -> list[Column]:
    """Leave out the least important columns until the rest takes `width`; None: keep all."""
    while width is not None and len(columns) > 1 and _width(columns) > width:
        least = min(column.keep for column in columns)
        columns = [column for column in columns if column.keep > least]
    return columns


def _width(columns: list[Column]) -> int:
    return sum(1 + column.width for column in columns)


def _percent(value: float) -> str:
    return f"{value * 100:.1f}"


class EpochTable:
    """Makes the lines; a header comes first, again after some lines, and when columns change."""

    def __init__(self) -> None:
        self._shown: list[Column] = []
        self._lines = 0  # since the header

    def lines(self, event: EpochEvent, epochs: int, width: int | None) -> list[str]:
        """Return the lines to print for an epoch: mostly one, two with the header.

        Args:
            event: the epoch.
            epochs: of the whole run.
            width: characters of the screen; None: unlimited.
        """
        count = f"{int(event.record['epoch'])}/{epochs}"
        first = max(len("epoch"), 2 * len(str(epochs)) + 1)
        room = None if width is None else width - first - 1 - len(BEST)
        columns = fit(columns_of(list(event.record)), room)
        made = []
        if columns != self._shown or self._lines == REPEAT:
            self._shown, self._lines = columns, 0
            made.append(
                "".join([f"{'epoch':>{first}}", *(f" {c.head:>{c.width}}" for c in columns)])
            )
        cells = [_cell(column, event.record) for column in columns]
        # Without an evaluation the last weights pass for the best: not worth a word.
        mark = f" {BEST}" if event.best and "AP" in event.record else ""
        for key, words in LOST.items():
            if key in event.record:
                mark += f"; {int(event.record[key])} {words}"
        self._lines += 1
        return [*made, "".join([f"{count:>{first}}", *cells, mark])]


def _cell(column: Column, record: dict[str, float]) -> str:
    value = record.get(column.key)
    text = NOTHING if value is None else column.text(value)
    return f" {text:>{column.width}}"


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
