"""The `nmsfree` command: sub-commands come from every installed distribution of the project."""

import io
import logging
import signal
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Annotated

from nmsfree.errors import MissingExtraError, NmsfreeError

try:
    import typer
except ImportError:
    print(MissingExtraError("the nmsfree command", "nmsfree[cli]"), file=sys.stderr)  # noqa: T201
    sys.exit(2)

# What the project can do, and which distribution brings it.
COMMANDS = {
    "detect": ("nmsfree", "Draw detections on images, folders, videos or a camera."),
    "eval": ("nmsfree", "AP, thresholds and pictures of an ONNX file or a checkpoint."),
    "data": ("nmsfree", "Make and check datasets."),
    "export": ("nmsfree-export", "Checkpoint → NMS-free ONNX, certified and compared."),
    "build": ("nmsfree-export", "ONNX → TensorRT engine; TensorRT-RTX needs no GPU for it."),
    "verify": ("nmsfree-export", "Compare the detections of two models."),
    "train": ("nmsfree-training", "Train a detector, or retrofit one that needs NMS."),
    "weights": ("nmsfree-training", "List and download published weights."),
    "study": ("nmsfree-training", "Compare recipes: many runs, then a table and a picture."),
    "doctor": ("nmsfree", "Which engines run on this machine, and what is missing."),
    "bench": ("nmsfree-benchmarks", "Measure NMS-free against NMS."),
}


def build_app() -> typer.Typer:
    """Collect the sub-commands of the installed distributions."""
    app = typer.Typer(
        name="nmsfree",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",  # paragraphs flow to the terminal's width
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    installed = {entry.name: entry for entry in entry_points(group="nmsfree.commands")}
    for name, (distribution, summary) in COMMANDS.items():
        if name not in installed:
            # Whatever options follow, the answer is what to install.
            anything = {"allow_extra_args": True, "ignore_unknown_options": True}
            summary = f"{summary} Needs {distribution}."
            app.command(name, help=summary, context_settings=anything)(_missing(name, distribution))
            continue
        command = installed[name].load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def _show_versions(wanted: bool) -> None:
    if not wanted:
        return
    for name in dict.fromkeys(distribution for distribution, _ in COMMANDS.values()):
        try:
            typer.echo(f"{name} {version(name)}")
        except PackageNotFoundError:
            typer.echo(f"{name} –")
    raise typer.Exit


VERSION = typer.Option(
    "--version", callback=_show_versions, is_eager=True, help="What is installed; then exit."
)


def _root(versions: Annotated[bool, VERSION] = False) -> None:
    """Train, export, run and measure FCOS detectors that need no NMS."""


def _missing(name: str, distribution: str) -> Callable[[], None]:
    def command() -> None:
        raise MissingExtraError(f"`nmsfree {name}`", distribution)

    return command


def main() -> None:
    """Run the command line; a user's mistake ends in one line and the status of its error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a Windows code page has no → or ×
    # What must be tidied up is tidied up when a container or a scheduler ends the process, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        build_app()()
    except NmsfreeError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_status)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except SystemExit as end:
        # Within a command typer has turned the interrupt into an exit without a word.
        if end.__context__ is not None and isinstance(end.__context__.__cause__, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)  # noqa: T201
        raise
