"""`nmsfree detect` as a user runs it, on a tiny model that finds pure colours."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from runtime_helpers import Noise

import nmsfree
from nmsfree import Detector, InputError, read_image
from nmsfree.cli.detect import Run
from nmsfree.images import write_picture
from nmsfree.streams.sources import WRITTEN_SUFFIXES, Frame, expand
from nmsfree.streams.video import Video
from nmsfree.streams.video_file import VideoFile
from nmsfree.streams.writers import Output, picture_names

Detect = Callable[..., tuple[int, str, str]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_spec: Any, make_onnx: Any) -> Path:
    """An empty current folder with the tiny model in it."""
    make_onnx(tmp_path / "tiny.onnx", make_spec())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def detect(place: Path, nmsfree_command: Any) -> Detect:
    """Run `nmsfree detect` as the console script does: exit status, stdout, stderr."""
    return lambda *arguments, model="tiny.onnx": nmsfree_command(
        "detect", *arguments, "--model", model
    )


@pytest.fixture
def photos(place: Path, noise: Noise) -> Path:
    """A folder with pictures of one name in different folders."""
    for seed, name in enumerate(["photos/a.png", "photos/b.jpg", "photos/sub/a.png"]):
        (place / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(place / name), noise(seed, 120, 180))
    return place / "photos"


@pytest.fixture
def clip(place: Path, noise: Noise) -> Path:
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter.fourcc(*"MJPG"), 12, (96, 62))
    for seed in range(9):
        writer.write(noise(seed, 62, 96))
    writer.release()
    return place / "clip.avi"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def written(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_large_pictures_in_tiles(detect: Detect, place: Path) -> None:
    """A spot that is lost when the picture is reduced is seen in a tile at its own size."""
    picture = np.zeros((640, 960, 3), np.uint8)
    picture[80:88, 240:248] = (0, 0, 255)
    cv2.imwrite("large.png", picture)
    for options, expected in (((), []), (("--tile", "96", "--overlap", "32"), ["red"])):
        status, out, _ = detect("large.png", "--json", "-", "--no-save", *options)
        assert (status, [row["class"] for row in lines(out)]) == (0, expected)
    assert lines(out)[0]["box"] == pytest.approx([240, 80, 248, 88], abs=4)
    status, _, err = detect("large.png", "--overlap", "32")
    assert (status, "expected a tile with it" in err) == (2, True)
    assert not (place / "runs").exists()


@pytest.mark.parametrize(("name", "height"), [("a.jpg", 640), ("a.jpg", 643), ("a.png", 640)])
def test_reduced_jpegs_give_boxes_of_the_file(
    name: str, height: int, detect: Detect, place: Path
) -> None:
    """Also of a size that the reduction does not divide; a PNG is decoded whole."""
    picture = np.zeros((height, 961, 3), np.uint8)
    picture[400:, 600:] = (0, 0, 255)
    cv2.imwrite(name, picture)
    boxes = []
    with Detector("tiny.onnx") as detector:
        for reduced in (False, True):
            ((frame, found),) = nmsfree.stream(name, detector, reduced=reduced)
            boxes.append(found.xyxy[0])
    assert frame.size == ((height, 961) if name == "a.jpg" else None)
    short = 80 if height == 640 else 81
    assert frame.image.shape == ((short, 121, 3) if name == "a.jpg" else picture.shape)
    np.testing.assert_allclose(*boxes, atol=8)
    assert (boxes[1][2:] <= (961, height)).all()
    status, out, _ = detect(name, "--json", "-", "--no-save", "--reduced")
    assert status == 0 and lines(out)[0]["box"] == pytest.approx(boxes[1], abs=0.1)


def test_reduced_pictures_are_neither_drawn_nor_tiled(detect: Detect, photos: Path) -> None:
    for options in ((), ("--no-pictures", "--tile", "96")):
        status, _, err = detect("photos", "--reduced", *options)
        assert status == 2 and "add --no-pictures, without --tile" in err


def test_a_run_without_a_picture_leaves_no_folder(detect: Detect, place: Path) -> None:
    (place / "bad.png").write_bytes(b"no picture")
    status, out, _ = detect("bad.png")
    assert (status, "0 images, 0 objects, nothing saved" in out) == (1, True)
    assert list((place / "runs/detect").iterdir()) == []


def test_a_folder(detect: Detect, photos: Path, place: Path) -> None:
    status, out, _ = detect("photos")
    folder = place / "runs/detect/1"
    assert status == 0
    assert written(folder) == ["a.png", "b.jpg", "detections.jsonl", "sub/a.png"]
    found = lines((folder / "detections.jsonl").read_text("utf-8"))
    assert f"3 images, {len(found)} objects" in out
    assert "images/s" in out
    assert "runs/detect/1" in out
    assert list(dict.fromkeys(row["image"] for row in found)) == [
        str(Path("photos/a.png")),
        str(Path("photos/b.jpg")),
        str(Path("photos/sub/a.png")),
    ]
    with Detector("tiny.onnx") as detector:
        for name in ("photos/a.png", "photos/sub/a.png"):
            expected = [
                {
                    "image": str(Path(name)),
                    "box": pytest.approx(box, abs=5e-4),
                    "class": class_name,
                    "class_id": class_id,
                    "score": pytest.approx(confidence, abs=1e-6),
                    "truncated": True,  # noise fills all ten rows
                }
                for box, confidence, class_id, class_name in detector(name)
            ]
            assert [row for row in found if row["image"] == str(Path(name))] == expected != []
    for name in ("a.png", "sub/a.png"):
        source, picture = read_image(photos / name), read_image(folder / name)
        assert picture.shape == (480, 720, 3), "enlarged four times"
        back = cv2.resize(picture, (180, 120), interpolation=cv2.INTER_AREA)
        same = np.abs(back.astype(int) - source).max(axis=2) < 12
        assert 0.3 < same.mean() < 0.99, "the photo, with something drawn on it"


def test_pictures_that_fill_all_rows_are_told(detect: Detect, place: Path) -> None:
    for name, value in (("black", 0), ("white", 255)):
        cv2.imwrite(f"{name}.png", np.full((64, 96, 3), value, np.uint8))
    red = np.zeros((64, 96, 3), np.uint8)
    red[:8, :8, 2] = 255
    cv2.imwrite("red.png", red)
    _, out, err = detect("black.png", "white.png", "red.png", "--no-save", "--json", "-")
    assert "warning: 1 of them filled all 10 rows of the model" in err
    assert [(row["image"], row.get("truncated")) for row in lines(out)] == [
        *[("white.png", True)] * 10,
        ("red.png", None),
    ]
    assert "warning" not in detect("black.png", "red.png", "--no-save")[2]


def test_unreadable_files_are_named_and_the_rest_is_done(
    detect: Detect, photos: Path, place: Path
) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (photos / "empty.png").touch()
    (place / "broken.mp4").write_text("no video")
    (place / "out/photos/b.jpg").mkdir(parents=True)  # in the way of a picture
    status, out, err = detect("photos", "absent.jpg", "broken.mp4", "99", "--save-dir", "out")
    assert status == 1
    assert "3 images" in out and "not all saved in out" in out
    named = [line.split(": ")[1] for line in err.splitlines() if line.startswith("error: ")]
    broken = ["absent.jpg", "broken.mp4", "camera 99", "out/photos/b.jpg"]
    assert sorted(named) == [*broken, "photos/broken.jpg", "photos/empty.png"]
    pictures = ["photos/a.png", "photos/sub/a.png"]
    assert written(place / "out") == ["detections.jsonl", *pictures]
    assert detect("photos/[ab].png", "--save-dir", "new")[0] == 0, "a pattern the shell left alone"
    assert written(place / "new") == ["a.png", "detections.jsonl"]


def test_names_cannot_steer_the_terminal(
    detect: Detect, photos: Path, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("\x1b[31m[b].png", os.fsdecode(b"caf\xe9.png")):
        (photos / name).write_bytes(b"no picture")
    (photos / "\x1b[2J.heic").touch()
    status, out, err = detect("photos", "--save-dir", "o\x1b[0m")
    assert status == 1
    assert "\x1b" not in out + err + caplog.text
    assert r"photos/\x1b[31m[b].png: not an image" in err.replace("\\photos", "/photos")
    assert r"caf\xe9.png: not an image" in err
    assert r"saved in o\x1b[0m" in out
    assert r"1 of other kinds (\x1b[2J.heic)" in caplog.text


def test_json_on_stdout_is_all_there_is(detect: Detect, photos: Path, place: Path) -> None:
    (photos / "broken.jpg").touch()
    status, out, err = detect("photos", "--json", "-", "--save-dir", "out")
    assert status == 1
    assert out == (place / "out/detections.jsonl").read_text("utf-8") != ""
    assert "3 images" in err


def test_nothing_is_saved_when_not_wanted(detect: Detect, photos: Path, place: Path) -> None:
    before = written(place)
    for option in ("--no-save", "--no-pictures"):
        status, out, _ = detect("photos", option, "--json", "-")
        assert status == 0
        assert {row["class"] for row in lines(out)} <= {"blue", "green", "red"}
        assert written(place) == before
    detect("photos", "--no-pictures", "--save-dir", "out", "--json", "elsewhere/lines.jsonl")
    assert written(place / "out") == ["detections.jsonl"]
    assert (place / "elsewhere/lines.jsonl").read_bytes() == (
        place / "out/detections.jsonl"
    ).read_bytes()


def test_options_reach_the_detector(detect: Detect, photos: Path) -> None:
    def found(*options: str) -> list[dict[str, Any]]:
        rows = lines(detect("photos", "--no-save", "--json", "-", *options)[1])
        return [row | {"truncated": None} for row in rows]  # of the options, not of the object

    everything = found("--threshold", "0.5")
    middle = str(np.median([row["score"] for row in everything]))
    strict = found("--threshold", middle)
    assert strict == [row for row in everything if row["score"] > float(middle)]
    assert 0 < len(strict) < len(everything)
    chosen = [row for row in everything if row["class"] in ("red", "blue")]
    for classes in ("red, blue", "2,blue"):
        assert found("--threshold", "0.5", "--classes", classes) == chosen
    assert 0 < len(chosen) < len(everything)
    one = found("--max-detections", "1")
    assert len(one) == len({row["image"] for row in one}) == 3


def test_a_video(detect: Detect, clip: Path, place: Path) -> None:
    status, out, _ = detect("clip.avi", "--save-dir", "out")
    assert status == 0
    assert "9 frames" in out and "frames/s" in out
    assert written(place / "out") == ["clip.avi.mp4", "detections.jsonl"]
    found = lines((place / "out/detections.jsonl").read_text("utf-8"))
    assert sorted({row["frame"] for row in found}) == list(range(9))
    with Video(place / "out/clip.avi.mp4") as video:
        frames = [frame.load() for frame in video]
        assert (len(frames), video.fps) == (9, 12)
    assert frames[0].shape[:2] == (62 * 7, 96 * 7), "enlarged like pictures"
    detect("clip.avi", "--save-dir", "short", "--max-frames", "4")
    found = lines((place / "short/detections.jsonl").read_text("utf-8"))
    assert {row["frame"] for row in found} == {0, 1, 2, 3}


def test_pictures_and_videos_together_with_a_fixed_batch(
    detect: Detect, photos: Path, clip: Path, place: Path, make_spec: Any, make_onnx: Any
) -> None:
    """A batch that spans sources gives what single images give."""
    arguments = ("photos", "clip.avi", "--no-save", "--json", "-")
    single = detect(*arguments)[1]
    make_onnx(place / "tiny.onnx", make_spec(batch=5))
    assert detect(*arguments)[1] == single != ""


def test_every_image_suffix_can_be_written(detect: Detect, place: Path, noise: Noise) -> None:
    names = [f"{number}{suffix}" for number, suffix in enumerate(WRITTEN_SUFFIXES)]
    for name in names:
        cv2.imencode(Path(name).suffix, noise(0))[1].tofile(place / name)
    assert detect(*names, "--save-dir", "out")[0] == 0
    for name in names:
        assert read_image(place / "out" / name).shape == (64 * 7, 96 * 7, 3)


def test_sources_are_never_overwritten(detect: Detect, photos: Path) -> None:
    before = (photos / "a.png").read_bytes()
    status, _, err = detect("photos", "--save-dir", "photos")
    assert status == 2
    assert "would replace an input" in err
    assert (photos / "a.png").read_bytes() == before
    assert "detections.jsonl" not in written(photos)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.jpg", "nothing/*.png"], "no source found"),
        (["photos", "--classes", "cat"], "class 'cat' is unknown"),
        (["photos", "--threshold", "0.1"], "threshold is 0.1"),
        (["photos", "--threshold", "half"], "threshold is 'half', expected a number, 'per-class'"),
        (["photos", "--threshold", "per-class"], "threshold is 'per-class', but this model holds"),
        (["photos", "--device", "tpu"], "device is 'tpu'"),
        (["photos", "--save-dir", "tiny.onnx"], "cannot be written"),
        (["photos", "--max-detections", "0"], "--max-detections"),
        ([], "SOURCE"),
    ],
)
def test_wrong_use_ends_with_status_2_before_anything_is_written(
    detect: Detect, photos: Path, place: Path, arguments: list[str], words: str
) -> None:
    before = written(place)
    status, out, err = detect(*arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert written(place) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])  # of SIGTERM
def test_a_run_that_ends_early_keeps_what_is_done(
    photos: Path, clip: Path, place: Path, error: type[BaseException]
) -> None:
    """It fails at the sixth frame of a video."""
    sources, _ = expand(["photos/a.png", "clip.avi", "photos/b.jpg"])
    with Video(clip) as video:
        sixth = list(video)[5].load()
    with Detector("tiny.onnx") as detector, Output(picture_names(sources), place / "out") as output:

        def look(images: list[NDArray[np.uint8]]) -> Any:
            if np.array_equal(images[0], sixth):
                raise error
            return detector.batch(images)

        run = Run(look, output, batch=1)
        with nullcontext() if error is KeyboardInterrupt else pytest.raises(error):
            run.over(sources)
    assert run.interrupted == (error is KeyboardInterrupt)
    assert str(run).removeprefix("interrupted after ").startswith("6 images")
    assert written(place / "out") == ["clip.avi.mp4", "detections.jsonl", "photos/a.png"]
    with Video(place / "out/clip.avi.mp4") as video:
        assert len(list(video)) == 5
    found = lines((place / "out/detections.jsonl").read_text("utf-8"))
    assert {row.get("frame") for row in found} == {None, 0, 1, 2, 3, 4}


def test_an_output_that_fails_is_named_and_the_rest_is_done(
    detect: Detect, photos: Path, clip: Path, place: Path
) -> None:
    (place / "out").mkdir()
    (place / "out/sub").write_text("a file where a folder should be")
    (place / "out/b.jpg").mkdir()
    status, out, err = detect("photos", "--save-dir", "out")
    assert status == 1
    assert "3 images" in out
    named = [line.split(": ")[1] for line in err.splitlines() if line.startswith("error: ")]
    assert named == [str(Path("out/b.jpg")), str(Path("out/sub/a.png"))]
    assert written(place / "out") == ["a.png", "detections.jsonl", "sub"]
    found = lines((place / "out/detections.jsonl").read_text("utf-8"))
    assert len({row["image"] for row in found}) == 3


def test_a_reader_that_leaves_does_not_cost_the_files(
    photos: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `nmsfree detect … --json - | head -1`."""
    sources, _ = expand(["photos"])
    for folder in (place / "out", None):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as stdout, Detector("tiny.onnx") as detector:
            monkeypatch.setattr(sys, "stdout", stdout)
            output = Output(picture_names(sources), folder, json_target="-")
            run = Run(detector.batch, output, batch=1)
            if folder is None:  # nothing else is written: the run ends
                with pytest.raises(BrokenPipeError):
                    run.over(sources)
                os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
            else:
                with output:
                    run.over(sources)
                assert run.images == 3
                assert output.problems == ["stdout: closed by its reader; the files have all lines"]
    assert written(place / "out") == ["a.png", "b.jpg", "detections.jsonl", "sub/a.png"]
    assert len(lines((place / "out/detections.jsonl").read_text("utf-8"))) > 3


