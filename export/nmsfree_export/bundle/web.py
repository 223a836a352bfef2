"""A static folder that detects in the browser: page, worker, model, ONNX Runtime Web.

    DIR/index.html, style.css, icon.svg, *.js   as they lie in `page/` of this package
    DIR/model.onnx                              takes a picture of any size
    DIR/model.json                              its description, which browsers cannot read in it
    DIR/ort/                                    ONNX Runtime Web

ONNX Runtime Web comes from its npm package, never from elsewhere at run time: the script fetches
WebAssembly that no integrity attribute of a page covers. Here every file is compared with its hash.
"""

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path

from nmsfree.backends.contract import MAX_ONNX
from nmsfree.errors import EngineError, InputError
from nmsfree.files import temporary_folder, write_atomic
from nmsfree.parsing import read_bytes
from nmsfree.spec import check_int8_target
from nmsfree.text import shown
from nmsfree_export.bundle.model import Model
from nmsfree_export.convert import convert_onnx, read_file
from nmsfree_export.options import InputOptions, PrecisionOptions

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
HASHES = {  # SHA-256 of the files that the worker loads, with WebGPU and without
    "ort.webgpu.bundle.min.mjs": "0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2",
    "ort-wasm-simd-threaded.asyncify.wasm": (
        "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da"
    ),
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
}
MOST = 64 << 20  # bytes of such a file
PATIENCE = 300  # seconds for npm
# A page of another origin may share no memory with this one, and only then has WASM threads.
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval';"
    " worker-src 'self'; connect-src 'self'; style-src 'self'; img-src 'self' blob:;"
    " media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asks again, so that a new model is seen
}


def bundle_web(model: Model, out: Path, ort: Path | None) -> Path:
    """Write the folder; return its page.

    Args:
        ort: folder of the npm package onnxruntime-web; None: npm fetches it.

    Raises:
        InputError: an engine, or a file that takes neither resized nor whole pictures.
        EngineError: npm is missing, or could not fetch the package.
        GateError: the file of whole pictures does not say what the given one says.
    """
    spec, path = model.spec, model.path
    if model.is_engine:
        raise InputError(f"{path}: is an engine, a browser runs the ONNX file it was built from")
    if spec.input == "nchw-float" or spec.source is not None:
        takes = "planar floats" if spec.source is None else "pictures of one size"
        raise InputError(
            f"{path}: takes {takes}, the page gives pictures of any size: give the file that it"
            " was made from"
        )
    check_int8_target(path, spec, "cpu")
    runtime = ort_files(ort)
    with temporary_folder() as folder:
        if spec.input == "model":
            options = PrecisionOptions(host=InputOptions("any"))
            path = convert_onnx(path, folder / "any.onnx", options).path
        described, _ = read_file(path)
        write_page(out, runtime)
        write_atomic(out / "model.onnx", read_bytes(path, MAX_ONNX))
    write_atomic(out / "model.json", described.to_json().encode())
    return out / "index.html"


def write_page(out: Path, runtime: Mapping[str, bytes]) -> None:
    """Write the page's own files and ONNX Runtime Web."""
    for file in files("nmsfree_export.bundle").joinpath("page").iterdir():
        write_atomic(out / file.name, file.read_bytes())
    for name, content in runtime.items():
        write_atomic(out / "ort" / name, content)


@cache
def ort_files(ort: Path | None) -> Mapping[str, bytes]:
    """The files of ONNX Runtime Web, compared with their hashes.

    InputError, EngineError: see `bundle_web`; one of them is of another version, or damaged.
    """
    if ort is not None:
        places = (ort, ort / "dist", ort / "onnxruntime-web" / "dist")
        found = next((p for p in places if (p / next(iter(HASHES))).exists()), None)
        if found is None:
            raise InputError(f"{ort}: no ONNX Runtime Web in it, expected the folder of {PACKAGE}")
        return _checked(found)
    npm = shutil.which("npm")
    if npm is None:
        raise EngineError(
            f"npm is not installed, which fetches {PACKAGE}: install Node.js, or give the"
            " package's folder with --ort"
        )
    with temporary_folder() as folder:
        words = [npm, "pack", PACKAGE, "--ignore-scripts", "--prefer-offline", "--silent"]
        try:
            subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=PATIENCE)
        except subprocess.SubprocessError as error:
            said = getattr(error, "stderr", None) or str(error).encode()
            reason = shown(" ".join(said.decode(errors="replace").split())[:200])
            raise EngineError(
                f"npm could not fetch {PACKAGE} ({reason}): give the package's folder with --ort"
            ) from None
        (packed,) = folder.glob("*.tgz")
        with tarfile.open(packed) as archive:
            for name in HASHES:
                archive.extract(f"package/dist/{name}", folder, filter="data")
        return _checked(folder / "package" / "dist")


def _checked(folder: Path) -> Mapping[str, bytes]:
    found = {}
    for name, wanted in HASHES.items():
        found[name] = read_bytes(folder / name, MOST)
        if hashlib.sha256(found[name]).hexdigest() != wanted:
            raise InputError(
                f"{folder / name}: not the file of {PACKAGE}: give that package's folder"
            )
    return found


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012 (the base class has it so)
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def handle(self) -> None:
        with suppress(ConnectionError):  # the browser was closed, or took another page
            super().handle()

    def log_message(self, format: str, *words: object) -> None:
        """Say nothing: the command prints where it serves."""


def serve(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of the folder on this machine only, to be started; port 0: any that is free.

    InputError: the port is taken.
    """
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(folder)))
    except OSError as error:
        raise InputError(f"port {port} cannot be used ({error.strerror}): give another") from None
