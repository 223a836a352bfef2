"""What `nmsfree bench training` measures: loading, a training step, and the criterion in it."""

from pathlib import Path

from rich.console import Console

from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.files import check_outputs, write_json
from nmsfree_benchmarks.training.speed import bench_training
from nmsfree_benchmarks.training.step_cost import measure_step
from nmsfree_training.config import preset
from nmsfree_training.weights.predict import torch_device

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
    check_outputs([json_file], data.rglob("*"))
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
    write_json(json_file, report | found.to_json())


def measure_criterion(
    batch: int,
    size: tuple[int, int],
    objects: int,
    rounds: int,
    threads: int | None,
    json_file: str | None,
) -> None:
    """Measure the criterion's share of a step of the published networks, print and write."""
    check_outputs([json_file])
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
    write_json(json_file, {"criterion": costs})
