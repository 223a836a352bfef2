"""`nmsfree serve`: a real server on 127.0.0.1 over the tiny model."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import serving_measure
import uvicorn
from numpy.typing import NDArray
from runtime_helpers import Noise, refused

from nmsfree import CallableBackend, Detector, EngineError, ModelError, RawDetections
from nmsfree.cli import serve as cli
from nmsfree.serving.app import Service
from nmsfree.serving.metrics import Metrics
from nmsfree.serving.model import Served
from nmsfree.serving.options import Limits

TOKEN = "correct-horse-battery"


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks a server, each time on a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, path: str, body: Any = None, method: str = "", **headers: Any) -> Answer:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        named = {name.replace("_", "-"): str(value) for name, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, named)
        response = connection.getresponse()
        answer = Answer(
            response.status,
            response.read(),
            {name.lower(): value for name, value in response.headers.items()},
        )
        connection.close()
        return answer


class Tiny:
    """The tiny model in numpy, which can be spoiled or stopped."""

    def __init__(self, spec: Any, cells: Callable[..., RawDetections]) -> None:
        self.spec, self._cells = spec, cells
        self.spoiled, self.batches = False, list[int]()
        self.go = threading.Event()
        self.go.set()

    def __call__(self, images: NDArray[np.uint8]) -> RawDetections:
        self.go.wait(20)
        self.batches.append(len(images))
        raw = self._cells(images, self.spec)
        return raw._replace(detection_boxes=raw.detection_boxes + 3 * self.spoiled)


@pytest.fixture
def tiny_model(with_canary: Any, bright_cells: Any) -> Tiny:
    return Tiny(with_canary(), bright_cells)


@contextmanager
def serving(
    models: dict[str, Detector], token: str | None = None, threads: int = 1, **limits: Any
) -> Iterator[Client]:
    given, metrics = Limits(**limits), Metrics()
    served = {name: Served(name, d, threads, given, metrics) for name, d in models.items()}
    app = Service(served, given, metrics, token).app()
    with cli.listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Client(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def serve_tiny(tiny_model: Tiny) -> Callable[..., Any]:
    """Return a function that serves `tiny_model`."""
    detector = Detector(CallableBackend(tiny_model, tiny_model.spec))
    return lambda **options: serving({"tiny": detector}, **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: Any, with_canary: Any, make_onnx: Any) -> Path:
    return Path(make_onnx(tmp_path_factory.mktemp("m") / "tiny.onnx", with_canary()))


@pytest.fixture(scope="module")
def client(model: Path, with_canary: Any, make_onnx: Any) -> Iterator[Client]:
    """A server of two real models, one of them of a fixed batch."""
    pair = make_onnx(model.with_name("pair.onnx"), with_canary(batch=2))
    models = {"tiny": Detector(model, threads=1), "pair": Detector(pair, threads=1)}
    with serving(models, threads=2, max_body_mb=0.5, max_pixels=100_000) as found:
        yield found


def encoded(picture: NDArray[np.uint8], suffix: str = ".png") -> bytes:
    return bytes(cv2.imencode(suffix, picture)[1])


def form(data: bytes, name: str = "street.jpg") -> tuple[bytes, str]:
    """A multipart form with one file, and its content type."""
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("name", ["tiny", "pair"])
def test_a_picture_is_answered_as_detect_writes_it(
    client: Client, model: Path, noise: Noise, suffix: str, name: str
) -> None:
    data = encoded(noise(1, 120, 180), suffix)
    answer = client(f"/detect?model={name}", data)
    assert answer.status == 200, answer.body
    with Detector(model, threads=1) as detector:
        found = detector(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
    assert len(found)
    head = {"model": name, "height": 120, "width": 180}
    assert answer.json == head | json.loads(json.dumps(found.to_dict()))
    body, kind = form(data)
    assert client(f"/detect?model={name}", body, Content_Type=kind).json == answer.json


def test_options_of_a_request(client: Client, noise: Noise) -> None:
    data = encoded(noise(1))
    all_of_it = client("/detect?model=tiny&threshold=0.5", data).json["detections"]
    few = client("/detect?model=tiny&threshold=0.5&max_detections=2&classes=red,1", data).json
    wanted = [found for found in all_of_it if found["class"] in ("red", "green")]
    assert few["detections"] == wanted[:2] and len(wanted) > 2


ONE, INFER = "/detect?model=tiny", "/v2/models/tiny/infer"
FORM = {"Content_Type": "multipart/form-data"}
OF_TEXT = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n/etc/passwd\r\n--b--\r\n'
NOT_FOUND: dict[str, tuple[str, Any, dict[str, str], int, str]] = {
    "nothing": (ONE, b"", {}, 415, "no picture of a known kind"),
    "text": (ONE, b"street.jpg", {}, 415, "send JPEG, PNG, WebP"),
    "another kind": (ONE, b"P6 1 1 255 abc", {}, 415, "no picture of a known"),
    "cut": (ONE, "cut", {}, 400, "the picture: is cut"),
    "pixels": (ONE, "large", {}, 413, "400 × 300 pixels, expected at most 100,000"),
    "bytes": (ONE, bytes(600_000), {}, 413, "larger than 0.5 MB"),
    "gzip": (ONE, b"x", {"Content_Encoding": "gzip"}, 415, "send it plain"),
    "no model named": ("/detect", b"x", {}, 400, "no model is named: models here: tiny, pair"),
    "no such parameter": (f"{ONE}&treshold=1", b"x", {}, 400, "; did you mean threshold?"),
    "no such model": ("/detect?model=../x", b"x", {}, 404, "'../x': models here: tiny, pair"),
    "threshold": (f"{ONE}&threshold=much", b"x", {}, 400, "threshold is 'much'"),
    "floor": (f"{ONE}&threshold=0.1", b"x", {}, 400, "expected 0.5 … 1"),
    "class": (f"{ONE}&classes=cat", b"x", {}, 400, "class 'cat' is unknown"),
    "most": (f"{ONE}&max_detections=-1", b"x", {}, 400, "expected a whole number"),
    "form": (ONE, b"x", FORM, 400, "the form cannot be read"),
    "form of text": (
        *(ONE, OF_TEXT, {"Content_Type": "multipart/form-data; boundary=b"}, 400),
        "the form has no file",
    ),
    "method": ("/detect", None, {}, 405, "Method Not Allowed"),
    "route": ("/nothing", None, {}, 404, "Not Found"),
    "tensor": (INFER, b"{}", {}, 400, "lacks the field inputs"),
    "header": (
        *(INFER, b"{}", {"Inference_Header_Content_Length": "-1"}, 400),
        "Inference-Header-Content-Length is -1",
    ),
}


@pytest.mark.parametrize("what", NOT_FOUND)
def test_a_wrong_request_is_refused_in_one_line(client: Client, noise: Noise, what: str) -> None:
    path, body, headers, status, text = NOT_FOUND[what]
    if isinstance(body, str):
        body = encoded(noise(1, 300, 400)) if body == "large" else encoded(noise(1))[:-400]
    answer = client(path, body, **headers)
    assert answer.status == status, answer.body
    assert text in answer.json["error"] and "\n" not in answer.json["error"]
    assert client("/detect?model=tiny", encoded(noise(1))).status == 200


def asked(images: NDArray[np.uint8], **fields: Any) -> dict[str, Any]:
    """An inference request in JSON."""
    given = {"name": "images", "shape": list(images.shape), "datatype": "UINT8"}
    return {"inputs": [given | {"data": images.ravel().tolist()} | fields]}


@pytest.mark.parametrize("binary", [False, True])
def test_the_official_client_gets_the_engines_own_numbers(
    client: Client, model: Path, noise: Noise, binary: bool
) -> None:
    import tritonclient.http as triton

    images = np.stack([noise(seed) for seed in range(3)])
    with Detector(model, threads=1) as detector:
        expected = detector.backend.run(images)
    official = triton.InferenceServerClient(f"127.0.0.1:{client.port}")
    assert official.is_server_live() and official.is_server_ready()
    assert official.is_model_ready("tiny") and not official.is_model_ready("none")
    assert official.get_server_metadata()["name"] == "nmsfree"
    described = official.get_model_metadata("tiny")
    assert described["inputs"] == [
        {"name": "images", "datatype": "UINT8", "shape": [-1, 64, 96, 3]}
    ]
    given = triton.InferInput("images", images.shape, "UINT8")
    given.set_data_from_numpy(images, binary_data=binary)
    wanted = [triton.InferRequestedOutput(n, binary_data=binary) for n in RawDetections._fields]
    result = official.infer("tiny", [given], outputs=wanted, request_id="7")
    assert result.get_response()["id"] == "7"
    for output, values in zip(described["outputs"], expected, strict=True):
        found = result.as_numpy(output["name"])
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)
    official.close()


def test_tensors_in_lists_of_lists_and_only_what_is_asked_for(client: Client, noise: Noise) -> None:
    images = np.stack([noise(0), noise(1)])
    body = asked(images, data=images.tolist()) | {"outputs": [{"name": "detection_scores"}]}
    answer = client("/v2/models/pair/infer", json.dumps(body))
    assert [output["name"] for output in answer.json["outputs"]] == ["detection_scores"]
    assert answer.json["outputs"][0]["shape"] == [2, 24]
    answer = client("/v2/models/pair/infer", json.dumps(body | {"outputs": [{"name": "masks"}]}))
    assert answer.status == 400 and "['masks'] are unknown" in answer.json["error"]


WRONG_TENSORS = {
    "name": ({"name": "x"}, "inputs are ['x'], expected one: images"),
    "datatype": ({"datatype": "FP32"}, "datatype FP32, expected UINT8"),
    "shape": ({"shape": [1, 64, 96]}, "expected [N, H, W, 3]"),
    "size": ({"shape": [1, 32, 192, 3]}, "expected ['N', 64, 96, 3]"),
    "huge": ({"shape": [2**62, 2**62, 96, 3]}, "values, expected"),
    "short": ({"data": [1, 2]}, "has 2 values"),
    "none": ({"data": None}, "whole numbers 0 … 255"),
    "ragged": ({"data": [[1], [1, 2]]}, "lists of several lengths"),
    "text": ({"data": ["1"]}, "whole numbers"),
    "large": ({"data": [256]}, "whole numbers 0 … 255"),
    "bytes": ({"parameters": {"binary_data_size": 9}}, "binary_data_size 9, but 0 follow"),
    "shared": ({"parameters": {"shared_memory_region": "x"}}, "is not supported"),
}


@pytest.mark.parametrize("what", WRONG_TENSORS)
def test_a_tensor_that_does_not_fit_is_refused(client: Client, noise: Noise, what: str) -> None:
    fields, text = WRONG_TENSORS[what]
    answer = client("/v2/models/tiny/infer", json.dumps(asked(noise(0)[None], **fields)))
    assert answer.status == 400 and text in answer.json["error"], answer.body


def test_a_wrong_canary_ends_readiness_until_it_is_right_again(
    serve_tiny: Any, tiny_model: Tiny, noise: Noise
) -> None:
    data = encoded(noise(1))

    def becomes(ready: bool, client: Client) -> bool:
        for _ in range(100):
            if (client("/v2/health/ready").status == 200) == ready:
                return True
            time.sleep(0.05)
        return False

    with serve_tiny(canary_seconds=0.1) as client:
        assert client("/v2/health/ready").json == {"ready": True}
        tiny_model.spoiled = True
        assert becomes(False, client)
        assert client("/v2/models/tiny/ready").status == 503
        answer = client("/detect", data)
        said = "answers otherwise than the file did"
        assert answer.status == 503 and said in answer.json["error"]
        assert client("/v2/health/live").status == 200
        assert b'nmsfree_ready{model="tiny"} 0.0' in client("/metrics").body
        tiny_model.spoiled = False
        assert becomes(True, client)
        assert client("/detect", data).status == 200
        tiny_model.go.clear()  # an engine that hangs
        assert becomes(False, client)
        tiny_model.go.set()
        assert becomes(True, client)


def test_what_answers_no_canary_is_not_served(serve_tiny: Any, tiny_model: Tiny) -> None:
    tiny_model.spoiled = True
    assert "not to be trusted" in refused(lambda: serve_tiny().__enter__(), EngineError)
    tiny_model.spec = replace(tiny_model.spec, canary=None)
    detector = Detector(CallableBackend(tiny_model, tiny_model.spec))
    assert "no canary" in refused(lambda: serving({"x": detector}).__enter__(), ModelError)


def test_requests_share_a_run_and_too_many_are_sent_away(
    serve_tiny: Any, tiny_model: Tiny, noise: Noise
) -> None:
    pictures = [encoded(noise(seed)) for seed in range(7)]
    with serve_tiny(max_batch=4, max_wait_ms=0, max_queue=7) as client:
        alone = [client("/detect", data).body for data in pictures]
        tiny_model.batches.clear()
        tiny_model.go.clear()
        with ThreadPoolExecutor(7) as pool:
            asking = [pool.submit(client, "/detect", pictures[0])]
            while b'nmsfree_queue{model="tiny"} 1.0' not in client("/metrics").body:
                time.sleep(0.01)
            time.sleep(0.2)  # it runs, and the others wait
            asking += [pool.submit(client, "/detect", data) for data in pictures[1:]]
            while b'nmsfree_queue{model="tiny"} 7.0' not in client("/metrics").body:
                time.sleep(0.01)
            time.sleep(0.2)
            refusal = client("/detect", pictures[0])
            assert refusal.status == 503 and refusal.headers["retry-after"] == "1"
            tiny_model.go.set()
            assert [one.result().body for one in asking] == alone
        assert tiny_model.batches == [1, 4, 2]


def test_only_requests_of_one_kind_share_a_run(
    serve_tiny: Any, tiny_model: Tiny, noise: Noise
) -> None:
    data = encoded(noise(1))
    paths = [f"/detect?threshold={threshold}" for threshold in (0.5, 0.9, 0.9)]
    with serve_tiny(max_wait_ms=300) as client:
        alone = [client(path, data).json for path in paths]
        tiny_model.batches.clear()
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(lambda path: client(path, data).json, paths))
        assert together == alone and alone[0] != alone[1]
        assert sum(tiny_model.batches) == 3 and len(tiny_model.batches) > 1


def test_time_is_limited(serve_tiny: Any, tiny_model: Tiny, noise: Noise) -> None:
    data = encoded(noise(1))
    with serve_tiny(timeout=0.4) as client:
        tiny_model.go.clear()
        assert client("/detect", data).status == 504
        tiny_model.go.set()
        slow = HTTPConnection("127.0.0.1", client.port, timeout=20)
        slow.putrequest("POST", "/detect")
        slow.putheader("Content-Length", str(len(data)))
        slow.endheaders(data[:100])
        assert slow.getresponse().status == 408
        slow.close()
        assert client("/detect", data).status == 200


def test_a_fault_of_the_model_is_the_servers(with_canary: Any, altered: Any, noise: Noise) -> None:
    def broken(raw: RawDetections) -> dict[str, Any]:
        beyond = raw.detection_scores.max() > 0.99  # not so in the canary's picture
        return {"detection_scores": raw.detection_scores + beyond}

    with serving({"x": altered(broken, spec=with_canary())}) as client:
        picture = noise(1)
        picture[:8, :8] = 255
        answer = client("/detect", encoded(picture))
        assert answer.status == 500 and "weights are broken" in answer.json["error"]


def test_a_token_guards_all_but_health_and_the_page(serve_tiny: Any, noise: Noise) -> None:
    data = encoded(noise(1))
    with serve_tiny(token=TOKEN) as client:
        for wrong in ({}, {"Authorization": TOKEN}, {"Authorization": "Bearer x"}):
            answer = client("/detect", data, **wrong)
            assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert client("/metrics", **wrong).status == 401
            assert client("/v2/models/tiny", **wrong).status == 401
        assert client("/detect", data, Authorization=f"Bearer {TOKEN}").status == 200
        for path in ("/", "/openapi.json", "/v2/health/live", "/v2/health/ready"):
            assert client(path).status == 200


def test_metrics_count_what_happened(serve_tiny: Any, noise: Noise) -> None:
    with serve_tiny() as client:
        client("/detect", encoded(noise(1)))
        client("/detect", b"nothing")
        text = client("/metrics").body.decode()
    assert 'nmsfree_requests_total{route="/detect",status="200"} 1.0' in text
    assert 'nmsfree_requests_total{route="/detect",status="415"} 1.0' in text
    assert 'nmsfree_batch_size_count{model="tiny"} 1.0' in text
    for stage, count in (("receive", 2), ("decode", 1), ("queue", 1), ("network", 1)):
        assert f'nmsfree_stage_seconds_count{{model="tiny",stage="{stage}"}} {count}.0' in text
    assert "process_resident_memory_bytes" in text


def test_the_description_names_every_route(client: Client) -> None:
    described = client("/openapi.json").json["paths"]
    for path, methods in described.items():
        answer = client(path.replace("{name}", "tiny"), *([b"x"] if "post" in methods else []))
        assert answer.status != 405, path
        assert answer.json["error"] != "Not Found" if answer.status == 404 else True
    assert b"POST /detect" in client("/").body


@pytest.mark.slow
def test_many_clients_get_their_own_answers(model: Path, noise: Noise) -> None:
    pictures = [encoded(noise(seed, 60 + seed, 90)) for seed in range(20)]
    found = serving_measure.load(model, pictures, requests=2000, clients=64)
    assert not found.wrong
    assert sum(found.statuses.values()) == 2000 and set(found.statuses) == {200, 400, 415}
    assert max(found.memory[-5:]) < 1.2 * found.memory[0]


@pytest.mark.slow
def test_the_measuring_program(model: Path, noise: Noise) -> None:
    pictures = [encoded(noise(seed)) for seed in range(8)]
    rows = serving_measure.throughput(model, pictures, 1, 0.3, 4, 2)
    assert all(b.images > 0 and b.processor > 0 and 0 < b.clients < 1.2 for _, b in rows)
