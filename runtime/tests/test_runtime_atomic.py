"""Files written whole or not at all, and brought to the disk before anyone is told."""

import os
import stat
from pathlib import Path

import pytest

from nmsfree.atomic import write_atomic
from nmsfree.errors import InputError


def test_file_and_folder_are_new_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    write_atomic(path, b"first")
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644 or os.name == "nt"


def test_a_refusal_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written") as error:
        write_atomic(tmp_path / "a", b"a folder has that name")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="cannot be written"):
        write_atomic(Path(f"{tmp_path}/a/{'b' * 300}"), b"")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b"]


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be opened there")
def test_content_is_synced_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "a.bin", os.fsync
    synced: list[tuple[bool, bool]] = []  # whether a folder, whether the name was there

    def watched(handle: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(handle).st_mode), path.exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", watched)
    write_atomic(path, b"content")
    assert synced == [(False, False), (True, True)]


def test_systems_that_cannot_sync_a_folder_write_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def refusing(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError("not for folders")
        real(handle)

    monkeypatch.setattr(os, "fsync", refusing)
    write_atomic(tmp_path / "a.bin", b"content")
    assert (tmp_path / "a.bin").read_bytes() == b"content"
