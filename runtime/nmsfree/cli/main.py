"""The `nmsfree` command: sub-commands come from every installed distribution of the project."""

import atexit
import io
import logging
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Annotated, Any, NoReturn

from nmsfree.errors import MissingExtraError, NmsfreeError, how_to_install
from nmsfree.text import meant, shown
from nmsfree_start import answer_with, leave

try:
    import typer
    import typer.core
    import typer.main
except ImportError:
    print(MissingExtraError("the nmsfree command", "nmsfree[cli]"), file=sys.stderr)  # noqa: T201
    sys.exit(2)

from nmsfree.cli.help import format_help, format_usage, use_plain_help

INTERNAL = 4  # exit status after a fault of our own
EXPECTED = {  # by pydantic's types of errors
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of 64 bits",
    "float_parsing": "a number",
}
MESSAGE = 2000  # longest message in characters
_ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True}

# What the project can do, and which distribution brings it.
COMMANDS = {
    "detect": ("nmsfree", "Draw detections on images, folders, videos, cameras and streams."),
    "serve": ("nmsfree", "Detect objects for HTTP clients: POST a picture to /detect."),
    "batch": (
        "nmsfree",
        "Detect objects on many pictures at once, on processors or a cluster → Parquet.",
    ),
    "eval": (
        "nmsfree",
        "COCO metrics, duplicates, calibration and the thresholds to use, of one model file.",
    ),
    "export": (
        "nmsfree-export",
        "Checkpoint → NMS-free ONNX, certified and compared with PyTorch.",
    ),
    "adopt": (
        "nmsfree-export",
        "Another project's NMS-free detector → a file for every engine and command here.",
    ),
    "convert": (
        "nmsfree-export",
        "Float32 ONNX of export or adopt → FP16 or INT8, certified and compared with it.",
    ),
    "build": (
        "nmsfree-export",
        "ONNX → TensorRT engine, with what it was built from and for in a JSON file beside it.",
    ),
    "bundle": (
        "nmsfree-export",
        "A model → a folder that Triton, DeepStream or a web server takes as it is.",
    ),
    "verify": (
        "nmsfree-export",
        "Compare two models, whatever runs them; exit status 1 if they differ.",
    ),
    "train": ("nmsfree-training", "Train a detector, or retrofit one that needs NMS."),
    "doctor": (
        "nmsfree",
        "Which engines run on this machine, what is missing, and the line that installs it.",
    ),
    "data": ("nmsfree", "Make and check datasets."),
    "weights": ("nmsfree-training", "List and download published weights."),
    "study": ("nmsfree-training", "Compare recipes: many short runs, then a table."),
    "bench": (
        "nmsfree-benchmarks",
        "Measure NMS-free against NMS: latency by stage, AP of the timed files.",
    ),
}


class _Commands(typer.core.TyperGroup):
    """The root; a command is imported when it is called or its help is asked for."""

    format_help = format_help  # type: ignore[assignment]
    format_usage = format_usage  # type: ignore[assignment]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if not error.message:  # nothing is given, which the usage helps with
                raise
            raise _WrongValue(_plain(error)) from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        # Completion asks for commands that are not there.
        return name, command and load_command(args[0]), rest


class _WrongValue(typer.BadParameter):
    def show(self, file: Any = None) -> None:
        _print_error(f"error: {shown(self.message, MESSAGE)}")


def _plain(error: typer.BadParameter) -> str:
    """In one line what was found, by pydantic or typer, and what was expected or meant."""
    option = error.param.opts[0] if error.param else error.param_hint
    found: dict[str, Any] = next(iter(getattr(error.__cause__, "errors", list)()), {"type": ""})
    if expected := EXPECTED.get(found["type"], "").format(**found.get("ctx", {})):
        return f"{option} is {shown(found['input'], 40) or 'empty'}, expected {expected}"
    said = error.message.removeprefix("Value error, ").removesuffix(".")
    wrong, *known = re.findall("'([^']*)'", said) or [""]
    return f"{option}: {said}{meant(known, wrong) if ' is not one of ' in said else ''}"


def load_command(name: str) -> Any:
    """Import a command of an installed distribution, as typer makes it for the root."""
    from importlib import metadata  # a quarter of what the root's help would take

    app = _typer()
    found = next(iter(metadata.entry_points(group="nmsfree.commands", name=name)), None)
    command = _missing(name) if found is None else found.load()
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        # Whatever options follow, the answer is what to install.
        app.command(name, context_settings=_ANYTHING if found is None else None)(command)
    loaded = typer.main.get_group(app).commands[name]
    check_numbers(loaded)
    use_plain_help(loaded)
    return loaded


