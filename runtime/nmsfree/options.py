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
from typing import Any, get_type_hints

from nmsfree.errors import InputError


@dataclass(frozen=True)
class Option:
    """What is said of a field beside its type and default.

    Attributes:
        help: one or two short sentences.
        flags: spellings, where they are not --field-name: "--json", or "--model", "-m"; of a pair
            "--rebuild/--no-rebuild". An older spelling comes last.
        min, max: bounds, both allowed.
        metavar: what stands for the value in the help.
        argument: it has no spelling: its place on the command line says what it is.
        hidden: not in the help.
    """

    help: str
    flags: tuple[str, ...] = ()
    min: float | None = None
    max: float | None = None
    metavar: str | None = None
    argument: bool = False
    hidden: bool = False


def options_of(kind: type) -> Iterator[tuple[Field[Any], Any, Option | None]]:
    """The fields of a dataclass, each with its type and its `Option`, if it has one."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint = hints[field.name]
        found = [x for x in getattr(hint, "__metadata__", ()) if isinstance(x, Option)]
        yield field, hint.__origin__ if found else hint, found[0] if found else None


def check_bounds(options: Any) -> None:
    """Hold the values of a dataclass against the bounds of their fields; for `__post_init__`.

    Raises:
        InputError: a number is outside its bounds, or not finite.
    """
    assert is_dataclass(options)
    for field, _, option in options_of(type(options)):
        value = getattr(options, field.name)
        if option is None or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        low = -math.inf if option.min is None else option.min
        high = math.inf if option.max is None else option.max
        if not (math.isfinite(value) and low <= value <= high):
            raise InputError(f"{field.name} is {value}, expected {low:g} to {high:g}")
