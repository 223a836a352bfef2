"""`nmsfree train`; its options are in `options.py`, `run.py` carries it out."""

import typer

from nmsfree.cli.options import command
from nmsfree_training.cli.options import TrainOptions


def _train(options: TrainOptions) -> None:
    """Train a detector, or retrofit one that needs NMS.

    Example: nmsfree train --data data/digits --model fcos_e2e_nano --epochs 40

    Several GPUs: torchrun --nproc-per-node 4 -m nmsfree train --data DIR --device cuda

    Retrofit: nmsfree train --data data/digits --retrofit weights/fcos_rt_nano.safetensors
    """
    from nmsfree_training.cli.run import run_training  # brings PyTorch

    if status := run_training(options):
        raise typer.Exit(status)


train = command(_train, TrainOptions)
