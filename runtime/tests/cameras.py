"""Cameras on 127.0.0.1 that stall, end, send garbage and come back, and a look at some of them."""

import itertools
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import psutil
from numpy.typing import NDArray

from nmsfree import Detector
from nmsfree.streams.live import LiveSource
from nmsfree.streams.pipeline import answers_of
from nmsfree.streams.sources import expand

FPS = 25
HEIGHT, WIDTH, CELL, BITS = 240, 320, 20, 16
TROUBLE = ("play", "end", "play", "stall", "garbage", "refuse")  # a connection each, in turn
GROWTH = 30 << 20  # bytes that a process may take more at the end than after a fifth of the time


def picture_of(number: int) -> NDArray[np.uint8]:
    """A picture, BGR [HEIGHT, WIDTH, 3], that shows its number as cells of black and white."""
    picture = np.full((HEIGHT, WIDTH, 3), (40, 160, 90), np.uint8)
    for bit in range(BITS):
        picture[:CELL, bit * CELL : (bit + 1) * CELL] = 255 * (number >> bit & 1)
    return picture


def number_of(picture: NDArray[np.uint8]) -> int:
    """The number that a picture shows, also after it was compressed."""
    cells = picture[5 : CELL - 5, :].mean(axis=(0, 2)).reshape(BITS, CELL)[:, 5:-5].mean(axis=1)
    return sum(int(cell > 127) << bit for bit, cell in enumerate(cells))


