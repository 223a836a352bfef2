"""One optimizer step on one process or several, its learning rate, and the average of weights."""

import gc
import math
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nmsfree.errors import InputError, NmsfreeError
from nmsfree_training.config import HeadName, Matching, TrainConfig
from nmsfree_training.criterion.losses import head_losses
from nmsfree_training.data.batch import Batch
from nmsfree_training.loop.distributed import World
from nmsfree_training.model.detector import Fcos
from nmsfree_training.model.norms import sync_batch_norms

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
DELAY = 2  # steps after which a GPU's losses are read, so that nothing waits for them


class DivergedError(NmsfreeError):
    """A loss or a gradient is not finite; nothing of it was saved."""

    exit_status = 1


@dataclass(frozen=True)
class StepLosses:
    """Losses of one step by name ("loss", "o2m_cls", …), of all processes, and the gradient's norm.

    The norm is that before clipping.
    """

    iteration: int
    values: dict[str, float]
    grad_norm: float


class Stepper:
    """Makes optimizer steps on a network that is on its device.

    Its norms are synchronised where there are several processes. `precision` "bf16" or "fp16" is
    that of the network, the losses stay in float32. For `heads` see `choose_heads`.
    """

    def __init__(
        self,
        network: Fcos,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        heads: tuple[HeadName, ...],
        precision: str,
        world: World,
    ) -> None:
        if precision not in PRECISIONS:
            raise InputError(f"precision is {precision!r}, expected {', '.join(PRECISIONS)}")
        self.network, self.optimizer, self.config = network, optimizer, config
        self.heads: tuple[HeadName, ...] = ()
        self.world, self._all_heads = world, heads
        # Alone, the o2o head is what trains the backbone.
        self._o2o_gradient = config.o2o_gradient if len(heads) == 2 else 1.0
        self._o2m_weight = 1.0
        self._base_rates = [group["lr"] for group in optimizer.param_groups]
        self._matching: dict[HeadName, Matching] = {"o2m": config.o2m, "o2o": config.o2o}
        self.device = next(network.parameters()).device
        self._dtype = PRECISIONS[precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._model: nn.Module = network
        if world.size > 1:
            sync_batch_norms(network)
        self.choose_heads(heads)
        delay = DELAY if self.device.type == "cuda" else 0
        self._reader = LossReader(delay, world, skips=self.scaler.is_enabled())

    def __call__(self, parts: Sequence[Batch], iteration: int) -> list[StepLosses]:
        """Train on the parts of one batch, on the device; returns the losses known by now.

        Raises:
            DivergedError: a loss or the gradient is not finite; it names the images.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total: Tensor | None = None
        names: list[str] = []
        for number, part in enumerate(parts, start=1):
            with ExitStack() as stack:
                if number < len(parts) and isinstance(self._model, DistributedDataParallel):
                    stack.enter_context(self._model.no_sync())  # gradients travel with the last
                values = self._backward(part, len(parts))
            total = values if total is None else total + values
            names += part.names
        assert total is not None
        self.scaler.unscale_(self.optimizer)
        if self.config.clip_norm is None:
            norm = nn.utils.get_total_norm(p.grad for p in self._parameters if p.grad is not None)
        else:
            norm = nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm)
        # Averaged, so that all processes know the same and stop together.
        total = self.world.mean(total)
        known = self._reader.push(iteration, self.loss_names, total, norm, names)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return known

    def choose_heads(self, heads: tuple[HeadName, ...]) -> None:
        """Train these of the heads from now on; all processes do so together."""
        if heads == self.heads:
            return
        self.heads = heads
        self.loss_names = ["loss", *(f"{head}_{part}" for head in heads for part in ("cls", "box"))]
        if self.world.size == 1:
            return
        # Gradients travel between the processes; buffers are equal: norms see all images.
        self.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the argument is to be renamed
            self._model = DistributedDataParallel(
                self.network,
                broadcast_buffers=False,
                # A head that waits has no gradients that the exchange could wait for.
                find_unused_parameters=heads != self._all_heads,
            )

    def schedule(self, iteration: int, total: int) -> float:
        """Set rates and loss weights of the step after `iteration` of `total`; returns the rate."""
        factor = rate_factor(self.config, iteration, total)
        waits = iteration < self.config.backbone_start * total
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = 0.0 if waits and group.get("is_backbone") else base * factor
        if len(self.heads) == 2:
            done = min(1.0, iteration / max(1, total - 1))
            self._o2m_weight = 1 + (self.config.o2m_weight_end - 1) * done
        return float(self.optimizer.param_groups[0]["lr"])

    def flush(self) -> list[StepLosses]:
        """Wait for the losses that are not known yet."""
        return self._reader.read(0)

    def _backward(self, part: Batch, count: int) -> Tensor:
        """Add the gradients of one part; returns its share of the values to be shown."""
        images = part.images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None):
            predictions = self._model(images, heads=self.heads, o2o_gradient=self._o2o_gradient)
        mean = self.world.mean
        losses = {
            head: head_losses(
                predictions[head], part.targets, self._matching[head], part.padding, mean
            )
            for head in self.heads
        }
        weights = {"o2m": self._o2m_weight, "o2o": 1.0}
        total = torch.stack([weights[h] * loss.total for h, loss in losses.items()]).sum() / count
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        shown = [v for loss in losses.values() for v in (loss.cls, loss.box)]
        return torch.stack([total, *(v / count for v in shown)]).detach()

    def close(self) -> None:
        """Free what belongs to the exchange between processes, while that still exists."""
        self._model = self.network
        gc.collect()  # the wrapper is part of a cycle


class LossReader:
    """Reads losses `delay` steps late, so that nothing waits for a GPU in the middle of a step.

    (With fp16 something does: the scaler asks in every step whether to skip it.) Steps whose
    gradients are not finite are an error, unless the scaler `skips` them.
    """

    def __init__(self, delay: int, world: World, skips: bool) -> None:
        self._delay, self._world, self._skips = delay, world, skips
        self._waiting: deque[tuple[int, list[str], Tensor, list[str], object]] = deque()

    def push(
        self, iteration: int, keys: list[str], values: Tensor, norm: Tensor, names: list[str]
    ) -> list[StepLosses]:
        """Take a step's values; returns those that are old enough."""
        values = torch.cat([values, norm.reshape(1).to(values)])
        event = None
        if values.device.type == "cuda":
            # Pinned: a copy into pageable memory would wait for the GPU.
            arrived = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = arrived.copy_(values, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._waiting.append((iteration, keys, values, names, event))
        return self.read(self._delay)

    def read(self, keep: int) -> list[StepLosses]:
        """Return all but the last few, waiting where necessary."""
        known = []
        while len(self._waiting) > keep:
            iteration, keys, tensor, names, event = self._waiting.popleft()
            if isinstance(event, torch.cuda.Event):
                event.synchronize()
            found: list[float] = tensor.tolist()
            norm = found.pop()
            values = dict(zip(keys, found, strict=True))
            checked = values if self._skips else values | {"the gradient's norm": norm}
            bad = next((name for name, v in checked.items() if not math.isfinite(v)), None)
            if bad is not None:
                self._stop(bad, checked[bad], iteration, names)
            known.append(StepLosses(iteration, values, norm))
        return known

    def _stop(self, what: str, value: float, iteration: int, names: list[str]) -> None:
        """All processes come here together: they know the same values."""
        names = [name for part in self._world.gather(names) for name in part]
        shown = ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
        self._world.check(
            DivergedError(
                f"{'the loss' if what == 'loss' else what} is {value} at iteration {iteration}; "
                f"images of the batch: {shown}. Look at them with `nmsfree data check`, or start "
                "again with a lower --learning-rate"
            )
        )


# Optimizer, learning rate, averaged weights.


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD as published (decay on everything), or AdamW without decay on norms and biases."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parts: list[dict[str, Any]] = [{"params": list(trained.values())}]
    if config.backbone_rate != 1 or config.backbone_start:
        own = [p for name, p in trained.items() if name.startswith("backbone.")]
        rest = [p for name, p in trained.items() if not name.startswith("backbone.")]
        # The rate that is shown is that of the first group.
        parts = [{"params": rest}, {"params": own, "is_backbone": True}]
    rate = config.learning_rate
    if config.optimizer == "sgd":
        rate *= config.batch_size / 16
    for part in parts:
        part["lr"] = rate * (config.backbone_rate if part.get("is_backbone") else 1.0)
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parts, lr=rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
    groups = [
        part
        | {"params": [p for p in part["params"] if (p.ndim > 1) == is_weight]}
        | {"weight_decay": config.weight_decay if is_weight else 0.0}
        for part in parts
        for is_weight in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=rate)


def rate_factor(config: TrainConfig, iteration: int, total: int) -> float:
    """Return the learning rate at an iteration of `total`, as a share of the full one.

    The recipe's epochs stand for the whole run, however many it has. A run that is short for its
    warm-up spends a quarter of its steps on it.
    """
    epoch = iteration * config.epochs / total
    if config.schedule == "step":
        factor = 0.1 ** sum(epoch >= milestone for milestone in config.milestones)
    else:
        factor = 0.5 * (1 + math.cos(math.pi * min(1.0, iteration / total)))
    warmup = min(config.warmup_iterations, total // 4)
    if iteration < warmup:
        progress = iteration / warmup
        factor *= config.warmup_factor + (1 - config.warmup_factor) * progress
    return factor


class Ema:
    """Averaged weights and buffers of a network.

    A step keeps `decay` of the average once warmed up; the first steps keep (1 + n) / (10 + n), so
    that the initial weights are forgotten soon.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, steps: int) -> None:
        """Take in the weights after `steps` optimizer steps."""
        keep = min(self.decay, (1 + steps) / (10 + steps))
        averaged, latest = [], []
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                averaged.append(self.state[key])
                latest.append(value)
            else:  # counters
                self.state[key].copy_(value)
        torch._foreach_lerp_(averaged, latest, 1 - keep)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a stored average."""
        for key, value in self.state.items():
            value.copy_(state[key])