def test_runs_into_one_folder_at_once_keep_their_lines(
    detect: Detect, photos: Path, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (source, *_), _ = expand(["photos"])
    outputs = [Output({source: Path("a.png")}, place / "out") for _ in range(3)]
    with Detector("tiny.onnx") as detector:
        image = read_image(source.name)
        for output in outputs:
            found = Frame(source, image), detector(image)
            output.add(*found, output.draw(*found))
    for output in outputs:
        with output:
            pass
    names = ["detections-2.jsonl", "detections-3.jsonl", "detections.jsonl"]
    assert written(place / "out") == ["a.png", *names]
    assert len({(place / "out" / name).read_text("utf-8") for name in names}) == 1
    assert "written by another run meanwhile" in caplog.text
    assert detect("photos", "--save-dir", "out")[0] == 0  # alone again: replaces its own
    assert [name for name in written(place / "out") if "jsonl" in name] == names


@pytest.mark.parametrize("target", ["tiny.onnx", "photos/a.png", "", "photos/a.png/x.json"])
def test_outputs_that_would_replace_an_input_are_refused(
    detect: Detect, photos: Path, place: Path, target: str
) -> None:
    before = {name: (place / name).read_bytes() for name in written(place)}
    status, out, err = detect("photos", "--save-dir", "out", "--json", target)
    assert (status, out) == (2, "")
    assert "input of this command" in err or "empty name" in err or "is no folder" in err
    assert {name: (place / name).read_bytes() for name in written(place)} == before


@pytest.mark.skipif(os.name == "nt", reason="no limit of file sizes there")
def test_a_video_that_the_disk_does_not_take_is_not_kept(place: Path, noise: Noise) -> None:
    import resource

    video = VideoFile(place / "big.mp4", 10, 256, 256)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"big\.mp4: cannot be written"):
            for seed in range(20):
                video.write(noise(seed, 256, 256))
            video.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert written(place) == ["tiny.onnx"]


