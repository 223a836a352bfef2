"""What every question is asked with. It imports little: the help is made of it."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from nmsfree.cli.options import json_option
from nmsfree.errors import InputError
from nmsfree.options import Option, options_of

if TYPE_CHECKING:
    from nmsfree_benchmarks.harness.timer import Plan

CPU = "cpu"
Models = Annotated[
    tuple[str, ...] | None, Option("Only this model; may be given again.", flags=("--model",))
]
Files = Annotated[
    tuple[Path, ...],
    Option("Model files, ours or adopted, to measure in place of the bundled models.",
           argument=True, metavar="FILE"),
]  # fmt: skip
OnDevice = Annotated[str, Option("Where the models run: cpu, openvino, cuda, tensorrt-rtx.")]
Threads = Annotated[
    int | None, Option("Processor threads; PyTorch's choice if not given.", ("--threads",), min=1)
]
Json = Annotated[str | None, json_option('Write the figures as JSON; "-" is stdout.')]
Large = Annotated[bool, Option("The published 512 × 736 network as well.", flags=("--large",))]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """A question adds what it varies."""

    quick: Annotated[
        bool, Option("A first look: about a minute, longer where exports are.", flags=("--quick",))
    ] = False
    threads: Annotated[
        int | None, Option("Of every engine; the physical cores if not given.", min=1, max=1024)
    ] = None
    weights: Annotated[Path, Option("Trained checkpoints; published ones in its published/.")] = (
        Path("weights")
    )
    data: Annotated[Path, Option("Digits set; missing splits are made in --work.")] = Path(
        "data/digits"
    )
    work: Annotated[Path, Option("Where ONNX files and missing digits are made.")] = Path(
        "runs/bench"
    )
    out: Annotated[Path, Option("Where JSON, picture and Markdown are written.")] = Path(
        "runs/bench"
    )
    seconds: Annotated[float | None, Option("Time for the timed rounds.", min=0, max=86400)] = None
    pause: Annotated[
        float | None,
        Option("Idle gap before each turn; some ms if not given.", min=0, max=60_000, metavar="MS"),
    ] = None
    json_file: Annotated[str | None, json_option('Write the JSON here too; "-" is stdout.')] = None
    device: str = CPU
    files: tuple[Path, ...] = ()
    quick_seconds: ClassVar[int] = 60  # of a quick run, but for what cannot be shorter
    tries_device: ClassVar[bool] = True  # before anything is made for it

    def check(self) -> None:
        """Refuse what cannot be measured, before anything is made for it."""
        for name in ("model", "size", "large", "implementation"):
            if self.files and getattr(self, name, None):
                raise InputError(
                    f"--{name} chooses among the bundled models: leave it or the files out"
                )

    @property
    def cores(self) -> int:
        """Processor threads of every engine."""
        from nmsfree_benchmarks.harness.machine import available_cores

        return self.threads or available_cores()

    def timed(self, plan: "Plan") -> "Plan":
        """The plan with the time and the idle gap that were asked for."""
        if self.pause is not None:
            plan = replace(plan, pause=self.pause / 1000)
        return plan if self.seconds is None else replace(plan, seconds=self.seconds)

    def inputs(self) -> Iterator[Path]:
        """Every file that is read: models, weights and pictures."""
        yield from self.files
        for folder in (self.weights, self.data):
            yield from folder.rglob("*")

    def settings(self) -> dict[str, Any]:
        """What result files say of a run that was not made in the usual way."""
        found: dict[str, Any] = {} if self.pause is None else {"pause_ms": self.pause}
        return found if self.device == CPU else found | {"device": self.device}

    def command_line(self, name: str) -> str:
        """What repeats a run of the sub-command, without the paths of this machine."""
        words = [f"nmsfree bench {name}".rstrip()]
        usual = {field.name: field.default for field in fields(self)}
        for field, _, option in options_of(type(self)):
            value = getattr(self, field.name)
            if option is None or value == usual[field.name] or field.name == "json_file":
                continue
            if option.argument:
                words += [path.name for path in value]
                continue
            flag = next(iter(option.flags), f"--{field.name.replace('_', '-')}")
            if isinstance(value, tuple):
                values = [each.name if isinstance(each, Path) else each for each in value]
                words += [f"{flag} {each}" for each in values]
            elif isinstance(value, bool):
                words.append(flag)
            elif not isinstance(value, Path):
                words.append(f"{flag} {value:g}" if isinstance(value, float) else f"{flag} {value}")
        return " ".join(words)
