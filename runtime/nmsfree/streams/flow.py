"""Work in stages, each in threads of its own, the order kept."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

_END = object()


class Stage(NamedTuple):
    """A step that every item takes; several threads take several items at once."""

    name: str
    work: Callable[[Any], Any]
    threads: int = 1


def flow(items: Generator[Any, None, None], stages: Sequence[Stage], ahead: int) -> Iterator[Any]:
    """Yield what the last stage makes of every item, in order.

    One thread takes the items. At most `ahead` of them are under way or wait to be taken from here:
    a slow consumer stops the rest. An error of a stage or of `items` comes out in its place, with a
    note that names the stage; what comes after it is given up, and so it is when the consumer
    leaves. No thread is left then.
    """
    reading = ThreadPoolExecutor(1, "nmsfree-read")
    pools = [ThreadPoolExecutor(stage.threads, f"nmsfree-{stage.name}") for stage in stages]
    waiting: deque[Future[Any]] = deque()
    try:
        while True:
            while len(waiting) < ahead:
                item: Future[Any] = reading.submit(next, items, _END)
                for pool, stage in zip(pools, stages, strict=True):
                    item = pool.submit(_take, stage, item)
                waiting.append(item)
            found = waiting.popleft().result()
            if found is _END:
                return
            yield found
    finally:
        for pool in (reading, *pools):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (reading, *pools):
            pool.shutdown()
        items.close()


def _take(stage: Stage, item: "Future[Any]") -> Any:
    """Stages take their items in order, so that whom this one waits for is at work already."""
    before = item.result()
    try:
        return before if before is _END else stage.work(before)
    except Exception as error:
        error.add_note(f"in the stage {stage.name!r}")
        raise