def test_a_video_of_odd_size_ends_where_its_frames_change_it(place: Path, noise: Noise) -> None:
    """OpenCV would drop such a frame without a word."""
    video = VideoFile(place / "odd.mp4", 10, 63, 97)
    video.write(noise(0, 63, 97))
    assert not (place / "odd.mp4").exists()
    with pytest.raises(InputError, match="ends after 1 frames of 63 × 97"):
        video.write(noise(1, 97, 63))
    video.finish()
    assert written(place) == ["odd.mp4", "tiny.onnx"]
    with Video(place / "odd.mp4") as read:
        ((load, _),) = read
    assert 62 <= load().shape[0] <= 64 and 96 <= load().shape[1] <= 98


def test_pictures_that_cannot_be_encoded_are_said(place: Path, noise: Noise) -> None:
    with pytest.raises(InputError, match="cannot be encoded"):
        write_picture(place / "a.webp", np.zeros((1, 20_000, 3), np.uint8))
    assert written(place) == ["tiny.onnx"]


def test_the_console_script(place: Path, photos: Path) -> None:
    """Once as a process of its own: exit status, and nothing but JSON on stdout."""
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    code = "from nmsfree.cli.main import main; main()"
    arguments = ["detect", "photos", "-m", "tiny.onnx", "--json", "-"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert len(lines(done.stdout)) > 3
    assert f"error: {Path('photos/broken.png')}: not an image" in done.stderr
    assert "global" not in done.stderr, "OpenCV's own messages"
