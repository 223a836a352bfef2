"""Who watches a run of `nmsfree train`: the terminal, TensorBoard; on the first process only."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from nmsfree_training.console_watch import ConsoleWatcher
from nmsfree_training.distributed import World
from nmsfree_training.run_config import RunConfig
from nmsfree_training.tensorboard_watch import TensorBoardWatcher
from nmsfree_training.train_state import load_state
from nmsfree_training.watch import Silent, Watcher, Watchers


@contextmanager
def watching(run: RunConfig, world: World) -> Iterator[Watcher]:
    """Give the run's watcher; warnings that are logged meanwhile go through it.

    Raises:
        CheckpointError: a run to resume cannot be read.
    """
    done = world.on_main(lambda: _steps_done(run))
    if not world.main:
        yield Silent()
        return
    watchers: list[Watcher] = [ConsoleWatcher(Console(stderr=True))]
    if run.pictures:
        watchers.append(TensorBoardWatcher(run.out / "tensorboard", done))
    watcher = Watchers(watchers)
    with _log_to(watcher):
        try:
            yield watcher
        finally:
            watcher.close()


def _steps_done(run: RunConfig) -> int:
    return int(load_state(run.out)[0].position["iteration"]) if run.resume else 0


class _ToWatcher(logging.Handler):
    """Shows warnings above the bars instead of across them."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(logging.WARNING)
        self._watcher = watcher

    def emit(self, record: logging.LogRecord) -> None:
        self._watcher.message(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def _log_to(watcher: Watcher) -> Iterator[None]:
    root = logging.getLogger()
    before, root.handlers = root.handlers, [_ToWatcher(watcher)]
    try:
        yield
    finally:
        root.handlers = before
