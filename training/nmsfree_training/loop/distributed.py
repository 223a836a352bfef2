"""One run on several processes: who am I, and what do the others say.

Started by `torchrun`, which sets RANK, WORLD_SIZE and LOCAL_RANK. Without it the world has one
process and every function here is the identity.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nmsfree.errors import EngineError, NmsfreeError

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """The processes of a run; `rank` 0 writes files and talks to the user."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU  # that this process trains on

    @property
    def main(self) -> bool:
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Average of a tensor over the processes, on its own device."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.size

    def maximum(self, values: Sequence[int]) -> list[int]:
        """Element-wise largest of a few whole numbers; travels on the CPU, no GPU waits for it."""
        if self.size == 1:
            return list(values)
        largest = torch.tensor(values)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        found: list[int] = largest.tolist()
        return found

    def gather(self, item: Any) -> list[Any]:
        """What every process has, in order of rank: on rank 0; elsewhere an empty list."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.gather_object(item, items if self.main else None)
        return items if self.main else []

    def broadcast(self, item: Any) -> Any:
        """What rank 0 has."""
        if self.size == 1:
            return item
        box = [item]
        dist.broadcast_object_list(box)
        return box[0]

    def check(self, error: NmsfreeError | None) -> None:
        """All processes tell how they fared; if one failed, all end, and rank 0 says why."""
        if self.size == 1:
            if error is not None:
                raise error
            return
        told: list[tuple[str, int] | None] = [None] * self.size
        dist.all_gather_object(told, error and (str(error), error.exit_status))
        first = next((e for e in told if e is not None), None)
        if first is None:
            return
        text, status = first
        if not self.main:
            raise SystemExit(status)
        if error is None:
            error = NmsfreeError(text)
            error.exit_status = status
        raise error

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that all processes go through; an error of one ends all, as `check` has it."""
        error = None
        try:
            yield
        except NmsfreeError as caught:
            error = caught
        self.check(error)

    def on_main(self, action: Callable[[], T]) -> T:
        """What rank 0 gets from doing this, on all processes; its error ends all of them."""
        result = None
        with self.together():
            if self.main:
                result = action()
        shared: T = self.broadcast(result)
        return shared

    def share(self, network: nn.Module) -> None:
        """Give every process the weights and buffers of rank 0."""
        if self.size > 1:
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, 0)


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the other processes of `torchrun`, if any.

    Raises:
        EngineError: more processes on this machine than it has GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=torch.device(device))
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise EngineError(
                f"process {local} of this machine has no GPU of its own: found "
                f"{torch.cuda.device_count()}, give torchrun --nproc-per-node that many at most"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    chosen = torch.device(device, local) if device == "cuda" else torch.device(device)
    try:
        yield World(dist.get_rank(), size, chosen)
    except (NmsfreeError, SystemExit):  # they end all processes alike
        dist.destroy_process_group()
        raise
    # Not after other errors: NCCL would wait for the other processes, which wait for this one, and
    # the launcher would not see that it failed.
    dist.destroy_process_group()
