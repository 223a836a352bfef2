"""What commands share: options that are written once, and the progress bar."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from nmsfree.cli.options import command
from nmsfree.cli.progress import progress_bar
from nmsfree.errors import InputError
from nmsfree.options import Option, check_bounds


@dataclass(frozen=True)
class Timing:
    seconds: Annotated[float, Option("How long.", min=0.5, max=60)] = 10.0
    pause: Annotated[float | None, Option("Between calls.", min=0, was="rest_time")] = None

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class Request:
    file: Annotated[Path, Option("What is timed.", argument=True)]
    model: Annotated[tuple[str, ...] | None, Option("Models.", flags=("--model", "-m"))] = None
    zoom: Annotated[tuple[float, float] | None, Option("From and to.")] = None
    rebuild: Annotated[bool, Option("Again.", flags=("--rebuild/--no-rebuild",))] = True
    timing: Timing = Timing()
    inner: int = 3


def parse(*words: str) -> tuple[int, str, list[Request]]:
    found: list[Request] = []

    def run(request: Request) -> None:
        """Measure something."""
        found.append(request)

    app = typer.Typer()
    app.command()(command(run, Request))
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.output, found


def test_an_old_spelling_is_taken_with_a_warning_and_not_in_the_help() -> None:
    code, output, (request,) = parse("a.onnx", "--rest-time", "2")
    assert code == 0 and output == "warning: --rest-time is now --pause\n"
    assert request.timing.pause == 2.0
    assert "--rest-time" not in parse("--help")[1]


def test_values_reach_the_fields_also_of_a_dataclass_within() -> None:
    words = ("a.onnx", "-m", "x", "--model", "y", "--no-rebuild", "--seconds", "2", "--pause", "0")
    words += ("--zoom", "0.5", "2")
    assert parse("a.onnx")[2] == [Request(file=Path("a.onnx"))]
    (request,) = parse(*words)[2]
    timing = Timing(2.0, 0.0)
    assert request == Request(
        file=Path("a.onnx"), model=("x", "y"), zoom=(0.5, 2.0), rebuild=False, timing=timing
    )


@pytest.mark.parametrize("words", [[], ["a", "--seconds", "0.4"], ["a", "--inner", "3"]])
def test_wrong_usage_is_told(words: list[str]) -> None:
    code, _, found = parse(*words)
    assert (code, found) == (2, [])


def test_the_help_is_that_of_the_fields() -> None:
    output = parse("--help")[1]
    for text in ("Measure something.", "How long.", "Between calls.", "0.5<=x<=60", "10.0"):
        assert text in output


@pytest.mark.parametrize("seconds", [0.4, 61, float("nan"), float("inf")])
def test_bounds_hold_without_a_command_line(seconds: float) -> None:
    with pytest.raises(InputError, match=r"^seconds is .*, expected 0\.5 to 60$"):
        Timing(seconds)


@dataclass(frozen=True)
class Recipe:
    kind: Annotated[Literal["fast", "slow"], Option("Kind.")] = "fast"
    sides: Annotated[tuple[int, ...], Option("Sides.", min=1, max=9)] = ()
    limit: Annotated[int, Option("Limit; 0 = none.", min=5)] = 0

    def __post_init__(self) -> None:
        check_bounds(self)


def test_choices_and_each_number_of_several_are_held_against_the_field() -> None:
    assert Recipe("slow", (1, 9), 5).limit == 5 and Recipe().limit == 0
    for values, complaint in (
        ({"kind": "odd"}, "kind is 'odd', expected fast, slow"),
        ({"sides": (1, 10)}, "sides is 10, expected 1 to 9"),
        ({"limit": 4}, "limit is 4, expected 5 to inf"),
    ):
        with pytest.raises(InputError, match=complaint):
            Recipe(**values)  # type: ignore[arg-type]


def test_nothing_is_drawn_when_there_is_nothing_to_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="wrong option"), progress_bar():
        raise ValueError("wrong option")
    assert capsys.readouterr() == ("", "")


def test_what_is_counted_is_shown_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as bar:
        bar.update(bar.add_task("images", total=20), completed=20)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "images" in shown.err and "20/20" in shown.err
