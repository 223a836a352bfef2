"""`nmsfree train`; what it does once its options are read is in `run.py`."""

import os

import typer

from nmsfree.cli.options import command
from nmsfree_training.cli.options import TrainOptions
from nmsfree_training.config import PRESETS, preset


def _train(options: TrainOptions) -> None:
    """Train a detector, or retrofit one that needs NMS.

    Example: nmsfree train --data data/digits --model fcos_e2e_nano --epochs 40

    Several GPUs: torchrun --nproc-per-node 4 -m nmsfree train --data DIR --device cuda

    Retrofit: nmsfree train --data data/digits --retrofit weights/fcos_rt_nano.safetensors
    """
    if options.list_presets:
        _print_presets()
        return
    if options.data is None:
        raise typer.BadParameter("missing, expected a dataset folder.", param_hint="--data")
    # Threads that wait for others sleep: spinning ones take the processor from those they wait for
    # as soon as anything else runs on the machine. OpenMP reads this when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from nmsfree_training.cli.run import run_training  # brings PyTorch, which the help does without

    if status := run_training(options, options.data):
        raise typer.Exit(status)


def _print_presets() -> None:
    """A table of them on stdout: what they cost, and what they start from."""
    import torch
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from nmsfree_training.model.detector import Fcos
    from nmsfree_training.weights.card import gmac

    table = Table("preset", "heads", "input", "parameters", "GMAC", "starts from", box=box.SIMPLE)
    for name in PRESETS:
        chosen = preset(name)
        with torch.device("meta"):
            network = Fcos(chosen.model)
        # As deployed: with one head.
        parts = (network.backbone, network.fpn, network.heads[network.config.deployed_head])
        count = sum(p.numel() for part in parts for p in part.parameters())
        height, width = chosen.input_size
        table.add_row(
            name,
            "+".join(chosen.model.heads),
            f"{height} × {width}",
            f"{count / 1e6:.2f} M",
            f"{gmac(network, chosen.input_size):.2f}",
            chosen.starts_from,
        )
    table.caption = "80 classes; as deployed, with one head; all start from --init FILE, too"
    Console().print(table)


train = command(_train, TrainOptions)
