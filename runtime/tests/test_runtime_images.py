"""Pictures in: every accepted form gives the same pixels, everything else one clear line."""

import io
import os
import re
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, features
from runtime_helpers import Noise, refusing

from nmsfree import InputError, read_image
from nmsfree.datasets.digits.scenes import make_scene
from nmsfree.images import Reduction, as_bgr, read_reduced

refused = refusing(InputError)
WRITES_AVIF = pytest.mark.skipif(not features.check("avif"), reason="Pillow writes no AVIF")
FORMATS = [".jpg", ".png", ".bmp", ".webp", ".tiff"]


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    """Smooth colours, RGB [72, 104, 3]."""
    coarse = np.random.default_rng(7).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (104, 72), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (np.zeros((4, 5, 3), np.float32), "float32"),
        (np.zeros((4, 5, 3), np.int64), "int64"),
        (np.zeros((4, 5), np.uint8), r"is grey \(4 × 5\), .*GRAY2BGR"),
        (np.zeros((4, 5, 1), np.uint8), "4 × 5 × 1"),
        (np.zeros((4, 5, 4), np.uint8), r"has four channels \(4 × 5 × 4\), .*BGRA2BGR"),
        (np.zeros((3, 40, 50), np.uint8), "transpose"),
        (np.zeros((2, 4, 5, 3), np.uint8), "batch"),
        (np.zeros((7,), np.uint8), "shape 7"),
        (np.array(3, np.uint8), "scalar"),
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.zeros((5, 0, 3), np.uint8), "empty"),
        (None, "NoneType"),
        (3, "int"),
        ([[1, 2], [3, 4]], "list"),
        (b"bytes", "image: not an image"),
        (io.BytesIO(), "image: empty"),
        (io.StringIO("text"), "image is str"),
        (Image.new("RGB", (5, 4)), "color='rgb'"),
    ],
)
def test_what_is_no_picture_is_named(thing: object, words: str) -> None:
    assert re.search(words, refused(lambda: as_bgr(thing)))


