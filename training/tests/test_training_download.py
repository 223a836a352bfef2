"""Downloading published weights, from a real server on this machine that can misbehave."""

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from typer.testing import CliRunner, Result

from nmsfree.errors import CheckpointError, InputError
from nmsfree.machine import sha256
from nmsfree_training.cli.weights import app
from nmsfree_training.weights import imagenet
from nmsfree_training.weights.download import fetch
from nmsfree_training.weights.manifest import SUMS, PublishedWeight, obtain, read_sums

FILE, E2E = "fcos_rt_r18_3x_coco.pth", "fcos_e2e_r18_3x_coco.pth"


class Site(ThreadingHTTPServer):
    """Serves `files`, how well its attributes say; and what a user downloads of it to `folder`."""

    daemon_threads = True
    ranges = True  # it understands the Range header
    wrong_range = False  # answer a Range with bytes from elsewhere
    cut_after: int | None = None  # bytes after which it drops the connection
    page: bytes | None = None  # a web page with status 200 instead of a file
    hide_length = False  # leave out Content-Length
    length: str | None = None  # tell this Content-Length
    redirect: str | None = None  # answer with a redirect to this address

    def __init__(self, files: dict[str, bytes], folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.folder = dict(files), folder
        self.asked: list[tuple[str, str | None]] = []  # path and Range header of every request
        self.told: list[tuple[int, int | None]] = []  # of the progress of the last download
        self.weight = PublishedWeight("fcos_rt_r18_3x", FILE, self.url(), 0.358, 0.533)
        self.file, self.part = folder / FILE, folder / f"{FILE}.part"

    def url(self, file: str = FILE) -> str:
        return f"http://127.0.0.1:{self.server_port}/{file}"

    def get(self) -> bool:
        """This server speaks no https."""
        self.told = []
        return obtain(self.weight, self.folder, lambda *now: self.told.append(now), allow_http=True)

    def refusal(self) -> str:
        with pytest.raises(CheckpointError) as caught:
            self.get()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
        return str(caught.value)

    @property
    def names(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir())


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        site, asked, name = self.server, self.headers.get("Range"), self.path.lstrip("/")
        site.asked.append((name, asked))
        if site.redirect is not None:
            self._answer(302, b"", {"Location": site.redirect})
        elif site.page is not None:
            self._answer(200, site.page, {"Content-Type": "text/html; charset=utf-8"})
        elif name not in site.files:
            self.send_error(404)
        else:
            self._send_file(site.files[name], asked)

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


@pytest.fixture(scope="session")
def checkpoints(
    thin_state: Callable[..., dict[str, torch.Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Small files that pass as published ones, by file name."""
    folder, files = tmp_path_factory.mktemp("published"), (FILE, E2E)
    for file in files:
        state = thin_state(file.removesuffix("_coco.pth"))
        torch.save({"model": state, "ballast": torch.rand(50_000)}, folder / file)
    return {file: (folder / file).read_bytes() for file in files}


@pytest.fixture
def site(checkpoints: dict[str, bytes], tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "published"
    folder.mkdir()
    with Site(checkpoints, folder) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_download_records_the_sum_and_tells_progress(site: Site) -> None:
    site.folder.rmdir()
    assert site.get()
    size = len(site.files[FILE])
    assert site.file.read_bytes() == site.files[FILE]
    assert site.names == [SUMS, FILE]
    assert (site.folder / SUMS).read_text() == f"{sha256(site.file)}  {FILE}\n"
    assert site.told[0] == (0, size) and site.told[-1] == (size, size)
    assert site.told == sorted(site.told)
    assert not site.get()  # there already: nothing is asked for
    assert site.asked == [(FILE, None)]


def test_cut_connection_goes_on_where_it_stopped(site: Site) -> None:
    site.cut_after = 70_000
    message = site.refusal()
    assert "70,000" in message and "goes on where it stopped" in message
    assert site.names == [site.part.name]
    site.refusal()
    assert site.part.stat().st_size == 140_000
    site.cut_after, site.page = None, b"<html>log in</html>"
    site.refusal()
    assert site.part.stat().st_size == 140_000  # a login page destroys nothing
    site.page = None
    assert site.get() and site.told[0][0] == 140_000
    ranges = [None, "bytes=70000-", "bytes=140000-", "bytes=140000-"]
    assert [asked for _, asked in site.asked] == ranges
    assert site.file.read_bytes() == site.files[FILE]
    assert site.names == [SUMS, FILE]


def test_server_that_does_not_go_on_as_asked(site: Site) -> None:
    site.cut_after = 70_000
    site.refusal()
    site.cut_after, site.wrong_range = None, True
    assert "asked for the bytes from 70,000, the server sent 'bytes 69900-" in site.refusal()
    site.ranges = False  # it starts over
    assert site.get()
    assert site.asked[-1] == (FILE, "bytes=70000-")
    assert site.file.read_bytes() == site.files[FILE]


def test_server_that_tells_no_length(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.hide_length = True
    site.get()
    assert site.told[-1] == (len(site.files[FILE]), None)
    site.file.unlink()
    site.cut_after = 70_000
    assert "recorded at the first download" in site.refusal()
    assert site.names == [SUMS]
    site.cut_after = None  # and never ends
    monkeypatch.setattr("nmsfree_training.weights.download.MAX_BYTES", 100_000)
    assert "expected at most 100,000" in site.refusal()
    assert site.names == [SUMS]


@pytest.mark.parametrize(("more", "requests"), [(b"", 1), (b"more", 2)])
def test_part_file_that_is_whole_already_or_too_long(
    site: Site, more: bytes, requests: int
) -> None:
    site.part.write_bytes(site.files[FILE] + more)
    assert site.get()
    assert [asked is None for _, asked in site.asked] == [False, True][:requests]
    assert site.file.read_bytes() == site.files[FILE]
    assert site.names == [SUMS, FILE]


def test_changed_bytes_are_refused(site: Site) -> None:
    """They would pass as this model: bytes after the end of an archive are ignored."""
    site.get()
    recorded, content = read_sums(site.folder), site.files[FILE]
    site.file.write_bytes(content + b" ")
    assert "the bytes have changed" in site.refusal()
    assert site.file.stat().st_size == len(content) + 1  # left as it was
    site.file.unlink()
    site.files[FILE] += b" "
    message = site.refusal()
    assert "recorded at the first download" in message and SUMS in message
    assert site.names == [SUMS]
    assert read_sums(site.folder) == recorded


def flipped(data: bytes) -> bytes:
    """In the middle of the ballast."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 64]) + data[middle + 1 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flipped, "damaged inside"),
        (lambda data: data + b"x" * 1000, "more bytes behind its end"),
        (lambda data: data + b"\0", "more bytes behind its end"),
        (lambda _: b"<html>not labelled as a page</html>", "an HTML page"),
    ],
)
def test_wrong_bytes_are_noticed_at_the_first_download(
    site: Site, change: Callable[[bytes], bytes], message: str
) -> None:
    site.files[FILE] = change(site.files[FILE])
    assert message in site.refusal()
    assert site.names == []


def test_another_file_is_refused(site: Site) -> None:
    whole = site.files[FILE]
    site.files[FILE] = site.files[E2E]
    assert "does not fit fcos_rt_r18_3x" in site.refusal()
    site.files[FILE] = whole
    site.part.write_bytes(b"x" * 50_000)  # the beginning of another
    site.refusal()
    assert site.names == []
    assert site.get()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"page": b"<!DOCTYPE html>"}, "the server sent a web page (text/html)"),
        ({"files": {}}, "the server answered 404 (Not Found)"),
        *(
            ({"length": n}, "download failed")
            for n in ("abc", "²", "-1", "1.5", "9" * 5000, "0x10")
        ),
        *(
            ({"redirect": address}, f"/{FILE}: ")
            for address in (
                "file:///etc/hostname",
                "ftp://127.0.0.1/file",
                "http://[bad/file",
                "http://127.0.0.1:99999/file",
                f"http://{'a' * 70}.invalid/",
                "javascript:alert(1)",
            )
        ),
        ({"redirect": f"/{FILE}"}, "the server answered 302"),  # without end
    ],
)
def test_server_that_sends_no_file(site: Site, fault: dict[str, Any], message: str) -> None:
    vars(site).update(fault)
    assert message in site.refusal()
    assert set(site.names) <= {site.part.name}


