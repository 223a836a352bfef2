"""The server's routes: pictures to `/detect`, tensors to `/v2`, and what operators ask.

What a client sends is data and nothing else: no path, no address, no code.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from io import BytesIO
from threading import Event, Thread
from typing import Any

import msgspec
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from nmsfree import __version__
from nmsfree.detector import parse_classes, parse_threshold
from nmsfree.errors import InputError, NmsfreeError
from nmsfree.images import Reduce, Reduction, decode_image
from nmsfree.images.header import read_header
from nmsfree.machine import processors
from nmsfree.parsing import whole_number
from nmsfree.serving.batching import Look
from nmsfree.serving.metrics import Metrics
from nmsfree.serving.model import Refused, Served
from nmsfree.serving.options import Limits
from nmsfree.serving.tensors import metadata, read_request, write_answer
from nmsfree.text import one_of, shown

logger = logging.getLogger(__name__)

KINDS = ("JPEG", "PNG", "WebP")
PARAMETERS = ("model", "threshold", "classes", "max_detections")  # of /detect
JSON_BYTES = "inference-header-content-length"
Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """Models behind HTTP.

    Args:
        models: by the names that clients use.
        token: what clients must send as `Authorization: Bearer …`; None lets everybody in.
    """

    def __init__(
        self, models: Mapping[str, Served], limits: Limits, metrics: Metrics, token: str | None
    ) -> None:
        self._models, self._limits, self._metrics = models, limits, metrics
        self._token = None if token is None else f"Bearer {token}".encode()
        cores = processors()
        self._decoders = ThreadPoolExecutor(cores)
        # Pictures are large once they are decoded: so many at most are in memory.
        self._decoded = asyncio.Semaphore(2 * cores + sum(m.capacity for m in models.values()))
        self._ending = Event()

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            self._route("/", self._page, public=True),
            self._route("/openapi.json", self._openapi, public=True),
            self._route("/metrics", self._show_metrics),
            self._route("/detect", self._detect, "POST"),
            self._route("/v2", self._server),
            self._route("/v2/health/live", self._live, public=True),
            self._route("/v2/health/ready", self._ready, public=True),
            self._route("/v2/models/{name}", self._model_metadata),
            self._route("/v2/models/{name}/ready", self._model_ready),
            self._route("/v2/models/{name}/infer", self._infer, "POST"),
        ]
        return Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={HTTPException: self._no_route},
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        watch = Thread(target=self._watch, daemon=True)
        watch.start()
        yield
        self._ending.set()
        await asyncio.to_thread(watch.join, self._limits.timeout)
        self._decoders.shutdown()
        for model in self._models.values():
            await asyncio.to_thread(model.close)

    def _watch(self) -> None:
        """Run the canaries again and again."""
        while not self._ending.wait(self._limits.canary_seconds):
            for model in self._models.values():
                model.check()

    def _route(
        self, path: str, handler: Handler, method: str = "GET", public: bool = False
    ) -> Route:
        """A route whose refusals are JSON, and which is counted."""

        async def answer(request: Request) -> Response:
            try:
                if not public:
                    self._check_token(request)
                response = await handler(request)
            except Refused as refused:
                response = _error(refused.status, refused)
            except ClientDisconnect:
                response = _error(499, "the client went away")
            except TimeoutError:
                response = _error(504, f"no answer within {self._limits.timeout:g} s")
            except InputError as error:
                response = _error(400, error)
            except NmsfreeError as error:
                logger.error("%s", error)
                response = _error(500, error)
            self._metrics.requests.labels(path, response.status_code).inc()
            return response

        return Route(path, answer, methods=[method])

    async def _no_route(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        self._metrics.requests.labels("other", error.status_code).inc()
        return _error(error.status_code, error.detail, error.headers)

    def _check_token(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
        if self._token is not None and not hmac.compare_digest(given, self._token):
            raise Refused(401, "the header Authorization must be: Bearer, and the server's token")

    def _model(self, name: str | None) -> Served:
        if name is None and len(self._models) == 1:
            return next(iter(self._models.values()))
        found = self._models.get(name or "")
        if found is None:
            what = "no model is named" if name is None else f"no model {shown(name, 60)!r}"
            raise Refused(404 if name else 400, f"{what}: models here: {', '.join(self._models)}")
        return found

    async def _detect(self, request: Request) -> Response:
        model = self._model(request.query_params.get("model"))
        look = _look(request.query_params, model)
        model.detector.batch([], **look._asdict())  # refuses wrong ones
        with model.admitted():
            start = time.perf_counter()
            data = await _picture(request, await self._body(request))
            model.observe("receive", time.perf_counter() - start)

            def load() -> tuple[NDArray[Any], tuple[int, int]]:
                start = time.perf_counter()
                found = _decode(data, self._limits.max_pixels, model.reduction)
                model.observe("decode", time.perf_counter() - start)
                return found

            async with asyncio.timeout(self._limits.timeout), self._decoded:
                if model.decodes:
                    answer = model.batches.add(load, look)
                else:
                    decoded = await self._in_thread(load)
                    answer = model.batches.add(lambda: decoded, look)
                (height, width), found = await asyncio.wrap_future(answer)
        head = {"model": model.name, "height": height, "width": width}
        return _json(head | found.to_dict())

    async def _infer(self, request: Request) -> Response:
        model = self._model(request.path_params["name"])
        with model.admitted():
            start = time.perf_counter()
            body = await self._body(request)
            model.observe("receive", time.perf_counter() - start)
            length = request.headers.get(JSON_BYTES)
            json_bytes = None if length is None else whole_number(length)
            if length is not None and json_bytes is None:
                raise InputError(f"Inference-Header-Content-Length is {shown(length, 40)}")
            async with asyncio.timeout(self._limits.timeout), self._decoded:
                start = time.perf_counter()
                asked = await self._in_thread(read_request, body, json_bytes, model.detector.spec)
                model.observe("decode", time.perf_counter() - start)
                raw = await asyncio.wrap_future(model.batches.add(lambda: asked.images, None))
                answer, json_bytes = await self._in_thread(write_answer, model.name, raw, asked)
        if json_bytes is None:
            return Response(answer, media_type="application/json")
        headers = {JSON_BYTES: str(json_bytes)}
        return Response(answer, headers=headers, media_type="application/octet-stream")

    async def _body(self, request: Request) -> bytes:
        """Receive the body, of bounded size in bounded time."""
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise Refused(
                415, f"the body has Content-Encoding {shown(encoding, 40)}: send it plain"
            )
        limit = int(self._limits.max_body_mb * 2**20)
        too_large = Refused(413, f"the body is larger than {self._limits.max_body_mb:g} MB")
        if (whole_number(request.headers.get("content-length", "0")) or 0) > limit:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.timeout):
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise too_large
                    parts.append(part)
        except TimeoutError:
            raise Refused(408, f"not all arrived within {self._limits.timeout:g} s") from None
        return b"".join(parts)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(
            self._decoders, function, *arguments
        )

    async def _server(self, _: Request) -> Response:
        extensions = ["binary_tensor_data"]
        return _json({"name": "nmsfree", "version": __version__, "extensions": extensions})

    async def _live(self, _: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, _: Request) -> Response:
        ready = all(model.ready for model in self._models.values())
        return _json({"ready": ready}, 200 if ready else 503)

    async def _model_ready(self, request: Request) -> Response:
        model = self._model(request.path_params["name"])
        return _json({"name": model.name, "ready": model.ready}, 200 if model.ready else 503)

    async def _model_metadata(self, request: Request) -> Response:
        model = self._model(request.path_params["name"])
        return _json(metadata(model.name, model.detector.spec))

    async def _show_metrics(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _page(self, _: Request) -> Response:
        return HTMLResponse(_resource("page.html"))

    async def _openapi(self, _: Request) -> Response:
        return Response(_resource("openapi.json"), media_type="application/json")


def _look(query: Mapping[str, str], model: Served) -> Look:
    """Read how a picture is looked at from `?threshold=…&classes=…&max_detections=…`."""
    for name in query:
        if name not in PARAMETERS:
            raise InputError(
                f"unknown parameter {shown(name, 40)!r}, expected {one_of(PARAMETERS, name)}"
            )
    most = query.get("max_detections")
    number = None if most is None else whole_number(most)
    if most is not None and number is None:
        raise InputError(f"max_detections is {shown(most, 40)!r}, expected a whole number")
    classes = parse_classes(query.get("classes"), model.detector.names)
    return Look(parse_threshold(query.get("threshold")), classes, number)


async def _picture(request: Request, body: bytes) -> bytes:
    """The picture in a body: all of it, or the one file of a form."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return body

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(request.headers, once(), max_files=1, max_fields=8)
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise InputError(f"the form cannot be read ({shown(error)})") from None
    found = [value for value in form.values() if not isinstance(value, str)]
    if len(found) != 1:
        raise InputError("the form has no file, expected one: the picture")
    try:
        data: bytes = await found[0].read()
        return data
    finally:
        await form.close()


def _decode(
    data: bytes, max_pixels: int, reduction: Reduction | Reduce
) -> tuple[NDArray[Any], tuple[int, int]]:
    """Decode a picture of an allowed kind and size, see `decode_image`."""
    header = read_header(BytesIO(data))
    if header is None or header.kind not in KINDS:
        raise Refused(415, f"the body is no picture of a known kind: send {', '.join(KINDS)}")
    if header.width * header.height > max_pixels:
        size = f"{header.width} × {header.height} pixels"
        raise Refused(413, f"the picture has {size}, expected at most {max_pixels:,}")
    return decode_image(data, "the picture", reduction)


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _error(status: int, message: object, headers: Mapping[str, str] | None = None) -> Response:
    response = _json({"error": shown(message, 1000)}, status)
    response.headers.update(dict(headers or {}))
    if status == 503:
        response.headers["Retry-After"] = "1"
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _resource(name: str) -> bytes:
    return files("nmsfree.serving").joinpath(name).read_bytes()
