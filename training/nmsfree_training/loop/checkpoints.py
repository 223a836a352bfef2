"""The files of a run: its state, which it goes on from, its checkpoints, and its records."""

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.errors import CheckpointError, NmsfreeError
from nmsfree.files import write_atomic, write_json
from nmsfree.text import shown
from nmsfree_training.config import HeadName, Preset
from nmsfree_training.loop.distributed import World
from nmsfree_training.loop.run_config import RunConfig
from nmsfree_training.loop.state import (
    Position,
    TrainState,
    load_state,
    quarantine_damaged,
    save_state,
)
from nmsfree_training.loop.step import Ema
from nmsfree_training.model.detector import Fcos
from nmsfree_training.monitor.curves import parse_record
from nmsfree_training.weights.checkpoint import Checkpoint, save_checkpoint

EPOCHS = "train.epochs"
WHOLE = 1000  # pictures whose bytes are compared
MISSING = "........"  # in place of a checksum
# May change when a run goes on.
MINUTES = "minutes"
FOLLOW_EPOCHS = (EPOCHS, "train.milestones", "train.plain_epochs", "train.min_steps")
RECIPE = "recipe.json"
DATA = "data"  # compared image by image, and with it what the next two say
IMAGES, ANNOTATIONS = "images", "annotations"
MACHINE = "machine."  # may change, but the weights are then not bit for bit the same
METRICS = "metrics.jsonl"


@dataclass
class CheckpointManager:
    """Writes and reads the files of one run."""

    folder: Path
    # preset, train_set, provenance: go into every checkpoint.
    preset: Preset
    train_set: DetectionDataset
    provenance: dict[str, str]
    recipe: dict[str, Any]  # what must not change within a run, see `describe_recipe`
    # network, optimizer, scaler, ema: what is saved, and changed in place when a run goes on.
    network: Fcos
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Ema | None
    world: World

    def checkpoint(
        self, state: Mapping[str, Tensor], provenance: dict[str, str] | None = None
    ) -> Checkpoint:
        """These weights with all that is needed to use them."""
        return Checkpoint(
            self.preset.model,
            self.preset.input_size,
            self.train_set.class_names,
            self.train_set.category_ids,
            state,
            self.provenance | (provenance or {}),
        )

    def write_epoch(
        self, record: dict[str, float], metrics: dict[str, float], best: bool, keep_every: int
    ) -> None:
        """Write the checkpoints that an epoch leaves, and its line in `metrics.jsonl`.

        `metrics` are of its evaluation, if there was one; `keep_every` are the epochs between
        checkpoints that stay, 0 = none.
        """
        epoch = int(record["epoch"])
        names = ["last"] + ["best"] * best
        if keep_every and epoch % keep_every == 0:
            names.append(f"epoch_{epoch:04d}")
        self.write_weights(names, epoch, metrics)
        with (self.folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write_weights(self, names: Iterable[str], epoch: int, metrics: dict[str, float]) -> None:
        """Write what would be deployed after an epoch, 0 = untrained, under each of these names."""
        provenance = {"epoch": str(epoch)}
        if metrics:
            provenance["AP"] = f"{metrics['AP']:.4f}"
        state = self.network.state_dict() if self.ema is None else self.ema.state
        for name in names:
            path = self.folder / f"{name}.safetensors"
            save_checkpoint(self.checkpoint(state, provenance), path)

    def set_epochs(self, preset: Preset) -> None:
        """Take note of another number of epochs, which a budget of minutes decides."""
        recipe = preset.train
        self.recipe |= {
            EPOCHS: recipe.epochs,
            "train.milestones": list(recipe.milestones),
            "train.plain_epochs": recipe.plain_epochs,
        }

    def write_recipe(self) -> None:
        """Write what the run computes with, as JSON."""
        said = {name: value for name, value in self.recipe.items() if name != DATA}
        write_json(self.folder / RECIPE, said)

    def forget_after(self, epoch: int) -> None:
        """Drop records of epochs that are trained again, and what a kill left of a line."""
        path = self.folder / METRICS
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        records = ((line, parse_record(line)) for line in lines)
        kept = [line + "\n" for line, record in records if record and record["epoch"] <= epoch]
        write_atomic(path, "".join(kept).encode())

    def save(self, position: Position) -> None:
        """Write the state; all processes call it together.

        Raises:
            NmsfreeError: it cannot be written, or a weight is not finite.
        """
        self.world.on_main(lambda: self._write(position))

    def _write(self, position: Position) -> None:
        weights = self.network.state_dict()
        for name, value in weights.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise NmsfreeError(
                    f"{name} holds values that are not finite: nothing was saved, the state "
                    "before is kept; lower --learning-rate and go on with --resume"
                )
        state = TrainState(
            recipe=self.recipe,
            position=vars(position),
            network=weights,
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            ema=None if self.ema is None else self.ema.state,
        )
        save_state(state, self.folder)

    def load(self) -> tuple[Position, list[str]]:
        """Go on from the last state; returns where it was and what the user should know.

        Raises:
            CheckpointError: there is none, or the run was started with another recipe.
        """
        state, messages = self.world.on_main(self._read)
        try:
            self.network.load_state_dict(state.network)
            self.optimizer.load_state_dict(state.optimizer)
            self.scaler.load_state_dict(state.scaler)
            if self.ema is not None and state.ema is not None:
                self.ema.load(state.ema)
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.folder}: its state does not fit this network ({shown(error)}): start a new "
                f"run from the weights with --init {self.folder / 'last.safetensors'}"
            ) from None
        return Position(**state.position), messages

    def _read(self) -> tuple[TrainState, list[str]]:
        state, warning = load_state(self.folder)
        others = _compare_data(self.folder, state.recipe[DATA], self.recipe[DATA])
        changes = compare_recipes(self.folder, state.recipe, self.recipe)
        if warning is not None:
            # The next save would put it in the place of the one that is good.
            quarantine_damaged(self.folder)
        return state, [text for text in (warning, others, *changes) if text]


