"""Which result files a report is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from nmsfree.decode import read_bytes
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
    data = read_bytes(path)
    picture = path.with_suffix(".png")
    return Found(
        path,
        results_file.parse(path, data),
        sha256(data).hexdigest(),
        picture if picture.is_file() else None,
    )


def _order(kind: str) -> int:
    from nmsfree_benchmarks.page.kinds import KINDS

    return list(KINDS).index(kind) if kind in KINDS else len(KINDS)
