"""What `nmsfree train` does once its options are read."""

import math
import platform
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nmsfree.data.coco import DetectionDataset, load_coco
from nmsfree.errors import InputError
from nmsfree_training import train
from nmsfree_training.config import Preset, preset
from nmsfree_training.predict import torch_device


@dataclass(frozen=True)
class TrainOptions:
    """The options of `nmsfree train`, see there."""

    data: Path
    model: str
    out: Path | None
    split: str
    val: str
    epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    head_norm: str | None
    seed: int
    device: str
    precision: str
    threads: int | None
    workers: int
    eval_every: int
    imagenet: Path | None
    resume: bool


def run_training(options: TrainOptions) -> None:
    """Train, showing progress; writes checkpoints and metrics into the run's folder."""
    console = Console(stderr=True)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    train_set = load_coco(options.data, options.split)
    val_set = load_coco(options.data, options.val) if options.val else None
    chosen = choose_preset(options, train_set)
    out = options.out or Path("runs/train") / options.model
    if not options.resume and (out / "last.safetensors").exists():
        raise InputError(
            f"{out} holds a finished or interrupted run: go on with --resume, or choose --out"
        )
    run = train.RunConfig(
        out=out,
        device=torch_device(options.device),
        seed=options.seed,
        workers=options.workers,
        precision=options.precision,
        evaluate_every=options.eval_every,
        resume=options.resume,
        imagenet=options.imagenet,
        provenance=_provenance(options),
    )
    console.print(
        f"{options.model}: {len(train_set.samples)} images, {len(train_set.class_names)} classes, "
        f"{chosen.train.epochs} epochs of batch {chosen.train.batch_size} on {options.device}, "
        f"{options.precision}, seed {options.seed} → {out}"
    )
    started = time.monotonic()
    metrics = _fit(chosen, train_set, val_set, run, console)
    minutes = (time.monotonic() - started) / 60
    score = f", AP {metrics['AP'] * 100:.1f}" if metrics else ""
    console.print(f"done in {minutes:.1f} min{score}: {out / 'best.safetensors'}")


def choose_preset(options: TrainOptions, train_set: DetectionDataset) -> Preset:
    """Return the preset with the options that replace its values."""
    if options.precision not in ("fp32", "bf16"):
        raise InputError(f"precision is {options.precision!r}, expected fp32 or bf16")
    if options.head_norm not in (None, "group", "batch", "batch_per_level"):
        raise InputError(
            f"head norm is {options.head_norm!r}, expected group, batch or batch_per_level"
        )
    rate = options.learning_rate
    if rate is not None and not 0 < rate < math.inf:
        raise InputError(f"learning rate is {rate}, expected a number above 0")
    chosen = preset(options.model, len(train_set.class_names))
    recipe = {
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
    }
    given = {k: v for k, v in recipe.items() if v is not None}
    model = chosen.model
    if options.head_norm is not None:
        model = replace(model, head_norm=options.head_norm)  # type: ignore[arg-type]
    return replace(chosen, train=replace(chosen.train, **given), model=model)  # type: ignore[arg-type]


def _provenance(options: TrainOptions) -> dict[str, str]:
    return {
        "command": shlex.join(["nmsfree", *sys.argv[1:]]),
        "seed": str(options.seed),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {options.device}",
    }


def _fit(
    chosen: Preset,
    train_set: DetectionDataset,
    val_set: DetectionDataset | None,
    run: train.RunConfig,
    console: Console,
) -> dict[str, float]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("epoch 1", total=None, losses="")

        def on_step(step: train.Progress) -> None:
            losses = " ".join(f"{k} {v:.3f}" for k, v in step.losses.items())
            bar.update(
                task,
                description=f"epoch {step.epoch + 1}/{chosen.train.epochs}",
                completed=step.epoch * step.steps + step.step,
                total=chosen.train.epochs * step.steps,
                losses=f"{losses} lr {step.learning_rate:.2g}",
            )

        def on_epoch(record: dict[str, float]) -> None:
            score = f", AP {record['AP'] * 100:.1f}" if "AP" in record else ""
            console.print(
                f"epoch {record['epoch']}: loss {record['loss']:.3f}{score}, "
                f"{record['seconds']:.0f} s"
            )

        trainer = train.Trainer(chosen, train_set, val_set, run, on_step, on_epoch)
        return trainer.fit()
