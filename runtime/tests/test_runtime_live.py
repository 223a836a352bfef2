"""Live sources against cameras on 127.0.0.1 that stall, end, send garbage and come back."""

import itertools
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cameras import FPS, Camera, number_of, problems_of, serving, watch
from test_runtime_streams import write_video

import nmsfree
from nmsfree import Detector, InputError
from nmsfree.images import write_picture
from nmsfree.streams.pipeline import answers_of
from nmsfree.streams.sources import expand


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time-outs of a second."""
    for name in ("CONNECT_SECONDS", "READ_SECONDS"):
        monkeypatch.setattr(f"nmsfree.streams.live.{name}", 1.0)


@pytest.mark.parametrize("kind", ["ts", "mjpeg", "udp"])
def test_a_slow_detector_sees_the_newest_frames(tiny: Path, kind: str, quick: None) -> None:
    camera = Camera(kind, ("play",), 100)
    with serving(camera):
        watched = watch(tiny, [camera], seconds=3, pause=3 / FPS)
    (source,) = watched.live
    assert 8 < source.taken < 30
    assert source.received - source.taken > source.taken, "two of three are too late"
    assert f"{source.received} frames, " in str(source) or "frames/s" in str(source)
    assert list(problems_of(watched, [camera])) == []


@pytest.mark.parametrize("trouble", ["end", "stall", "garbage", "refuse"])
def test_a_source_that_is_lost_is_connected_again(
    tiny: Path, trouble: str, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    camera = Camera("mjpeg", (trouble, "play"), 0.5)
    with serving(camera, user="user:secret@") as (url,), Detector(tiny) as detector:
        frames = nmsfree.stream(url, detector)
        with closing(frames):  # type: ignore[type-var]
            seen = [next(frames)[0] for _ in range(30)]
    assert camera.connections >= 2
    numbers = [number_of(frame.image) for frame in seen]
    assert numbers == sorted(set(numbers)), "in order, and none twice"
    assert all(a.time < b.time for a, b in itertools.pairwise(seen))  # type: ignore[operator]
    reasons = {"stall": "no answer for 1 s|no frame for 1 s", "end": "ended|lost"}
    assert re.search(reasons.get(trouble, "no connection|no frame|lost"), caplog.text)
    assert "trying again in 0.5 s" in caplog.text
    assert "secret" not in caplog.text + repr(seen[0].source) + seen[0].source.name


def test_a_source_that_never_answers_is_given_up(tiny: Path, quick: None) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}/"
        with Detector(tiny) as detector:
            start = time.monotonic()
            with pytest.raises(
                InputError, match=r"http://127\.0\.0\.1:\d+/: no connection"
            ) as info:
                next(nmsfree.stream(url, detector, give_up=1))
            assert time.monotonic() - start < 4
            assert "secret" not in str(info.value)


@pytest.mark.parametrize(("name", "frames"), [("clip.mp4", 12), ("a.png", 1), ("a.jpg", 1)])
def test_a_recording_is_seen_whole(
    tiny: Path, tmp_path: Path, noise: Callable[..., Any], name: str, frames: int
) -> None:
    """A file of a web server has an end, and waits for the detector."""
    if name == "clip.mp4":
        write_video(tmp_path / name, [noise(seed) for seed in range(frames)])
    else:
        write_picture(tmp_path / name, noise(0))
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, Detector(tiny) as detector:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        found = [frame.number for frame, _ in nmsfree.stream(url, detector)]
        server.shutdown()
    assert found == list(range(frames))


def test_several_sources_share_the_runs_of_a_batch(tiny: Path, quick: None) -> None:
    cameras = [Camera("mjpeg", ("play",), 100) for _ in range(3)]
    sizes = []
    with serving(*cameras) as urls, Detector(tiny) as detector:
        sources, _ = expand(urls)

        def look(images: list[object]) -> object:
            sizes.append(len(images))
            time.sleep(0.05)
            return detector.batch(images)

        chunks = answers_of(sources, look, None, max_frames=10)  # type: ignore[arg-type]
        names = [frame.source.name for frame, _ in itertools.chain.from_iterable(chunks)]
    assert sorted(names) == sorted([source.name for source in sources] * 10)
    assert max(sizes) == 3 and sum(sizes) == 30


def test_ctrl_c_ends_the_command_in_two_seconds(tiny: Path, tmp_path: Path) -> None:
    """Of one source frames come, of one they stalled; the one that refuses was given up."""
    cameras = [
        Camera("ts", ("play",), 100),
        Camera("mjpeg", ("stall",), 0.5),
        Camera("ts", ("refuse",)),
    ]
    code = "from nmsfree.cli.main import main; main()"
    with serving(*cameras, user="user:secret@") as urls:
        options = ["-m", str(tiny), "--save-dir", str(tmp_path / "out"), "--json", "-"]
        with subprocess.Popen(
            [sys.executable, "-c", code, "detect", *urls, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as run:
            assert run.stdout is not None
            assert "http://127.0.0.1" in run.stdout.readline()
            time.sleep(2)
            run.send_signal(signal.SIGINT)
            start = time.monotonic()
            out, err = run.communicate(timeout=10)
            took = time.monotonic() - start
    assert took < 2, err
    assert run.returncode == 130, err
    assert "interrupted after" in err and "Traceback" not in err
    for kind in ("ts", "mjpeg"):
        assert re.search(rf"^http://127.0.0.1:\d+/{kind}: [1-9]\d* frames", err, re.M), err
    assert "secret" not in out + err
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert "detections.jsonl" in written and len(written) == 3
    assert "secret" not in " ".join(written) + (tmp_path / "out/detections.jsonl").read_text()


@pytest.mark.slow
def test_four_cameras_with_all_their_troubles(tiny: Path, quick: None) -> None:
    """`cameras.py` does it for ten minutes."""
    cameras = [Camera(kind, seconds=1) for kind in ("ts", "mjpeg", "udp")]
    cameras.append(Camera("ts", ("play",), 100))
    with serving(*cameras):
        watched = watch(tiny, cameras, seconds=18, pause=0.01)
    assert list(problems_of(watched, cameras)) == []
    assert min(camera.connections for camera in cameras[:3]) >= 3
    assert watched.live[3].connected == 1 and watched.live[3].received > 300
