"""The command is killed at some moment, started again with --resume, and nothing is lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree_training.loop.run_config import stop_on_signals

from .runs import assert_same_runs, records, run_train, wait_for_step

STEPS = 3  # of an epoch: 12 images in batches of 4


def options(digits: Path, out: Path, *more: object) -> list[str]:
    words = ["--data", digits, "--out", out, "--epochs", 3, "--batch-size", 4, "--threads", 1]
    words += ["--no-probe", "--workers", 0, "--ema", 0.9, "--save-minutes", 0, "--no-tensorboard"]
    return [str(word) for word in (*words, *more)]


def start(words: list[str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "nmsfree", "train", *words]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def finish(words: list[str]) -> str:
    done = run_train(*words)
    assert done.exit_code == 0, done.output
    return done.stderr


def test_killed_stopped_and_resumed_bit_for_bit(digits: Path, tmp_path: Path) -> None:
    """SIGKILL in the second epoch, SIGINT as soon as it goes on; every step is saved at first."""
    out = tmp_path / "cut"
    killed = start(options(digits, out))
    wait_for_step(killed, out, STEPS + 1)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    asked = start(options(digits, out, "--resume", "--save-minutes", 60))
    assert asked.stderr is not None
    assert any("going on at epoch" in line for line in asked.stderr)
    asked.send_signal(signal.SIGINT)
    told = asked.stderr.read()
    assert asked.wait(timeout=200) == 128 + signal.SIGINT
    assert "stopped and saved at epoch" in told and "Traceback" not in told
    assert "--resume" in told
    assert "going on at epoch" in finish(options(digits, out, "--resume"))
    finish(options(digits, tmp_path / "whole"))
    assert_same_runs(tmp_path / "whole", out)


def test_stopped_while_it_evaluates(tmp_path: Path) -> None:
    data, out = tmp_path / "digits", tmp_path / "run"
    write_digits(data, train=4, val=120, overlap=1)
    words = options(data, out, "--save-minutes", 60, "--epochs", 1)
    process = start(words)
    wait_for_step(process, out, 1)  # one step: the epoch is saved, then evaluated
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGTERM, told
    assert "stopped and saved at epoch 1, step 1; go on with" in told and "Traceback" not in told
    assert not (out / "metrics.jsonl").exists()
    finish([*words, "--resume"])
    (record,) = records(out)
    assert record["AP"] >= 0


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_who_asks_twice_does_not_wait(number: signal.Signals, raised: type[BaseException]) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop and stop.exit_status == 128 + number
        with pytest.raises(raised) as caught:
            signal.raise_signal(number)
    if number == signal.SIGTERM:
        assert str(caught.value) == "143"
    assert signal.getsignal(number) is before
