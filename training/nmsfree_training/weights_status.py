"""Which weights of the manifest are on the disk, and whether they are what they should be."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nmsfree.identity import sha256
from nmsfree_training.weights import Manifest, read_card, read_sums

Sha = Literal["ok", "differs", "unknown"]


@dataclass(frozen=True)
class Status:
    """One line of the list.

    Attributes:
        name: preset.
        kind: "bundled" or "published".
        file: path of the file, there or not.
        ap: AP (0–1) by split: as published, or from the card; empty without a card.
        size: bytes; None where the file is missing.
        sha: compared with the card, the manifest or the recorded sum; "unknown" where there is
            none; None where the file is missing.
    """

    name: str
    kind: Literal["bundled", "published"]
    file: Path
    ap: dict[str, float]
    size: int | None
    sha: Sha | None


def statuses(manifest: Manifest) -> list[Status]:
    """Look at every file of the manifest; reads them whole to compare their sums."""
    found = []
    for bundled in manifest.bundled:
        path = manifest.folder / bundled.card
        card = read_card(path) if path.exists() else None
        file = manifest.folder / bundled.file
        size, sha = _look(file, card and card["sha256"])
        ap = card["AP"] if card else {}
        found.append(Status(bundled.name, "bundled", file, ap, size, sha))
    sums = read_sums(manifest.downloads)
    for published in manifest.published:
        file = manifest.downloads / published.file
        size, sha = _look(file, published.sha256 or sums.get(published.file))
        ap = {"COCO": published.ap}
        found.append(Status(published.name, "published", file, ap, size, sha))
    return found


def _look(file: Path, expected: str | None) -> tuple[int | None, Sha | None]:
    if not file.is_file():
        return None, None
    if expected is None:
        return file.stat().st_size, "unknown"
    return file.stat().st_size, "ok" if sha256(file) == expected else "differs"
