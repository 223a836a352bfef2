"""`nmsfree batch`: Ray's workers on this machine, pictures and results on disk and in a store."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import cv2
import psutil
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest
from runtime_helpers import Noise, listed, refused

import nmsfree
from nmsfree import Detector, InputError, ModelError
from nmsfree.cli.batch import Request, _task
from nmsfree.cluster.run import Workers, _failure, parts_of, run
from nmsfree.cluster.store import (
    SCHEMA,
    Pictures,
    find_pictures,
    named,
    names_done,
    reach,
)
from nmsfree.cluster.work import Worker
from nmsfree.images import write_picture

Batch = Callable[..., subprocess.Popen[str]]
BATCH = [sys.executable, "-c", "from nmsfree.cli.main import main; main()", "batch"]
COUNT, BROKEN = int(os.environ.get("NMSFREE_BATCH_PICTURES", "300")), 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any, with_canary: Any, make_onnx: Any) -> Path:
    return Path(make_onnx(tmp_path_factory.mktemp("m") / "tiny.onnx", with_canary()))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of pure colours in two folders, some of them cut."""
    import numpy as np

    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    random = np.random.default_rng(0)
    for number in range(COUNT):
        coarse = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (96, 64), interpolation=cv2.INTER_NEAREST)
        data = cv2.imencode(".png", picture)[1].tobytes()
        cut = data[: len(data) // 2] if number % (COUNT // BROKEN) == 0 else data
        place = folder / "sub" if number % 3 == 0 else folder
        (place / f"{number:04}.png").write_bytes(cut)
    return folder


@pytest.fixture(scope="module")
def expected(model: Path, photos: Path) -> dict[str, Any]:
    """What one detector says of each picture: lines of `detections.jsonl`, or the error."""
    answers: dict[str, Any] = {}
    with Detector(model, threads=1) as detector:
        for path in sorted(photos.rglob("*.png")):
            try:
                found = detector(path)
            except InputError as error:
                answers[path.relative_to(photos).as_posix()] = str(error).partition(": ")[2]
            else:
                answers[path.relative_to(photos).as_posix()] = found.to_dict()
    return answers


@pytest.fixture
def batch() -> Iterator[Batch]:
    """Return a function that starts the command."""
    pytest.importorskip("ray")
    running = []

    def run(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*BATCH, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | environment,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait()


def answers_in(out: str, below: str) -> dict[str, Any]:
    """What result files say of each picture, as `expected`; a picture twice is an error."""
    system, path = reach(out)
    answers: dict[str, Any] = {}
    for info in system.get_file_info(fs.FileSelector(path)):
        table = pq.read_table(info.path, filesystem=system)
        assert table.schema.equals(SCHEMA)
        for row in table.to_pylist():
            name = row["image"].removeprefix(below).lstrip("/")
            assert name not in answers and len(row["model"]) == 64
            if row["error"] is not None:
                assert row["boxes"] is None
                answers[name] = row["error"].partition(": ")[2]
                continue
            assert (row["height"], row["width"]) == (64, 96)
            values = zip(row["boxes"], row["classes"], row["class_ids"], row["scores"], strict=True)
            found = [
                {"box": [round(v, 3) for v in box], "class": kind}
                | {"class_id": number, "score": round(score, 6)}
                for box, kind, number, score in values
            ]
            answers[name] = {"detections": found, "truncated": row["truncated"]}
    return answers


def wait_for(what: Callable[[], Any], seconds: float = 150) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def workers_of(process: subprocess.Popen[str] | psutil.Popen) -> list[psutil.Process]:
    """Ray's processes that hold a detector."""
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "MapWorker" in " ".join(child.cmdline())
    ]


@pytest.mark.slow
def test_a_lost_worker_and_a_lost_driver_cost_nothing(
    batch: Batch, model: Path, photos: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = (photos, "--model", model, "--out", out, "--workers", 2)
    process = batch(*command)
    wait_for(lambda: len([*out.glob("*.parquet")]) >= 2)
    all_of_it = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    psutil.wait_procs(all_of_it, timeout=60)  # they may finish what they have in hand
    done = len(answers_in(str(out), str(photos)))
    assert 0 < done < COUNT

    process = batch(*command)
    before = len([*out.glob("*.parquet")])
    wait_for(lambda: len([*out.glob("*.parquet")]) > before)
    workers_of(process)[0].kill()
    said, _ = process.communicate(timeout=250)
    assert process.returncode == 1, said  # ten could not be read
    assert f"{done} of {COUNT} pictures have their result already" in said
    assert answers_in(str(out), str(photos)) == expected
    assert not [*out.glob(".*")]

    process = batch(*command)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and f"{COUNT} of {COUNT} pictures have" in said, said


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Ray's clusters are for Linux")
def test_a_lost_machine_of_a_cluster_costs_nothing(
    batch: Batch, model: Path, photos: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    """Two nodes on this machine, started as docs/clusters.md says; one of them is killed."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    soon = {"period_ms": 500, "timeout_ms": 500, "initial_delay_ms": 500, "failure_threshold": 4}
    checks = {f"RAY_health_check_{name}": str(value) for name, value in soon.items()}
    place = f"127.0.0.1:{free_port()}"
    room = "--block --num-cpus 1 --object-store-memory 100000000 --disable-usage-stats"
    own = "--node-ip-address 127.0.0.1 --min-worker-port 0 --max-worker-port 0"  # one machine
    nodes: list[psutil.Popen] = []

    def start(options: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start"]
        with (tmp_path / f"node-{len(nodes)}.log").open("wb") as log:
            nodes.append(
                psutil.Popen(
                    [*command, *options.split(), *room.split(), *own.split()],
                    stdout=log,
                    stderr=log,
                    env=os.environ | token | checks,
                )
            )
        wait_for(lambda: b"block forever" in Path(log.name).read_bytes())

    def kill(node: psutil.Popen) -> None:
        all_of_it = [node, *node.children(recursive=True)]
        for process in all_of_it:
            process.kill()
        psutil.wait_procs(all_of_it, timeout=30)

    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        try:
            port = place.partition(":")[2]
            clients = f"--ray-client-server-port {free_port()} --include-dashboard false"
            start(f"--head --port {port} {clients} --temp-dir {folder}")
            start(f"--address {place}")
            out = tmp_path / "out"
            process = batch(
                photos, "--model", model, "--out", out, "--address", place, "--workers", 2, **token
            )
            wait_for(lambda: [*out.glob("*.parquet")] and workers_of(nodes[1]))
            kill(nodes[1])
            done = len([*out.glob("*.parquet")])
            said, _ = process.communicate(timeout=250)
            assert process.returncode == 1 and f"{BROKEN} of {COUNT} could not" in said, said
            assert 0 < done < len([*out.glob("*.parquet")])
            assert answers_in(str(out), str(photos)) == expected
        finally:
            for node in nodes:
                if node.is_running():
                    kill(node)


WRONG_CLUSTERS = {
    "ray://127.0.0.1:1": (2, "expected auto or HOST:PORT: start this on a machine of the cluster"),
    "127.0.0.1:1": (3, "Ray at 127.0.0.1:1 cannot be reached ("),
    "127.0.0.1:99999": (3, "Ray at 127.0.0.1:99999 cannot be reached"),
}


@pytest.mark.parametrize("address", WRONG_CLUSTERS)
def test_a_cluster_that_is_not_there_is_one_line(
    batch: Batch, model: Path, photos: Path, tmp_path: Path, address: str
) -> None:
    status, line = WRONG_CLUSTERS[address]
    process = batch(photos, "--model", model, "--out", tmp_path, "--address", address)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == status and line in said and "Traceback" not in said, said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "kind", "line"),
    [("model", ModelError, "no such file on"), ("out", InputError, "cannot be written")],
)
def test_what_a_machine_lacks_is_one_line(
    model: Path, photos: Path, tmp_path: Path, what: str, kind: Any, line: str
) -> None:
    (tmp_path / "file").touch()
    task = _task(Request(sources=(), model=model, out=str(tmp_path)), on_gpu=False)
    parts = parts_of([Pictures("", (str(photos / "0001.png"),))], set())
    workers = Workers(address=None, count=1, processors=1, gpus=0.0)
    task = replace(task, **{what: str(tmp_path / "file" / "x")})
    # Ray leaves threads, and takes the fault handler away: a later crash would say nothing.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
        answers = own.submit(listed, run, task, parts, workers)
        assert line in refused(answers.result, kind)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("MissingExtraError: it needs a package", 2),
        ("OfALaterVersionError: it needs more", 3),
        ("GateError: it is refused", 1),
    ],
)
def test_whatever_a_worker_raises_is_one_line(line: str, status: int) -> None:
    error = _failure(f"Traceback (most recent call last):\n  x.py\nnmsfree.errors.{line}\n")
    assert error.exit_status == status
    assert str(error) == f"a worker failed ({line.partition(': ')[2]})"


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """An S3 server on 127.0.0.1: its options in an address."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def up() -> bool:
        try:
            return bool(urlopen(f"http://127.0.0.1:{port}/moto-api/").status == 200)
        except OSError:
            return False

    wait_for(up)
    place = f"scheme=http&endpoint_override=127.0.0.1:{port}&region=us-east-1"
    yield f"{place}&allow_bucket_creation=true"
    server.send_signal(signal.SIGTERM)
    server.wait()


@pytest.mark.slow
def test_from_a_store_to_a_store(
    batch: Batch, model: Path, photos: Path, expected: dict[str, Any], store: str
) -> None:
    there = f"s3://me:secret@photos/2026?{store}"
    system, path = reach(there)
    system.create_dir("photos")
    system.create_dir("results")
    fs.copy_files(str(photos), path, destination_filesystem=system)
    out = f"s3://me:secret@results/run?{store}"
    process = batch(there, "--model", model, "--out", out, "--workers", 2)
    said, _ = process.communicate(timeout=250)
    assert process.returncode == 1 and f"{BROKEN} of {COUNT} could not be read" in said, said
    assert "secret" not in said
    assert re.search(r"[\d.]+/s after a start of [\d.]+ s", said), "serving_measure.py reads it"
    assert answers_in(out, "s3://photos/2026") == expected


def test_reduced_jpegs_are_answered_as_a_stream_does(
    model: Path, noise: Noise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_picture(Path("large.jpg"), noise(1, 643, 961))
    given = Request(sources=("large.jpg",), model=model, out="out", reduced=True)
    Worker(_task(given, on_gpu=False), 1)({"root": "", "name": "x.parquet", "paths": ["large.jpg"]})
    (row,) = pq.read_table("out/x.parquet").to_pylist()
    with Detector(model, threads=1) as detector:
        ((_, found),) = nmsfree.stream("large.jpg", detector, reduced=True)
        assert found.to_dict() != detector("large.jpg").to_dict()
    assert (row["height"], row["width"], row["boxes"]) == (643, 961, found.xyxy.tolist())


def test_results_of_another_run_are_not_mixed(
    batch: Batch, model: Path, photos: Path, tmp_path: Path
) -> None:
    from nmsfree.cluster.store import write_rows

    write_rows(str(tmp_path), "part-0.parquet", [], {"threshold": 0.5})
    about = {"threshold": 0.5, "reduced": False}  # that file is older than `reduced`
    assert names_done(str(tmp_path), about) == set()
    for key, other, words in (
        ("threshold", 0.7, "its threshold is 0.5, not 0.7"),
        ("reduced", True, "its reduced is False, not True"),
        ("classes", ["a"], "its classes is None, not ['a']"),
    ):
        asked = about | {key: other}
        message = refused(lambda asked=asked: names_done(str(tmp_path), asked), InputError)
        assert f"is of another run ({words})" in message
    process = batch(photos, "--model", model, "--out", tmp_path)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "is of another run" in said, said


def test_what_is_taken_for_a_picture(tmp_path: Path, noise: Noise, store: str) -> None:
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "a.png").touch()
    found, problems = find_pictures((str(tmp_path), str(tmp_path / "clip.mp4"), "missing"))
    assert found == [Pictures("", (str(tmp_path / "a.png"),))]
    assert [problem.rpartition("/")[2] for problem in problems] == [
        "missing: no such file, expected an image, video, folder, pattern, camera index or URL",
        "clip.mp4: a video, expected pictures",
    ]
    assert "no-such-bucket" in refused(
        lambda: find_pictures((f"s3://me:secret@no-such-bucket/x?{store}",)), InputError
    )
    assert "cannot be reached" in refused(lambda: reach("nothing://x/y"), InputError)
    assert named("s3://me:secret@bucket/x?y=z") == "s3://bucket/x"


def test_parts_are_many_of_bounded_size_and_keep_their_names() -> None:
    names = tuple(map(str, range(40_000)))
    found = [Pictures("", names), Pictures("s3://x/y", names[:3])]
    parts = parts_of(found, set())
    assert [name for part in parts for name in part["paths"]] == [*names, *names[:3]]
    assert max(len(part["paths"]) for part in parts) == 512
    assert len({part["name"] for part in parts}) == len(parts)
    assert len(parts_of([Pictures("", names[:40])], set())) == 40
    assert parts_of(found, {*names[:512], "s3://1"}) == [
        *parts[1:-1],
        parts[-1] | {"paths": ["0", "2"]},
    ]
