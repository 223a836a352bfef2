"""`nmsfree serve` as an operator runs it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from runtime_helpers import Noise

import nmsfree
from nmsfree import Detector
from nmsfree.images import write_picture

Start = Callable[..., tuple[subprocess.Popen[str], int]]
SERVE = [sys.executable, "-c", "from nmsfree.cli.main import main; main()", "serve"]


@pytest.fixture
def model(tmp_path: Path, with_canary: Any, make_onnx: Any) -> Path:
    return Path(make_onnx(tmp_path / "tiny.onnx", with_canary()))


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a server: the process and its port."""
    running = []

    def run(*arguments: object, **environment: str) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [*SERVE, *map(str, arguments), "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        running.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"serving on http://[0-9.]+:(\d+)", line):
                return process, int(found[1])
        raise AssertionError("it ended")

    yield run
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_answer_what_has_arrived(
    start: Start, model: Path, tmp_path: Path, noise: Noise, number: signal.Signals
) -> None:
    write_picture(tmp_path / "p.png", noise(1))
    data = (tmp_path / "p.png").read_bytes()
    process, port = start(model, f"second={model}")
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("POST", "/detect?model=second")
    connection.putheader("Content-Length", str(len(data)))
    connection.endheaders(data[:-10])
    idle = HTTPConnection("127.0.0.1", port, timeout=20)
    idle.request("GET", "/v2/health/ready")  # a connection that stays open
    assert idle.getresponse().read() == b'{"ready":true}'
    process.send_signal(number)
    assert process.stderr is not None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    connection.send(data[-10:])
    response = connection.getresponse()
    assert response.status == 200 and json.loads(response.read())["model"] == "second"
    assert process.wait(20) == 0
    assert "every request was answered" in process.stderr.read()


def test_the_token_comes_from_a_file_or_the_environment(
    start: Start, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("from-the-file\n")
    given: dict[str, tuple[object, ...]] = {
        "from-the-file": (model, "--token-file", tmp_path / "token"),
        "from-the-environment": (model,),
    }
    for token, arguments in given.items():
        _, port = start(*arguments, NMSFREE_TOKEN="from-the-environment")
        for sent, status in ((token, 200), ("other", 401)):
            connection = HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/v2", headers={"Authorization": f"Bearer {sent}"})
            assert connection.getresponse().status == status
            connection.close()


def test_an_open_address_without_a_token_is_warned_of(start: Start, model: Path) -> None:
    secret = {"NMSFREE_TOKEN": "a-secret"}
    everywhere, here = "0.0.0.0", "127.0.0.1"
    cases = (everywhere, {}, True), (everywhere, secret, False), (here, {}, False)
    for host, token, warned in cases:
        process, _ = start(model, "--host", host, **token)
        assert process.stderr is not None
        said = process.stderr.readline() if warned else ""
        process.send_signal(signal.SIGTERM)
        assert ("no token is asked" in said + process.stderr.read()) == warned


def test_reduced_jpegs_are_answered_as_a_stream_does(
    start: Start, model: Path, tmp_path: Path, noise: Noise
) -> None:
    path = tmp_path / "large.jpg"
    write_picture(path, noise(1, 643, 961))
    _, port = start(model, "--reduced")
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/detect", path.read_bytes())
    found = json.loads(connection.getresponse().read())
    connection.close()
    with Detector(model) as detector:
        ((_, expected),) = nmsfree.stream(path, detector, reduced=True)
        assert expected.to_dict() != detector(path).to_dict()
    assert found == {"model": "tiny", "height": 643, "width": 961} | expected.to_dict()


WRONG = {
    "twice": (["tiny.onnx", "tiny.onnx"], "model is called 'tiny', expected a name of its own"),
    "name": (["a b.onnx"], "give NAME=FILE"),
    "no file": (["x=none.onnx"], "none.onnx"),
    "host": (["tiny.onnx", "--host", "203.0.113.1"], "cannot be listened at"),
    "token": (
        ["tiny.onnx", "--token-file", "short"],
        "short: too short (3 characters), expected 8 or more",
    ),
    "limit": (["tiny.onnx", "--max-queue", "0"], "--max-queue"),
    "canary": (["old.onnx"], "old.onnx: has no canary"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_served_is_one_line(
    model: Path,
    make_onnx: Any,
    make_spec: Any,
    monkeypatch: pytest.MonkeyPatch,
    nmsfree_command: Any,
    what: str,
) -> None:
    monkeypatch.chdir(model.parent)
    make_onnx(Path("old.onnx"), make_spec())
    Path("short").write_text("abc")
    arguments, text = WRONG[what]
    status, _, err = nmsfree_command("serve", *arguments, "--port", "0")
    assert status == 2 and text in err