def compare_recipes(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Refuse another recipe than a run was started with, but for its data.

    Returns:
        What the user should know: a change of epochs, or of the machine.

    Raises:
        CheckpointError: a value differs.
    """
    longer = before.get(EPOCHS) != now[EPOCHS]
    for name, value in now.items():
        free = name in (DATA, IMAGES, ANNOTATIONS, MINUTES) or name.startswith(MACHINE)
        free |= longer and name in FOLLOW_EPOCHS
        if before.get(name) != value and not free:
            raise CheckpointError(
                f"{folder}: was started with {name} = {before.get(name)}, this run has "
                f"{value}: give the options it was started with, or choose another --out"
            )
    messages = []
    if longer and now[MINUTES] is None:
        messages.append(
            f"the run was started for {before.get(EPOCHS)} epochs, now it is {now[EPOCHS]}: the "
            "learning rate follows the new number from here on"
        )
    moved = [
        f"{name.removeprefix(MACHINE)} = {before[name]} is now {value}"
        for name, value in now.items()
        if name.startswith(MACHINE) and before.get(name, value) != value
    ]
    if moved:
        messages.append(
            f"warning: the run was started elsewhere: {', '.join(moved)}; it goes on, but its "
            "weights will not be bit for bit those of a run that was not interrupted"
        )
    return messages


def describe_recipe(
    preset: Preset,
    heads: tuple[HeadName, ...],
    run: RunConfig,
    train_set: DetectionDataset,
    world: World,
) -> dict[str, Any]:
    """Everything that decides what a run computes but the pictures, as JSON values by name."""
    objects = hashlib.sha256()  # with the images' names and order, not the folder they lie in
    for sample in train_set.samples:
        objects.update(os.fsencode(sample.path.name))
        objects.update(sample.boxes.tobytes() + sample.labels.tobytes() + sample.iscrowd.tobytes())
    settings = {
        **{f"model.{k}": v for k, v in dataclasses.asdict(preset.model).items()},
        **{f"train.{k}": v for k, v in dataclasses.asdict(preset.train).items()},
        "input_size": preset.input_size,
        "heads": heads,
        MINUTES: run.minutes,
        "seed": run.seed,
        "precision": run.precision,
        "classes": train_set.class_names,
        "category_ids": train_set.category_ids,
        IMAGES: len(train_set),
        ANNOTATIONS: objects.hexdigest()[:16],
        f"{MACHINE}device": world.device.type,
        f"{MACHINE}threads": torch.get_num_threads() if world.device.type == "cpu" else None,
        f"{MACHINE}processes": world.size,
        f"{MACHINE}torch": torch.__version__,
    }
    recipe: dict[str, Any] = json.loads(json.dumps(settings))
    return recipe


def describe_data(dataset: DetectionDataset) -> dict[str, str]:
    """What tells the images of a run from others, in their order.

    Returns:
        names: of the files, parted by NUL.
        objects, pictures: a checksum of 8 characters for each image. That of a picture takes its
            length and, of at most 1000 pictures evenly spread, its bytes.
    """
    samples = dataset.samples
    step = -(-len(samples) // WHOLE)
    columns = ((s.boxes.tobytes(), s.labels.tobytes(), s.iscrowd.tobytes()) for s in samples)
    return {
        "names": "\0".join(sample.path.name for sample in samples),
        "objects": "".join(f"{zlib.crc32(b''.join(own)):08x}" for own in columns),
        "pictures": "".join(_picture(s.path, i % step == 0) for i, s in enumerate(samples)),
    }


def _picture(path: Path, whole: bool) -> str:
    try:
        content = path.read_bytes() if whole else b""
        return f"{zlib.crc32(content, path.stat().st_size & 0xFFFFFFFF):08x}"
    except OSError:
        return MISSING


def _compare_data(folder: Path, before: dict[str, str], now: dict[str, str]) -> str | None:
    """Refuse other images or objects by their names; other pictures are told."""
    old, names = before["names"].split("\0"), now["names"].split("\0")

    def changed(column: str) -> list[str]:
        """Images whose checksums differ; one that could not be read has none."""
        places = range(0, len(now[column]), 8)
        sums = ([of[column][i : i + 8] for i in places] for of in (before, now))
        rows = zip(names, *sums, strict=True)
        return [name for name, a, b in rows if a != b and MISSING not in (a, b)]

    advice = "bring back those it was started with, or choose another --out"
    if old != names:
        gone, new = set(old) - set(names), set(names) - set(old)
        what = [f"{_named(sorted(n))} {end}" for n, end in ((gone, "gone"), (new, "new")) if n]
        found = ", ".join(what) or "in another order, or some are there more often"
        raise CheckpointError(
            f"{folder}: its images are not those it was started with: {found}: {advice}"
        )
    if other := changed("objects"):
        raise CheckpointError(
            f"{folder}: the annotations are not those it was started with, the objects of "
            f"{_named(other)} differ: {advice}"
        )
    if other := changed("pictures"):
        found = f"other pictures than the run was started with: {_named(other)}"
        return f"warning: {found}; it goes on"
    return None


def _named(names: list[str]) -> str:
    few = ", ".join(shown(name, 80) for name in names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} image{'s' * (len(names) != 1)} ({few})"