def test_the_bytes_of_a_file_are_read_like_the_file(tmp_path: Path, noise: Noise) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(3)).save(path, exif=exif)
    expected, data = read_image(path), path.read_bytes()
    assert expected.shape == (96, 64, 3)
    for given in (data, bytearray(data), memoryview(data), io.BytesIO(data)):
        np.testing.assert_array_equal(as_bgr(given), expected)
    with path.open("rb") as file:
        np.testing.assert_array_equal(as_bgr(file), expected)
    assert "is cut" in refused(lambda: as_bgr(data[: len(data) // 2]))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_cut_files_are_refused(tmp_path: Path, noise: Noise, suffix: str, share: float) -> None:
    data = cv2.imencode(suffix, noise(5, 300, 400))[1].tobytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    assert str(path) in refused(lambda: read_image(path))
    if (suffix, share) == (".png", 0.5):
        with Image.open(path) as image:
            assert "cannot be read" in refused(lambda: as_bgr(image, "rgb"))


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
    cut.write_bytes(data.getvalue()[:-200])
    assert "is cut" in refused(lambda: read_image(cut))


def test_a_jpeg_that_is_cut_within_a_marker() -> None:
    """A byte 255 at the end would make a marker of what the check for cuts puts behind it."""
    data = cv2.imencode(".jpg", make_scene("val", 16).image)[1].tobytes()
    ends = [i + 1 for i in range(len(data) // 2, len(data) - 300) if data[i] == 255]
    assert len(ends) > 10
    for end in ends:
        assert "is cut" in refused(lambda end=end: as_bgr(data[:end])), end
    for end in (len(data) - 1, len(data) - 2):  # the scan is complete
        np.testing.assert_array_equal(as_bgr(data[:end]), as_bgr(data))


def test_a_png_whose_part_claims_more_than_there_is_is_refused(
    tmp_path: Path, noise: Noise
) -> None:
    """OpenCV would take the memory before it reads."""
    data = bytearray(cv2.imencode(".png", noise(5, 30, 40))[1].tobytes())
    at = data.index(b"IDAT") - 4
    data[at : at + 4] = (2**31 - 1).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data)
    assert "is cut" in refused(lambda: read_image(tmp_path / "a.png"))


def test_a_small_jpeg_that_claims_many_pixels_is_refused(tmp_path: Path) -> None:
    grey = np.full((2000, 2000), 77, np.uint8)
    data = bytearray(cv2.imencode(".jpg", grey)[1].tobytes())
    (tmp_path / "flat.jpg").write_bytes(data)
    assert read_image(tmp_path / "flat.jpg").shape == (2000, 2000, 3)
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = (16_000).to_bytes(2, "big") * 2
    (tmp_path / "bomb.jpg").write_bytes(data[:800])
    assert "hold no JPEG of 16000 × 16000" in refused(lambda: read_image(tmp_path / "bomb.jpg"))


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(lambda: read_image(tmp_path / "absent.jpg"))
    assert "is a folder" in refused(lambda: read_image(tmp_path))
    assert "cannot be read" in refused(lambda: read_image("a\0b.jpg"))
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "is a pipe or device" in refused(lambda: read_image(tmp_path / "pipe.jpg"))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def ways(tmp_path: Path, data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The same picture by path and by Pillow."""
    path = tmp_path / "picture"
    path.write_bytes(data)
    with Image.open(path) as image:
        return read_image(path), as_bgr(image, "rgb")


LOSSLESS = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_the_same_by_path_and_by_pillow(
    tmp_path: Path, photo: NDArray[np.uint8], kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(photo), kind, exif=exif, **LOSSLESS.get(kind, {}))
    path, pillow = ways(tmp_path, data)
    np.testing.assert_array_equal(path, pillow)
    with Image.open(io.BytesIO(data)) as image:
        turned = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[:, :, ::-1]
    np.testing.assert_array_equal(path, turned)


def test_a_pillow_image_that_was_turned_is_not_turned_again(photo: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(saved(Image.fromarray(photo), "PNG", exif=exif)))
    upright = ImageOps.exif_transpose(image)
    np.testing.assert_array_equal(as_bgr(upright, "rgb"), np.asarray(upright)[:, :, ::-1])
    np.testing.assert_array_equal(as_bgr(image, "rgb"), as_bgr(upright, "rgb"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_xmp_alone_turns_nothing(tmp_path: Path, photo: NDArray[np.uint8], kind: str) -> None:
    xmp = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    data = saved(Image.fromarray(photo), kind, xmp=xmp, **LOSSLESS.get(kind, {}))
    path, pillow = ways(tmp_path, data)
    assert path.shape == photo.shape
    np.testing.assert_array_equal(path, pillow)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *[("JPEG", m) for m in ("L", "RGB", "CMYK")],
        *[("PNG", m) for m in ("1", "L", "LA", "P", "RGB", "RGBA")],
        *[("TIFF", m) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")],
        *[("BMP", m) for m in ("1", "L", "P", "RGB", "RGBA")],
        *[("GIF", m) for m in ("1", "L", "P", "RGB", "RGBA")],
        *[("WEBP", m) for m in ("RGB", "RGBA")],
    ],
)
def test_a_mode_gives_the_same_pixels_by_path_and_by_pillow(
    tmp_path: Path, photo: NDArray[np.uint8], kind: str, mode: str
) -> None:
    image = Image.fromarray(photo).convert(mode)
    path, pillow = ways(tmp_path, saved(image, kind))
    assert np.abs(path.astype(int) - pillow).max() <= 1, "the formula of CMYK rounds"
    assert path.std() > 20


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_the_same_by_path_and_by_pillow(
    tmp_path: Path, noise: Noise, kind: str
) -> None:
    deep = np.asarray(noise(4)[:, :, 0] * np.uint16(256) + noise(5)[:, :, 0], np.uint16)
    path, pillow = ways(tmp_path, saved(Image.fromarray(deep), kind))
    np.testing.assert_array_equal(path, pillow)
    np.testing.assert_array_equal(path[:, :, 0], deep >> 8)
    np.testing.assert_array_equal(as_bgr(Image.fromarray(deep), "rgb"), path)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_32_bits_are_refused_by_path_and_by_pillow(tmp_path: Path, kind: type[np.generic]) -> None:
    image = Image.fromarray(np.full((20, 30), 300, kind))
    assert "32 bits" in refused(lambda: as_bgr(image, "rgb"))
    path = tmp_path / "a.tif"
    image.save(path)
    message = refused(lambda: read_image(path))
    assert "32-bit" in message and "convert" in message and "cut" not in message


@WRITES_AVIF
def test_a_turned_avif_is_refused_and_a_plain_one_read(
    tmp_path: Path, photo: NDArray[np.uint8]
) -> None:
    path = tmp_path / "a.avif"
    Image.fromarray(photo).save(path, quality=95)
    found = read_image(path)
    assert np.abs(found.astype(int) - photo[:, :, ::-1]).mean() < 4
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(photo).save(path, exif=exif)
        assert "turned or mirrored" in refused(lambda: read_image(path))


CODINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "444": ("RGB", {"subsampling": 0}),
    "420": ("RGB", {"subsampling": 2}),
    "optimal": ("RGB", {"optimize": True}),
    "grey": ("L", {}),
    "cmyk": ("CMYK", {}),
    "restarts": ("RGB", {"restart_marker_rows": 1}),
    "turned": ("RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\10\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
}


@pytest.mark.parametrize("end", [b"", b"\xff\xd9", bytes(5000)])
@pytest.mark.parametrize("coding", CODINGS)
def test_a_jpeg_that_lacks_a_part_is_refused_however_it_ends(
    tmp_path: Path, photo: NDArray[np.uint8], coding: str, end: bytes
) -> None:
    mode, options = CODINGS[coding]
    data = saved(Image.fromarray(photo).convert(mode), "JPEG", quality=95, **options)
    path = tmp_path / "a.jpg"
    reductions: tuple[Reduction, ...] = (1, 2, 8)
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)] + end)
        for reduction in reductions:
            assert "is cut" in refused(partial(read_reduced, path, reduction)), (share, reduction)


@pytest.mark.parametrize("place", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_a_grey_pixel_in_a_corner_is_no_reason_to_doubt_a_jpeg(
    tmp_path: Path, noise: Noise, place: tuple[int, int], capfd: pytest.CaptureFixture[str]
) -> None:
    """Asking the decoder costs a second decoding, in which it prints that the data is corrupt."""
    path = tmp_path / "a.jpg"
    for seed in range(100):
        grey = noise(seed, 40, 48)[:, :, 0].copy()
        grey[place] = 128
        path.write_bytes(saved(Image.fromarray(grey), "JPEG", quality=100))
        if read_image(path)[place].tolist() == [128, 128, 128]:
            break
    else:
        raise AssertionError("rounding left none")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("coding", [*CODINGS, "progressive"])
@pytest.mark.parametrize("grey", [False, True])
def test_a_jpeg_that_lacks_its_end_marker_alone_is_read(
    tmp_path: Path, photo: NDArray[np.uint8], coding: str, grey: bool
) -> None:
    """Also where the last pixels are as grey as what a decoder fills in."""
    photo = photo.copy()
    if grey:
        photo[:, 16:] = 128
    mode, options = CODINGS.get(coding, ("RGB", {"progressive": True}))
    data = saved(Image.fromarray(photo).convert(mode), "JPEG", quality=95, **options)
    (tmp_path / "whole.jpg").write_bytes(data)
    whole = read_image(tmp_path / "whole.jpg")
    for number, end in enumerate([b"", b"\xff\xd9trailing bytes", b"\xff\xd9" + bytes(50)]):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(data[:-2] + end)
        np.testing.assert_array_equal(read_image(path), whole)


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small file that claims to be large."""
    data = bytearray(saved(Image.new("RGB", (8, 8)), kind, **LOSSLESS.get(kind, {})))
    if kind == "PNG":
        struct.pack_into(">II", data, 16, width, height)
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    elif kind == "BMP":
        struct.pack_into("<ii", data, 18, width, height)
    elif kind == "GIF":
        struct.pack_into("<HH", data, 6, width, height)
    elif kind == "JPEG":
        struct.pack_into(">HH", data, data.find(b"\xff\xc0") + 5, height, width)
    elif kind == "JPEG2000":
        struct.pack_into(">II", data, data.find(b"ihdr") + 4, height, width)
    elif kind == "AVIF":
        struct.pack_into(">II", data, data.find(b"ispe") + 8, width, height)
    elif kind == "PPM":
        data = bytearray(b"P6 # a comment\n%d %d 255\n" % (width, height))
    elif kind == "TIFF":
        for tag, value in ((256, width), (257, height)):
            at = data.find(struct.pack("<HH", tag, 4))
            at = at if at > 0 else data.find(struct.pack("<HH", tag, 3))
            struct.pack_into("<HHII", data, at, tag, 4, 1, value)
    return bytes(data)


AVIF = pytest.param("AVIF", marks=WRITES_AVIF)
KINDS = ["PNG", "BMP", "GIF", "JPEG", "JPEG2000", AVIF, "PPM", "TIFF"]


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_too_many_pixels_are_refused_by_their_headers(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(claiming(kind, 30000, 29000))
    message = refused(lambda: read_image(path))
    assert "30000 × 29000 pixels" in message and "NMSFREE_MAX_PIXELS" in message
    path.write_bytes(claiming(kind, 8, 8))
    if kind != "PPM":
        assert read_image(path).shape == (8, 8, 3)
    monkeypatch.setenv("NMSFREE_MAX_PIXELS", "63")
    assert "expected at most 63" in refused(lambda: read_image(path))
    assert "expected at most 63" in refused(lambda: as_bgr(Image.new("L", (8, 8)), "rgb"))
    monkeypatch.setenv("NMSFREE_MAX_PIXELS", "many")
    assert "NMSFREE_MAX_PIXELS is 'many'" in refused(lambda: read_image(path))
