"""Letterbox: nothing is lost or moved, whatever the size of the picture."""

import sys

import numpy as np
import pytest
from PIL import Image

from nmsfree.errors import MissingExtraError
from nmsfree.preprocess import PAD_BGR, Geometry, fit, resize_into
from nmsfree.spec import Resize

INPUT = (64, 96)
SIZES = [(1, 1), (1, 500), (500, 1), (2, 40_000), (40_000, 2)]
SIZES += [(64, 96), (65, 97), (31, 97), (640, 480), (1080, 1920)]


def place(image: np.ndarray, interpolation: str = "linear") -> tuple[np.ndarray, Geometry]:
    out = np.full((*INPUT, 3), 77, dtype=np.uint8)
    return out, resize_into(image, out, Resize(interpolation=interpolation))


def to_input(geometry: Geometry, boxes: np.ndarray) -> np.ndarray:
    """The way there of `Geometry.to_source`."""
    scale = np.array([geometry.scale_x, geometry.scale_y] * 2, np.float32)
    return (boxes * scale + [geometry.left, geometry.top] * 2).astype(np.float32)


def random_boxes(height: float, width: float, seed: int = 0) -> np.ndarray:
    points = np.sort(np.random.default_rng(seed).uniform(0, 1, (100, 2, 2)), axis=1)
    return (points.reshape(100, 4) * [width, height, width, height]).astype(np.float32)


@pytest.mark.parametrize("size", [s for s in SIZES if min(s) > 30])
def test_aspect_is_kept_within_rounding(size: tuple[int, int]) -> None:
    height, width = fit(*size, *INPUT)
    scale = min(INPUT[0] / size[0], INPUT[1] / size[1])
    assert abs(height - size[0] * scale) <= 0.5
    assert abs(width - size[1] * scale) <= 0.5


def test_a_fitting_picture_is_copied_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*INPUT, 3), dtype=np.uint8)
    out, geometry = place(image)
    np.testing.assert_array_equal(out, image)
    assert (geometry.scale_x, geometry.scale_y) == (1, 1)


def test_things_are_where_their_mapped_box_says() -> None:
    image = np.zeros((480, 360, 3), np.uint8)
    box = np.array([[90, 120, 210, 330]], np.float32)
    image[120:330, 90:210] = 255
    out, geometry = place(image)
    x1, y1, x2, y2 = np.round(to_input(geometry, box)[0]).astype(int)
    width = round(360 * geometry.scale_x)
    assert out[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].min() > 250
    around = np.ones(INPUT, bool)
    around[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1] = False
    assert out[:, :width][around[:, :width]].max() < 5


def test_area_averages_where_linear_samples() -> None:
    """One white column in eight: its share of the light survives only with antialiasing."""
    image = np.zeros((640, 960, 3), np.uint8)
    image[:, ::8] = 240
    area, linear = place(image, "area")[0], place(image, "linear")[0]
    assert abs(area.mean() - 30) < 1
    assert linear.std() > 2 * area.std()


@pytest.mark.parametrize(
    "view",
    [
        lambda image: image[::-1],
        lambda image: image[:, ::-1],
        lambda image: image[::2, 1::3],
        lambda image: image.transpose(1, 0, 2),
        lambda image: image[:, :, ::-1],
    ],
)
def test_views_give_what_their_copy_gives(view) -> None:
    image = view(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    copy = np.ascontiguousarray(image)
    image.flags.writeable = False
    np.testing.assert_array_equal(place(image)[0], place(copy)[0])


RESIZES = [
    Resize(),
    Resize(interpolation="area"),
    Resize(interpolation="cubic"),
    Resize(place="center", pad=(114, 114, 114)),
    Resize("stretch", antialias=True),
    Resize(place="center", enlarge=False),
]


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", [*SIZES, (40, 31)])
def test_a_picture_of_one_colour_lies_where_boxes_are_mapped(
    resize: Resize, size: tuple[int, int]
) -> None:
    """It stays of one colour, around it is padding; boxes come back and never leave the source."""
    out = np.full((*INPUT, 3), 77, np.uint8)
    geometry = resize_into(np.full((*size, 3), (10, 200, 30), np.uint8), out, resize)
    corners = to_input(geometry, np.array([[0, 0, size[1], size[0]]], np.float32))
    left, top, right, bottom = np.round(corners[0]).astype(int)
    assert left < right and top < bottom
    assert (out[top:bottom, left:right] == (10, 200, 30)).all()
    around = np.ones(INPUT, bool)
    around[top:bottom, left:right] = False
    assert (out[around] == resize.pad).all()
    if resize.kind == "stretch":
        assert not around.any()
    elif resize.place == "center":
        assert 0 <= INPUT[0] - bottom - top <= 1 and 0 <= INPUT[1] - right - left <= 1
    if resize.enlarge:
        assert bottom - top == INPUT[0] or right - left == INPUT[1]
    elif size == (40, 31):
        assert (bottom - top, right - left) == size
    boxes = random_boxes(*size)
    back = geometry.to_source(to_input(geometry, boxes))
    np.testing.assert_allclose(back, boxes, rtol=1e-5, atol=1e-3)
    wild = geometry.to_source(np.random.default_rng(1).uniform(-300, 300, (200, 4)).astype("f4"))
    assert wild.dtype == np.float32 and wild.min() >= 0
    assert (wild <= np.array([size[1], size[0]] * 2)).all()


@pytest.mark.parametrize("size", [(200, 300), (900, 70)])
def test_antialiasing_is_pillows_and_needs_it(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows before columns, also of tall pictures."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    out = np.empty((*INPUT, 3), np.uint8)
    resize_into(image, out, Resize("stretch", antialias=True))
    want = Image.fromarray(image)
    for shape in ((INPUT[1], size[0]), INPUT[::-1]):
        want = want.resize(shape, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(out, np.asarray(want))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"nmsfree\[pillow\]"):
        resize_into(image, out, Resize("stretch", antialias=True))


def test_padding_is_the_mean_of_training() -> None:
    rgb_mean = np.array([0.485, 0.456, 0.406])
    assert np.abs(np.array(PAD_BGR[::-1]) / 255 - rgb_mean).max() <= 0.5 / 255
