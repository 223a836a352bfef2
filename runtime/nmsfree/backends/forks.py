"""Engines in a forked process: their threads stayed in the parent.

Even freeing them may wait for those threads for ever, so that a child keeps what it cannot use.
"""

import ctypes
import os
import weakref
from typing import Protocol

from nmsfree.errors import EngineError


class Forkable(Protocol):
    """A backend with threads of a library's."""

    def after_fork(self) -> None:
        """Let go, in the child, of all that needs those threads; see `never_free`."""
        ...


_watched: "weakref.WeakSet[Forkable]" = weakref.WeakSet()


def watch(backend: Forkable) -> None:
    """Have `backend.after_fork` called in every child that is forked while the backend lives."""
    _watched.add(backend)


def never_free(*things: object) -> None:
    """Take a reference that is never given back, not even when Python ends."""
    for thing in things:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def forked(engine: str) -> EngineError:
    """The error for an engine that was started before the fork."""
    return EngineError(
        f"{engine} was started before this process was forked, and does not survive that: open"
        " detectors after the fork only, or start processes with multiprocessing's 'spawn'"
    )


def _in_child() -> None:
    for backend in tuple(_watched):
        backend.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)
