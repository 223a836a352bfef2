"""`nmsfree train`."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    data: Annotated[Path, typer.Option(help="Dataset folder with annotations/instances_*.json.")],
    model: Annotated[
        str, typer.Option(help="Preset, for example fcos_e2e_nano.")
    ] = "fcos_e2e_nano",
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/train/MODEL if not given.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    val: Annotated[str, typer.Option(help="Split for AP; '' = none.")] = "val",
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the preset's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Instead of the preset's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Instead of the preset's.")] = None,
    head_norm: Annotated[
        str | None, typer.Option(help="group, batch or batch_per_level, instead of the preset's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same run.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    precision: Annotated[str, typer.Option(help="fp32, or bf16 for the network.")] = "fp32",
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 2,
    eval_every: Annotated[int, typer.Option(min=0, help="Epochs between AP; 0 = at the end.")] = 1,
    imagenet: Annotated[
        Path | None, typer.Option(help="ResNet weights with torchvision's names.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last epoch.")] = False,
) -> None:
    """Train a detector on a COCO-format dataset.

    Example: nmsfree train --data data/digits --model fcos_e2e_nano --epochs 40
    """
    options = dict(locals())  # exactly the parameters above
    from nmsfree_training.train_cli import TrainOptions, run_training

    run_training(TrainOptions(**options))
