"""Reading every image of a dataset once: does it decode, how large is it, which bytes is it."""

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from nmsfree.datasets.faults import Fault, Kind
from nmsfree.datasets.image_files import Size, header_of
from nmsfree.datasets.rows import ImageRow, SplitRows, relative_name
from nmsfree.errors import InputError
from nmsfree.images import max_pixels, read_image
from nmsfree.machine import sha256
from nmsfree.text import shown

LARGE = 1 << 25  # pixels; such images are decoded one at a time, not one on every core
_one_large = threading.Lock()

Progress = Callable[[int, int], None]  # images done, images in all


@dataclass(frozen=True)
class ImageFact:
    """What reading an image file gave."""

    size: Size | None  # width, height in pixels after Exif rotation; None if it cannot be decoded
    digest: str  # of its bytes; empty if it cannot be read
    problem: Kind | None = None  # what is wrong, None if nothing is
    detail: str = ""  # in words


def read_images(
    paths: Sequence[Path], progress: Progress | None = None, threads: int | None = None
) -> dict[Path, ImageFact]:
    """Decode images on all cores (OpenCV frees the interpreter meanwhile), the largest singly.

    `progress` is called as (done, total) after every image.
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
            (w, h), (width, height) = fact.size, image.size
            detail = f"{w} × {h} pixels, annotated {width} × {height}"
            if (w, h) == (height, width):
                detail += ", as if its Exif rotation had been ignored"
            yield Fault(Kind.IMAGE_SIZE, image.path, detail, image.path)


Leak = tuple[str, Path, str, Path]  # split, image, other split, its image


def copies_within(rows: SplitRows, facts: Mapping[Path, ImageFact]) -> Iterator[Fault]:
    """Yield a fault for every image of a split whose bytes an earlier one has."""
    first: dict[str, Path] = {}
    for image in rows.images:
        digest = facts[image.path].digest
        if digest and (earlier := first.setdefault(digest, image.path)) is not image.path:
            detail = f"the same as {relative_name(earlier, rows.root)}"
            yield Fault(Kind.IMAGE_DUPLICATE, image.path, detail, image.path)


def leaks(splits: Mapping[str, SplitRows], facts: Mapping[Path, ImageFact]) -> list[Leak]:
    """Return the images that two splits share, by their bytes, each with one partner.

    A split that joins others (VOC's `trainval`) shares theirs on purpose.
    """
    joined = unions(splits)
    by_digest = {name: _by_digest(rows, facts) for name, rows in splits.items()}
    return [
        (one, path, other, by_digest[other][digest][0])
        for one, other in combinations(by_digest, 2)
        if other not in joined.get(one, []) and one not in joined.get(other, [])
        for digest, paths in by_digest[one].items()
        if digest in by_digest[other]
        for path in paths
    ]


def _by_digest(rows: SplitRows, facts: Mapping[Path, ImageFact]) -> dict[str, list[Path]]:
    by_digest: dict[str, list[Path]] = defaultdict(list)
    for image in rows.images:
        if digest := facts[image.path].digest:
            by_digest[digest].append(image.path)
    return by_digest


def leak_faults(splits: Mapping[str, SplitRows], found: list[Leak]) -> Iterator[Fault]:
    """Yield a fault for every leaked image."""
    for one, path, other, partner in found:
        name = relative_name(partner, splits[other].root)
        same = f"the bytes of {name} in {other}" if path != partner else f"and in {other}"
        yield Fault(Kind.LEAKAGE, path, f"in {one}, {same}", path)


def unions(splits: Mapping[str, SplitRows]) -> dict[str, list[str]]:
    """Return the splits that are two or more others put together, with those others' names."""
    paths = {name: frozenset(image.path for image in rows.images) for name, rows in splits.items()}
    found: dict[str, list[str]] = {}
    for name, whole in paths.items():
        parts = [other for other in paths if paths[other] < whole]
        if len(parts) > 1 and frozenset().union(*(paths[part] for part in parts)) == whole:
            found[name] = parts
    return found