def test_no_server(site: Site) -> None:
    site.shutdown()
    site.server_close()
    message = site.refusal()
    assert "download failed" in message and "check the network" in message
    with pytest.raises(CheckpointError, match="download failed"):
        fetch("https://name.invalid/file", site.file, print, print)
    assert site.names == []


def test_http_is_refused_unless_it_is_allowed(site: Site) -> None:
    with pytest.raises(CheckpointError, match="is not https, allow http with --allow-http"):
        obtain(site.weight, site.folder, lambda *_: None)
    assert site.asked == []
    for address in ("ftp://127.0.0.1/a", "file:///etc/hostname", "nothing", ""):
        with pytest.raises(CheckpointError, match="expected https"):
            fetch(address, site.file, print, print, allow_http=True)


def test_the_manifest_knows_what_the_file_is(site: Site) -> None:
    data = site.files[FILE]
    site.weight = replace(site.weight, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    assert site.get()
    site.file.unlink()
    (site.folder / SUMS).unlink()
    site.files[FILE] = data[:-1] + b"x"
    assert "in the manifest" in site.refusal()
    site.files[FILE] = data + b"x"
    assert f"{len(data) + 1:,} bytes there, {len(data):,} in the manifest" in site.refusal()
    site.hide_length = True
    assert "in the manifest" in site.refusal()
    assert FILE not in site.names


def test_a_file_put_there_by_hand_is_checked_and_recorded(site: Site) -> None:
    site.file.write_bytes(site.files[FILE])
    assert not site.get()
    assert read_sums(site.folder) == {FILE: sha256(site.file)}
    assert site.asked == []
    (site.folder / SUMS).unlink()
    site.file.write_bytes(b"something else")
    assert "cannot be read" in site.refusal()
    assert site.file.exists()


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    assert read_sums(tmp_path) == {}
    (tmp_path / SUMS).write_text("nonsense\n")
    with pytest.raises(InputError, match="line 'nonsense', expected 'SHA-256  file'"):
        read_sums(tmp_path)


# The command


@pytest.fixture
def manifest(site: Site) -> Path:
    entries = {"fcos_rt_r18_3x": FILE, "fcos_o2o_r18_3x": "gone.pth", "fcos_e2e_r18_3x": E2E}
    path = site.folder.with_name("manifest.toml")
    path.write_text(
        "".join(
            f'[[published]]\nname = "{name}"\nfile = "{file}"\nurl = "{site.url(file)}"\n'
            "ap = 0.3\nap50 = 0.5\n"
            for name, file in entries.items()
        )
    )
    return path


def download(manifest: Path, *names: str) -> Result:
    words = ["download", "--manifest", str(manifest), "--allow-http", *names]
    return CliRunner().invoke(app, words)


def test_command_gets_what_it_can(manifest: Path, site: Site) -> None:
    result = download(manifest)
    assert result.exit_code == 1
    assert "error: fcos_o2o_r18_3x: http" in result.stderr and "404" in result.stderr
    assert result.stderr.count("downloaded, loads as this model; its SHA-256 was known to") == 2
    assert site.names == [SUMS, E2E, FILE]
    again = download(manifest, "fcos_rt_r18_3x", "fcos_e2e_r18_3x", "fcos_rt_r18_3x")
    assert again.exit_code == 0
    assert again.stderr.count("there already, SHA-256 as at the first download") == 2


def test_a_file_that_fails_does_not_stop_the_others(manifest: Path, site: Site) -> None:
    manifest.write_text(manifest.read_text().replace(site.url("gone.pth"), "http://[bad/gone.pth"))
    (site.folder / "gone.pth").mkdir()
    result = download(manifest)
    assert result.exit_code == 1
    assert result.stderr.count("downloaded, loads as this model") == 2
    (site.folder / "gone.pth").rmdir()
    result = download(manifest)
    assert result.exit_code == 1
    assert "error: fcos_o2o_r18_3x: http://[bad/gone.pth: download failed" in result.stderr


def test_command_refuses_unknown_names(manifest: Path, site: Site) -> None:
    error = download(manifest, "fcos").exception
    assert isinstance(error, InputError)
    assert "'fcos', expected one of: fcos_rt_r18_3x, fcos_o2o_r18_3x, fcos_e2e_r18_3x" in str(error)
    assert site.names == []


# Backbones by name


def test_a_backbone_is_downloaded_once_and_its_name_is_checked(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept where torchvision keeps its own; a file is taken as it is."""
    content = b"weights" * 100
    file = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(imagenet.RESNETS, "resnet18", file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept, server = tmp_path / "hub/checkpoints" / file, site.url("").rstrip("/")

    def find() -> Path:
        return imagenet.find_imagenet(Path("resnet18"), lambda *_: None, server)

    site.files[file] = b"other" * 100
    with pytest.raises(CheckpointError, match="not the file that was meant"):
        find()
    assert list(kept.parent.iterdir()) == []
    site.files[file] = content
    asked = len(site.asked)
    assert find() == find() == kept and kept.read_bytes() == content
    assert len(site.asked) == asked + 1
    kept.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"expected [0-9a-f]{8}…: not the file"):
        find()
    assert imagenet.find_imagenet(kept, lambda *_: None) == kept


@pytest.mark.parametrize(
    ("name", "depth"),
    [("resnet34-b627a593.pth", 34), ("resnet50.safetensors", 50), ("my.pth", None)],
)
def test_the_depth_is_in_the_name(name: str, depth: int | None) -> None:
    assert imagenet.depth_of(Path("somewhere") / name) == depth
