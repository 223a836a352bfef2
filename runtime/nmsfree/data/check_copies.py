"""Images that are there twice: within a split, and in two splits (leakage)."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

from nmsfree.data.check_images import ImageFact
from nmsfree.data.faults import Fault, Kind
from nmsfree.data.rows import SplitRows, relative_name

Leak = tuple[str, Path, str, Path]  # split, image, other split, its image


def copies_within(rows: SplitRows, facts: Mapping[Path, ImageFact]) -> Iterator[Fault]:
    """Yield a fault for every image of a split whose bytes an earlier one has."""
    first: dict[str, Path] = {}
    for image in rows.images:
        digest = facts[image.path].digest
        if not digest:
            continue
        earlier = first.setdefault(digest, image.path)
        if earlier is not image.path:
            detail = f"the same as {relative_name(earlier, rows.root)}"
            yield Fault(Kind.IMAGE_DUPLICATE, image.path, detail, image.path)


def leaks(splits: Mapping[str, SplitRows], facts: Mapping[Path, ImageFact]) -> list[Leak]:
    """Return the images that two splits share, by their bytes, each with one partner.

    A split that joins others (VOC's `trainval`) shares theirs on purpose.
    """
    joined = unions(splits)
    by_digest = {name: _by_digest(rows, facts) for name, rows in splits.items()}
    found: list[Leak] = []
    for one, other in combinations(by_digest, 2):
        if other in joined.get(one, []) or one in joined.get(other, []):
            continue
        for digest in by_digest[one]:
            if digest in by_digest[other]:
                partner = by_digest[other][digest][0]
                found += [(one, path, other, partner) for path in by_digest[one][digest]]
    return found


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
