"""The weights of the project: the manifest, what is on the disk, and getting the published ones.

`manifest.toml` lists bundled weights (small, committed, each with a card) and published ones
(downloaded into `published/`). The SHA-256 of a published file is recorded in
`published/SHA256SUMS` at its first download, in the format of `sha256sum`, and checked from then
on.
"""

import json
import re
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmsfree.errors import CheckpointError, InputError
from nmsfree.files import write_atomic
from nmsfree.identity import sha256
from nmsfree_training.checkpoint import load_published
from nmsfree_training.config import preset
from nmsfree_training.download import Progress, fetch

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class PublishedWeight:
    """A file of the published experiment: preset, file name, address, expected COCO AP (0–1)."""

    name: str
    file: str
    url: str
    ap: float
    ap50: float


@dataclass(frozen=True)
class BundledWeight:
    """A checkpoint that comes with the project: preset, file and card names."""

    name: str
    file: str
    card: str


@dataclass(frozen=True)
class Manifest:
    """All weights; `folder` holds the manifest, the bundled files and `published/`."""

    folder: Path
    published: tuple[PublishedWeight, ...]
    bundled: tuple[BundledWeight, ...]

    @property
    def downloads(self) -> Path:
        """Where published files are kept."""
        return self.folder / "published"

    def files(self) -> list[Path]:
        """Return every file of the list, there or not."""
        bundled = [
            self.folder / name for weight in self.bundled for name in (weight.file, weight.card)
        ]
        return [*bundled, *(self.downloads / weight.file for weight in self.published)]

    def choose(self, names: list[str]) -> list[PublishedWeight]:
        """Return published weights by name; all without names.

        Raises:
            InputError: a name is not in the manifest.
        """
        known = {weight.name: weight for weight in self.published}
        for name in names:
            if name not in known:
                raise InputError(
                    f"no published weights named {name!r}, expected: {', '.join(known)}"
                )
        return [known[name] for name in dict.fromkeys(names or known)]


def load_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        InputError: missing, not TOML, or an entry with missing, unknown or wrong fields.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file: run in the project's folder, or give --manifest FILE"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        published = tuple(PublishedWeight(**entry) for entry in content.get("published", []))
        bundled = tuple(BundledWeight(**entry) for entry in content.get("bundled", []))
    except (tomllib.TOMLDecodeError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    everything: list[PublishedWeight | BundledWeight] = [*published, *bundled]
    for weight in everything:
        preset(weight.name)
        if Path(weight.file).name != weight.file:
            raise InputError(f"{path}: file is {weight.file!r}, expected a name without folders")
    for entry in published:
        if not entry.url.startswith(("https://", "http://")):
            raise InputError(f"{path}: url is {entry.url!r}, expected https://…")
    return Manifest(path.parent, published, bundled)


def read_sums(folder: Path) -> dict[str, str]:
    """Return file name → SHA-256 as recorded in a folder.

    Raises:
        InputError: a line is not "SHA-256  file".
    """
    path = folder / SUMS
    if not path.exists():
        return {}
    sums = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if match is None:
            raise InputError(f"{path}: line {line!r}, expected 'SHA-256  file': delete the line")
        sums[match[2]] = match[1]
    return sums


def obtain(weight: PublishedWeight, folder: Path, progress: Progress) -> bool:
    """Make sure that a published file is there and is what it was at its first download.

    Args:
        folder: of the file, its `.part` and the recorded sums.
        progress: called as (bytes done, bytes in all or None).

    Returns:
        True if the file was downloaded now, False if it was there.

    Raises:
        CheckpointError: the download failed, or the bytes are not this model's or have changed.
    """
    target = folder / weight.file
    if target.exists():
        _admit(target, weight, folder)
        return False
    part = folder / f"{weight.file}.part"
    fetch(weight.url, part, progress)
    try:
        _admit(part, weight, folder)
    except CheckpointError:
        part.unlink()  # going on from wrong bytes would give wrong bytes
        raise
    part.replace(target)
    return True


def _admit(path: Path, weight: PublishedWeight, folder: Path) -> None:
    """Compare with the recorded sum; at the first download check the content and record it."""
    found, recorded = sha256(path), read_sums(folder).get(weight.file)
    if recorded is None:
        check_content(path, weight.name)
        _record(folder, weight.file, found)
    elif found != recorded:
        raise CheckpointError(
            f"{path}: SHA-256 {found[:12]}…, recorded at the first download: {recorded[:12]}…: "
            f"the bytes have changed; if the new ones are right, delete the line of {weight.file} "
            f"in {folder / SUMS} and any old file, and download again"
        )


def check_content(path: Path, name: str) -> None:
    """Check that a file is a whole, undamaged checkpoint of a preset.

    Raises:
        CheckpointError: it is not.
    """
    load_published(path, name)
    # PyTorch does not compare the check sums inside the file, so a flipped bit would load.
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except zipfile.BadZipFile as error:
            damaged = str(error)
        if damaged is not None:
            raise CheckpointError(f"{path}: damaged inside ({damaged}): download it again")


def _record(folder: Path, file: str, digest: str) -> None:
    sums = read_sums(folder) | {file: digest}
    lines = [f"{value}  {name}\n" for name, value in sorted(sums.items())]
    write_atomic(folder / SUMS, "".join(lines).encode())


def read_card(path: Path) -> dict[str, Any]:
    """Return a model card, see `card.py`.

    Raises:
        InputError: missing, or not a JSON object.
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}): write it with weights card") from None
    if not isinstance(card, dict):
        raise InputError(f"{path}: a JSON {type(card).__name__}, expected a model card")
    return card
