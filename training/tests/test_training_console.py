"""What a user sees of a run on the console, on a terminal of any width and in a log."""

import contextlib
import io
import mmap
import os
import re
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from rich.console import Console

from nmsfree_training.monitor.callbacks import (
    Callback,
    Callbacks,
    EpochEvent,
    Pace,
    RunningMean,
    StepEvent,
    clock_text,
    duration_text,
    is_loss,
    is_metric,
    loss_text,
    number_text,
    rate_text,
)
from nmsfree_training.monitor.console import (
    ConsoleCallback,
    MemoryUse,
    Status,
    columns_of,
    fit,
    join_fields,
    measure_memory,
)

LOSSES = {"loss": 2.5, "o2m_cls": 0.31, "o2m_box": 0.32, "o2o_cls": 0.41, "o2o_box": 0.42}
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")  # all but the line feed
STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Clock:
    """Seconds that a test moves on."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def step_event(
    epoch: int, step: int, *, steps: int = 10, epochs: int = 4, **other: object
) -> StepEvent:
    values: dict[str, object] = {
        "losses": LOSSES,
        "learning_rate": 0.002,
        "images": 8,
        "wait": 0.1,
        "seconds": 0.5,
        "grad_norm": 3.2,
    }
    iteration = epoch * steps + step
    return StepEvent(epoch, epochs, step, steps, iteration, **(values | other))  # type: ignore[arg-type]


def epoch_event(epoch: int, *, best: bool = False, **metrics: float) -> EpochEvent:
    record = {"epoch": epoch, **LOSSES, "lr": 0.002, "seconds": 83.0, "images_per_second": 96.4}
    return EpochEvent({**record, "wait_share": 0.2, **metrics}, (), best)


def play(
    callback: Callback,
    clock: Clock,
    *,
    start: tuple[int, int] = (0, 1),
    end: tuple[int, int] = (3, 10),
    gap: float = 0.0,
    **step: object,
) -> None:
    """Tell a callback a run of 4 epochs of 10 steps, of which odd epochs are evaluated."""
    for epoch, number in product(range(4), range(1, 11)):
        if not start <= (epoch, number) <= end:
            continue
        event = step_event(epoch, number, **step)
        clock.now += event.seconds
        callback.on_step(event)
        if number == 10:
            if epoch % 2:
                callback.on_evaluate(3, 6)
                callback.on_evaluate(6, 6)
            clock.now += gap
            scores = {"AP": 0.1 * epoch, "AP50": 0.2 * epoch} if epoch % 2 else {}
            callback.on_epoch(epoch_event(epoch + 1, best=bool(scores), **scores))


def sent_by(play_it: Callable[[ConsoleCallback, Clock], None], width: int, **options: Any) -> str:
    """What a console of this width was sent."""
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, width=width, force_terminal=options.get("live"), color_system=None)
    callback = ConsoleCallback(console, clock=clock, **options)
    play_it(callback, clock)
    callback.close()
    return file.getvalue()


def live(width: int, **played: Any) -> str:
    """What a terminal was sent of a run."""
    return sent_by(lambda w, c: play(w, c, **played), width, live=True)


def log(width: int, log_every: float = 1e9, **played: Any) -> str:
    return sent_by(lambda w, c: play(w, c, **played), width, live=False, log_every=log_every)


def table_of(sent: str) -> list[str]:
    """The lines that begin with an epoch's number, or with the header of that column."""
    lines = STYLE.sub("", sent).replace("\r", "\n").splitlines()
    return [line for line in lines if re.match(r" *(epoch +loss|\d+/4 )", line)]


def bars_of(sent: str) -> list[str]:
    """The four lines that were drawn last."""
    lines = [line for line in STYLE.sub("", sent).replace("\r", "\n").splitlines() if line]
    last = max(i for i, line in enumerate(lines) if line.startswith("run"))
    return lines[last - 1 : last + 3]


