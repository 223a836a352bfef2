"""Pictures in: every accepted form gives the same pixels, everything else one clear line."""

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nmsfree import InputError, read_image
from nmsfree.images import as_bgr

Noise = Callable[..., NDArray[np.uint8]]
FORMATS = [".jpg", ".png", ".bmp", ".webp", ".tiff"]


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as info:
        action()
    message = str(info.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_files_without_loss_give_their_pixels(tmp_path: Path, noise: Noise, suffix: str) -> None:
    path = tmp_path / f"ünïcode{suffix}"
    cv2.imencode(suffix, noise(0))[1].tofile(path)
    np.testing.assert_array_equal(read_image(path), noise(0))
    np.testing.assert_array_equal(as_bgr(str(path)), noise(0))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_honoured(tmp_path: Path, noise: Noise, orientation: int) -> None:
    stored = Image.fromarray(noise(1, 40, 60)[:, :, ::-1])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    stored.save(path, exif=exif, quality=100, subsampling=0)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))[:, :, ::-1]
    found = read_image(path)
    assert found.shape == (expected.shape if orientation < 5 else (60, 40, 3))
    assert np.abs(found.astype(int) - expected).max() <= 3, "decoders round differently"


def test_rgb_array_and_pillow_image_give_the_pixels_of_the_bgr_array(noise: Noise) -> None:
    bgr = noise(2)
    rgb = np.ascontiguousarray(bgr[:, :, ::-1])
    np.testing.assert_array_equal(as_bgr(bgr), bgr)
    np.testing.assert_array_equal(as_bgr(rgb, "rgb"), bgr)
    np.testing.assert_array_equal(as_bgr(Image.fromarray(rgb), "rgb"), bgr)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_pillow_images_of_other_modes_are_converted(noise: Noise, mode: str) -> None:
    image = Image.fromarray(noise(3)).convert(mode)
    expected = np.asarray(image.convert("RGB"))[:, :, ::-1]
    np.testing.assert_array_equal(as_bgr(image, "rgb"), expected)


@pytest.mark.parametrize("mode", ["grey", "alpha", "deep"])
def test_files_of_other_depths_become_bgr(tmp_path: Path, noise: Noise, mode: str) -> None:
    grey = noise(4)[:, :, 0]
    picture = {
        "grey": grey,
        "alpha": np.dstack([grey, grey, grey, np.full_like(grey, 9)]),
        "deep": grey.astype(np.uint16) * 257,
    }[mode]
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.dstack([grey] * 3))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 3), np.float32), "float32"),
        (np.zeros((4, 5, 3), np.int64), "int64"),
        (np.zeros((4, 5), np.uint8), "grey"),
        (np.zeros((4, 5, 1), np.uint8), "4 × 5 × 1"),
        (np.zeros((4, 5, 4), np.uint8), "four channels"),
        (np.zeros((3, 40, 50), np.uint8), "transpose"),
        (np.zeros((2, 4, 5, 3), np.uint8), "batch"),
        (np.zeros((7,), np.uint8), "shape 7"),
        (np.array(3, np.uint8), "scalar"),
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.zeros((5, 0, 3), np.uint8), "empty"),
    ],
)
def test_wrong_arrays_are_named(array: NDArray[np.generic], words: str) -> None:
    assert words in refused(lambda: as_bgr(array))


@pytest.mark.parametrize("thing", [None, 3, [[1, 2], [3, 4]], b"bytes", io.BytesIO()])
def test_other_things_are_named(thing: object) -> None:
    assert type(thing).__name__ in refused(lambda: as_bgr(thing))


def test_pillow_needs_the_colour_said(noise: Noise) -> None:
    assert "color='rgb'" in refused(lambda: as_bgr(Image.fromarray(noise(0))))
    assert "expected 'bgr' or 'rgb'" in refused(lambda: as_bgr(noise(0), "hsv"))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_cut_files_are_refused(tmp_path: Path, noise: Noise, suffix: str, share: float) -> None:
    data = cv2.imencode(suffix, noise(5, 300, 400))[1].tobytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    assert str(path) in refused(lambda: read_image(path))


def test_a_cut_jpeg_is_not_mistaken_for_its_thumbnail(tmp_path: Path, noise: Noise) -> None:
    thumbnail = io.BytesIO()
    Image.fromarray(noise(6, 16, 24)).save(thumbnail, "JPEG")
    data = io.BytesIO()
    comment = thumbnail.getvalue()
    assert comment.endswith(b"\xff\xd9")
    Image.fromarray(noise(6, 300, 400)).save(data, "JPEG", comment=comment)
    whole = tmp_path / "whole.jpg"
    whole.write_bytes(data.getvalue() + b"trailing bytes of a phone")
    assert read_image(whole).shape == (300, 400, 3)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(data.getvalue()[:-2])
    refused(lambda: read_image(cut))


def test_a_cut_file_opened_by_pillow_is_refused(tmp_path: Path, noise: Noise) -> None:
    data = cv2.imencode(".png", noise(5, 300, 400))[1].tobytes()
    path = tmp_path / "cut.png"
    path.write_bytes(data[: len(data) // 2])
    with Image.open(path) as image:
        refused(lambda: as_bgr(image, "rgb"))


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff\xd8", b"\xff\xd8\xff\xff\xff\xd9"])
def test_files_that_are_no_images_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "no.jpg"
    path.write_bytes(content)
    assert str(path) in refused(lambda: read_image(path))


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(lambda: read_image(tmp_path / "absent.jpg"))
    assert "directory" in refused(lambda: read_image(tmp_path)).lower()
