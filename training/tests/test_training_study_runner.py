"""Studies on a tiny dataset: they go on, skip, fail and stop as a user expects."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.errors import InputError
from nmsfree.files import RUN_LOCK, locked
from nmsfree.machine import sha256
from nmsfree_training.cli.study import app
from nmsfree_training.loop.state import LAST, PREVIOUS
from nmsfree_training.study import job as worker
from nmsfree_training.study import rows as study_rows
from nmsfree_training.study import runner
from nmsfree_training.study.job import Job, training_command
from nmsfree_training.study.measure import measure
from nmsfree_training.study.rows import Row
from nmsfree_training.study.runner import (
    Progress,
    StudyDisplay,
    last_line,
    read_progress,
    run_study,
)

GOOD = Row("good", "a good row", "fcos_rt_nano", "", "Does it run?")
BAD = Row("bad", "a bad row", "fcos_rt_nano", "--no-such-option", "Does it fail?")
O2M = study_rows.ROWS[0]
ONE_RUN, NAME = ("--epochs", 4, "--seed", 3), "o2m_e4_s3"
WAIT = "import sys; sys.stdin.read(); open(sys.argv[1], 'w').write('saved')"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One batch of images, so that an epoch is one step."""
    folder = tmp_path_factory.mktemp("study") / "digits"
    write_digits(folder, train=16, val=2, overlap=1)
    return folder


def options(data: Path, folder: Path, *more: object) -> list[str]:
    words = ("run", "--data", data, "--results", folder / "results", "--runs", folder / "runs")
    return [str(word) for word in (*words, *more)]