def screen_of(sent: str) -> list[str]:
    """The lines that a terminal ends up with: cursor up, erase line, return, line feed."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", sent):
        if token == "\r":
            column = 0
        elif token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token.endswith("A") and token.startswith("\x1b"):
            row -= int(token[2:-1])
        elif token == "\x1b[2K":
            lines[row] = ""
        elif not token.startswith("\x1b"):
            old = lines[row].ljust(column)
            lines[row] = old[:column] + token + old[column + len(token) :]
            column += len(token)
    return lines


# Terminals


@pytest.mark.parametrize("width", [60, 80, 120])
def test_terminal_shows_where_the_run_is(width: int) -> None:
    sent = live(width, end=(2, 5))
    upper, lower, losses, machine = bars_of(sent)
    assert upper.startswith("epoch 3/4") and "5/10" in upper and "2.0 it/s" in upper
    # 15 steps of half a second are left; there was nothing between the epochs.
    assert lower.startswith("run") and "62 %" in lower and lower.endswith("ETA 0:08")
    assert losses.startswith("loss 2.500") and "o2o cls 0.410" in losses
    assert machine.startswith("lr 0.002") and "waiting 20 %" in machine and "RAM" in machine
    assert upper.index("━") == lower.index("━")  # the bars stand below each other
    for line, share in ((upper, 0.5), (lower, 25 / 40)):
        full, rest = line.count("━"), line.count("─")
        assert full == int(share * (full + rest)) and full + rest >= 16


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    sent = live(width, gap=7.0)
    lines = STYLE.sub("", sent).replace("\r", "\n").splitlines()
    assert max(len(line) for line in lines) <= width


def test_narrow_terminal_drops_the_less_important() -> None:
    wide, narrow = (" ".join(table_of(live(width))[0].split()) for width in (120, 60))
    assert wide == "epoch loss o2m cls o2m box o2o cls o2o box AP AP50 time img/s"
    assert narrow == "epoch loss o2o cls o2o box AP AP50 time"


def test_epoch_lines_align_and_mark_the_best() -> None:
    for sent in (live(120), log(120)):
        header, *lines = table_of(sent)
        assert [line.split()[0] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
        assert [line.endswith(" best") for line in lines] == [False, True, False, True]
        assert "10.0  20.0" in lines[1] and "-     -" in lines[0]
        for title, value in (("AP50", "20.0"), ("time", "1:23"), ("img/s", "96"), ("AP", "10.0")):
            end = re.search(rf" {title}\b", header).end()
            assert lines[1].index(value) + len(value) == end, title


def test_without_evaluation_nothing_is_the_best() -> None:
    sent = sent_by(lambda w, _: w.on_epoch(epoch_event(1, best=True)), 80, live=False)
    assert "best" not in sent


def test_evaluation_has_a_bar() -> None:
    def until_evaluation(callback: ConsoleCallback, clock: Clock) -> None:
        play(callback, clock, end=(0, 10))
        clock.now += 1
        callback.on_evaluate(2, 8)

    upper, lower, *_ = bars_of(sent_by(until_evaluation, 80, live=True))
    assert upper.startswith("evaluating") and "2/8" in upper
    assert lower.startswith("run") and "25 %" in lower


def test_resumed_run_starts_where_it_was() -> None:
    sent = live(80, start=(3, 1), end=(3, 2))
    upper, lower, *_ = bars_of(sent)
    assert upper.startswith("epoch 4/4") and "2/10" in upper
    assert "80 %" in lower and "ETA 0:04" in lower  # 8 steps of half a second


def test_bars_leave_the_screen_and_the_table_stays() -> None:
    sent = live(80)
    shown = [line for line in screen_of(sent) if line.strip()]
    assert [line.split()[0] for line in shown] == ["epoch", "1/4", "2/4", "3/4", "4/4"]
    assert "\x1b[?25h" in sent[sent.rindex("\x1b[?25l") :]  # the cursor is back


def test_screen_without_unicode() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    callback = ConsoleCallback(Console(file=file, width=80, force_terminal=True), live=True)
    play(callback, Clock(), end=(0, 5))
    callback.close()
    file.flush()
    sent = file.buffer.getvalue()
    assert b"===" in sent and b"---" in sent


def test_gpu_memory_matters_more_than_ram() -> None:
    status = Status(Pace())
    status.memory = MemoryUse(5_300_000_000, 12_400_000_000, 24_000_000_000)
    fields = status.machine_fields(step_event(0, 1))
    assert "GPU 12.4 of 24.0 GB" in join_fields(fields, 120)
    assert "RAM 5.3 GB" in join_fields(fields, 120)
    narrow = join_fields(fields, 60)
    assert "GPU" in narrow and "RAM" not in narrow


# Logs


@pytest.mark.parametrize("width", [60, 80, 120])
def test_log_has_a_plain_line_for_each_epoch(width: int) -> None:
    sent = log(width)
    assert not CONTROL.search(sent)
    assert len(sent.splitlines()) == 5  # a header and four epochs, whatever the width
    assert "o2m box" in sent and "img/s" in sent


def test_long_epochs_are_logged_now_and_then() -> None:
    sent = log(80, 60.0, end=(0, 10), seconds=20.0)
    lines = sent.splitlines()
    assert not CONTROL.search(sent)
    assert [line.split("  ")[1] for line in lines[:3]] == ["step 3/10", "step 6/10", "step 9/10"]
    assert "epoch 1/4" in lines[0] and "loss 2.500" in lines[0] and "20 s/it" in lines[0]
    assert "ETA 12:20" in lines[0]  # 37 steps of 20 s


def test_long_evaluation_is_logged() -> None:
    def evaluate(callback: ConsoleCallback, clock: Clock) -> None:
        for done in range(10):
            clock.now += 30
            callback.on_evaluate(done, 10)

    lines = sent_by(evaluate, 80, live=False, log_every=60.0).splitlines()
    assert lines[0] == "evaluating 1/10 images" and len(lines) == 5


def test_message_is_printed_as_it_is() -> None:
    text = "[red]left out[/red]: " + "a/very/long/path/" * 10
    for screen in (True, False):
        assert text in sent_by(lambda w, _: w.log(text), 60, live=screen)


def test_force_color_does_not_make_a_log_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file, clock = io.StringIO(), Clock()
    callback = ConsoleCallback(Console(file=file), clock=clock)
    play(callback, clock)
    callback.close()
    assert "\x1b[?25l" not in file.getvalue() and "\r" not in file.getvalue()


def everything_sent(master: int) -> bytes:
    """What a terminal received, whose other end is closed: one read may give only the beginning."""
    parts = []
    with contextlib.suppress(OSError):  # EIO is how Linux says that the other end is closed
        while part := os.read(master, 100_000):
            parts.append(part)
    return b"".join(parts)


def test_terminal_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    pty = pytest.importorskip("pty")
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    master, slave = pty.openpty()
    clock = Clock()
    with os.fdopen(slave, "w", encoding="utf-8") as screen:
        callback = ConsoleCallback(Console(file=screen), clock=clock)
        play(callback, clock, end=(0, 2))
        callback.close()
    sent = everything_sent(master).decode()
    os.close(master)
    assert "━" in sent or "─" in sent


# Waiting for data


def test_slow_loading_is_said_once() -> None:
    sent = log(80, seconds=1.0, wait=0.45)
    assert sent.count("--workers") == 1 and "45 %" in sent
    assert "--workers" not in log(80, seconds=1.0, wait=0.2)  # the network is the limit


def test_start_of_workers_does_not_count_as_waiting() -> None:
    pace = Pace(Clock())
    for epoch, number in product(range(4), range(1, 11)):
        wait, seconds = (9.0, 10.0) if number == 1 else (0.1, 1.0)
        pace.step(step_event(epoch, number, wait=wait, seconds=seconds))
    assert pace.steady_wait_share(30, 20.0) == pytest.approx(0.1)
    assert pace.steady_wait_share(37, 20.0) == 0.0  # 36 were counted
    assert pace.steady_wait_share(30, 37.0) == 0.0


# Pace


def test_remaining_time_knows_evaluations() -> None:
    clock, pace = Clock(), Pace()
    pace = Pace(clock)
    for epoch in range(2):
        for number in range(1, 11):
            clock.now += 0.5
            pace.step(step_event(epoch, number))
        if epoch == 0:
            assert pace.remaining() == pytest.approx(30 * 0.5)  # no evaluation was seen yet
            clock.now += 7.0
    # 20 steps, and what follows this and the two other epochs.
    assert pace.remaining() == pytest.approx(20 * 0.5 + 3 * 7.0)
    clock.now += 3.0  # of the present evaluation
    assert pace.remaining() == pytest.approx(20 * 0.5 + 2 * 7.0 + 4.0)
    clock.now += 100.0  # it takes longer than the one before
    assert pace.remaining() == pytest.approx(20 * 0.5 + 2 * 7.0)


def test_remaining_time_of_a_resumed_run_is_that_of_its_own_steps() -> None:
    clock = Clock()
    pace = Pace(clock)
    for number in (6, 7, 8):
        clock.now += 2.0
        pace.step(step_event(2, number, seconds=2.0))
    assert pace.remaining() == pytest.approx(12 * 2.0)
    assert pace.steps_per_second == pytest.approx(0.5)
    assert pace.images_per_second == pytest.approx(4.0)


def test_running_mean_forgets_the_first_step_and_follows_a_change() -> None:
    mean = RunningMean(10)
    mean.add(60.0)
    assert mean.value == 60.0
    for value in (1.0, 3.0, 2.0):
        mean.add(value)
    assert mean.value == pytest.approx(2.0)
    for value in [1.0] * 50 + [3.0] * 50:
        mean.add(value)
    assert mean.value == pytest.approx(3.0, abs=0.02)


def test_pace_without_steps() -> None:
    pace = Pace()
    assert (pace.remaining(), pace.steps_per_second, pace.wait_share) == (0.0, 0.0, 0.0)


# Parts


def test_all_columns_are_kept_without_a_limit() -> None:
    columns = columns_of(list(epoch_event(1).record))
    assert fit(columns, None) == columns
    for width in range(10, 100):
        shown = fit(columns, width)
        assert sum(1 + c.width for c in shown) <= width or len(shown) == 1
        assert [c for c in columns if c in shown] == shown  # the order stays


def test_single_head_keeps_its_parts_longer_than_the_speed() -> None:
    columns = columns_of(["loss", "o2m_cls", "o2m_box"])
    kept = {c.key for c in fit(columns, sum(1 + c.width for c in columns) - 1)}
    assert "o2m_cls" in kept and "images_per_second" not in kept


@pytest.mark.parametrize(
    ("text", "values", "shown"),
    [
        (clock_text, (0, 247, 3723, 3 * 86400 + 7200), "0:00|4:07|1:02:03|3 d 02 h"),
        (duration_text, (8.44, 59.97, 3723), "8.4 s|1:00|1:02:03"),
        (rate_text, (42.0, 4.2, 0.05, 0.0), "42 it/s|4.2 it/s|20 s/it|0.00 it/s"),
        (loss_text, (0.12345, 12345.0, float("nan")), "0.123|1.2e+04|nan"),
        (number_text, (float("inf"),), "inf"),
    ],
)
def test_units(text: Callable[[float], str], values: tuple[float, ...], shown: str) -> None:
    assert "|".join(map(text, values)) == shown


def test_names_in_a_record_are_loss_metric_or_neither() -> None:
    record = epoch_event(1, AP=0.1, AP50=0.2, AR100=0.3).record
    assert {n for n in record if is_loss(n)} == set(LOSSES)
    assert {n for n in record if is_metric(n)} == {"AP", "AP50", "AR100"}


def test_memory_of_this_process() -> None:
    first = measure_memory()
    assert first.ram > 20_000_000 and first.gpu is None
    held = mmap.mmap(-1, 100 << 20)  # new pages: an array may lie in memory that was held already
    held.write(os.urandom(1 << 20) * 100)
    assert measure_memory().ram > first.ram + 50_000_000
    held.close()


def test_callbacks_tell_all_and_close_all() -> None:
    told: list[tuple[object, ...]] = []

    class Noting(Callback):
        def close(self) -> None:
            told.append(("close",))
            raise OSError("disk full")

    for name in ("on_step", "on_epoch", "on_evaluate", "log"):
        setattr(Noting, name, lambda self, *values, name=name: told.append((name, *values)))
    callbacks = Callbacks([Noting(), Callback(), Noting()])
    step, epoch = step_event(0, 1), epoch_event(1)
    callbacks.on_step(step)
    callbacks.on_epoch(epoch)
    callbacks.on_evaluate(1, 2)
    callbacks.log("hello")
    with pytest.raises(OSError, match="disk full"):
        callbacks.close()
    expected = [("on_step", step), ("on_epoch", epoch), ("on_evaluate", 1, 2), ("log", "hello")]
    assert told == [item for item in (*expected, ("close",)) for _ in range(2)]
