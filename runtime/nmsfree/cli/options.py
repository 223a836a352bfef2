"""What commands share: options made from the fields of dataclasses, and how they end."""

import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, is_dataclass
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from nmsfree.options import Option, options_of
from nmsfree.text import shown

if TYPE_CHECKING:
    from nmsfree.detector import Detector

MODEL = Option("An .onnx, or an .engine.", ("--model", "-m"))  # of `detect` and `batch`
REDUCED = Option(
    "Decode JPEGs at ½, ¼ or ⅛ of their size where that is no smaller than the model's input:"
    " faster, and may see less.",
    ("--reduced",),
)
SIZE = Option("Input height and width, of a file that takes any.", metavar="H W")


@dataclass(frozen=True)
class Choice:
    """Which detections are told, as `detect` and `batch` are asked."""

    threshold: Annotated[
        str | None,
        Option(
            "Keep scores above this; the model's own if not given. per-class: the best-F1 threshold"
            " of each class; precision: the lowest that reaches the target precision, both as"
            " `nmsfree eval` measured them for the file.",
            metavar="NUMBER|per-class|precision",
        ),
    ] = None
    classes: Annotated[str | None, Option("Keep these classes, names or ids.", metavar="A,B")] = (
        None
    )
    max_detections: Annotated[
        int | None, Option("Keep at most this many in an image, the best.", min=1, max=1_000_000)
    ] = None

    def of(self, detector: "Detector") -> dict[str, Any]:
        """What `Detector.batch` takes. InputError: this model cannot serve it."""
        from nmsfree.detector import parse_classes, parse_threshold  # a help does without

        given = {
            "threshold": parse_threshold(self.threshold),
            "classes": parse_classes(self.classes, detector.names),
            "max_detections": self.max_detections,
        }
        detector.batch([], **given)  # type: ignore[arg-type]
        return given


EVERYTHING = Choice()


def json_option(about: str) -> Option:
    """The option --json FILE."""
    return Option(about, ("--json",), metavar="FILE")


def command(run: Callable[[Any], None], kind: type[Any]) -> Callable[..., None]:
    """A command for typer whose options are the fields of a dataclass, see `nmsfree.options`.

    `run` is called with the object; its docstring is the command's help. A field that is a
    dataclass lends its own fields; one without an `Option` keeps its default.
    """

    def from_command_line(**values: Any) -> None:
        run(_build(kind, values))

    parameters = list(_parameters(kind))
    from_command_line.__name__ = run.__name__
    from_command_line.__doc__ = run.__doc__
    from_command_line.__annotations__ = {p.name: p.annotation for p in parameters}
    from_command_line.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return from_command_line


def _parameters(kind: type[Any]) -> Iterator[inspect.Parameter]:
    for field, hint, option in options_of(kind):
        if is_dataclass(hint):
            yield from _parameters(hint)  # type: ignore[arg-type]
        elif option is not None:
            form: Any = typer.Argument if option.argument else typer.Option
            info = form(
                *option.flags,
                help=option.help,
                min=option.min,
                max=option.max,
                metavar=option.metavar or (field.name.upper() if option.argument else _value(hint)),
                hidden=option.hidden,
                rich_help_panel=option.panel,
            )
            default = field.default
            if field.default_factory is not MISSING:
                default = field.default_factory()
            yield inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if default is MISSING else default,
                annotation=Annotated[_as_list(hint), info],
            )
            if option.was:
                old = typer.Option(
                    _spelling(option.was), min=option.min, max=option.max, hidden=True
                )
                yield inspect.Parameter(
                    option.was,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None,
                    annotation=Annotated[_as_list(hint) | None, old],
                )


def _value(hint: Any) -> str:
    """What stands for a value of this type in the help: N, X, PATH, TEXT, a|b, N N."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return _value(inner[0])
    if kind is Literal:
        return "|".join(map(str, inner))
    if kind is tuple:
        return " ".join(_value(part) for part in inner if part is not ...)
    return {int: "N", float: "X", str: "TEXT"}.get(hint, "PATH")


def _spelling(name: str) -> str:
    return "--" + name.replace("_", "-")


def _as_list(hint: Any) -> Any:
    """What typer calls an option that may be given several times: no tuple[X, ...] but a list."""
    if get_origin(hint) in (Union, UnionType):
        return functools.reduce(operator.or_, map(_as_list, get_args(hint)))
    several = get_origin(hint) is tuple and ... in get_args(hint)
    return list[get_args(hint)[0]] if several else hint  # type: ignore[misc]


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    given = {}
    for field, hint, option in options_of(kind):
        if is_dataclass(hint):
            given[field.name] = _build(hint, values)  # type: ignore[arg-type]
        elif option is not None:
            value = values[field.name]
            if option.was and values[option.was] is not None:
                value, old = values[option.was], _spelling(option.was)
                typer.echo(f"warning: {old} is now {_spelling(field.name)}", err=True)
            given[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**given)


def end_with(problems: Sequence[str], status: int = 0) -> None:
    """Name what could not be done, and end with a status: 1 if there is a problem."""
    for problem in problems:
        typer.echo(f"error: {shown(problem, 2000)}", err=True)
    if problems or status:
        raise typer.Exit(status or 1)