def study(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def job(folder: Path, row: Row = GOOD, epochs: int = 1) -> Job:
    return Job(row, epochs, 0, folder / "digits", folder / "runs", folder / "results")


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def went_on(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A study that was killed and started again at once, then with a row that fails."""
    folder = tmp_path_factory.mktemp("went_on")
    words = options(data, folder, *ONE_RUN)
    command = [sys.executable, "-c", "from nmsfree_training.cli.study import app; app()"]
    killed = subprocess.Popen([*command, *words, "--row", "o2m"], stderr=subprocess.DEVNULL)
    metrics = folder / "runs" / NAME / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and metrics.stat().st_size > 0)
    killed.kill()  # its worker notices, and lets the training save
    killed.wait()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_rows, "ROWS", (BAD, O2M))
        return folder, study(*words, "--jobs", 2)


def test_a_killed_study_goes_on(went_on: tuple[Path, Result]) -> None:
    folder, _ = went_on
    log = (folder / "runs" / f"{NAME}.log").read_text(encoding="utf-8")
    assert "stopped and saved at epoch" in log and log.count("$ nmsfree train") == 2
    lines = (folder / "runs" / NAME / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def test_a_failed_row_is_named_and_the_others_are_done(went_on: tuple[Path, Result]) -> None:
    folder, done = went_on
    assert done.exit_code == 1, done.output
    failed = next(line for line in done.stderr.splitlines() if line.startswith("failed: "))
    assert failed.startswith("failed: bad_e4_s3: No such option: --no-such-option")
    assert "exit status 2" in failed and str(folder / "runs" / "bad_e4_s3.log") in failed
    assert f"{NAME}: started" in done.stderr and "1 of 2 runs are done" in done.stderr
    assert f"{NAME}: val AP 0.0, overlap AP 0.0, " in done.stderr
    assert [path.name for path in (folder / "results").iterdir()] == [f"{NAME}.json"]


def test_the_result_tells_all(went_on: tuple[Path, Result], data: Path) -> None:
    folder, _ = went_on
    result = json.loads((folder / "results" / f"{NAME}.json").read_text(encoding="utf-8"))
    weights = folder / "runs" / NAME / "last.safetensors"
    names = ("row", "title", "model", "epochs", "seed")
    assert [result[n] for n in names] == ["o2m", O2M.title, "fcos_rt_nano", 4, 3]
    assert result["command"].startswith(f"nmsfree train --data {data} --model fcos_rt_nano ")
    assert "--resume" not in result["command"]
    assert result["splits"] == measure(weights, data)
    assert result["weights_sha256"] == sha256(weights)
    assert result["data"] == {"folder": "digits", "images": {"train": 16, "val": 2, "overlap": 1}}
    assert result["losses"].keys() == {"loss", "o2m_cls", "o2m_box"} and result["machine"]
    assert result["minutes"] > 0 and result["images_per_second"] > 0
    assert result["parameters"] > 1e5 and result["versions"]["torch"] == torch.__version__


def test_what_is_done_is_not_done_again(
    went_on: tuple[Path, Result], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = went_on
    words = options(data, folder, *ONE_RUN)
    monkeypatch.setattr(study_rows, "ROWS", (O2M,))
    monkeypatch.setattr(runner, "start_worker", lambda job: pytest.fail(job.name))
    again = study(*words)
    assert again.exit_code == 0 and "1 of 1 runs are done" in again.stderr
    changed = replace(O2M, model="fcos_o2o_nano")
    monkeypatch.setattr(study_rows, "ROWS", (changed,))
    refused = study(*words).exception
    assert isinstance(refused, InputError) and "rename the row" in str(refused)


def test_the_last_line_that_says_something(tmp_path: Path) -> None:
    one = job(tmp_path)
    one.log.parent.mkdir()
    one.log.write_text("$ nmsfree train\nerror: no space left\n\n")
    assert last_line(one) == "error: no space left"
    one.log.write_text("╭─ Error ───╮\n│ No such option: --x │\n╰───────────╯\n")
    assert last_line(one) == "No such option: --x"
    one.log.write_text("\n")
    assert last_line(one) == "nothing in its log"


def test_a_state_is_resumed(tmp_path: Path) -> None:
    assert "--resume" not in training_command(job(tmp_path))
    for name in (PREVIOUS, LAST):
        folder = job(tmp_path).folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        words = training_command(job(tmp_path))
        assert words[1:] == ["-m", "nmsfree", *job(tmp_path).arguments, "--resume"]
        (folder / name).unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_all_workers_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The signal comes once both run: before the study listens, it would end the test's process."""
    started = []

    def start(job: Job) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-c", WAIT, str(tmp_path / job.name)]
        started.append(subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True))
        if len(started) == 2:
            signal.raise_signal(number)
        return started[-1]

    monkeypatch.setattr(runner, "start_worker", start)
    monkeypatch.setattr(study_rows, "ROWS", (GOOD, BAD, GOOD))
    stopped = study(*options(tmp_path, tmp_path, "--jobs", 2, "--seed", 0, "--epochs", 1))
    assert stopped.exit_code == 128 + number
    assert "go on with: nmsfree" in stopped.stderr and "stopping: " in stopped.stderr
    assert all((tmp_path / f"{name}_e1_s0").read_text() == "saved" for name in ("good", "bad"))


def test_a_crash_of_the_display_ends_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(job: Job) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-c", WAIT, str(tmp_path / "out")]
        started.append(subprocess.Popen(words, stdin=subprocess.PIPE))
        return started[-1]

    class Broken(StudyDisplay):
        def refresh(self) -> None:
            if started:
                raise ZeroDivisionError

    monkeypatch.setattr(runner, "start_worker", start)
    with pytest.raises(ZeroDivisionError):
        run_study([job(tmp_path)], 1, Broken(Console(stderr=True), [job(tmp_path)], 0, 1))
    assert started[0].wait(20) == 0


def test_two_workers_do_not_work_on_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a worker beside a training that lost its own."""
    monkeypatch.setattr(worker, "PATIENCE", 0.0)
    one = job(tmp_path)
    for lock in (one.runs / f"{one.name}.lock", one.folder / RUN_LOCK):
        process = held(lock)
        with pytest.raises(InputError, match="held by another process"):
            worker.carry_out(one)
        process.kill()  # the system drops the lock
        process.wait()
        with locked(lock, patience=20.0):
            pass


def held(lock: Path) -> "subprocess.Popen[str]":
    """Start a process that holds a lock until it is killed."""
    code = (
        "import pathlib, sys, time; from nmsfree.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(300)"
    )
    words = [sys.executable, "-c", code, str(lock)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_progress_comes_from_the_lines_that_are_whole(tmp_path: Path) -> None:
    running = job(tmp_path, epochs=4)
    assert read_progress(running) == Progress(0)
    running.folder.mkdir(parents=True)
    file = running.folder / "metrics.jsonl"
    line = '{"epoch": %d, "seconds": %d, "images_per_second": 50.0}\n'
    file.write_text(line % (1, 30) + line % (2, 50) + '{"epoch": 3, "sec')
    now = file.stat().st_mtime
    half = read_progress(running, lambda: now + 20)
    assert half == Progress(2, pytest.approx(0.5), 50.0, 40.0)
    assert half.remaining(4) == pytest.approx(60)
    assert read_progress(running, lambda: now + 1e6).within < 1


def test_bars_show_every_job_and_all(tmp_path: Path) -> None:
    jobs = [job(tmp_path, epochs=4), job(tmp_path, BAD, 4)]
    with (tmp_path / "screen").open("w", encoding="utf-8") as file:
        console = Console(file=file, force_terminal=True, width=100)
        with StudyDisplay(console, jobs, 0, 2, live=True) as display:
            jobs[0].folder.mkdir(parents=True)
            line = '{"epoch": 1, "seconds": 30, "images_per_second": 50.0}\n'
            (jobs[0].folder / "metrics.jsonl").write_text(line)
            for one in jobs:
                display.started(one)
            display.refresh()
            display.failed(jobs[1], "no such thing")
            display.refresh()
    screen = (tmp_path / "screen").read_text(encoding="utf-8")
    assert "good_e4_s0" in screen and "epoch 2/4" in screen and "50 img/s" in screen
    assert "ETA" in screen and "0/2 runs, 1 failed" in screen
    assert "bad_e4_s0: failed: no such thing" in screen
