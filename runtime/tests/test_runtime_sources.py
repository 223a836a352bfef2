"""Finding pictures: files, folders, patterns, videos; and the names of what is written."""

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from nmsfree import InputError, read_image
from nmsfree.streams.sources import expand, find_images
from nmsfree.streams.video import Video
from nmsfree.streams.writers import new_run_folder, picture_names


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures and other things in it, the current one."""
    for name in ["b.png", "a.JPG", "sub/a.jpg", "sub/deep/c.webp", "clip.mp4", "notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in [".hidden.png", ".cache/d.png", "odd[1].png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*arguments: str) -> list[str]:
    found, problems = expand(arguments)
    assert problems == []
    return [Path(source.name).as_posix() for source in found]


@pytest.fixture
def make_video(noise: Callable[..., NDArray[np.uint8]]) -> Callable[..., Path]:
    def make(path: Path, frames: int = 12, height: int = 64, width: int = 96) -> Path:
        codec = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(path), codec, 10, (width, height))
        for seed in range(frames):
            writer.write(noise(seed, height, width))
        writer.release()
        return path

    return make


def said(caplog: pytest.LogCaptureFixture) -> str:
    """The one line that a walk logged."""
    (record,) = caplog.records
    caplog.clear()
    return record.getMessage()


def test_what_a_folder_leaves_out_is_said_in_one_line(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.mkfifo(tree / "sub/pipe.jpg")
    for name in ("clip.heic", "d.svg", "sub/\x1b[31m.exe"):
        (tree / name).touch()
    names(".")
    assert said(caplog) == (
        ".: left out: 2 hidden (.cache, .hidden.png); "
        "5 of other kinds (clip.heic, clip.mp4, d.svg, …); 1 no regular files (sub/pipe.jpg)"
    )
    names("sub")
    assert r"(\x1b[31m.exe)" in said(caplog)
    names("*")
    assert said(caplog) == "*: left out: 3 of other kinds (clip.heic, d.svg, notes.txt)"
    find_images(tree / "sub/deep")
    find_images(tree / "nowhere")
    assert not caplog.records


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".gif", ".ppm", ".pgm", ".jp2", ".avif"])
def test_every_suffix_that_is_taken_from_a_folder_can_be_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("Pillow writes no AVIF")
    kind = {".jfif": "JPEG", ".JPE": "JPEG", ".jp2": "JPEG2000"}.get(suffix)
    Image.new("L" if suffix == ".pgm" else "RGB", (40, 30)).save(tmp_path / f"a{suffix}", kind)
    (path,) = find_images(tmp_path)
    assert read_image(path).shape == (30, 40, 3)


def test_linked_folders_are_followed_once_and_never_in_circles(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("in/real/a.png", "store/b.png", "store/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/early").symlink_to(tmp_path / "in/real")  # before its target in the alphabet
    (tmp_path / "in/one").symlink_to(tmp_path / "store")
    (tmp_path / "in/two").symlink_to(tmp_path / "store")
    (tmp_path / "store/deep/back").symlink_to(tmp_path / "in")
    (tmp_path / "in/broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in/broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "in/loop.png").symlink_to(tmp_path / "in/loop.png")
    found = [path.relative_to(tmp_path / "in").as_posix() for path in find_images(tmp_path / "in")]
    expected = ["broken.png", "loop.png", "one/b.png", "one/deep/c.png", "real/a.png"]
    assert found == expected, "what cannot be read is named when it is read"
    assert "3 linked twice or in a circle (early, two, one/deep/back)" in said(caplog)


def test_a_folder_without_permission_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed/a.png").touch()
    (tmp_path / "b.png").touch()
    tmp_path.chmod(0o755)
    (tmp_path / "closed").chmod(0)
    monkeypatch.chdir(tmp_path)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # root may read everything
    try:
        found = find_images(Path())
    finally:
        if root:
            os.seteuid(0)
        (tmp_path / "closed").chmod(0o755)
    assert found == [Path("b.png")]
    assert "1 not to be read (Permission denied) (closed)" in said(caplog)


def test_a_folder_gives_its_images_sorted(tree: Path) -> None:
    everything = ["a.JPG", "b.png", "odd[1].png", "sub/a.jpg", "sub/deep/c.webp"]
    assert names(".") == everything
    assert names(str(tree)) == [(tree / name).as_posix() for name in everything]


def test_files_keep_their_order_and_appear_once(tree: Path) -> None:
    assert names("sub/a.jpg", "b.png") == ["sub/a.jpg", "b.png"]
    (tree / "link.png").symlink_to(tree / "b.png")
    assert names("b.png", "./b.png", str(tree / "b.png"), "link.png", "sub", "sub/a.jpg") == [
        "b.png",
        "sub/a.jpg",
        "sub/deep/c.webp",
    ]


def test_patterns_are_expanded(tree: Path) -> None:
    assert names("*.png") == ["b.png", "odd[1].png"]
    assert names("*") == ["a.JPG", "b.png", "clip.mp4", "odd[1].png"]
    assert names("**/*.jpg") == ["sub/a.jpg"]
    assert names("sub/**") == ["sub/a.jpg", "sub/deep/c.webp"]
    assert names("[ab].*") == ["a.JPG", "b.png"]
    assert names("odd[1].png") == ["odd[1].png"], "a file of that name comes first"


def test_kinds(tree: Path) -> None:
    (tree / "7").touch()
    found, problems = expand(["clip.mp4", "a.JPG", "notes.txt", "0", "7"])
    assert [s.kind for s in found] == ["video", "image", "image", "camera", "image"]
    assert problems == []
    assert expand(["9" * 20])[0] == []


def test_what_leads_nowhere_is_said(tree: Path) -> None:
    found, problems = expand(["absent.jpg", "empty", "*.gif", "b.png", "ftp://u:p@host/a.jpg"])
    assert [source.name for source in found] == ["b.png"]
    said = ["absent.jpg", "empty", "*.gif", "ftp"]
    assert [problem.split(":")[0] for problem in problems] == said
    assert "u:p" not in problems[-1]
    assert not any("\n" in problem for problem in problems)


def relative_names(*arguments: str) -> list[str]:
    found, _ = expand(arguments)
    given = picture_names(found)
    assert len({str(path).lower() for path in given.values()}) == len(found)
    assert not any(path.is_absolute() or ".." in path.parts for path in given.values())
    return [given[source].as_posix() for source in found]


def test_written_names_mirror_the_folders(tree: Path) -> None:
    assert relative_names("sub/deep/c.webp") == ["c.webp"]
    assert relative_names("sub") == ["a.jpg", "deep/c.webp"]
    assert relative_names("a.JPG", "sub/a.jpg") == ["a.JPG", "sub/a.jpg"]
    assert relative_names("sub/../sub/a.jpg") == ["a.jpg"]
    (tree / "other").mkdir()
    (tree / "other/a.jpg").touch()
    assert relative_names("sub", "other") == ["sub/a.jpg", "sub/deep/c.webp", "other/a.jpg"]
    os.chdir(tree / "sub")
    assert relative_names("../other", "a.jpg") == ["other/a.jpg", "sub/a.jpg"]


def test_written_names_have_a_format_that_can_be_written(tree: Path) -> None:
    (tree / "clip.AVI").touch()
    (tree / "clip.avi.mp4").touch()
    assert relative_names("notes.txt", "clip.mp4", "clip.AVI", "clip.avi.mp4", "0") == [
        "notes.txt.png",
        "clip.mp4",
        "clip.AVI.mp4",
        "clip.avi-2.mp4",
        "camera-0.mp4",
    ]


def test_run_folders_are_numbered(tmp_path: Path) -> None:
    parent = tmp_path / "runs" / "detect"
    assert [new_run_folder(parent).name for _ in range(3)] == ["1", "2", "3"]
    (parent / "10").mkdir()
    (parent / "mine").mkdir()
    assert new_run_folder(parent) == parent / "11"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        new_run_folder(tmp_path / "file" / "detect")


def test_a_video_gives_its_frames(
    tmp_path: Path, make_video: Callable[..., Path], noise: Callable[..., NDArray[np.uint8]]
) -> None:
    path = make_video(tmp_path / "clip.mp4")
    with Video(path) as video:
        frames = [frame.load() for frame in video]
        assert (video.fps, video.frame_count, len(frames)) == (10, 12, 12)
    for seed, frame in enumerate(frames):
        assert frame.shape == (64, 96, 3)
        errors = [np.abs(frame.astype(int) - noise(other)).mean() for other in range(12)]
        assert int(np.argmin(errors)) == seed, "in order, and none twice"


def test_a_video_that_is_none_is_refused(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    path = make_video(tmp_path / "clip.mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (tmp_path / "text.mp4").write_text("hello")
    for name in ("clip.mp4", "text.mp4", "absent.mp4"):
        with pytest.raises(InputError, match="not a video"):
            Video(tmp_path / name)


def test_a_video_that_ends_early_is_noticed(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    path = make_video(tmp_path / "clip.avi", frames=40)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    seen = 0
    with Video(path) as video, pytest.raises(InputError, match="ends after"):
        for _ in video:
            seen += 1
    assert 0 < seen < 38, "what could be read was given"


def test_videos_of_any_name_are_read_and_pipes_are_not(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    clip = make_video(tmp_path / "clip.mp4")
    for name in (b"caf\xe9.mp4", "café ✓.mp4".encode(), b"\x1b[31m.mp4"):
        odd = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))  # noqa: PTH118
        odd.symlink_to(clip)
        with Video(odd) as video:
            assert len(list(video)) == 12
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(InputError, match="is a pipe or device"):
        Video(tmp_path / "pipe.mp4")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://user:secret@cam.lan:554/live/1", "rtsp://cam.lan:554/live/1"),
        ("rtsp://user:se/cr@et@cam.lan/live", "rtsp://cam.lan/live"),
        ("http://cam.lan/video.mjpg?token=secret#part", "http://cam.lan/video.mjpg"),
        ("http://[::1]:8080/a", "http://[::1]:8080/a"),
        ("http://user:[secret@cam/", "http://cam/"),
        ("udp://@239.0.0.1:1234", "udp://239.0.0.1:1234"),
        ("HTTP://cam.lan/\x1b[2J", "HTTP://cam.lan/\\x1b[2J"),
    ],
)
def test_urls_are_live_sources_that_never_show_a_password(url: str, shown: str) -> None:
    (source,), problems = expand([url, url])
    assert (source.kind, source.url, source.name, problems) == ("url", url, shown, [])
    assert "secret" not in repr(source) and "et@" not in repr(source)
    (name,) = picture_names([source]).values()
    assert name.suffix == ".mp4" and "/" not in str(name)
