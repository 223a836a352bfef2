"""Image files: any kind and size is read, what does not fit its annotation is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from nmsfree.datasets.formats.coco import Sample
from nmsfree.errors import InputError
from nmsfree.images import read_image
from nmsfree_training.config import preset
from nmsfree_training.data.augment import Example, resize
from nmsfree_training.data.examples import largest_size, read_example

NANO, R18 = preset("fcos_rt_nano"), preset("fcos_rt_r18_3x")


def sample(path: Path, height: int, width: int, **other: Any) -> Sample:
    box = np.array([[width / 4, height / 4, width / 2, height / 2]], np.float32)
    made = Sample(1, path, width, height, box, np.array([3]), np.array([False]))
    return replace(made, **other)


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """A photograph's mix: smooth colours, patches with sharp edges, fine noise."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for x, y in random.integers(0, (width, height), (30, 2)).tolist():
        color = random.integers(0, 256, 3).tolist()
        cv2.rectangle(image, (x, y), (x + width // 9, y + height // 7), color, cv2.FILLED)
    noise = random.normal(0, 8, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def quality(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal to noise in dB."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("grey.png", np.full((20, 30), 7, np.uint8)),
        ("deep.png", np.full((20, 30, 3), 7 * 257, np.uint16)),
        ("alpha.png", np.full((20, 30, 4), 7, np.uint8)),
        ("thin.png", np.full((40, 1, 3), 7, np.uint8)),
        ("long.png", np.full((2, 8000, 3), 7, np.uint8)),
    ],
)
def test_any_picture_is_read(tmp_path: Path, name: str, array: NDArray[np.generic]) -> None:
    height, width = array.shape[:2]
    cv2.imwrite(str(tmp_path / name), array)
    read = read_example(sample(tmp_path / name, height, width), (8, 8))
    assert read.image.shape == (height, width, 3) and read.image.dtype == np.uint8
    assert (read.image == 7).all()
    assert read.names == (str(tmp_path / name),)


def test_crowds_are_no_targets(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), picture(20, 30))
    assert len(read_example(sample(path, 20, 30), (99, 99)).boxes) == 1
    read = read_example(sample(path, 20, 30, iscrowd=np.array([True])), (99, 99))
    assert read.boxes.shape == (0, 4) and read.labels.shape == (0,)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("needed", [(2000, 2000), (40, 50)])
def test_another_size_than_annotated_is_refused(
    tmp_path: Path, suffix: str, needed: tuple[int, int]
) -> None:
    """Also where a JPEG is decoded at a fraction of its size, and by a single pixel."""
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), picture(400, 500))
    with pytest.raises(InputError, match="is 500 × 400 pixels, annotated as 501 × 400"):
        read_example(sample(path, 400, 501), needed)
    read_example(sample(path, 400, 500), needed)


