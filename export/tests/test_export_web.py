"""The page for browsers: its folder, what is refused, and what Chromium answers in it."""

import hashlib
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.request
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
from onnx import ModelProto
from typer.testing import CliRunner

from nmsfree import Detector, EngineError, InputError
from nmsfree.backends import OnnxRuntimeBackend
from nmsfree.datasets.digits.scenes import make_scene
from nmsfree.spec import ModelSpec
from nmsfree.testing.tensorrt import write_fake_engine
from nmsfree_export.bundle import browser as browser_module
from nmsfree_export.bundle import web
from nmsfree_export.bundle.browser import NAMES, Browser, BrowserBackend
from nmsfree_export.bundle.model import read_model
from nmsfree_export.bundle.web import HEADERS, bundle_web, ort_files, serve
from nmsfree_export.cli.bundle import bundle
from nmsfree_export.graph.contract import content_of, read_description
from nmsfree_export.graph.inputs import with_input
from nmsfree_export.verify.parity import compare, load_images
from nmsfree_training.weights.checkpoint import Checkpoint

needs_chromium = pytest.mark.skipif(
    not any(map(shutil.which, NAMES)), reason="needs apt-get install chromium"
)


@pytest.fixture(scope="module")
def model(
    nano: Checkpoint, trace: Callable[..., ModelProto], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("model") / "nano.onnx"
    path.write_bytes(trace(nano).SerializeToString())
    return path


@pytest.fixture(scope="module")
def runtime() -> Mapping[str, bytes]:
    try:
        return ort_files(None)
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def site(
    model: Path, runtime: Mapping[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return bundle_web(read_model(model), tmp_path_factory.mktemp("site"), None).parent


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    with serve(site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def until(browser: Browser, script: str) -> None:
    deadline = time.monotonic() + 120
    while not browser.evaluate(script):
        assert time.monotonic() < deadline, script
        time.sleep(0.1)


def text(browser: Browser, name: str) -> str:
    return str(browser.evaluate(f"document.getElementById('{name}').textContent"))


def choose(browser: Browser, picture: Path) -> None:
    root = browser.ask("DOM.getDocument")["root"]["nodeId"]
    field = browser.ask("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser.ask("DOM.setFileInputFiles", nodeId=field, files=[str(picture)])
    until(browser, "document.getElementById('network').textContent !== '–'")


def slide(browser: Browser, threshold: float) -> None:
    browser.evaluate(
        f"(slider => {{ slider.value = {threshold}; slider.dispatchEvent(new Event('input')) }})"
        "(document.getElementById('threshold'))"
    )


@needs_chromium
def test_the_page_answers_as_python_does(
    site: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    monkeypatch.setattr(browser_module, "FLAGS", (*browser_module.FLAGS, *camera))
    picture = tmp_path / "scene.png"
    cv2.imwrite(str(picture), cv2.resize(make_scene("val", 1).image, (500, 375)))
    browser = Browser()
    try:
        browser.open(f"{address}/index.html")
        browser.evaluate("document.querySelector('[value=wasm]').click()")
        until(browser, "document.getElementById('engine').textContent.startsWith('Runs on WebA')")
        choose(browser, picture)
        with Detector(site / "model.onnx") as detector:
            wanted = detector(cv2.imread(str(picture)), threshold=detector.spec.score_floor)
            best = detector(cv2.imread(str(picture)))
        assert text(browser, "count") == f"{len(best)} detections"
        slide(browser, detector.spec.score_floor)
        found = browser.evaluate("[...document.querySelectorAll('#rows tr')].map(r => r.title)")
        rows = np.array([[float(word) for word in line.replace(":", "").split()] for line in found])
        assert len(rows) == len(wanted) > 10
        np.testing.assert_allclose(rows[:, 0], wanted.confidence, atol=1e-3)
        np.testing.assert_allclose(rows[:, 1:], wanted.xyxy, atol=0.1)
        browser.evaluate("document.getElementById('check').click()")
        until(browser, "/rows/.test(document.getElementById('said').textContent)")
        assert browser.evaluate("document.getElementById('said').className") == "good"
        loaded = browser.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
        assert loaded and all(name.startswith((address, "blob:" + address)) for name in loaded)
        assert browser.evaluate("crossOriginIsolated")
        for width in (1280, 390):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.ask("Emulation.setDeviceMetricsOverride", **size)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            shot = np.frombuffer(b64decode(browser.ask("Page.captureScreenshot")["data"]), np.uint8)
            pixels: Any = cv2.imdecode(shot, cv2.IMREAD_COLOR)
            assert pixels.shape[:2] == (900, width) and pixels.std() > 10
        for shown in ("Stop the camera", "Camera"):
            browser.evaluate("document.getElementById('network').textContent = '–'")
            browser.evaluate("document.getElementById('camera').click()")
            until(browser, f"document.getElementById('camera').textContent === '{shown}'")
            if shown.startswith("Stop"):  # its frames are detected in
                until(browser, "document.getElementById('network').textContent !== '–'")
                assert browser.evaluate("document.getElementById('canvas').width") == 640
    finally:
        browser.close()


@needs_chromium
def test_another_answer_to_the_canary_is_seen(site: Path, address: str) -> None:
    """The page's comparison, given rows that are other ones."""
    script = """(async () => {
      const { compareCanary } = await import("/canary.js")
      const spec = await (await fetch("/model.json")).json()
      const bytes = Uint8Array.from(atob(spec.canary.rows), letter => letter.charCodeAt(0))
      const values = Array.from(new Float32Array(bytes.buffer)), count = values.length / 6
      const ok = change => {
        const rows = Array.from({ length: count }, (_, i) => values.slice(6 * i, 6 * i + 6))
        change(rows)
        return compareCanary(spec, {
          num_detections: [count],
          detection_boxes: Float32Array.from(rows.flatMap(row => row.slice(0, 4))),
          detection_scores: Float32Array.from(rows.map(row => row[4])),
          detection_classes: Int32Array.from(rows.map(row => row[5])),
        }, "wasm").ok
      }
      return [
        ok(() => {}),
        ok(rows => rows.reverse()),
        ok(rows => { rows[0][0] += 1 }),
        ok(rows => { rows[0][4] *= 1.01 }),
        ok(rows => { rows[0][5] += 1 }),
        ok(rows => { rows.forEach(row => { row[4] = NaN }) }),
      ]
    })()"""
    browser = Browser()
    try:
        browser.open(f"{address}/icon.svg")
        assert browser.evaluate(script) == [True, True, False, False, False, False]
        with pytest.raises(EngineError, match=r"^Chromium: Error: here$"):
            browser.evaluate("throw new Error('here')")
    finally:
        browser.close()


@needs_chromium
@pytest.mark.parametrize("takes", ["model", "nchw-float"])
def test_a_file_of_any_input_runs_in_the_browser(
    takes: str, model: Path, runtime: Mapping[str, bytes], tmp_path: Path
) -> None:
    if takes != "model":
        graph = ModelProto.FromString(model.read_bytes())
        spec = replace(read_description(model, graph), input=takes)  # type: ignore[arg-type]
        model = tmp_path / "floats.onnx"
        model.write_bytes(content_of(with_input(graph, spec), spec))
    backend = BrowserBackend(model, "wasm")
    try:
        found = compare(OnnxRuntimeBackend(model), backend, load_images(None)[:2])
        assert found.passed and found.confident > 10, found
        assert backend.ms > 0 and "WASM" in backend.describe()
    finally:
        backend.close()


def test_the_command(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(server: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(web.ThreadingHTTPServer, "serve_forever", interrupted)
    app = typer.Typer()
    app.command("bundle")(bundle)
    # A file that takes whole pictures already.
    words = ["web", str(site / "model.onnx"), "-o", str(tmp_path), "--serve", "--port", "0"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    assert "index.html: any web server" in done.stderr and "http://localhost:" in done.stderr
    names = [path.relative_to(site) for path in site.rglob("*") if path.is_file()]
    assert {(tmp_path / name).read_bytes() == (site / name).read_bytes() for name in names} == {
        True
    }
    done = CliRunner().invoke(app, ["triton", str(site / "model.onnx"), "--serve"])
    assert isinstance(done.exception, InputError) and "are for web" in str(done.exception)


def test_what_a_page_cannot_take_is_refused(model: Path, tmp_path: Path) -> None:
    spec = OnnxRuntimeBackend(model).spec
    refused: list[tuple[ModelSpec, str]] = [
        (replace(spec, input="nchw-float"), r"takes planar floats, the page"),
        (replace(spec, input="any", source=(90, 160)), r"takes pictures of one size, the page"),
    ]
    for other, message in refused:
        with pytest.raises(InputError, match=message):
            bundle_web(replace(read_model(model), spec=other), tmp_path / "site", None)
    engine = tmp_path / "a.engine"
    write_fake_engine(engine, spec, batch=(1, 1, 1), builder="tensorrt")
    with pytest.raises(InputError, match=r"is an engine, a browser runs the ONNX file"):
        bundle_web(read_model(engine), tmp_path / "site", None)
    assert not (tmp_path / "site").exists()


def test_the_runtime_is_compared_with_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {name: name.encode() for name in web.HASHES}
    monkeypatch.setattr(
        web, "HASHES", {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    )
    folder = tmp_path / "node_modules" / "onnxruntime-web" / "dist"
    folder.mkdir(parents=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    for place in (folder, folder.parent, folder.parents[1]):
        assert ort_files(place) == content
    ort_files.cache_clear()
    last = [*content][-1]
    (folder / last).write_bytes(b"other")
    with pytest.raises(InputError, match=rf"{last}: not the file of onnxruntime-web@"):
        ort_files(folder)
    with pytest.raises(InputError, match=r"no ONNX Runtime Web in it, expected the folder of"):
        ort_files(folder / "empty")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    ort_files.cache_clear()
    with pytest.raises(EngineError, match=r"npm is not installed.* with --ort"):
        ort_files(None)


def test_the_server_sends_what_threads_need() -> None:
    page = files("nmsfree_export.bundle").joinpath("page")
    with serve(Path(str(page))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"http://127.0.0.1:{server.server_address[1]}/worker.js"
        with urllib.request.urlopen(where, timeout=30) as answer:
            assert HEADERS.items() <= dict(answer.headers).items()
            assert answer.headers["Content-Type"] == "text/javascript"
        policy, _, last = HEADERS["Content-Security-Policy"].rpartition("; ")
        assert last == "frame-ancestors 'none'"  # the only part that a page cannot say of itself
        assert f'content="{policy}"' in page.joinpath("index.html").read_text("utf-8")
        with pytest.raises(InputError, match=r"port \d+ cannot be used .*: give another"):
            serve(Path(str(page)), server.server_address[1])
        server.shutdown()


def test_a_browser_that_goes_away_is_no_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.onnx").write_bytes(bytes(2**25))
    server = serve(tmp_path)
    server.daemon_threads = False  # closing the server waits for them
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = socket.create_connection(server.server_address[:2])
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b"GET /model.onnx HTTP/1.0\r\n\r\n")
        assert client.recv(1000)
        client.close()  # with a reset
        server.shutdown()
    assert capfd.readouterr().err == ""


def test_the_page_is_part_of_the_package() -> None:
    page = files("nmsfree_export.bundle").joinpath("page")
    html = page.joinpath("index.html").read_text("utf-8")
    assert "http:" not in html and "https:" not in html
    node = shutil.which("node")
    for file in page.iterdir():
        if node and file.name.endswith(".js"):
            subprocess.run([node, "--check", str(file)], check=True, timeout=60)
