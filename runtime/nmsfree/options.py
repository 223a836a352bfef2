"""Options, each written once: a field of a frozen dataclass, with its help and bounds beside it.

    @dataclass(frozen=True)
    class Timing:
        seconds: Annotated[float, Option("How long it is timed.", min=0.1)] = 10.0

The command line makes its options of these fields (`nmsfree.cli.options.command`), and the same
object goes to the code that uses it.
"""

import math
from collections.abc import Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nmsfree.errors import InputError


@dataclass(frozen=True)
class Option:
    """What is said of a field beside its type and default.

    Attributes:
        flags: spellings, where they are not --field-name: "--json", or "--model", "-m"; of a pair
            "--rebuild/--no-rebuild". An older spelling comes last.
    """

    help: str  # one or two short sentences
    flags: tuple[str, ...] = ()
    min: float | None = None  # min, max: bounds, both allowed
    max: float | None = None
    metavar: str | None = None  # what stands for the value in the help
    argument: bool = False  # it has no spelling: its place on the command line says what it is
    hidden: bool = False  # not in the help
    was: str | None = None  # the field's name one release ago: taken, with a warning
    panel: str | None = None  # title of the frame in the help that it stands in


def options_of(kind: type) -> Iterator[tuple[Field[Any], Any, Option | None]]:
    """The fields of a dataclass, each with its type and its `Option`, if it has one."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint = hints[field.name]
        found = [x for x in getattr(hint, "__metadata__", ()) if isinstance(x, Option)]
        yield field, hint.__origin__ if found else hint, found[0] if found else None


def check_bounds(options: Any) -> None:
    """Hold the values of a dataclass against the bounds of their fields; for `__post_init__`.

    A field's default passes, whatever its bounds are.

    Raises:
        InputError: a number is outside its bounds, or not finite; a value is none of its `Literal`.
    """
    assert is_dataclass(options)
    for field, hint, option in options_of(type(options)):
        value = getattr(options, field.name)
        if option is None or value == field.default:
            continue
        parts = (hint, *get_args(hint))  # of `Literal[…] | None`, too
        choices = [each for p in parts if get_origin(p) is Literal for each in get_args(p)]
        if choices and value not in (*choices, None):
            raise InputError(f"{field.name} is {value!r}, expected {', '.join(choices)}")
        low = -math.inf if option.min is None else option.min
        high = math.inf if option.max is None else option.max
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not (math.isfinite(number) and low <= number <= high):
                bounded = option.min is not None or option.max is not None
                span = f"{low:g} to {high:g}" if bounded else "a finite number"
                raise InputError(f"{field.name} is {number}, expected {span}")
