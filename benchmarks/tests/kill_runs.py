"""Runs that are killed, many of them: what is there must be whole, and the same command goes on.

    python benchmarks/tests/kill_runs.py --kills 60 --seed 0
    python benchmarks/tests/kill_runs.py --kills 10 --only digits --only fix

Each command runs once to its end, which gives its seconds and its calls of the operating system.
Then it is killed (SIGKILL), half of the times at a random moment, half before or after one of the
calls that sync, rename or remove a file. After each kill no file under a final name may be cut
short; the same command must then end with 0 and leave the same files, and nothing temporary.

Each run is a forked child; all happens in one temporary folder.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np

from nmsfree.backends.tensorrt.load import check_engine
from nmsfree.cli.main import main as nmsfree
from nmsfree.datasets.digits.scenes import write_digits
from nmsfree.doctor import model as doctor_model
from nmsfree.files import is_part

CALLS = ("fsync", "replace", "unlink", "mkdir")  # of `os`, before and after which a run is killed
WEIGHTS = Path(__file__).parents[2] / "weights" / "fcos_o2o_nano.safetensors"
FAILED = 70  # exit status of a child that raised
SECONDS = 300.0  # that no run takes


@dataclass
class Command:
    """One command, and what is known of a run to its end.

    Attributes:
        words: as typed after `nmsfree`; `OUT` in them is the folder of one try.
        seconds, calls: of the whole run.
        files: that it leaves in its folder.
    """

    name: str
    words: list[str]
    seconds: float = 0.0
    calls: int = 0
    files: set[str] = field(default_factory=set)

    def run(self, out: Path, kill_at: int | None = None, after: bool = False) -> Callable[[], int]:
        """Return what a child does; it kills itself at a call, if told to."""
        words = [word.replace("OUT", str(out)) for word in self.words]
        if self.name == "train" and any(out.glob("run/*.state.pt")):
            words.append("--resume")

        def work() -> int:
            counted = _watch_calls(kill_at, after)
            sys.argv = ["nmsfree", *words]
            try:
                nmsfree()
            except SystemExit as end:
                (out.parent / "calls").write_text(str(counted[0]))
                return int(end.code or 0)
            return FAILED

        return work


def commands(base: Path) -> list[Command]:
    """Every command that writes files, on the small inputs of `make_inputs`."""
    model, digits = str(base / "doctor.onnx"), str(base / "digits")
    pictures, out = str(base / "pictures"), "OUT"
    lines = {
        "detect": f"detect {pictures} {pictures}/v.avi -m {model} --save-dir {out}/found "
        f"--json {out}/lines.jsonl",
        "digits": f"data digits --out {out}/digits --train 4 --val 2 --overlap 1 "
        "--test 0 --test-overlap 0",
        "fix": f"data check {digits} --fix --out {out}/check --out-fixed {out}/clean",
        "eval": f"eval {model} --data {base}/cells --plots {out}/plots --json {out}/eval.json",
        "build": f"build {model} -o {out}/model.engine --json {out}/build.json",
        "train": f"train --data {digits} --out {out}/run --model fcos_o2o_nano --epochs 2 "
        "--batch-size 2 --workers 0 --threads 1 --save-minutes 0 --no-tensorboard",
        "export": f"export {WEIGHTS} -o {out}/model.onnx --size 64 64 --images {base}/one "
        f"--json {out}/export.json",
    }
    return [Command(name, line.split()) for name, line in lines.items()]


def make_inputs(base: Path) -> int:
    """Write a model, pictures with a video, a dataset that it fits, and one with a fault."""
    for folder in ("pictures/deep", "one", "cells/annotations", "cells/val"):
        (base / folder).mkdir(parents=True)
    doctor_model.write_model(base)
    picture = doctor_model.picture()[0]
    for name in ("pictures/a.png", "pictures/b.jpg", "pictures/deep/c.png", "one/a.png"):
        cv2.imwrite(str(base / name), np.kron(picture, np.ones((4, 4, 1), np.uint8)))
    video = cv2.VideoWriter(
        str(base / "pictures/v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 128)
    )
    for shift in range(8):
        video.write(np.roll(np.kron(picture, np.ones((4, 4, 1), np.uint8)), 4 * shift, axis=1))
    video.release()
    found = doctor_model.answer()
    annotations = [
        {"id": n + 1, "image_id": 1, "category_id": int(c), "bbox": [*b[:2].tolist(), 8.0, 8.0]}
        for n, (b, c) in enumerate(
            zip(found.detection_boxes[0], found.detection_classes[0], strict=True)
        )
    ]
    names = doctor_model.SPEC.class_names
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 32, "height": 32}],
        "annotations": annotations,
        "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
    }
    (base / "cells/annotations/instances_val.json").write_text(json.dumps(content))
    cv2.imwrite(str(base / "cells/val/a.png"), picture)
    write_digits(base / "digits", train=6, val=2, overlap=1)
    file = base / "digits/annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] = 0  # which --fix fixes
    file.write_text(json.dumps(content))
    return 0


def _watch_calls(kill_at: int | None, after: bool) -> list[int]:
    """Count the calls, and kill this process at one of them."""
    counted = [0]

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **options: Any) -> Any:
            counted[0] += 1
            mine = counted[0] == kill_at
            if mine and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **options)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counting

    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))
    return counted


def fork(work: Callable[[], int], log: Path, kill_after: float | None = None) -> int:
    """Do something in a child; returns its exit status, −9 if it was killed."""
    child = os.fork()
    if child == 0:
        status = FAILED
        try:
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            status = work()
        except BaseException:  # noqa: BLE001 (a child says what it can and ends here)
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, kill_after or SECONDS)
    _, status = os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return os.waitstatus_to_exitcode(status)


def damaged(out: Path) -> list[str]:
    """Return the files of final name that cannot be read to their end."""
    wrong = []
    for path in sorted(path for path in out.rglob("*") if path.is_file() and not is_part(path)):
        try:
            _read(path)
        except Exception as error:  # noqa: BLE001 (whatever a reader raises)
            wrong.append(f"{path.relative_to(out)}: {type(error).__name__}: {error}")
    return wrong


def _read(path: Path) -> None:
    match path.suffix:
        case ".json":
            msgspec.json.decode(path.read_bytes())
        case ".jsonl" if path.name == "metrics.jsonl":  # appended to; --resume cuts it
            pass
        case ".jsonl":
            for line in path.read_bytes().splitlines(keepends=True):
                assert line.endswith(b"\n") and msgspec.json.decode(line)
        case ".png" | ".jpg":
            assert path.stat().st_size and cv2.imread(str(path)) is not None
        case ".mp4":
            video = cv2.VideoCapture(str(path))
            assert video.get(cv2.CAP_PROP_FRAME_COUNT) > 0 and video.read()[0]
        case ".onnx":
            import onnx

            onnx.checker.check_model(str(path), full_check=True)
        case ".safetensors":
            from nmsfree_training.weights.checkpoint import load_checkpoint

            load_checkpoint(path).build()
        case ".pt":
            import torch

            torch.load(path, weights_only=True)
        case ".engine":
            check_engine(path)
        case ".md":
            assert path.read_bytes().endswith(b"\n")
        case _:
            assert path.suffix == ".lock" or path.name == ".lock", "unknown kind of file"


def left_over(root: Path) -> list[str]:
    parts = [path for path in root.rglob("*") if is_part(path) or path.suffix == ".part"]
    return [str(path.relative_to(root)) for path in [*parts, *(root / "tmp").iterdir()]]


def names(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


class Killer:
    """Kills runs of one command and judges what comes after."""

    def __init__(self, root: Path, command: Command, rng: random.Random) -> None:
        self.root, self.command, self.rng = root, command, rng
        self.log = root / "log"
        self.kills = self.ended = 0
        self.failures: list[str] = []

    def measure(self) -> None:
        """Run to the end once."""
        out, start = self._folder(), time.monotonic()
        status = fork(self.command.run(out), self.log)
        self.command.seconds = time.monotonic() - start
        self.command.calls = int((self.root / "calls").read_text())
        self.command.files = names(out)
        self._judge(out, status, "not killed")

    def kill(self, injected: bool) -> None:
        out = self._folder()
        if injected:
            at, after = self.rng.randint(1, self.command.calls), self.rng.random() < 0.5
            how = f"killed {'after' if after else 'before'} call {at} of {self.command.calls}"
            status = fork(self.command.run(out, at, after), self.log)
        else:
            seconds = self.rng.uniform(0, self.command.seconds)
            how = f"killed after {seconds:.2f} of {self.command.seconds:.2f} s"
            status = fork(self.command.run(out), self.log, seconds)
        self.kills += status == -signal.SIGKILL
        self.ended += status != -signal.SIGKILL
        self._check(lambda: _told(damaged(out)), f"{how}: cut short")
        self._judge(out, fork(self.command.run(out), self.log), how)

    def _folder(self) -> Path:
        out = self.root / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        self.log.write_bytes(b"")
        return out

    def _judge(self, out: Path, status: int, how: str) -> None:
        if status != 0:
            tail = self.log.read_text(errors="replace").splitlines()[-3:]
            self.failures.append(f"{how}: the run after it ended with {status}: {' | '.join(tail)}")
            return
        self._check(lambda: _told(damaged(out)), f"{how}: cut short by the run after it")
        if missing := self.command.files - names(out):
            self.failures.append(f"{how}: not there: {sorted(missing)}")
        if left := left_over(self.root):
            self.failures.append(f"{how}: left over: {left}")

    def _check(self, work: Callable[[], int], what: str) -> None:
        """Look in a child, as the libraries that read start threads."""
        if fork(work, self.log) != 0:
            self.failures.append(f"{what}: {self.log.read_text(errors='replace')[-300:]}")


def _told(lines: list[str]) -> int:
    print("\n".join(lines))  # noqa: T201
    return int(bool(lines))


def prepare(only: list[str]) -> None:
    """Import once what the children need; nothing that starts a thread is called here."""
    import matplotlib.figure  # noqa: F401
    import onnxruntime  # noqa: F401

    if not only or {"train", "export"} & set(only):
        import onnxscript  # noqa: F401
        import torch  # noqa: F401

        import nmsfree_export.export  # noqa: F401
        import nmsfree_training.cli.run  # noqa: F401


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="a command, may be repeated")
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        root = Path(name)
        for folder in ("base", "tmp"):
            (root / folder).mkdir()
        os.environ["TMPDIR"], tempfile.tempdir = f"{root}/tmp", f"{root}/tmp"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{root}/torch"  # PyTorch makes it, and keeps it
        os.chdir(root)
        prepare(asked.only)
        if fork(lambda: make_inputs(root / "base"), root / "log") != 0:
            print((root / "log").read_text())  # noqa: T201
            return 1
        chosen = [c for c in commands(root / "base") if not asked.only or c.name in asked.only]
        killers = [Killer(root, command, rng) for command in chosen]
        for number, killer in enumerate(killers):
            killer.measure()
            own = range(number, asked.kills, len(killers))
            for turn, _ in enumerate(own):
                killer.kill(injected=turn % 2 == 0)
            command = killer.command
            print(  # noqa: T201
                f"{command.name:8} {command.seconds:6.1f} s, {command.calls:4} calls, "
                f"{len(command.files):3} files; killed {killer.kills:3}, ended before its kill "
                f"{killer.ended:2}, failures {len(killer.failures)}",
                flush=True,
            )
            for failure in killer.failures:
                print(f"  {failure}", flush=True)  # noqa: T201
    kills, failures = (
        sum(n) for n in zip(*((k.kills, len(k.failures)) for k in killers), strict=True)
    )
    print(f"seed {asked.seed}: {kills} kills, {failures} failures")  # noqa: T201
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
