"""The command is killed at some moment, started again with --resume, and nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.errors import CheckpointError
from nmsfree_training.loop.run_config import stop_on_signals
from nmsfree_training.loop.state import load_state
from nmsfree_training.weights.checkpoint import load_checkpoint

EPOCHS, STEPS = 3, 6  # 12 images in batches of 2


def command(digits: Path, out: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "nmsfree", "train", "--data", str(digits), "--out", str(out)]
    words += ["--model", "fcos_e2e_nano", "--epochs", str(EPOCHS), "--batch-size", "2"]
    words += ["--workers", "0", "--ema", "0.9", "--save-minutes", "0", "--no-tensorboard"]
    return [*words, *more]


def start(words: list[str]) -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)


def finish(words: list[str], status: int = 0) -> str:
    process = start(words)
    _, told = process.communicate(timeout=240)
    assert process.returncode == status, told
    return told


def wait_for_step(process: "subprocess.Popen[str]", out: Path, done: int) -> None:
    """Until this many optimizer steps are in the state file."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "last.state.pt").exists():
            try:
                if load_state(out)[0].position["iteration"] >= done:
                    return
            except CheckpointError:  # being replaced at this very moment
                pass
        time.sleep(0.1)
    raise AssertionError(f"no step {done}: {process.communicate()[1]}")


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("resume") / "whole"
    finish(command(digits, out))
    return out


def assert_equal(whole: Path, out: Path) -> None:
    for name in ("last", "best"):
        want, found = (load_checkpoint(run / f"{name}.safetensors").state for run in (whole, out))
        assert all((found[k] == v).all() for k, v in want.items()), name
    timing = ("seconds", "images_per_second", "wait_share")
    records = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, out)
    ]
    for a, b in zip(*records, strict=True):
        assert {k: v for k, v in a.items() if k not in timing} == {
            k: v for k, v in b.items() if k not in timing
        }


def test_killed_twice_and_resumed_bit_for_bit(whole: Path, digits: Path, tmp_path: Path) -> None:
    """SIGKILL in the second epoch and again in the third; the state is saved after every step."""
    out = tmp_path / "cut"
    for done, more in ((STEPS + 2, []), (2 * STEPS + 3, ["--resume"])):
        process = start(command(digits, out, *more))
        wait_for_step(process, out, done)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    told = finish(command(digits, out, "--resume"))
    assert "going on at epoch 3" in told
    assert_equal(whole, out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(
    number: signal.Signals, whole: Path, digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cut"
    process = start(command(digits, out, "--save-minutes", "60"))
    wait_for_step(process, out, STEPS)  # saved at the end of the first epoch
    process.send_signal(number)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 128 + number
    assert "stopped and saved at epoch" in told and "Traceback" not in told
    assert "--resume" in told.splitlines()[-1] or "--resume" in told
    finish(command(digits, out, "--save-minutes", "60", "--resume"))
    assert_equal(whole, out)


def test_stopped_while_it_evaluates(tmp_path: Path) -> None:
    data, out = tmp_path / "digits", tmp_path / "run"
    write_digits(data, train=4, val=120, overlap=1)
    words = command(data, out, "--save-minutes", "60", "--epochs", "1")
    process = start(words)
    wait_for_step(process, out, 2)  # 4 images in batches of 2: the epoch is saved, then evaluated
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 143, told
    assert "stopped and saved at epoch 1, step 2; go on with" in told and "Traceback" not in told
    assert not (out / "metrics.jsonl").exists()
    finish([*words, "--resume"])
    (record,) = (out / "metrics.jsonl").read_text().splitlines()
    assert json.loads(record)["AP"] >= 0


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
