"""What `nmsfree train` does once its options are read."""

import logging
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
import typer
from rich.console import Console

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.datasets.formats.folder import load_dataset
from nmsfree.errors import InputError
from nmsfree.files import RUN_LOCK, check_outputs, locked
from nmsfree.options import check_bounds
from nmsfree.text import one_of, shown
from nmsfree_training.cli.options import TrainOptions, apply
from nmsfree_training.cli.presets import recipe_text
from nmsfree_training.config import (
    DEFAULT_MODEL,
    HeadName,
    Preset,
    at_size,
    preset,
    with_enough_steps,
)
from nmsfree_training.data.loader import check_batch
from nmsfree_training.loop.advice import conclude
from nmsfree_training.loop.checkpoints import RECIPE, compare_recipes, describe_recipe
from nmsfree_training.loop.distributed import World, join_world
from nmsfree_training.loop.probe import Setting, Wanted, has_bf16, probe
from nmsfree_training.loop.run_config import Interrupted, RunConfig, StopRequest, stop_on_signals
from nmsfree_training.loop.start import fine_tune, load_imagenet, retrofit
from nmsfree_training.loop.state import LAST, PREVIOUS, load_state
from nmsfree_training.loop.step import PRECISIONS
from nmsfree_training.loop.trainer import Trainer
from nmsfree_training.loop.validate import analyse_best
from nmsfree_training.model.detector import Fcos, fresh_network, start_filter
from nmsfree_training.monitor.callbacks import Callback, Callbacks
from nmsfree_training.monitor.console import ConsoleCallback
from nmsfree_training.monitor.curves import draw_curves
from nmsfree_training.monitor.tensorboard import TensorBoardCallback
from nmsfree_training.weights.imagenet import depth_of, find_imagenet
from nmsfree_training.weights.predict import torch_device


@contextmanager
def _reporting(run: RunConfig, world: World, done: int) -> Iterator[Callback]:
    """Give the run's callback; warnings that are logged meanwhile go through it.

    `done` are the optimizer steps of a run that goes on.
    """
    if not world.main:
        yield Callback()
        return
    callbacks: list[Callback] = [ConsoleCallback(Console(stderr=True))]
    if not run.no_tensorboard:
        callbacks.append(TensorBoardCallback(run.out / "tensorboard", done))
    callback, root = Callbacks(callbacks), logging.getLogger()
    before, root.handlers = root.handlers, [_ToCallback(callback)]
    try:
        yield callback
    finally:
        root.handlers = before
        callback.close()


class _ToCallback(logging.Handler):
    """Shows warnings above the bars instead of across them."""

    def __init__(self, callback: Callback) -> None:
        super().__init__(logging.WARNING)
        self._callback = callback

    def emit(self, record: logging.LogRecord) -> None:
        self._callback.log(f"{record.levelname.lower()}: {record.getMessage()}")


WEIGHT_SOURCES = ("imagenet", "init", "retrofit")
# Options that belong to the checkpoint of a retrofit.
DECIDED = ("head_norm", "frozen_norm", "max_filter", "dedup_iou", "deployed_dedup_iou")


@dataclass(frozen=True)
class Prepared:
    """What a run needs, read and checked."""

    train_set: DetectionDataset
    val_set: DetectionDataset | None
    run: RunConfig
    usual: Preset  # without what options change
    preset: Preset
    network: Fcos
    heads: tuple[HeadName, ...]  # those that are trained
    origin: str  # what the user is told about where the weights come from
    epochs: int | None = None  # that a budget of minutes should allow