@pytest.mark.parametrize("needed", [(2000, 2000), (40, 50)])
@pytest.mark.parametrize("content", ["missing", "empty", "text", "cut"])
def test_files_that_cannot_be_read_are_refused_in_one_line(
    tmp_path: Path, content: str, needed: tuple[int, int]
) -> None:
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), picture(400, 500))
    whole = path.read_bytes()
    bad = {"empty": b"", "text": b"no image", "cut": whole[: len(whole) // 2]}
    path.unlink()
    if content in bad:
        path.write_bytes(bad[content])
    with pytest.raises(InputError) as error:
        read_example(sample(path, 400, 500), needed)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(("side", "fraction"), [(200, 2), (128, 4), (70, 4), (100, 8)])
def test_large_jpegs_are_decoded_small_without_loss(
    tmp_path: Path, side: int, fraction: int
) -> None:
    path, size = tmp_path / "a.jpg", 2 * side * fraction + fraction
    cv2.imwrite(str(path), picture(size, size), [cv2.IMWRITE_JPEG_QUALITY, 92])
    read = read_example(sample(path, size, size), (side, side))
    assert read.image.shape == (2 * side + 1, 2 * side + 1, 3)
    whole = Example(read_image(path), sample(path, size, size).boxes, read.labels)
    got, expected = resize(read, side, side), resize(whole, side, side)
    linear = cv2.resize(whole.image, (side, side), interpolation=cv2.INTER_LINEAR)
    like_linear = quality(np.asarray(linear, np.uint8), expected.image)
    assert quality(got.image, expected.image) > max(40, like_linear + 6)
    np.testing.assert_allclose(got.boxes, expected.boxes, atol=1e-3)


@pytest.mark.parametrize("extra", range(8))
def test_boxes_follow_into_a_reduced_jpeg(tmp_path: Path, extra: int) -> None:
    path, size = tmp_path / "a.jpg", 1200 + extra
    image = np.zeros((size, size, 3), np.uint8)
    image[300:800, 200:] = 255
    cv2.imwrite(str(path), image)
    made = sample(path, size, size, boxes=np.array([[200, 300, size, 800]], np.float32))
    read = read_example(made, (64, 64))
    assert read.image.shape == (-(-size // 8), -(-size // 8), 3)
    ys, xs = np.nonzero(read.image[:, :, 0] > 127)
    seen = [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]
    np.testing.assert_allclose(read.boxes, seen, atol=1)


def test_other_pictures_and_smaller_jpegs_keep_every_pixel(tmp_path: Path) -> None:
    for name, needed in (("a.png", (64, 64)), ("a.jpg", (200, 64)), ("b.jpg", (101, 101))):
        cv2.imwrite(str(tmp_path / name), picture(400, 402))
        read = read_example(sample(tmp_path / name, 400, 402), needed)
        np.testing.assert_array_equal(read.image, read_image(tmp_path / name))
        np.testing.assert_array_equal(read.boxes, sample(tmp_path / name, 400, 402).boxes)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_rotated_jpegs_are_rotated_at_any_fraction(
    tmp_path: Path, orientation: int, mode: str
) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = np.ascontiguousarray(picture(600, 900)[:, :, ::-1])
    Image.fromarray(rgb).convert(mode).save(path, exif=exif, quality=95)
    height, width = (900, 600) if orientation >= 5 else (600, 900)
    read = read_example(sample(path, height, width), (height // 9, width // 9))
    assert read.image.shape == (height // 4, width // 4, 3)
    expected = cv2.resize(read_image(path), (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    assert quality(read.image, np.asarray(expected, np.uint8)) > 30
    with pytest.raises(InputError, match="annotated as"):
        read_example(sample(path, width, height), (height // 9, height // 9))


def test_the_largest_size_bounds_what_a_recipe_makes() -> None:
    assert largest_size(480, 640, NANO.train, NANO.input_size) == (192, 256)
    assert largest_size(480, 640, R18.train, R18.input_size) == (608, 810)
    assert largest_size(3000, 4000, R18.train, R18.input_size) == (608, 810)


@pytest.mark.parametrize("orientation", [None, *range(1, 10)])
@pytest.mark.parametrize(("height", "width"), [(1080, 1079), (1079, 1080), (1080, 1080)])
def test_nearly_square_jpegs_are_turned_as_their_exif_says(
    tmp_path: Path, orientation: int | None, height: int, width: int
) -> None:
    """At a fraction of its size such a picture is square: its shape tells nothing."""
    path, exif = tmp_path / "a.jpg", Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)
    turned = orientation in (5, 6, 7, 8)
    upright = (width, height) if turned else (height, width)
    assert read_image(path).shape[:2] == upright
    found = read_example(sample(path, *upright), (64, 64)).image.shape[:2]
    assert found == (upright if orientation == 9 else (135, 135)), "9 is left to the decoder"
    if height != width:
        with pytest.raises(InputError, match=f"is {upright[1]} × {upright[0]} pixels, annotated"):
            read_example(sample(path, *upright[::-1]), (64, 64))


@pytest.mark.parametrize("width", [17, 20, 23])
def test_boxes_follow_into_a_thin_reduced_jpeg(tmp_path: Path, width: int) -> None:
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), np.full((1600, width, 3), 7, np.uint8))
    read = read_example(sample(path, 1600, width), (100, 1))
    assert read.image.shape == (200, 3, 3)
    np.testing.assert_array_equal(read.boxes, sample(path, 1600, width).boxes / 8)


@pytest.mark.parametrize("needed", [(2000, 2000), (40, 50)])
def test_boxes_are_clipped_to_their_picture(tmp_path: Path, needed: tuple[int, int]) -> None:
    """Inside not a bit changes; none is dropped, so labels stay beside their boxes."""
    path, inside = tmp_path / "a.jpg", [10.3, 20.7, 499.9, 400]
    cv2.imwrite(str(path), picture(400, 500))
    boxes = [inside, [-7.5, -3, 90, 80], [450, 390, 510.25, 1e6], [600, 10, 700, 90]]
    four = {"labels": np.arange(4), "iscrowd": np.zeros(4, np.bool_)}
    made = sample(path, 400, 500, boxes=np.array(boxes, np.float32), **four)
    read = read_example(made, needed)
    factor = 500 / read.image.shape[1]
    assert factor == (1 if needed[0] > 400 else 4)
    clipped = [inside, [0, 0, 90, 80], [450, 390, 500, 400], [500, 10, 500, 90]]
    np.testing.assert_array_equal(read.boxes, np.array(clipped, np.float32) / np.float32(factor))
    assert read.boxes.dtype == np.float32
    assert read.labels.tolist() == [0, 1, 2, 3]
