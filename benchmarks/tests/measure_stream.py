"""How near `nmsfree detect` on a video comes to what its stages allow.

Run by itself, not by pytest:

    python benchmarks/tests/measure_stream.py model.onnx [--no-pictures] [--video clip.mp4]

Every stage is timed alone, then all of them in one thread (as it was before there was a pipeline),
then the pipeline. No stage is quicker in company than alone, and all share the cores: frames a
second are at most the smaller of 1 / (slowest stage) and cores / (summed processor time).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np

from nmsfree import Detections, Detector, Frame
from nmsfree.cli.detect import Run
from nmsfree.streams.pipeline import CORES
from nmsfree.streams.sources import Source
from nmsfree.streams.video import Video
from nmsfree.streams.writers import Output

FRAMES, HEIGHT, WIDTH, FPS = 600, 1080, 1920, 30
SAME = 100  # frames in which one picture is moved about
KEPT = 60  # frames in memory at once while stages are timed alone: 0.7 GB with what is drawn


def make_video(path: Path, frames: int) -> None:
    """H.264, 1080p: noise and blocks of colour that move."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", FPS, options={"preset": "fast", "crf": "23"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(frames):
            if number % SAME == 0:
                coarse = rng.integers(0, 256, (34, 60, 3), dtype=np.uint8)
                still = cv2.resize(coarse, (WIDTH + 300, HEIGHT + 200))
                fine = rng.integers(0, 24, still.shape, dtype=np.uint8)
                still = cv2.add(still, cv2.GaussianBlur(fine, (5, 5), 0))
            x, y = 3 * (number % SAME), 2 * (number % SAME)
            picture = np.ascontiguousarray(still[y : y + HEIGHT, x : x + WIDTH])
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


class Timed:
    """Seconds and processor seconds of all that was done within it."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._start[0]
        self.processor += time.process_time() - self._start[1]

    def each(self, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        with self:
            return [work(item) for item in items]


def measure_stages(
    path: Path, detector: Detector, output: Output, source: Source
) -> dict[str, Timed]:
    """Every stage by itself, over chunks of frames, so that they fit into memory."""
    stages = {name: Timed() for name in ("decode", "detect", "draw", "write")}
    number = 0
    with Video(path) as video, output:
        frames = iter(video)
        while True:
            with stages["decode"]:
                encoded = list(islice(frames, KEPT))
                pictures = [one.load() for one in encoded]
            if not pictures:
                return stages
            found = stages["detect"].each(detector, pictures)
            shown = [
                (Frame(source, picture, number + i, one.time, video.fps), detections)
                for i, (picture, one, detections) in enumerate(
                    zip(pictures, encoded, found, strict=True)
                )
            ]
            number += len(shown)
            drawn = stages["draw"].each(lambda one: output.draw(*one), shown)
            rows = [(*one, picture) for one, picture in zip(shown, drawn, strict=True)]
            stages["write"].each(lambda row: output.add(*row), rows)


def measure_serial(path: Path, detector: Detector, output: Output, source: Source) -> float:
    """Seconds of all stages in one thread, a frame after the other."""
    start = time.perf_counter()
    with Video(path) as video, output:
        for number, one in enumerate(video):
            frame = Frame(source, one.load(), number, one.time, video.fps)
            found: Detections = detector(frame.image)
            output.add(frame, found, output.draw(frame, found))
    return time.perf_counter() - start


class Round(NamedTuple):
    """Seconds a frame, of the stages alone, of all in one thread, and of the pipeline."""

    stages: dict[str, Timed]
    serial: float
    pipeline: Timed


def measure(
    path: Path, detector: Detector, output: Callable[[str], Output], source: Source
) -> Round:
    stages = measure_stages(path, detector, output("stages"), source)
    serial = measure_serial(path, detector, output("serial"), source)
    with output("pipeline") as target, (pipeline := Timed()):
        run = Run(detector.batch, target, batch=1)
        run.over([source])
    for timed in (*stages.values(), pipeline):
        timed.wall, timed.processor = timed.wall / run.images, timed.processor / run.images
    return Round(stages, serial / run.images, pipeline)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--frames", type=int, default=FRAMES, help="of the video that is made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-pictures", dest="pictures", action="store_false")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Detector(wanted.model, threads=1) as detector:
        path = wanted.video or Path(folder) / "clip.mp4"
        if wanted.video is None:
            make_video(path, wanted.frames)
        source = Source("video", str(path), path.parent)

        def output(name: str) -> Output:
            return Output({source: Path("out.mp4")}, Path(folder) / name, pictures=wanted.pictures)

        detector(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        rounds = [measure(path, detector, output, source) for _ in range(wanted.rounds)]
        lines = {
            (Path(folder) / name / "detections.jsonl").read_bytes()
            for name in ("stages", "serial", "pipeline")
        }
    # Other programs only take time away: the quickest of each.
    stages = {
        name: min((one.stages[name] for one in rounds), key=lambda timed: timed.wall)
        for name in rounds[0].stages
    }
    stages["pipeline"] = min((one.pipeline for one in rounds), key=lambda timed: timed.wall)
    pipeline, serial = 1 / stages["pipeline"].wall, 1 / min(one.serial for one in rounds)
    for name, timed in stages.items():
        wall, processor = 1000 * timed.wall, 1000 * timed.processor
        sys.stdout.write(f"{name:8} {wall:6.2f} ms a frame, {processor:6.2f} ms of processor\n")
    del stages["pipeline"]
    slowest = 1 / max(timed.wall for timed in stages.values())
    shared = CORES / sum(timed.processor for timed in stages.values())
    sys.stdout.write(
        f"{CORES} cores: slowest stage {slowest:.1f} frames/s, by processor time {shared:.1f}\n"
        f"one thread {serial:.1f} frames/s, pipeline {pipeline:.1f},"
        f" {pipeline / min(slowest, shared):.2f} of what is possible\n"
        f"same answers: {len(lines) == 1}\n"
    )


if __name__ == "__main__":
    main()
