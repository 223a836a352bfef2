"""Processes: what engines ask of the network, forks, and pools."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmsfree.backends.openvino import _agreed_to_telemetry
from nmsfree.images import write_picture

Run = Callable[..., subprocess.CompletedProcess[str]]

# Opens and runs a model, then counts what the process wanted to send, in a network without a way
# out; in the end it asks for a name itself, to see that this is counted.
ASK_NOBODY = """
import socket, sys, time
from nmsfree import Detector

def wanted():
    names, counts = (line.split() for line in open("/proc/net/snmp") if line.startswith("Ip:"))
    counted = dict(zip(names, counts))
    return int(counted["OutRequests"]) + int(counted["OutNoRoutes"])

with Detector(sys.argv[1], device=sys.argv[2], threads=1) as detector:
    detector(sys.argv[3])
time.sleep(1)  # OpenVINO's package sends from a process of its own
if sys.argv[4] == "alone":
    asked = wanted()
    try:
        socket.getaddrinfo("example.org", 443)
    except OSError:
        pass
    assert wanted() > 0, "a look-up is not counted"
    sys.exit(f"{asked} packets" if asked else 0)
"""


def no_network() -> tuple[str, ...]:
    """A command that starts another without a network; none where the system has no such thing."""
    command = ("unshare", "--map-root-user", "--net")
    if shutil.which("unshare") and not subprocess.run([*command, "true"], check=False).returncode:
        return command
    return ()


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_engines_ask_nobody_and_leave_nothing(
    tmp_path: Path, make_onnx: Any, make_spec: Any, device: str, run_python: Run
) -> None:
    pytest.importorskip("openvino")
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    model = make_onnx(work / "m.onnx", make_spec())
    picture = work / "p.png"
    write_picture(picture, np.zeros((64, 96, 3), np.uint8))
    folders = {"HOME": home, "XDG_CACHE_HOME": home / "cache", "TMPDIR": home}
    alone = no_network()
    arguments = (model, device, picture, "alone" if alone else "")
    done = run_python(ASK_NOBODY, *arguments, under=alone, **folders)
    assert done.returncode == 0, done.stderr
    assert list(home.rglob("*")) == []


# A detector is opened and used, in the end by a thread just now, and the process forks: how each
# child uses it, and whether it ends.
FORK = """
import os, sys, threading, time
from multiprocessing import get_context
import numpy as np
from nmsfree import Detector, NmsfreeError

_, model, device = sys.argv
image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
detector = Detector(model, device=device, threads=2)
expected = len(detector(image))
assert expected

def use(which):
    try:
        return "right" if len(which(image)) == expected else "wrong"
    except NmsfreeError as error:
        return str(error)

def use_ours(_):
    return use(detector)

def work():
    while True:
        detector(image)

with get_context("fork").Pool(2) as pool:
    print("pool", *{*pool.map(use_ours, range(4))}, flush=True)
for how in ("exit", "open", "close", "use", "busy"):
    if how == "busy":
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.1)
    child = os.fork()
    if not child:
        if how == "open":
            try:
                print(how, use(Detector(model, device=device, threads=2)), flush=True)
            except NmsfreeError as error:
                print(how, error, flush=True)
        elif how == "close":
            detector.close()
            print(how, use(detector), flush=True)
        elif how != "exit":
            print(how, use(detector), flush=True)
            print(how, use(detector), flush=True)
        sys.exit()
    for _ in range(300):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
    if not done or status:
        print(how, "hangs or fails", status, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_a_forked_child_works_or_says_why_not_and_ends(
    tmp_path: Path, make_onnx: Any, make_spec: Any, device: str, run_python: Run
) -> None:
    pytest.importorskip("openvino")
    model = make_onnx(tmp_path / "m.onnx", make_spec())
    done = run_python(FORK, model, device)
    assert done.returncode == 0, (done.stdout, done.stderr)
    said = [line.partition(" ")[::2] for line in done.stdout.splitlines()]
    assert [how for how, _ in said] == ["pool", "open", "close", "use", "use", "busy", "busy"]
    closed = "the detector is closed: open it again"
    forked = "right" if device == "cpu" else "OpenVINO was started before this process was forked"
    for how, answer in said:
        assert (closed if how == "close" else forked) in answer, (how, answer)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_takes_no_file_that_has_changed(
    tmp_path: Path, make_onnx: Any, make_spec: Any, run_python: Run
) -> None:
    """The parent's description, and the hash that it checked, are of the file before."""
    model = make_onnx(tmp_path / "m.onnx", make_spec())
    make_onnx(tmp_path / "other.onnx", make_spec())
    code = """
import os, sys, numpy as np
from nmsfree import Detector, ModelError
detector = Detector(sys.argv[1], threads=1)
os.replace(sys.argv[2], sys.argv[1])
if not (child := os.fork()):
    try:
        detector(np.zeros((20, 30, 3), np.uint8))
    except ModelError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
os._exit(0)
"""
    done = run_python(code, model, tmp_path / "other.onnx")
    assert "has changed since the detector was opened" in done.stdout, done.stderr


def test_a_spawned_pool_opens_the_pickled_detector(
    tmp_path: Path, make_onnx: Any, make_spec: Any
) -> None:
    program = tmp_path / "program.py"
    model = make_onnx(tmp_path / "m.onnx", make_spec())
    code = (
        "import multiprocessing, sys, numpy as np\n"
        "from nmsfree import Detector\n"
        "if __name__ == '__main__':\n"
        "    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)\n"
        "    with multiprocessing.get_context('spawn').Pool(2) as pool:\n"
        "        for device in ('cpu', 'openvino'):\n"
        "            detector = Detector(sys.argv[1], device=device, threads=1)\n"
        "            found = pool.map(detector, [image] * 4)\n"
        "            print({len(one) for one in found} == {len(detector(image))})\n"
    )
    program.write_text(code)
    done = subprocess.run(
        [sys.executable, program, model], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "True\nTrue\n", done.stderr


def test_the_users_own_word_on_telemetry_stands(
    tmp_path: Path, run_python: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, nmsfree; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert run_python(code, ORT_DISABLE_TELEMETRY="0").stdout == "0\n"
    (tmp_path / "intel").mkdir()
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for word in "10":
        (tmp_path / "intel/openvino_telemetry").write_text(word)
        assert _agreed_to_telemetry() == (word == "1")
