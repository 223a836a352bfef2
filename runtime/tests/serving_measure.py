"""What `nmsfree serve` and `nmsfree batch` pass on of an engine's speed, and answers under load.

    python runtime/tests/serving_measure.py throughput model.onnx pictures/
    python runtime/tests/serving_measure.py load model.onnx pictures/ --requests 20000
    python runtime/tests/serving_measure.py batch model.onnx pictures/

`throughput`: images a second of the server by those of as many Detector threads as there are
processors, which decode the same bytes; in turns. The processor time of the clients, which run
beside the server, is taken from its share.

`load`: many clients, one request in twenty malformed. None may be lost, each must get the answer
that one detector gives to its picture, and memory must stay as it is.

`batch`: images a second of all workers by those of one detector, times processors.
"""

import argparse
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import psutil

from nmsfree import Detector
from nmsfree.images import decode_image, read_image
from nmsfree.machine import processors
from nmsfree.streams.sources import find_images

NMSFREE = [sys.executable, "-c", "from nmsfree.cli.main import main; main()"]
KINDS = (".jpg", ".jpeg", ".png", ".webp")
SPOILED: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "cut": (lambda data: data[: len(data) // 2], 400),
    "text": (lambda data: b"street.jpg", 415),
    "empty": (lambda data: b"", 415),
}


@dataclass(frozen=True)
class Ask:
    """A request, and the answer that it must get; None: only its status counts."""

    data: bytes
    status: int
    answer: Any = None


@contextmanager
def server(model: Path, *options: str) -> Iterator[tuple[psutil.Process, int]]:
    """Run `nmsfree serve`: the process and its port."""
    command = [*NMSFREE, "serve", str(model), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if found := re.search(r"serving on http://127.0.0.1:(\d+)", line):
                break
        else:
            raise SystemExit(said)
        try:
            yield psutil.Process(process.pid), int(found[1])
        finally:
            process.terminate()


class Connection:
    """HTTP over one socket, with little work of its own."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=120)

    def __call__(self, data: bytes) -> tuple[int, bytes]:
        """POST to /detect: status and body."""
        head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        self._socket.sendall(head.encode() + data)
        found = b""
        while b"\r\n\r\n" not in found:
            found += self._more()
        head_bytes, _, body = found.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head_bytes)
        assert length is not None
        while len(body) < int(length[1]):
            body += self._more()
        return int(head_bytes[9:12]), body

    def _more(self) -> bytes:
        part = self._socket.recv(65536)
        if not part:
            raise ConnectionError("the server has closed the connection")
        return part


def answers(model: Path, pictures: Sequence[bytes]) -> list[Ask]:
    """What one detector says of each picture."""
    found = []
    with Detector(model, threads=1) as detector:
        for data in pictures:
            image = decode_image(data, "picture")[0]
            found.append(Ask(data, 200, detector(image).to_dict()["detections"]))
    return found


@dataclass(frozen=True)
class Load:
    """What many clients saw."""

    wrong: tuple[str, ...]  # requests that were lost, refused or answered otherwise
    statuses: dict[int, int]
    seconds: float
    memory: tuple[int, ...]  # bytes of the server, sampled evenly from the first tenth to the end


def load(model: Path, pictures: Sequence[bytes], requests: int, clients: int) -> Load:
    """Send requests from many clients at once, one in twenty malformed."""
    right = answers(model, pictures)
    chance = random.Random(0)
    asks = []
    for _ in range(requests):
        ask = chance.choice(right)
        if chance.random() < 0.05:
            spoil, status = SPOILED[chance.choice(list(SPOILED))]
            ask = Ask(spoil(ask.data), status)
        asks.append(ask)
    wrong: list[str] = []
    statuses: Counter[int] = Counter()
    memory: list[int] = []
    with server(model, "--max-queue", str(2 * clients)) as (process, port):

        def client(number: int) -> None:
            connection = Connection(port)
            for index in range(number, requests, clients):
                ask = asks[index]
                try:
                    status, body = connection(ask.data)
                except OSError as error:
                    wrong.append(f"{index}: {error}")
                    connection = Connection(port)
                    continue
                statuses[status] += 1
                found = json.loads(body).get("detections")
                if status != ask.status or (ask.answer is not None and found != ask.answer):
                    wrong.append(f"{index}: {status}, {body[:200]!r}")
                if index % max(1, requests // 50) == 0 and index >= requests // 10:
                    memory.append(process.memory_info().rss)

        start = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(client, range(clients)))
        seconds = time.monotonic() - start
    return Load(tuple(wrong), dict(statuses), seconds, tuple(memory))


class Rate(NamedTuple):
    """What a window gave."""

    images: float  # a second
    processor: float  # seconds of an image, of what detects
    clients: float = 0.0  # processors that the clients took


def bare(detector: Detector, pictures: Sequence[bytes], threads: int, seconds: float) -> Rate:
    """Threads that share a detector."""

    def work(first: int) -> int:
        count = 0
        while time.perf_counter() < end:
            detector(decode_image(pictures[(first + count) % len(pictures)], "picture")[0])
            count += 1
        return count

    start, processor = time.perf_counter(), time.process_time()
    end = start + seconds
    with ThreadPoolExecutor(threads) as pool:
        images = sum(pool.map(work, range(threads)))
    elapsed = time.perf_counter() - start
    return Rate(images / elapsed, (time.process_time() - processor) / images)


def served(
    servers: Sequence[tuple[psutil.Process, int]],
    pictures: Sequence[bytes],
    clients: int,
    seconds: float,
) -> Rate:
    """Clients that share the servers."""

    def work(first: int) -> int:
        connection, count = Connection(servers[first % len(servers)][1]), 0
        while time.perf_counter() < end:
            status, _ = connection(pictures[(first + count) % len(pictures)])
            assert status == 200
            count += 1
        return count

    def taken() -> float:
        return sum(sum(process.cpu_times()[:2]) for process, _ in servers)

    start, processor, before = time.perf_counter(), time.process_time(), taken()
    end = start + seconds
    with ThreadPoolExecutor(clients) as pool:
        images = sum(pool.map(work, range(clients)))
    elapsed, own = time.perf_counter() - start, time.process_time() - processor
    return Rate(images / elapsed, (taken() - before) / images, own / elapsed)


def throughput(
    model: Path,
    pictures: Sequence[bytes],
    rounds: int,
    seconds: float,
    clients: int,
    processes: int = 1,
    options: Sequence[str] = (),
) -> list[tuple[Rate, Rate]]:
    """Bare threads and the server, in turns."""
    cores, found = processors(), []
    if processes > 1:
        options = [*options, "--workers", str(max(1, cores // processes))]
    with ExitStack() as stack:
        detector = stack.enter_context(Detector(model, threads=1))
        servers = [stack.enter_context(server(model, *options)) for _ in range(processes)]
        bare(detector, pictures, cores, seconds / 4)
        served(servers, pictures, clients, seconds / 4)
        for _ in range(rounds):
            alone = bare(detector, pictures, cores, seconds)
            found.append((alone, served(servers, pictures, clients, seconds)))
    return found


def batch(model: Path, folder: Path) -> tuple[float, float]:
    """Images a second of one detector, before and after, and of all workers after their start."""
    paths = find_images(folder)
    half = max(1, len(paths) // processors() // 2)
    with Detector(model, threads=1) as detector, tempfile.TemporaryDirectory() as out:

        def alone(some: Sequence[Path]) -> float:
            start = time.perf_counter()
            for path in some:
                detector(read_image(path))
            return time.perf_counter() - start

        detector(paths[0])
        seconds = alone(paths[:half])
        command = [*NMSFREE, "batch", str(folder), "--model", str(model), "--out", out]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        seconds += alone(paths[-half:])
    rate = re.search(r"([\d.]+)/s after a start", said)
    assert rate is not None, said
    return 2 * half / seconds, float(rate[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("question", choices=("throughput", "load", "batch"))
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3, help="of a window")
    parser.add_argument("--processes", type=int, default=1, help="servers that share the clients")
    parser.add_argument("--serve", default="", help="options of `nmsfree serve`")
    given = parser.parse_args()
    cores = processors()
    if given.question == "batch":
        alone, rate = batch(given.model, given.pictures)
        print(f"one detector {alone:.1f} images/s, workers {rate:.1f}: by {cores} × one")
        print(f"{rate / (alone * cores):.3f}")
        return
    paths = [path for path in find_images(given.pictures) if path.suffix.lower() in KINDS][:64]
    pictures = [path.read_bytes() for path in paths]
    if given.question == "load":
        found = load(given.model, pictures, given.requests, given.clients)
        memory = [size >> 20 for size in found.memory]
        print(f"{given.requests} requests in {found.seconds:.1f} s, by status {found.statuses}")
        print(f"memory in MB: {memory}")
        print(
            "\n".join(["lost or wrong:", *found.wrong]) if found.wrong else "none lost, none wrong"
        )
        sys.exit(bool(found.wrong))
    plan = given.rounds, given.seconds, given.clients, given.processes, given.serve.split()
    rows = throughput(given.model, pictures, *plan)
    for alone, by_http in rows:
        print(
            f"bare {alone.images:.1f} images/s, {1000 * alone.processor:.2f} CPU ms each; served"
            f" {by_http.images:.1f}, {1000 * by_http.processor:.2f}; clients took"
            f" {by_http.clients:.2f} processors"
        )
    wall = median(b.images / (cores - b.clients) / (a.images / cores) for a, b in rows)
    print(
        f"{wall:.3f} by time, {median(a.processor / b.processor for a, b in rows):.3f} by processor"
    )


if __name__ == "__main__":
    main()
