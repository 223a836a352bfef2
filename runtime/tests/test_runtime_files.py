"""Files written whole or not at all, and brought to the disk before anyone is told."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from nmsfree.errors import InputError
from nmsfree.files import (
    PartFile,
    check_outputs,
    remove_leftovers,
    temporary_folder,
    write_atomic,
    write_json,
)
from nmsfree.streams.video_file import VideoFile


def test_file_and_folder_are_new_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / ("x" * 255)  # as long as the system allows
    write_atomic(path, b"first")
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]
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


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_mode_follows_the_umask_and_an_existing_mode_stays(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(0o600)
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "new", b"")
        write_atomic(secret, b"changed")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to("folder/target")
    write_atomic(link, b"first")
    write_atomic(link, b"second")
    assert link.is_symlink()
    assert (tmp_path / "folder" / "target").read_bytes() == b"second"


@pytest.mark.skipif(os.name == "nt", reason="no FIFO there")
def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_json(pipe, {"ap": float("nan")})
        assert json.loads(os.read(reader, 100)) == {"ap": None}
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="no /dev/stdout there")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_stream_that_leads_to_a_file_is_not_written_from_its_start(
    tmp_path: Path, name: str
) -> None:
    code = (
        "import sys; from pathlib import Path; from nmsfree.files import write_atomic\n"
        f"print('before', flush=True); write_atomic(Path({name!r}), b'content\\n'); print('after')"
    )
    out = tmp_path / "out"
    with out.open("wb") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert out.read_text().split() == ["before", "content", "after"]


@pytest.mark.skipif(os.name == "nt", reason="files are not locked there")
def test_interrupted_while_the_temporary_file_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        assert list(tmp_path.iterdir()), "it is there already"
        raise KeyboardInterrupt

    monkeypatch.setattr("fcntl.flock", interrupt)
    with pytest.raises(KeyboardInterrupt):
        PartFile(tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="a file that is open cannot be removed there")
def test_leftovers_of_killed_processes_are_removed_and_files_in_use_are_not(tmp_path: Path) -> None:
    (tmp_path / ".nmsfree-0123456789ab.part").write_bytes(b"left")
    busy = PartFile(tmp_path / "busy")
    write_atomic(tmp_path / "a", b"")
    busy.write(b"content")
    busy.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "busy"]


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be locked there")
def test_temporary_folders_of_killed_processes_are_removed_and_those_in_use_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / ".nmsfree-left.part" / "deep").mkdir(parents=True)
    (tmp_path / "nmsfree-mine").mkdir()  # not of this project
    with temporary_folder() as folder:
        (folder / "model.onnx").write_bytes(b"large")
        assert sorted(tmp_path.iterdir()) == [folder, tmp_path / "nmsfree-mine"]
        remove_leftovers(tmp_path.parent)
        assert (folder / "model.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["nmsfree-mine"]


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each looks for leftovers first, and must take no file that another has just made."""
    code = (
        "import sys, pathlib, nmsfree.files as files\n"
        "for i in range(150):\n"
        "    files._tidied.clear()\n"
        "    path = pathlib.Path(sys.argv[1], f'{sys.argv[2]}-{i}')\n"
        "    files.write_atomic(path, b'whole', sync=False)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    writers = [subprocess.Popen([*words, str(n)]) for n in range(3)]
    assert [writer.wait(100) for writer in writers] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 450
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"whole"}


def test_an_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.touch()
    (tmp_path / "folder").mkdir()
    check_outputs([None, "-", tmp_path / "new.json"], [model])
    for wrong, reason in (
        (tmp_path / "folder" / ".." / "m.onnx", "is an input"),
        ("", "empty name"),
        (tmp_path / "folder", "it is a folder"),
        (model / "new.json", "is no folder"),
        (model / "deep" / "new.json", "is no folder"),
    ):
        with pytest.raises(InputError, match=reason):
            check_outputs([wrong], [model])


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="root writes everywhere")
def test_a_protected_folder_is_refused_unless_a_link_leads_out(tmp_path: Path) -> None:
    folder = tmp_path / "protected"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "a.json")
    folder.chmod(0o500)
    check_outputs([folder / "link"])
    with pytest.raises(InputError, match="is protected"):
        check_outputs([folder / "a.json"])


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_an_input_is_known_by_every_name(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.touch()
    (tmp_path / "soft").symlink_to(model)
    (tmp_path / "folder").symlink_to(tmp_path)
    for name in ("soft", "folder/m.onnx"):
        with pytest.raises(InputError, match="is an input"):
            check_outputs([tmp_path / name], [None, model])
        with pytest.raises(InputError, match="is an input"):
            check_outputs([model], [tmp_path / name])
    with pytest.raises(InputError, match="two outputs"):
        check_outputs([tmp_path / "a.json", tmp_path / "folder" / "a.json"])
    os.mkfifo(tmp_path / "pipe")
    check_outputs([tmp_path / "pipe", "/dev/stdout"], [model])  # written through


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there alone")
def test_a_video_in_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")  # OpenCV would crash
    video = VideoFile(folder / "a.mp4", 10, 32, 32)
    video.write(np.zeros((32, 32, 3), np.uint8))
    video.finish()
    assert [path.name for path in folder.iterdir()] == ["a.mp4"]
