"""The weights of the project: the manifest, what is on the disk, and getting the published ones.

`manifest.toml` lists bundled weights (small, committed, each with a card) and published ones
(downloaded into `published/`). A published file is compared with the `size` and `sha256` of its
entry where the manifest knows them. Its SHA-256 is also recorded in `published/SHA256SUMS` at its
first download, in the format of `sha256sum`, and compared from then on: where the manifest has
none, this notices changes later, not what was wrong at first.
"""

import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from nmsfree.errors import CheckpointError, InputError
from nmsfree.files import write_atomic
from nmsfree.machine import sha256
from nmsfree.parsing import (
    FileName,
    Positive,
    Sha256,
    Share,
    check_file,
    decode_json,
    decode_toml,
    read_bytes,
)
from nmsfree.text import one_of, shown
from nmsfree_training.config import preset
from nmsfree_training.weights.card import Card
from nmsfree_training.weights.checkpoint import load_published
from nmsfree_training.weights.download import Progress, fetch
from nmsfree_training.weights.torch_file import MAX_BYTES

SUMS = "SHA256SUMS"
END_OF_ARCHIVE = 22  # bytes of the record that ends a zip archive


class PublishedWeight(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the published experiment; its size and SHA-256 where they are known."""

    name: str  # preset
    file: FileName  # in `published/`
    url: Annotated[str, Meta(pattern="^https?://", max_length=2000)]
    ap: Share  # as published, on COCO val2017
    ap50: Share
    size: Positive | None = None  # bytes
    sha256: Sha256 | None = None


class BundledWeight(Struct, frozen=True, forbid_unknown_fields=True):
    """A checkpoint that comes with the project: preset, file and card names."""

    name: str
    file: FileName
    card: FileName


class _Entries(Struct, frozen=True, forbid_unknown_fields=True):
    published: tuple[PublishedWeight, ...] = ()
    bundled: tuple[BundledWeight, ...] = ()


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
        bundled = [name for weight in self.bundled for name in (weight.file, weight.card)]
        published = [self.downloads / weight.file for weight in self.published]
        return [*(self.folder / name for name in bundled), *published]

    def choose(self, names: Sequence[str]) -> list[PublishedWeight]:
        """Return published weights by name; all without names.

        Raises:
            InputError: a name is not in the manifest.
        """
        known = {weight.name: weight for weight in self.published}
        for name in names:
            if name not in known:
                raise InputError(
                    f"no published weights named {name!r}, expected {one_of(known, name)}"
                )
        return [known[name] for name in dict.fromkeys(names or known)]


def load_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        InputError: missing, not TOML, or an entry with missing, unknown or wrong fields.
    """
    if not path.exists():
        raise InputError(
            f"{path}: no such file: run in the project's folder, or give --manifest FILE"
        )
    entries = decode_toml(read_bytes(path), _Entries, path, InputError)
    for name in (*(w.name for w in entries.published), *(w.name for w in entries.bundled)):
        preset(name)
    return Manifest(path.parent, entries.published, entries.bundled)


def read_sums(folder: Path) -> dict[str, str]:
    """Return file name → SHA-256 as recorded in a folder.

    Raises:
        InputError: a line is not "SHA-256  file".
    """
    path = folder / SUMS
    if not path.exists():
        return {}
    sums = {}
    for line in read_bytes(path).decode("utf-8", "replace").splitlines():
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if match is None:
            raise InputError(
                f"{path}: line {shown(line)!r}, expected 'SHA-256  file': delete the line"
            )
        sums[match[2]] = match[1]
    return sums


def obtain(
    weight: PublishedWeight, folder: Path, progress: Progress, *, allow_http: bool = False
) -> bool:
    """Make sure that a published file is there and is what it was at its first download.

    Returns:
        True if the file was downloaded now, False if it was there.

    Raises:
        CheckpointError: the download failed, or the bytes are not this model's or have changed.
    """
    target = folder / weight.file
    if target.exists():
        _admit(target, weight, folder)
        return False
    fetch(
        weight.url,
        target,
        progress,
        lambda part: _admit(part, weight, folder),
        size=weight.size,
        allow_http=allow_http,
    )
    return True


def _admit(path: Path, weight: PublishedWeight, folder: Path) -> None:
    """Compare with the sums that are known; the first time check the content and record it."""
    check_file(path, MAX_BYTES, CheckpointError)
    found, recorded = sha256(path), read_sums(folder).get(weight.file)
    if weight.sha256 not in (None, found):
        raise CheckpointError(
            f"{path}: SHA-256 {found[:12]}…, in the manifest: {weight.sha256[:12]}…: these are "
            "other bytes than were meant; remove the file and download again"
        )
    if recorded is None:
        check_content(path, weight.name)
        sums = read_sums(folder) | {weight.file: found}
        lines = [f"{value}  {name}\n" for name, value in sorted(sums.items())]
        write_atomic(folder / SUMS, "".join(lines).encode())
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
    if not zipfile.is_zipfile(path):  # of PyTorch before 1.6, which has no sums inside
        return
    # PyTorch does not compare the check sums inside the file, so a flipped bit would load.
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            file.seek(-END_OF_ARCHIVE, os.SEEK_END)
            if damaged is None and not file.read().startswith(b"PK\5\6"):
                damaged = "more bytes behind its end"
    except (zipfile.BadZipFile, zlib.error, OSError) as error:
        damaged = str(error)
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged inside ({shown(damaged)}): download it again")


def read_card(path: Path) -> Card:
    """Return a model card, see `card.py`.

    Raises:
        InputError: it cannot be read, or is no model card.
    """
    return decode_json(read_bytes(path), Card, path, InputError, "write it with weights card")


@dataclass(frozen=True)
class Status:
    """One line of the list."""

    name: str  # preset
    kind: Literal["bundled", "published"]
    file: Path  # there or not
    ap: dict[str, float]  # 0–1 by split: as published, or from the card; empty without a card
    size: int | None  # bytes; None where the file is missing
    # Compared with the card, the manifest or the recorded sum, "unknown" where there is none.
    sha: Literal["ok", "differs", "unknown"] | None


def statuses(manifest: Manifest) -> list[Status]:
    """Look at every file of the manifest; reads them whole to compare their sums."""
    found = []
    for bundled in manifest.bundled:
        path, file = manifest.folder / bundled.card, manifest.folder / bundled.file
        card = read_card(path) if path.exists() else None
        ap, sha = (card["AP"], card["sha256"]) if card else ({}, None)
        found.append(Status(bundled.name, "bundled", file, ap, *_look(file, sha)))
    sums = read_sums(manifest.downloads)
    for published in manifest.published:
        file, ap = manifest.downloads / published.file, {"COCO": published.ap}
        sha = published.sha256 or sums.get(published.file)
        found.append(Status(published.name, "published", file, ap, *_look(file, sha)))
    return found


def _look(
    file: Path, expected: str | None
) -> tuple[int | None, Literal["ok", "differs", "unknown"] | None]:
    if not file.is_file():
        return None, None
    if expected is None:
        return file.stat().st_size, "unknown"
    return file.stat().st_size, "ok" if sha256(file) == expected else "differs"
