"""A run on the console: bars while it goes on, and one line that stays for each epoch."""

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import psutil
import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from nmsfree.text import shown
from nmsfree_training.monitor.callbacks import (
    Callback,
    Clock,
    EpochEvent,
    Pace,
    StepEvent,
    clock_text,
    duration_text,
    is_loss,
    loss_text,
    number_text,
    rate_text,
)

# Memory.

MEASURED = 10.0  # seconds between two measurements: listing a large server's processes takes long


class MemoryUse(NamedTuple):
    """In bytes."""

    # Of this process and its children. Pages that several of them share count once where the system
    # tells (Linux), and in each of them elsewhere.
    ram: int
    # gpu, gpu_total: reserved by this process on its present CUDA device, and all of that device;
    # None without one.
    gpu: int | None = None
    gpu_total: int | None = None


def measure_memory() -> MemoryUse:
    """Measure it now."""
    process = psutil.Process()
    total = 0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):  # a worker may end meanwhile
            total += _ram(one)
    # Asking for the device would initialise CUDA in a process that trains on the CPU.
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return MemoryUse(total)
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return MemoryUse(total, torch.cuda.memory_reserved(), int(properties.total_memory))


def _ram(process: psutil.Process) -> int:
    if psutil.LINUX:
        with suppress(psutil.AccessDenied):  # some containers hide how pages are shared
            return int(process.memory_full_info().pss)
    return int(process.memory_info().rss)


# The state: two bars, losses, machine.

SHORTEST_BAR = 16  # characters; below it the text beside the bar gets shorter
EVALUATING = "evaluating"  # label of the bar during an evaluation
STEADY = 18  # characters reserved beside the bars, so that they seldom change their length
GAP = "  "  # between two fields

Field = tuple[int, str]  # importance, text


