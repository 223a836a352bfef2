"""The training loop: one process, any COCO-format dataset, CPU or CUDA."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nmsfree.data.coco import DetectionDataset
from nmsfree.detector import Detector
from nmsfree.errors import CheckpointError, DataError, NmsfreeError
from nmsfree.evaluate import evaluate
from nmsfree_training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nmsfree_training.config import HeadName, Preset
from nmsfree_training.detector import Fcos
from nmsfree_training.loader import Batch, epoch_loader
from nmsfree_training.losses import detector_losses
from nmsfree_training.optim import make_optimizer, rate_factor
from nmsfree_training.predict import TorchBackend, make_spec
from nmsfree_training.pretrained import load_imagenet
from nmsfree_training.train_state import TrainState, load_state, save_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What the loop tells after every step."""

    epoch: int
    step: int
    steps: int
    losses: dict[str, float]
    learning_rate: float


@dataclass(frozen=True)
class RunConfig:
    """One run.

    Attributes:
        out: folder of checkpoints and `metrics.jsonl`.
        workers: processes that load images; 0 = in this one.
        precision: "fp32", or "bf16" autocast for the network (losses stay in float32).
        evaluate_every: epochs between evaluations on the validation set; 0 = only after the last.
        imagenet: torchvision-named backbone weights to start from.
        provenance: written into the checkpoint.
    """

    out: Path
    device: torch.device
    seed: int = 0
    workers: int = 0
    precision: str = "fp32"
    evaluate_every: int = 1
    resume: bool = False
    imagenet: Path | None = None
    provenance: dict[str, str] = field(default_factory=dict)


