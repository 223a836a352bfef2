"""Classes: names used twice, ids left out, no objects, and other ones in another split."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise

from nmsfree.data.check_copies import unions
from nmsfree.data.check_stats import SplitStats
from nmsfree.data.faults import Fault, Kind
from nmsfree.data.rows import Category, SplitRows


def class_faults(rows: SplitRows, stats: SplitStats) -> Iterator[Fault]:
    """Yield the classes of a split that have no object."""
    filled = {category.name for category in rows.categories if stats.by_class[category.id]}
    for category in rows.categories:
        if category.name not in filled:
            yield Fault(Kind.CLASS_EMPTY, rows.file, f"{category.name} (id {category.id})")


def list_faults(splits: Mapping[str, SplitRows]) -> Iterator[Fault]:
    """Yield what is remarkable about the list of classes, once where splits share one."""
    seen: set[tuple[Category, ...]] = set()
    for rows in splits.values():
        if rows.categories not in seen:
            seen.add(rows.categories)
            yield from _list_faults(rows)


def _list_faults(rows: SplitRows) -> Iterator[Fault]:
    names = Counter(category.name for category in rows.categories)
    for name in (name for name, times in names.items() if times > 1):
        ids = ", ".join(str(c.id) for c in rows.categories if c.name == name)
        yield Fault(Kind.CLASS_NAME_TWICE, rows.file, f"{name!r} is the name of the ids {ids}")
    numbers = [category.id for category in rows.categories]
    for low, high in pairwise(numbers):
        if high > low + 1:
            gap = f"{low + 1}" if high == low + 2 else f"{low + 1} … {high - 1}"
            yield Fault(Kind.CATEGORY_ID_GAP, rows.file, f"no class has the id {gap}")


def faults_between(splits: Mapping[str, SplitRows]) -> Iterator[Fault]:
    """Yield what is wrong with splits side by side."""
    first = next(iter(splits.values()))
    for rows in splits.values():
        if rows.categories != first.categories:
            differ = set(rows.categories) ^ set(first.categories)
            names = ", ".join(sorted({f"{c.name} (id {c.id})" for c in differ})[:5])
            detail = f"its classes differ from those of {first.name}: {names}"
            yield Fault(Kind.CLASSES_DIFFER, rows.file, detail)
    for name, parts in unions(splits).items():
        detail = f"{name} is {' and '.join(parts)} together"
        yield Fault(Kind.SPLIT_UNION, splits[name].file, detail)
