"""What `nmsfree bench training` measures: loading, a training step, and the criterion in it."""

import json
from pathlib import Path

import typer
from rich.console import Console

from nmsfree.data.load import load_dataset
from nmsfree.files import write_atomic
from nmsfree_training.config import preset
from nmsfree_training.predict import torch_device
from nmsfree_training.step_cost import measure_step
from nmsfree_training.training_bench import bench_training

CRITERION_PRESETS = ("fcos_rt_r18_3x", "fcos_e2e_r18_3x")


def measure(
    data: Path,
    split: str,
    model: str,
    device: str,
    precision: str,
    threads: int | None,
    seconds: float,
    json_file: str | None,
) -> None:
    """Measure loading beside training, print, and write JSON where asked."""
    dataset = load_dataset(data, split)
    chosen = preset(model, len(dataset.class_names))
    console = Console(stderr=json_file == "-", highlight=False)
    with console.status("loading images, then training on them"):
        found = bench_training(
            dataset,
            chosen,
            seconds=seconds,
            device=torch_device(device),
            precision=precision,
            threads=threads,
        )
    console.print(found.summary())
    report = {"model": model, "data": str(data), "split": split, "batch": chosen.train.batch_size}
    _write(report | found.to_json(), json_file)


def measure_criterion(
    batch: int,
    size: tuple[int, int],
    objects: int,
    rounds: int,
    threads: int | None,
    json_file: str | None,
) -> None:
    """Measure the criterion's share of a step of the published networks, print and write."""
    console = Console(stderr=json_file == "-", highlight=False)
    costs = []
    for name in CRITERION_PRESETS:
        with console.status(f"{name}: {rounds} steps of batch {batch}"):
            cost = measure_step(
                preset(name),
                batch=batch,
                size=size,
                objects=objects,
                rounds=rounds,
                threads=threads,
            )
        console.print(cost.summary())
        costs.append(cost.to_json())
    _write({"criterion": costs}, json_file)


def _write(report: dict[str, object], json_file: str | None) -> None:
    text = json.dumps(report, indent=2) + "\n"
    if json_file == "-":
        typer.echo(text, nl=False)
    elif json_file is not None:
        write_atomic(Path(json_file), text.encode())