def run_training(options: TrainOptions, data: Path) -> int:
    """Train, showing progress; returns the exit status: 1 = some images could not be read."""
    torch_device(options.run.device)  # say first that there is no GPU
    with join_world(options.run.device) as world:
        options = replace(options, init=_bundled(options.init))
        if options.imagenet is not None:
            found = world.on_main(partial(find_imagenet, options.imagenet, lambda *_: None))
            options = replace(options, imagenet=found)
        made = _prepare(options, data, world)
        if options.preview is not None:
            from nmsfree_training.data.pictures import write_preview

            preview = made.train_set, made.preset, options.run.seed, options.preview
            world.on_main(lambda: write_preview(*preview))
            if world.main:
                typer.echo(f"preview: {shown(options.preview)}", err=True)
            return 0
        before, done = world.on_main(lambda: _begun(made.run))
        with stop_on_signals() as stop:  # from here on there are steps to stop at
            made = replace(made, run=replace(made.run, stop=lambda: bool(stop)))
            with _reporting(made.run, world, done) as callback:
                if made.run.out.exists() and world.size == 1:
                    with _owned(made.run, world):
                        pass  # what is refused is refused before the probe, which takes its time
                made = _choose_setting(options, made, before, world, callback)
                trainer = Trainer(
                    made.preset,
                    made.train_set,
                    made.val_set,
                    made.run,
                    network=made.network,
                    heads=made.heads,
                    callback=callback,
                    world=world,
                )
                if made.epochs is not None:
                    trainer.set_epochs(made.epochs)
                try:
                    with _owned(made.run, world):
                        _announce(callback, trainer, made)
                        title = f"{made.preset.model.name} on {data.name} {options.split}"
                        return _fit(trainer, callback, stop, title)
                finally:
                    trainer.close()


def _begun(run: RunConfig) -> tuple[dict[str, Any], int]:
    """Recipe and optimizer steps of the run that is to go on; {} and 0 of a new one."""
    if not run.resume:
        return {}, 0
    state, _ = load_state(run.out)
    return state.recipe, int(state.position["iteration"])


def _bundled(given: Path | None) -> Path | None:
    """The file of bundled weights where their name is given."""
    file = Path("weights") / f"{given}.safetensors"
    if given is None or given.exists() or given.suffix or given.name != str(given):
        return given
    if not file.is_file():
        known = sorted(path.stem for path in file.parent.glob("*.safetensors"))
        raise InputError(f"{given}: no such file, expected a file or {one_of(known, given)}")
    return file


def _prepare(options: TrainOptions, data: Path, world: World) -> Prepared:
    """Read everything on all processes; what is wrong is said once."""
    with world.together():
        _check(options)
        train_set = load_dataset(data, options.split)
        val_set = load_dataset(data, options.val) if options.val else None
        usual, chosen, network, heads, origin = _start(options, train_set)
        if options.recipe.epochs is None and options.run.minutes is None:
            chosen, fewer = with_enough_steps(chosen, len(train_set)), chosen.train.epochs
            if chosen.train.epochs > fewer:
                origin += (
                    f"; {chosen.train.epochs} epochs instead of {fewer}, for "
                    f"{chosen.train.min_steps:,} steps (--epochs or --min-steps decide otherwise)"
                )
        run = _run_config(options, chosen)
        names = (LAST, PREVIOUS, "last.safetensors", "best.safetensors", "metrics.jsonl")
        outputs = [options.preview] if options.preview else [run.out / name for name in names]
        inputs = [*train_set.files(), *(val_set.files() if val_set else ())]
        check_outputs(outputs, [options.imagenet, options.init, options.retrofit, *inputs])
        check_batch(train_set, chosen, world.size)
        return Prepared(train_set, val_set, run, usual, chosen, network, heads, origin)


def _fit(trainer: Trainer, callback: Callback, stop: StopRequest, title: str) -> int:
    folder, started = trainer.run.out, time.monotonic()
    try:
        trainer.fit()
        analysis = analyse_best(trainer.validator, folder) if trainer.validator else None
        conclusion = conclude(trainer, analysis) if trainer.validator else []
    except Interrupted as interrupted:
        if trainer.world.main:
            draw_curves(folder, title)
        words = [*sys.argv[1:], *["--resume"] * ("--resume" not in sys.argv)]
        again = f"go on with: {shlex.join(['nmsfree', *words])}"
        if trainer.world.size > 1:
            again = "to go on, start it as before and add --resume"
        callback.log(f"{interrupted}; {again}")
        return stop.exit_status
    except torch.OutOfMemoryError as error:
        if trainer.world.size > 1:
            raise  # the others are still at it: the launcher must see this one fail
        recipe = trainer.preset.train
        images = recipe.batch_size // recipe.accumulate
        raise InputError(
            f"the GPU's memory does not suffice for {images} images at once: give "
            f"--accumulate {2 * recipe.accumulate} or more, which computes the same "
            f"batch in parts, or a smaller --batch-size ({str(error).splitlines()[0]})"
        ) from None
    world = trainer.world
    failed = [item for part in world.gather(trainer.position.failed) for item in part.items()]
    if trainer.world.main:
        draw_curves(folder, title)
        minutes = (time.monotonic() - started) / 60
        score = f", AP {analysis.metrics.ap * 100:.1f}" if analysis else ""
        callback.log(f"done in {minutes:.1f} min{score}: {folder / 'best.safetensors'}")
        for line in conclusion:
            callback.log(line)
        for path, reason in failed:
            callback.log(f"left out: {path}: {reason}")
    # A launcher of several processes takes any other status for a crash.
    return 1 if failed and world.size == 1 else 0


