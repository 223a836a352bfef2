"""Sizes from headers: never another answer than decoding the file gives."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nmsfree.datasets.image_files import header_size, image_size
from nmsfree.images import read_image

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "bmp": ("BMP", {}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
}


def encode(kind: str, size: tuple[int, int] = (61, 37), mode: str = "RGB", **more: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    name, options = FORMATS[kind]
    stream = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(stream, name, **options, **more)
    return stream.getvalue()


def decoded(path: Path) -> tuple[int, int]:
    height, width = read_image(path).shape[:2]
    return width, height


@pytest.mark.parametrize("size", [(61, 37), (1, 1), (300, 2)])
@pytest.mark.parametrize("kind", FORMATS)
def test_header_agrees_with_the_pixels(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    path = tmp_path / "x"
    path.write_bytes(encode(kind, size))
    assert image_size(path) == decoded(path) == size
    assert header_size(path) == (None if kind == "tiff" else size)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "progressive jpeg", "png", "webp", "tiff"])
def test_exif_rotation_is_applied_as_reading_applies_it(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif[0x0112] = orientation
    path = tmp_path / "x"
    path.write_bytes(encode(kind, exif=exif))
    assert image_size(path) == decoded(path) == ((61, 37) if orientation < 5 else (37, 61))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_of_exif(tmp_path: Path, order: str, orientation: int) -> None:
    start = b"II" if order == "<" else b"MM"
    tiff = start + struct.pack(order + "HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    segment = b"Exif\0\0" + tiff
    data = encode("jpeg")
    path = tmp_path / "x"
    head = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2)
    path.write_bytes(head + segment + data[2:])
    assert header_size(path) == decoded(path) == ((61, 37) if orientation == 1 else (37, 61))


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("png", "RGBA"), ("png", "L"), ("png", "1"), ("webp", "RGBA"), ("jpeg", "L"), ("bmp", "L")],
)
def test_modes_and_alpha(tmp_path: Path, kind: str, mode: str) -> None:
    (tmp_path / "x").write_bytes(encode(kind, mode=mode))
    assert image_size(tmp_path / "x") == decoded(tmp_path / "x") == (61, 37)


def test_bitmap_stored_from_the_top_and_fill_bytes_of_a_jpeg(tmp_path: Path) -> None:
    bitmap, jpeg = bytearray(encode("bmp")), encode("jpeg")
    struct.pack_into("<i", bitmap, 22, -37)
    for data in (bitmap, jpeg[:2] + b"\xff\xff" + jpeg[2:]):
        (tmp_path / "x").write_bytes(data)
        assert header_size(tmp_path / "x") == decoded(tmp_path / "x") == (61, 37)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_file_gives_its_size_or_nothing(tmp_path: Path, kind: str) -> None:
    """And a damaged header does no harm."""
    data, path, rng = encode(kind), tmp_path / "x", np.random.default_rng(1)
    for length in (*range(100), *range(100, min(len(data), 700), 9)):
        path.write_bytes(data[:length])
        assert header_size(path) in (None, (61, 37)), length
    for _ in range(50):
        broken = np.frombuffer(data[:400], np.uint8).copy()
        broken[rng.integers(0, len(broken), 6)] = rng.integers(0, 256, 6)
        path.write_bytes(broken.tobytes())
        size = header_size(path)
        assert size is None or min(size) > 0


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello")
    for path in (tmp_path / "x", tmp_path / "missing"):
        assert header_size(path) is None
        assert image_size(path) is None
