"""Which result files a report is made of."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from nmsfree.errors import InputError
from nmsfree_benchmarks.record import file as results_file
from nmsfree_benchmarks.record.records import FORMAT_VERSION, Results


@dataclass(frozen=True, eq=False)
class Found:
    """Attributes:
    path: of the result file; sha256: of its bytes.
    picture: PNG of the same name beside it; None = there is none.
    """

    path: Path
    results: Results
    sha256: str
    picture: Path | None


def open_files(paths: Sequence[Path]) -> list[Found]:
    """Read the files that a user named, in that order.

    Raises:
        InputError: one cannot be read, is no result file, or is of another format.
    """
    return [_open(path) for path in paths]


def newest_of_each_kind(folder: Path) -> tuple[list[Found], dict[str, str]]:
    """Read the newest result file of each kind in a folder, in the order of kinds.

    Returns:
        The files; and by name those that cannot be read, and why.

    Raises:
        InputError: the folder holds no result file of this format.
    """
    newest: dict[str, Found] = {}
    skipped: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        older = _older_format(path)
        if older is not None:
            skipped[path.name] = older
            continue
        try:
            found = _open(path)
        except InputError as error:
            skipped[path.name] = str(error).removeprefix(f"{path}: ")
            continue
        kind = found.results.kind
        if kind not in newest or newest[kind].results.stamp < found.results.stamp:
            newest[kind] = found
    if not newest:
        also = "".join(f"; {name}: {reason}" for name, reason in skipped.items())
        raise InputError(
            f"{folder}: no result of format {FORMAT_VERSION} in it, run one first{also}"
        )
    return [newest[kind] for kind in sorted(newest, key=_order)], skipped


def _open(path: Path) -> Found:
    results = results_file.read(path)
    picture = path.with_suffix(".png")
    digest = sha256(path.read_bytes()).hexdigest()
    return Found(path, results, digest, picture if picture.is_file() else None)


def _older_format(path: Path) -> str | None:
    """Say that a file is of another major version; None for everything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # reading it says why
    version = str(content.get("format_version", "")) if isinstance(content, dict) else ""
    if not version or version.split(".")[0] == FORMAT_VERSION.split(".")[0]:
        return None
    return f"format {version}, this version reads {FORMAT_VERSION}"


def _order(kind: str) -> int:
    from nmsfree_benchmarks.page.kinds import KINDS

    return list(KINDS).index(kind) if kind in KINDS else len(KINDS)
