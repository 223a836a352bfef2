"""The image files of a folder."""

import os
from pathlib import Path

from nmsfree.sources import IMAGE_SUFFIXES


def images_below(folder: Path) -> list[Path]:
    """Return all image files of a folder tree, unordered, hidden ones left out."""
    found: list[Path] = []
    for parent, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += images_in(Path(parent))
    return found


def images_in(folder: Path) -> list[Path]:
    """Return the image files of a folder alone, unordered, hidden ones left out."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [
            folder / entry.name
            for entry in entries
            if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")
        ]
