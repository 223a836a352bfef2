"""`nmsfree bundle`."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from nmsfree.cli.options import command
from nmsfree.errors import InputError, MissingExtraError
from nmsfree.options import Option, check_bounds
from nmsfree.text import shown

if TYPE_CHECKING:
    from rich.console import Console

    from nmsfree_export.bundle.model import Model


@dataclass(frozen=True, kw_only=True)
class BundleCommand:
    """What is bundled, and for which host."""

    host: Annotated[
        Literal["triton", "deepstream", "web"], Option("triton, deepstream or web.", argument=True)
    ]
    model: Annotated[Path, Option("An .onnx, or an .engine of full TensorRT.", argument=True)]
    out: Annotated[
        Path | None, Option("Folder. Default: runs/bundle/HOST.", flags=("-o", "--out"))
    ] = None
    gpu: Annotated[bool, Option("Triton: run on a GPU; engines do.", flags=("--gpu",))] = False
    instances: Annotated[int, Option("Triton: how many run side by side.", min=1, max=64)] = 1
    ort: Annotated[
        Path | None,
        Option(
            "Web: folder of the npm package onnxruntime-web. Default: npm fetches it.",
            metavar="DIR",
        ),
    ] = None
    serve: Annotated[
        bool,
        Option(
            "Web: serve the folder to this machine until Ctrl-C, with the headers that threads"
            " need.",
            flags=("--serve",),
        ),
    ] = False
    port: Annotated[int, Option("Of --serve; 0: any that is free.", min=0, max=65535)] = 8000

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.host != "triton" and (self.gpu or self.instances != 1):
            raise InputError("--gpu and --instances are for triton: leave them out")
        if self.host != "web" and (self.ort or self.serve or self.port != 8000):
            raise InputError("--ort, --serve and --port are for web: leave them out")


def run_bundle(asked: BundleCommand) -> None:
    """A model → a folder that Triton, DeepStream or a web server takes as it is.

    triton: a model repository, and a client. deepstream: a configuration of nvinfer, for files of
    --input nchw-float. web: a page that detects in the browser, of which no picture leaves it.

    Examples:

    nmsfree bundle triton model.onnx -o models

    nmsfree bundle deepstream floats.onnx -o deepstream

    nmsfree bundle web model.onnx -o site --serve
    """
    from rich.console import Console

    from nmsfree_export.bundle.model import read_model

    out = asked.out or Path("runs/bundle") / asked.host
    if out.is_file():
        raise InputError(f"{out}: is a file, expected a folder to write to")
    model = read_model(asked.model)
    console = Console(stderr=True)
    with console.status("bundling"):
        write = {"triton": _triton, "deepstream": _deepstream, "web": _web}[asked.host]
        lines = write(asked, model, out)
    for line in lines:
        console.print(shown(line, 1000), highlight=False, markup=False, soft_wrap=True)
    if asked.serve:
        _serve(out, asked.port, console)


def _triton(asked: BundleCommand, model: "Model", out: Path) -> list[str]:
    from nmsfree_export.bundle.triton import bundle_triton, check

    folder = bundle_triton(model, out, gpu=asked.gpu, instances=asked.instances)
    try:
        check(folder, model)
        checked = "read by Triton's own definition, and the same as the file's"
    except MissingExtraError as error:
        checked = f"not checked: {error}"
    return [
        f"{folder}/config.pbtxt: {checked}",
        f"tritonserver --model-repository={out}, then python {out / 'client.py'} PICTURE",
    ]


def _deepstream(asked: BundleCommand, model: "Model", out: Path) -> list[str]:
    from nmsfree_export.bundle.deepstream import bundle_deepstream

    config = bundle_deepstream(model, out)
    black = "" if model.spec.resize.kind == "stretch" else "; it pads black, see docs/hosts.md"
    return [f"{config}: config-file-path of nvinfer{black}"]


def _web(asked: BundleCommand, model: "Model", out: Path) -> list[str]:
    from nmsfree_export.bundle.web import bundle_web

    page = bundle_web(model, out, asked.ort)
    return [f"{page}: any web server serves it; threads need the headers that --serve sends"]


def _serve(folder: Path, port: int, console: "Console") -> None:
    from nmsfree_export.bundle.web import serve

    with serve(folder, port) as server:
        where = f"http://localhost:{server.server_address[1]}"
        console.print(f"{where}: until Ctrl-C", highlight=False, markup=False)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


bundle = command(run_bundle, BundleCommand)
