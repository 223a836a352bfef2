"""`nmsfree bundle`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from nmsfree.cli.options import command
from nmsfree.errors import InputError, MissingExtraError
from nmsfree.options import Option, check_bounds
from nmsfree.text import shown

if TYPE_CHECKING:
    from nmsfree_export.bundle.model import Model


@dataclass(frozen=True, kw_only=True)
class BundleCommand:
    """What is bundled, and for which host."""

    host: Annotated[Literal["triton", "deepstream"], Option("triton or deepstream.", argument=True)]
    model: Annotated[Path, Option("An .onnx, or an .engine of full TensorRT.", argument=True)]
    out: Annotated[
        Path | None, Option("Folder. Default: runs/bundle/HOST.", flags=("-o", "--out"))
    ] = None
    gpu: Annotated[bool, Option("Triton: run on a GPU; engines do.", flags=("--gpu",))] = False
    instances: Annotated[int, Option("Triton: how many run side by side.", min=1, max=64)] = 1

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.host != "triton" and (self.gpu or self.instances != 1):
            raise InputError("--gpu and --instances are for triton: leave them out")


def run_bundle(asked: BundleCommand) -> None:
    """A model → a folder that Triton or DeepStream takes as it is.

    triton: a model repository, and a client. deepstream: a configuration of nvinfer, for files of
    --input nchw-float.

    Examples:

    nmsfree bundle triton model.onnx -o models

    nmsfree bundle deepstream floats.onnx -o deepstream
    """
    from rich.console import Console

    from nmsfree_export.bundle.model import read_model

    out = asked.out or Path("runs/bundle") / asked.host
    if out.is_file():
        raise InputError(f"{out}: is a file, expected a folder to write to")
    model = read_model(asked.model)
    lines = _triton(asked, model, out) if asked.host == "triton" else _deepstream(model, out)
    for line in lines:
        Console(stderr=True).print(shown(line, 1000), highlight=False, markup=False, soft_wrap=True)


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


def _deepstream(model: "Model", out: Path) -> list[str]:
    from nmsfree_export.bundle.deepstream import bundle_deepstream

    config = bundle_deepstream(model, out)
    black = "" if model.spec.resize.kind == "stretch" else "; it pads black, see docs/hosts.md"
    return [f"{config}: config-file-path of nvinfer{black}"]


bundle = command(run_bundle, BundleCommand)
