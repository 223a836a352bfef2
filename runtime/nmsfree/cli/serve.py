"""`nmsfree serve`: models behind HTTP."""

import logging
import os
import re
import socket
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmsfree.backends.options import DEFAULTS, DEVICE, Options, parse_device
from nmsfree.cli.options import REDUCED, command
from nmsfree.detector import Detector
from nmsfree.errors import InputError, import_extra
from nmsfree.images import quiet_opencv
from nmsfree.machine import processors
from nmsfree.options import Option
from nmsfree.parsing import read_bytes
from nmsfree.serving.options import ALLOWED, Limits
from nmsfree.text import shown
from nmsfree_start import answer_with

if TYPE_CHECKING:
    from nmsfree.serving.metrics import Metrics
    from nmsfree.serving.model import Served

TOKEN = "NMSFREE_TOKEN"
SHORTEST = 8  # characters of a token
CONNECTIONS = 1000  # more are answered 503
NAME = re.compile(r"[\w.-]{1,60}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `nmsfree serve` is asked."""

    models: Annotated[
        tuple[str, ...],
        Option(
            "An .onnx or .engine with a canary; NAME=FILE says what clients call it.",
            argument=True,
            metavar="MODEL",
        ),
    ]
    host: Annotated[str, Option("Address to listen at; 0.0.0.0 is every one.")] = "127.0.0.1"
    port: Annotated[int, Option("Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8000
    token_file: Annotated[
        Path | None,
        Option(f"File with the token that clients must send; {TOKEN} in the environment, too."),
    ] = None
    reduced: Annotated[bool, REDUCED] = False
    device: Annotated[str | None, DEVICE] = None
    engine: Options = DEFAULTS
    limits: Limits = ALLOWED


def _serve(request: Request) -> None:
    """Detect objects for HTTP clients: POST a picture to /detect.

    Also the Open Inference Protocol below /v2, Prometheus at /metrics, OpenAPI at /openapi.json.

    On processors a run takes one thread unless --threads says more, and each processor has a run.

    SIGTERM or Ctrl-C: what has arrived is answered, then it ends.

    Example: nmsfree serve model.onnx --port 8000
    """
    for module in ("starlette", "uvicorn", "prometheus_client", "python_multipart"):
        import_extra(module, "nmsfree serve", "nmsfree[serve]")
    import uvicorn

    from nmsfree.serving.app import Service
    from nmsfree.serving.metrics import Metrics

    quiet_opencv()
    token, metrics = _token(request.token_file), Metrics()
    listener = listen(request.host, request.port)
    models = _open(request, metrics)
    app = Service(models, request.limits, metrics, token).app()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=int(request.limits.timeout) + 1,
    )
    host, port = listener.getsockname()[:2]
    typer.echo(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}", err=True)
    if token is None and not ip_address(host.partition("%")[0]).is_loopback:
        typer.echo(
            f"warning: others can reach this address, and no token is asked of them: set {TOKEN}"
            " or give --token-file",
            err=True,
        )
    server = uvicorn.Server(config)
    # It answers signals itself once it has begun, and raises them again when all is done.
    answer_with(lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[listener])
    typer.echo("ended, every request was answered", err=True)


serve = command(_serve, Request)


def _token(file: Path | None) -> str | None:
    """The bearer token, of the file or the environment."""
    token = os.environ.get(TOKEN)
    if file is not None:
        token = read_bytes(file, 4096).decode("utf-8", "replace").strip()
    if token is not None and not re.fullmatch(f"[!-~]{{{SHORTEST},}}", token):
        where = TOKEN if file is None else shown(file)
        wrong = f"too short ({len(token)} characters)" if len(token) < SHORTEST else "no token"
        raise InputError(
            f"{where}: {wrong}, expected {SHORTEST} or more characters of ASCII, no spaces"
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """Take a port; 0 takes a free one. InputError if that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(
            f"{shown(host)}:{port} cannot be listened at ({error.strerror or error}): give another"
            " --host or --port"
        ) from None


def _open(request: Request, metrics: "Metrics") -> dict[str, "Served"]:
    """Open the models, each under its name."""
    from nmsfree.serving.model import Served

    models: dict[str, Served] = {}
    for text in request.models:
        name, named, path = text.partition("=")
        name, path = (name, path) if named and NAME.fullmatch(name) else (Path(text).stem, text)
        if not NAME.fullmatch(name) or name in models:
            raise InputError(
                f"{shown(text)}: model is called {shown(name)!r}, expected a name of its own of"
                " letters, digits, . _ -: give NAME=FILE"
            )
        on_cpu = request.device is None or parse_device(request.device).kind in ("cpu", "openvino")
        on_cpu = on_cpu and not path.endswith(".engine")
        engine = request.engine
        if on_cpu:  # as many runs as processors answer most requests a second
            engine = replace(engine, threads=engine.threads or 1)
        workers = max(1, processors() // (engine.threads or 1)) if on_cpu else 2
        detector = Detector(path, device=request.device, **vars(engine))
        workers = request.limits.workers or workers
        models[name] = Served(name, detector, workers, request.limits, metrics, request.reduced)
        typer.echo(f"{name}: {detector.backend.describe()}, {workers} at once", err=True)
    return models
