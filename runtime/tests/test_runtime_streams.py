"""The flow of stages, and `nmsfree.stream` over pictures, videos and several of them."""

import itertools
import threading
import time
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from runtime_helpers import Noise

import nmsfree
from nmsfree import Detector, Frame, InputError, ModelError
from nmsfree.streams.flow import Stage, flow
from nmsfree.streams.video import Video
from nmsfree.streams.video_file import VideoFile


def count(taken: list[int], end: int = 10**6) -> Generator[int, None, None]:
    for number in range(end):
        taken.append(number)
        yield number


def our_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("nmsfree-")]


def test_a_flow_keeps_the_order_and_runs_its_stages_at_once() -> None:
    together = threading.Barrier(3)  # passed only if three items are in the stage at once

    def slow_when_even(number: int) -> int:
        together.wait(10)
        time.sleep(0.002 * (number % 2))
        return number

    stages = [Stage("a", slow_when_even, 3), Stage("b", lambda number: -number)]
    assert list(flow(count([], 30), stages, ahead=8)) == [-n for n in range(30)]
    assert our_threads() == []


def test_a_flow_reads_no_further_than_it_may() -> None:
    taken: list[int] = []
    results = flow(count(taken), [Stage("a", lambda number: number, 2)], ahead=4)
    for number in range(3):
        assert next(results) == number
        time.sleep(0.02)
        assert len(taken) <= number + 4
    results.close()
    assert our_threads() == []


