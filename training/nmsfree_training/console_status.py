"""The lines that move below the table: bars of the epoch and of the run, losses, machine."""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from nmsfree_training.events import StepEvent
from nmsfree_training.memory import MemoryUse
from nmsfree_training.pace import Pace
from nmsfree_training.units import (
    clock_text,
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
