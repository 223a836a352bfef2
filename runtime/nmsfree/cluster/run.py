"""Spreads pictures over the workers of Ray Data, and does again what a lost worker had in hand."""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nmsfree.cluster.store import Pictures
from nmsfree.cluster.work import Task, Worker
from nmsfree.errors import EngineError, import_extra
from nmsfree.text import shown

MOST_ROWS = 512  # of a result file: what a worker loses when it dies
PARTS = 8  # at least so many for each worker, so that all end at about the same time
STORE = 200 << 20  # bytes of shared memory: names go through it, no pictures


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where the work is done.

    Attributes:
        address: of a Ray cluster; None starts one on this machine and ends it afterwards.
        count: processes; None takes as many as there is room for.
        processors: of each, and threads of its engine.
        gpus: of each, or a share of one.
    """

    address: str | None
    count: int | None
    processors: int
    gpus: float


def parts_of(found: Sequence[Pictures], workers: int) -> list[dict[str, Any]]:
    """Part the pictures into what a worker does at once."""
    count = sum(len(pictures.paths) for pictures in found)
    size = max(1, min(MOST_ROWS, count // (PARTS * workers)))
    return [
        {"root": root, "paths": list(paths[start : start + size])}
        for root, paths in found
        for start in range(0, len(paths), size)
    ]


def run(task: Task, found: Sequence[Pictures], workers: Workers) -> Iterator[dict[str, Any]]:
    """Do the task for all pictures; yields what `Worker` says of each part that is written.

    Raises:
        MissingExtraError: Ray is not installed.
        EngineError: no room for a worker, or a worker failed and not only died.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is reported to its maker
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray = import_extra("ray", "nmsfree batch", "nmsfree[ray]")
    data = import_extra("ray.data", "nmsfree batch", "nmsfree[ray]")
    with _connected(ray, workers):
        room = ray.cluster_resources()
        count = workers.count or int(room.get("CPU", 0) // workers.processors)
        if workers.gpus and workers.count is None:
            count = min(count, int(room.get("GPU", 0) // workers.gpus))
        if count < 1:
            raise EngineError(
                f"no worker of {workers.processors} processors and {workers.gpus:g} GPUs finds room"
                f" in {room.get('CPU', 0):g} and {room.get('GPU', 0):g}: ask for less"
            )
        parts = parts_of(found, count)
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.enable_auto_log_stats = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised
        rows = data.from_items(parts, override_num_blocks=len(parts)).map(
            Worker,
            fn_constructor_args=(task, workers.processors),
            compute=data.ActorPoolStrategy(size=min(count, len(parts))),
            num_cpus=workers.processors,
            num_gpus=workers.gpus or None,
        )
        try:
            yield from rows.iter_rows()
        except ray.exceptions.RayError as error:
            last = str(error).strip().splitlines()[-1]  # of the worker's traceback
            raise EngineError(f"a worker failed ({shown(last, 500)})") from None


@contextmanager
def _connected(ray: Any, workers: Workers) -> Iterator[None]:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if workers.address is None:
        options |= {"include_dashboard": False, "object_store_memory": STORE}
    ended = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=workers.address or "local", **options)
        signal.signal(signal.SIGTERM, ended)  # Ray's own way to end prints where it was
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = workers.address or "this machine"
        line = shown(" ".join(str(error).split()), 300)
        raise EngineError(f"Ray at {shown(where)} cannot be reached ({line})") from None
    try:
        yield
    finally:
        ray.shutdown()