class Status:
    """What is shown now, drawn by rich at the width of the screen.

    Attributes:
        evaluated: (images done, images in all) while an evaluation runs, else None.
        memory: as last measured.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.evaluated: tuple[int, int] | None = None
        self.memory = MemoryUse(0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        last, width = self._pace.last, options.max_width - 1  # the last column may wrap
        if last is None:
            return
        yield from self._bars(last, width, options.ascii_only)
        for fields in (self.loss_fields(), self.machine_fields(last)):
            yield Text(join_fields(fields, width), no_wrap=True, overflow="crop")

    def _bars(self, last: StepEvent, width: int, ascii_only: bool) -> list[Text]:
        """The upper bar for the epoch or the evaluation, the lower one for the run."""
        label, (done, total), rate = _epoch_label(last), (last.step, last.steps), "images"
        size = max(len(EVALUATING), len(label))  # the same in both phases
        if self.evaluated is not None:
            label, (done, total) = EVALUATING, self.evaluated
        else:
            rate = rate_text(self._pace.steps_per_second)
        count = f"{done:>{len(str(total))}}/{total}"
        run_done, run_total = last.epoch * last.steps + last.step, last.epochs * last.steps
        share = f"{100 * run_done // run_total} %"
        left = clock_text(self._pace.remaining())
        long, short = (f"{count}  {rate}", f"{share}  ETA {left}"), (count, left)
        for (upper, lower), least in ((long, STEADY), (short, 0)):
            room = max(0, width - size - max(len(upper), len(lower), least) - 2)
            if room >= SHORTEST_BAR:
                break
        return [
            _bar_line(f"{label:<{size}}", done, total, upper, room, ascii_only),
            _bar_line(f"{'run':<{size}}", run_done, run_total, lower, room, ascii_only),
        ]

    def loss_fields(self) -> list[Field]:
        """The total, then its parts; the deployed head matters more."""
        return [
            (
                100 if name == "loss" else 90 if name.startswith("o2o") else 80,
                f"{name.replace('_', ' ')} {loss_text(value)}",
            )
            for name, value in self._pace.losses.items()
        ]

    def machine_fields(self, last: StepEvent) -> list[Field]:
        """Learning rate, images a second, waiting, memory, gradient."""
        pace, (ram, gpu, gpu_total) = self._pace, self.memory
        fields = [
            (90, f"lr {last.learning_rate:.3g}"),
            (70, f"{number_text(pace.images_per_second)} img/s"),
            (80, f"waiting {100 * pace.wait_share:.0f} %"),
        ]
        if gpu is not None and gpu_total is not None:
            fields.append((75, f"GPU {gpu / 1e9:.1f} of {gpu_total / 1e9:.1f} GB"))
        fields.append((60, f"RAM {ram / 1e9:.1f} GB"))
        if last.grad_norm is not None:
            fields.append((50, f"grad {number_text(last.grad_norm)}"))
        return fields

    def plain(self) -> str:
        """One line for a log; the parts of the loss are left to the line of the epoch."""
        last = self._pace.last
        parts = [] if last is None else [_epoch_label(last)]
        if self.evaluated is not None:
            parts.append("evaluating {}/{} images".format(*self.evaluated))
        elif last is not None:
            parts += [f"step {last.step}/{last.steps}", rate_text(self._pace.steps_per_second)]
        if last is not None:
            parts.append(f"ETA {clock_text(self._pace.remaining())}")
            if self.evaluated is None:
                fields = (*self.loss_fields()[:1], *self.machine_fields(last))
                parts += [text for _, text in fields]
        return GAP.join(parts)


def _epoch_label(last: StepEvent) -> str:
    return f"epoch {last.epoch + 1}/{last.epochs}"


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


def join_fields(fields: list[Field], width: int) -> str:
    """Join texts, in their order, without the least important ones where not all fit.

    Those of one importance stay or go together.
    """
    while fields and len(GAP.join(text for _, text in fields)) > width:
        least = min(keep for keep, _ in fields)
        fields = [field for field in fields if field[0] > least]
    return GAP.join(text for _, text in fields)


# The table: a line for each epoch.

BEST = "best"  # at the end of a line whose weights are the best so far
LOST = {"skipped": "steps skipped", "left_out": "images left out"}  # after a line
REPEAT = 20  # lines after which the header comes again


class Column(NamedTuple):
    """A column; those of a smaller `keep` are dropped first where not all fit, equals together."""

    key: str  # of the record shown
    head: str
    width: int  # characters, title and values
    keep: int
    text: Callable[[float], str]


def columns_of(names: list[str]) -> list[Column]:
    """All columns for the losses of this network, from left to right."""
    columns = [Column("loss", "loss", 7, 100, loss_text)]
    parts = [name for name in names if is_loss(name) and name != "loss"]
    # With two heads the one that is not deployed (o2m) matters less.
    lesser = "o2m" if any(name.startswith("o2o") for name in parts) else "-"
    for name in parts:
        keep, head = 10 if name.startswith(lesser) else 30, name.replace("_", " ")
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
    while width is not None and len(columns) > 1 and sum(1 + c.width for c in columns) > width:
        least = min(column.keep for column in columns)
        columns = [column for column in columns if column.keep > least]
    return columns


def _percent(value: float) -> str:
    return f"{value * 100:.1f}"


class EpochTable:
    """Makes the lines; a header comes first, again after some lines, and when columns change."""

    def __init__(self) -> None:
        self._shown: list[Column] = []
        self._lines = 0  # since the header

    def lines(self, event: EpochEvent, epochs: int, width: int | None) -> list[str]:
        """Return the lines for an epoch of so many: mostly one, two with the header.

        `width` is that of the screen in characters; None: unlimited.
        """
        record = event.record
        first = max(len("epoch"), 2 * len(str(epochs)) + 1)
        room = None if width is None else width - first - 1 - len(BEST)
        columns, made = fit(columns_of(list(record)), room), []
        if columns != self._shown or self._lines == REPEAT:
            self._shown, self._lines = columns, 0
            heads = (f" {c.head:>{c.width}}" for c in columns)
            made.append("".join([f"{'epoch':>{first}}", *heads]))
        cells = (
            f" {c.text(record[c.key]) if c.key in record else '-':>{c.width}}" for c in columns
        )
        # Without an evaluation the last weights pass for the best: not worth a word.
        mark = f" {BEST}" if event.best and "AP" in record else ""
        mark += "".join(f"; {int(record[k])} {words}" for k, words in LOST.items() if k in record)
        self._lines += 1
        count = f"{int(record['epoch'])}/{epochs}"
        return [*made, "".join([f"{count:>{first}}", *cells, mark])]


REFRESH = 0.5  # seconds between two drawings of the bars; one takes about 4 ms
WAIT_SHARE = 0.3  # of the time spent waiting for data: above it loading is the limit
WAIT_STEPS, WAIT_SECONDS = 30, 20.0  # watched before this is said


class ConsoleCallback(Callback):
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
    """

    def __init__(
        self,
        console: Console,
        *,
        live: bool | None = None,
        log_every: float = 60.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._console, self._clock = console, clock
        screen = console.is_interactive and console.file.isatty()
        self._is_live = screen if live is None else live
        self._every = REFRESH if self._is_live else log_every
        self._pace, self._table = Pace(clock), EpochTable()
        self._status = Status(self._pace)
        self._live: Live | None = None
        self._measured = -math.inf
        self._shown = -math.inf if self._is_live else clock()
        self._hinted = False

    def on_step(self, event: StepEvent) -> None:
        """Move the bars on."""
        self._pace.step(event)
        self._status.evaluated = None
        self._show()
        share = self._pace.steady_wait_share(WAIT_STEPS, WAIT_SECONDS)
        if share > WAIT_SHARE and not self._hinted:
            self._hinted = True
            self.log(
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

    def log(self, text: str) -> None:
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
        if now >= self._measured + MEASURED:
            self._status.memory, self._measured = measure_memory(), now
        if not self._is_live:
            self.log(self._status.plain())
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
