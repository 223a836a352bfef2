"""Live sources against cameras on 127.0.0.1 that stall, end, send garbage and come back."""

import itertools
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cameras import FPS, Camera, number_of, problems_of, serving, watch
from test_runtime_streams import write_video

import nmsfree
from nmsfree import Detector, Frame, InputError
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


@contextmanager
def rtsp(
    port: int, user: str = "user:secret@"
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """GStreamer's server, by the system's Python, which has it; and its URLs."""
    command = ["/usr/bin/python3", Path(__file__).with_name("rtsp_server.py"), str(port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as server:  # type: ignore[call-overload]
        try:
            paths = list(iter(lambda: server.stdout.readline().strip(), "ready"))
            yield server, [f"rtsp://{user}127.0.0.1:{port}/{path}" for path in paths]
        finally:
            server.kill()


@pytest.fixture
def port() -> int:
    """A free one, if there is a server for it."""
    code = "import gi; gi.require_version('GstRtspServer', '1.0')"
    python = Path("/usr/bin/python3")
    if not python.exists() or subprocess.run([python, "-c", code], capture_output=True).returncode:
        pytest.skip("needs gir1.2-gst-rtsp-server-1.0, python3-gi and plugins of GStreamer")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    return number


def test_an_rtsp_server_is_watched(tiny: Path, port: int) -> None:
    """Two codecs at once; the wrong password is refused, and neither is shown."""
    with rtsp(port) as (_, urls), Detector(tiny) as detector:
        seen: dict[str, list[Frame]] = {url.rpartition("/")[2]: [] for url in urls}
        for frame, _found in nmsfree.stream(urls, detector, max_frames=12):
            seen[frame.source.name.rpartition("/")[2]].append(frame)
        wrong = urls[0].replace("secret", "guess")
        with pytest.raises(InputError, match=r"rtsp://127\.0\.0\.1:\d+/\w+: no conn.*401") as info:
            next(nmsfree.stream(wrong, detector, give_up=0))
    assert "jpeg" in seen and "guess" not in str(info.value)
    for frames in seen.values():
        assert len(frames) == 12
        assert all(a.time < b.time for a, b in itertools.pairwise(frames))  # type: ignore[operator]
        for frame in frames:
            assert frame.image.shape == (240, 320, 3)
            assert (abs(frame.image[120, 160].astype(int) - (0, 0, 255)) < 25).all(), "red in BGR"


@pytest.mark.parametrize("trouble", [signal.SIGSTOP, signal.SIGKILL])
def test_an_rtsp_server_that_is_lost_is_connected_again(
    tiny: Path, port: int, trouble: signal.Signals, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    with Detector(tiny) as detector, ExitStack() as servers:
        server, urls = servers.enter_context(rtsp(port))
        frames = nmsfree.stream(urls[0], detector)
        with closing(frames):  # type: ignore[type-var]
            first = next(frames)[0]
            server.send_signal(trouble)
            end = time.monotonic() + 20
            while "trying again" not in caplog.text and time.monotonic() < end:
                time.sleep(0.05)
            if trouble == signal.SIGKILL:
                servers.enter_context(rtsp(port))
            else:
                server.send_signal(signal.SIGCONT)
            seen = [next(frames)[0] for _ in range(5)]
    assert [one.number for one in seen] == sorted({one.number for one in seen})  # type: ignore[type-var]
    assert seen[-1].time > first.time  # type: ignore[operator]
    reasons = {signal.SIGSTOP: "no answer for 1 s", signal.SIGKILL: "lost|ended"}
    assert re.search(rf"127.0.0.1:{port}/\w+: .*({reasons[trouble]}).*: trying again", caplog.text)
    assert "secret" not in caplog.text + repr(first.source)


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
            # As a terminal has it, whatever started the tests.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
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
    cameras = [Camera(kind, seconds=1) for kind in ("ts", "mjpeg", "udp")]
    cameras.append(Camera("ts", ("play",), 100))
    with serving(*cameras):
        watched = watch(tiny, cameras, seconds=18, pause=0.01)
    assert list(problems_of(watched, cameras)) == []
    assert min(camera.connections for camera in cameras[:3]) >= 3
    assert watched.live[3].connected == 1 and watched.live[3].received > 300