def _check(options: TrainOptions) -> None:
    if options.precision not in (None, *PRECISIONS):
        raise InputError(f"precision is {options.precision!r}, expected {', '.join(PRECISIONS)}")
    given = [f"--{name}" for name in WEIGHT_SOURCES if getattr(options, name) is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are given, expected one origin of the weights")
    if options.unfreeze and options.retrofit is None:
        raise InputError("--unfreeze is given without --retrofit, which it belongs to")
    decided = {"model": options.model} | {name: getattr(options.recipe, name) for name in DECIDED}
    for name, value in decided.items():
        if options.retrofit is not None and value is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is given with --retrofit, but the checkpoint decides "
                "it: leave it out"
            )
    check_bounds(options.run)


def _choose_setting(
    options: TrainOptions, made: Prepared, before: dict[str, Any], world: World, callback: Callback
) -> Prepared:
    """Threads for this process; loader processes, precision and epochs of the run.

    A run that goes on keeps what it computed with, by its recipe `before`.

    Raises:
        CheckpointError: it was started with another recipe.
    """
    run, epochs = made.run, None
    wanted = Wanted(options.threads, options.workers, options.precision)
    if run.resume:
        threads = wanted.threads or before.get("machine.threads")
        precision = wanted.precision or str(before["precision"])
        wanted = replace(wanted, threads=threads, precision=precision)
        run = replace(run, precision=precision)
        now = describe_recipe(made.preset, made.heads, run, made.train_set, world)
        world.on_main(lambda: compare_recipes(run.out, before, now))
    setting = Setting(
        wanted.threads or torch.get_num_threads(),
        run.workers if wanted.workers is None else wanted.workers,
        wanted.precision or run.precision,
    )
    known = options.no_probe or world.size > 1 or None not in vars(wanted).values()
    if not known or (run.minutes is not None and world.size == 1):
        found = probe(made.network, made.preset, made.heads, made.train_set, world.device, wanted)
        setting = found.best
        callback.log(str(found))
        if run.minutes is not None:  # a first guess: the trainer follows the clock
            epochs = max(1, round(60 * run.minutes * found.images_per_second / len(made.train_set)))
    torch.set_num_threads(setting.threads)
    cv2.setNumThreads(setting.threads if setting.workers == 0 else 1)
    machine = f"{platform.machine()}, {setting.threads} threads, {world.device}"
    said = run.provenance | {"machine": machine, "setting": str(setting)}
    run = replace(run, precision=setting.precision, workers=setting.workers, provenance=said)
    return replace(made, run=run, epochs=epochs)


def _start(
    options: TrainOptions, train_set: DetectionDataset
) -> tuple[Preset, Preset, Fcos, tuple[HeadName, ...], str]:
    """The usual preset, that of the run, network, heads and origin, see `Prepared`."""
    names = train_set.class_names
    if options.retrofit is not None:
        made = retrofit(options.retrofit, names, options.unfreeze, options.recipe.frozen_stages)
        chosen = apply(options.recipe, at_size(made.preset, options.size or made.preset.input_size))
        start_filter(made.network, chosen.train.dedup_start)
        trained = sum(p.numel() for p in made.network.parameters() if p.requires_grad)
        total = sum(p.numel() for p in made.network.parameters())
        message = f"retrofit of {options.retrofit}: {trained:,} of {total:,} weights are trained"
        return made.preset, chosen, made.network, made.heads, message
    model = DEFAULT_MODEL if options.model is None else options.model
    usual = preset(model, len(names))
    depth = options.imagenet and depth_of(options.imagenet)
    if depth and usual.model.width == 64:  # the presets are for ResNet-18
        name = usual.model.name.replace("_r18", f"_r{depth}")
        usual = replace(usual, model=replace(usual.model, name=name, depth=depth))
    chosen = apply(options.recipe, at_size(usual, options.size or usual.input_size))
    network = fresh_network(chosen, options.run.seed)
    message = "weights: random"
    if chosen.model.frozen_stages or chosen.model.frozen_norm:
        message += (
            f", but {model} is made for a pretrained backbone: its norms and first parts are frozen"
            " and stay as they are; give --imagenet resnet18 or --init FILE"
        )
    if options.imagenet is not None:
        load_imagenet(network, options.imagenet)
        message = f"backbone from {options.imagenet}"
    if options.init is not None:
        loaded = fine_tune(network, options.init, names)
        chosen = apply(options.recipe, at_size(usual, options.size or loaded.size))
        message = f"weights from {options.init}: {loaded}"
        if options.recipe.learning_rate is None:
            rate = chosen.train.learning_rate
            message += (
                f" (learning rate {rate:g}, as from scratch; for a few epochs give "
                f"--learning-rate {rate / 10:g})"
            )
    return usual, chosen, network, chosen.model.heads, message


