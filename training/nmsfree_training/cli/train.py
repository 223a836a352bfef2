"""`nmsfree train`."""

from pathlib import Path
from typing import Annotated

import typer

DATA, WEIGHTS = "Data and output", "Where the weights start"
EPOCHS = 1_000_000  # more of them are a slip of the finger
HEADS = "NMS-free head (instead of the preset's)"
RECIPE, PICTURES = "Recipe (instead of the preset's)", "Augmentation (instead of the preset's)"
MACHINE = "Machine"


def _recipe(help: str, **kind: object) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        help=help,
        rich_help_panel=RECIPE,
        **kind,  # type: ignore[arg-type]
    )
    return option


def _picture(help: str, **kind: object) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        help=help,
        rich_help_panel=PICTURES,
        **kind,  # type: ignore[arg-type]
    )
    return option


def _heads(help: str, **kind: object) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        help=help,
        rich_help_panel=HEADS,
        **kind,  # type: ignore[arg-type]
    )
    return option


def train(
    data: Annotated[
        Path,
        typer.Option(help="Dataset folder: COCO, YOLO or Pascal VOC.", rich_help_panel=DATA),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Preset; fcos_e2e_nano if not given.", rich_help_panel=WEIGHTS),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder; runs/train/MODEL if not given.", rich_help_panel=DATA),
    ] = None,
    split: Annotated[str, typer.Option(help="Split to train on.", rich_help_panel=DATA)] = "train",
    val: Annotated[
        str, typer.Option(help="Split for AP; '' = none.", rich_help_panel=DATA)
    ] = "val",
    eval_every: Annotated[
        int,
        typer.Option(
            min=0, max=EPOCHS, help="Epochs between AP; 0 = at the end.", rich_help_panel=DATA
        ),
    ] = 1,
    keep_every: Annotated[
        int,
        typer.Option(
            min=0,
            max=EPOCHS,
            help="Epochs between checkpoints that are kept; 0 = none.",
            rich_help_panel=DATA,
        ),
    ] = 0,
    save_minutes: Annotated[
        float,
        typer.Option(
            min=0,
            max=100_000,
            help="Minutes between saves within an epoch; 0 = every step.",
            rich_help_panel=DATA,
        ),
    ] = 10.0,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on exactly where it was cut.", rich_help_panel=DATA),
    ] = False,
    preview: Annotated[
        Path | None,
        typer.Option(
            help="Only write a picture of what the network would see.", rich_help_panel=DATA
        ),
    ] = None,
    no_tensorboard: Annotated[
        bool,
        typer.Option("--no-tensorboard", help="Write nothing for it.", rich_help_panel=DATA),
    ] = False,
    imagenet: Annotated[
        Path | None,
        typer.Option(help="ResNet weights with torchvision's names.", rich_help_panel=WEIGHTS),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Fine-tune a checkpoint; its classes may differ.", rich_help_panel=WEIGHTS
        ),
    ] = None,
    retrofit: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint with an o2m head: train only a new o2o head, so that it needs no NMS.",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    unfreeze: Annotated[
        bool,
        typer.Option(
            "--unfreeze", help="With --retrofit: train everything.", rich_help_panel=WEIGHTS
        ),
    ] = False,
    epochs: Annotated[int | None, _recipe("Passes over the data.", min=1, max=EPOCHS)] = None,
    batch_size: Annotated[
        int | None, _recipe("Images of a step, all processes together.", min=1, max=65536)
    ] = None,
    accumulate: Annotated[
        int | None, _recipe("Cut each batch into parts, to save memory.", min=1, max=65536)
    ] = None,
    optimizer: Annotated[str | None, _recipe("sgd or adamw.")] = None,
    learning_rate: Annotated[
        float | None, _recipe("Peak rate; for SGD per 16 images of a batch.")
    ] = None,
    weight_decay: Annotated[float | None, _recipe("Decay of the weights.")] = None,
    schedule: Annotated[str | None, _recipe("step or cosine.")] = None,
    milestones: Annotated[
        str | None, _recipe("Epochs after which a step schedule divides by ten.", metavar="24,33")
    ] = None,
    warmup: Annotated[int | None, _recipe("Steps of linear warm-up.", min=0, max=2**31 - 1)] = None,
    clip_norm: Annotated[float | None, _recipe("Largest gradient norm; 0 = off.")] = None,
    ema: Annotated[float | None, _recipe("Decay of averaged weights, as 0.999; 0 = off.")] = None,
    freeze: Annotated[
        int | None,
        _recipe("Backbone parts not trained: 1 = stem, 2 = and layer1 … 5.", min=0, max=5),
    ] = None,
    head_norm: Annotated[str | None, _recipe("group, batch or batch_per_level.")] = None,
    flip: Annotated[float | None, _picture("Probability of a mirror image.")] = None,
    short_sides: Annotated[
        str | None, _picture("Short sides to draw from, in pixels.", metavar="256,288,…")
    ] = None,
    long_side: Annotated[int | None, _picture("Limit of the long side.", min=32, max=16384)] = None,
    scale: Annotated[
        tuple[float, float] | None, _picture("Random zoom.", metavar="LOW HIGH")
    ] = None,
    crop: Annotated[
        float | None, _picture("Random crop, share of the input's side; 0 = off.")
    ] = None,
    color_jitter: Annotated[float | None, _picture("Strength of random colours, 0 … 1.")] = None,
    mosaic: Annotated[float | None, _picture("Probability of four images in one.")] = None,
    mixup: Annotated[float | None, _picture("Probability of two images blended.")] = None,
    plain_epochs: Annotated[
        int | None, _picture("Last epochs without mosaic and mixup.", min=0, max=EPOCHS)
    ] = None,
    o2o_gradient: Annotated[
        float | None, _heads("Share of its gradient that trains backbone and neck too, 0 … 1.")
    ] = None,
    o2o_matching: Annotated[str | None, _heads("argmin or hungarian.")] = None,
    o2o_quality: Annotated[
        tuple[float, float] | None,
        _heads("Match by score^A · IoU^B; 0 0 = the published cost.", metavar="A B"),
    ] = None,
    o2m_quality: Annotated[
        tuple[float, float] | None, _heads("The same for the one-to-many head.", metavar="A B")
    ] = None,
    o2m_weight_end: Annotated[
        float | None, _heads("The one-to-many losses' weight falls from 1 to this.")
    ] = None,
    o2o_start: Annotated[
        float | None, _heads("Share of the epochs that train the one-to-many head alone.")
    ] = None,
    max_filter: Annotated[
        str | None, _heads("3-D max filter: none, or on logits or features.")
    ] = None,
    rival_iou: Annotated[
        float | None,
        _heads("Cells give way to better neighbours whose boxes agree by this IoU; 0 = off."),
    ] = None,
    deployed_rival_iou: Annotated[
        float | None,
        _heads("The same once trained: lower leaves fewer duplicates, and fewer close pairs."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Same seed, same run.", rich_help_panel=MACHINE)
    ] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.", rich_help_panel=MACHINE)] = "cpu",
    precision: Annotated[
        str,
        typer.Option(help="fp32, or bf16 or fp16 for the network.", rich_help_panel=MACHINE),
    ] = "fp32",
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Processor threads.", rich_help_panel=MACHINE),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(min=0, max=128, help="Processes that load images.", rich_help_panel=MACHINE),
    ] = 2,
) -> None:
    """Train a detector, or retrofit one that needs NMS.

    Example: nmsfree train --data data/digits --model fcos_e2e_nano --epochs 40

    Several GPUs: torchrun --nproc-per-node 4 -m nmsfree train --data DIR --device cuda

    Retrofit: nmsfree train --data data/digits --retrofit weights/fcos_rt_nano.safetensors
    """
    from nmsfree_training.cli.recipe import RecipeOptions, whole_numbers
    from nmsfree_training.cli.run import TrainOptions, run_training

    recipe = RecipeOptions(
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        optimizer=optimizer,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        schedule=schedule,
        milestones=whole_numbers("--milestones", milestones),
        warmup_iterations=warmup,
        clip_norm=clip_norm,
        ema=ema,
        head_norm=head_norm,
        frozen_stages=freeze,
        flip=flip,
        short_sides=whole_numbers("--short-sides", short_sides),
        long_side=long_side,
        scale=scale,
        crop=crop,
        color_jitter=color_jitter,
        mosaic=mosaic,
        mixup=mixup,
        plain_epochs=plain_epochs,
        o2o_gradient=o2o_gradient,
        o2o_matching=o2o_matching,
        o2o_quality=o2o_quality,
        o2m_quality=o2m_quality,
        o2m_weight_end=o2m_weight_end,
        o2o_start=o2o_start,
        max_filter=max_filter,
        rival_iou=rival_iou,
        deployed_rival_iou=deployed_rival_iou,
    )
    options = TrainOptions(
        data=data,
        model=model,
        recipe=recipe,
        out=out,
        split=split,
        val=val,
        seed=seed,
        device=device,
        precision=precision,
        threads=threads,
        workers=workers,
        eval_every=eval_every,
        keep_every=keep_every,
        save_minutes=save_minutes,
        imagenet=imagenet,
        init=init,
        retrofit=retrofit,
        unfreeze=unfreeze,
        preview=preview,
        tensorboard=not no_tensorboard,
        resume=resume,
    )
    status = run_training(options)
    if status:
        raise typer.Exit(status)
