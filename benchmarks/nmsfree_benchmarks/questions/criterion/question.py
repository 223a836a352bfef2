"""Assignment and losses as a share of a training step.

Example: nmsfree bench criterion --batch 4
"""

from dataclasses import dataclass
from typing import Annotated

from rich.console import Console

from nmsfree.errors import InputError
from nmsfree.files import check_outputs, write_json
from nmsfree.options import Option
from nmsfree_benchmarks.harness.options import Json, Threads
from nmsfree_training.config import preset

PRESETS = ("fcos_rt_r18_3x", "fcos_e2e_r18_3x")


@dataclass(frozen=True)
class Options:
    batch: Annotated[int, Option("Images; 16 take about 10 GB.", min=1, max=65536)] = 16
    size: Annotated[tuple[int, int], Option("Size of the images in pixels.", metavar="H W")] = (
        512,
        736,
    )
    objects: Annotated[int, Option("Objects in every image.", min=1, max=10_000)] = 50
    rounds: Annotated[int, Option("Steps that are timed.", min=1, max=1_000_000)] = 3
    threads: Threads = None
    json_file: Json = None

    def __post_init__(self) -> None:
        if not all(32 <= side <= 16384 for side in self.size):
            height, width = self.size
            raise InputError(f"size is {height} × {width}, expected sides of 32 … 16384 pixels")


def main(options: Options) -> None:
    from nmsfree_benchmarks.harness.machine import describe
    from nmsfree_benchmarks.questions.criterion.step import Shape, measure_step, summary  # PyTorch

    check_outputs([options.json_file])
    console = Console(stderr=options.json_file == "-", highlight=False)
    shape, costs = Shape(options.batch, options.objects, options.size), []
    for name in PRESETS:
        with console.status(f"{name}: {options.rounds} steps of batch {options.batch}"):
            cost = measure_step(preset(name), shape, options.rounds, options.threads)
        console.print(summary(cost))
        costs.append(cost)
    environment = describe(costs[0]["threads"])
    write_json(options.json_file, {"criterion": costs, "environment": environment})
