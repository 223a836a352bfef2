"""What checking a dataset found, by kind and split, and as JSON."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmsfree.data.check_boxes import Boxes
from nmsfree.data.check_copies import Leak
from nmsfree.data.check_images import ImageFact
from nmsfree.data.check_stats import SplitStats
from nmsfree.data.faults import DESCRIPTIONS, Fault, Kind, Level
from nmsfree.data.formats import Layout
from nmsfree.data.rows import SplitRows, relative_name


@dataclass(frozen=True, eq=False)
class SplitCheck:
    """One split that could be read.

    Attributes:
        rows: what the source says, without what is malformed or dangling.
        boxes: the verdict on every box.
        stats: counts of what is usable.
        faults: what is wrong with the split by itself.
    """

    rows: SplitRows
    boxes: Boxes
    stats: SplitStats
    faults: tuple[Fault, ...]


@dataclass(frozen=True, eq=False)
class Check:
    """What checking a dataset found.

    Attributes:
        layout: format and folder.
        splits: by name, those that could be read.
        facts: what reading each image gave.
        leaks: images shared by two splits.
        faults: what concerns several splits, or a split that cannot be read.
    """

    layout: Layout
    splits: dict[str, SplitCheck]
    facts: dict[Path, ImageFact]
    leaks: tuple[Leak, ...]
    faults: tuple[Fault, ...]

    def files(self) -> Iterator[Path]:
        """Yield the files that annotate and the pictures, which no output may replace."""
        yield from self.layout.files()
        for split in self.splits.values():
            for image in split.rows.images:
                yield from (image.path, image.source)

    def findings(self) -> list["Finding"]:
        """Return all faults by kind and split, the worst kinds first."""
        found: dict[tuple[Kind, str], list[Fault]] = {}
        named = [("", self.faults), *((name, split.faults) for name, split in self.splits.items())]
        for name, faults in named:
            for fault in faults:
                found.setdefault((fault.kind, name), []).append(fault)
        order = list(Kind)
        keys = sorted(found, key=lambda key: order.index(key[0]))
        return [Finding(kind, name, tuple(found[kind, name])) for kind, name in keys]

    def count(self, level: Level) -> int:
        """Return the number of faults of a level."""
        return sum(len(f.faults) for f in self.findings() if f.level is level)

    def to_json(self) -> dict[str, Any]:
        """Return everything, ready for `json.dumps`; paths count from the dataset's folder."""
        return {
            "dataset": str(self.layout.config or self.layout.root),
            "format": self.layout.format,
            "errors": self.count(Level.ERROR),
            "warnings": self.count(Level.WARNING),
            "splits": {
                name: {"file": str(split.rows.file), **split.stats.to_json(split.rows)}
                for name, split in self.splits.items()
            },
            "findings": [finding.to_json(self.layout.root) for finding in self.findings()],
        }


@dataclass(frozen=True)
class Finding:
    """All faults of one kind in one split; `split` is empty where it concerns several."""

    kind: Kind
    split: str
    faults: tuple[Fault, ...]

    @property
    def level(self) -> Level:
        return DESCRIPTIONS[self.kind].level

    def to_json(self, root: Path) -> dict[str, Any]:
        about = DESCRIPTIONS[self.kind]
        return {
            "kind": self.kind.value,
            "level": about.level.value,
            "split": self.split or None,
            "title": about.title,
            "advice": about.advice,
            "count": len(self.faults),
            "items": [
                {
                    "file": relative_name(fault.source, root),
                    "detail": fault.detail,
                    "image": fault.image and relative_name(fault.image, root),
                }
                for fault in self.faults
            ],
        }
