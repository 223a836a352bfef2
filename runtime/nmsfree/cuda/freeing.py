"""Freeing many things: one that fails keeps none of the others."""

from collections.abc import Callable, Iterable


def free_all(steps: Iterable[Callable[[], object]]) -> None:
    """Take every step, whatever those before it raise; then raise the first error.

    After a failed kernel every call on a GPU fails, and what is not freed now is never freed.
    """
    first: BaseException | None = None
    for step in steps:
        try:
            step()
        except BaseException as error:  # noqa: BLE001 (the first of them is raised below)
            first = first or error
    try:
        if first is not None:
            raise first
    finally:
        del first  # else it and this frame would keep one another, and what the frame knows
