"""A file in a browser: Chromium without a window, which runs the page's own worker.

Chromium is told what to do over the pipe of its DevTools protocol: JSON, parted by NUL, what it
reads on descriptor 3 and what it says on 4.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nmsfree.backends.base import RawDetections
from nmsfree.backends.contract import MAX_ONNX, as_input
from nmsfree.errors import EngineError
from nmsfree.files import temporary_folder, write_atomic
from nmsfree.parsing import read_bytes
from nmsfree.spec import ModelSpec, check_int8_target
from nmsfree.text import shown
from nmsfree_export.bundle.web import VERSION, ort_files, serve, write_page
from nmsfree_export.convert import read_file

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
    # A graphics card's Vulkan where there is one, else the one that Chromium computes itself.
    *("--enable-unsafe-webgpu", "--enable-features=Vulkan", "--enable-unsafe-swiftshader"),
)
PATIENCE = 240  # seconds for an answer
OPEN = """(async () => {{
  const {{ openEngine }} = await import("/engine.js")
  const model = await (await fetch("/model.onnx")).arrayBuffer()
  globalThis.engine = await openEngine(model, "{provider}")
  return engine.about
}})()"""
RUN = """(async () => {{
  const bytes = await (await fetch("/{name}")).arrayBuffer()
  const found = await engine.run({{ pixels: new {array}(bytes), dims: {dims} }})
  const outputs = {outputs}.map(name => Array.from(found[name]))
  return {{ outputs, ms: found.ms }}
}})()"""


class Browser:
    """One page of a Chromium of its own, with a profile that is thrown away.

    EngineError: Chromium is not installed, does not start, or does not answer.
    """

    def __init__(self) -> None:
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None or os.name != "posix":
            raise EngineError("no Chromium here: apt-get install chromium")
        with ExitStack() as stack:
            profile = stack.enter_context(temporary_folder())
            words = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
            if os.geteuid() == 0:
                words.insert(1, "--no-sandbox")  # which root's Chromium does not start with
            self._process = subprocess.Popen(
                ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', "sh", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            stack.callback(self._end)
            self._numbers, self._rest = count(1), b""
            self._session: dict[str, str] = {}
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            opened = self.ask("Target.attachToTarget", targetId=target, flatten=True)
            self._session = {"sessionId": opened["sessionId"]}
            self.ask("Page.enable")
            self._stack = stack.pop_all()

    def ask(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a method of the protocol and return its result; events are left out."""
        number, deadline = next(self._numbers), time.monotonic() + PATIENCE
        message = {"id": number, "method": method, "params": parameters} | self._session
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\0")
            self._process.stdin.flush()
        except OSError:
            raise EngineError("Chromium has ended: does it start by itself?") from None
        while True:
            answer = self._next(deadline)
            if answer.get("id") == number:
                break
        if "error" in answer:
            raise EngineError(f"Chromium refused {method}: {shown(answer['error']['message'])}")
        return dict(answer["result"])

    def _next(self, deadline: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\0" not in self._rest:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(pipe, 1 << 20) if ready else b""
            if not part:
                why = "has ended" if ready else f"did not answer in {PATIENCE} seconds"
                raise EngineError(f"Chromium {why}: does it start by itself?")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def open(self, url: str) -> None:
        """Go to a page, and wait until its scripts have been read."""
        self.ask("Page.navigate", url=url)
        self.evaluate(
            f"new Promise(done => {{ const wait = () => location.href === {json.dumps(url)}"
            " && document.readyState === 'complete' ? done() : setTimeout(wait, 20); wait() })"
        )

    def evaluate(self, script: str) -> Any:
        """The value of a script, or of what it promises; EngineError: it throws."""
        found = self.ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            thrown = found["exceptionDetails"].get("exception", {}).get("description", "it throws")
            raise EngineError(f"Chromium: {shown(thrown.splitlines()[0], 300)}")
        return found["result"].get("value")

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def close(self) -> None:
        self._stack.close()


class BrowserBackend:
    """Runs an ONNX file of this project in ONNX Runtime Web. One thread only.

    Args:
        path: the file, whatever it takes.
        provider: what computes.

    Attributes:
        ms: milliseconds of the last run, of the network alone.

    EngineError: no Chromium, no npm, no WebGPU, or a graph that it cannot run.
    """

    arithmetic = "cpu"  # float32, as processors compute

    def __init__(self, path: Path, provider: Literal["wasm", "webgpu"]) -> None:
        self.spec: ModelSpec = read_file(path)[0]
        check_int8_target(path, self.spec, "cpu")
        self.ms, self._numbers = 0.0, count(1)
        with ExitStack() as stack:
            self._folder = stack.enter_context(temporary_folder())
            write_page(self._folder, ort_files(None))
            write_atomic(self._folder / "model.onnx", read_bytes(path, MAX_ONNX))
            server = stack.enter_context(serve(self._folder))
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self._browser = Browser()
            stack.callback(self._browser.close)
            # A page of that origin that does nothing by itself.
            self._browser.open(f"http://127.0.0.1:{server.server_address[1]}/icon.svg")
            about = self._browser.evaluate(OPEN.format(provider=provider))
            self._stack = stack.pop_all()
        gpu = f"WebGPU ({shown(about['card'])})"
        name = gpu if provider == "webgpu" else f"WASM, threads {about['threads']}"
        lacks = f", on the processor {', '.join(about['elsewhere'])}" if about["elsewhere"] else ""
        self._description = f"ONNX Runtime Web {VERSION} {name}{lacks}"

    def describe(self) -> str:
        return self._description

    def run(self, images: NDArray[np.uint8]) -> RawDetections:
        """Run the model on uint8 [N, H, W, 3], BGR."""
        given = as_input(images, self.spec)
        # Another name each time: the browser may keep what it has read.
        file = self._folder / f"input-{next(self._numbers)}.bin"
        write_atomic(file, given.tobytes(), sync=False)
        array = "Float32Array" if given.dtype == np.float32 else "Uint8Array"
        script = RUN.format(
            name=file.name,
            array=array,
            dims=list(given.shape),
            outputs=list(RawDetections._fields),
        )
        found = self._browser.evaluate(script)
        file.unlink()
        self.ms = found["ms"]["network"]
        count, boxes, scores, classes = map(np.array, found["outputs"])
        n = len(images)
        return RawDetections(
            count.astype(np.int32).reshape(n, 1),
            boxes.astype(np.float32).reshape(n, -1, 4),
            scores.astype(np.float32).reshape(n, -1),
            classes.astype(np.int32).reshape(n, -1),
        )

    def close(self) -> None:
        self._stack.close()