@dataclass
class Camera:
    """Sends a frame every 1/FPS seconds; notes when each was sent."""

    kind: str  # ts, mjpeg or udp
    habits: Sequence[str] = TROUBLE
    seconds: float = 4.0  # until the end, the stall or the garbage of a connection
    sent: dict[int, float] = field(default_factory=dict)
    url: str = ""
    connections: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def frames(self, seconds: float) -> Iterator[NDArray[np.uint8]]:
        """Pictures at their times."""
        start = time.monotonic()
        for step in itertools.count():
            if self.stop.wait(max(0.0, start + step / FPS - time.monotonic())):
                return
            if step / FPS > seconds:
                return
            number = next(self._numbers) % (1 << BITS)
            picture = picture_of(number)
            self.sent[number] = time.monotonic()
            yield picture

    def send(self, write: Callable[[bytes], object]) -> None:
        """Do what this connection is to do."""
        habit = self.habits[self.connections % len(self.habits)]
        self.connections += 1
        if habit == "garbage":
            rng = np.random.default_rng(self.connections)
            for _ in range(20):
                write(rng.bytes(8192))
                self.stop.wait(0.05)
            return
        seconds = self.seconds if habit in ("end", "stall") else 4 * self.seconds
        (self._send_ts if self.kind != "mjpeg" else self._send_mjpeg)(write, seconds)
        if habit == "stall":
            self.stop.wait(10)

    def _send_mjpeg(self, write: Callable[[bytes], object], seconds: float) -> None:
        for picture in self.frames(seconds):
            data = cv2.imencode(".jpg", picture)[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            write(head.encode() + data + b"\r\n")

    def _send_ts(self, write: Callable[[bytes], object], seconds: float) -> None:
        target = _Target(write)
        container = av.open(target, "w", format="mpegts", options={"flush_packets": "1"})
        stream: Any = container.add_stream("mpeg4", FPS)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.gop_size, stream.bit_rate = 12, 1_000_000
        start = time.monotonic()
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture in self.frames(seconds):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = int((time.monotonic() - start) * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        with suppress(OSError):
            container.close()


class _Target:
    """A file of PyAV's that has only `write`."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def write(self, data: bytes) -> int:
        self._write(bytes(data))
        return len(data)


class _Handler(BaseHTTPRequestHandler):
    camera: Camera

    def do_GET(self) -> None:
        habit = self.camera.habits[self.camera.connections % len(self.camera.habits)]
        if habit == "refuse":
            self.camera.connections += 1
            self.send_error(503)
            return
        kinds = {"ts": "video/mp2t", "mjpeg": "multipart/x-mixed-replace; boundary=frame"}
        self.send_response(200)
        self.send_header("Content-Type", kinds[self.camera.kind])
        self.end_headers()
        with suppress(OSError):  # the client has left
            self.camera.send(self.wfile.write)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(*cameras: Camera, user: str = "") -> Iterator[list[str]]:
    """Switch cameras on for the block; gives their URLs."""
    servers: list[ThreadingHTTPServer] = []
    for camera in cameras:
        if camera.kind == "udp":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            camera.url = f"udp://127.0.0.1:{port}"
            threading.Thread(target=_send_udp, args=(camera, port), daemon=True).start()
            continue
        handler = type("Handler", (_Handler,), {"camera": camera})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        camera.url = f"http://{user}127.0.0.1:{server.server_port}/{camera.kind}"
    try:
        yield [camera.url for camera in cameras]
    finally:
        for camera in cameras:
            camera.stop.set()
        for server in servers:
            server.shutdown()
            server.server_close()


def _send_udp(camera: Camera, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:

        def write(data: bytes) -> None:
            for start in range(0, len(data), 1316):  # seven packets of a transport stream
                with suppress(OSError):  # nobody listens now
                    out.sendto(data[start : start + 1316], ("127.0.0.1", port))

        while not camera.stop.is_set():
            camera.send(write)


@dataclass
class Watched:
    """What a run over cameras gave."""

    answers: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    # Seconds from when a frame was decoded to its answer, and from when it was taken. A transport
    # stream shows that a frame is whole by the next one: it comes two frames later.
    ages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    delays: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: list[int] = field(default_factory=list)  # bytes of this process, each second
    live: Sequence[LiveSource] = ()
    look_seconds: list[float] = field(default_factory=list)


def watch(model: Path, cameras: Sequence[Camera], seconds: float, pause: float) -> Watched:
    """Look at running cameras for some seconds; `pause` makes the network slower by so much."""
    watched, process = Watched(), psutil.Process()
    sources, _ = expand([camera.url for camera in cameras])
    by_name = dict(zip([source.name for source in sources], cameras, strict=True))
    with Detector(model, threads=1) as detector:

        def look(images: list[NDArray[np.uint8]]) -> Any:
            start = time.perf_counter()
            time.sleep(pause)
            found = detector.batch(images)
            watched.look_seconds.append(time.perf_counter() - start)
            return found

        def on_live(live: Sequence[LiveSource]) -> None:
            watched.live = live

        start = time.monotonic()
        chunks = answers_of(sources, look, None, on_live=on_live)
        with closing(chunks):
            for frame, _ in itertools.chain.from_iterable(chunks):
                now, name = time.monotonic(), frame.source.name
                watched.answers[name] += 1
                sent = by_name[name].sent.get(number_of(frame.image))
                watched.ages[name].append(now - frame.arrived)
                if sent is not None:
                    watched.delays[name].append(now - sent)
                if now - start > len(watched.memory):
                    watched.memory.append(process.memory_info().rss)
                if now - start > seconds:
                    break
    return watched


def problems_of(watched: Watched, cameras: Sequence[Camera]) -> Iterator[str]:
    """What is not as it should be, a line each."""
    if len(watched.answers) < len(cameras):
        yield f"only {len(watched.answers)} of {len(cameras)} cameras gave answers"
    limit = 2 / FPS + float(np.median(watched.look_seconds))
    for name, ages in watched.ages.items():
        if np.median(ages) > limit:
            yield f"{name}: answers are {np.median(ages):.3f} s old, expected {limit:.3f}"
        if (delay := np.median(watched.delays[name])) > limit + 2 / FPS:
            yield f"{name}: {delay:.3f} s from camera to answer, expected {limit + 2 / FPS:.3f}"
    settled, end = watched.memory[len(watched.memory) // 5], watched.memory[-1]
    if end - settled > GROWTH:
        yield f"memory grew from {settled >> 20} to {end >> 20} MB"