def check_numbers(command: Any) -> None:
    """Let the options of a command and its sub-commands take no NaN, infinity or huge integer.

    A comparison with a bound lets NaN pass.
    """
    for child in getattr(command, "commands", {}).values():
        check_numbers(child)
    for option in command.params:
        option.callback = _checked(option.callback)


def _checked(first: Callable[..., Any] | None) -> Callable[..., Any]:
    def check(ctx: Any, option: Any, value: Any) -> Any:
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise typer.BadParameter(f"{number} is no finite number.")
            if isinstance(number, int) and abs(number) >= 2**63:
                raise typer.BadParameter(f"{shown(number, 40)} is beyond 64 bits.")
        return value if first is None else first(ctx, option, value)

    return check


def build_app() -> typer.Typer:
    """The root, which knows of its commands what its help says."""
    app = _typer()
    app.callback()(_root)
    for name in COMMANDS:
        app.command(name, help=_summary(name))(_root)
    return app


def _typer() -> typer.Typer:
    return typer.Typer(
        name="nmsfree",
        cls=_Commands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # help is plain text
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _summary(name: str) -> str:
    distribution, summary = COMMANDS[name]
    installed = find_spec(distribution.replace("-", "_")) is not None
    return summary if installed else f"{summary} Needs {distribution}."


def _show_versions(wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    for name in dict.fromkeys(distribution for distribution, _ in COMMANDS.values()):
        version = "–"
        with suppress(metadata.PackageNotFoundError):
            version = metadata.version(name)
        typer.echo(f"{name} {version}")
    raise typer.Exit


VERSION = typer.Option(
    "--version", callback=_show_versions, is_eager=True, help="What is installed; then exit."
)


def _root(versions: Annotated[bool, VERSION] = False) -> None:
    """Put detectors without NMS on devices, and prove what they answer.

    Adopt a detector you have: nmsfree adopt yolo26n.onnx -o model.onnx

    Train one on your pictures: nmsfree train --data DIR --model fcos_e2e_nano

    Run it: nmsfree detect street.jpg --model model.onnx
    """


def _missing(name: str) -> Callable[[], None]:
    def command() -> None:
        raise MissingExtraError(f"`nmsfree {name}`", COMMANDS[name][0])

    distribution, summary = COMMANDS[name]
    command.__doc__ = f"{summary} Needs {distribution}: {how_to_install(distribution)}"
    return command


class _OneLine(logging.Formatter):
    """Names of files and classes are part of many messages."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record), MESSAGE)


def main() -> None:
    """Run the command line; a user's mistake ends in one line and the status of its error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a Windows code page has no → or ×
    stopped: list[int] = []

    def stop(number: int, _: object) -> None:
        """Unwind, so that what is half done is tidied up; a second signal does not wait for it."""
        answer_with(leave)
        stopped.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    answer_with(stop)
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    try:
        try:
            build_app()()
        finally:
            answer_with(leave)
    except SystemExit as end:
        # Within a command typer has turned the interrupt into an exit without a word.
        if end.__context__ is not None and isinstance(end.__context__.__cause__, KeyboardInterrupt):
            _print_error("interrupted")
        if not stopped:
            raise
        _end_now(end.code if isinstance(end.code, int) else 128 + stopped[0])
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (the outermost boundary)
        if not stopped:
            sys.exit(_report(error))
        # The interrupt may have become another error on its way, "numpy cannot be imported".
        _report(error if stopped[0] == signal.SIGTERM else KeyboardInterrupt())
        _end_now(128 + stopped[0])


def _report(error: BaseException) -> int:
    """Say in one line what ended a command; return the exit status."""
    if os.environ.get("NMSFREE_DEBUG", "0") != "0":
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        _print_error("interrupted")
        return 128 + signal.SIGINT
    if isinstance(error, NmsfreeError):
        _print_error(f"error: {shown(error, MESSAGE)}")
        return error.exit_status
    if isinstance(error, OSError) and error.errno is not None:
        _print_error(f"error: {shown(error, MESSAGE)} (NMSFREE_DEBUG=1 shows where)")
        return 2
    _print_error(
        f"internal error: {type(error).__name__}: {shown(error, MESSAGE)}: this is a fault of"
        " nmsfree, please report what the same command prints with NMSFREE_DEBUG=1"
    )
    return INTERNAL


def _print_error(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201


def _end_now(status: int) -> NoReturn:
    """End after a signal, though threads or a library's own clean-up still go on.

    Python gives signals back to the system before the last of that, so that another Ctrl-C
    would change the status.
    """
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(status)