@pytest.mark.parametrize("where", ["items", "first", "last"])
def test_what_fails_in_a_flow_comes_out_in_its_place_and_ends_it(where: str) -> None:
    def fail_at_five(number: int) -> int:
        if number == 5:
            raise ModelError("five")
        return number

    def same(number: int) -> int:
        return number

    source: Iterator[int] = count([])
    if where == "items":
        source = (fail_at_five(number) for number in source)
    stages = [
        Stage("first", fail_at_five if where == "first" else same, 3),
        Stage("last", fail_at_five if where == "last" else same),
    ]
    results = flow(source, stages, ahead=6)  # type: ignore[arg-type]
    assert list(itertools.islice(results, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(ModelError, match="five") as info:
        next(results)
    noted = [] if where == "items" else [f"in the stage {where!r}"]
    assert getattr(info.value, "__notes__", []) == noted
    assert our_threads() == []


def write_video(
    path: Path,
    pictures: list[NDArray[np.uint8]],
    *,
    times: list[float] | None = None,
    rotation: int = 0,
    codec: str = "mpeg4",
) -> Path:
    """A video at 20 frames a second, or with frames at the given seconds."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, 20)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        stream.bit_rate = 4_000_000
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts = round(1000 * (number / 20 if times is None else times[number]))
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def clip(tmp_path: Path, noise: Noise) -> Path:
    return write_video(tmp_path / "clip.mp4", [noise(seed) for seed in range(12)])


def test_a_stream_gives_what_the_detector_gives(tiny: Path, clip: Path, noise: Noise) -> None:
    cv2.imwrite(str(clip.parent / "a.png"), noise(99, 120, 180))
    with Detector(tiny) as detector, Video(clip) as video:
        pictures = [frame.load() for frame in video]
        results = list(nmsfree.stream([clip, clip.parent / "a.png"], detector, threshold=0.55))
        assert [frame.number for frame, _ in results] == [*range(12), None]
        assert [frame.time for frame, _ in results[:3]] == pytest.approx([0, 0.05, 0.1])
        for (frame, found), picture in zip(results, [*pictures, noise(99, 120, 180)], strict=True):
            assert isinstance(frame, Frame)
            np.testing.assert_array_equal(frame.image, picture)
            expected = detector(picture, threshold=0.55)
            np.testing.assert_array_equal(found.xyxy, expected.xyxy)
            np.testing.assert_array_equal(found.confidence, expected.confidence)
        first = list(nmsfree.stream(str(clip), detector, max_frames=3))
        assert [frame.number for frame, _ in first] == [0, 1, 2]
    assert our_threads() == []


def test_a_stream_refuses_what_it_cannot_do(tiny: Path, clip: Path) -> None:
    (clip.parent / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with Detector(tiny) as detector:
        with pytest.raises(InputError, match="no such file"):
            next(nmsfree.stream("absent.mp4", detector))
        for camera in (99, [99]):
            with pytest.raises(InputError, match="99"):
                next(nmsfree.stream(camera, detector, give_up=0.1))
        with pytest.raises(InputError, match="threshold is 7"):
            next(nmsfree.stream(clip, detector, threshold=7))
        results = nmsfree.stream([clip, clip.parent / "broken.png"], detector)
        assert len(list(itertools.islice(results, 12))) == 12
        with pytest.raises(InputError, match=r"broken\.png: not an image"):
            next(results)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_a_video_is_turned_as_it_says(tmp_path: Path, noise: Noise, turn: int) -> None:
    """OpenCV, which turns it too, is the second opinion."""
    plain = write_video(tmp_path / "plain.mp4", [noise(3)] * 3)
    path = turned(plain, tmp_path / "turned.mp4", turn)
    with Video(path) as video:
        picture = next(iter(video)).load()
    capture = cv2.VideoCapture(str(path))
    expected = capture.read()[1]
    capture.release()
    assert picture.shape == expected.shape == ((96, 64, 3) if turn % 180 else (64, 96, 3))
    assert np.abs(picture.astype(int) - expected).mean() < 3


def turned(source: Path, target: Path, turn: int) -> Path:
    """Write the rotation into the matrix of the track's header (ISO 14496-12, tkhd)."""
    data = bytearray(source.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 4 + 5 * 4 + 2 * 4 + 4 * 2
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    for offset, value in ((0, cos), (4, sin), (12, -sin), (16, cos)):
        data[matrix + offset : matrix + offset + 4] = (value << 16).to_bytes(4, "big", signed=True)
    target.write_bytes(data)
    return target


def test_frames_of_a_variable_rate_keep_their_times(tmp_path: Path, noise: Noise) -> None:
    times = [0, 0.05, 0.5, 0.55, 2.0]
    pictures = [noise(seed) for seed in range(5)]
    with Video(write_video(tmp_path / "vfr.mp4", pictures, times=times)) as video:
        assert [frame.time for frame in video] == pytest.approx(times, abs=0.002)
    written = VideoFile(tmp_path / "out.mp4", 10, 64, 96)
    for picture, when in zip(pictures, times, strict=True):
        written.write(picture, when)
    written.finish()
    with Video(tmp_path / "out.mp4") as video:
        assert [frame.time for frame in video] == pytest.approx(times, abs=0.002)


def test_written_videos_are_what_browsers_play(tmp_path: Path, noise: Noise) -> None:
    video = VideoFile(tmp_path / "out.mp4", 29.97, 63, 97)
    pictures = [noise(seed, 63, 97) for seed in range(8)]
    for picture in pictures:
        video.write(picture)
    video.finish()
    data = (tmp_path / "out.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat"), "the index comes first"
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.height, context.width) == (
            *("h264", "yuv420p"),
            *(64, 98),
        )
        assert float(container.streams.video[0].average_rate or 0) == pytest.approx(29.97, abs=0.01)
    with Video(tmp_path / "out.mp4") as read:
        for frame, picture in zip(read, pictures, strict=True):
            assert np.abs(frame.load()[:63, :97].astype(int) - picture).mean() < 20


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
def test_a_video_with_a_broken_tail_gives_what_is_there(
    tmp_path: Path, noise: Noise, suffix: str
) -> None:
    pictures = [noise(seed % 5) for seed in range(60)]
    path = write_video(tmp_path / f"clip{suffix}", pictures)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    if suffix == ".mp4":  # its index is gone
        with pytest.raises(InputError, match="not a video"):
            Video(path)
        return
    seen = 0
    with Video(path) as video:
        try:
            for frame in video:
                assert frame.load().shape == (64, 96, 3)
                seen += 1
        except InputError as error:
            assert "ends after" in str(error)
    assert 20 < seen < 50


def test_without_pyav_opencv_reads_and_writes(
    tmp_path: Path, clip: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Video(clip) as video:
        expected = [frame.load() for frame in video]
    monkeypatch.setattr("nmsfree.streams.video.has_pyav", lambda: False)
    monkeypatch.setattr("nmsfree.streams.video_file.has_pyav", lambda: False)
    with Video(clip) as video:
        assert (video.fps, video.frame_count) == (20, 12)
        for frame, picture in zip(video, expected, strict=True):
            assert np.abs(frame.load().astype(int) - picture).mean() < 3
    written = VideoFile(tmp_path / "out.mp4", 10, 64, 96)
    written.write(noise(0), 0.0)
    written.finish()
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
