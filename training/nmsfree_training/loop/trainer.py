"""The training loop: one process or several, CPU or CUDA; goes on exactly where it was cut."""

import math
import time
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from nmsfree.datasets.formats.coco import DetectionDataset
from nmsfree.errors import NmsfreeError
from nmsfree_training.config import HeadName, Preset, with_epochs
from nmsfree_training.data.batch import Batch, pad_batch
from nmsfree_training.data.loader import EpochLoader
from nmsfree_training.loop.checkpoints import (
    DATA,
    METRICS,
    CheckpointManager,
    describe_data,
    describe_recipe,
)
from nmsfree_training.loop.distributed import World
from nmsfree_training.loop.run_config import Interrupted, RunConfig
from nmsfree_training.loop.start import check_data
from nmsfree_training.loop.state import Position
from nmsfree_training.loop.step import DivergedError, Ema, StepLosses, Stepper, make_optimizer
from nmsfree_training.loop.validate import Validator
from nmsfree_training.model.detector import Fcos, copy_head, fresh_network, place
from nmsfree_training.model.norms import freeze_statistics
from nmsfree_training.monitor.callbacks import Callback, EpochEvent, StepEvent
from nmsfree_training.weights.predict import torch_device

# Evaluations for which a budget of minutes leaves time after the last step: of the last weights, of
# the best once more, and on training pictures.
EVALUATIONS = 3
TIMED = 4  # steps that tell how fast a run is; the first of a process is none: it starts loaders
SMALLEST_SCALE = 2.0**-10  # of the losses in fp16; it starts at 2¹⁶ and halves with a skipped step


