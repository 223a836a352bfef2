"""Spreads pictures over the workers of Ray Data, and does again what a lost worker had in hand."""

import logging
import os
import re
import signal
import socket
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from nmsfree import errors
from nmsfree.cluster.store import Pictures, name_of
from nmsfree.cluster.work import Task, Worker
from nmsfree.errors import EngineError, NmsfreeError, import_extra
from nmsfree.text import shown

MOST_ROWS = 512  # of a result file: what a worker loses when it dies
PARTS = 64  # at least so many, so that all workers end at about the same time
CONNECT_SECONDS = 10  # Ray itself tries for two minutes
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


def parts_of(found: Sequence[Pictures], done: Set[str]) -> list[dict[str, Any]]:
    """Part the pictures into what a worker does at once, and leave out what is done.

    A part has the same name in every run over the same pictures: what a worker that outlived its
    driver still writes is written once more, not beside it.
    """
    count = sum(len(pictures.paths) for pictures in found)
    size = max(1, min(MOST_ROWS, count // PARTS))
    parts = []
    for root, paths in found:
        for start in range(0, len(paths), size):
            whole = paths[start : start + size]
            name = sha256("\n".join([root, *whole]).encode()).hexdigest()[:20]
            missing = [path for path in whole if name_of(root, path) not in done]
            if missing:
                parts.append({"root": root, "name": f"part-{name}.parquet", "paths": missing})
    return parts


def run(task: Task, parts: Sequence[dict[str, Any]], workers: Workers) -> Iterator[dict[str, Any]]:
    """Do the task for all parts; yields what `Worker` says of each that is written.

    Raises:
        MissingExtraError: Ray is not installed.
        EngineError: no room for a worker, or a worker failed and not only died.
        NmsfreeError: what a worker raised.
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
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.enable_auto_log_stats = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised
        rows = data.from_items(list(parts), override_num_blocks=len(parts)).map(
            Worker,
            fn_constructor_args=(task, workers.processors),
            compute=data.ActorPoolStrategy(size=min(count, len(parts))),
            num_cpus=workers.processors,
            num_gpus=workers.gpus or None,
        )
        try:
            yield from rows.iter_rows()
        except ray.exceptions.RayError as error:
            raise _failure(str(error)) from None


def _failure(traceback: str) -> NmsfreeError:
    """The error of a worker's traceback: ours, of its kind, or else its last line."""
    ours = re.findall(r"^nmsfree\.errors\.(\w+): (.+)", traceback, re.MULTILINE)
    kind, line = ours[-1] if ours else ("EngineError", traceback.strip().splitlines()[-1])
    known = getattr(errors, kind, EngineError)  # the worker's nmsfree may be a newer one
    made: type[NmsfreeError] = NmsfreeError if known is errors.MissingExtraError else known
    return made(f"a worker failed ({shown(line, 500)})")


@contextmanager
def _connected(ray: Any, workers: Workers) -> Iterator[None]:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if workers.address is None:
        options |= {"include_dashboard": False, "object_store_memory": STORE}
    ended = signal.getsignal(signal.SIGTERM)
    try:
        if found := re.fullmatch("(.+):([0-9]+)", workers.address or ""):
            socket.create_connection((found[1].strip("[]"), int(found[2])), CONNECT_SECONDS).close()
        ray.init(address=workers.address or "local", **options)
        signal.signal(signal.SIGTERM, ended)  # Ray's own way to end prints where it was
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        where = workers.address or "this machine"
        line = shown(" ".join(str(error).split()), 300)
        raise EngineError(f"Ray at {shown(where)} cannot be reached ({line})") from None
    try:
        yield
    finally:
        ray.shutdown()
