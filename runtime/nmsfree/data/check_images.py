"""Reading every image of a dataset once: does it decode, how large is it, which bytes is it."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from nmsfree.data.faults import Fault, Kind
from nmsfree.data.image_size import Size, header_of
from nmsfree.data.rows import ImageRow
from nmsfree.errors import InputError
from nmsfree.identity import sha256
from nmsfree.images import max_pixels, read_image
from nmsfree.text import shown

LARGE = 1 << 25  # pixels; such images are decoded one at a time, not one on every core
_one_large = threading.Lock()

Progress = Callable[[int, int], None]  # images done, images in all


@dataclass(frozen=True)
class ImageFact:
    """What reading an image file gave.

    Attributes:
        size: width, height in pixels after Exif rotation; None if it cannot be decoded.
        digest: of its bytes; empty if it cannot be read.
        problem: what is wrong, None if nothing is.
        detail: in words.
    """

    size: Size | None
    digest: str
    problem: Kind | None = None
    detail: str = ""


def read_images(
    paths: Sequence[Path], progress: Progress | None = None, threads: int | None = None
) -> dict[Path, ImageFact]:
    """Decode images on all cores (OpenCV frees the interpreter meanwhile), the largest singly.

    Args:
        paths: image files, each once.
        progress: called as (done, total) after every image.
        threads: how many at a time; one per core if not given.
    """
    facts: dict[Path, ImageFact] = {}
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1)
    try:
        for path, fact in zip(paths, pool.map(read_fact, paths), strict=True):
            facts[path] = fact
            if progress is not None:
                progress(len(facts), len(paths))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, too
    return facts


def read_fact(path: Path) -> ImageFact:
    """Read and decode one image."""
    if not path.is_file():
        detail = "no regular file" if path.exists() else "no such file"
        return ImageFact(None, "", Kind.IMAGE_MISSING, detail)
    header = header_of(path)
    pixels = None if header is None else header.width * header.height
    try:
        digest = sha256(path)
        with _one_large if pixels is None or pixels > LARGE else nullcontext():
            height, width = read_image(path).shape[:2]
    except (OSError, InputError) as error:
        sure = header is not None and header.turned is not None
        damaged = sure and pixels is not None and pixels <= max_pixels()
        kind = Kind.IMAGE_TRUNCATED if damaged else Kind.IMAGE_UNREADABLE
        return ImageFact(None, "", kind, str(error).removeprefix(f"{shown(path)}: "))
    return ImageFact((width, height), digest)


def image_faults(images: Iterable[ImageRow], facts: dict[Path, ImageFact]) -> Iterator[Fault]:
    """Yield a fault for every image that cannot be used or is not what its annotations say."""
    for image in images:
        fact = facts[image.path]
        if fact.problem is not None:
            yield Fault(fact.problem, image.path, fact.detail, image.path)
        elif image.size is not None and fact.size is not None and image.size != fact.size:
            yield Fault(Kind.IMAGE_SIZE, image.path, _sizes(image.size, fact.size), image.path)


def _sizes(annotated: Size, found: Size) -> str:
    turned = ", as if its Exif rotation had been ignored" if annotated == found[::-1] else ""
    return f"{found[0]} × {found[1]} pixels, annotated {annotated[0]} × {annotated[1]}{turned}"