class Trainer:
    """Trains one preset on one dataset.

    Args:
        preset: network and recipe.
        train_set, val_set: datasets with the same classes; without `val_set` no AP is computed.
        run: where and how.
        on_step: called after every step.
        on_epoch: called after every epoch with the line written to `metrics.jsonl`.
    """

    def __init__(
        self,
        preset: Preset,
        train_set: DetectionDataset,
        val_set: DetectionDataset | None,
        run: RunConfig,
        on_step: Callable[[Progress], None] = lambda _: None,
        on_epoch: Callable[[dict[str, float]], None] = lambda _: None,
    ) -> None:
        if not train_set.samples:
            raise DataError(f"{train_set.annotation_file}: no images to train on")
        if val_set is not None and set(val_set.class_names) != set(train_set.class_names):
            other = set(val_set.class_names) ^ set(train_set.class_names)
            raise DataError(
                f"{val_set.annotation_file}: its classes differ from those of "
                f"{train_set.annotation_file} ({', '.join(sorted(other)[:5])}): use one list"
            )
        self.preset, self.run = preset, run
        self.train_set, self.val_set = train_set, val_set
        self.on_step, self.on_epoch = on_step, on_epoch
        torch.manual_seed(run.seed)
        self.network = Fcos(preset.model)
        if run.imagenet is not None:
            load_imagenet(self.network, run.imagenet)
        # Channels last: the layout oneDNN and cuDNN convolve fastest in.
        self.network = self.network.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.network, preset.train)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.iteration = 0

    def fit(self) -> dict[str, float]:
        """Train all epochs; returns the last evaluation (`AP`, `AP50`, …; 0–1).

        Writes `last.safetensors` (+ `last.state.pt`), `best.safetensors` and `metrics.jsonl`.

        Raises:
            NmsfreeError: the loss is not finite.
        """
        first, best = self._resume() if self.run.resume else (0, -1.0)
        metrics: dict[str, float] = {}
        epochs = self.preset.train.epochs
        for epoch in range(first, epochs):
            started = time.monotonic()
            record: dict[str, float] = {"epoch": epoch + 1} | self._run_epoch(epoch)
            record["seconds"] = round(time.monotonic() - started, 1)
            metrics = {}
            if self._is_due(epoch):
                # First what took long to get: an evaluation can fail on a picture.
                self._save(self.run.out / "last.safetensors", epoch, metrics)
                self._save_state(epoch, best)
                metrics = self._evaluate()
            record |= metrics
            self._save(self.run.out / "last.safetensors", epoch, metrics)
            # Until an AP is measured, the latest weights are the best known.
            if metrics.get("AP", -1.0) > best or (best < 0 and not metrics):
                best = metrics.get("AP", -1.0)
                self._save(self.run.out / "best.safetensors", epoch, metrics)
            self._save_state(epoch, best)
            self._log(record)
            self.on_epoch(record)
        return metrics

    def _is_due(self, epoch: int) -> bool:
        every = self.run.evaluate_every
        last = epoch + 1 == self.preset.train.epochs
        return self.val_set is not None and (last or (every > 0 and (epoch + 1) % every == 0))

    def _run_epoch(self, epoch: int) -> dict[str, float]:
        self.network.train()
        loader = epoch_loader(self.train_set, self.preset, self.run.seed, epoch, self.run.workers)
        steps, sums, rate = len(loader), dict[str, float](), 0.0
        batches: Iterator[Batch] = iter(loader)
        for step, batch in enumerate(batches):
            rate = self._set_rate(steps)
            losses = self._step(batch)
            self.iteration += 1
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value / steps
            self.on_step(Progress(epoch, step + 1, steps, losses, rate))
        return {**{k: round(v, 5) for k, v in sums.items()}, "lr": rate}

    def _step(self, batch: Batch) -> dict[str, float]:
        batch = batch.to(self.run.device)
        images = batch.images.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            predictions = self.network(images)
        losses = detector_losses(predictions, batch.targets, batch.padding)
        total = sum((loss.total for loss in losses.values()), torch.zeros((), device=images.device))
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        if self.preset.train.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.preset.train.clip_norm)
        self.optimizer.step()
        values = {"loss": total.item()}
        for head, loss in losses.items():
            values |= {f"{head}_cls": loss.cls.item(), f"{head}_box": loss.box.item()}
        if not math.isfinite(values["loss"]):
            raise NmsfreeError(
                f"the loss is {values['loss']} at iteration {self.iteration}: the weights before "
                "this epoch are in last.safetensors, after the first epoch; lower "
                "--learning-rate or check the boxes"
            )
        return values

    def _autocast(self) -> AbstractContextManager[object]:
        if self.run.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.run.device.type, dtype=torch.bfloat16)

    def _set_rate(self, steps: int) -> float:
        factor = rate_factor(self.preset.train, self.iteration, steps)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def checkpoint(self) -> Checkpoint:
        """Return the present weights as a checkpoint."""
        return Checkpoint(
            self.preset.model,
            self.preset.input_size,
            self.train_set.class_names,
            self.train_set.category_ids,
            self.network.state_dict(),
            self.run.provenance,
        )

    def _evaluate(self) -> dict[str, float]:
        assert self.val_set is not None
        self.network.eval()
        head: HeadName = self.network.deployed_head
        detector = Detector(TorchBackend(self.network, make_spec(self.checkpoint(), head)))
        metrics = evaluate(detector, self.val_set).to_json()
        return {name: value for name, value in metrics.items() if value is not None}

    def _save(self, path: Path, epoch: int, metrics: dict[str, float]) -> None:
        provenance = self.run.provenance | {"epoch": str(epoch + 1)}
        if metrics:
            provenance["AP"] = f"{metrics['AP']:.4f}"
        checkpoint = self.checkpoint()
        save_checkpoint(Checkpoint(**{**vars(checkpoint), "provenance": provenance}), path)

    def _save_state(self, epoch: int, best: float) -> None:
        state = TrainState(epoch + 1, self.iteration, best, self.optimizer.state_dict())
        save_state(state, self.run.out / "last.state.pt")

    def _resume(self) -> tuple[int, float]:
        path = self.run.out / "last.safetensors"
        checkpoint = load_checkpoint(path)
        if checkpoint.model != self.preset.model:
            raise CheckpointError(
                f"{path}: {checkpoint.model.name} of {checkpoint.model.num_classes} classes with "
                "other settings than this run: give the options it was started with"
            )
        state = load_state(self.run.out / "last.state.pt")
        if checkpoint.provenance.get("epoch") != str(state.epoch):
            raise CheckpointError(
                f"{path}: weights after epoch {checkpoint.provenance.get('epoch')} beside a "
                f"training state after epoch {state.epoch}, the run was cut between the two "
                "writes: start again without --resume"
            )
        self.network.load_state_dict(checkpoint.state)
        self.optimizer.load_state_dict(state.optimizer)
        self.iteration = state.iteration
        logger.info("resumed after epoch %d", state.epoch)
        return state.epoch, state.best

    def _log(self, record: dict[str, float]) -> None:
        self.run.out.mkdir(parents=True, exist_ok=True)
        with (self.run.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
