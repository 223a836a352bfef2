"""Source pictures of every size: in memory, and as JPEG and PNG files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from nmsfree.files import writing
from nmsfree_benchmarks.machine.measure import Image

SIZES = ((256, 256), (480, 640), (720, 1280), (1080, 1920), (2160, 3840))  # height, width
FORMATS = {".jpg": [cv2.IMWRITE_JPEG_QUALITY, 90], ".png": [cv2.IMWRITE_PNG_COMPRESSION, 3]}


@dataclass(frozen=True, eq=False)
class Scene:
    """One scene in one size: BGR uint8 [h, w, 3], and its files by suffix."""

    image: Image
    files: dict[str, Path]


def label(size: tuple[int, int]) -> str:
    """As people say it, width first: "1920×1080"."""
    return f"{size[1]}×{size[0]}"


def make_scenes(scenes: Sequence[Image], size: tuple[int, int], folder: Path) -> list[Scene]:
    """Show each scene in another size, with as many copies as cover it, and write its files.

    Objects keep their size in pixels up to twice, so that a larger picture has more of them.

    Raises:
        InputError: a file cannot be written.
    """
    return [
        Scene(image, _write(image, folder / f"{label(size)}-{number}"))
        for number, image in enumerate(_fill(scene, size) for scene in scenes)
    ]


def _fill(scene: Image, size: tuple[int, int]) -> Image:
    height, width = size
    scale = max(1, min(2, round(height / (2 * scene.shape[0]))))
    tile = np.repeat(np.repeat(scene, scale, axis=0), scale, axis=1)
    down, right = -(-height // tile.shape[0]), -(-width // tile.shape[1])
    return np.ascontiguousarray(np.tile(tile, (down, right, 1))[:height, :width])


def _write(image: Image, stem: Path) -> dict[str, Path]:
    files = {}
    for suffix, settings in FORMATS.items():
        path = stem.with_suffix(suffix)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(suffix, image, settings)[1].tobytes())
        files[suffix] = path
    return files