def _run_config(options: TrainOptions, preset: Preset) -> RunConfig:
    origin = options.retrofit or options.init or options.imagenet
    name = Path(preset.model.name).name  # of a checkpoint: may be anything
    folder = Path("runs/train") / (name + ("_retrofit" if options.retrofit else ""))
    return replace(
        options.run,
        out=options.out or folder,
        provenance={
            "command": shlex.join(["nmsfree", *sys.argv[1:]]),
            "seed": str(options.run.seed),
            "torch": torch.__version__,
            **({"origin": str(origin)} if origin else {}),
        },
    )


@contextmanager
def _owned(run: RunConfig, world: World) -> Iterator[None]:
    """Hold the run's folder for one training, whatever the number of its processes."""
    with ExitStack() as stack:

        def own() -> None:
            stack.enter_context(locked(run.out / RUN_LOCK, patience=0))
            if run.resume:
                return
            if any((run.out / name).exists() for name in (LAST, PREVIOUS)):
                raise InputError(
                    f"{run.out} holds a finished or interrupted run: go on with --resume, or "
                    "choose --out"
                )
            if (run.out / "last.safetensors").exists():
                raise InputError(
                    f"{run.out} holds the checkpoints of a run, and no state to go on from: "
                    "choose --out"
                )

        world.on_main(own)
        yield


def _announce(callback: Callback, trainer: Trainer, made: Prepared) -> None:
    preset, run, objects = trainer.preset, trainer.run, trainer.objects
    world, classes = trainer.world, len(trainer.train_set.class_names)
    recipe, images, batch = preset.train, objects.images, trainer.batch_size
    processes = f" × {world.size} processes" if world.size > 1 else ""
    length = "" if run.minutes is None else f"{run.minutes:g} minutes, about "
    callback.log(
        f"{preset.model.name}: {images} images, {classes} class{'es' * (classes != 1)}, "
        f"{length}{recipe.epochs} epochs of batch {batch} on {world.device.type}{processes}, "
        f"{run.precision}, seed {run.seed} → {run.out}"
    )
    callback.log(str(objects))
    if advice := objects.advice():
        callback.log(advice)
    sides, side = recipe.short_sides, min(preset.input_size)
    if sides and not min(sides) <= side <= max(sides):
        callback.log(
            f"warning: trained at short sides of {min(sides)} to {max(sides)} px, but evaluated at "
            f"{preset.input_size[0]} × {preset.input_size[1]}: --size sets all"
        )
    if objects.absent:
        names = ", ".join(objects.absent[:5]) + (", …" if len(objects.absent) > 5 else "")
        callback.log(
            f"warning: {len(objects.absent)} of {classes} classes have no object to train on, and "
            f"will not be found: {shown(names)}"
        )
    if batch < recipe.batch_size:
        callback.log(
            f"a batch of {recipe.batch_size} is more than there is: all {images} images are one"
        )
    if images % batch:
        callback.log(
            f"{images % batch} of {images} images do not fill a batch, and are left out of an "
            "epoch, others in each"
        )
    callback.log(f"{recipe_text(preset, made.usual)}; all of it is in {run.out / RECIPE}")
    if not run.resume:
        callback.log(made.origin)
    if run.precision == "bf16" and not has_bf16(world.device):
        what, faster = ("GPU", "fp16") if world.device.type == "cuda" else ("processor", "fp32")
        callback.log(
            f"this {what} has no bf16 arithmetic: PyTorch emulates it, several times slower than "
            f"--precision {faster}"
        )
