"""Downloading published weights, from a real server on this machine that can misbehave."""

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from typer.testing import CliRunner, Result

from nmsfree.errors import CheckpointError, InputError
from nmsfree.machine import sha256
from nmsfree_training.cli.weights import app
from nmsfree_training.weights.download import Progress, fetch
from nmsfree_training.weights.manifest import SUMS, PublishedWeight, obtain, read_sums

runner = CliRunner()
FILE = "fcos_rt_r18_3x_coco.pth"


class Server(ThreadingHTTPServer):
    """Serves `files`; the other attributes say how it misbehaves.

    Attributes:
        ranges: whether it understands the Range header.
        wrong_range: answer a Range with bytes from elsewhere.
        cut_after: bytes after which it drops the connection; None sends everything.
        page: send this web page with status 200 instead of a file.
        hide_length: leave out Content-Length.
        length: tell this Content-Length.
        redirect: answer with a redirect to this address.
        asked: (path, Range header) of every request.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.wrong_range = False
        self.cut_after: int | None = None
        self.page: bytes | None = None
        self.hide_length = False
        self.length: str | None = None
        self.redirect: str | None = None
        self.asked: list[tuple[str, str | None]] = []

    def url(self, file: str = FILE) -> str:
        return f"http://127.0.0.1:{self.server_port}/{file}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        name = self.path.lstrip("/")
        self.server.asked.append((name, asked))
        if self.server.redirect is not None:
            self._answer(302, b"", {"Location": self.server.redirect})
        elif self.server.page is not None:
            self._answer(200, self.server.page, {"Content-Type": "text/html; charset=utf-8"})
        elif name not in self.server.files:
            self.send_error(404)
        else:
            self._send_file(self.server.files[name], asked)

    def _send_file(self, data: bytes, asked: str | None) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", asked or "") if self.server.ranges else None
        if wanted is None:
            self._answer(200, data, {})
            return
        start = int(wanted[1]) - 100 * self.server.wrong_range
        if start >= len(data):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        span = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(206, data[start:], {"Content-Range": span})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        if not self.server.hide_length:
            self.send_header("Content-Length", self.server.length or str(len(body)))
        for name, value in ({"Content-Type": "application/octet-stream"} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: self.server.cut_after])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def checkpoints(
    thin_state: Callable[..., dict[str, torch.Tensor]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """Small files that pass as published ones, by file name."""
    made = {}
    for name, file in (("fcos_rt_r18_3x", FILE), ("fcos_e2e_r18_3x", "fcos_e2e_r18_3x_coco.pth")):
        path = tmp_path_factory.mktemp("published") / file
        torch.save({"model": thin_state(name), "ballast": torch.rand(50_000)}, path)
        made[file] = path.read_bytes()
    return made


@pytest.fixture
def weight(server: Server, checkpoints: dict[str, bytes]) -> PublishedWeight:
    server.files |= checkpoints
    return PublishedWeight("fcos_rt_r18_3x", FILE, server.url(), 0.358, 0.533)


def quiet(_: int, __: int | None) -> None:
    """No progress."""


def get(weight: PublishedWeight, folder: Path, progress: Progress = quiet) -> bool:
    """The server of this file speaks no https."""
    return obtain(weight, folder, progress, allow_http=True)


def refusal(weight: PublishedWeight, folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        get(weight, folder, quiet)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_download_records_the_sum_and_tells_progress(
    weight: PublishedWeight, server: Server, tmp_path: Path
) -> None:
    folder, told = tmp_path / "published", list[tuple[int, int | None]]()
    assert get(weight, folder, lambda done, total: told.append((done, total)))
    data = server.files[FILE]
    assert (folder / FILE).read_bytes() == data
    assert names(folder) == [SUMS, FILE]
    assert (folder / SUMS).read_text() == f"{sha256(folder / FILE)}  {FILE}\n"
    assert told[0] == (0, len(data)) and told[-1] == (len(data), len(data))
    assert told == sorted(told)
    assert not get(weight, folder, quiet)  # there already: nothing is asked for
    assert server.asked == [(FILE, None)]


def test_cut_connection_goes_on_where_it_stopped(
    weight: PublishedWeight, server: Server, tmp_path: Path
) -> None:
    server.cut_after = 70_000
    message = refusal(weight, tmp_path)
    assert "70,000" in message and "goes on where it stopped" in message
    assert names(tmp_path) == [f"{FILE}.part"]
    refusal(weight, tmp_path)
    assert (tmp_path / f"{FILE}.part").stat().st_size == 140_000
    server.cut_after = None
    told = list[int]()
    get(weight, tmp_path, lambda done, _: told.append(done))
    assert told[0] == 140_000
    assert [asked for _, asked in server.asked] == [None, "bytes=70000-", "bytes=140000-"]
    assert (tmp_path / FILE).read_bytes() == server.files[FILE]
    assert names(tmp_path) == [SUMS, FILE]


def test_server_that_ignores_ranges_starts_over(
    weight: PublishedWeight, server: Server, tmp_path: Path
) -> None:
    server.cut_after = 70_000
    refusal(weight, tmp_path)
    server.cut_after, server.ranges = None, False
    get(weight, tmp_path, quiet)
    assert server.asked[-1] == (FILE, "bytes=70000-")
    assert (tmp_path / FILE).read_bytes() == server.files[FILE]


def test_server_that_sends_other_bytes_than_asked_for(
    weight: PublishedWeight, server: Server, tmp_path: Path
) -> None:
    server.cut_after = 70_000
    refusal(weight, tmp_path)
    server.cut_after, server.wrong_range = None, True
    assert "asked for the bytes from 70,000, the server sent 'bytes 69900-" in refusal(
        weight, tmp_path
    )
    server.wrong_range = False
    assert get(weight, tmp_path, quiet)


def test_server_that_tells_no_length(
    weight: PublishedWeight, server: Server, tmp_path: Path
) -> None:
    server.hide_length = True
    told = list[tuple[int, int | None]]()
    get(weight, tmp_path, lambda done, total: told.append((done, total)))
    assert told[-1] == (len(server.files[FILE]), None)
    (tmp_path / FILE).unlink()
    server.cut_after = 70_000
    assert "recorded at the first download" in refusal(weight, tmp_path)
    assert names(tmp_path) == [SUMS]


def test_part_file_that_is_whole_already(
    weight: PublishedWeight, server: Server, tmp_path: Path
) -> None:
    (tmp_path / f"{FILE}.part").write_bytes(server.files[FILE])
    assert get(weight, tmp_path, quiet)
    assert len(server.asked) == 1
    assert names(tmp_path) == [SUMS, FILE]


def test_part_file_that_is_too_long_starts_over(
    weight: PublishedWeight, server: Server, tmp_path: Path
) -> None:
    (tmp_path / f"{FILE}.part").write_bytes(server.files[FILE] + b"more")
    assert get(weight, tmp_path, quiet)
    assert [asked is None for _, asked in server.asked] == [False, True]
    assert (tmp_path / FILE).read_bytes() == server.files[FILE]


def test_changed_bytes_are_refused(
    weight: PublishedWeight, server: Server, tmp_path: Path, checkpoints: dict[str, bytes]
) -> None:
    get(weight, tmp_path, quiet)
    recorded = read_sums(tmp_path)
    (tmp_path / FILE).unlink()
    # It would pass as this model: bytes after the end of an archive are ignored.
    server.files[FILE] = checkpoints[FILE] + b" "
    message = refusal(weight, tmp_path)
    assert "recorded at the first download" in message and SUMS in message
    assert names(tmp_path) == [SUMS]
    assert read_sums(tmp_path) == recorded


def test_a_file_changed_on_the_disk_is_noticed(
    weight: PublishedWeight, tmp_path: Path, checkpoints: dict[str, bytes]
) -> None:
    get(weight, tmp_path, quiet)
    (tmp_path / FILE).write_bytes(checkpoints[FILE] + b" ")
    assert "the bytes have changed" in refusal(weight, tmp_path)
    assert (tmp_path / FILE).stat().st_size == len(checkpoints[FILE]) + 1  # left as it was


def test_damage_at_the_first_download_is_noticed(
    weight: PublishedWeight, server: Server, tmp_path: Path, checkpoints: dict[str, bytes]
) -> None:
    data = bytearray(checkpoints[FILE])
    data[len(data) // 2] ^= 64  # in the middle of the ballast
    server.files[FILE] = bytes(data)
    assert "damaged inside" in refusal(weight, tmp_path)
    assert names(tmp_path) == []


def test_a_part_of_another_file_is_noticed(
    weight: PublishedWeight, server: Server, tmp_path: Path
) -> None:
    (tmp_path / f"{FILE}.part").write_bytes(b"x" * 50_000)
    refusal(weight, tmp_path)
    assert names(tmp_path) == []
    assert get(weight, tmp_path, quiet)


def test_wrong_content_is_refused(
    weight: PublishedWeight, server: Server, tmp_path: Path, checkpoints: dict[str, bytes]
) -> None:
    server.page = b"<!DOCTYPE html><html>log in</html>"
    assert "the server sent a web page (text/html)" in refusal(weight, tmp_path)
    server.page = None
    server.files[FILE] = b"<html>not labelled as a page</html>"
    assert "an HTML page" in refusal(weight, tmp_path)
    server.files[FILE] = checkpoints["fcos_e2e_r18_3x_coco.pth"]
    assert "does not fit fcos_rt_r18_3x" in refusal(weight, tmp_path)
    assert names(tmp_path) == []


def test_a_login_page_does_not_destroy_what_was_downloaded(
    weight: PublishedWeight, server: Server, tmp_path: Path
) -> None:
    server.cut_after = 70_000
    refusal(weight, tmp_path)
    server.cut_after, server.page = None, b"<html>log in</html>"
    refusal(weight, tmp_path)
    assert (tmp_path / f"{FILE}.part").stat().st_size == 70_000


@pytest.mark.parametrize("length", ["abc", "²", "-1", "1.5", "9" * 5000, "0x10"])
def test_a_length_that_is_no_number(
    weight: PublishedWeight, server: Server, tmp_path: Path, length: str
) -> None:
    server.length = length
    message = refusal(weight, tmp_path)
    assert "download failed" in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/hostname",
        "ftp://127.0.0.1/file",
        "http://[bad/file",
        "http://127.0.0.1:99999/file",
        f"http://{'a' * 70}.invalid/",
        "javascript:alert(1)",
    ],
)
def test_a_redirect_that_leads_nowhere(
    weight: PublishedWeight, server: Server, tmp_path: Path, address: str
) -> None:
    server.redirect = address
    assert weight.url in refusal(weight, tmp_path)
    assert names(tmp_path) == []


def test_a_redirect_without_end(weight: PublishedWeight, server: Server, tmp_path: Path) -> None:
    server.redirect = weight.url
    assert "the server answered 302" in refusal(weight, tmp_path)


def test_http_is_refused_unless_it_is_allowed(
    weight: PublishedWeight, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="is not https, allow http with --allow-http"):
        obtain(weight, tmp_path, quiet)
    assert server.asked == []
    for address in ("ftp://127.0.0.1/a", "file:///etc/hostname", "nothing", ""):
        with pytest.raises(CheckpointError, match="expected https"):
            fetch(address, tmp_path / "file.part", quiet, allow_http=True)


def test_the_manifest_knows_what_the_file_is(
    weight: PublishedWeight, server: Server, tmp_path: Path, checkpoints: dict[str, bytes]
) -> None:
    data = checkpoints[FILE]
    digest = hashlib.sha256(data).hexdigest()
    known = replace(weight, size=len(data), sha256=digest)
    assert get(known, tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / SUMS).unlink()
    server.files[FILE] = data[:-1] + b"x"
    assert "in the manifest" in refusal(known, tmp_path)
    server.files[FILE] = data + b"x"
    assert f"{len(data) + 1:,} bytes there, {len(data):,} in the manifest" in refusal(
        known, tmp_path
    )
    server.hide_length = True
    assert "in the manifest" in refusal(known, tmp_path)
    assert FILE not in names(tmp_path)


@pytest.mark.parametrize("more", [b"x" * 1000, b"\0"])
def test_bytes_behind_the_end_are_noticed_at_the_first_download(
    weight: PublishedWeight, server: Server, tmp_path: Path, more: bytes
) -> None:
    server.files[FILE] += more
    assert "more bytes behind its end" in refusal(weight, tmp_path)
    assert names(tmp_path) == []


def test_a_server_that_never_ends(
    weight: PublishedWeight, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.hide_length = True
    monkeypatch.setattr("nmsfree_training.weights.download.MAX_BYTES", 100_000)
    assert "expected at most 100,000" in refusal(weight, tmp_path)
    assert names(tmp_path) == []


def test_errors_of_server_and_network(
    weight: PublishedWeight, server: Server, tmp_path: Path
) -> None:
    server.files.clear()
    assert "the server answered 404 (Not Found)" in refusal(weight, tmp_path)
    server.shutdown()
    server.server_close()
    message = refusal(weight, tmp_path)
    assert "download failed" in message and "check the network" in message
    with pytest.raises(CheckpointError, match="download failed"):
        fetch("https://name.invalid/file", tmp_path / "file.part", quiet)
    assert names(tmp_path) == []


def test_a_file_put_there_by_hand_is_checked_and_recorded(
    weight: PublishedWeight, server: Server, tmp_path: Path, checkpoints: dict[str, bytes]
) -> None:
    (tmp_path / FILE).write_bytes(checkpoints[FILE])
    assert not get(weight, tmp_path, quiet)
    assert read_sums(tmp_path) == {FILE: sha256(tmp_path / FILE)}
    assert server.asked == []
    (tmp_path / SUMS).unlink()
    (tmp_path / FILE).write_bytes(b"something else")
    assert "cannot be read" in refusal(weight, tmp_path)
    assert (tmp_path / FILE).exists()


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    assert read_sums(tmp_path) == {}
    (tmp_path / SUMS).write_text("nonsense\n")
    with pytest.raises(InputError, match="line 'nonsense', expected 'SHA-256  file'"):
        read_sums(tmp_path)


@pytest.fixture
def manifest(tmp_path: Path, server: Server, weight: PublishedWeight) -> Path:
    path = tmp_path / "manifest.toml"
    entries = {"fcos_rt_r18_3x": FILE, "fcos_o2o_r18_3x": "gone.pth"}
    entries["fcos_e2e_r18_3x"] = "fcos_e2e_r18_3x_coco.pth"
    path.write_text(
        "".join(
            f'[[published]]\nname = "{name}"\nfile = "{file}"\nurl = "{server.url(file)}"\n'
            "ap = 0.3\nap50 = 0.5\n"
            for name, file in entries.items()
        )
    )
    return path


def run(manifest: Path, *arguments: str) -> Result:
    options = ["--manifest", str(manifest), "--allow-http"]
    return runner.invoke(app, [arguments[0], *options, *arguments[1:]])


def test_command_gets_what_it_can(manifest: Path) -> None:
    result = run(manifest, "download")
    assert result.exit_code == 1
    assert "error: fcos_o2o_r18_3x: http" in result.stderr and "404" in result.stderr
    assert result.stderr.count("downloaded, loads as this model; its SHA-256 was known to") == 2
    folder = manifest.parent / "published"
    assert names(folder) == [SUMS, "fcos_e2e_r18_3x_coco.pth", FILE]
    again = run(manifest, "download", "fcos_rt_r18_3x", "fcos_e2e_r18_3x", "fcos_rt_r18_3x")
    assert again.exit_code == 0
    assert again.stderr.count("there already, SHA-256 as at the first download") == 2


def test_a_file_that_fails_does_not_stop_the_others(manifest: Path, server: Server) -> None:
    text = manifest.read_text()
    manifest.write_text(text.replace(server.url("gone.pth"), "http://[bad/gone.pth"))
    (manifest.parent / "published" / "gone.pth").mkdir(parents=True)
    result = run(manifest, "download")
    assert result.exit_code == 1
    assert result.stderr.count("downloaded, loads as this model") == 2
    (manifest.parent / "published" / "gone.pth").rmdir()
    result = run(manifest, "download")
    assert result.exit_code == 1
    assert "error: fcos_o2o_r18_3x: http://[bad/gone.pth: download failed" in result.stderr


def test_command_refuses_unknown_names(manifest: Path) -> None:
    error = run(manifest, "download", "fcos").exception
    assert isinstance(error, InputError)
    assert "'fcos', expected: fcos_rt_r18_3x, fcos_o2o_r18_3x, fcos_e2e_r18_3x" in str(error)
    assert not (manifest.parent / "published").exists()