class Trainer:
    """Trains one preset on one dataset.

    Args:
        train_set, val_set: datasets with the same classes; without `val_set` no AP is computed.
        network: with the weights to start from; None = random ones by the seed.
        heads: those that are trained; None = all of the network's.
    """

    def __init__(
        self,
        preset: Preset,
        train_set: DetectionDataset,
        val_set: DetectionDataset | None,
        run: RunConfig,
        *,
        network: Fcos | None = None,
        heads: tuple[HeadName, ...] | None = None,
        callback: Callback | None = None,
        world: World | None = None,
    ) -> None:
        self.objects = check_data(preset, train_set, val_set)
        self.preset, self.run, self.train_set = preset, run, train_set
        self._asked = preset  # with epochs as asked for, whatever a budget makes of them
        self.callback = callback or Callback()
        self.world = world or World(device=torch_device(run.device))
        self.network = place(network or fresh_network(preset, run.seed), self.world.device)
        assert self.network.config == preset.model, "checkpoints would not fit their description"
        self.world.share(self.network)
        self.optimizer = make_optimizer(self.network, preset.train)
        self.batch_size = min(preset.train.batch_size, len(train_set))
        self.per_epoch = len(train_set) // self.batch_size  # steps; an incomplete batch is dropped
        self.heads = heads or preset.model.heads
        self.step = Stepper(
            self.network, self.optimizer, preset.train, self.heads, run.precision, self.world
        )
        decay = preset.train.ema
        self.ema = None if decay is None else Ema(self.network, decay)
        self.checkpoints = CheckpointManager(
            run.out,
            preset,
            train_set,
            run.provenance | {"objects": str(self.objects)},
            describe_recipe(preset, self.heads, run, train_set, self.world)
            | {DATA: describe_data(train_set) if self.world.main else {}},
            self.network,
            self.optimizer,
            self.step.scaler,
            self.ema,
            self.world,
        )
        self.validator: Validator | None = None
        if val_set is not None:
            describe = partial(self.checkpoints.checkpoint, {})
            self.validator = Validator(describe, val_set, self.world, self._progress)
        self.position = Position()
        self._begun = 0  # iteration at which this process began
        self.total = self._planned()  # steps of the whole run
        self._saved = self._since = time.monotonic()  # _since: of the present epoch
        self._loader: EpochLoader | None = None

    def fit(self) -> dict[str, float]:
        """Train all epochs; returns the last evaluation (`AP`, `AP50`, …; 0–1).

        Writes `last`, `best` and every n-th `.safetensors`, `last.state.pt`,
        `previous.state.pt` and `metrics.jsonl`. Images that could not be read are named in
        `position.failed`.

        Raises:
            Interrupted: it was asked to stop, and saved.
            DivergedError: a loss or a gradient is not finite.
            LoaderError: a process that loads images was killed; what was done is saved.
        """
        self._since = time.monotonic()
        if self.run.resume:
            self._resume()
        elif self.world.main:
            self.run.out.mkdir(parents=True, exist_ok=True)
            (self.run.out / METRICS).unlink(missing_ok=True)  # of an earlier run
        self.world.on_main(self.checkpoints.write_recipe)
        metrics: dict[str, float] = {}
        if not self.run.resume and self.heads != self.preset.model.heads:
            self._measure_start()
        while not self._is_done() and not self._has_flattened():
            self._train_epoch()
            metrics = self._close_epoch()
        self._loader = None
        return metrics

    def _measure_start(self) -> None:
        """A retrofit's head works untrained, too: it is the best until an epoch is better."""
        if self.validator is None or not self.run.evaluate_every:
            return
        network = self._deployable()
        metrics = self.validator.metrics(network)
        self.position.best = metrics["AP"]
        self.position.evaluation = self.position.spent = time.monotonic() - self._since
        self._since = time.monotonic()
        self.world.on_main(lambda: self.checkpoints.write_weights(["best"], 0, metrics))
        self.callback.log(f"AP {100 * metrics['AP']:.1f} before the new head is trained")

    def _has_flattened(self) -> bool:
        """Whether AP has not risen for as long as the user has patience."""
        since = self.position.epoch - self.position.best_epoch
        flat = self.validator is not None and 0 < self.run.patience <= since
        if flat:
            self.callback.log(f"stopped: AP has not risen for {since} epochs (--patience)")
        return flat

    def set_epochs(self, epochs: int) -> None:
        """Make the run as long as that."""
        self.preset = with_epochs(self._asked, epochs)
        self.checkpoints.set_epochs(self.preset)

    def _is_done(self) -> bool:
        """Whether no step is left, and none is left to be evaluated."""
        return self.position.step == 0 and self.position.iteration >= self.total

    def _planned(self) -> int:
        """Steps of the whole run: those of its epochs, or what its minutes allow at this speed."""
        position, minutes = self.position, self.run.minutes
        before = position.iteration - position.step
        total = before + (self.preset.train.epochs - position.epoch) * self.per_epoch
        if minutes is None or not position.iteration:
            return total
        left = 60 * minutes - position.spent - (time.monotonic() - self._since)
        if left <= 0:
            return position.iteration
        if position.timed < TIMED:
            return max(total, position.iteration + 1)
        step, last = max(1e-9, position.timing / position.timed), position.evaluation
        if self.validator is not None and not last:  # a guess: an image takes as long as in a step
            last = len(self.validator.dataset) * step / self.batch_size
        left -= EVALUATIONS * last
        if self.run.evaluate_every:  # the share of those on the way
            step += last / (self.run.evaluate_every * self.per_epoch)
        return position.iteration + max(0, int(left / step))

    def _follow_clock(self) -> None:
        """Plan what is left, in steps, and in epochs where they follow from minutes."""
        position = self.position
        self.total = self.world.broadcast(self._planned())
        if self.run.minutes is not None and position.iteration:
            steps = position.step + self.total - position.iteration
            self.set_epochs(position.epoch + -(-steps // self.per_epoch))

    # One epoch

    def _train_epoch(self) -> None:
        self.network.train()
        freeze_statistics(self.network)
        position, recipe = self.position, self.preset.train
        self.step.choose_heads(("o2m",) if self._waits_for_o2o() else self.heads)
        batches = iter(self._batches())
        started = time.monotonic()
        while position.step < self.per_epoch:
            parts, error = list[Batch](), None
            try:
                parts = list(islice(batches, recipe.accumulate))
            except Exception as caught:  # noqa: BLE001, raised again once what is done is saved
                error = caught
            waited = time.monotonic()
            parts = self._agree(parts, error)
            if position.step and position.iteration >= self.total:  # of a budget
                break
            rate = self.step.schedule(position.iteration, self.total)
            position.iteration += 1
            known = self.step(parts, position.iteration)
            if self.ema is not None:
                self.ema.update(self.network, position.iteration)
            for path, reason in (failure for part in parts for failure in part.failed):
                if path not in position.failed:
                    position.failed[path] = reason
                    self.callback.log(f"left out: {path}: {reason}")
            position.step += 1
            now = time.monotonic()
            wait, seconds, started = waited - started, now - started, now
            position.seconds += seconds
            position.wait += wait
            if position.iteration > self._begun + 1:
                position.timed += 1
                position.timing += seconds
            self._add(known)
            self.callback.on_step(
                StepEvent(
                    epoch=position.epoch,
                    epochs=recipe.epochs,
                    step=position.step,
                    steps=self.per_epoch,
                    iteration=position.iteration,
                    losses=known[-1].values if known else {},
                    learning_rate=rate,
                    images=self.batch_size,
                    wait=wait,
                    seconds=seconds,
                    grad_norm=known[-1].grad_norm if known else None,
                )
            )
        self._add(self.step.flush())  # waits for the steps that a GPU has not done yet
        position.seconds += time.monotonic() - started

    def _batches(self) -> EpochLoader:
        """Those that are left of this epoch; its processes stay as long as the recipe does."""
        preset, position = self.preset, self.position
        if self._loader is not None and self._loader.batches.examples.preset == preset:
            self._loader.go_to(position.epoch, position.step)
            return self._loader
        self._loader = EpochLoader(
            self.train_set,
            preset,
            self.run.seed,
            position.epoch,
            self.run.workers,
            start=position.step,
            rank=self.world.rank,
            world=self.world.size,
            device=self.world.device,
        )
        return self._loader

    def _agree(self, parts: list[Batch], error: Exception | None) -> list[Batch]:
        """What all processes do together: bring images to one size, stop, save, or fail."""
        sizes = [side for part in parts for side in part.images.shape[-2:]]
        sizes += [0] * (2 * self.preset.train.accumulate - len(sizes))
        waited = time.monotonic() - self._saved
        # Rank 0 decides; before the first step of an epoch there is nothing new.
        due = self.world.main and self.position.step > 0 and waited >= 60 * self.run.save_minutes
        flags = [self.run.stop(), due, error is not None]
        planned = self._planned() if self.world.main else 0
        told = self.world.maximum([*sizes, *map(int, flags), planned])
        *sizes, stop, save, failed, self.total = told
        if stop:  # first: what ends a job may have ended its loaders, too
            self._interrupt()
        if failed:
            self._give_up(error)
        if save:
            self._add(self.step.flush())
            self._save()
        pairs = zip(sizes[::2], sizes[1::2], strict=True)
        return [pad_batch(part, *size) for part, size in zip(parts, pairs, strict=True)]

    def _give_up(self, error: Exception | None) -> None:
        """Save, and end all processes: the images of the next step could not be had."""
        if self.position.step > 0:  # else there is nothing new
            self._add(self.step.flush())
            self._save()
        if error is not None and not isinstance(error, NmsfreeError):
            raise error
        if error is not None and self.position.iteration > 0:
            error.args = (f"{error}; saved at {self.position}: go on with --resume",)
        self.world.check(error)

    def _waits_for_o2o(self) -> bool:
        """Whether the o2o head starts in a later epoch."""
        recipe = self.preset.train
        first = round(recipe.o2o_start * recipe.epochs)
        return len(self.heads) == 2 and self.position.epoch < first

    def _add(self, known: list[StepLosses]) -> None:
        for losses in known:
            if not math.isfinite(losses.grad_norm):  # with fp16, whose scaler then steps back
                self.position.skipped += 1
            for name, value in losses.values.items():
                self.position.sums[name] = self.position.sums.get(name, 0.0) + value

    # The end of an epoch

    def _close_epoch(self) -> dict[str, float]:
        """Evaluate, write the checkpoints and the record, and go to the next epoch."""
        position, scaler = self.position, self.step.scaler
        if scaler.is_enabled() and scaler.get_scale() < SMALLEST_SCALE:
            raise DivergedError(
                f"{position.skipped} of {position.step} steps had no finite gradient, whatever the "
                "loss scale, and changed nothing; what was saved before is kept: start again with "
                "a lower --learning-rate, or with --precision bf16"
            )
        record = self._record()
        if self._waits_for_o2o():
            copy_head(self.network.state_dict())
            if self.ema is not None:
                copy_head(self.ema.state)
        self._save()  # first what took long to get, and before any checkpoint can be seen
        self.total = self.world.broadcast(self._planned())
        asked = time.monotonic()
        metrics, pictures = self._evaluate()
        record |= metrics
        evaluation = time.monotonic() - asked if metrics else position.evaluation
        # Until an AP is measured, the latest weights are the best known.
        best = metrics.get("AP", -1.0) > position.best or (position.best < 0 and not metrics)
        if best:
            position.best = metrics.get("AP", -1.0)
        keep = self.run.keep_every
        self.world.on_main(lambda: self.checkpoints.write_epoch(record, metrics, best, keep))
        self.position = Position(
            epoch=position.epoch + 1,
            iteration=position.iteration,
            best=position.best,
            best_epoch=position.epoch + 1 if best else position.best_epoch,
            spent=position.spent + time.monotonic() - self._since,
            evaluation=evaluation,
            timed=position.timed,
            timing=position.timing,
            failed=position.failed,
        )
        self._since = time.monotonic()
        self._follow_clock()
        self._save()
        self.callback.on_epoch(EpochEvent(record, pictures, best))
        return metrics

    def _record(self) -> dict[str, float]:
        position = self.position
        names, steps = self.step.loss_names, max(1, position.step)
        images = steps * self.batch_size
        return {
            "epoch": position.epoch + 1,
            **{name: round(position.sums.get(name, 0.0) / steps, 5) for name in names},
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "seconds": round(position.seconds, 1),
            "images_per_second": round(images / max(position.seconds, 1e-9), 1),
            "wait_share": round(position.wait / max(position.seconds, 1e-9), 3),
            **({"skipped": position.skipped} if position.skipped else {}),
            **({"left_out": len(position.failed)} if position.failed else {}),
        }

    def _evaluate(self) -> tuple[dict[str, float], tuple[tuple[str, NDArray[np.uint8]], ...]]:
        """Metrics and pictures, as far as they are due."""
        epochs, epoch = self.preset.train.epochs, self.position.epoch + 1
        last, every = self.position.iteration >= self.total, self.run.evaluate_every
        if self.validator is None or not (last or (every > 0 and epoch % every == 0)):
            return {}, ()
        network = self._deployable()
        metrics = self.validator.metrics(network)
        # Some 40 times in a run: a picture takes a third of a megabyte.
        pictured = last or epoch % max(1, epochs // 40) == 0
        if self.run.no_tensorboard or not pictured:
            return metrics, ()
        return metrics, self.validator.pictures(network)

    def _deployable(self) -> Fcos:
        """The network that is evaluated: with the averaged weights, if there are."""
        if self.ema is None:
            return self.network.eval()
        averaged = place(Fcos(self.preset.model), self.world.device)
        averaged.load_state_dict(self.ema.state)
        return averaged.eval()

    # Saving and going on

    def _progress(self, done: int, total: int) -> None:
        self.callback.on_evaluate(done, total)
        if self.world.size == 1 and self.run.stop():  # the state was saved before
            self._interrupt()

    def _interrupt(self) -> None:
        self._add(self.step.flush())
        self._save()
        raise Interrupted(f"stopped and saved at {self.position}")

    def _save(self) -> None:
        self._saved = time.monotonic()
        self.checkpoints.save(self.position)

    def _resume(self) -> None:
        self.position, messages = self.checkpoints.load()
        self._since -= self.position.seconds
        self._begun = self.position.iteration
        if self.world.main:
            self.checkpoints.forget_after(self.position.epoch)
        else:
            self.position.failed = {}
        for text in messages:
            self.callback.log(text)
        self._follow_clock()
        epochs = self.preset.train.epochs
        if self._is_done():
            longer = "--epochs" if self.run.minutes is None else "--minutes"
            self.callback.log(f"all {epochs} epochs are done; for more, raise {longer}")
        else:
            self.callback.log(f"going on at {self.position} of {epochs} epochs")

    def close(self) -> None:
        """Free what must go before the processes part."""
        self._loader = None
        self.step.close()
